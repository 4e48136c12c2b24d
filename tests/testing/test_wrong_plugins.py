"""A plugin that breaks one clause fails the test of that clause, and a sound one passes them all."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codi_engine.core.plugin import Analysis, AnalysisResult, Intervention, Metric, NoOptions, Readings, Rows
from codi_engine.core.results import Run
from codi_engine.core.work import Work
from codi_engine.testing import AnalysisSuite, InterventionSuite, MetricSuite
from codi_engine.testing.runs import shared_run

COUNT = iter(range(10**6))


class Halve(Intervention[NoOptions]):
    """Half of every value."""

    name = "halve"
    Options = NoOptions

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values * 0.5


class InPlace(Halve):
    """Changes its input."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values.mul_(0.5)


class Neighbours(Halve):
    """Takes the batch's mean."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values - rows.values.mean(0, keepdim=True)


class Narrow(Halve):
    """Returns another width."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values[:, 1:]


class Moody(Halve):
    """Another value in every call."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values.add(1e-3 * next(COUNT))


class Secret(Halve):
    """Takes draws without saying so."""

    def apply(self, rows: Rows) -> torch.Tensor:
        draws: torch.Tensor = rows.draws()
        return rows.values + draws


class Divides(Halve):
    """NaN for a zero vector."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values / (rows.values * rows.values).sum(-1, keepdim=True)


class Upcasts(Halve):
    """Another precision."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values.float() * 0.5


class NoIdentity(Halve):
    """Says that it is an identity."""

    def identity(self) -> bool:
        return True


class Undeclared(Halve):
    """Takes a scale that it does not declare."""

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.scale is not None
        return rows.values * rows.scale[:, None]


class NotNeutral(Halve):
    """Its neutral form is none."""

    def neutral(self) -> NotNeutral:
        return self


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


class Counts(Analysis[NoOptions]):
    """Cells per condition."""

    name = "counts"
    Options = NoOptions

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        table = runs[0].cells.groupby("condition").size().rename("cells").reset_index()
        return AnalysisResult({"counts": table}, {}, f"{len(table)} conditions")


class Forgetful(Counts):
    """Depends on memory."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        return AnalysisResult({"counts": pd.DataFrame({"pieces": [work.piece]})}, {}, "x")


class Drifting(Counts):
    """Another table in every call."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        return AnalysisResult({"counts": pd.DataFrame({"n": [next(COUNT)]})}, {}, "x")


class FirstCell(Counts):
    """Depends on the order of cells."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        return AnalysisResult({"counts": pd.DataFrame({"first": [str(runs[0].cells["example"].iloc[0])]})}, {}, "x")


class Wide(Counts):
    """A summary that no terminal shows."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        return AnalysisResult({"counts": pd.DataFrame({"n": [1]})}, {}, "x" * 500)


BITS = "test_many_rows_at_once_are_the_rows_one_by_one"
NEIGHBOURS = "test_a_row_does_not_depend_on_its_neighbours_or_its_place"
INTERVENTIONS = [
    (InPlace, "test_it_never_changes_its_input_in_place", "in place"),
    (Neighbours, BITS, "alone"),
    (Neighbours, NEIGHBOURS, "any batch"),
    (Narrow, "test_it_gives_one_new_value_per_value", "keep shape"),
    (Moody, "test_the_same_rows_twice_give_the_same_values", "deterministic"),
    (Secret, "test_random_is_declared_iff_draws_are_used", "`random` is False"),
    (Divides, "test_a_zero_vector_gives_no_nan", "zero"),
    (Upcasts, "test_it_keeps_lower_precision", "bfloat16"),
    (NoIdentity, "test_options_that_say_identity_leave_every_value", "bit for bit"),
    (Undeclared, "test_it_takes_only_the_source_and_scale_that_it_declares", "what it declares"),
    (NotNeutral, "test_its_neutral_options_leave_every_value", "bit for bit"),
    (NotNeutral, "test_a_tiny_sweep_runs_and_the_gate_lets_it_pass", "neutral|identity|unchanged|changes"),
]
METRICS = [
    (Ranked, "test_a_row_does_not_depend_on_the_rows_beside_it", "other rows"),
    (Greedy, "test_it_reads_only_what_it_says_it_needs", "generation"),
    (Misnamed, "test_it_returns_the_columns_that_it_declares", "declared columns"),
    (Whole, "test_every_column_is_one_float64_a_row", "float64"),
    (Undefined, "test_it_is_a_number_except_where_stated", "NaN"),
]
ANALYSES = [
    (Forgetful, "test_memory_and_threads_change_nothing", "memory"),
    (Drifting, "test_it_is_deterministic", "same tables"),
    (FirstCell, "test_the_order_of_cells_does_not_matter", "order"),
    (Wide, "test_its_summary_is_plain_text_that_fits_a_terminal", "wide"),
]


def suite(base: type[Any], cls: type[Any]) -> Any:
    """Return an instance of a suite for a class."""
    return type(f"Of{cls.__name__}", (base,), {"plugin": cls})()


@pytest.mark.parametrize(("cls", "clause", "words"), INTERVENTIONS)
def test_a_wrong_intervention_fails_its_clause(cls: type[Any], clause: str, words: str) -> None:
    with pytest.raises(Exception, match=words):
        getattr(suite(InterventionSuite, cls), clause)({})


@pytest.mark.parametrize(("cls", "clause", "words"), METRICS)
def test_a_wrong_metric_fails_its_clause(cls: type[Any], clause: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        getattr(suite(MetricSuite, cls), clause)({})


@pytest.mark.parametrize(("cls", "clause", "words"), ANALYSES)
def test_a_wrong_analysis_fails_its_clause(cls: type[Any], clause: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        getattr(suite(AnalysisSuite, cls), clause)([shared_run()], {})


class TestHalve(InterventionSuite):
    plugin = Halve


class TestAnswered(MetricSuite):
    plugin = Answered


class TestCounts(AnalysisSuite):
    plugin = Counts


def test_without_pytest_the_import_ends_in_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pytest'] = None\ntry:\n    import codi_engine.testing\nexcept ModuleNotFoundError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("\n") == 1
    assert "pip install pytest hypothesis" in done.stdout
