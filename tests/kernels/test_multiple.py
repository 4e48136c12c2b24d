from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from codi_engine.kernels.multiple import adjust

FAMILIES = hnp.arrays(np.float64, st.integers(1, 50), elements=st.floats(0, 1))


def naive_bh(p: np.ndarray) -> np.ndarray:
    """min over j with p_j ≥ p_i of m · p_j / rank_j."""
    m = len(p)
    ranks = [int((p <= x).sum()) for x in p]
    return np.array([min(min(m * p[j] / ranks[j] for j in range(m) if p[j] >= p[i]), 1.0) for i in range(m)])


@given(FAMILIES)
def test_bh_equals_its_naive_twin_and_scipy(p: np.ndarray) -> None:
    np.testing.assert_allclose(adjust(p), naive_bh(p), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(adjust(p), stats.false_discovery_control(p), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(adjust(p, "by"), stats.false_discovery_control(p, method="by"), rtol=1e-12, atol=1e-300)


@given(FAMILIES)
def test_corrections_are_ordered(p: np.ndarray) -> None:
    bh, by, bonferroni = (adjust(p, m) for m in ("bh", "by", "bonferroni"))
    assert (bh >= p - 1e-15).all()
    assert (by >= bh - 1e-15).all()
    assert (bonferroni >= bh - 1e-15).all()


def test_missing_tests_are_no_tests() -> None:
    out = adjust(np.array([0.01, np.nan, 0.04]))
    assert out[[0, 2]] == pytest.approx([0.02, 0.04])
    assert np.isnan(out[1])
    assert np.isnan(adjust(np.array([np.nan]))).all()
