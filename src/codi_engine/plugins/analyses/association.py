"""Correlation of effects over places: two kinds of interval, because there are two things to be unsure of.

The places are a sample only if one takes them for one: Fisher's z and the t-test of r do. The bootstrap keeps the places and
draws other examples, jointly where both sides have the same ones: it says how far r is the examples' accident.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any, Literal

import numpy as np
import pandas as pd

Method = Literal["pearson", "spearman"]
_CHUNK = 256  # resamples at once
_EXACT = 8  # places up to which the distribution of Spearman's rho is enumerated
COLUMNS = ("method", "r", "ci_low", "ci_high", "ci_method", "p", "p_method", "n", "note")


def constant(values: np.ndarray) -> bool:
    """Say whether values differ by no more than rounding."""
    return bool(np.ptp(values) <= 1e-12 * max(float(np.abs(values).max()), 1.0)) if len(values) else True


def rows_pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return r of each row of two arrays of rows × places; NaN where a row is constant or has a gap."""
    flat = [np.ptp(v, axis=1) <= 1e-12 * np.maximum(np.abs(v).max(axis=1), 1.0) for v in (x, y)]
    a, b = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    defined = np.isfinite(scale) & (scale > 0) & ~flat[0] & ~flat[1]
    out = np.full(len(x), np.nan)
    out[defined] = (a[defined] * b[defined]).sum(axis=1) / scale[defined]
    return np.asarray(np.clip(out, -1.0, 1.0))


def rows_spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return rho of each row: Pearson's r of ranks, ties at their mean rank."""
    from scipy.stats import rankdata

    return rows_pearson(*(rankdata(v, axis=1, nan_policy="propagate") for v in (x, y)))


_ROWS: dict[Method, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"pearson": rows_pearson, "spearman": rows_spearman}


def needed(n: int, alpha: float = 0.05) -> float:
    """Return the |r| above which p < ``alpha`` with n places (two-sided t, n − 2 degrees of freedom); NaN below 3 places."""
    from scipy import stats

    if n < 3:
        return float("nan")
    t = float(stats.t.isf(alpha / 2, n - 2))
    return t / float(np.sqrt(n - 2 + t * t))


def p_value(method: Method, x: np.ndarray, y: np.ndarray) -> tuple[float, str]:
    """Return p of no correlation and how it was found: t with n − 2 degrees of freedom, rho of few places by enumeration."""
    from scipy import stats

    n, r = len(x), float(_ROWS[method](x[None], y[None])[0])
    if method == "spearman" and n <= _EXACT:
        ranks, fixed = stats.rankdata(x), stats.rankdata(y)
        orders = np.array(list(permutations(range(n))))
        drawn = rows_pearson(ranks[orders], np.broadcast_to(fixed, orders.shape))
        return float((np.abs(drawn) >= abs(r) - 1e-9).mean()), f"exact: {len(orders)} orders"
    if abs(r) >= 1.0:
        return 0.0, f"t, df {n - 2}"
    return float(2 * stats.t.sf(abs(r) * np.sqrt((n - 2) / (1 - r * r)), n - 2)), f"t, df {n - 2}"


def fisher(method: Method, r: float, n: int, confidence: float) -> tuple[float, float, str]:
    """Return the interval of r with the places as a sample: Fisher's z; for rho with the error of Bonett & Wright (2000, eq. 5)."""
    from scipy import stats

    if n < 4:
        return float("nan"), float("nan"), "none: Fisher's z needs 4 places"
    name = "Fisher z" if method == "pearson" else "Fisher z, Bonett-Wright"
    if abs(r) >= 1.0:
        return r, r, name
    error = np.sqrt((1.0 if method == "pearson" else 1 + r * r / 2) / (n - 3))
    half = float(stats.norm.ppf(0.5 + confidence / 2)) * error
    return float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half)), name


# ------------------------------------------------------------------------------------------- bootstrap


@dataclass(frozen=True)
class Stratum:
    """Examples that are drawn together: rows of either side; None where the side has none of them."""

    a: np.ndarray | None
    b: np.ndarray | None

    def __len__(self) -> int:
        return len(self.a) if self.a is not None else len(self.b) if self.b is not None else 0


def strata(a: Sequence[Any], b: Sequence[Any], same_data: bool) -> list[Stratum]:
    """Return which examples both sides have (drawn once for both) and which only one has (drawn for it alone)."""
    in_b = {e: i for i, e in enumerate(b)} if same_data else {}
    both = [(i, in_b[e]) for i, e in enumerate(a) if e in in_b]
    taken_a, taken_b = {i for i, _ in both}, {j for _, j in both}
    groups = [
        Stratum(np.array([i for i, _ in both], int), np.array([j for _, j in both], int)),
        Stratum(np.array([i for i in range(len(a)) if i not in taken_a], int), None),
        Stratum(None, np.array([j for j in range(len(b)) if j not in taken_b], int)),
    ]
    return [g for g in groups if len(g)]


def resampled_means(
    a: np.ndarray, b: np.ndarray, groups: Sequence[Stratum], count: int, generators: Sequence[np.random.Generator]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the places' means in ``count`` resamples of examples, resamples × places for either side.

    Parameters
    ----------
    a, b: examples × places; NaN where an example has no value at a place
    groups: who is drawn with whom, each with replacement and as often as it has examples
    generators: one per group, so that a group's draws do not depend on the others
    """
    out = [np.empty((count, a.shape[1])), np.empty((count, b.shape[1]))]
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        sums = [np.zeros((size, v.shape[1])) for v in (a, b)]
        seen = [np.zeros((size, v.shape[1])) for v in (a, b)]
        for group, generator in zip(groups, generators, strict=True):
            drawn = generator.multinomial(len(group), np.full(len(group), 1 / len(group)), size=size).astype(float)
            for side, (values, rows) in enumerate(((a, group.a), (b, group.b))):
                if rows is not None:
                    sums[side] += drawn @ np.nan_to_num(values[rows])
                    seen[side] += drawn @ np.isfinite(values[rows]).astype(float)
        for side in (0, 1):
            out[side][start : start + size] = np.divide(sums[side], seen[side], out=np.full_like(sums[side], np.nan), where=seen[side] > 0)
    return out[0], out[1]


def percentile(draws: np.ndarray, confidence: float) -> tuple[float, float, str]:
    """Return the percentile interval and a note on resamples without a correlation; no interval where most have none."""
    defined = draws[np.isfinite(draws)]
    lost = len(draws) - len(defined)
    note = f"{lost} of {len(draws)} resamples have a constant side" if lost else ""
    if len(defined) < max(len(draws) / 2, 2):
        return float("nan"), float("nan"), note
    low, high = np.quantile(defined, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high), note


# ---------------------------------------------------------------------------------------------- tables


def correlation_table(x: np.ndarray, y: np.ndarray, names: tuple[str, str], confidence: float, draws: tuple[np.ndarray, np.ndarray] | None) -> pd.DataFrame:
    """Return Pearson's r and Spearman's rho, each with Fisher's interval and with the bootstrap's.

    Parameters
    ----------
    x, y: the places' effects
    names: what the sides are called where one is constant
    draws: resamples × places for either side; None where there is nothing to draw
    """
    n, why = len(x), undefined(x, y, names)
    rows: list[dict[str, Any]] = []
    for method in ("pearson", "spearman"):
        row: dict[str, Any] = {"method": method, "r": np.nan, "ci_low": np.nan, "ci_high": np.nan, "ci_method": "none", "p": np.nan}
        row |= {"p_method": "none", "n": n, "note": why}
        if why:
            rows.append(row)
            continue
        row["r"] = r = float(_ROWS[method](x[None], y[None])[0])
        row["p"], row["p_method"] = p_value(method, x, y)
        low, high, how = fisher(method, r, n, confidence)
        rows.append(row | {"ci_low": low, "ci_high": high, "ci_method": how})
        if draws is not None:
            low, high, note = percentile(_ROWS[method](*draws), confidence)
            rows.append(row | {"ci_low": low, "ci_high": high, "ci_method": "bootstrap over examples", "note": note})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def reliability(values: np.ndarray) -> float:
    """Return the share of the places' variance that is not noise of the examples: 1 − MS residual / MS places, at least 0.

    Examples × places, two-way without replication (Hoyt 1941); examples with a gap are left out. NaN below two examples or
    places, or where all places are equal.
    """
    known = values[np.isfinite(values).all(axis=1)]
    n, k = known.shape
    if n < 2 or k < 2:
        return float("nan")
    means = known.mean(axis=0)
    left = known - means - known.mean(axis=1, keepdims=True) + known.mean()
    between = n * float(means.var(ddof=1))
    return float("nan") if constant(means) else max(0.0, 1.0 - float((left * left).sum()) / ((n - 1) * (k - 1)) / between)


def rounded(r: float, sign: str = "+") -> str:
    """Return r with two decimals, more of them next to ±1."""
    return f"{r:{sign}.2f}" if abs(r) < 0.985 or abs(r) == 1.0 else f"{r:{sign}.4f}" if abs(r) >= 0.9985 else f"{r:{sign}.3f}"


def interval(row: Any, sign: str = "+") -> str:
    """Return ``[low, high]`` of a row of the table."""
    return f"[{rounded(row['ci_low'], sign)}, {rounded(row['ci_high'], sign)}]"


def undefined(x: np.ndarray, y: np.ndarray, names: tuple[str, str]) -> str:
    """Say why there is no correlation; empty when there is one."""
    n = len(x)
    if n < 3:
        return f"no correlation: {n} place{'s' if n != 1 else ''} in common; it takes 3"
    flat = [name for name, values in zip(names, (x, y), strict=True) if constant(values)]
    return f"no correlation: {' and '.join(flat)} {'are' if len(flat) > 1 else 'is'} constant over the {n} places" if flat else ""
