"""Rank tests against scipy."""

import itertools

import numpy as np
import pytest
from scipy import stats

from codi_engine.kernels.ranks import mann_whitney, wilcoxon

PAIRS = np.array(list(itertools.combinations(range(3), 2)))


def data(name: str, rows: int = 25, features: int = 90) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, rows, features)) + np.arange(3)[:, None, None] * 0.3
    if name == "codes":
        x = np.where(rng.random(x.shape) < 0.1, np.abs(x), 0.0)
    elif name == "ties":
        x = np.round(x)
    elif name == "NaN":
        x[rng.random(x.shape) < 0.2] = np.nan
    elif name == "apart":
        x[0] += 100
    elif name == "float32":
        x = x.astype(np.float32)
    return x


@pytest.mark.parametrize("name", ["plain", "codes", "ties", "NaN", "apart", "float32"])
@pytest.mark.parametrize("rows", [3, 25, 80])
def test_mann_whitney_equals_scipy(name: str, rows: int) -> None:
    x = data(name, rows)
    effect, z, p = mann_whitney(x, PAIRS)
    for k, (a, b) in enumerate(PAIRS):
        for f in range(x.shape[2]):
            one, two = (v[~np.isnan(v)].astype(float) for v in (x[a, :, f], x[b, :, f]))
            if len(one) == 0 or len(two) == 0:
                assert np.isnan(p[k, f])
                continue
            if np.ptp(np.r_[one, two]) == 0:
                assert (effect[k, f], z[k, f], p[k, f]) == (0, 0, 1)
                continue
            want = stats.mannwhitneyu(one, two, method="asymptotic")
            assert p[k, f] == pytest.approx(want.pvalue, rel=1e-10)
            assert effect[k, f] == pytest.approx(2 * want.statistic / (len(one) * len(two)) - 1, abs=1e-12)


@pytest.mark.parametrize("name", ["plain", "codes", "ties", "NaN", "apart", "float32"])
@pytest.mark.parametrize("rows", [5, 25, 80])
def test_wilcoxon_equals_scipy(name: str, rows: int) -> None:
    x = data(name, rows)
    d = x[0] - x[1]
    effect, z, p = wilcoxon(d)
    for f in range(d.shape[1]):
        v = d[:, f][~np.isnan(d[:, f])].astype(float)
        if not (v != 0).any():
            assert (np.isnan(p[f]) and len(v) == 0) or (effect[f], z[f], p[f]) == (0, 0, 1)
            continue
        plain = len(v) <= 25 and (v != 0).all() and len(np.unique(np.abs(v))) == len(v)
        want = stats.wilcoxon(v, method="exact" if plain else "asymptotic", correction=False)
        assert p[f] == pytest.approx(want.pvalue, rel=1e-10)
        assert np.sign(effect[f]) == np.sign(z[f])


def test_far_tails() -> None:
    x = np.stack([np.arange(1500.0)[:, None], np.arange(1500.0)[:, None] + 600.3])
    p = mann_whitney(x, np.array([[0, 1]]))[2][0, 0]
    assert p == pytest.approx(stats.mannwhitneyu(x[0, :, 0], x[1, :, 0], method="asymptotic").pvalue, rel=1e-9)
    assert 0 < p < 1e-60


def test_stated_results() -> None:
    x = np.zeros((2, 4, 3))
    x[0, :, 1] = np.nan
    x[0, :, 2] = [1, 2, 3, 4]
    effect, z, p = mann_whitney(x, np.array([[0, 1]]))
    np.testing.assert_array_equal(p[0, :2], [1, np.nan])
    assert effect[0, 2] == 1
    assert np.isnan(z[0, 1])
    nothing = wilcoxon(np.array([[0.0, np.nan], [0.0, np.nan]]))
    np.testing.assert_array_equal(nothing[2], [1, np.nan])
