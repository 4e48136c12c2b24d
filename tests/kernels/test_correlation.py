"""Correlations against numpy and scipy; bits independent of blocks and threads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from codi_engine.kernels.correlation import Products, centred_ranks, correlation_p, critical_r, interval, pairs, panel_rows


def correlated(rows: int, width: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, width)) + rng.standard_normal((rows, 1)) * rng.random(width)


def products(x: np.ndarray, cuts: tuple[int, ...] = (), **keys: object) -> Products:
    out = Products(x.shape[1], **keys)  # type: ignore[arg-type]
    for part in np.split(x, cuts):
        out.add(part)
    return out


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize(("rows", "width"), [(50, 7), (5000, 40), (300, 1100)])
def test_equals_numpy(offset: float, rows: int, width: int) -> None:
    x = correlated(rows, width) + offset
    want = np.corrcoef(x, rowvar=False)
    np.testing.assert_allclose(products(x, dtype=np.float64).matrix(), want, atol=1e-11)
    single = x.astype(np.float32)
    exact = np.corrcoef(single.astype(np.float64), rowvar=False)
    np.testing.assert_allclose(products(single).matrix(), exact, atol=1e-6)


def test_a_huge_offset_in_double_precision() -> None:
    x = correlated(2000, 20)
    np.testing.assert_allclose(products(x + 1e8, dtype=np.float64).matrix(), np.corrcoef(x, rowvar=False), atol=1e-7)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_blocks_and_threads_do_not_matter(threads: int) -> None:
    panel = panel_rows(1200)
    x = correlated(panel + 77, 1200).astype(np.float32)
    whole = products(x).matrix()
    for cuts in ((1, 2, 500), (panel,), tuple(range(0, len(x), 999))):
        assert products(x, cuts, threads=threads).matrix().tobytes() == whole.tobytes()


def test_constant_missing_and_few() -> None:
    x = correlated(30, 5)
    x[:, 1] = 0.1
    x[4, 2] = np.nan
    r = products(x, dtype=np.float64)
    matrix = r.matrix()
    assert np.isnan(matrix[1]).all()
    assert np.isnan(matrix[2]).all()
    assert r.missing.tolist() == [0, 0, 1, 0, 0]
    assert matrix[0, 3] == pytest.approx(np.corrcoef(x[:, 0], x[:, 3])[0, 1])
    assert np.isnan(products(x[:1], dtype=np.float64).matrix()).all()


def naive_pairs(x: np.ndarray, level: float, least: int) -> dict[tuple[int, int], tuple[float, float, int]]:
    out = {}
    for a in range(x.shape[1]):
        for b in range(a):
            both = int(((x[:, a] != 0) & (x[:, b] != 0)).sum())
            if both >= least and np.ptp(x[:, a]) > 0 and np.ptp(x[:, b]) > 0:
                r, p = stats.pearsonr(x[:, a], x[:, b])
                if p <= level:
                    out[a, b] = (r, p, both)
    return out


@pytest.mark.parametrize(("level", "least"), [(1.0, 0), (0.05, 0), (0.05, 9)])
def test_pairs(level: float, least: int) -> None:
    rng = np.random.default_rng(1)
    x = np.where(rng.random((120, 30)) < 0.3, correlated(120, 30) + 1, 0.0)
    x[:, 4] = 0
    found, tested = pairs(products(x, dtype=np.float64, coactive=True), None, level, least)
    want = naive_pairs(x, level, least)
    got = {(int(a), int(b)): (r, p, int(c)) for a, b, r, p, c in zip(found.a, found.b, found.r, found.p, found.coactive, strict=True)}
    assert got.keys() == want.keys()
    for key, (r, p, c) in want.items():
        assert got[key][0] == pytest.approx(r, rel=1e-9, abs=1e-12)
        assert got[key][1] == pytest.approx(p, rel=1e-8)
        assert got[key][2] == c
    assert tested == len(naive_pairs(x, 1.0, 0))


def test_p_and_interval_equal_scipy() -> None:
    x = correlated(40, 2, 3)
    want = stats.pearsonr(x[:, 0], x[:, 1])
    assert correlation_p(np.array([want.statistic]), 40)[0] == pytest.approx(want.pvalue, rel=1e-12)
    low, high = interval(np.array([want.statistic]), 40)
    expected = want.confidence_interval(0.95)
    assert (low[0], high[0]) == (pytest.approx(expected.low), pytest.approx(expected.high))
    assert correlation_p(np.array([1.0, 0.0]), 12).tolist() == [0, 1]
    assert correlation_p(np.array([critical_r(6, 0.05)]), 6)[0] == pytest.approx(0.05, rel=1e-6)
    assert critical_r(6, 0.05) == pytest.approx(0.8114, abs=1e-4)


@settings(deadline=None, max_examples=80)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 4)), elements=st.sampled_from([-2.0, -1.0, 0.0, 0.0, 0.5, 3.0, 1e9])))
def test_ranks(x: np.ndarray) -> None:
    out = np.empty_like(x)
    centred_ranks(x, out)
    np.testing.assert_array_equal(out, stats.rankdata(x, axis=0) - (len(x) + 1) / 2)


def test_spearman_equals_scipy() -> None:
    rng = np.random.default_rng(4)
    x = np.where(rng.random((200, 12)) < 0.4, correlated(200, 12), 0.0)
    ranks = np.empty_like(x)
    centred_ranks(x, ranks)
    np.testing.assert_allclose(products(ranks, dtype=np.float64).matrix(), stats.spearmanr(x).statistic, atol=1e-12)
