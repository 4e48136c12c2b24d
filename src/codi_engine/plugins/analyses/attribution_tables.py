"""Estimates beside exact effects: ranks, hit rates, agreement per place and per example, costs."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses import effects
from codi_engine.plugins.analyses.selection import place_axes

if TYPE_CHECKING:
    from codi_engine.core.planning.plan import Condition
    from codi_engine.core.plugin import Example
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Partial
    from codi_engine.plugins.analyses.attribution_estimates import Grid

#: how many of the exact best are looked for: counts, and shares of all places
COUNTS = (1, 3, 5, 10)
SHARES = (0.1, 0.2)
_RESAMPLES = 1000
#: below this correlation the summary says that estimates are poor
_POOR = 0.5


@dataclass(frozen=True)
class Found:
    """What was estimated of one condition: examples × places; ``exact`` is NaN where the run has no cell."""

    condition: str
    grid: Grid
    metric: str
    method: str
    examples: list[str]
    estimates: dict[str, np.ndarray]
    heads: np.ndarray
    exact: np.ndarray
    metrics: np.ndarray
    differences: np.ndarray
    cost: np.ndarray
    exact_weights: bool

    @property
    def best(self) -> np.ndarray:
        """Return the estimates of the chosen method."""
        return self.estimates[self.method]

    @property
    def compared(self) -> np.ndarray:
        """Return which places have an exact effect in some example."""
        known: np.ndarray = np.isfinite(self.exact).any(0)
        return known


def found(
    condition: Condition, grid: Grid, metric: str, method: str, examples: Sequence[Example], partials: Sequence[Partial], exact: np.ndarray, exact_weights: bool
) -> Found:
    """Put the examples' partial results together."""

    def stacked(name: str) -> np.ndarray:
        return np.stack([np.asarray(p[name]) for p in partials])

    count = len(examples)
    methods = ["gradient"] if method == "gradient" else ["integrated", "gradient"]
    estimates = {name: stacked(name).reshape(count, -1) for name in methods}
    return Found(
        condition.name, grid, metric, method, [str(e.id) for e in examples], estimates, stacked("heads"), exact, stacked("metric"),
        stacked("difference"), stacked("cost").sum(0), exact_weights,
    )  # fmt: skip


def exact_effects(run: Run, condition: Condition, grid: Grid, metric: str, examples: Sequence[Example]) -> np.ndarray:
    """Return examples × places: the run's own effect, edited minus unedited, trials and donors averaged; NaN where it has none."""
    rows = grid.rows()
    out = np.full((len(examples), len(rows)), np.nan)
    cells = run.cells
    if metric not in run.metrics or not (cells["condition"] == condition.name).any():
        return out
    axes = place_axes(run)
    per = effects.per_example(cells[cells["condition"].isin(["baseline", condition.name])], metric, axes, None)
    place = {tuple(str(row[c]) for c in grid.columns): i for i, row in enumerate(rows)}
    number = {str(e.id): i for i, e in enumerate(examples)}
    for key, example, effect in zip(per[grid.columns].astype(str).itertuples(index=False, name=None), per["example"], per["effect"], strict=True):
        if key in place and str(example) in number:
            out[number[str(example)], place[key]] = effect
    return out


# --------------------------------------------------------------------------------------------------- tables


def tables(all_found: Sequence[Found], confidence: float) -> dict[str, pd.DataFrame]:
    """Return name → table."""
    out = {
        "attribution": _joined([_attribution(f, confidence) for f in all_found]),
        "hits": _joined([_hits(f, method, confidence) for f in all_found for method in f.estimates]),
        "agreement": _joined([_agreement(f, method, confidence) for f in all_found for method in f.estimates]),
        "examples": _joined([_examples(f) for f in all_found]),
        "cost": pd.DataFrame([_cost(f) for f in all_found]),
    }
    out["attribution"]["q"] = adjust(out["attribution"]["p"].to_numpy(), "bh")
    heads = [_heads(f, confidence) for f in all_found if f.heads.shape[-1]]
    if heads:
        out["heads"] = _joined(heads)
        out["heads"]["q"] = adjust(out["heads"]["p"].to_numpy(), "bh")
    return out


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    frame = pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)
    for name in ("layer", "step", "position", "head"):
        if name in frame:
            frame[name] = frame[name].astype("Int64")
    return frame


def _statistics(values: np.ndarray, confidence: float) -> dict[str, Any]:
    known = effects.statistics(values, confidence, shares=False)
    return {k: known[k] for k in ("n", "ci_low", "ci_high", "hedges_g", "p", "note")}


def rank(means: np.ndarray) -> np.ndarray:
    """Return the rank by |mean|, 1 the largest, equal ones sharing the better rank; 0 where there is no value."""
    size = np.where(np.isfinite(means), np.abs(means), -1.0)
    out: np.ndarray = 1 + (size[None] > size[:, None]).sum(1)
    return np.where(np.isfinite(means), out, 0)


def mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over examples, NaN left out; NaN where there is none."""
    known = np.isfinite(values)
    total = np.where(known, values, 0.0).sum(0)
    return np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)


def _attribution(f: Found, confidence: float) -> pd.DataFrame:
    means, exact = mean(f.best), mean(f.exact)
    ranks, exact_ranks = rank(means), rank(exact)
    rows = []
    for i, place in enumerate(f.grid.rows()):
        estimate = {"estimate": means[i], **_statistics(f.best[:, i], confidence), "rank": ranks[i]}
        measured = _statistics(f.exact[:, i], confidence)
        row = {"condition": f.condition, **place, **estimate, "exact": exact[i]}
        row |= {"exact_ci_low": measured["ci_low"], "exact_ci_high": measured["ci_high"], "exact_n": measured["n"], "exact_rank": exact_ranks[i] or pd.NA}
        if f.method != "gradient":
            row["gradient"] = mean(f.estimates["gradient"])[i]
        rows.append(row)
    return pd.DataFrame(rows).astype({"exact_rank": "Int64"})


def _heads(f: Found, confidence: float) -> pd.DataFrame:
    rows = []
    for at in np.ndindex(f.heads.shape[1:]):
        o, i, j, head = at
        place = {} if f.grid.layers[i] is None else {"layer": f.grid.layers[i]}
        values = f.heads[(slice(None), *at)]
        rows.append(
            {
                "condition": f.condition, **place, f.grid.place: f.grid.places[j], "head": head, **f.grid.options[o],
                "estimate": mean(values[:, None])[0], **_statistics(values, confidence),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _pairs(f: Found, method: str) -> tuple[np.ndarray, np.ndarray]:
    """Return estimates and exact effects of the places and examples that have both, examples × places."""
    estimate, exact = f.estimates[method][:, f.compared], f.exact[:, f.compared]
    whole = np.isfinite(estimate).all(1) & np.isfinite(exact).all(1)
    return estimate[whole], exact[whole]


def hit_rate(estimate: np.ndarray, exact: np.ndarray, k: int) -> np.ndarray:
    """Return for each row of means (… × places) the share of the k places of largest |exact| among the k of largest |estimate|."""
    first = np.argsort(-np.abs(estimate), axis=-1, kind="stable")[..., :k]
    second = np.argsort(-np.abs(exact), axis=-1, kind="stable")[..., :k]
    shared: np.ndarray = (first[..., :, None] == second[..., None, :]).any(-1).mean(-1)
    return shared


def _resampled(estimate: np.ndarray, exact: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return means over resampled examples, resamples × places; the same examples for both."""
    n = len(estimate)
    weights = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), _RESAMPLES) / n
    return weights @ estimate, weights @ exact


def _interval(values: np.ndarray, confidence: float) -> dict[str, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return {"ci_low": np.nan, "ci_high": np.nan}
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return {"ci_low": float(low), "ci_high": float(high)}


def _hits(f: Found, method: str, confidence: float) -> pd.DataFrame:
    """Return one row per k: hits, what chance would give, and how many estimated places must be kept to have them all."""
    estimate, exact = _pairs(f, method)
    n, places = estimate.shape
    if not n or places < 2:
        return pd.DataFrame(columns=["condition", "method", "top", "k", "hits", "rate", "ci_low", "ci_high", "chance", "needed", "places", "n"])
    means, exacts = estimate.mean(0), exact.mean(0)
    again = _resampled(estimate, exact) if n > 1 else (means[None][:0], exacts[None][:0])
    order = np.argsort(-np.abs(means), kind="stable")
    best = np.argsort(-np.abs(exacts), kind="stable")
    tops = [(str(k), k) for k in COUNTS] + [(f"{share:.0%}", max(round(share * places), 1)) for share in SHARES]
    rows = []
    for name, k in tops:
        if k >= places:
            continue
        rate = float(hit_rate(means, exacts, k))
        interval = _interval(hit_rate(again[0], again[1], k) if n > 1 else np.empty(0), confidence)
        needed = 1 + max(int(np.flatnonzero(order == place)[0]) for place in best[:k])
        rows.append(
            {
                "condition": f.condition, "method": method, "top": name, "k": k, "hits": round(rate * k), "rate": rate,
                **interval, "chance": k / places, "needed": needed, "places": places, "n": n,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def correlation(a: np.ndarray, b: np.ndarray, ranks: bool) -> np.ndarray:
    """Return Pearson's (or Spearman's) correlation of the rows of a and b; NaN for a constant row."""
    from scipy.stats import rankdata

    x, y = (rankdata(v, axis=-1) if ranks else v for v in (a, b))
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    size = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(size > 0, (x * y).sum(-1) / size, np.nan)


def _agreement(f: Found, method: str, confidence: float) -> pd.DataFrame:
    estimate, exact = _pairs(f, method)
    n, places = estimate.shape
    if not n or places < 2:
        return pd.DataFrame(columns=["condition", "method", "measure", "value", "ci_low", "ci_high", "places", "n", "note"])
    means, exacts = estimate.mean(0), exact.mean(0)
    again = _resampled(estimate, exact) if n > 1 else (means[None][:0], exacts[None][:0])
    measures = {"spearman": lambda a, b: correlation(a, b, True), "pearson": lambda a, b: correlation(a, b, False), "sign": _same_sign, "slope": _slope}
    rows = []
    for name, measure in measures.items():
        value = float(measure(means, exacts))
        note = "undefined: one side is constant" if np.isnan(value) else ""
        interval = _interval(measure(*again) if n > 1 else np.empty(0), confidence)
        rows.append({"condition": f.condition, "method": method, "measure": name, "value": value, **interval, "places": places, "n": n, "note": note})
    return pd.DataFrame(rows)


def _same_sign(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the share of places with an exact effect whose estimate has its sign."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((np.sign(a) == np.sign(b)) & (b != 0)).sum(-1) / (b != 0).sum(-1))


def _slope(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the slope through the origin of exact on estimate: 1 where estimates have the right size."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray((a * b).sum(-1) / (a * a).sum(-1))


def _examples(f: Found) -> pd.DataFrame:
    rows = []
    names = [effects.place_name(pd.Series(row), f.grid.columns) for row in f.grid.rows()]
    for i, example in enumerate(f.examples):
        estimate, exact = f.best[i], f.exact[i]
        row: dict[str, Any] = {"condition": f.condition, "example": example, "unedited": f.metrics[i], "logits_difference": f.differences[i]}
        known = np.isfinite(estimate) & np.isfinite(exact)
        a, b = estimate[known], exact[known]
        row["strongest"] = names[int(np.nanargmax(np.abs(estimate)))] if np.isfinite(estimate).any() else ""
        row["strongest_exact"] = names[int(np.nanargmax(np.abs(exact)))] if np.isfinite(exact).any() else ""
        row |= {"places": int(known.sum()), "sign": float(_same_sign(a, b)), "pearson": float(correlation(a, b, False)) if len(a) > 1 else np.nan}
        row["mean_abs_error"] = float(np.abs(a - b).mean()) if len(a) else np.nan
        rows.append(row | {"note": "" if np.isfinite(estimate).any() else "prompts of different lengths: no path between their inputs"})
    return pd.DataFrame(rows)


def _cost(f: Found) -> dict[str, Any]:
    forwards, backwards, seconds = f.cost
    places = len(f.grid.rows())
    return {
        "condition": f.condition, "method": f.method, "examples": len(f.examples), "forwards": int(forwards), "backwards": int(backwards),
        "seconds": seconds, "places": places, "exact_cells": places * len(f.examples), "cells_in_run": int(np.isfinite(f.exact).sum()),
    }  # fmt: skip


# ------------------------------------------------------------------------------------------- what is said


def sweeps(all_found: Sequence[Found], table: pd.DataFrame, keep: int) -> dict[str, str]:
    """Return file name → CSV of the best places: only the axes a sweep states. ``top.csv`` is the first condition's."""
    files: dict[str, str] = {}
    for f in all_found:
        mine = table[table["condition"] == f.condition].sort_values("rank", kind="stable")
        best = mine[mine["rank"] > 0].head(keep)[f.grid.varying]
        buffer = io.StringIO()
        best.to_csv(buffer, index=False, lineterminator="\n")
        files.setdefault("top.csv", buffer.getvalue())
        if len(all_found) > 1:
            safe = "".join(c if c.isalnum() or c in "-_." else "_" for c in f.condition)
            files[f"top_{safe}.csv"] = buffer.getvalue()
    return files


def summary(all_found: Sequence[Found], tables: Mapping[str, pd.DataFrame], left_out: Mapping[str, str]) -> str:
    """Say the strongest places, the hit rate and the cost: three lines per condition."""
    lines = []
    for f in all_found:
        lines += [_strongest(f, tables["attribution"]), *(_hit_line(f, method, tables) for method in f.estimates), _cost_line(f)]
    lines += [f"'{name}' was left out: it {why}" for name, why in left_out.items()]
    return "\n".join(lines)


def _strongest(f: Found, table: pd.DataFrame) -> str:
    best = table[(table["condition"] == f.condition) & (table["rank"] > 0)].sort_values("rank", kind="stable").head(3)
    names = [f"{effects.place_name(row[f.grid.columns], f.grid.columns)} {row['estimate']:+.3g}{effects.interval_text(row)}" for _, row in best.iterrows()]
    return f"{f.condition}, change of {f.metric}: " + ";  ".join(names) + f" (n = {len(f.examples)})"


def _hit_line(f: Found, method: str, tables: Mapping[str, pd.DataFrame]) -> str:
    hits = tables["hits"]
    mine = hits[(hits["condition"] == f.condition) & (hits["method"] == method)]
    if mine.empty:
        return f"  {method}: no exact effects to compare with; sweep the places of top.csv with metrics: [{f.metric}]"
    counts = mine[mine["top"].isin([str(k) for k in COUNTS])]
    parts = ", ".join(f"{row['hits']}/{row['k']}" for _, row in counts.iterrows())
    middle = counts.iloc[len(counts) // 2]
    agreement = tables["agreement"]
    known = agreement[(agreement["condition"] == f.condition) & (agreement["method"] == method)].set_index("measure")
    spearman, pearson = (known.loc[[name]].iloc[0] for name in ("spearman", "pearson"))
    said = f"Spearman {spearman['value']:.2f}{effects.interval_text(spearman)}, Pearson {pearson['value']:.2f}"
    if not np.isfinite(spearman["value"]):
        said = "no correlation: one side is constant"
    if pearson["value"] < _POOR and f.method == "gradient":
        said += " (poor: the effects are far from linear; for patches try method=integrated)"
    return f"  {method} finds {parts} of the exact best (chance: {middle['chance'] * middle['k']:.1f}/{middle['k']}); {said}, {middle['places']} places"


def _cost_line(f: Found) -> str:
    cost = _cost(f)
    against = "the run's" if f.exact_weights else "the engine's, both in fp32 while the run was not"
    return (
        f"  {cost['forwards']:,} forwards, {cost['backwards']:,} backwards ({cost['seconds']:.1f} s) instead of {cost['exact_cells']:,} cells; "
        f"logits agree with {against} to {f.differences.max():.0e}"
    )
