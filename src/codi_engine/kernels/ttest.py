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
from codi_engine.kernels.student import p_values

Test = Literal["welch", "pooled", "paired"]

#: what ``status`` says: tested; a group without values; too few values; no spread and no difference; no spread but a difference
TESTED, MISSING, TINY, CONSTANT, SEPARATED = range(5)
#: features worked on together, so that their sums stay in the fastest cache
STRIP = 512


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
        nonzero = Moments.empty(*self.n.shape)
        missing = np.zeros_like(self.n)
        add_entries(ptr, index, value, nonzero.n, nonzero.shift, nonzero.s, nonzero.q, missing)
        merged = _with_zeros(nonzero, rows[:, None] - missing)
        if self.n.any():
            merged = merge(self, merged)
        self.n, self.shift, self.s, self.q = merged.n, merged.shift, merged.s, merged.q

    @property
    def mean(self) -> np.ndarray:
        """Return means, NaN without values."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.shift + self.s / self.n

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


def _with_zeros(some: Moments, rows: np.ndarray) -> Moments:
    """Add implicit zeros to moments of non-zero values: sums of positive terms only, about the overall mean."""
    with np.errstate(invalid="ignore", divide="ignore"):
        zeros = rows - some.n
        mean = np.where(some.n > 0, some.shift + some.s / some.n, 0.0)
        spread = np.where(some.n > 0, np.maximum(some.q - some.s * some.s / some.n, 0.0), 0.0)
        spread = np.where(zeros > 0, spread + mean * mean * some.n * zeros / rows, spread)
        centre = np.where(zeros > 0, mean * some.n / rows, mean)
    centre = np.where(rows > 0, centre, 0.0)
    return Moments(np.broadcast_to(rows, some.n.shape).astype(np.float64), centre, np.zeros_like(centre), np.where(rows > 0, spread, 0.0))


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
    n_a, n_b: values in each group (equal in paired tests)
    sd: what ``hedges_g`` divides by: the pooled standard deviation, or that of the differences
    """

    effect: np.ndarray
    se: np.ndarray
    t: np.ndarray
    df: np.ndarray
    p: np.ndarray
    status: np.ndarray
    n_a: np.ndarray
    n_b: np.ndarray
    sd: np.ndarray


def two_sample(moments: Moments, pairs: np.ndarray, test: Literal["welch", "pooled"] = "welch", beyond: float = 0.0) -> Tested:
    """Test pairs of groups.

    Parameters
    ----------
    moments: groups × features
    pairs: pairs × 2, groups whose means are compared (first − second)
    beyond: p is computed only where |t| reaches this (elsewhere 1); 0 computes every one
    """
    pairs = np.ascontiguousarray(pairs, np.int64).reshape(-1, 2)
    shape = (len(pairs), moments.n.shape[1])
    out = _blank(shape)
    compare(moments.n, moments.shift, moments.s, moments.q, pairs, test == "welch", out.effect, out.se, out.t, out.df, out.sd, out.status)
    out.n_a, out.n_b = moments.n[pairs[:, 0]], moments.n[pairs[:, 1]]
    _fill(out, beyond)
    apart = out.status == SEPARATED
    if apart.any():
        out.p[apart] = _rarest(out.n_a[apart], out.n_b[apart])
    return out


def paired(differences: Moments, beyond: float = 0.0) -> Tested:
    """Test paired differences (moments of first − second, pairs × features) against no effect."""
    out = _blank(differences.n.shape)
    one_sample(differences.n, differences.shift, differences.s, differences.q, out.effect, out.se, out.t, out.df, out.sd, out.status)
    out.n_a = out.n_b = differences.n
    _fill(out, beyond)
    apart = out.status == SEPARATED
    out.p[apart] = 2.0 ** (1.0 - out.n_a[apart])
    return out


def add_differences(x: np.ndarray, pairs: np.ndarray, moments: Moments) -> None:
    """Add to pairs × features moments the differences between conditions of the same row (x: conditions × rows × features)."""
    add_pairs(x, np.ascontiguousarray(pairs, np.int64).reshape(-1, 2), moments.n, moments.shift, moments.s, moments.q)


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


def _blank(shape: tuple[int, ...]) -> Tested:
    values = (np.empty(shape) for _ in range(5))
    effect, se, t, df, sd = values
    none = np.empty(0)
    return Tested(effect, se, t, df, none, np.empty(shape, np.uint8), none, none, sd)


def _fill(out: Tested, beyond: float) -> None:
    """Fill in p-values: of all, or of those whose statistic can matter."""
    if beyond <= 0.0:
        out.p = p_values(out.t, out.df)
    else:
        out.p = np.where(np.isnan(out.t), np.nan, 1.0)
        matter = np.abs(out.t) >= beyond
        out.p[matter] = p_values(out.t[matter], out.df[matter])
    out.p[out.status == CONSTANT] = 1.0


def _rarest(n_a: np.ndarray, n_b: np.ndarray) -> np.ndarray:
    """Return the two-sided permutation p of two groups that do not mix: 2 / C(n_a + n_b, n_a), at most 1."""
    from scipy import special

    ways = special.gammaln(n_a + n_b + 1) - special.gammaln(n_a + 1) - special.gammaln(n_b + 1)
    p: np.ndarray = np.minimum(2.0 * np.exp(-ways), 1.0)
    return p


# --------------------------------------------------------------------------------------------------- loops


@jit
def add_rows(x, n, shift, s, q):  # type: ignore[no-untyped-def]
    """Add groups × rows × features to shifted sums, groups × features."""
    groups, rows, features = x.shape
    for g in range(groups):
        for f0 in range(0, features, 512):
            f1 = min(f0 + 512, features)
            ng, cg, sg, qg = n[g, f0:f1], shift[g, f0:f1], s[g, f0:f1], q[g, f0:f1]
            for i in range(rows):
                row = x[g, i, f0:f1]
                first = 0
                bad = 0
                for j in range(row.size):
                    first += ng[j] == 0.0
                    bad += row[j] != row[j]
                if first == 0 and bad == 0:
                    for j in range(row.size):
                        d = np.float64(row[j]) - cg[j]
                        sg[j] += d
                        qg[j] += d * d
                        ng[j] += 1.0
                else:
                    for j in range(row.size):
                        if row[j] == row[j]:
                            if ng[j] == 0.0:
                                cg[j] = row[j]
                            d = np.float64(row[j]) - cg[j]
                            sg[j] += d
                            qg[j] += d * d
                            ng[j] += 1.0


@jit
def add_pairs(x, pairs, n, shift, s, q):  # type: ignore[no-untyped-def]
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
def add_entries(ptr, index, value, n, shift, s, q, missing):  # type: ignore[no-untyped-def]
    """Add the entries of sparse groups to shifted sums of non-zero values; NaN entries count in ``missing``."""
    for g in range(ptr.size - 1):
        ng, cg, sg, qg = n[g], shift[g], s[g], q[g]
        for k in range(ptr[g], ptr[g + 1]):
            f = index[k]
            v = np.float64(value[k])
            if v != v:
                missing[g, f] += 1.0
            elif v != 0.0:
                if ng[f] == 0.0:
                    cg[f] = v
                d = v - cg[f]
                sg[f] += d
                qg[f] += d * d
                ng[f] += 1.0


@jit
def compare(n, shift, s, q, pairs, welch, effect, se, t, df, sd, status):  # type: ignore[no-untyped-def]
    """Write effect, standard error, t, degrees of freedom and status of pairs × features."""
    groups, features = n.shape
    spread = np.empty((groups, features))
    offset = np.empty((groups, features))
    for g in range(groups):
        for f in range(features):
            m = s[g, f] / n[g, f] if n[g, f] > 0.0 else 0.0
            offset[g, f] = m
            spread[g, f] = max(q[g, f] - s[g, f] * m, 0.0)
    for k in range(pairs.shape[0]):
        a, b = pairs[k, 0], pairs[k, 1]
        na, nb, ca, cb = n[a], n[b], shift[a], shift[b]
        oa, ob, qa, qb = offset[a], offset[b], spread[a], spread[b]
        for f in range(features):
            d = (ca[f] - cb[f]) + (oa[f] - ob[f])
            pooled = (qa[f] + qb[f]) / (na[f] + nb[f] - 2.0)
            va = qa[f] / ((na[f] - 1.0) * na[f])
            vb = qb[f] / ((nb[f] - 1.0) * nb[f])
            v = va + vb if welch else pooled * (1.0 / na[f] + 1.0 / nb[f])
            free = v * v / (va * va / (na[f] - 1.0) + vb * vb / (nb[f] - 1.0)) if welch else na[f] + nb[f] - 2.0
            error = np.sqrt(v)
            effect[k, f] = d
            se[k, f] = error
            t[k, f] = d / error
            df[k, f] = free
            sd[k, f] = np.sqrt(pooled)
        for f in range(features):
            code = 0
            if na[f] < 1.0 or nb[f] < 1.0:
                code = 1
                effect[k, f] = np.nan
            elif (na[f] < 2.0 or nb[f] < 2.0) if welch else na[f] + nb[f] < 3.0:
                code = 2
            elif qa[f] == 0.0 and qb[f] == 0.0:
                code = 3 if effect[k, f] == 0.0 else 4
                df[k, f] = na[f] + nb[f] - 2.0
                t[k, f] = 0.0 if code == 3 else np.copysign(np.inf, effect[k, f])
            if code == 1 or code == 2:
                se[k, f] = np.nan
                t[k, f] = np.nan
                df[k, f] = np.nan
                sd[k, f] = np.nan
            status[k, f] = code


@jit
def one_sample(n, shift, s, q, effect, se, t, df, sd, status):  # type: ignore[no-untyped-def]
    """Write the one-sample test of every mean against 0."""
    groups, features = n.shape
    for g in range(groups):
        for f in range(features):
            count = n[g, f]
            mean = s[g, f] / count if count > 0.0 else 0.0
            spread = max(q[g, f] - s[g, f] * mean, 0.0)
            value = shift[g, f] + mean
            deviation = np.sqrt(spread / (count - 1.0))
            error = deviation / np.sqrt(count)
            code = 0
            if count < 1.0:
                code = 1
                value = np.nan
            elif count < 2.0:
                code = 2
            elif spread == 0.0:
                code = 3 if value == 0.0 else 4
            effect[g, f] = value
            se[g, f] = np.nan if code == 1 or code == 2 else error
            df[g, f] = np.nan if code == 1 or code == 2 else count - 1.0
            sd[g, f] = np.nan if code == 1 or code == 2 else deviation
            t[g, f] = value / error
            if code == 1 or code == 2:
                t[g, f] = np.nan
            elif code == 3:
                t[g, f] = 0.0
            elif code == 4:
                t[g, f] = np.copysign(np.inf, value)
            status[g, f] = code
