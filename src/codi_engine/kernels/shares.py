"""Proportions: intervals, and tests that keep to the design (paired examples, or draws within prompts).

References
----------
Wilson 1927 (interval of a proportion); Newcombe 1998, Statistics in Medicine 17:873, method 10 (difference of two) and 17:2635,
method 10 (paired difference); McNemar 1947, exact by the binomial; Fisher 1935; Mehta, Patel & Gray 1985 (exact test of a common
odds ratio over 2×2 tables); Cochran 1954, Mantel & Haenszel 1959; van Elteren 1960 (rank test within strata).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

#: ones of all strata together up to which the conditional distribution is listed; beyond, χ² with one degree of freedom
LISTED = 4000
#: relative difference of probabilities that counts as a tie
_SAME = 1e-7


def wilson(share: np.ndarray, n: np.ndarray, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return Wilson's interval (low, high) of shares of n; NaN where n is 0.

    A share may be a mean of proportions: its variance is at most that of a proportion, so the interval is not too narrow.
    """
    from scipy import special

    z2 = float(special.ndtri(0.5 + confidence / 2)) ** 2
    share, n = np.asarray(share, np.float64), np.asarray(n, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = (share + z2 / (2 * n)) / (1 + z2 / n)
        half = np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
        low = np.where(share <= 0, 0.0, np.maximum(centre - half, 0.0))
        high = np.where(share >= 1, 1.0, np.minimum(centre + half, 1.0))
    none = ~(n > 0)
    return np.where(none, np.nan, low), np.where(none, np.nan, high)


def newcombe(
    a: np.ndarray, n_a: np.ndarray, b: np.ndarray, n_b: np.ndarray, phi: np.ndarray | float = 0.0, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return Newcombe's interval of a − b, shares of n_a and n_b.

    Parameters
    ----------
    phi: correlation of the two where the same units have both (n_a = n_b); 0 for two samples
    """
    low_a, high_a = wilson(a, n_a, confidence)
    low_b, high_b = wilson(b, n_b, confidence)
    below = (a - low_a) ** 2 - 2 * phi * (a - low_a) * (high_b - b) + (high_b - b) ** 2
    above = (high_a - a) ** 2 - 2 * phi * (high_a - a) * (b - low_b) + (b - low_b) ** 2
    return np.maximum(a - b - np.sqrt(np.maximum(below, 0.0)), -1.0), np.minimum(a - b + np.sqrt(np.maximum(above, 0.0)), 1.0)


def paired_phi(both: np.ndarray, first: np.ndarray, second: np.ndarray, neither: np.ndarray) -> np.ndarray:
    """Return Newcombe's φ of paired 2×2 tables (counts); positive ones with his continuity correction, 0 where a margin is empty."""
    e, f, g, h = (np.asarray(v, np.float64) for v in (both, first, second, neither))
    n = e + f + g + h
    product = (e + f) * (g + h) * (e + g) * (f + h)
    top = e * h - f * g
    top = np.where(top > 0, np.maximum(top - n / 2, 0.0), top)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(product > 0, top / np.sqrt(product), 0.0)


def mcnemar(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the exact two-sided p of discordant pairs: ``first`` have only the first, ``second`` only the second; none: p = 1."""
    from scipy import special

    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    n, least = first + second, np.minimum(first, second)
    with np.errstate(invalid="ignore"):
        tail = special.bdtr(least, n.astype(np.int64), 0.5)
    return np.where(n == 0, 1.0, np.minimum(2 * tail, 1.0))


def stratified(ones_a: np.ndarray, n_a: np.ndarray, ones_b: np.ndarray, n_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (p, exact) of tests of no difference between a and b within strata; every argument is tests × strata, counts.

    Conditional on the margins the number of ones in a is a sum of hypergeometric variables; the two-sided p adds up what is no
    more likely than what was found. With one stratum this is Fisher's exact test, with strata of 1 against 1 McNemar's; more
    than ``LISTED`` ones are compared by the Cochran–Mantel–Haenszel χ² (without continuity correction). Nothing to compare: p = 1.
    """
    tables = np.stack([np.asarray(v, np.int64) for v in (ones_a, n_a, ones_b, n_b)], -1)
    if tables.shape[0] == 0:
        return np.ones(0), np.ones(0, bool)
    kept, number = np.unique(tables.reshape(len(tables), -1), axis=0, return_inverse=True)
    found = [_stratified(tuple(map(tuple, row.reshape(-1, 4).tolist()))) for row in kept]
    p, exact = np.array([f[0] for f in found]), np.array([f[1] for f in found])
    return p[number.reshape(-1)], exact[number.reshape(-1)]


@lru_cache(maxsize=65536)
def _stratified(tables: tuple[tuple[int, int, int, int], ...]) -> tuple[float, bool]:
    informative = [t for t in tables if t[1] and t[3] and 0 < t[0] + t[2] < t[1] + t[3]]
    if not informative:
        return 1.0, True
    if sum(x + y for x, _, y, _ in informative) > LISTED:
        return _mantel_haenszel(informative), False
    probability, least = np.ones(1), 0
    for x, n, y, m in informative:
        low, part = _hypergeometric(x + y, n, m)
        probability, least = np.convolve(probability, part), least + low
    seen = probability[sum(t[0] for t in informative) - least]
    return float(min(probability[probability <= seen * (1 + _SAME)].sum(), 1.0)), True


@lru_cache(maxsize=65536)
def _hypergeometric(ones: int, n: int, m: int) -> tuple[int, np.ndarray]:
    """Return the smallest number of ones among n, and the probabilities from there on."""
    from scipy import special

    low, high = max(0, ones - m), min(ones, n)
    k = np.arange(low, high + 1)
    log = special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - k + 1)
    log += special.gammaln(m + 1) - special.gammaln(ones - k + 1) - special.gammaln(m - ones + k + 1)
    part = np.exp(log - log.max())
    return low, part / part.sum()


def _mantel_haenszel(tables: list[tuple[int, int, int, int]]) -> float:
    from scipy import special

    x, n, y, m = np.array(tables, np.float64).T
    total, ones = n + m, x + y
    expected = n * ones / total
    variance = n * m * ones * (total - ones) / (total * total * (total - 1))
    return float(special.chdtrc(1, (x - expected).sum() ** 2 / variance.sum()))


def common_odds_ratio(ones_a: np.ndarray, n_a: np.ndarray, ones_b: np.ndarray, n_b: np.ndarray) -> np.ndarray:
    """Return Mantel and Haenszel's odds ratio over strata (tests × strata); half a count is added to every cell where one is empty.

    Strata without one of the two are left out; a test without strata has NaN.
    """
    x, n, y, m = (np.asarray(v, np.float64) for v in (ones_a, n_a, ones_b, n_b))
    there = (n > 0) & (m > 0)
    sums = [np.where(there, v, 0).sum(-1) for v in (x, n - x, y, m - y)]
    add = 0.5 * (np.minimum.reduce(sums) == 0)[..., None]
    with np.errstate(invalid="ignore", divide="ignore"):
        total = n + m + 4 * add
        top = np.where(there, (x + add) * (m - y + add) / total, 0).sum(-1)
        bottom = np.where(there, (n - x + add) * (y + add) / total, 0).sum(-1)
        return np.where(there.any(-1), top / bottom, np.nan)


def van_elteren(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Return (z, two-sided p) of the rank test of a against b within strata (strata × draws, NaN: none), normal approximation.

    Each stratum's rank sum is weighted by 1 / (draws + 1) and has its variance with ties; one stratum is Mann and Whitney's test
    without continuity correction. No spread: z = 0, p = 1; no stratum with both: NaN.
    """
    from scipy import special, stats

    score = variance = 0.0
    strata = 0
    for first, second in zip(a, b, strict=True):
        x, y = first[~np.isnan(first)], second[~np.isnan(second)]
        if not len(x) or not len(y):
            continue
        strata += 1
        n, total = len(x), len(x) + len(y)
        r = stats.rankdata(np.concatenate([x, y]))
        score += (r[:n].sum() - n * (total + 1) / 2) / (total + 1)
        variance += n * len(y) / (total * (total - 1)) * ((r - (total + 1) / 2) ** 2).sum() / (total + 1) ** 2
    if not strata:
        return float("nan"), float("nan")
    if variance <= 0:
        return 0.0, 1.0
    z = score / np.sqrt(variance)
    return float(z), float(2 * special.ndtr(-abs(z)))
