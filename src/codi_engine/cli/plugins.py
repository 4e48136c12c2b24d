"""``codi-engine plugins``: what is installed, what one of them does and takes, and what was left out."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any

import click

from codi_engine.cli.completion import plugin_names
from codi_engine.cli.options import DEBUG, JSON

if TYPE_CHECKING:
    from codi_engine.core.describing import Option
    from codi_engine.core.plugins import Plugins, Registered

KINDS = ("model", "dataset", "intervention", "metric", "analysis", "tracker", "sae_format")
_KIND = click.option("--kind", type=click.Choice(KINDS), help="Of that kind only.")


@click.group("plugins", invoke_without_command=True)
@_KIND
@JSON
@DEBUG
@click.pass_context
def plugins(context: click.Context, kind: str | None, as_json: bool, debug: bool) -> None:
    """List what can stand in an experiment file: kind, name, package, help.

    \b
      codi-engine plugins --kind metric
      codi-engine plugins show steer
    """
    if context.invoked_subcommand is None:
        _list(kind, as_json)


@plugins.command("list")
@_KIND
@JSON
@DEBUG
def list_(kind: str | None, as_json: bool, debug: bool) -> None:
    """List plugins, as `codi-engine plugins` does."""
    _list(kind, as_json)


@plugins.command()
@click.argument("name", shell_complete=plugin_names)
@_KIND
@JSON
@DEBUG
def show(name: str, kind: str | None, as_json: bool, debug: bool) -> None:
    """Show the help of NAME (or package/NAME), its options as a table, and where it stands in an experiment file."""
    from codi_engine.core.contributed import left_out
    from codi_engine.core.errors import UserError, nearest
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.text import json_shown

    manager = plugin_manager()
    found = [r for r in manager.registered if name in (r.name, r.full_name) and kind in (None, r.kind)]
    if not found:
        known = [manager.written(r) for r in manager.registered if kind in (None, r.kind)]
        raise UserError(f"plugins show: unknown {kind or 'plugin'} '{name}'; {nearest(name, known)}{left_out(manager.problems, name)}")
    if as_json:
        click.echo(json_shown([_shown(manager, item) for item in found], 1))
        return
    for number, item in enumerate(found):
        _print_one(manager, item, first=number == 0)


def problems(quiet: bool = False) -> None:
    """Say on standard error, once per command, what was left out of what is installed."""
    if quiet:
        return
    from codi_engine.core.plugins import plugin_manager

    _print_problems(plugin_manager())


# --------------------------------------------------------------------------------------------------- plain


def _summary(manager: Plugins, item: Registered) -> dict[str, Any]:
    from codi_engine.core.describing import first_line

    return {
        "kind": item.kind, "name": item.name, "package": item.package, "version": item.version, "write": manager.written(item), "help": first_line(item.cls),
    }  # fmt: skip


def _shown(manager: Plugins, item: Registered) -> dict[str, Any]:
    from codi_engine.core.describing import example_yaml, flowing, options_of

    options = [option.to_dict() for option in options_of(item.cls.Options)]
    return {**_summary(manager, item), "help": flowing(item.cls.__doc__), "options": options, "example": example_yaml(item, manager.written(item))}


# ----------------------------------------------------------------------------------------------- in a table


def _list(kind: str | None, as_json: bool) -> None:
    from codi_engine.core.plugins import HOOKS, plugin_manager
    from codi_engine.core.text import json_shown

    manager = plugin_manager()
    found = sorted(
        (r for r in manager.registered if kind in (None, r.kind)), key=lambda r: (KINDS.index(r.kind), r.package != "codi-engine", r.package, r.name)
    )
    if as_json:
        left = [{"package": p.package, "version": p.version, "problem": p.what} for p in manager.problems]
        value = {"plugins": [_shown(manager, item) for item in found], "left_out": left}
        click.echo(json_shown(value, 1))
        return
    _print_list(manager, found, HOOKS)
    _print_problems(manager)


def _print_list(manager: Plugins, found: list[Registered], headings: dict[str, str]) -> None:
    from rich.table import Table

    from codi_engine.cli.show import console, plain
    from codi_engine.core.describing import first_line

    screen = console()
    rows = [(r.kind, manager.written(r), f"{r.package} {r.version}", first_line(r.cls)) for r in found]
    names, packages = (max((len(row[i]) for row in rows), default=0) for i in (1, 2))
    for kind in dict.fromkeys(row[0] for row in rows):
        screen.print(plain(headings[kind].replace("_", " "), "bold"))
        grid = Table.grid(padding=(0, 2, 0, 0))
        for width, style in ((names + 2, ""), (packages, "dim")):
            grid.add_column(width=width, no_wrap=True, style=style)
        grid.add_column(overflow="fold")
        for row in rows:
            if row[0] == kind:
                grid.add_row(plain(f"  {row[1]}"), plain(row[2]), plain(row[3]))
        screen.print(grid)
    if not found:
        screen.print(plain("none installed"))


def _print_problems(manager: Plugins) -> None:
    from codi_engine.cli.show import console, plain

    for problem in manager.problems:
        console(stderr=True).print(plain(f"left out: {problem}", "yellow"), soft_wrap=True)


def _print_one(manager: Plugins, item: Registered, first: bool) -> None:
    from codi_engine.cli.show import console, plain
    from codi_engine.core.describing import example_yaml, flowing, options_of

    screen = console()
    if not first:
        screen.print()
    screen.print(plain(f"{item.kind.replace('_', ' ')} {manager.written(item)}", "bold"), plain(f"({item.package} {item.version})", "dim"))
    screen.print(plain(flowing(item.cls.__doc__)))
    options = options_of(item.cls.Options)
    screen.print()
    if options:
        _print_options(options)
    else:
        screen.print(plain("no options", "dim"))
    screen.print()
    screen.print(plain("in an experiment file", "bold"))
    for line in example_yaml(item, manager.written(item)).splitlines():
        screen.print(plain(f"  {line}"), soft_wrap=True)


def _print_options(options: list[Option]) -> None:
    from rich.table import Table

    from codi_engine.cli.show import console, plain

    narrow = (shutil.get_terminal_size().columns if console().is_terminal else console().width) < 100
    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name, width in (("option", None), ("type", 18 if narrow else 28), ("default", 12 if narrow else 20), ("what it does", None)):
        grid.add_column(name, overflow="fold", max_width=width, no_wrap=name == "option")
    for option in options:
        grid.add_row(plain(option.name), plain(option.type, "dim"), plain(_default(option)), plain(option.help))
    console().print(grid)


def _default(option: Option) -> str:
    """Say a default as an experiment file writes it."""
    if option.required:
        return "required"
    value = option.default
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value, ensure_ascii=False, default=str)
