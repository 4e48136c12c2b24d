"""What an analysis must be: a function of what its runs hold, whatever memory, threads or interruptions it meets."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.runs.analyzing import write_result
from codi_engine.core.runs.drawing import as_stored, json_safe, style
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.stored import ABOUT, about
from codi_engine.core.runs.work import Work
from codi_engine.testing.runs import shared_run
from codi_engine.testing.suite import Suite, demand

#: the widest line of a summary
WIDEST = 200
#: dots per inch of the figures that are compared
SMALL = 40


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

    _made: ClassVar[dict[Any, AnalysisResult]] = {}
    BARE: ClassVar[Mapping[str, Any]] = {
        "intervention": None, "capture": None, "metrics": ["accuracy"], "data": {"plugin": "demo-problems", "limit": 2}, "generate": {"max_new_tokens": 2},
    }  # fmt: skip

    @pytest.fixture
    def runs(self) -> Sequence[Run]:
        """Return the runs to analyse: one small finished run of the demo model, made once for all suites that ask for the same."""
        return [shared_run(**self.experiment)]

    def result(self, runs: Sequence[Run], setting: Mapping[str, Any], **work: Any) -> AnalysisResult:
        """Analyse with a fresh instance; figures are closed."""
        result: AnalysisResult = self.build(setting).analyze(runs, Work(**work))
        _close(result)
        return result

    def usual(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> AnalysisResult:
        """Return the result with the usual memory and threads, made once; what must not differ is held against it."""
        key = (type(self), repr(sorted(setting.items(), key=str)), *(str(run.path) for run in runs))
        if key not in self._made:
            self._made[key] = self.result(runs, setting)
        return self._made[key]

    # ------------------------------------------------------------------------------------------- demands

    def test_it_returns_tables_figures_and_a_summary(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        from matplotlib.figure import Figure

        result = self.usual(runs, setting)
        for name, table in result.tables.items():
            demand(isinstance(table, pd.DataFrame), f"table '{name}' must be a pandas DataFrame; it is a {type(table).__name__}")
        for name, figure in result.figures.items():
            demand(isinstance(figure, Figure), f"figure '{name}' must be a matplotlib Figure; it is a {type(figure).__name__}")
        for name, text in result.files.items():
            demand(isinstance(text, str | bytes), f"file '{name}' must be text or bytes")
        demand(result.tables, "an analysis must give at least one table: figures are drawn from tables")

    def test_its_summary_is_plain_text_that_fits_a_terminal(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        summary = self.usual(runs, setting).summary
        demand(summary.strip(), "the summary must not be empty: it is what the console shows")
        wide = [line for line in summary.splitlines() if len(line) > WIDEST]
        demand(not wide, f"a line of the summary is {len(wide[0]) if wide else 0} characters wide; {WIDEST} fit: {wide[:1]}")
        odd = [c for c in summary if ord(c) < 32 and c != "\n"]
        demand(not odd, f"the summary must be plain text; it holds the control characters {odd[:4]!r}")

    def test_it_is_deterministic(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        _demand_equal(self.usual(runs, setting), self.result(runs, setting), "the same run analysed twice must give the same tables and summary")

    def test_memory_and_threads_change_nothing(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        large, small = self.usual(runs, setting), self.result(runs, setting, memory=self.least_memory, threads=1)
        _demand_equal(large, small, "tables must be the same, bit for bit, with any memory and any number of threads")

    def test_the_order_of_cells_does_not_matter(self, runs: Sequence[Run], setting: Mapping[str, Any]) -> None:
        backwards = [_Backwards(run.path) for run in runs]
        found, whole = self.result(backwards, setting), self.usual(runs, setting)
        for name, table in whole.tables.items():
            demand(len(table) == len(found.tables[name]), f"table '{name}' must not depend on the order of run.cells: its length does")
            close = _unordered_equal(table, found.tables[name])
            demand(close, f"table '{name}' must not depend on the order of run.cells, beyond rounding: group and join by labels")

    def test_tables_are_read_back_as_they_were(self, runs: Sequence[Run], setting: Mapping[str, Any], tmp_path: Path) -> None:
        result = self.usual(runs, setting)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            written = write_result(tmp_path / "out", replace(result, figures={}), about(self.build(setting), runs))
        for name, table in result.tables.items():
            back = pd.read_parquet(written.tables[name])
            demand(list(back.columns) == list(table.columns), f"table '{name}': columns must be read back as they were: {list(table)} became {list(back)}")
            same = len(back) == len(table) and all(_same_column(table[c], back[c]) for c in table)
            demand(same, f"table '{name}' must be read back from Parquet with the same values: use plain columns of one type")

    def test_interrupted_and_resumed_it_gives_the_same(self, runs: Sequence[Run], setting: Mapping[str, Any], tmp_path: Path) -> None:
        """Interrupted after its first durable partial result, in the middle, and after its last."""
        work = {"threads": 1, "memory": self.least_memory}
        with _counted() as parts:
            whole = self.result(runs, setting, **work)
        if not parts.seen:
            pytest.skip("it keeps no partial results (Work.stream, Work.keep): an interruption leaves nothing that it could go on with")
        for after in sorted({1, -(-parts.seen // 2), parts.seen}):
            folder = tmp_path / str(after)
            folder.mkdir()
            with _counted(stop=after):
                try:
                    self.result(runs, setting, folder=folder, **work)
                    raise AssertionError(f"it was interrupted at its partial result {after} of {parts.seen} and went on: let the error pass")
                except _Stopped:
                    pass
            demand(any(folder.iterdir()), f"interrupted after {after} partial results, none of them was durable")
            again = self.result(runs, setting, folder=folder, **work)
            _demand_equal(whole, again, f"interrupted after {after} partial results and resumed, it must give what it gives uninterrupted")

    def test_its_figures_can_be_drawn_from_stored_tables_alone(self, runs: Sequence[Run], setting: Mapping[str, Any], tmp_path: Path) -> None:
        """Drawn by the instance that analysed, and by a new one from what lies on disk: the same figures, pixel by pixel."""
        analysis = self.build(setting)
        result = analysis.analyze(runs, Work())
        _close(result)
        made = about(analysis, runs)
        written = write_result(tmp_path / "out", replace(result, figures={}), made)
        stored = json.loads((tmp_path / "out" / ABOUT).read_text(encoding="utf-8"))
        with style():
            first = _pixels(analysis.draw(as_stored(result.tables), json_safe({**stored, "facts": result.facts})))
            again = _pixels(self.build(setting).draw({name: pd.read_parquet(path) for name, path in written.tables.items()}, stored))
        if not first and not again:
            pytest.skip("it draws no figures")
        demand(list(again) == list(first), f"draw() must give the same figures from stored tables: {list(first)}; it gave {list(again)}")
        apart = [name for name, pixels in first.items() if not np.array_equal(pixels, again[name])]
        demand(not apart, f"draw() must use nothing but tables and facts: drawn again from what is stored, {', '.join(apart)} looks different")

    def test_a_run_that_lacks_what_it_needs_is_refused_in_words(self, setting: Mapping[str, Any], bare: Run) -> None:
        try:
            self.result([bare], setting)
        except UserError as error:
            demand(len(str(error).splitlines()) <= 2, f"an error must be one or two lines; it is: {error}")

    @pytest.fixture
    def bare(self) -> Run:
        """Return a run without interventions, captures and metrics but one."""
        return shared_run(**self.BARE)


class _Backwards(Run):
    """A run whose table of cells stands upside down."""

    @cached_property
    def _coded(self) -> pd.DataFrame:
        return Run(self.path)._coded.iloc[::-1]


def _close(result: AnalysisResult) -> None:
    import matplotlib.pyplot as plt

    for figure in result.figures.values():
        plt.close(figure)


@dataclass
class _Parts:
    """How many partial results were kept."""

    seen: int = 0


@contextmanager
def _counted(stop: int = -1) -> Iterator[_Parts]:
    """Count the partial results that are kept; interrupt once so many of them are."""
    real, parts = Work.store, _Parts()

    def store(self: Work, *arguments: Any) -> None:
        real(self, *arguments)
        parts.seen += 1
        if parts.seen == stop:
            raise _Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "store", store)
        yield parts


def _pixels(figures: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return name → what the figure looks like, small; figures are closed."""
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    seen = {}
    for name, figure in figures.items():
        figure.set_dpi(SMALL)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        seen[name] = np.array(canvas.buffer_rgba())
        plt.close(figure)
    return seen


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
