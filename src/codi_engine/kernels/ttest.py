"""Two-sample and paired t-tests of all pairs of conditions, over the moments of (target, condition, row, feature).

References
----------
Welch 1947; Hedges 1981 (g, exact correction); Hedges & Olkin 1985, ch. 5, eq. 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from codi_engine.kernels.accelerate import jit
from codi_engine.kernels.moments import Moments
from codi_engine.kernels.student import fill_p, p_values, table

Test = Literal["welch", "pooled", "paired"]

#: what ``status`` says: tested; a group without values; too few values; no spread and no difference; no spread but a difference
TESTED, MISSING, TINY, CONSTANT, SEPARATED = range(5)


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
