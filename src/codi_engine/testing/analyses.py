"""What an analysis must be: a function of what its runs hold, whatever memory, threads or interruptions it meets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest

from codi_engine.core.analyzing import write_result
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.results import Run
from codi_engine.core.stored import about
from codi_engine.core.work import Work
from codi_engine.testing.runs import shared_run
from codi_engine.testing.suite import Suite, demand

#: the widest line of a summary
WIDEST = 200


class _Stopped(Exception):
    """The interruption that a test makes."""


class AnalysisSuite(Suite):
    """Conformance of an analysis.

    Attributes
    ----------
    plugin, options: see :class:`Suite`
    experiment: keys of the tiny run's experiment that the analysis needs (``capture``, ``metrics`` …), see :func:`tiny_run`;
        override the fixture ``runs`` for anything else
    least_memory: bytes, the least that it can do with
    """

    kind = "analysis"
    least_memory: ClassVar[int] = 1
    experiment: ClassVar[Mapping[str, Any]] = {}

    @pytest.fixture
    def runs(self) -> Sequence[Run]:
        """Return the runs to analyse: one small finished run of the demo model, made once for all suites that ask for the same."""
        return [shared_run(**self.experiment)]

    def result(self, runs: Sequence[Run], setting: Mapping[str, Any], **work: Any) -> AnalysisResult:
        """Analyse with a fresh instance; figures are closed."""
        result: AnalysisResult = self.build(setting).analyze(runs, Work(**work))
        _close(result)
        return result

    # ------------------------------------------------------------------------------------------- demands

    def test_it_returns_tables_figures_and_a_summary(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        from matplotlib.figure import Figure

        result = self.result(runs, setting)
        for name, table in result.tables.items():
            demand(isinstance(table, pd.DataFrame), f"table '{name}' must be a pandas DataFrame; it is a {type(table).__name__}")
        for name, figure in result.figures.items():
            demand(isinstance(figure, Figure), f"figure '{name}' must be a matplotlib Figure; it is a {type(figure).__name__}")
        for name, text in result.files.items():
            demand(isinstance(text, str | bytes), f"file '{name}' must be text or bytes")
        demand(result.tables, "an analysis must give at least one table: figures are drawn from tables")

    def test_its_summary_is_plain_text_that_fits_a_terminal(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        summary = self.result(runs, setting).summary
        demand(summary.strip(), "the summary must not be empty: it is what the console shows")
        wide = [line for line in summary.splitlines() if len(line) > WIDEST]
        demand(not wide, f"a line of the summary is {len(wide[0]) if wide else 0} characters wide; {WIDEST} fit: {wide[:1]}")
        odd = [c for c in summary if ord(c) < 32 and c != "\n"]
        demand(not odd, f"the summary must be plain text; it holds the control characters {odd[:4]!r}")

    def test_it_is_deterministic(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        _demand_equal(self.result(runs, setting), self.result(runs, setting), "the same run analysed twice must give the same tables and summary")

    def test_memory_and_threads_change_nothing(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        large, small = self.result(runs, setting, memory=4 << 30, threads=2), self.result(runs, setting, memory=self.least_memory, threads=1)
        _demand_equal(large, small, "tables must be the same, bit for bit, with any memory and any number of threads")

    def test_the_order_of_cells_does_not_matter(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        backwards = [_Backwards(run.path) for run in runs]
        found, whole = self.result(backwards, setting), self.result(runs, setting)
        for name, table in whole.tables.items():
            demand(len(table) == len(found.tables[name]), f"table '{name}' must not depend on the order of run.cells: its length does")
            close = _unordered_equal(table, found.tables[name])
            demand(close, f"table '{name}' must not depend on the order of run.cells, beyond rounding: group and join by labels")

    def test_tables_are_read_back_as_they_were(self, runs: Sequence[Run], setting: Mapping[str, Any], tmp_path: Path) -> None:
        result = self.build(setting).analyze(runs, Work())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            written = write_result(tmp_path / "out", result, about(self.build(setting), runs))
        _close(result)
        for name, table in result.tables.items():
            back = pd.read_parquet(written.tables[name])
            demand(list(back.columns) == list(table.columns), f"table '{name}': columns must be read back as they were: {list(table)} became {list(back)}")
            same = len(back) == len(table) and all(_same_column(table[c], back[c]) for c in table)
            demand(same, f"table '{name}' must be read back from Parquet with the same values: use plain columns of one type")

    def test_interrupted_and_resumed_it_gives_the_same(self, runs: Sequence[Run], setting: Mapping[str, Any], tmp_path: Path) -> None:
        whole = self.result(runs, setting)
        for after in (1, 2):
            folder = tmp_path / str(after)
            with pytest.MonkeyPatch.context() as patch:
                _stop_after(patch, after)
                with suppress(_Stopped):
                    self.result(runs, setting, folder=folder, threads=1, memory=self.least_memory)
            again = self.result(runs, setting, folder=folder, threads=1, memory=self.least_memory)
            _demand_equal(whole, again, f"interrupted after {after} partial results and resumed, it must give what it gives uninterrupted")

    def test_its_figures_can_be_drawn_from_stored_tables_alone(self, runs: Sequence[Run], setting: Mapping[str, Any], tmp_path: Path) -> None:
        analysis = self.build(setting)
        result = analysis.analyze(runs, Work())
        written = write_result(tmp_path / "out", result, about(analysis, runs))
        _close(result)
        if not hasattr(self.plugin, "draw"):
            return
        drawn = self.build(setting).draw({name: pd.read_parquet(path) for name, path in written.tables.items()}, about(analysis, runs))
        _close(AnalysisResult({}, drawn, ""))
        demand(set(drawn) == set(result.figures), f"draw() must give the figures of analyze(), {sorted(result.figures)}; it gave {sorted(drawn)}")

    def test_a_run_that_lacks_what_it_needs_is_refused_in_words(self, setting: Mapping[str, Any], bare: Run) -> None:
        try:
            self.result([bare], setting)
        except UserError as error:
            demand(len(str(error).splitlines()) <= 2, f"an error must be one or two lines; it is: {error}")

    @pytest.fixture
    def bare(self) -> Run:
        """Return a run without interventions, captures and metrics but one."""
        return shared_run(intervention=None, capture=None, metrics=["accuracy"], data={"plugin": "demo-problems", "limit": 2}, generate={"max_new_tokens": 2})


class _Backwards(Run):
    """A run whose table of cells stands upside down."""

    @cached_property
    def _coded(self) -> pd.DataFrame:
        return Run(self.path)._coded.iloc[::-1]


def _close(result: AnalysisResult) -> None:
    import matplotlib.pyplot as plt

    for figure in result.figures.values():
        plt.close(figure)


def _stop_after(patch: pytest.MonkeyPatch, parts: int) -> None:
    """Let every stream of partial results end in an interruption after so many."""
    real = Work.stream

    def stream(self: Work, *arguments: Any) -> Iterator[Any]:
        for number, partial in enumerate(real(self, *arguments)):
            if number == parts:
                raise _Stopped
            yield partial

    patch.setattr(Work, "stream", stream)


def _same_column(a: pd.Series, b: pd.Series) -> bool:
    missing = a.isna().to_numpy()
    if (missing != b.isna().to_numpy()).any():
        return False
    first, second = a[~missing].tolist(), b[~missing].tolist()
    return bool(all(x == y or str(x) == str(y) or list(x) == list(y) for x, y in zip(first, second, strict=True)))


def _demand_equal(a: AnalysisResult, b: AnalysisResult, contract: str) -> None:
    __tracebackhide__ = True
    demand(list(a.tables) == list(b.tables), f"{contract}; there are other tables: {list(a.tables)}, {list(b.tables)}")
    for name, table in a.tables.items():
        try:
            pd.testing.assert_frame_equal(table, b.tables[name], check_exact=True)
        except AssertionError as error:
            raise AssertionError(f"{contract}; table '{name}' differs: {str(error).splitlines()[0]}") from None
    demand(a.summary == b.summary, f"{contract}; the summaries differ")


def _unordered_equal(a: pd.DataFrame, b: pd.DataFrame) -> bool:
    """Compare as sets of rows, numbers to six digits."""

    def rows(frame: pd.DataFrame) -> list[str]:
        return sorted(" | ".join(f"{v:.6g}" if isinstance(v, float) else str(v) for v in row) for row in frame.itertuples(index=False))

    return rows(a) == rows(b)
