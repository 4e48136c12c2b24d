"""What the terminal shows of an experiment with checkpoints: its plans, and what each of its runs gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from codi_engine.cli.show import _console, plain, results, table

if TYPE_CHECKING:
    from pathlib import Path

    from codi_engine.core.experiment import Experiment
    from codi_engine.core.run import Finished, PlanSummary


def plans(experiment: Experiment, found: Mapping[str, PlanSummary]) -> None:
    """Print what is run for every checkpoint, then what all of them come to."""
    console = _console()
    for label, summary in found.items():
        console.print(plain(f"checkpoint {label}", "bold"))
        table([row for row in summary.lines() if row[0] != "experiment"])
        console.print()
    cells, prompts = sum(s.cells for s in found.values()), sum(s.prompts * s.prepared.plan.trials for s in found.values())
    rows = [("experiment", f"{experiment.name}: {len(found)} checkpoints, one after the other"), ("cells", f"{cells:,} edited + {prompts:,} unedited")]
    seconds = sum(s.seconds for s in found.values())
    rows += [("forwards", f"about {sum(s.forwards for s in found.values()):,} token rows"), ("time", f"about {seconds:,.0f} s")]
    table([*rows, ("output", str(next(iter(found.values())).output.parent))])


def finished(experiment: Experiment, done: Finished) -> None:
    """Print what the runs gave, one line each, and the analyses of all of them."""
    _console().print(plain(experiment.name, "bold"))
    table([(label, _line(part)) for label, part in done.parts.items()] + [("note", n) for n in done.notes])
    results(done)
    _console().print()
    hint = [] if done.summaries else [("next", f"codi-engine analyze {done.path} across")]
    table([*hint, ("runs", str(done.path)), ("python", f'codi_engine.all_cells("{done.path}")')])


def _line(part: Finished) -> str:
    new = "all new" if part.new_cells == part.cells else f"{part.new_cells:,} new" if part.new_cells else "none new: all were on disk"
    path: Path = part.path
    return f"{part.cells:,} cells ({new}) in {part.seconds:.1f} s: {path}"
