"""What the terminal shows: tables, results. Text of models and plugins is shown as plain text only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from codi_engine.core.text import neutral

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.experiment import Experiment, PluginRef
    from codi_engine.core.imports.importing import Imported
    from codi_engine.core.running.run import Finished
    from codi_engine.core.runs.analyzing import Analysed
    from codi_engine.core.sae import SAE

#: columns where the output is no terminal and nothing else is said
WIDTH = 100
#: columns from which the gate's first values are shown
WIDE = 96


def console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    known = stream.isatty() or "COLUMNS" in os.environ
    return Console(stderr=stderr, highlight=False, width=None if known else WIDTH)


def plain(text: object, style: str = "") -> Text:
    """Return text without markup, control characters shown as their code."""
    return Text(neutral(text), style=style)


def table(rows: Sequence[tuple[str, str]]) -> None:
    """Print label/value rows."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        grid.add_row(plain(label), plain(value))
    console().print(grid)


# -------------------------------------------------------------------------------------------------- results


def finished(experiment: Experiment, done: Finished) -> None:
    """Print what a run gave."""
    if done.parts:
        from codi_engine.cli import show_checkpoints

        show_checkpoints.finished(experiment, done)
        return
    experiment = done.experiment or experiment  # with --limit and --device applied
    new = "all new" if done.new_cells == done.cells else f"{done.new_cells:,} new" if done.new_cells else "none new: all were on disk"
    console().print(plain(experiment.name, "bold"))
    rows = [("model", _reference(experiment.model)), ("data", _reference(experiment.data))]
    rows += [("cells", f"{done.cells:,} ({new}) in {done.seconds:.1f} s"), ("time", done.took)]
    table(rows + [("note", n) for n in done.notes])
    results(done)
    console().print()
    if done.path.exists():
        table([("run", str(done.path)), ("python", f'codi_engine.open_run("{done.path}").cells')])
    else:
        table([("run", "was temporary; --output DIR keeps it")])


def imported(done: Imported) -> None:
    """Print what an import wrote and what it lacks."""
    new = "all new" if done.new_cells == done.cells else f"{done.new_cells:,} new" if done.new_cells else "none new: all were on disk"
    console().print(plain(done.name, "bold"))
    axes = " × ".join(f"{name} {count:,}" for name, count in done.axes.items()) or "one cell"
    rows = [("axes", axes), ("values", ", ".join(done.columns)), ("cells", f"{done.cells:,} ({new}) in {done.seconds:.1f} s")]
    table(rows + [("note", n) for n in done.notes])
    console().print()
    table([("run", str(done.path)), ("python", f'codi_engine.open_run("{done.path}").cells')])


def _in_words(value: object) -> str:
    """Say an option's value without the brackets of Python: ``by reasoning_steps per_stratum 40``."""
    if isinstance(value, dict):
        return " ".join(f"{k} {_in_words(v)}" for k, v in value.items())
    return "yes" if value is True else "no" if value is False else str(value)


def _reference(ref: PluginRef) -> str:
    """Say a plugin and its options in one line: ``codi: checkpoint demo``."""
    options = ", ".join(f"{key} {_in_words(value)}" for key, value in ref.options.items())
    return f"{ref.plugin}: {options}" if options else ref.plugin


def results(done: Finished) -> None:
    """Print summaries and where the figures are."""
    screen = console()
    for summary in done.summaries.values():
        screen.print()
        screen.print(plain(summary))
    if done.figures:
        screen.print()
        table([(name, str(path)) for name, path in done.figures.items() if Path(path).exists()])


def analysed(done: Sequence[Analysed]) -> None:
    """Print what analyses say, and where their results are."""
    screen = console()
    for number, one in enumerate(done):
        if number:
            screen.print()
        if len(done) > 1:
            screen.print(plain(f"{one.name} of {', '.join(map(str, one.runs))}", "bold"))
        screen.print(plain(one.summary))
        screen.print()
        table([(name, str(path)) for name, path in {**one.figures, **one.tables, **one.files}.items()])


# ----------------------------------------------------------------------------------------------------- gate


#: how the gate's record begins of a condition that it lets pass
EXEMPT = "exempt:"


def checks(frame: pd.DataFrame) -> None:
    """Print the gate's findings, one row per condition and site."""
    screen = console()
    several = ["checkpoint"] if "checkpoint" in frame else []
    names = {name: int(frame[name].astype(str).str.len().max()) for name in (*several, "condition", "site")}
    wide = not screen.is_terminal or screen.width >= max(WIDE, sum(names.values()) + 78)  # a file or a pipe has no width
    screen.width = max(screen.width, sum(names.values()) + 90) if not screen.is_terminal else screen.width
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in (*names, "places"):
        grid.add_column(name, overflow="fold", min_width=min(names.get(name, 0), 28) or None)
    for name in ("changed", "norm", "self-patch", *(["first values"] if wide else [])):
        grid.add_column(name, justify="right", no_wrap=True)
    for row in frame.to_dict("records"):
        norms = f"{row['norm_before']:.4g} → {row['norm_after']:.4g}"
        values = [
            *(row[k] for k in several),
            row["condition"],
            row["site"],
            _ranges(str(row["places"])),
            f"{row['changed']} of {row['rows']}",
            norms,
            _short(row["self_patch"]),
        ]
        first = [" ".join(f"{v:.3g}" for v in row["first_values"])] if wide else []
        grid.add_row(*map(plain, values + first))
    screen.print(grid)
    exempt = frame[frame["self_patch"].str.startswith(EXEMPT)].drop_duplicates("condition")
    identity = "; self-patch is an identity" if len(exempt) == 0 else "; let pass unproved:"
    screen.print(plain(f"gate: every edit fired where the plan says{identity}"))
    for row in exempt.to_dict("records"):
        screen.print(plain(f"  {row['condition']}: {row['self_patch'].removeprefix(EXEMPT).strip()}"))


def _short(identity: str) -> str:
    return EXEMPT.rstrip(":") if identity.startswith(EXEMPT) else identity


def _ranges(places: str) -> str:
    """Shorten ``0,1,2,5`` to ``0–2, 5``; other text is returned as it is."""
    try:
        numbers = sorted({int(p) for p in places.split(",")})
    except ValueError:
        return places
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]}…{r[-1]}" for r in runs)


# --------------------------------------------------------------------------------------------- autoencoders


def autoencoders(found: Sequence[tuple[SAE, str]]) -> None:
    """Print what autoencoders are, one column each."""
    grid = Table.grid(padding=(0, 3))
    grid.add_column(style="dim", no_wrap=True)
    for _ in found:
        grid.add_column(overflow="fold")
    rows = [(sae.summary() | {"digest": digest[:16]}) for sae, digest in found]
    for label in rows[0]:
        grid.add_row(plain(label), *(plain(row[label]) for row in rows))
    console().print(grid)
