"""Two-sample and paired t-tests over (target, condition, row, feature): single pass, then all pairs of conditions.

Sums are taken about a shift: the first value of each group and feature. A constant group therefore has exactly zero spread, an
offset of 1e8 costs no digits, and the difference of two means is the difference of the shifts plus that of two small numbers.
Rows are added in the order given, one after the other, so the bits do not depend on how they were cut into blocks.

References
----------
Chan, Golub & LeVeque 1983 (shifted data); Welch 1947; Hedges 1981 (g, exact correction); Hedges & Olkin 1985, ch. 5, eq. 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from codi_engine.kernels.accelerate import jit
from codi_engine.kernels.student import fill_p, p_values, table

Test = Literal["welch", "pooled", "paired"]

#: what ``status`` says: tested; a group without values; too few values; no spread and no difference; no spread but a difference
TESTED, MISSING, TINY, CONSTANT, SEPARATED = range(5)


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


@dataclass
class Tested:
    """Results of tests, pairs × features each.

    Attributes
    ----------
    effect: mean of the first minus mean of the second condition
    se: its standard error
    t, df, p: statistic, degrees of freedom, two-sided p
    status: TESTED, MISSING (NaN everywhere), TINY (effect only), CONSTANT (t = 0, p = 1), SEPARATED (t infinite, p of the
        permutation or sign test)
    """

    effect: np.ndarray
    se: np.ndarray
    t: np.ndarray
    df: np.ndarray
    p: np.ndarray
    status: np.ndarray

    @classmethod
    def empty(cls, pairs: int, features: int) -> Tested:
        """Return room for results, to be used again and again."""
        a, b, c, d, e = (np.empty((pairs, features)) for _ in range(5))
        return cls(a, b, c, d, e, np.empty((pairs, features), np.uint8))


def two_sample(
    moments: Moments, pairs: np.ndarray, test: Literal["welch", "pooled"] = "welch", beyond: float = 0.0, out: Tested | None = None
) -> Tested:  # fmt: skip
    """Test pairs of groups.

    Parameters
    ----------
    moments: groups × features
    pairs: pairs × 2, groups whose means are compared (first − second)
    beyond: p is computed only where |t| reaches this (elsewhere 1); 0 computes every one
    out: where results are written
    """
    pairs = np.ascontiguousarray(pairs, np.int64).reshape(-1, 2)
    out = out or Tested.empty(len(pairs), moments.n.shape[1])
    compare(moments.n, moments.shift, moments.s, moments.q, pairs, test == "welch", out.effect, out.se, out.t, out.df, out.status)
    _fill(out, beyond)
    pair, feature = np.nonzero(out.status == SEPARATED)
    if len(pair):
        out.p[pair, feature] = _rarest(moments.n[pairs[pair, 0], feature], moments.n[pairs[pair, 1], feature])
    return out


def paired(differences: Moments, beyond: float = 0.0, out: Tested | None = None) -> Tested:
    """Test paired differences (moments of first − second, pairs × features) against no effect."""
    out = out or Tested.empty(*differences.n.shape)
    one_sample(differences.n, differences.shift, differences.s, differences.q, out.effect, out.se, out.t, out.df, out.status)
    _fill(out, beyond)
    apart = out.status == SEPARATED
    out.p[apart] = 2.0 ** (1.0 - differences.n[apart])
    return out


def add_differences(x: np.ndarray, pairs: np.ndarray, moments: Moments) -> None:
    """Add to pairs × features moments the differences between conditions of the same row (x: conditions × rows × features)."""
    add_pairs(x, np.ascontiguousarray(pairs, np.int64).reshape(-1, 2), moments.n, moments.shift, moments.s, moments.q)


def pooled_sd(moments: Moments, a: np.ndarray, b: np.ndarray, feature: np.ndarray) -> np.ndarray:
    """Return the pooled standard deviation of groups ``a`` and ``b`` for chosen features (one dimension, alike)."""
    n_a, n_b = moments.n[a, feature], moments.n[b, feature]
    with np.errstate(invalid="ignore", divide="ignore"):
        sd: np.ndarray = np.sqrt((moments.spread[a, feature] + moments.spread[b, feature]) / (n_a + n_b - 2.0))
    return sd


def hedges_g(effect: np.ndarray, sd: np.ndarray, n_a: np.ndarray, n_b: np.ndarray, test: Test, confidence: float = 0.95) -> tuple[np.ndarray, ...]:
    """Return Hedges' g with its interval (g, low, high), NaN where there is no spread.

    Two samples: effect over the pooled standard deviation; paired: over that of the differences.
    """
    from scipy import special

    n_a, n_b = np.asarray(n_a, float), np.asarray(n_b, float)
    df = n_a - 1.0 if test == "paired" else n_a + n_b - 2.0
    with np.errstate(invalid="ignore", divide="ignore"):
        correction = np.exp(special.gammaln(df / 2) - special.gammaln((df - 1) / 2)) / np.sqrt(df / 2)
        g = np.where((sd > 0) & (df > 1), np.asarray(effect) / sd * correction, np.nan)
        variance = 1.0 / n_a + g * g / (2 * n_a) if test == "paired" else (n_a + n_b) / (n_a * n_b) + g * g / (2 * (n_a + n_b))
        half = special.ndtri(0.5 + confidence / 2) * np.sqrt(variance)
    return g, g - half, g + half


def _fill(out: Tested, beyond: float) -> None:
    """Fill in p-values: of all, or of those whose statistic can matter."""
    special = bool(out.status.any())
    if beyond <= 0.0 and not special:
        fill_p(out.t.reshape(-1), out.df.reshape(-1), table(), out.p.reshape(-1))
        return
    t, p = out.t.reshape(-1), out.p.reshape(-1)
    matter = np.flatnonzero((np.abs(t) >= beyond) & (out.status.reshape(-1) == TESTED))
    p[:] = 1.0
    p[matter] = p_values(t[matter], out.df.reshape(-1)[matter])
    if special:
        p[np.isnan(t)] = np.nan


def _rarest(n_a: np.ndarray, n_b: np.ndarray) -> np.ndarray:
    """Return the two-sided permutation p of two groups that do not mix: 2 / C(n_a + n_b, n_a), at most 1."""
    from scipy import special

    ways = special.gammaln(n_a + n_b + 1) - special.gammaln(n_a + 1) - special.gammaln(n_b + 1)
    p: np.ndarray = np.minimum(2.0 * np.exp(-ways), 1.0)
    return p


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


@jit
def compare(n, shift, s, q, pairs, welch, effect, se, t, df, status):
    """Write effect, standard error, t, degrees of freedom and status of pairs × features."""
    groups, features = n.shape
    spread = np.empty((groups, features))
    offset = np.empty((groups, features))
    # per group: variance of the mean, and its square over its own degrees of freedom (pooled: spread and n − 1)
    var = np.empty((groups, features))
    var2 = np.empty((groups, features))
    plain = np.empty(groups, np.bool_)
    used = np.zeros(groups, np.bool_)
    for k in range(pairs.shape[0]):
        used[pairs[k, 0]] = True
        used[pairs[k, 1]] = True
    for g in range(groups):
        if not used[g]:
            continue
        odd = 0
        for f in range(features):
            count = n[g, f]
            m = s[g, f] / max(count, 1.0)
            offset[g, f] = m
            spread[g, f] = max(q[g, f] - s[g, f] * m, 0.0)
            v = spread[g, f] / ((count - 1.0) * count)
            var[g, f] = v
            var2[g, f] = v * v / (count - 1.0)
            odd += (count < 2.0) | (spread[g, f] == 0.0)
        plain[g] = odd == 0
    for k in range(pairs.shape[0]):
        a, b = pairs[k, 0], pairs[k, 1]
        na, nb, ca, cb, oa, ob, qa, qb = n[a], n[b], shift[a], shift[b], offset[a], offset[b], spread[a], spread[b]
        va, vb, wa, wb = var[a], var[b], var2[a], var2[b]
        ek, sk, tk, dk, ck = effect[k], se[k], t[k], df[k], status[k]
        if welch:
            for f in range(features):
                v = va[f] + vb[f]
                d = (ca[f] - cb[f]) + (oa[f] - ob[f])
                error = np.sqrt(v)
                ek[f] = d
                sk[f] = error
                tk[f] = d / error
                dk[f] = v * v / (wa[f] + wb[f])
        else:
            for f in range(features):
                free = na[f] + nb[f] - 2.0
                d = (ca[f] - cb[f]) + (oa[f] - ob[f])
                error = np.sqrt((qa[f] + qb[f]) / free * (1.0 / na[f] + 1.0 / nb[f]))
                ek[f] = d
                sk[f] = error
                tk[f] = d / error
                dk[f] = free
        for f in range(features):
            ck[f] = 0
        if plain[a] and plain[b]:
            continue
        for f in range(features):
            few = (na[f] < 2.0 or nb[f] < 2.0) if welch else na[f] + nb[f] < 3.0
            if na[f] < 1.0 or nb[f] < 1.0:
                ck[f] = 1
                ek[f] = np.nan
            elif few:
                ck[f] = 2
            elif qa[f] == 0.0 and qb[f] == 0.0:
                ck[f] = 3 if ek[f] == 0.0 else 4
                sk[f] = 0.0
                dk[f] = na[f] + nb[f] - 2.0
                tk[f] = 0.0 if ek[f] == 0.0 else np.copysign(np.inf, ek[f])
            elif welch and qa[f] == 0.0:
                dk[f] = nb[f] - 1.0
            elif welch and qb[f] == 0.0:
                dk[f] = na[f] - 1.0
            if ck[f] == 1 or ck[f] == 2:
                sk[f] = np.nan
                tk[f] = np.nan
                dk[f] = np.nan


@jit
def one_sample(n, shift, s, q, effect, se, t, df, status):
    """Write the one-sample test of every mean against 0."""
    groups, features = n.shape
    for g in range(groups):
        for f in range(features):
            count = n[g, f]
            mean = s[g, f] / max(count, 1.0)
            spread = max(q[g, f] - s[g, f] * mean, 0.0)
            value = shift[g, f] + mean
            error = np.sqrt(spread / ((count - 1.0) * count))
            effect[g, f] = value
            se[g, f] = error
            t[g, f] = value / error
            df[g, f] = count - 1.0
            status[g, f] = 0
            if count < 2.0:
                status[g, f] = 1 if count < 1.0 else 2
                effect[g, f] = np.nan if count < 1.0 else value
                se[g, f] = np.nan
                t[g, f] = np.nan
                df[g, f] = np.nan
            elif spread == 0.0:
                status[g, f] = 3 if value == 0.0 else 4
                t[g, f] = 0.0 if value == 0.0 else np.copysign(np.inf, value)
