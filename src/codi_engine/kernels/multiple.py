"""Corrections for multiple testing over a whole family of p-values."""

from __future__ import annotations

from typing import Literal

import numpy as np

Correction = Literal["bh", "by", "bonferroni"]


def adjust(p: np.ndarray, method: Correction = "bh") -> np.ndarray:
    """Return adjusted p-values of a family; NaN entries are no tests and stay NaN.

    Parameters
    ----------
    p: p-values in [0, 1], any shape
    method: ``bh`` (Benjamini & Hochberg 1995), ``by`` (Benjamini & Yekutieli 2001, any dependence), ``bonferroni``
    """
    flat = np.asarray(p, np.float64).ravel()
    out = np.full_like(flat, np.nan)
    tested = np.flatnonzero(~np.isnan(flat))
    m = len(tested)
    if m == 0:
        return out.reshape(np.shape(p))
    values = flat[tested]
    if method == "bonferroni":
        out[tested] = np.minimum(values * m, 1.0)
        return out.reshape(np.shape(p))
    order = np.argsort(values, kind="stable")
    factor = m / np.arange(1, m + 1)
    if method == "by":
        factor = factor * np.sum(1.0 / np.arange(1, m + 1))
    adjusted = np.minimum.accumulate((values[order] * factor)[::-1])[::-1]
    out[tested[order]] = np.minimum(adjusted, 1.0)
    return out.reshape(np.shape(p))
