"""Rank tests over many features at once: statistics, effects and p-values of what :mod:`~codi_engine.kernels.rankcounts` counts."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from codi_engine.kernels.accelerate import jit
from codi_engine.kernels.rankcounts import entries_of, merge_sparse, wins

OK, TIED, EMPTY, EXACT = range(4)  # status: p approximate; all values equal, p = 1; a group without values, NaN; p exact


class RankSum(NamedTuple):
    """Mann-Whitney tests. u is group a's U, effect its rank-biserial correlation 2u / (n_a n_b) − 1: positive where a is larger."""

    u: np.ndarray
    z: np.ndarray
    p: np.ndarray
    effect: np.ndarray
    n_a: np.ndarray
    n_b: np.ndarray
    status: np.ndarray


class SignedRank(NamedTuple):
    """Wilcoxon tests. w is the rank sum of positive differences, effect (w₊ − w₋) / (w₊ + w₋), n without zeros and missing."""

    w: np.ndarray
    z: np.ndarray
    p: np.ndarray
    effect: np.ndarray
    n: np.ndarray
    zeros: np.ndarray
    status: np.ndarray


def mann_whitney(a: np.ndarray, b: np.ndarray, *, exact: bool = False) -> RankSum:
    """Return the Mann-Whitney test of every feature, a (rows, features) against b (rows, features); NaN is missing.

    z and the two-sided p are of the normal approximation with corrections for ties and continuity, as of
    ``scipy.stats.mannwhitneyu(method="asymptotic")`` (Mann & Whitney 1947; ties: Hollander & Wolfe 1973, eq. 4.19).
    With ``exact`` p is exact where a group has at most 8 values and none are tied. All values equal: p = 1, status TIED.
    A group without values: NaN, status EMPTY.
    """
    a, b = _values(a), _values(b)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"two arrays (rows, features) are needed, not {a.shape} and {b.shape}")
    return RankSum(*(x[0] for x in _rank_sum([a, b], np.array([[0, 1]]), exact)))


def mann_whitney_pairs(cube: np.ndarray, pairs: np.ndarray, *, exact: bool = False) -> RankSum:
    """Return ``mann_whitney`` of pairs (k, 2) of conditions of a cube (conditions, rows, features), as (k, features)."""
    cube = _values(cube)
    if cube.ndim != 3:
        raise ValueError(f"a cube (conditions, rows, features) is needed, not {cube.shape}")
    return _rank_sum(list(cube), _pairs(pairs, len(cube)), exact)


def mann_whitney_sparse(
    ptr: np.ndarray,
    index: np.ndarray,
    value: np.ndarray,
    rows: int | np.ndarray,
    features: int,
    pairs: np.ndarray,
    *,
    exact: bool = False,
) -> RankSum:
    """Return ``mann_whitney`` of pairs of sparse groups, as (k, features); only the entries are sorted.

    Parameters
    ----------
    ptr, index, value: group g owns the entries ptr[g]:ptr[g+1]: feature and value, in any order, its rows concatenated
    rows: rows of every group; those without an entry are 0
    """
    ptr, index = np.asarray(ptr, np.int64), np.asarray(index)
    groups = len(ptr) - 1
    if groups < 1 or ptr[0] != 0 or ptr[-1] != len(index) or len(index) != len(value) or np.any(np.diff(ptr) < 0):
        raise ValueError("ptr must rise from 0 to the number of entries")
    if len(index) and (index.min() < 0 or index.max() >= features):
        raise ValueError(f"features are 0 to {features - 1}")
    size = np.broadcast_to(np.asarray(rows, np.int64), groups)
    bounds, held, n = entries_of(ptr, index, _values(value), size, features)
    if np.any(bounds[:, 1:] - bounds[:, :-1] > n):
        raise ValueError("a feature has more entries than its group has rows")
    pairs = _pairs(pairs, groups)
    u2, ties = np.empty((len(pairs), features), np.int64), np.empty((len(pairs), features))
    merge_sparse(bounds, held, n, pairs, u2, ties)
    return _test(u2, ties, n, pairs, exact)


def wilcoxon(d: np.ndarray) -> SignedRank:
    """Return the signed-rank test of every feature over paired differences d (rows, features); NaN is missing.

    Differences of 0 are dropped (Wilcoxon 1945). p is exact for up to 25 differences without zeros and ties, else of the
    normal approximation corrected for ties, as of ``scipy.stats.wilcoxon(method="asymptotic")`` (Hollander & Wolfe 1973,
    eq. 3.13). All differences 0: p = 1, status TIED. No differences: NaN, status EMPTY.
    """
    d = _values(d)
    if d.ndim != 2:
        raise ValueError(f"an array (rows, features) is needed, not {d.shape}")
    nan = d.dtype.type(np.nan)
    # The rank sum of the positive ones among all is their U against the others plus its smallest value.
    u2, ties, n = wins([np.where(d > 0, d, nan), np.where(d < 0, -d, nan)], np.array([[0, 1]]))
    zeros = np.count_nonzero(d == 0, axis=0)
    w, z, p, effect, total, status = _signed(u2[0], ties[0], n, zeros)
    for size in range(1, 26):
        alike = (total == size) & (zeros == 0) & (ties[0] == 0)
        if alike.any():
            lower = _signed_tail(size)
            p[alike] = np.minimum(1.0, 2 * lower[np.minimum(w[alike], size * (size + 1) / 2 - w[alike]).astype(np.int64)])
            status[alike] = EXACT
    return SignedRank(w, z, p, effect, total, zeros, status)


def _rank_sum(groups: list[np.ndarray], pairs: np.ndarray, exact: bool) -> RankSum:
    return _test(*wins(groups, pairs), pairs, exact)


def _test(u2: np.ndarray, ties: np.ndarray, n: np.ndarray, pairs: np.ndarray, exact: bool) -> RankSum:
    out = RankSum(*(np.empty(u2.shape, t) for t in (float, float, float, float, np.int64, np.int64, np.int8)))
    for k, (i, j) in enumerate(pairs):
        out.n_a[k], out.n_b[k] = n[i], n[j]
        _normal(u2[k], ties[k], n[i], n[j], out.u[k], out.z[k], out.p[k], out.effect[k], out.status[k])
    if exact:
        fit = (np.minimum(out.n_a, out.n_b) <= 8) & (ties == 0) & (out.status != EMPTY)
        for n_a, n_b in {(int(a), int(b)) for a, b in zip(out.n_a[fit], out.n_b[fit], strict=True)}:
            alike = fit & (out.n_a == n_a) & (out.n_b == n_b)
            least = np.minimum(u2[alike] // 2, n_a * n_b - u2[alike] // 2)
            out.p[alike] = np.minimum(1.0, 2 * _rank_sum_tail(n_a, n_b)[least])
            out.status[alike] = EXACT
    return out


@lru_cache(256)
def _rank_sum_tail(n_a: int, n_b: int) -> np.ndarray:
    """P(U ≤ u): the coefficients of the Gaussian binomial (Mann & Whitney 1947, eq. 1), as a product and quotients of 1 − xᵏ."""
    counts = [1] + [0] * (n_a * n_b)
    few, many = sorted((n_a, n_b))
    for k in range(1, few + 1):
        for u in range(len(counts) - 1, many + k - 1, -1):
            counts[u] -= counts[u - many - k]
        for u in range(k, len(counts)):
            counts[u] += counts[u - k]
    return _cumulate(counts)


@lru_cache(64)
def _signed_tail(n: int) -> np.ndarray:
    """P(W ≤ w): subsets of 1 … n by their sum."""
    counts = [1] + [0] * (n * (n + 1) // 2)
    for k in range(1, n + 1):
        for w in range(len(counts) - 1, k - 1, -1):
            counts[w] += counts[w - k]
    return _cumulate(counts)


def _cumulate(counts: list[int]) -> np.ndarray:
    """Shares from whole numbers of any size, rounded once."""
    total, so_far, out = sum(counts), 0, []
    for c in counts:
        so_far += c
        out.append(so_far / total)
    return np.array(out)


def _values(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x)
    return x if x.dtype == np.float32 else np.asarray(x, np.float64)


def _pairs(pairs: np.ndarray, groups: int) -> np.ndarray:
    pairs = np.asarray(pairs, np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or (pairs.size and (pairs.min() < 0 or pairs.max() >= groups)):
        raise ValueError(f"pairs (k, 2) of groups 0 to {groups - 1} are needed")
    return pairs


@jit
def _normal(
    u2: np.ndarray,
    ties: np.ndarray,
    n_a: np.ndarray,
    n_b: np.ndarray,
    u: np.ndarray,
    z: np.ndarray,
    p: np.ndarray,
    effect: np.ndarray,
    status: np.ndarray,
) -> None:
    """Normal approximation: mean n_a n_b / 2, variance n_a n_b / 12 · (N + 1 − Σ(t³ − t) / (N (N − 1))), half a step of continuity."""
    for f in range(len(u2)):
        product = np.float64(n_a[f]) * n_b[f]
        total = np.float64(n_a[f]) + n_b[f]
        if product == 0:
            u[f] = z[f] = p[f] = effect[f] = np.nan
            status[f] = EMPTY
            continue
        u[f] = 0.5 * u2[f]
        effect[f] = (u2[f] - product) / product
        z[f], p[f], status[f] = 0.0, 1.0, OK
        if ties[f] >= (total * total - 1.0) * total:
            status[f] = TIED
            continue
        away = abs(u[f] - 0.5 * product) - 0.5
        if away > 0:
            size = away / math.sqrt(product / 12.0 * (total + 1.0 - ties[f] / (total * (total - 1.0))))
            z[f] = size if effect[f] > 0 else -size
            p[f] = math.erfc(size * 0.7071067811865476)


@jit
def _signed_rows(
    u2: np.ndarray,
    ties: np.ndarray,
    n: np.ndarray,
    zeros: np.ndarray,
    w: np.ndarray,
    z: np.ndarray,
    p: np.ndarray,
    effect: np.ndarray,
    total: np.ndarray,
    status: np.ndarray,
) -> None:
    for f in range(len(u2)):
        total[f] = n[0, f] + n[1, f]
        if total[f] == 0:
            fill = 0.0 if zeros[f] > 0 else np.nan
            w[f] = z[f] = effect[f] = fill
            p[f] = 1.0 - fill
            status[f] = TIED if zeros[f] > 0 else EMPTY
            continue
        m = np.float64(total[f])
        w[f] = 0.5 * u2[f] + 0.5 * n[0, f] * (n[0, f] + 1.0)
        effect[f] = 4.0 * w[f] / (m * (m + 1.0)) - 1.0
        z[f] = (w[f] - 0.25 * m * (m + 1.0)) / math.sqrt(m * (m + 1.0) * (2.0 * m + 1.0) / 24.0 - ties[f] / 48.0)
        p[f] = math.erfc(abs(z[f]) * 0.7071067811865476)
        status[f] = OK


def _signed(u2: np.ndarray, ties: np.ndarray, n: np.ndarray, zeros: np.ndarray) -> tuple[np.ndarray, ...]:
    out = tuple(np.empty(len(u2), t) for t in (float, float, float, float, np.int64, np.int8))
    _signed_rows(u2, ties, n, zeros, *out)
    return out
