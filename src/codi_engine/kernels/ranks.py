"""Rank tests of features: Mann–Whitney between conditions, Wilcoxon's signed ranks of paired differences.

Zeros are one group of ties, so only other values are sorted: codes that are mostly zero cost next to nothing.

References
----------
Mann & Whitney 1947; Wilcoxon 1945; Lehmann 1975, §1.4 and §3.1 (ties); Kerby 2014 (rank-biserial correlation).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from codi_engine.kernels.accelerate import inline, jit

#: most differences for which Wilcoxon's distribution is exact (no ties, no zeros)
EXACT = 25


def mann_whitney(x: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compare pairs of conditions: (rank-biserial effect, z, two-sided p), pairs × features each.

    Normal approximation with correction for ties and continuity. All values tied: effect 0, z 0, p 1. A condition without
    values: NaN.

    Parameters
    ----------
    x: conditions × rows × features (float32 or float64); NaN are missing
    pairs: pairs × 2
    """
    pairs = np.ascontiguousarray(pairs, np.int64).reshape(-1, 2)
    effect, z, p = (np.empty((len(pairs), x.shape[2])) for _ in range(3))
    fill_mann_whitney(x, pairs, effect, z, p)
    return effect, z, p


def wilcoxon(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Test paired differences, rows × features: (matched-pairs rank-biserial effect, z, two-sided p).

    Zeros are dropped. Exact for up to 25 differences without ties or zeros, else the normal approximation with correction for
    ties. Nothing but zeros: effect 0, z 0, p 1. No values: NaN.
    """
    effect, z, p = (np.empty(differences.shape[1]) for _ in range(3))
    fill_wilcoxon(differences, _distributions(), effect, z, p)
    return effect, z, p


@cache
def _distributions() -> np.ndarray:
    """Return P(W ≤ w) of Wilcoxon's statistic, n × w, for n up to 25."""
    out = np.ones((EXACT + 1, EXACT * (EXACT + 1) // 2 + 1))
    ways = np.zeros(out.shape[1])
    ways[0] = 1.0
    out[0] = 1.0
    for n in range(1, EXACT + 1):
        ways[n:] += ways[:-n].copy()
        out[n] = np.cumsum(ways) / 2.0**n
    return out


@inline
def _sort(values, count):
    """Sort the first ``count`` values in place."""
    if count > 48:
        values[:count] = np.sort(values[:count])
    else:
        for i in range(1, count):
            v = values[i]
            j = i - 1
            while j >= 0 and values[j] > v:
                values[j + 1] = values[j]
                j -= 1
            values[j + 1] = v


@inline
def _two_sided(value):
    """Return the two-sided tail of the normal distribution."""
    return math.erfc(value * 0.7071067811865476)


@jit
def fill_mann_whitney(x, pairs, effect, z, p):
    """Write the results of all pairs and features; every column is sorted once."""
    conditions, rows, features = x.shape
    strip = 64
    values = np.empty((conditions, strip, rows))
    some = np.empty((conditions, strip), np.int64)
    zeros = np.empty((conditions, strip), np.int64)
    below = np.empty((conditions, strip), np.int64)
    for f0 in range(0, features, strip):
        width = min(strip, features - f0)
        for c in range(conditions):
            for j in range(width):
                some[c, j] = 0
                zeros[c, j] = 0
                below[c, j] = 0
            for i in range(rows):
                for j in range(width):
                    v = x[c, i, f0 + j]
                    if v == 0.0:
                        zeros[c, j] += 1
                    elif v == v:
                        values[c, j, some[c, j]] = v
                        some[c, j] += 1
                        below[c, j] += v < 0.0
            for j in range(width):
                _sort(values[c, j], some[c, j])
        for k in range(pairs.shape[0]):
            a, b = pairs[k, 0], pairs[k, 1]
            for j in range(width):
                f = f0 + j
                va, vb = values[a, j], values[b, j]
                ma, mb, za, zb = some[a, j], some[b, j], zeros[a, j], zeros[b, j]
                na, nb = ma + za, mb + zb
                if na == 0 or nb == 0:
                    effect[k, f] = np.nan
                    z[k, f] = np.nan
                    p[k, f] = np.nan
                    continue
                # pairs in which a is greater, ties counting half; and sum of t³ − t over groups of ties
                above = za * (below[b, j] + 0.5 * zb)
                both = np.float64(za + zb)
                ties = both * both * both - both
                p1 = 0
                p2 = 0
                while p1 < ma or p2 < mb:
                    v = va[p1] if p2 >= mb or (p1 < ma and va[p1] <= vb[p2]) else vb[p2]
                    start = p2
                    t1 = 0
                    t2 = 0
                    while p1 < ma and va[p1] == v:
                        p1 += 1
                        t1 += 1
                    while p2 < mb and vb[p2] == v:
                        p2 += 1
                        t2 += 1
                    smaller = start + (zb if v > 0.0 else 0)
                    above += t1 * (smaller + 0.5 * t2)
                    t = np.float64(t1 + t2)
                    ties += t * t * t - t
                n = np.float64(na + nb)
                product = np.float64(na) * nb
                variance = product / 12.0 * ((n + 1.0) - ties / (n * (n - 1.0)))
                effect[k, f] = 2.0 * above / product - 1.0
                if variance <= 0.0:
                    z[k, f] = 0.0
                    p[k, f] = 1.0
                else:
                    away = above - 0.5 * product
                    value = max(abs(away) - 0.5, -0.5) / np.sqrt(variance)
                    z[k, f] = np.copysign(value, away)
                    p[k, f] = min(_two_sided(value), 1.0)


@jit
def fill_wilcoxon(d, distributions, effect, z, p):
    """Write the results of all features."""
    rows, features = d.shape
    size = np.empty(rows)
    sign = np.empty(rows)
    for f in range(features):
        n = 0
        there = 0
        for i in range(rows):
            v = d[i, f]
            if v == v:
                there += 1
                if v != 0.0:
                    size[n] = abs(v)
                    sign[n] = 1.0 if v > 0.0 else 0.0
                    n += 1
        if n == 0:
            effect[f] = 0.0 if there > 0 else np.nan
            z[f] = 0.0 if there > 0 else np.nan
            p[f] = 1.0 if there > 0 else np.nan
            continue
        order = np.argsort(size[:n])
        positive = 0.0
        ties = 0.0
        i = 0
        while i < n:
            j = i
            while j + 1 < n and size[order[j + 1]] == size[order[i]]:
                j += 1
            rank = 0.5 * (i + j) + 1.0
            for k in range(i, j + 1):
                positive += rank * sign[order[k]]
            t = np.float64(j - i + 1)
            ties += t * t * t - t
            i = j + 1
        m = np.float64(n)
        whole = 0.5 * m * (m + 1.0)
        variance = m * (m + 1.0) * (2.0 * m + 1.0) / 24.0 - ties / 48.0
        effect[f] = 2.0 * positive / whole - 1.0
        z[f] = (positive - 0.5 * whole) / np.sqrt(variance)
        if n <= 25 and ties == 0.0 and n == there:
            p[f] = min(2.0 * distributions[n, np.int64(min(positive, whole - positive))], 1.0)
        else:
            p[f] = _two_sided(abs(z[f]))
