"""``codi-engine verify`` and ``codi-engine repair``: is every byte of a run what was written, and if not, make it so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from codi_engine.cli.completion import runs as known_runs
from codi_engine.cli.options import DEBUG, JSON, QUIET
from codi_engine.cli.places import RUN

if TYPE_CHECKING:
    from codi_engine.store.verifying import Finding

#: exit code where something is damaged
DAMAGED = 2


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=RUN, shell_complete=known_runs)
@JSON
@QUIET
@DEBUG
def verify(runs: tuple[str, ...], as_json: bool, quiet: bool, debug: bool) -> int:
    """Compare every byte of RUNs (patterns too) with what was written, and name each damaged, cut, missing or foreign file.

    The files that a run was computed from, weights and data, are compared too, where they are here.

    The exit code is 2 when something is not as written. What a run leaves that was killed is no damage: the next one mends it.
    """
    from codi_engine.cli.progress import progress
    from codi_engine.core.runs.verifying import runs_to_verify, verify_run
    from codi_engine.core.text import json_shown

    found: dict[str, list[Finding]] = {}
    for path in runs_to_verify(runs):
        with progress(quiet) as shown:
            found[str(path)] = verify_run(path, shown)
        if not as_json:
            _list(found[str(path)])
            _conclude(str(path), found[str(path)])
    if as_json:
        plain = {run: [{"file": f.file, "kind": f.kind, "problem": f.problem, "unit": f.unit} for f in each] for run, each in found.items()}
        click.echo(json_shown(plain))
    return DAMAGED if any(f.damage for each in found.values() for f in each) else 0


def _list(found: list[Finding]) -> None:
    from codi_engine.cli.show import table

    table([(f.kind, f"{f}{'' if f.unit is None else f' (unit {f.unit})'}") for f in found])


def _conclude(directory: str, found: list[Finding]) -> None:
    from codi_engine.cli.show import console, plain
    from codi_engine.store.errors import repairing

    damage = [f for f in found if f.damage]
    units = len({f.unit for f in damage if f.unit is not None})
    foreign, changed = (sum(f.kind == kind for f in damage) for kind in ("foreign", "changed"))
    bad = len(damage) - foreign - changed
    if bad:
        again = f" and computes {units} unit{'s' * (units != 1)} again" if units else ""
        text = f"{directory}: {bad} file{'s are' if bad != 1 else ' is'} not as written; {repairing(Path(directory))} restores them{again}"
    elif changed:
        text = f"{directory}: nothing of the run is damaged; {changed} of the files that it was computed from {'are' if changed != 1 else 'is'} another now"
    elif foreign:
        text = f"{directory}: nothing is damaged; {foreign} foreign file{'s' * (foreign != 1)} can be deleted"
    else:
        text = f"{directory}: every file is what was written" + ("; what an interrupted run left is mended when it goes on" if found else "")
    console().print(plain(text), soft_wrap=True)


@click.command()
@click.argument("directory", metavar="RUN", type=RUN, shell_complete=known_runs)
@click.option("--replace", is_flag=True, help="Take what this machine gives where that is not bit for bit what was there, and say how far off it is.")
@click.option("--device", help="Where the model is loaded. Default: as the experiment says.")
@QUIET
@DEBUG
def repair(directory: str, replace: bool, device: str | None, quiet: bool, debug: bool) -> None:
    """Mend a damaged RUN: restore what has a copy, compute exactly the damaged units again, make damaged results again."""
    from codi_engine.cli.progress import progress
    from codi_engine.cli.show import console, plain, table
    from codi_engine.core.running.repairing import repair_run

    with progress(quiet) as shown:
        done = repair_run(directory, shown, device=device, replace=replace)
    rows = [("restored", name) for name in done.restored]
    rows += [("computed", f"unit {unit}: {', '.join(files)}") for unit, files in done.units.items()]
    rows += [("replaced", f"unit {unit}: its undamaged values differ by up to {share:.2g} of their array's largest") for unit, share in done.replaced.items()]
    rows += [("made again", name) for name in done.results]
    rows += [("kept", f"{old}, which nothing could restore, as {new}") for old, new in done.kept.items()]
    rows += [("left", f"{f}") for f in done.left]
    rows += [("to do", text) for text in done.todo]
    table(rows)
    text = "is mended" if done else "nothing was damaged"
    console().print(plain(f"{directory}: {text}"), soft_wrap=True)
