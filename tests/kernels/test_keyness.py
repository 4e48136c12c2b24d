"""Word statistics against plain formulas and scipy."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codi_engine.kernels.keyness import chi2_p, documents_p, fisher_p, g2, log_odds, log_ratio
from codi_engine.kernels.permutation import difference_p, weights


def test_log_odds_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 50, 300), rng.integers(0, 70, 300)
    prior = rng.random(300) * 5 + 0.01
    ratio, z = log_odds(a, b, a.sum(), b.sum(), prior, prior.sum())
    for w in range(300):
        na, nb, a0 = a.sum(), b.sum(), prior.sum()
        first = (a[w] + prior[w]) / (na + a0 - a[w] - prior[w])
        second = (b[w] + prior[w]) / (nb + a0 - b[w] - prior[w])
        delta = np.log(first) - np.log(second)
        assert ratio[w] == pytest.approx(delta, rel=1e-12)
        assert z[w] == pytest.approx(delta / np.sqrt(1 / (a[w] + prior[w]) + 1 / (b[w] + prior[w])), rel=1e-12)
    some = log_odds(a[:9], b[:9], a.sum(), b.sum(), prior[:9], prior.sum())[1]
    np.testing.assert_array_equal(some, z[:9])


def test_g2_equals_scipy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        a, b, na, nb = int(rng.integers(0, 30)), int(rng.integers(1, 30)), int(rng.integers(100, 900)), int(rng.integers(100, 900))
        want = stats.chi2_contingency([[a, b], [na - a, nb - b]], correction=False, lambda_="log-likelihood")
        got = g2(np.array([a]), np.array([b]), np.array([na]), np.array([nb]))[0]
        assert abs(got) == pytest.approx(want.statistic, rel=1e-9)
        assert np.sign(got) == np.sign(a / na - b / nb)
        assert chi2_p(np.array([got]))[0] == pytest.approx(want.pvalue, rel=1e-9)
    assert g2(np.array([0]), np.array([0]), np.array([10]), np.array([10]))[0] == 0


def test_log_ratio() -> None:
    assert log_ratio(np.array([4]), np.array([0]), np.array([100]), np.array([80]), 50)[0] == pytest.approx(np.log((5 / 150) / (1 / 130)))


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 60), st.integers(0, 60), st.data())
def test_fisher_equals_scipy(n1: int, n2: int, data: Any) -> None:
    a, b = data.draw(st.integers(0, n1)), data.draw(st.integers(0, n2))
    got = fisher_p(np.array([a]), np.array([b]), np.array([n1]), np.array([n2]))[0]
    assert got == pytest.approx(stats.fisher_exact([[a, b], [n1 - a, n2 - b]]).pvalue, rel=1e-9)


def test_fisher_far_tails() -> None:
    got = fisher_p(np.array([900, 2000]), np.array([30, 3]), np.array([1000, 2000]), np.array([1000, 2000]))
    want = [stats.fisher_exact([[900, 30], [100, 970]]).pvalue, stats.fisher_exact([[2000, 3], [0, 1997]]).pvalue]
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_documents_choose_the_exact_test_for_small_counts() -> None:
    a, b = np.array([3, 40, 0]), np.array([0, 60, 0])
    p, exact = documents_p(a, b, np.array([30, 100, 30]), np.array([30, 100, 30]))
    assert exact.tolist() == [True, False, True]
    assert p[0] == pytest.approx(stats.fisher_exact([[3, 0], [27, 30]]).pvalue)
    assert p[1] == pytest.approx(stats.chi2_contingency([[40, 60], [60, 40]], correction=False).pvalue)
    assert p[2] == 1


def naive_permutation(first: np.ndarray, strata: np.ndarray, x: np.ndarray) -> float:
    """Every arrangement within strata, one by one."""
    import itertools

    def stat(labels: np.ndarray) -> float:
        return abs(float(x[labels].mean() - x[~labels].mean()))

    groups = [np.flatnonzero(strata == s) for s in np.unique(strata)]
    found = []
    for chosen in itertools.product(*(itertools.combinations(g, int(first[g].sum())) for g in groups)):
        labels = np.zeros(len(first), bool)
        labels[[i for c in chosen for i in c]] = True
        found.append(stat(labels) >= stat(first) - 1e-9)
    return float(np.mean(found))


def test_exact_permutation() -> None:
    rng = np.random.default_rng(2)
    x = np.where(rng.random((10, 6)) < 0.4, rng.random((10, 6)), 0)
    for strata in (np.zeros(10, int), np.repeat(np.arange(5), 2), np.array([0, 0, 0, 0, 1, 1, 1, 2, 2, 2])):
        first = np.array([True, False] * 5)
        w, complete = weights(first, strata, 9999, 0)
        assert complete
        difference, p = difference_p(w, complete, x)
        np.testing.assert_allclose(difference, x[first].mean(0) - x[~first].mean(0))
        np.testing.assert_allclose(p, [naive_permutation(first, strata, x[:, f]) for f in range(6)])


def test_random_permutation_is_near_the_exact_one_and_keyed() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((40, 5)) + np.r_[np.ones(20), np.zeros(20)][:, None] * np.array([0, 0.3, 0.6, 1, 2])
    first = np.arange(40) < 20
    w, complete = weights(first, np.zeros(40), 4999, 7)
    assert not complete
    p = difference_p(w, complete, x)[1]
    want = stats.permutation_test((x[first], x[~first]), lambda a, b, axis: a.mean(axis) - b.mean(axis), n_resamples=4999, vectorized=True, rng=1).pvalue
    np.testing.assert_allclose(p, want, atol=0.03)
    assert difference_p(weights(first, np.zeros(40), 4999, 7)[0], False, x[:, 2:3])[1] == p[2]
    assert (difference_p(weights(first, np.zeros(40), 4999, 8)[0], False, x)[1] != p).any()
    assert p.min() >= 1 / 5000


def test_strata_keep_their_sizes() -> None:
    first, strata = np.array([1, 0, 0, 1, 1, 0, 1, 0, 0], bool), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    w, _ = weights(first, strata, 50, 0)
    for s in range(3):
        assert ((w[:, strata == s] > 0).sum(1) == first[strata == s].sum()).all()


def test_no_spread_is_no_effect() -> None:
    w, complete = weights(np.arange(12) < 6, np.zeros(12), 99, 0)
    difference, p = difference_p(w, complete, np.full((12, 2), 0.1))
    assert np.allclose(difference, 0, atol=1e-15)
    assert (p == 1).all()
