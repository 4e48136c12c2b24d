"""What rank tests count, over many features at once: wins of one group's values over another's, and ties.

Small groups are compared value by value, which runs over features in vector registers and needs no sorting; larger ones, and
features with ties, are sorted once per group and merged per pair of groups. All counts are exact whole numbers, so results
depend on neither the path, nor blocks, nor threads.
"""

from __future__ import annotations

import numpy as np

from codi_engine.kernels.accelerate import inline, jit

COMPARED = 64  # largest group that is compared value by value
BLOCK = 256  # features at a time


def wins(groups: list[np.ndarray], pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """2 U and Σ(t³ − t) over ties t of pairs of groups, (pairs, features), and the values of every group, (groups, features)."""
    features = groups[0].shape[1]
    u2, ties = np.zeros((len(pairs), features), np.int64), np.zeros((len(pairs), features))
    n = np.empty((len(groups), features), np.int64)
    small = max(len(g) for g in groups) <= COMPARED
    for a in range(0, features, BLOCK):
        part = slice(a, min(a + BLOCK, features))
        blocks = [np.ascontiguousarray(g[:, part]) for g in groups]
        needed = np.zeros(part.stop - a, np.bool_)
        for g, block in enumerate(blocks):
            _count(block, n[g, part])
            if small:
                _repeats(block, needed)
        if small:
            _compare_all(blocks, pairs, u2[:, part], needed)
        chosen = np.flatnonzero(needed) if small else np.arange(part.stop - a)
        if len(chosen):
            ordered = [np.sort(np.ascontiguousarray((block[:, chosen] if small else block).T), axis=1) for block in blocks]
            for k, (i, j) in enumerate(pairs):
                _merge(ordered[i], ordered[j], n[i, part], n[j, part], chosen, u2[k, part], ties[k, part])
    return u2, ties, n


def _compare_all(blocks: list[np.ndarray], pairs: np.ndarray, u2: np.ndarray, needed: np.ndarray) -> None:
    """2 U of the features that need no merge; mark those that turn out to need one, having a value in both groups of a pair."""
    rest = np.flatnonzero(~needed)
    if len(rest) < len(needed):
        blocks = [np.ascontiguousarray(block[:, rest]) for block in blocks]
    won, tied = np.empty((len(pairs), len(rest)), np.int64), np.zeros(len(rest), np.bool_)
    for k, (i, j) in enumerate(pairs):
        _beats(blocks[i], blocks[j], won[k], tied)
    u2[:, rest] = won
    needed[rest] = tied


@jit
def _count(x: np.ndarray, n: np.ndarray) -> None:
    """Values that are not missing."""
    n[:] = 0
    for i in range(x.shape[0]):
        for f in range(x.shape[1]):
            n[f] += x[i, f] == x[i, f]


@jit
def _repeats(x: np.ndarray, found: np.ndarray) -> None:
    """Mark features in which a value comes twice."""
    width = x.shape[1]
    equal = np.zeros(width, np.int32)
    for i in range(x.shape[0]):
        for k in range(i):
            for f in range(width):
                equal[f] += x[i, f] == x[k, f]
    for f in range(width):
        found[f] |= equal[f] > 0


@jit
def _beats(a: np.ndarray, b: np.ndarray, u2: np.ndarray, tied: np.ndarray) -> None:
    """2 U by comparing all with all (missing values win nothing); mark features with a value in both groups."""
    width = a.shape[1]
    above, least = np.zeros(width, np.int32), np.zeros(width, np.int32)
    whole = b.shape[0] // 4 * 4
    for i in range(a.shape[0]):
        for k in range(0, whole, 4):  # four at a time: the counts are loaded and stored a quarter as often
            for f in range(width):
                x = a[i, f]
                above[f] += np.int32(x > b[k, f]) + np.int32(x > b[k + 1, f]) + np.int32(x > b[k + 2, f]) + np.int32(x > b[k + 3, f])
                least[f] += np.int32(x >= b[k, f]) + np.int32(x >= b[k + 1, f]) + np.int32(x >= b[k + 2, f]) + np.int32(x >= b[k + 3, f])
        for k in range(whole, b.shape[0]):
            for f in range(width):
                above[f] += a[i, f] > b[k, f]
                least[f] += a[i, f] >= b[k, f]
    for f in range(width):
        u2[f] = np.int64(above[f]) + least[f]
        tied[f] |= above[f] != least[f]


@inline
def _runs(a: np.ndarray, n_a: int, zeros_a: int, b: np.ndarray, n_b: int, zeros_b: int) -> tuple[int, float]:
    """2 U of a, and Σ(t³ − t), from the sorted values of two groups and the numbers of zeros that are not among them."""
    i = k = passed = u2 = 0  # passed: values of b below the present one
    ties = 0.0
    pending = zeros_a + zeros_b > 0
    while i < n_a or k < n_b or pending:
        if i < n_a and (k >= n_b or a[i] <= b[k]):
            v = a[i]
        elif k < n_b:
            v = b[k]
        else:
            v = a.dtype.type(1)
        if pending and ((i >= n_a and k >= n_b) or v > 0):
            in_a, in_b, pending = zeros_a, zeros_b, False
        else:
            in_a, in_b = -i, -k
            while i < n_a and a[i] == v:
                i += 1
            while k < n_b and b[k] == v:
                k += 1
            in_a += i
            in_b += k
        u2 += in_a * (2 * passed + in_b)
        passed += in_b
        t = np.float64(in_a + in_b)
        ties += (t * t - 1.0) * t
    return u2, ties


@inline
def _twice(x: np.ndarray, n: int) -> bool:
    """Whether a value comes twice among the first n, which are sorted."""
    equal = 0
    for i in range(1, n):
        equal += x[i] == x[i - 1]
    return equal > 0


@jit
def _merge(
    a: np.ndarray,
    b: np.ndarray,
    n_a: np.ndarray,
    n_b: np.ndarray,
    chosen: np.ndarray,
    u2: np.ndarray,
    ties: np.ndarray,
) -> None:
    """Merge the chosen features, (features, values) each, sorted with missing values last."""
    for c in range(len(chosen)):
        f = chosen[c]
        tied = _twice(a[c], n_a[f]) or _twice(b[c], n_b[f])
        i = k = won = 0
        if not tied:
            while i < n_a[f] and k < n_b[f]:  # without a branch on the data; a value above all of b is counted below
                x, y = a[c, i], b[c, k]
                tied |= x == y
                below = int(y < x)
                k += below
                won += (1 - below) * k
                i += 1 - below
            won = 2 * (won + (n_a[f] - i) * n_b[f])
        ties[f] = 0.0
        if tied:
            won, ties[f] = _runs(a[c], n_a[f], 0, b[c], n_b[f], 0)
        u2[f] = won


@jit
def merge_sparse(bounds: np.ndarray, value: np.ndarray, n: np.ndarray, pairs: np.ndarray, u2: np.ndarray, ties: np.ndarray) -> None:
    for p in range(len(pairs)):
        i, k = pairs[p, 0], pairs[p, 1]
        for f in range(n.shape[1]):
            a = value[bounds[i, f] : bounds[i, f + 1]]
            b = value[bounds[k, f] : bounds[k, f + 1]]
            won, tied = _runs(a, len(a), n[i, f] - len(a), b, len(b), n[k, f] - len(b))
            u2[p, f] = won
            ties[p, f] = tied


@jit
def entries_of(
    ptr: np.ndarray,
    index: np.ndarray,
    value: np.ndarray,
    rows: np.ndarray,
    features: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Entries that are neither 0 nor missing, sorted by group, feature and value; their bounds; rows that are not missing."""
    groups = len(ptr) - 1
    bounds = np.zeros((groups, features + 1), np.int64)
    n = np.empty((groups, features), np.int64)
    out = np.empty(len(value), value.dtype)
    start = 0
    for g in range(groups):
        edge = bounds[g]
        n[g] = rows[g]
        for e in range(ptr[g], ptr[g + 1]):
            v = value[e]
            n[g, index[e]] -= v != v
            edge[index[e] + 1] += v == v and v != 0
        edge[0] = start
        for f in range(features):
            edge[f + 1] += edge[f]
        start = edge[features]
        at = edge[:-1].copy()
        for e in range(ptr[g], ptr[g + 1]):
            v = value[e]
            if v == v and v != 0:
                out[at[index[e]]] = v
                at[index[e]] += 1
        for f in range(features):
            if edge[f + 1] - edge[f] > 32:
                out[edge[f] : edge[f + 1]].sort()
                continue
            for e in range(edge[f] + 1, edge[f + 1]):
                v = out[e]
                k = e
                while k > edge[f] and out[k - 1] > v:
                    out[k] = out[k - 1]
                    k -= 1
                out[k] = v
    return bounds, out[:start], n
