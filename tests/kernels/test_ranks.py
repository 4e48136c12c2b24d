from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codi_engine.kernels import rankcounts as kernel
from codi_engine.kernels.ranks import EMPTY, EXACT, OK, TIED, RankSum, mann_whitney, mann_whitney_pairs, mann_whitney_sparse, wilcoxon

KINDS = ["plain", "ties", "codes", "signed codes"]


def _data(kind: str, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "plain":
        return rng.standard_normal(shape)
    if kind == "ties":
        return rng.integers(-3, 4, shape).astype(float)
    size = rng.integers(1, 9, shape) if kind == "codes" else rng.standard_normal(shape)
    return np.where(rng.random(shape) < 0.3, size, 0.0)


def _sparse(cube: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ptr, index, value = [0], [], []
    for group in cube:
        for row in group:
            at = np.flatnonzero(row)
            index.append(at)
            value.append(row[at])
        ptr.append(ptr[-1] + int(np.count_nonzero(group)))
    return np.array(ptr), np.concatenate(index), np.concatenate(value)


def _check(found: RankSum, a: np.ndarray, b: np.ndarray) -> None:
    """Compare with scipy, one feature at a time."""
    for f in range(a.shape[1]):
        x, y = a[~np.isnan(a[:, f]), f], b[~np.isnan(b[:, f]), f]
        assert (found.n_a[f], found.n_b[f]) == (len(x), len(y))
        if not len(x) or not len(y):
            assert found.status[f] == EMPTY
            assert np.isnan([found.u[f], found.z[f], found.p[f], found.effect[f]]).all()
            continue
        assert found.u[f] == np.sum(x[:, None] > y) + 0.5 * np.sum(x[:, None] == y)
        np.testing.assert_allclose(found.effect[f], 2 * found.u[f] / (len(x) * len(y)) - 1, atol=1e-15)
        if len(np.unique(np.concatenate([x, y]))) == 1:
            assert (found.status[f], found.p[f], found.z[f]) == (TIED, 1.0, 0.0)
            continue
        assert found.status[f] == OK
        np.testing.assert_allclose(found.p[f], stats.mannwhitneyu(x, y, method="asymptotic").pvalue, rtol=1e-10)
        assert np.sign(found.z[f]) in (0, np.sign(found.effect[f]))
        np.testing.assert_allclose(min(1.0, 2 * stats.norm.sf(abs(found.z[f]))), found.p[f], rtol=1e-10)


class TestMannWhitney:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("rows", [(30, 30), (1, 5), (64, 9), (65, 20), (150, 130), (1, 1)])
    def test_equals_scipy(self, kind: str, rows: tuple[int, int]) -> None:
        a, b = _data(kind, (rows[0], 20)), _data(kind, (rows[1], 20), 1)
        a[:, 0] = b[:, 0] = 2.0
        a[:, 1] += 3
        a[0, 2] = np.nan
        b[:, 3] = np.nan
        with np.errstate(all="ignore"):
            _check(mann_whitney(a, b), a, b)

    def test_far_tails(self) -> None:
        a, b = _data("plain", (2000, 2)) + 20, _data("plain", (1500, 2), 1)
        found = mann_whitney(a, b)
        expected = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
        np.testing.assert_allclose(found.p, expected, rtol=1e-10, atol=0)
        small = mann_whitney(a[:300], b[:300])
        assert 0 < small.p[0] < 1e-90
        np.testing.assert_allclose(small.p, stats.mannwhitneyu(a[:300], b[:300], method="asymptotic").pvalue, rtol=1e-10, atol=0)

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)])
    @pytest.mark.parametrize("rows", [12, 80])
    def test_pairs_and_sparse_equal_one_by_one(self, kind: str, dtype: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
        cube = _data(kind, (4, rows, 40)).astype(dtype)
        cube[1, :, 3] = 0
        cube[2, :, 3] = 0
        cube[0, 2, 5] = np.nan
        pairs = np.array(list(combinations(range(4), 2)))
        whole = mann_whitney_pairs(cube, pairs)
        monkeypatch.setattr(kernel, "BLOCK", 7)
        for found in (mann_whitney_pairs(cube, pairs), mann_whitney_sparse(*_sparse(cube), rows, 40, pairs)):
            for k, (i, j) in enumerate(pairs):
                for one, many, all_of in zip(mann_whitney(cube[i], cube[j]), found, whole, strict=True):
                    assert np.array_equal(one, many[k], equal_nan=True)
                    assert np.array_equal(all_of[k], many[k], equal_nan=True)

    def test_sparse_entries_in_any_order_with_zeros_and_groups_of_any_size(self) -> None:
        a, b = np.array([[0.0, 2], [-1, 0], [5, 0]]), np.array([[0.0, 0], [-2, 0]])
        index, value = np.array([1, 0, 0, 1, 0]), np.array([2.0, 5, -1, 0, -2])
        found = mann_whitney_sparse(np.array([0, 4, 5]), index, value, np.array([3, 2]), 2, np.array([[0, 1]]))
        _check(RankSum(*(x[0] for x in found)), a, b)

    @pytest.mark.parametrize(("n_a", "n_b"), [(3, 5), (8, 30), (1, 1), (12, 8)])
    def test_exact(self, n_a: int, n_b: int) -> None:
        a, b = _data("plain", (n_a, 9)), _data("plain", (n_b, 9), 1)
        found = mann_whitney(a, b, exact=True)
        np.testing.assert_allclose(found.p, stats.mannwhitneyu(a, b, method="exact").pvalue, rtol=1e-12)
        assert (found.status == EXACT).all()
        a[0] = b[0]
        assert (mann_whitney(a, b, exact=True).status != EXACT).all()

    def test_infinite_values_are_ranked(self) -> None:
        a, b = np.array([[np.inf], [1.0]]), np.array([[-np.inf], [np.inf]])
        assert mann_whitney(a, b).u[0] == 2.5

    def test_no_rows(self) -> None:
        assert (mann_whitney(np.zeros((0, 3)), np.zeros((4, 3))).status == EMPTY).all()

    def test_refuses(self) -> None:
        with pytest.raises(ValueError, match="rows, features"):
            mann_whitney(np.zeros((2, 3)), np.zeros((2, 4)))
        with pytest.raises(ValueError, match="groups 0 to 1"):
            mann_whitney_pairs(np.zeros((2, 3, 4)), np.array([[0, 2]]))
        for ptr, index in (([0, 2], [0]), ([0, 1], [3]), ([0, 3], [0, 0, 0])):
            with pytest.raises(ValueError, match=r"ptr|feature"):
                mann_whitney_sparse(np.array(ptr), np.array(index), np.ones(len(index)), 2, 3, np.array([[0, 0]]))

    @settings(max_examples=60, deadline=None)
    @given(st.integers(0, 10**6), st.integers(0, 9), st.integers(0, 9), st.sampled_from(KINDS), st.floats(0, 0.9))
    def test_any(self, seed: int, n_a: int, n_b: int, kind: str, missing: float) -> None:
        x = _data(kind, (n_a + n_b, 4), seed)
        x[np.random.default_rng(seed).random(x.shape) < missing] = np.nan
        with np.errstate(all="ignore"):
            _check(mann_whitney(x[:n_a], x[n_a:]), x[:n_a], x[n_a:])


class TestWilcoxon:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("rows", [2, 9, 40, 90, 300])
    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_equals_scipy(self, kind: str, rows: int, dtype: Any) -> None:
        d = _data(kind, (rows, 12)).astype(dtype)
        d[0, 1] = np.nan
        d[:, 2] = abs(d[:, 2]) + 1
        found = wilcoxon(d)
        for f in range(12):
            x = d[~np.isnan(d[:, f]), f].astype(float)
            held = x[x != 0]
            assert (found.n[f], found.zeros[f]) == (len(held), len(x) - len(held))
            if not len(held):
                assert (found.status[f], found.p[f], found.effect[f]) == (TIED, 1.0, 0.0)
                continue
            untied = len(np.unique(abs(x))) == len(x) == len(held) <= 25
            assert found.status[f] == (EXACT if untied else OK)
            reference = stats.wilcoxon(x, method="exact" if untied else "asymptotic")
            np.testing.assert_allclose(found.p[f], reference.pvalue, rtol=1e-10)
            plus = stats.rankdata(abs(held))[held > 0].sum()
            assert found.w[f] == plus
            np.testing.assert_allclose(found.effect[f], 2 * plus / (len(held) * (len(held) + 1) / 2) - 1, atol=1e-14)
            if not untied:
                np.testing.assert_allclose(abs(found.z[f]), abs(reference.zstatistic), rtol=1e-10)

    def test_nothing_and_zeros(self) -> None:
        found = wilcoxon(np.array([[np.nan, 0.0, 1.0], [np.nan, 0.0, np.nan]]))
        assert found.status.tolist() == [EMPTY, TIED, EXACT]
        assert np.isnan(found.p[0])
        assert found.p[1:].tolist() == [1.0, 1.0]
        assert (wilcoxon(np.zeros((0, 2))).status == EMPTY).all()
        with pytest.raises(ValueError, match="rows, features"):
            wilcoxon(np.zeros(3))
