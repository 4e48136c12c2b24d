"""What the terminal shows of an experiment with checkpoints: what each of its runs gave."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codi_engine.cli.show import console, plain, results, table

if TYPE_CHECKING:
    from pathlib import Path

    from codi_engine.core.experiment import Experiment
    from codi_engine.core.running.run import Finished


def finished(experiment: Experiment, done: Finished) -> None:
    """Print what the runs gave, one line each, and the analyses of all of them."""
    console().print(plain(experiment.name, "bold"))
    table([(label, _line(part)) for label, part in done.parts.items()] + [("note", n) for n in done.notes])
    results(done)
    console().print()
    hint = [] if done.summaries else [("next", f"codi-engine analyze {done.path} across")]
    table([*hint, ("runs", str(done.path)), ("python", f'codi_engine.all_cells("{done.path}")')])


def _line(part: Finished) -> str:
    new = "all new" if part.new_cells == part.cells else f"{part.new_cells:,} new" if part.new_cells else "none new: all were on disk"
    path: Path = part.path
    return f"{part.cells:,} cells ({new}) in {part.seconds:.1f} s: {path}"
