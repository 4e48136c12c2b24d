"""An analysis that breaks one clause fails the test of that clause and no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from codi_engine.core.plugin import Analysis, AnalysisResult, NoOptions
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.work import Work
from codi_engine.testing import AnalysisSuite
from codi_engine.testing.runs import shared_run
from tests.support.clauses import failures, suite

COUNT = iter(range(10**9))


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


class Bars(Counts):
    """Draws its table."""

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        figure, axes = plt.subplots(figsize=(2, 2))
        axes.bar(tables["counts"]["condition"].astype(str), tables["counts"]["cells"])
        return {"bars": figure}


class Remembers(Bars):
    """Draws what no table holds."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        self.height = len(runs[0].cells)
        return super().analyze(runs, work)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        figures = super().draw(tables, about)
        figures["bars"].axes[0].set_ylim(0, getattr(self, "height", 1))
        return figures


class Names(Bars):
    """Gives another figure when it is drawn again."""

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        return {f"bars_{next(COUNT)}": next(iter(super().draw(tables, about).values()))}


class Deep(Counts):
    """A column of dictionaries, which are read back with each other's keys."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        table = pd.DataFrame({"n": [{"a": 1}, {"b": 2}]})
        return AnalysisResult({"counts": table}, {}, "x")


class NoTable(Counts):
    """Nothing but a figure's name."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        return AnalysisResult({}, {}, "x")


class Verbose(Counts):
    """A refusal that fills a screen."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        if "layer" not in runs[0].axes:
            raise KeyError("layer")
        return super().analyze(runs, work)


@dataclass(frozen=True)
class Part:
    """A number of the sum."""

    key: str
    bytes: int = 8


class Summed(Counts):
    """A sum of streamed parts."""

    name = "summed"

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        cells = len(runs[0].cells)
        parts = [Part(str(n)) for n in range(4)]
        streamed = work.stream("sum", parts, lambda part, _: int(part.key), lambda _, n: {"n": np.array([n * cells])})
        return AnalysisResult({"sum": pd.DataFrame({"sum": [self.total([int(p["n"][0]) for p in streamed], work)]})}, {}, "a sum")

    def total(self, found: list[int], work: Work) -> int:
        return sum(found)


class Twice(Summed):
    """Adds to what an interrupted analysis left."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        self.left = 0 if work.folder is None else len(list(work.folder.glob("*.npz")))
        return super().analyze(runs, work)

    def total(self, found: list[int], work: Work) -> int:
        return sum(found) + self.left


class Swallows(Summed):
    """Goes on with what it has when a part fails."""

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        try:
            return super().analyze(runs, work)
        except Exception:
            return AnalysisResult({"sum": pd.DataFrame({"sum": [0]})}, {}, "a sum")


DRAW = "its_figures_can_be_drawn_from_stored_tables_alone"
INTERRUPTED = "interrupted_and_resumed_it_gives_the_same"
#: class → what the clause meant for it says, and the clauses that fail
WRONG: dict[type[Counts], tuple[str, set[str]]] = {
    Forgetful: ("memory", {"memory_and_threads_change_nothing"}),
    Drifting: ("same tables", {"it_is_deterministic", "memory_and_threads_change_nothing", "the_order_of_cells_does_not_matter"}),
    FirstCell: ("order", {"the_order_of_cells_does_not_matter"}),
    Wide: ("wide", {"its_summary_is_plain_text_that_fits_a_terminal"}),
    Remembers: ("looks different", {DRAW}),
    Names: ("same figures", {DRAW}),
    Deep: ("read back", {"tables_are_read_back_as_they_were"}),
    NoTable: ("at least one table", {"it_returns_tables_figures_and_a_summary"}),
    Verbose: ("KeyError", {"a_run_that_lacks_what_it_needs_is_refused_in_words"}),
    Twice: ("resumed", {INTERRUPTED}),
    Swallows: ("let the error pass", {INTERRUPTED}),
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda c: c.__name__)
def test_a_wrong_analysis_fails_its_clauses_and_no_other(cls: type[Any], tmp_path: Path) -> None:
    words, clauses = WRONG[cls]
    fixtures = {"runs": lambda _: [shared_run()], "bare": lambda _: shared_run(**AnalysisSuite.BARE)}
    failed = failures(suite(AnalysisSuite, cls), tmp_path, fixtures)
    assert set(failed) == clauses, failed
    assert any(words in said for said in failed.values()), failed


class TestBars(AnalysisSuite):
    plugin = Bars


class TestSummed(AnalysisSuite):
    plugin = Summed


def test_the_interruption_interrupts(tmp_path: Path) -> None:
    """What streams nothing is skipped with that reason; what streams is interrupted at its first, middle and last part."""
    with pytest.raises(pytest.skip.Exception, match="no partial results"):
        suite(AnalysisSuite, Bars).test_interrupted_and_resumed_it_gives_the_same([shared_run()], {}, tmp_path / "none")
    (tmp_path / "some").mkdir()
    suite(AnalysisSuite, Summed).test_interrupted_and_resumed_it_gives_the_same([shared_run()], {}, tmp_path / "some")
    assert sorted(p.name for p in (tmp_path / "some").iterdir()) == ["1", "2", "4"]


def test_without_pytest_the_import_ends_in_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['pytest'] = None\ntry:\n    import codi_engine.testing\nexcept ModuleNotFoundError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.count("\n") == 1
    assert "pip install pytest hypothesis" in done.stdout
