"""Effects per place with their statistics; the unit of inference is the example."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from codi_engine.kernels.intervals import wilson
from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses.options import CONTRASTS, ImportanceOptions

_WHOLE = "all"


def _keys(frame: pd.DataFrame, extra: Sequence[str]) -> list[str]:
    return [k for k in ("example", "variant", "trial") if k in frame and k in extra]


def per_example(cells: pd.DataFrame, metric: str, axes: Sequence[str], by: str | None) -> pd.DataFrame:
    """Return one row per (condition, place, example): its effect, trials and donors averaged.

    Contrasts are taken as they are, ``unusual`` against the ordinary 0.5; other metrics as edited minus the same prompt (and
    trial) unedited.
    """
    edited = cells[cells["condition"] != "baseline"].copy()
    if metric == "unusual":
        edited["effect"] = edited[metric].astype(float) - 0.5
    elif any(metric == c or metric.startswith(f"{c}_") for c in CONTRASTS):
        edited["effect"] = edited[metric].astype(float)
    else:
        shared = [k for k in ("example", "variant", "trial") if k in cells]
        base = cells[cells["condition"] == "baseline"].set_index(shared)[metric].astype(float)
        index = pd.MultiIndex.from_frame(edited[shared]) if len(shared) > 1 else pd.Index(edited[shared[0]])
        with np.errstate(invalid="ignore"):  # infinity minus infinity is undefined; that the metric is infinite was said when it was measured
            edited["effect"] = edited[metric].astype(float).to_numpy() - base.reindex(index).to_numpy()
    edited["by"] = _WHOLE if by is None else edited[by].astype(str)
    groups = ["condition", "by", *axes, "example"]
    return edited.groupby(groups, dropna=False, sort=False, observed=True)["effect"].mean().reset_index()


def effect_table(per: pd.DataFrame, axes: Sequence[str], options: ImportanceOptions) -> pd.DataFrame:
    """Return one row per place: n, mean, interval, Hedges' g, t, p, q over the whole table.

    A constant effect has no t-test: constant zero gives p = 1, any other constant the exact two-sided sign test,
    p = 2^(1 − n), and ``note`` says so.
    """
    rows, shares = [], are_shares(per["effect"])
    for key, group in per.groupby(["condition", "by", *axes], dropna=False, sort=False, observed=True):
        values = group["effect"].to_numpy(float)
        rows.append({**dict(zip(["condition", "by", *axes], key, strict=True)), **statistics(values, options.confidence, shares)})
    table = pd.DataFrame(rows)
    table["q"] = adjust(table["p"].to_numpy(), options.correction)
    table["significant"] = (table["q"] < options.q) & (table["mean"].abs() >= options.min_effect)
    if options.by is None:
        return table.drop(columns="by")
    return table.sort_values("by", kind="stable", key=_natural).reset_index(drop=True)


def _natural(values: pd.Series) -> pd.Series:
    """Sort strata by number where all of them are numbers."""
    numbers = pd.to_numeric(values, errors="coerce")
    return values if numbers.isna().any() else numbers


def are_shares(values: pd.Series) -> bool:
    """Say whether effects are counts of yes and no: 0 or 1 at every place, not only where nothing happens."""
    return bool(values.dropna().isin((0.0, 1.0)).all())


def statistics(values: np.ndarray, confidence: float, shares: bool) -> dict[str, Any]:
    """Return n, mean, interval, Hedges' g, t and p of one place's effects, one value per example; NaN is no value.

    ``shares``: the values are 0 or 1 and the interval is Wilson's.
    """
    from scipy import stats

    missing = int(np.isnan(values).sum())
    values = values[~np.isnan(values)]
    n = len(values)
    out: dict[str, Any] = {"n": n, "missing": missing, "mean": np.nan, "sd": np.nan, "se": np.nan, "ci_low": np.nan, "ci_high": np.nan}
    out |= {"hedges_g": np.nan, "t": np.nan, "df": n - 1, "p": np.nan, "detectable": np.nan, "interval": "t", "note": ""}
    if n == 0:
        return out | {"note": "no value"}
    mean = float(values.mean())
    out["mean"] = mean
    if n < 2:
        return out | {"note": "one example: no interval"}
    sd = float(values.std(ddof=1))
    se = sd / np.sqrt(n)
    out |= {"sd": sd, "se": se}
    if sd <= 1e-12 * max(abs(mean), 1.0):
        p, note = (
            (1.0, "constant: no effect in any example") if abs(mean) <= 1e-12 else (2.0 ** (1 - n), "constant: the same effect in every example; sign test")
        )
        out |= {"p": p, "note": note, "ci_low": mean, "ci_high": mean}
    else:
        half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * se
        correction = 1.0 - 3.0 / (4.0 * (n - 1) - 1.0) if n > 2 else 1.0
        t = mean / se
        out |= {"ci_low": mean - half, "ci_high": mean + half, "hedges_g": mean / sd * correction, "t": t, "p": float(2 * stats.t.sf(abs(t), n - 1))}
        out["detectable"] = float(stats.t.ppf(0.975, n - 1) + stats.t.ppf(0.8, n - 1)) * se
    if shares:
        low, high = wilson(int(values.sum()), n, confidence)
        out |= {"ci_low": low, "ci_high": high, "interval": "wilson"}
    return out


def top(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the places of largest |mean|."""
    order = table["mean"].abs().sort_values(ascending=False, kind="stable").index
    return table.loc[order[:count]].reset_index(drop=True)


def example_table(per: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return examples ranked by mean |effect|, with the place that matters most for each."""
    rows = []
    for (condition, example), group in per.groupby(["condition", "example"], sort=False, observed=True):
        known = group.dropna(subset=["effect"])
        if known.empty:
            continue
        strongest = known.iloc[int(known["effect"].abs().to_numpy().argmax())]
        rows.append(
            {
                "condition": condition, "example": example, "mean_abs_effect": known["effect"].abs().mean(),
                "strongest": place_name(strongest, axes), "strongest_effect": strongest["effect"],
            }
        )  # fmt: skip
    frame = pd.DataFrame(rows)
    return frame.sort_values(["condition", "mean_abs_effect"], ascending=[True, False], kind="stable").reset_index(drop=True)


def by_example(per: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """Return one row per condition, example and step (or position): its effect, the mean over the other axes."""
    across = [a for a in ("step", "position") if a in axes][:1]
    return per.groupby(["condition", *across, "example"], sort=False, dropna=False, observed=True)["effect"].mean().reset_index()


def baseline_table(cells: pd.DataFrame, options: ImportanceOptions) -> pd.DataFrame:
    """Return the unedited accuracy per variant (and field), with Wilson's interval over examples."""
    base = cells[cells["condition"] == "baseline"]
    if "accuracy" not in base:
        return pd.DataFrame(columns=["variant", "n", "accuracy", "ci_low", "ci_high"])
    frame = base.assign(variant=base["variant"] if "variant" in base else "main")
    keys = ["variant", *([options.by] if options.by else [])]
    per = frame.groupby([*keys, "example"], sort=False, observed=True)["accuracy"].mean().reset_index()
    rows = []
    for key, group in per.groupby(keys, sort=False, observed=True):
        n, mean = len(group), float(group["accuracy"].mean())
        low, high = wilson(round(mean * n), n, options.confidence)
        rows.append({**dict(zip(keys, key, strict=True)), "n": n, "accuracy": mean, "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows)


def baseline_line(table: pd.DataFrame) -> str:
    """Say the unedited accuracy in one line."""
    keys = [k for k in table.columns if k not in ("n", "accuracy", "ci_low", "ci_high")]
    parts = [f"{' '.join(str(row[k]) for k in keys)} {row['accuracy']:.0%} (n = {row['n']})" for _, row in table.iterrows()]
    return "unedited accuracy: " + ", ".join(parts) if parts else ""


def count_text(table: pd.DataFrame) -> str:
    """Return ``n = 16``, or ``n = 12–16`` where places differ."""
    low, high = int(table["n"].min()), int(table["n"].max())
    return f"n = {low}" if low == high else f"n = {low}–{high}"


def place_name(row: pd.Series, axes: Sequence[str]) -> str:
    """Return a place in words: ``patch layer 3 step 2``."""
    parts = [str(row["condition"])] if "condition" in row else []
    parts += [f"{a} {row[a]}" for a in axes if not pd.isna(row[a])]
    return " ".join(parts)


def interval_text(row: pd.Series) -> str:
    """Return `` [low, high]``, or nothing where there is no interval."""
    return "" if np.isnan(row["ci_low"]) else f" [{row['ci_low']:+.2g}, {row['ci_high']:+.2g}]"
