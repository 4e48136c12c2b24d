"""A metric that breaks one clause fails the test of that clause and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine.core.plugin import Metric, NoOptions, Readings
from codi_engine.testing import MetricSuite
from tests.support.clauses import failures, suite

COUNT = iter(range(10**9))


class Answered(Metric[NoOptions]):
    """1 where there is an answer."""

    name = "answered"
    Options = NoOptions
    needs = frozenset({"generation"})

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"answered": (~np.isnan(read.edited.answer)).astype(np.float64)}


class Ranked(Answered):
    """Depends on its batch."""

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"answered": np.arange(len(read.gold), dtype=np.float64)}


class Greedy(Answered):
    """Reads what it does not declare."""

    needs = frozenset({"first_logits"})


class Misnamed(Answered):
    """Another column than it declares."""

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"other": np.zeros(len(read.gold))}


class Whole(Answered):
    """Integers."""

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"answered": np.zeros(len(read.gold), np.int64)}


class Undefined(Answered):
    """NaN without saying where."""

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"answered": np.full(len(read.gold), np.nan)}


class Moody(Answered):
    """Another value in every call."""

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return {"answered": np.full(len(read.gold), float(next(COUNT)))}


class Writes(Answered):
    """Changes what it reads."""

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        found = super().measure(read)
        read.gold[:] = 0.0
        return found


class Unknown(Answered):
    """Needs what nobody produces."""

    needs = frozenset({"generation", "weather"})


class Known(Answered):
    """Is not what the suite knows of unedited rows."""


#: class → the clauses that it fails, and what the one meant for it says
WRONG: dict[type[Answered], tuple[str, dict[str, Any], set[str]]] = {
    Ranked: ("other rows", {}, {"a_row_does_not_depend_on_the_rows_beside_it", "batches_of_one_give_the_same_cells"}),
    Greedy: ("declare generation", {}, {"it_reads_only_what_it_says_it_needs"}),
    Misnamed: (
        "declared columns", {}, {"it_returns_the_columns_that_it_declares", "a_sweep_stores_what_it_measures", "batches_of_one_give_the_same_cells"},
    ),
    Whole: ("float64", {}, {"every_column_is_one_float64_a_row"}),
    Undefined: ("NaN", {}, {"it_is_a_number_except_where_stated"}),
    Moody: (
        "twice", {}, {"it_is_deterministic", "a_row_does_not_depend_on_the_rows_beside_it", "batches_of_one_give_the_same_cells"},
    ),
    Writes: ("in place", {}, {"it_changes_nothing_that_it_reads"}),
    Unknown: ("nothing that the engine can produce", {}, {"it_is_a_complete_plugin_class", "it_says_what_it_needs_and_where_it_applies"}),
    Known: ("in unedited rows", {"unedited": 7.0}, {"unedited_rows_have_the_known_value"}),
}  # fmt: skip


#: every third one in every run of the tests, all of them by `make slow`
MARKED: list[Any] = [c if number % 3 == 0 else pytest.param(c, marks=pytest.mark.slow) for number, c in enumerate(WRONG)]


@pytest.mark.parametrize("cls", MARKED, ids=lambda c: c.__name__)
def test_a_wrong_metric_fails_its_clauses_and_no_other(cls: type[Answered], tmp_path: Path) -> None:
    words, attributes, clauses = WRONG[cls]
    failed = failures(suite(MetricSuite, cls, **attributes), tmp_path)
    assert set(failed) == clauses, failed
    assert any(words in said for said in failed.values()), failed


class TestAnswered(MetricSuite):
    plugin = Answered
