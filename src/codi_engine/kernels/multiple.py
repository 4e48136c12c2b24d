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


class Family:
    """A family of tests that is counted but not held: for corrections over more tests than fit into memory.

    First every test is counted (:meth:`add`), then :meth:`cutoff` says above which p none can be significant; only tests at
    or below it are kept, and :meth:`adjust` gives them the q-values that :func:`adjust` would give them within the whole
    family. Counts are integers, so the order of adding does not matter.

    Parameters
    ----------
    level: q at which tests are called significant
    method: ``bh``, ``by``, ``bonferroni``, or ``none`` (q is p)
    """

    #: bits of a p-value that its bin ignores: 256 bins per power of two
    _SHIFT = 44

    def __init__(self, level: float = 0.05, method: Correction | Literal["none"] = "bh") -> None:
        self.level, self.method = level, method
        self.tests = 0
        self._counts = np.zeros((np.float64(1.0).view(np.int64) >> self._SHIFT) + 1, np.int64)

    def add(self, p: np.ndarray, more: int = 0) -> None:
        """Count tests.

        Parameters
        ----------
        p: p-values, any shape; NaN are no tests
        more: further tests whose p is known to exceed ``level``
        """
        p = np.asarray(p, np.float64).ravel()
        p = p[~np.isnan(p)]
        self.tests += len(p) + more
        bins = np.abs(p[p <= self.level]).view(np.int64) >> self._SHIFT
        self._counts += np.bincount(bins, minlength=len(self._counts))

    @property
    def _factor(self) -> float:
        """Return c(m): Σ 1/i for BY, else 1."""
        if self.method != "by" or self.tests == 0:
            return 1.0
        m = self.tests
        if m <= 1_000_000:
            return float(np.sum(1.0 / np.arange(1, m + 1)))
        return float(np.log(m) + np.euler_gamma + 1 / (2 * m) - 1 / (12 * m * m))

    def cutoff(self) -> float:
        """Return the p above which no test of the family can be significant; −1 when none can be."""
        if self.tests == 0:
            return -1.0
        if self.method == "none":
            return self.level
        if self.method == "bonferroni":
            return self.level / self.tests
        edges = (np.arange(len(self._counts) + 1) << self._SHIFT).view(np.float64)
        possible = np.flatnonzero((edges[:-1] <= self.level * np.cumsum(self._counts) / (self.tests * self._factor)) & (self._counts > 0))
        return float(np.nextafter(edges[possible[-1] + 1], 0.0)) if len(possible) else -1.0

    def adjust(self, p: np.ndarray) -> np.ndarray:
        """Return q-values of all the family's tests at or below :meth:`cutoff` (given together, any order)."""
        p = np.asarray(p, np.float64)
        if self.method == "none" or len(p) == 0:
            return p.copy()
        if self.method == "bonferroni":
            limited: np.ndarray = np.minimum(p * self.tests, 1.0)
            return limited
        order = np.argsort(p, kind="stable")
        raw = p[order] * (self.tests / np.arange(1, len(p) + 1) * self._factor)
        out = np.empty_like(p)
        out[order] = np.minimum(np.minimum.accumulate(raw[::-1])[::-1], 1.0)
        return out
