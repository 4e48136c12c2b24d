"""``codi-engine verify`` and ``codi-engine repair``: is every byte of a run what was written, and if not, make it so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from codi_engine.store.verifying import Finding

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress, no notes.")
_DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")
#: exit code where something is damaged
DAMAGED = 2


@click.command()
@click.argument("directory", metavar="RUN")
@_JSON
@_QUIET
@_DEBUG
def verify(directory: str, as_json: bool, quiet: bool, debug: bool) -> int:
    """Compare every byte of a RUN with what was written, and name each damaged, cut, missing or foreign file.

    The exit code is 2 when there is damage. What a run leaves that was killed is no damage: the next one mends it.
    """
    from codi_engine.cli.progress import progress
    from codi_engine.core.runs.verifying import verify_run

    with progress(quiet) as shown:
        found = verify_run(directory, shown)
    damage = [f for f in found if f.damage]
    if as_json:
        click.echo(json.dumps([{"file": f.file, "kind": f.kind, "problem": f.problem, "unit": f.unit} for f in found], indent=1))
    else:
        _list(found)
        _conclude(directory, damage, len(found))
    return DAMAGED if damage else 0


def _list(found: list[Finding]) -> None:
    from codi_engine.cli.show import table

    table([(f.kind, f"{f}{'' if f.unit is None else f' (unit {f.unit})'}") for f in found])


def _conclude(directory: str, damage: list[Finding], count: int) -> None:
    from codi_engine.cli.show import console, plain

    units = len({f.unit for f in damage if f.unit is not None})
    foreign = sum(f.kind == "foreign" for f in damage)
    bad = len(damage) - foreign
    if bad:
        again = f" and computes {units} unit{'s' * (units != 1)} again" if units else ""
        text = f"{directory}: {bad} file{'s are' if bad != 1 else ' is'} not as written; `codi-engine repair {directory}` restores them{again}"
    elif foreign:
        text = f"{directory}: nothing is damaged; {foreign} foreign file{'s' * (foreign != 1)} can be deleted"
    else:
        text = f"{directory}: every file is what was written" + ("; what an interrupted run left is mended when it goes on" if count else "")
    console().print(plain(text), soft_wrap=True)


@click.command()
@click.argument("directory", metavar="RUN")
@click.option("--replace", is_flag=True, help="Accept new values, equal up to rounding, where this machine gives other bits than the one before.")
@click.option("--device", help="Where the model is loaded. Default: as the experiment says.")
@_QUIET
@_DEBUG
def repair(directory: str, replace: bool, device: str | None, quiet: bool, debug: bool) -> None:
    """Mend a damaged RUN: restore what has a copy, compute exactly the damaged units again, make damaged results again."""
    from codi_engine.cli.progress import progress
    from codi_engine.cli.show import console, plain, table
    from codi_engine.core.running.repairing import repair_run

    with progress(quiet) as shown:
        done = repair_run(directory, shown, device=device, replace=replace)
    rows = [("restored", name) for name in done.restored]
    rows += [("computed", f"unit {unit}: {', '.join(files)}{' (other bytes than before)' * (unit in done.replaced)}") for unit, files in done.units.items()]
    rows += [("made again", name) for name in done.results]
    rows += [("kept", f"{old}, which nothing could restore, as {new}") for old, new in done.kept.items()]
    rows += [("left", f"{f}") for f in done.left]
    table(rows)
    text = "is mended" if done else "nothing was damaged"
    console().print(plain(f"{directory}: {text}"), soft_wrap=True)
