"""Effects of several runs side by side: which places are the same, how they change, whether they follow a number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.core.errors import UserError
from codi_engine.core.planning.labels import numbers_of
from codi_engine.kernels.multiple import adjust
from codi_engine.kernels.shares import mcnemar, newcombe, paired_phi
from codi_engine.plugins.analyses import effects
from codi_engine.plugins.analyses.association import constant, rows_spearman
from codi_engine.plugins.analyses.options import PREFERRED, ImportanceOptions
from codi_engine.plugins.analyses.selection import edited_conditions, metric_of, place_axes
from codi_engine.plugins.analyses.sides import data_of

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

WHO = "across"
_NONE = pd.DataFrame({"": [0.0], " ": [0.0]})


@dataclass
class Series:
    """Runs in order, and their effects.

    Attributes
    ----------
    labels, runs, numbers: of the checkpoints; no numbers where the labels do not differ in exactly one
    layers: of each model, where the runs say so
    metric: empty where nothing was edited
    axes: of the runs' places; ``shared``: the same with ``depth`` for ``layer`` where models have different numbers of layers
    per: one row per checkpoint, condition, place and example: ``effect``, and ``depth`` and ``match`` (the depth of the
        shallowest model's layer that this one is compared with) where there is depth
    notes: what the reader must know
    """

    labels: list[str]
    runs: list[Run]
    numbers: list[float] | None
    layers: list[int | None]
    metric: str = ""
    axes: list[str] = field(default_factory=list)
    per: pd.DataFrame = field(default_factory=pd.DataFrame)
    notes: list[str] = field(default_factory=list)

    @property
    def relative(self) -> bool:
        """True where layers are compared by relative depth."""
        return "layer" in self.axes and None not in self.layers and len(set(self.layers)) > 1

    @property
    def shared(self) -> list[str]:
        return ["depth" if a == "layer" and self.relative else a for a in self.axes]


# --------------------------------------------------------------------------------------------- reading


def series_of(runs: Sequence[Run], options: ImportanceOptions) -> Series:
    """Read the effects of all runs.

    Raises
    ------
    UserError: runs of other data, without cells, without a common condition, or without the metric
    """
    labels = _labels(runs)
    numbers = numbers_of(labels)
    order = list(range(len(runs))) if numbers is None else [int(i) for i in np.argsort(numbers, kind="stable")]
    runs, labels = [runs[i] for i in order], [labels[i] for i in order]
    known = [run.provenance.get("layers") for run in runs]
    series = Series(labels, list(runs), None if numbers is None else sorted(numbers), [k if isinstance(k, int) else None for k in known])
    _same_data(runs)
    edited = [edited_conditions(run) for run in runs]
    if not any(edited):
        return series
    conditions = [c for c in edited[0] if all(c in e for e in edited)]
    if not conditions:
        have = "; ".join(f"{label}: {', '.join(e) or 'none'}" for label, e in zip(labels, edited, strict=True))
        raise UserError(f"{WHO}: the runs have no edited condition in common ({have})")
    alone = sorted({c for e in edited for c in e} - set(conditions))
    series.notes += [f"left out: {', '.join(alone)}, not in all runs"] if alone else []
    series.metric = _metric(runs, labels, options.metric)
    series.axes = list(dict.fromkeys(a for run in runs for a in place_axes(run)))
    series.per = pd.concat([_effects(run, label, conditions, series) for run, label in zip(runs, labels, strict=True)], ignore_index=True)
    if series.relative:
        _match_depths(series)
    elif "layer" in series.axes and None in series.layers:
        series.notes.append("some runs do not say how many layers their model has: layers are compared by number")
    return series


def _labels(runs: Sequence[Run]) -> list[str]:
    names = [run.path.resolve().name for run in runs]
    labels = names if len(set(names)) == len(names) else [f"{run.path.resolve().parent.name}/{n}" for run, n in zip(runs, names, strict=True)]
    if len(set(labels)) < len(labels):
        raise UserError(f"{WHO}: two of the runs are called {next(n for n in labels if labels.count(n) > 1)}; give runs of different names")
    return labels


def _same_data(runs: Sequence[Run]) -> None:
    for run in runs:
        if run.cells.empty:
            raise UserError(f"{WHO}: {run.path} has no cells yet; finish the run first")
        if data_of(run) != data_of(runs[0]):
            raise UserError(f"{WHO}: {run.path} has other data than {runs[0].path}; checkpoints are compared on the same examples")


def _metric(runs: Sequence[Run], labels: Sequence[str], wanted: str | None) -> str:
    if wanted is not None:
        for run, label in zip(runs, labels, strict=True):
            metric_of(run, wanted, f"{WHO}: {label}")
        return wanted
    for name in [*PREFERRED, *runs[0].metrics]:
        if all(name in run.metrics for run in runs):
            return name
    raise UserError(f"{WHO}: the runs have no metric in common")


def _effects(run: Run, label: str, conditions: Sequence[str], series: Series) -> pd.DataFrame:
    cells = run.cells[run.cells["condition"].isin(["baseline", *conditions])]
    per = effects.per_example(cells, series.metric, [a for a in series.axes if a in cells], None).drop(columns="by")
    for axis in series.axes:
        per[axis] = per[axis].astype(object).where(per[axis].notna(), None) if axis in per else None
    return per.assign(checkpoint=label)


def _match_depths(series: Series) -> None:
    """Give every layer its relative depth l / (L − 1), and the layer of the shallowest model that it is compared with.

    Two layers are compared where each is the other's nearest in depth and they lie within one layer of the shallowest model.
    """
    per, sizes = series.per, dict(zip(series.labels, series.layers, strict=True))
    depths = [_depth(v, sizes[c]) for v, c in zip(per["layer"], per["checkpoint"], strict=True)]
    per["depth"] = np.array(depths, dtype=float)
    least = min(s for s in series.layers if s is not None)
    reference = next(label for label in series.labels if sizes[label] == least)
    mine = np.unique(per.loc[(per["checkpoint"] == reference) & per["depth"].notna(), "depth"])
    per["match"] = np.nan
    for label in series.labels:
        rows = (per["checkpoint"] == label) & per["depth"].notna()
        pairs = matched(mine, np.unique(per.loc[rows, "depth"]), 1.0 / max(least - 1, 1))
        per.loc[rows, "match"] = per.loc[rows, "depth"].map({b: a for a, b in pairs}).astype(float)
    lost = per[per["match"].isna() & per["layer"].notna()]
    for label in [v for v in series.labels if (lost["checkpoint"] == v).any()]:
        names = ", ".join(dict.fromkeys(str(v) for v in lost.loc[lost["checkpoint"] == label, "layer"]))
        series.notes.append(f"{label}: layers {names} are compared with none of {reference}'s (no layer of nearly the same depth)")
    series.notes.append(f"layers are compared by relative depth l / (L − 1), at those of {reference} ({least} layers)")


def _depth(layer: Any, layers: int | None) -> float:
    """Return the relative depth of one layer; NaN for none and for sets of layers."""
    if layers is None or not isinstance(layer, (int, np.integer)):
        return float("nan")
    return float(layer) / max(layers - 1, 1)


def matched(first: np.ndarray, second: np.ndarray, within: float) -> list[tuple[float, float]]:
    """Return pairs of depths that are each other's nearest and no farther apart than ``within``."""
    out = []
    for a in first:
        b = second[np.abs(second - a).argmin()] if len(second) else np.nan
        if len(second) and first[np.abs(first - b).argmin()] == a and abs(a - b) <= within + 1e-12:
            out.append((float(a), float(b)))
    return out


# -------------------------------------------------------------------------------------------- tables


def member_table(series: Series) -> pd.DataFrame:
    """Return one row per checkpoint: what was run."""
    rows = []
    for i, (label, run) in enumerate(zip(series.labels, series.runs, strict=True)):
        about = run.provenance
        rows.append(
            {
                "checkpoint": label, "number": np.nan if series.numbers is None else series.numbers[i], "layers": series.layers[i],
                "latents": about.get("latents"), "cells": len(run.cells), "examples": run.cells["example"].nunique(),
                "model_digest": about.get("model_digest"), "run": str(run.path),
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def baselines(series: Series, options: ImportanceOptions) -> pd.DataFrame:
    """Return the unedited accuracy per checkpoint and variant; empty where answers were not scored."""
    found = [effects.baseline_table(run.cells, options).assign(checkpoint=label) for run, label in zip(series.runs, series.labels, strict=True)]
    known = [f for f in found if len(f)]
    table = pd.concat(known, ignore_index=True) if known else found[0]
    return table[["checkpoint", *(c for c in table.columns if c != "checkpoint")]]


def effects_of(series: Series, options: ImportanceOptions) -> pd.DataFrame:
    """Return every checkpoint's effects per place, corrected over all of them."""
    per = series.per.assign(by="all")
    extra = ["depth", "match"] if series.relative else []
    table = _typed(effects.effect_table(per, ["checkpoint", *series.axes, *extra], options), series.axes)
    return table[["checkpoint", *(c for c in table.columns if c != "checkpoint")]]


def trend_table(series: Series, options: ImportanceOptions) -> pd.DataFrame:
    """Return one row per place that checkpoints share: the change from the first to the last, per example, and rho over all.

    Columns: condition, the place, ``checkpoints`` (that have it), ``rho`` (Spearman's, of the means with the labels' numbers;
    three checkpoints or more), ``first``, ``last`` (means over the examples of both), ``difference`` with n, interval,
    Hedges' g, t, ``test``, p, q over all places, ``note``.
    """
    per = series.per
    if series.relative:
        per = per[per["layer"].isna() | per["match"].notna()]
        per = per.assign(depth=per["match"].round(4))
    yes_no = effects.are_shares(per["effect"])
    rows = []
    for key, part in per.groupby(["condition", *series.shared], dropna=False, sort=False, observed=True):
        wide = part.pivot_table(index="example", columns="checkpoint", values="effect", aggfunc="mean", observed=True).reindex(columns=series.labels)
        rows.append({**dict(zip(["condition", *series.shared], key, strict=True)), **_change(wide, series.numbers, options.confidence, yes_no)})
    table = pd.DataFrame(rows, columns=None if rows else ["condition", *series.shared, *_change(_NONE, None, 0.95, False)])
    table["q"] = adjust(table["p"].to_numpy(), options.correction)
    table["significant"] = table["q"] < options.q
    if series.relative:
        order = {c: i for i, c in enumerate(table["condition"].unique())}
        table = table.sort_values("depth", kind="stable").sort_values("condition", kind="stable", key=lambda names: names.map(order))
    return _typed(table.reset_index(drop=True), series.shared)


def _typed(table: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return axes as integers where all of an axis' values are, as numbers where all are, else as words."""
    for axis in axes:
        known = [v for v in table[axis] if not pd.isna(v)]
        if all(isinstance(v, (int, np.integer)) for v in known):
            table[axis] = table[axis].astype("Int64")
        elif not all(isinstance(v, (int, float, np.number)) for v in known):
            table[axis] = [None if pd.isna(v) else str(v) for v in table[axis]]
        else:
            table[axis] = table[axis].astype(float)
    return table


def _change(wide: pd.DataFrame, numbers: Sequence[float] | None, confidence: float, yes_no: bool) -> dict[str, Any]:
    """Return the row of one place from its effects, examples × checkpoints."""
    values = wide.to_numpy(float)
    means = np.array([np.nan if np.isnan(v).all() else np.nanmean(v) for v in values.T])
    both = values[~np.isnan(values[:, [0, -1]]).any(axis=1)]
    found = effects.statistics(both[:, -1] - both[:, 0], confidence, shares=False)
    test = "paired t"
    if yes_no and len(both) > 1:
        test = "McNemar"
        found |= {**_shares(both, confidence), "t": np.nan, "df": np.nan}
    missing = [str(wide.columns[i]) for i in (0, -1) if np.isnan(values[:, i]).all()]
    note = f"no value in {' and '.join(missing)}" if missing else found["note"]
    rho, rho_note = _rho(numbers, means)
    out = {"checkpoints": int(np.isfinite(means).sum()), "rho": rho, "first": both[:, 0].mean() if len(both) else np.nan}
    out |= {"last": both[:, -1].mean() if len(both) else np.nan, "difference": found["mean"]}
    out |= {k: found[k] for k in ("n", "ci_low", "ci_high", "hedges_g", "t", "df", "detectable")}
    return out | {"test": test, "p": found["p"], "note": "; ".join(n for n in (note, rho_note) if n)}


def _shares(both: np.ndarray, confidence: float) -> dict[str, float]:
    """Return McNemar's exact p of a change of yes and no, and Newcombe's paired interval."""
    first, last, n = both[:, 0] > 0.5, both[:, -1] > 0.5, len(both)
    counts = [int(v.sum()) for v in (first & last, last & ~first, first & ~last, ~first & ~last)]
    size = np.array([n])
    phi = paired_phi(*(np.array([c]) for c in counts))
    low, high = newcombe(np.array([last.mean()]), size, np.array([first.mean()]), size, phi, confidence)
    return {"p": float(mcnemar(np.array([counts[2]]), np.array([counts[1]]))[0]), "ci_low": float(low[0]), "ci_high": float(high[0])}


def _rho(numbers: Sequence[float] | None, means: np.ndarray) -> tuple[float, str]:
    """Return Spearman's rho of the means with the numbers, or NaN and why there is none."""
    known = np.isfinite(means)
    if numbers is None or len(means) < 3:
        return float("nan"), ""
    if known.sum() < 3:
        return float("nan"), "in fewer than three checkpoints: no rho"
    if constant(means[known]):
        return float("nan"), "the same mean in all checkpoints: no rho"
    return float(rows_spearman(np.array(numbers)[known][None], means[known][None])[0]), ""


def depth_table(series: Series, confidence: float) -> pd.DataFrame:
    """Return one row per condition, checkpoint and relative depth: an example's effects are averaged over the other axes first."""
    part = series.per[series.per["depth"].notna()]
    means = part.groupby(["condition", "checkpoint", "depth", "example"], sort=False)["effect"].mean().reset_index()
    rows = []
    for (condition, label, depth), group in means.groupby(["condition", "checkpoint", "depth"], sort=False):
        found = effects.statistics(group["effect"].to_numpy(float), confidence, shares=False)
        rows.append({"condition": condition, "checkpoint": label, "depth": depth, **{k: found[k] for k in ("n", "mean", "ci_low", "ci_high")}})
    return pd.DataFrame(rows).sort_values(["condition", "checkpoint", "depth"], kind="stable").reset_index(drop=True)
