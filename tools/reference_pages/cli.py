"""The page of the command line, from click's own tree."""

from __future__ import annotations

import inspect
import re

import click
from wording import table

from codi_engine.cli.main import cli

INTRO = """# The command line

Generated from the commands themselves; `codi-engine COMMAND --help` prints the same. Every command takes `-h`. Exit codes: 0 done,
1 a defect, 2 a mistake in the file, the command line or the data, 3 a failed check, 4 paused on a nearly full disk, 130 interrupted
([more](../running.md#exit-codes)).
"""


def page() -> str:
    """Return the page: an overview, then one section for each command."""
    context = click.Context(cli, info_name="codi-engine")
    overview = [[f"[`{name}`](#{name})", command.get_short_help_str(limit=120)] for name, command in _commands(cli)]
    parts = [INTRO, table(["command", ""], overview)]
    for name, command in _commands(cli):
        parts.append(_section(command, click.Context(command, info_name=name, parent=context), "##"))
    return "\n".join(parts)


def _commands(group: click.Group) -> list[tuple[str, click.Command]]:
    return [(name, command) for name, command in sorted(group.commands.items()) if not command.hidden]


def _section(command: click.Command, context: click.Context, level: str) -> str:
    path = context.command_path.removeprefix("codi-engine ")
    usage = " ".join(command.collect_usage_pieces(context))
    text = [f"{level} {path}\n", f"```text\n{context.command_path} {usage}\n```\n", _help(command.help or "")]
    options = [p for p in command.get_params(context) if isinstance(p, click.Option) and not p.hidden and "--help" not in p.opts]
    if options:
        text.append(table(["option", "default", ""], [_option(o, context) for o in options]))
    if isinstance(command, click.Group):
        text += [_section(c, click.Context(c, info_name=n, parent=context), level + "#") for n, c in _commands(command)]
    return "\n".join(text)


def _help(text: str) -> str:
    """Return help as Markdown; paragraphs that click must not wrap (``\\b``) are shown as they stand."""
    out = []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith("\b"):
            out.append("```text\n" + inspect.cleandoc(paragraph.removeprefix("\b\n")) + "\n```\n")
        else:
            out.append(re.sub(r"\s*\n\s*", " ", paragraph).replace("<", "&lt;").replace("*", "\\*") + "\n")
    return "\n".join(out)


def _option(option: click.Option, context: click.Context) -> list[str]:
    names = ", ".join(f"`{n}`" for n in [*option.opts, *option.secondary_opts])
    metavar = (
        ""
        if option.is_flag
        else f" {re.sub('INTEGER( RANGE)?', 'N', option.make_metavar(context)).replace('FLOAT RANGE', 'NUMBER').replace('FLOAT', 'NUMBER')}"
    )
    value = option.get_default(context)
    unset = value is None or value == () or option.is_flag or not isinstance(value, (str, int, float, bool))
    repeated = " May be repeated." if option.multiple else ""
    return [f"{names}{metavar.replace('[', '&#91;').replace('<', '&lt;')}", "" if unset else f"`{value}`", (option.help or "") + repeated]
