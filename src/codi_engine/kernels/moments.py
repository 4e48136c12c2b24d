"""Moments of (target, condition, row, feature) in a single pass, dense and sparse.

Sums are taken about a shift: the first value of each group and feature. A constant group therefore has exactly zero spread, an
offset of 1e8 costs no digits, and the difference of two means is the difference of the shifts plus that of two small numbers.
Rows are added in the order given, one after the other, so the bits do not depend on how they were cut into blocks.

References
----------
Chan, Golub & LeVeque 1983 (shifted data).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codi_engine.kernels.accelerate import jit


@dataclass
class Moments:
    """Shifted sums of groups. All arrays are groups × features, float64.

    Attributes
    ----------
    n: values that are not NaN
    shift: the first of them (0 where there is none)
    s, q: sums of value − shift and of its square
    """

    n: np.ndarray
    shift: np.ndarray
    s: np.ndarray
    q: np.ndarray

    @classmethod
    def empty(cls, groups: int, features: int) -> Moments:
        """Return the moments of nothing."""
        return cls(*(np.zeros((groups, features)) for _ in range(4)))

    def add(self, x: np.ndarray) -> None:
        """Add rows, groups × rows × features (float32 or float64); NaN are missing."""
        add_rows(x, self.n, self.shift, self.s, self.q)

    def add_codes(self, ptr: np.ndarray, index: np.ndarray, value: np.ndarray, rows: np.ndarray) -> None:
        """Add sparse rows; zeros are implicit.

        Parameters
        ----------
        ptr: groups + 1, where each group's entries begin
        index, value: feature and value of each entry, rows of a group one after the other; no feature twice in a row
        rows: rows of each group
        """
        fresh = not self.n.any()
        found = self if fresh else Moments.empty(*self.n.shape)
        if np.isnan(value).any():
            missing = np.zeros_like(self.n)
            add_entries(ptr, index, value, found.n, found.shift, found.s, found.q, missing)
            with_zeros(rows[:, None] - missing, found.n, found.shift, found.s, found.q)
        else:
            add_entries(ptr, index, value, found.n, found.shift, found.s, found.q, np.zeros((0, 0)))
            with_zeros(np.ascontiguousarray(rows, np.float64)[:, None], found.n, found.shift, found.s, found.q)
        if not fresh:
            merged = merge(self, found)
            self.n, self.shift, self.s, self.q = merged.n, merged.shift, merged.s, merged.q

    @property
    def mean(self) -> np.ndarray:
        """Return means, NaN without values."""
        with np.errstate(invalid="ignore", divide="ignore"):
            mean: np.ndarray = self.shift + self.s / self.n
        return mean

    @property
    def spread(self) -> np.ndarray:
        """Return the sums of squared deviations from the mean."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.n > 0, np.maximum(self.q - self.s * self.s / self.n, 0.0), np.nan)


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of both; exact up to rounding, so merge in a fixed order."""
    empty = a.n == 0
    delta = np.where(empty | (b.n == 0), 0.0, b.shift - a.shift)
    s = a.s + b.s + b.n * delta
    q = a.q + b.q + delta * (2.0 * b.s + b.n * delta)
    return Moments(a.n + b.n, np.where(empty, b.shift, a.shift), s, q)


def add_differences(x: np.ndarray, pairs: np.ndarray, moments: Moments) -> None:
    """Add to pairs × features moments the differences between conditions of the same row (x: conditions × rows × features)."""
    add_pairs(x, np.ascontiguousarray(pairs, np.int64).reshape(-1, 2), moments.n, moments.shift, moments.s, moments.q)


def pooled_sd(moments: Moments, a: np.ndarray, b: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """Return the pooled standard deviation of groups ``a`` and ``b`` for chosen features (one dimension, alike)."""
    n_a, n_b = moments.n[a, feature], moments.n[b, feature]
    with np.errstate(invalid="ignore", divide="ignore"):
        sd: np.ndarray = np.sqrt((moments.spread[a, feature] + moments.spread[b, feature]) / (n_a + n_b - 2.0))
    return sd


# --------------------------------------------------------------------------------------------------- loops


@jit
def add_rows(x, n, shift, s, q):
    """Add groups × rows × features to shifted sums, groups × features."""
    groups, rows, features = x.shape
    for g in range(groups):
        for f0 in range(0, features, 512):  # few enough that their sums stay in the fastest cache
            f1 = min(f0 + 512, features)
            ng, cg, sg, qg = n[g, f0:f1], shift[g, f0:f1], s[g, f0:f1], q[g, f0:f1]
            i = 0
            while i < rows:
                # four rows at a time where nothing is missing: the same additions in the same order, a quarter of the stores
                plain = i + 4 <= rows
                if plain:
                    a, b, c, d = x[g, i, f0:f1], x[g, i + 1, f0:f1], x[g, i + 2, f0:f1], x[g, i + 3, f0:f1]
                    odd = 0
                    for j in range(ng.size):
                        total = (a[j] + b[j]) + (c[j] + d[j])
                        odd += (total != total) | (ng[j] == 0.0)
                    plain = odd == 0
                if plain:
                    for j in range(ng.size):
                        v0 = np.float64(a[j]) - cg[j]
                        v1 = np.float64(b[j]) - cg[j]
                        v2 = np.float64(c[j]) - cg[j]
                        v3 = np.float64(d[j]) - cg[j]
                        sg[j] = (((sg[j] + v0) + v1) + v2) + v3
                        qg[j] = (((qg[j] + v0 * v0) + v1 * v1) + v2 * v2) + v3 * v3
                        ng[j] += 4.0
                    i += 4
                else:
                    row = x[g, i, f0:f1]
                    for j in range(ng.size):
                        v = np.float64(row[j])
                        there = v == v
                        cg[j] = v if there and ng[j] == 0.0 else cg[j]
                        e = v - cg[j] if there else 0.0
                        sg[j] += e
                        qg[j] += e * e
                        ng[j] += 1.0 if there else 0.0
                    i += 1


@jit
def add_pairs(x, pairs, n, shift, s, q):
    """Add differences of conditions (conditions × rows × features) to shifted sums, pairs × features."""
    _, rows, features = x.shape
    for k in range(pairs.shape[0]):
        a, b = pairs[k, 0], pairs[k, 1]
        for f0 in range(0, features, 512):
            f1 = min(f0 + 512, features)
            nk, ck, sk, qk = n[k, f0:f1], shift[k, f0:f1], s[k, f0:f1], q[k, f0:f1]
            for i in range(rows):
                left, right = x[a, i, f0:f1], x[b, i, f0:f1]
                for j in range(left.size):
                    v = np.float64(left[j]) - np.float64(right[j])
                    if v == v:
                        if nk[j] == 0.0:
                            ck[j] = v
                        d = v - ck[j]
                        sk[j] += d
                        qk[j] += d * d
                        nk[j] += 1.0


@jit
def add_entries(ptr, index, value, n, shift, s, q, missing):
    """Add the entries of sparse groups to shifted sums of non-zero values; NaN entries count in ``missing``."""
    for g in range(ptr.size - 1):
        ng, cg, sg, qg = n[g], shift[g], s[g], q[g]
        for k in range(ptr[g], ptr[g + 1]):
            f = index[k]
            v = np.float64(value[k])
            if v != v:
                missing[g, f] += 1.0  # never reached without room for it
            elif v != 0.0:
                if ng[f] == 0.0:
                    cg[f] = v
                d = v - cg[f]
                sg[f] += d
                qg[f] += d * d
                ng[f] += 1.0


@jit
def with_zeros(rows, n, shift, s, q):
    """Add implicit zeros to the sums of non-zero values: positive terms only, about the overall mean.

    ``rows`` is groups × features, or groups × 1, all rows that are not missing.
    """
    groups, features = n.shape
    one = rows.shape[1] == 1
    for g in range(groups):
        for f in range(features):
            total = rows[g, 0] if one else rows[g, f]
            some = n[g, f]
            zeros = total - some
            mean = shift[g, f] + s[g, f] / max(some, 1.0)
            spread = max(q[g, f] - s[g, f] * s[g, f] / max(some, 1.0), 0.0)
            share = some / max(total, 1.0)
            mixed = zeros > 0.0
            q[g, f] = spread + mean * mean * share * zeros if mixed else q[g, f]
            s[g, f] = 0.0 if mixed else s[g, f]
            shift[g, f] = mean * share if mixed else shift[g, f]
            n[g, f] = total
