"""p-values of Student's t against scipy and mpmath-free identities."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from codi_engine.kernels.student import exact_p, p_values


def reference(t: Any, df: Any) -> Any:
    x, y = df / (df + t * t), t * t / (df + t * t)
    return np.where(x < 0.5, special.betainc(df / 2, 0.5, x), special.betaincc(0.5, df / 2, y))


@pytest.mark.parametrize(("low", "high"), [(0.5, 4), (4, 8), (8, 30), (29, 58), (60, 512), (500, 1e5), (1e5, 1e11)])
@pytest.mark.parametrize("scale", [0.01, 1, 3, 8, 30, 1000])
def test_equals_scipy(low: Any, high: Any, scale: Any) -> None:
    rng = np.random.default_rng(0)
    df = np.exp(rng.uniform(np.log(low), np.log(high), 20_000))
    t = rng.standard_normal(df.size) * scale
    p, expected = p_values(t, df), reference(t, df)
    normal = expected > 1e-300
    np.testing.assert_allclose(p[normal], expected[normal], rtol=1e-12)
    assert (p[~normal] < 1e-299).all()


def test_every_piece_boundary() -> None:
    df = np.concatenate([2.0 ** (np.arange(4, 24) / 2) * f for f in (1 - 1e-15, 1, 1 + 1e-15)])
    for t in (1e-9, 0.5, 2.0, 3.999, 4.0, 4.5, 11.0, 13.0):
        np.testing.assert_allclose(p_values(np.full(len(df), t), df), reference(np.full(len(df), t), df), rtol=1e-12)


def test_exact_equals_interpolated() -> None:
    rng = np.random.default_rng(1)
    t, df = rng.standard_t(10, 3000) * 2, rng.uniform(4, 200, 3000)
    one: Any = exact_p
    one_by_one = [one(a, b) for a, b in zip(t, df, strict=True)]
    np.testing.assert_allclose(p_values(t, df), one_by_one, rtol=1e-12)


def test_special_values() -> None:
    t = np.array([0.0, np.nan, np.inf, -np.inf, 1.0, 1.0, 1.0, 1e200])
    df = np.array([5.0, 5.0, 5.0, 5.0, np.inf, np.nan, 0.0, 9.0])
    np.testing.assert_allclose(p_values(t, df), [1, np.nan, 0, 0, 2 * special.ndtr(-1), np.nan, np.nan, 0], rtol=1e-14)
    assert p_values(np.zeros((2, 0)), 3.0).shape == (2, 0)


@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(0.5, 1e6)), min_size=1, max_size=40), st.randoms())
def test_a_value_does_not_depend_on_its_neighbours(pairs: Any, random: Any) -> None:
    t, df = np.array(pairs).T.copy()
    order = np.arange(len(t))
    random.shuffle(order)
    filler = np.full(600, 2.5)
    shuffled = p_values(np.concatenate([filler, t[order]]), np.concatenate([filler + 30, df[order]]))[600:]
    assert p_values(t, df)[order].tobytes() == shuffled.tobytes()


def test_falls_with_t_and_with_df() -> None:
    t = np.linspace(0.01, 11, 4000)
    for df in (4.0, 29.5, 100.0):
        assert (np.diff(p_values(t, df)) < 0).all()
    assert (np.diff(p_values(np.full(500, 3.0), np.linspace(4.001, 400, 500))) < 0).all()
