"""What analyses of latent steps take from a run: sets of steps, the interventions behind conditions, effects per example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.planning.controls import control_rows
from codi_engine.core.plugin import Options
from codi_engine.plugins.analyses.options import CONTRASTS
from codi_engine.plugins.analyses.selection import place_axes

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from codi_engine.core.runs.results import Run

#: metrics of which less is better; their rise is the loss
FALLING = ("cross_entropy", "rank")
Steps = tuple[int, ...]


class StepOptions(Options):
    """``condition``: which one, where several would do. ``metric``: default as for ``importance``.

    ``at``: values of the other axes that were swept: ``{layer: 3}``. ``q``: level of the corrected tests (BH).
    ``confidence``: of intervals.
    """

    condition: str | None = None
    metric: str | None = None
    at: dict[str, int | float | str] = Field(default_factory=dict)
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)


def step_set(value: Any, who: str) -> Steps:
    """Return the steps that a label of the axis stands for: ``3`` or ``0+1+2``.

    Raises
    ------
    UserError: the label is no set of numbers (an imported run may name its steps otherwise)
    """
    try:
        return tuple(int(part) for part in str(value).split("+"))
    except ValueError:
        raise UserError(f"{who}: step: '{value}' is neither a step nor a set of steps such as 0+1") from None


def interventions(run: Run) -> dict[str, dict[str, Any]]:
    """Return condition → its intervention as the run's experiment resolves it; empty for an imported run."""
    experiment = run.experiment
    top = experiment.get("intervention")
    named = experiment.get("conditions") or ({top["plugin"]: {}} if top else {})
    return {str(name): dict(spec.get("intervention") or top or {}) for name, spec in named.items()}


def step_conditions(run: Run, who: str) -> dict[str, list[Steps]]:
    """Return condition → its sets of edited steps, in the order of the run.

    Raises
    ------
    UserError: no condition edits latent steps
    """
    cells = run.cells
    edited = cells[(cells["condition"] != "baseline") & ~control_rows(cells["condition"])]
    found: dict[str, list[Steps]] = {}
    if "step" in edited:
        for condition, part in edited[edited["step"].notna()].groupby("condition", sort=False):
            found[str(condition)] = list(dict.fromkeys(step_set(v, who) for v in part["step"]))
    if not found:
        raise UserError(f"{who}: no condition of {run.path} edits latent steps; sweep step in the experiment, such as sweep: {{step: all}}")
    return found


def chosen(wanted: str | None, fits: Mapping[str, str], who: str, needs: str) -> str:
    """Return the condition to analyse.

    Parameters
    ----------
    fits: condition → why it does not do, empty where it does
    needs: what is needed, for the message

    Raises
    ------
    UserError: unknown, unfit, or several would do
    """
    if wanted is not None and wanted not in fits:
        raise UserError(f"{who}: condition: '{wanted}' is no condition that edits steps; {nearest(wanted, fits)}")
    good = [name for name, reason in fits.items() if not reason]
    if wanted is None and len(good) > 1:
        raise UserError(f"{who}: several conditions would do: {', '.join(good)}; choose one with condition")
    name = wanted if wanted is not None else good[0] if good else next(iter(fits))
    if fits[name]:
        raise UserError(f"{who}: condition '{name}' {fits[name]}; {needs}")
    return name


def condition_cells(run: Run, condition: str, at: Mapping[str, Any], who: str) -> pd.DataFrame:
    """Return the cells of one condition at one point of its other axes, with their steps as tuples in ``steps``.

    Raises
    ------
    UserError: ``at`` names nothing that there is, or leaves several points
    """
    cells = run.cells[run.cells["condition"] == condition]
    axes = [a for a in place_axes(run) if a != "step"]
    for axis, value in at.items():
        if axis not in axes:
            raise UserError(f"{who}: at: '{axis}' is no other axis of the run; {nearest(axis, axes)}")
        known = cells[axis].dropna()
        if len(known):
            cells = cells[cells[axis].astype(str) == str(value)]
        if cells.empty:
            raise UserError(f"{who}: at: '{condition}' has no {axis} {value}; it has {_listed(known.unique())}")
    for axis in axes:
        values = cells[axis].dropna().unique()
        if len(values) > 1:
            raise UserError(f"{who}: '{condition}' is swept over {axis} too ({_listed(values)}); choose one: at={{{axis}: {values[0]}}}")
    sets: list[Any] = [step_set(v, who) for v in cells["step"]]
    return cells.assign(steps=sets)


def _listed(values: Any) -> str:
    shown = [str(v) for v in values[:8]]
    return ", ".join(shown) + (", …" if len(values) > 8 else "")


def is_contrast(metric: str) -> bool:
    """Say whether a metric compares with the unedited run already."""
    return any(metric == name or metric.startswith(f"{name}_") for name in CONTRASTS)


def rises(metric: str) -> bool:
    """Say whether damage makes a metric rise: contrasts, and metrics of which less is better."""
    return is_contrast(metric) or any(metric == name or metric.startswith(f"{name}_") for name in FALLING)


def unedited(run: Run, cells: pd.DataFrame, who: str) -> pd.DataFrame:
    """Return the unedited cells of the prompts that edited ``cells`` were run on.

    Raises
    ------
    UserError: there are none, or several for one prompt (conditions with prompt templates)
    """
    base = run.baseline
    if "variant" in base and "variant" in cells:
        base = base[base["variant"].isin(cells["variant"].unique())]
    base = base[base["example"].isin(cells["example"])]
    if base.empty:
        raise UserError(f"{who}: the run has no unedited baseline to compare with")
    keys = [k for k in ("example", "variant", "trial") if k in base]
    if base.duplicated(keys).any():
        raise UserError(f"{who}: the run has several unedited prompts per example (prompt templates); analyse a run without them")
    return base


def effects_by_steps(run: Run, cells: pd.DataFrame, metric: str, who: str) -> pd.DataFrame:
    """Return examples × sets of steps: each example's effect, trials and donors averaged; NaN where there is none.

    An effect is edited minus unedited, or the metric itself where it compares already. Columns are tuples of steps.
    """
    import pandas as pd

    from codi_engine.plugins.analyses.effects import per_example

    both = pd.concat([unedited(run, cells, who), cells])
    per = per_example(both, metric, ["steps"], None)
    table = per.set_index(["example", "steps"])["effect"].unstack("steps")
    order = list(dict.fromkeys(cells["steps"]))
    return table.reindex(index=list(dict.fromkeys(cells["example"])))[order]


def sets_of(effects: pd.DataFrame) -> list[Steps]:
    """Return the sets of steps that columns are called by."""
    return [tuple(map(int, column)) for column in effects.columns.to_list()]


def loss(effects: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return effects with the sign of damage: positive is worse (contrasts and metrics that rise stay, others are turned)."""
    return effects if rises(metric) else 0.0 - effects


def level(run: Run, cells: pd.DataFrame, metric: str, who: str) -> pd.Series:
    """Return each example's unedited metric, trials averaged."""
    return unedited(run, cells, who).groupby("example", sort=False)[metric].mean()


def answered_right(run: Run, cells: pd.DataFrame, who: str) -> pd.Series | None:
    """Say per example whether the unedited answer is right (in more than half of its trials); None without ``accuracy``."""
    return level(run, cells, "accuracy", who) > 0.5 if "accuracy" in run.metrics else None


def ratio(above: np.ndarray, below: np.ndarray, confidence: float) -> dict[str, Any]:
    """Return mean(above) / mean(below) over examples, with its interval by linearisation (Cochran 1977, 6.5).

    Yes and no against a constant 1 have Wilson's interval. Undefined (NaN, ``note`` says why) where the mean below is 0.
    """
    import numpy as np
    from scipy import stats

    from codi_engine.kernels.intervals import wilson

    known = ~(np.isnan(above) | np.isnan(below))
    a, b = above[known], below[known]
    n = len(a)
    out: dict[str, Any] = {"n": n, "missing": int((~known).sum()), "ratio": np.nan, "ci_low": np.nan, "ci_high": np.nan, "note": ""}
    if n == 0 or abs(b.mean()) <= 1e-12:
        return out | {"note": "no example" if n == 0 else "the reference is 0: no share can be formed"}
    share = float(a.mean() / b.mean())
    out["ratio"] = share
    if n < 2:
        return out | {"note": "one example: no interval"}
    if (b == 1.0).all() and np.isin(a, (0.0, 1.0)).all():
        out["ci_low"], out["ci_high"] = wilson(int(a.sum()), n, confidence)
        return out
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1) * (a - share * b).std(ddof=1) / np.sqrt(n) / abs(b.mean()))
    return out | {"ci_low": share - half, "ci_high": share + half}


def set_name(steps: Sequence[int]) -> str:
    """Return how tables call a set of steps: ``0+2``, or ``none``."""
    return "+".join(map(str, steps)) if len(steps) else "none"


def n_text(counts: Any) -> str:
    """Return ``n = 12``, or ``n = 8–12`` where places differ."""
    low, high = int(min(counts)), int(max(counts))
    return f"n = {low}" if low == high else f"n = {low}–{high}"
