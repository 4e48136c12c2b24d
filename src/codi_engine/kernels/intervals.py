"""Intervals of a mean, one value per example."""

from __future__ import annotations

import numpy as np

from codi_engine.kernels import shares


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return (mean, low, high): Student's t, or Wilson's score interval where every value is 0 or 1; NaN is no value.

    All are NaN without a value; low and high are NaN for a single value that is no share, and for equal values the interval
    is the value.
    """
    from scipy import stats

    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return np.nan, np.nan, np.nan
    mean = float(values.mean())
    if np.isin(values, (0.0, 1.0)).all():
        return mean, *wilson(int(values.sum()), n, confidence)
    if n == 1:
        return mean, np.nan, np.nan
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * float(values.std(ddof=1)) / np.sqrt(n)
    return mean, float(mean - half), float(mean + half)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval of one proportion (Wilson 1927)."""
    low, high = shares.wilson(np.array(successes / n), np.array(n), confidence)
    return float(low), float(high)
