"""What analyses take from a run: its metric, its conditions, and the axes that make a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.planning.controls import without_controls
from codi_engine.plugins.analyses.options import PREFERRED

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

#: axes that repeat a place rather than name one
REPEATS = ("example", "condition", "variant", "trial", "donor")


def metric_of(run: Run, wanted: str | None, who: str) -> str:
    """Return the wanted metric, or the first there is of the preferred ones.

    Raises
    ------
    UserError: not in the run, or the run has none
    """
    known = run.metrics
    if wanted is not None:
        if wanted not in known:
            raise UserError(f"{who}: metric '{wanted}' is not in the run; {nearest(wanted, known)}")
        return wanted
    for name in [*PREFERRED, *known]:
        if name in known:
            return name
    raise UserError(f"{who}: the run has no metric; add metrics: [kl] to the experiment")


def place_axes(run: Run) -> list[str]:
    """Return the axes that name a place: layer, step, position, head, options of the intervention …"""
    return [a for a in run.axes if a in run.cells and a not in REPEATS]


def edited_conditions(run: Run, controls: bool = False) -> Sequence[str]:
    """Return the conditions other than the baseline, in the order of the cells; with ``controls`` those too."""
    found = [str(c) for c in run.cells["condition"].unique() if c != "baseline"]
    return found if controls else without_controls(found)
