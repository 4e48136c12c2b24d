"""Intervals and tests of proportions against scipy, enumeration and published tables."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codi_engine.kernels import shares


@pytest.mark.parametrize(("x", "n"), [(0, 7), (3, 7), (7, 7), (81, 263)])
def test_wilson_is_scipys(x: int, n: int) -> None:
    low, high = shares.wilson(np.array([x / n]), np.array([n]))
    expected = stats.binomtest(x, n).proportion_ci(method="wilson")
    assert (low[0], high[0]) == pytest.approx((expected.low, expected.high))


def test_newcombes_published_intervals() -> None:
    """Newcombe 1998: 56/70 − 48/80 and its table's extremes; the paired ones of his example (36, 12, 2, 0)."""
    low, high = shares.newcombe(np.array([56 / 70, 9 / 10, 10 / 10]), np.array([70, 10, 10]), np.array([48 / 80, 3 / 10, 0.0]), np.array([80, 10, 20]))
    np.testing.assert_allclose(low, [0.0524, 0.1705, 0.6791], atol=5e-5)
    np.testing.assert_allclose(high, [0.3339, 0.8090, 1.0], atol=5e-5)
    phi = shares.paired_phi(np.array([36]), np.array([12]), np.array([2]), np.array([0]))
    low, high = shares.newcombe(np.array([48 / 50]), np.array([50]), np.array([38 / 50]), np.array([50]), phi)
    np.testing.assert_allclose((low[0], high[0]), (0.0569, 0.3404), atol=5e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 12), st.integers(0, 12), st.integers(1, 12), st.integers(1, 12))
def test_one_stratum_is_fishers_test(x: int, y: int, n: int, m: int) -> None:
    x, y = min(x, n), min(y, m)
    p, exact = shares.stratified(np.array([[x]]), np.array([[n]]), np.array([[y]]), np.array([[m]]))
    assert exact[0]
    assert p[0] == pytest.approx(stats.fisher_exact([[x, n - x], [y, m - y]])[1], abs=1e-9)


def naive_stratified(tables: list[tuple[int, int, int, int]]) -> float:
    """Every arrangement of the margins, one by one."""
    ways = []
    for x, n, y, m in tables:
        ones = x + y
        ways.append([(k, comb(n, k) * comb(m, ones - k)) for k in range(max(0, ones - m), min(ones, n) + 1)])
    weight: dict[int, int] = {}
    for chosen in product(*ways):
        count = 1
        for _, w in chosen:
            count *= w
        total = sum(k for k, _ in chosen)
        weight[total] = weight.get(total, 0) + count
    seen = weight[sum(t[0] for t in tables)]
    return sum(w for w in weight.values() if w <= seen) / sum(weight.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 5)] * 4), min_size=1, max_size=4))
def test_several_strata_are_every_arrangement(raw: list[tuple[int, int, int, int]]) -> None:
    tables = [(min(x, n), n, min(y, m), m) for x, n, y, m in raw]
    columns = [np.array([list(c)]) for c in zip(*tables, strict=True)]
    p, _ = shares.stratified(*columns)
    assert p[0] == pytest.approx(naive_stratified(tables), rel=1e-6)
    swapped, _ = shares.stratified(columns[2], columns[3], columns[0], columns[1])
    assert swapped[0] == pytest.approx(p[0], rel=1e-6)  # which of the two is first does not matter


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 15), st.integers(0, 15), st.integers(0, 4))
def test_mcnemar_is_the_sign_test_and_strata_of_one(first: int, second: int, same: int) -> None:
    p = shares.mcnemar(np.array([first]), np.array([second]))[0]
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert p == pytest.approx(expected)
    a = np.array([[1] * first + [0] * second + [1] * same], int).reshape(1, -1)
    b = np.array([[0] * first + [1] * second + [1] * same], int).reshape(1, -1)
    if a.size:
        assert shares.stratified(a, np.ones_like(a), b, np.ones_like(b))[0][0] == pytest.approx(p, rel=1e-6)


def test_many_ones_are_compared_by_chi_square() -> None:
    table = [np.array([[3000, 40]]), np.array([[5000, 60]]), np.array([[2900, 30]]), np.array([[5000, 60]])]
    p, exact = shares.stratified(*table)
    assert not exact[0]
    first = stats.contingency.chi2_contingency([[3000, 2000], [2900, 2100]], correction=False)
    alone, _ = shares.stratified(*[t[:, :1] for t in table])
    assert alone[0] == pytest.approx(stats.chi2.sf(first.statistic * (9999 / 10000), 1))
    assert 0 < p[0] < 0.05


def test_common_odds_ratio() -> None:
    got = shares.common_odds_ratio(*[np.array([[v]]) for v in (8, 10, 3, 10)])
    assert got[0] == pytest.approx((8 * 7) / (2 * 3))
    tables = [(8, 10, 3, 10), (5, 9, 2, 12)]
    top, bottom = sum(x * (m - y) / (n + m) for x, n, y, m in tables), sum((n - x) * y / (n + m) for x, n, y, m in tables)
    got = shares.common_odds_ratio(*[np.array([list(c)]) for c in zip(*tables, strict=True)])
    assert got[0] == pytest.approx(top / bottom)
    assert np.isfinite(shares.common_odds_ratio(*[np.array([[v]]) for v in (10, 10, 0, 10)])[0])
    assert np.isnan(shares.common_odds_ratio(*[np.array([[v]]) for v in (0, 0, 1, 10)])[0])


@pytest.mark.parametrize("ties", [False, True])
def test_van_elteren_is_mann_whitney_in_one_stratum(ties: bool) -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=12) + 0.5, draw.normal(size=9)
    if ties:
        a, b = a.round(), b.round()
    _, p = shares.van_elteren(a[None], b[None])
    expected = stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=False).pvalue
    assert p == pytest.approx(expected)


def test_van_elteren_keeps_to_its_strata() -> None:
    draw = np.random.default_rng(1)
    wrong = []
    for _ in range(300):  # strata far apart, sizes unequal: pooling would see a difference
        a = np.stack([np.r_[draw.normal(size=4), [np.nan] * 8], 50 + draw.normal(size=12)])
        b = np.stack([draw.normal(size=12), np.r_[50 + draw.normal(size=4), [np.nan] * 8]])
        wrong.append(shares.van_elteren(a, b)[1] < 0.05)
    assert np.mean(wrong) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert shares.van_elteren(np.ones((2, 3)), np.ones((2, 3))) == (0.0, 1.0)
    assert np.isnan(shares.van_elteren(np.full((1, 3), np.nan), np.ones((1, 3)))[1])
