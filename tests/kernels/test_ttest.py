"""Tests against scipy, on plain and on adverse data."""

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from codi_engine.kernels.moments import Moments, add_differences, merge, pooled_sd
from codi_engine.kernels.ttest import CONSTANT, MISSING, SEPARATED, TESTED, TINY, hedges_g, paired, two_sample

PAIRS = np.array(list(itertools.combinations(range(3), 2)))


def moments(x: Any) -> Any:
    m = Moments.empty(x.shape[0], x.shape[2])
    m.add(x)
    return m


def exactly(values: Any) -> Any:
    """Return n, mean and variance as fractions: no rounding at all."""
    values = [Fraction(float(v)) for v in values if not np.isnan(v)]
    mean = sum(values) / len(values)
    return len(values), mean, sum((v - mean) ** 2 for v in values) / (len(values) - 1)


def naive(a: Any, b: Any, kind: Any) -> Any:
    """One feature, by the book, in exact arithmetic up to the last square root."""
    (na, ma, va), (nb, mb, vb) = exactly(a), exactly(b)
    if kind == "welch":
        v = va / na + vb / nb
        df = v**2 / ((va / na) ** 2 / (na - 1) + (vb / nb) ** 2 / (nb - 1))
    else:
        df = Fraction(na + nb - 2)
        v = ((na - 1) * va + (nb - 1) * vb) / df * (Fraction(1, na) + Fraction(1, nb))
    t = float(ma - mb) / float(v) ** 0.5
    return t, float(df), 2 * stats.t.sf(abs(t), float(df))


def adverse(name: Any, rng: Any) -> Any:
    """Conditions × rows × features."""
    x = rng.standard_normal((3, 30, 40)) * np.exp(rng.normal(0, 1, 40))
    if name == "offset 1e8":
        x += 1e8
    elif name == "offset 1e8, float32":
        x = (x * 64 + 1e8).astype(np.float32)
    elif name == "float32":
        x = x.astype(np.float32)
    elif name == "NaN":
        x[rng.random(x.shape) < 0.2] = np.nan
        x[:, 0] = np.nan
    elif name == "n = 2":
        x = x[:, :2]
    elif name == "unequal":
        x[0, 3:] = np.nan
        x[1, 17:] = np.nan
    elif name == "zero-inflated":
        x = np.maximum(x - 0.5, 0)
    elif name == "outlier first":
        x[:, 0] *= 1e6
    return x


@pytest.mark.parametrize("kind", ["welch", "pooled"])
@pytest.mark.parametrize("name", ["plain", "float32", "offset 1e8", "offset 1e8, float32", "NaN", "n = 2", "unequal", "zero-inflated", "outlier first"])
def test_two_samples_equal_the_book(kind: Any, name: Any) -> None:
    x = adverse(name, np.random.default_rng(0))
    got = two_sample(moments(x), PAIRS, kind)
    for k, (a, b) in enumerate(PAIRS):
        for f in range(x.shape[2]):
            if got.status[k, f] != TESTED:
                continue
            t, df, p = naive(x[a, :, f], x[b, :, f], kind)
            assert got.t[k, f] == pytest.approx(t, rel=1e-10)
            assert got.df[k, f] == pytest.approx(df, rel=1e-10)
            assert got.p[k, f] == pytest.approx(p, rel=1e-10)
    assert (got.status == TESTED).mean() > 0.8


@pytest.mark.parametrize("kind", ["welch", "pooled"])
def test_equals_scipy(kind: Any) -> None:
    x = np.random.default_rng(1).standard_normal((3, 25, 700))
    got = two_sample(moments(x), PAIRS, kind)
    for k, (a, b) in enumerate(PAIRS):
        want = stats.ttest_ind(x[a], x[b], equal_var=kind == "pooled")
        np.testing.assert_allclose(got.t[k], want.statistic, rtol=1e-10)
        np.testing.assert_allclose(got.p[k], want.pvalue, rtol=1e-10)
        np.testing.assert_allclose(got.effect[k], x[a].mean(0) - x[b].mean(0), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_paired_equals_scipy(offset: Any) -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 20, 600)) + offset + 10 * rng.standard_normal((20, 600))
    x[1, 4, 5] = np.nan
    d = Moments.empty(len(PAIRS), 600)
    add_differences(x, PAIRS, d)
    got = paired(d)
    for k, (a, b) in enumerate(PAIRS):
        want = stats.ttest_rel(x[a], x[b], nan_policy="omit")
        np.testing.assert_allclose(got.t[k], want.statistic, rtol=1e-10)
        np.testing.assert_allclose(got.p[k], want.pvalue, rtol=1e-10)


def test_stated_results() -> None:
    nan = np.nan
    columns = [
        ([1, 1, 1], [1, 1, 1], CONSTANT, 0.0, 1.0),
        ([2, 2, 2], [1, 1, 1], SEPARATED, np.inf, 2 / 20),
        ([0.1] * 3, [0.3] * 3, SEPARATED, -np.inf, 2 / 20),
        ([nan] * 3, [1, 2, 3], MISSING, nan, nan),
        ([1, nan, nan], [1, 2, 3], TINY, nan, nan),
    ]
    x = np.array([[a, b] for a, b, *_ in columns], float).transpose(1, 2, 0)
    got = two_sample(moments(x), np.array([[0, 1]]))
    for f, (_, _, status, t, p) in enumerate(columns):
        assert got.status[0, f] == status
        np.testing.assert_allclose([got.t[0, f], got.p[0, f]], [t, p])
    assert got.effect[0, 4] == 1 - 2
    d = Moments.empty(1, len(columns))
    add_differences(x, np.array([[0, 1]]), d)
    same = paired(d)
    assert same.status[0].tolist() == [CONSTANT, SEPARATED, SEPARATED, MISSING, TINY]
    np.testing.assert_allclose(same.p[0], [1, 0.25, 0.25, nan, nan])


def test_one_constant_group() -> None:
    x = np.array([[[1.0], [1.0], [1.0]], [[1.5], [2.0], [4.0]]])
    got = two_sample(moments(x), np.array([[0, 1]]))
    want = stats.ttest_1samp([1.5, 2, 4], 1.0)
    assert got.df[0, 0] == 2
    assert got.p[0, 0] == pytest.approx(want.pvalue, rel=1e-12)


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float64, (2, 9, 5), elements=st.one_of(st.floats(-1e6, 1e6), st.just(np.nan), st.just(0.0))), st.integers(0, 9))
def test_blocks_of_rows_do_not_matter(x: Any, cut: Any) -> None:
    whole, parts = moments(x), Moments.empty(2, 5)
    parts.add(np.ascontiguousarray(x[:, :cut]))
    parts.add(np.ascontiguousarray(x[:, cut:]))
    for name in ("n", "shift", "s", "q"):
        assert getattr(whole, name).tobytes() == getattr(parts, name).tobytes()


def test_merge() -> None:
    x = np.random.default_rng(3).standard_normal((2, 50, 30)) + 1e4
    x[0, :25, 0] = np.nan
    both = merge(moments(x[:, :20].copy()), moments(x[:, 20:].copy()))
    np.testing.assert_allclose(both.mean, moments(x).mean, rtol=1e-14)
    np.testing.assert_allclose(both.spread, moments(x).spread, rtol=1e-11)


def sparse(x: Any) -> Any:
    """Groups × rows × features to (ptr, index, value, rows), the obvious way."""
    ptr, index, value = [0], [], []
    for group in x:
        for row in group:
            for f in np.flatnonzero(row != 0):
                index.append(f)
                value.append(row[f])
        ptr.append(len(index))
    return np.array(ptr), np.array(index, np.uint16), np.array(value, x.dtype), np.full(len(x), x.shape[1], np.float64)


@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_sparse_equals_dense(density: Any, offset: Any) -> None:
    rng = np.random.default_rng(4)
    x = np.where(rng.random((3, 30, 200)) < density, rng.standard_normal((3, 30, 200)) ** 2 + offset, 0.0)
    if density == 0.5:
        x[0, 3, 7] = np.nan
    codes = Moments.empty(3, 200)
    codes.add_codes(*sparse(x))
    dense = moments(x)
    np.testing.assert_array_equal(codes.n, dense.n)
    np.testing.assert_allclose(codes.mean, dense.mean, rtol=1e-12)
    a, b = two_sample(codes, PAIRS), two_sample(dense, PAIRS)
    np.testing.assert_array_equal(a.status, b.status)
    tested = a.status == TESTED
    np.testing.assert_allclose(a.t[tested], b.t[tested], rtol=1e-9, atol=1e-9)


def test_hedges_g() -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 12, 3)) + 1
    m = moments(x)
    result = two_sample(m, np.array([[0, 1]]))
    zero = np.zeros(3, int)
    sd = pooled_sd(m, zero, zero + 1, np.arange(3))
    g, low, high = hedges_g(result.effect[0], sd, m.n[0], m.n[1], "welch")
    for f in range(3):
        a, b = x[0, :, f], x[1, :, f]
        d = (a.mean() - b.mean()) / np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 2)
        assert g[f] == pytest.approx(d * (1 - 3 / (4 * 22 - 1)), rel=2e-4)
    assert ((low < g) & (g < high)).all()


def test_only_what_matters_is_computed() -> None:
    x = np.random.default_rng(6).standard_normal((3, 30, 500))
    every, some = two_sample(moments(x), PAIRS), two_sample(moments(x), PAIRS, beyond=1.959)
    matter = every.p <= 0.05
    np.testing.assert_array_equal(some.p[matter], every.p[matter])
    assert (some.p[np.abs(every.t) < 1.959] == 1).all()
