"""Intervals of means, and the test for places that are alike, against naive twins."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from codi_engine.kernels.intervals import mean_interval, wilson
from codi_engine.kernels.permutation import range_p


def test_numbers_have_students_interval() -> None:
    values = np.array([0.3, np.nan, 1.7, 0.4, -0.2])
    known = values[~np.isnan(values)]
    twin = stats.t.interval(0.9, len(known) - 1, known.mean(), stats.sem(known))
    assert mean_interval(values, 0.9) == pytest.approx((known.mean(), *twin))


def test_shares_have_wilsons_interval_and_no_spread_is_no_point() -> None:
    twin = stats.binomtest(5, 5).proportion_ci(method="wilson")
    assert mean_interval(np.ones(5)) == pytest.approx((1.0, twin.low, twin.high))
    assert wilson(0, 5)[0] == 0.0
    assert mean_interval(np.full(4, 0.25)) == (0.25, 0.25, 0.25)


def test_too_few_values_say_so() -> None:
    assert np.isnan(mean_interval(np.array([np.nan]))).all()
    mean, low, high = mean_interval(np.array([0.5]))
    assert mean == 0.5
    assert np.isnan([low, high]).all()


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20))
def test_the_interval_holds_the_mean(values: list[float]) -> None:
    mean, low, high = mean_interval(np.array(values))
    assert low <= mean + 1e-9 <= high + 2e-9


def test_range_p_tends_to_that_of_all_exchanges() -> None:
    values = np.array([[0.1, 0.9, 0.4], [0.2, 0.7, 0.3], [0.5, 0.6, 0.1]])
    observed = np.ptp(values.mean(0))
    ranges = [np.ptp(np.array([row[list(order)] for row, order in zip(values, orders, strict=True)]).mean(0)) for orders in
              itertools.product(itertools.permutations(range(3)), repeat=3)]  # fmt: skip
    exact = np.mean(np.array(ranges) >= observed - 1e-12)
    found, p = range_p(values, 4000, 0)
    assert found == pytest.approx(observed)
    assert p == pytest.approx(exact, abs=0.02)
    assert range_p(values, 200, 0) == range_p(values, 200, 0)


def test_what_no_exchange_changes_is_not_significant() -> None:
    assert range_p(np.ones((4, 3)), 99, 0) == (0.0, 1.0)
    assert range_p(np.array([[0.0, 5.0]]), 99, 0)[1] == 1.0
