"""Tables of ``geometry``: per group of cells and step, with n and intervals over examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from codi_engine_geometry import shapes

if TYPE_CHECKING:
    from codi_engine_geometry.geometry import GeometryOptions


#: right and wrong answers are told apart where there are so many of both
LEAST = 5


def groups(correct: np.ndarray | None) -> dict[str, np.ndarray]:
    """Return name → cells: ``all``, and ``correct`` and ``wrong`` where there are five cells or more of both."""
    if correct is None or min((correct == 1).sum(), (correct == 0).sum()) < LEAST:
        return {}
    found = {"correct": np.flatnonzero(correct == 1), "wrong": np.flatnonzero(correct == 0)}
    return {"all": np.arange(len(correct)), **found}


def by_example(values: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Cells × … → examples × …: the mean over an example's cells, NaN left out."""
    codes = np.unique(examples, return_inverse=True)[1]
    known = ~np.isnan(values)
    total, count = (np.zeros((codes.max() + 1, *values.shape[1:])) for _ in range(2))
    np.add.at(total, codes, np.where(known, values, 0.0))
    np.add.at(count, codes, known)
    mean: np.ndarray = np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
    return mean


def mean_interval(values: np.ndarray, confidence: float) -> tuple[int, float, float, float]:
    """Return n, mean and t-interval of one value per example; NaN where there are too few."""
    known = values[~np.isnan(values)]
    if len(known) < 2:
        return len(known), float(known.mean()) if len(known) else np.nan, np.nan, np.nan
    half = float(stats.t.ppf(0.5 + confidence / 2, len(known) - 1)) * float(known.std(ddof=1)) / np.sqrt(len(known))
    mean = float(known.mean())
    return len(known), mean, mean - half, mean + half


def _measures(states: np.ndarray, steps: Sequence[int]) -> dict[str, tuple[np.ndarray, Sequence[int]]]:
    """Return measure → (cells × …, the state that each move leads to)."""
    return {"change": (shapes.step_change(states), steps[1:]), "direction": (shapes.direction(states), steps[2:])}


def step_table(states: np.ndarray, steps: Sequence[int], examples: np.ndarray, split: Mapping[str, np.ndarray], confidence: float) -> pd.DataFrame:
    """Return one row per group, measure and state that the move leads to: mean, interval, n."""
    rows = []
    for group, cells in _split(split, len(states)).items():
        for measure, (values, to) in _measures(states[cells], steps).items():
            for at, step in enumerate(to):
                n, mean, low, high = mean_interval(by_example(values[:, at], examples[cells]), confidence)
                rows.append({"group": group, "measure": measure, "step": step, "n": n, "mean": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def pair_table(states: np.ndarray, steps: Sequence[int], examples: np.ndarray, split: Mapping[str, np.ndarray], confidence: float) -> pd.DataFrame:
    """Return one row per group and pair of states: mean cosine, interval, n."""
    rows = []
    for group, cells in _split(split, len(states)).items():
        for i in range(len(steps)):
            for j in range(i + 1, len(steps)):
                values = by_example(shapes.cosine(states[cells, i], states[cells, j]), examples[cells])
                n, mean, low, high = mean_interval(values, confidence)
                rows.append({"group": group, "step": steps[i], "other": steps[j], "n": n, "cosine": mean, "low": low, "high": high})
    return pd.DataFrame(rows)


def dimension_table(states: np.ndarray, steps: Sequence[int], split: Mapping[str, np.ndarray], options: GeometryOptions) -> pd.DataFrame:
    """Return one row per group and state: effective dimension with a jackknife interval, and at the size of the smallest group."""
    rows: list[dict[str, Any]] = []
    each = _split(split, len(states))
    size = min(len(c) for c in each.values())
    for group, cells in each.items():
        for at, step in enumerate(steps):
            mine = states[cells, at]
            value, error = shapes.effective_dimension(mine), shapes.jackknife(mine)
            half = float(stats.t.ppf(0.5 + options.confidence / 2, min(len(cells), 100) - 1)) * error if len(cells) > 1 else np.nan
            equal = shapes.at_equal_size(mine, size, options.draws, options.seed)
            rows.append(
                {"group": group, "step": step, "n": len(cells), "dimension": value, "low": value - half, "high": value + half, "at_n": size, "equal_n": equal}
            )
    return pd.DataFrame(rows)


def contrast_table(states: np.ndarray, steps: Sequence[int], examples: np.ndarray, correct: np.ndarray | None, options: GeometryOptions) -> pd.DataFrame:
    """Return correct minus wrong per measure and state: Welch's t-test over examples, Hedges' g, q (BH over the table)."""
    columns = ["measure", "step", "n_correct", "n_wrong", "difference", "low", "high", "hedges_g", "p", "q"]
    split = groups(correct)
    if not {"correct", "wrong"} <= set(split):
        return pd.DataFrame(columns=columns).astype(dict.fromkeys(columns[2:], float) | {"measure": str, "step": int})
    rows = []
    for measure, (values, to) in _measures(states, steps).items():
        for at, step in enumerate(to):
            sides = [by_example(values[split[g], at], examples[split[g]]) for g in ("correct", "wrong")]
            rows.append({"measure": measure, "step": step, **_welch(sides[0], sides[1], options.confidence)})
    table = pd.DataFrame(rows, columns=columns)
    tested = table["p"].notna()
    table.loc[tested, "q"] = stats.false_discovery_control(table.loc[tested, "p"].to_numpy(float)) if tested.any() else np.nan
    return table.astype({"q": float})


def _welch(a: np.ndarray, b: np.ndarray, confidence: float) -> dict[str, float]:
    a, b = a[~np.isnan(a)], b[~np.isnan(b)]
    out: dict[str, float] = {"n_correct": len(a), "n_wrong": len(b)}
    nothing = dict.fromkeys(("difference", "low", "high", "hedges_g", "p"), float("nan"))
    if min(len(a), len(b)) < 2:
        return out | nothing
    difference = float(a.mean() - b.mean())
    if a.std() == 0 and b.std() == 0:  # no spread, no test
        return out | nothing | {"difference": difference}
    found = stats.ttest_ind(a, b, equal_var=False)
    interval = found.confidence_interval(confidence)
    pooled = np.sqrt(((len(a) - 1) * a.var(ddof=1) + (len(b) - 1) * b.var(ddof=1)) / (len(a) + len(b) - 2))
    g = difference / pooled * (1 - 3 / (4 * (len(a) + len(b)) - 9))
    return out | {"difference": difference, "low": float(interval.low), "high": float(interval.high), "hedges_g": float(g), "p": float(found.pvalue)}


def _split(split: Mapping[str, np.ndarray], count: int) -> Mapping[str, np.ndarray]:
    return split or {"all": np.arange(count)}
