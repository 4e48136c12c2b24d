"""A family that is counted, not held, gives the q-values of one that is held."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine.kernels.multiple import Family, adjust


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1e-300, 1e-12, 0.01, 0.05, 1.0])), max_size=200),
    st.sampled_from(["bh", "by", "bonferroni"]), st.sampled_from([0.01, 0.05, 0.2]), st.integers(1, 7),
)  # fmt: skip
def test_counted_equals_held(p: Any, method: Any, level: Any, parts: Any) -> None:
    p = np.array(p)
    family = Family(level, method)
    for part in np.array_split(p, parts):
        likely = part[part <= level]
        family.add(likely, more=len(part) - len(likely))
    whole = adjust(p, method)
    kept = p <= family.cutoff()
    q = family.adjust(p[kept])
    assert not (whole[~kept] <= level).any()
    significant = whole[kept] <= level
    np.testing.assert_allclose(q[significant], whole[kept][significant], rtol=1e-12)
    assert ((q <= level * (1 - 1e-12)) <= significant).all()


def test_the_cutoff_keeps_few() -> None:
    p = np.random.default_rng(0).random(1_000_000)
    p[:100] *= 1e-9
    family = Family()
    family.add(p)
    assert (p <= family.cutoff()).sum() <= 110


def test_nothing_and_no_tests() -> None:
    family = Family()
    assert family.cutoff() == -1
    family.add(np.array([np.nan, np.nan]))
    assert family.tests == 0
    family.add(np.array([0.9]))
    assert family.cutoff() == -1
    assert len(family.adjust(np.zeros(0))) == 0


@pytest.mark.parametrize("m", [999_999, 1_000_001])
def test_harmonic_factor(m: Any) -> None:
    family = Family(method="by")
    family.tests = m
    assert family._factor == pytest.approx(np.sum(1.0 / np.arange(1, m + 1)), rel=1e-12)


def test_no_correction() -> None:
    family = Family(0.05, "none")
    family.add(np.array([0.04, 0.2]))
    assert family.cutoff() == 0.05
    np.testing.assert_array_equal(family.adjust(np.array([0.04])), [0.04])
