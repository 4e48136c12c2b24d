"""Progress as people see it: terminal, log, notebook."""

from __future__ import annotations

import io
import re
import sys
import types
from typing import Any

import pytest
from rich.console import Console

from codi_engine.core import progress
from codi_engine.core.progress import Meter, Progress, clock, memory_text, resident
from codi_engine.core.watching import showing
from codi_engine.core.watching.showing import NotebookProgress, TerminalProgress, in_notebook, usual


class Clock:
    """A clock that is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("codi_engine.core.progress.time.monotonic", lambda: self.now)


def test_a_meter_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_ = Clock(monkeypatch)
    meter = Meter("sweep", 1000, "cells")
    assert (meter.rate, meter.left, meter.speed(), meter.remaining()) == (0.0, None, "", "")
    clock_.now += 2
    meter.advance(100)
    meter.where = "unit 2 of 10"
    assert meter.rate == pytest.approx(50)
    assert meter.left == pytest.approx(18)
    assert re.fullmatch(r"sweep: 100 of 1,000 cells, 50\.0 cells/s, 0:00:18 left, unit 2 of 10, \d+ MB|.* GB", meter.line())


def test_the_rate_is_that_of_the_last_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_ = Clock(monkeypatch)
    meter = Meter("sweep", 10_000, "cells")
    for _ in range(100):  # slow at first
        clock_.now += 10
        meter.advance(1)
    for _ in range(100):
        clock_.now += 1
        meter.advance(50)
    assert meter.rate == pytest.approx(50, rel=0.05)


def test_bytes_are_told_in_readable_units() -> None:
    meter = Meter("read", 30_000_000_000, "B")
    meter.advance(1_200_000_000)
    assert meter.counted() == "1.20 of 30.00 GB"
    small = Meter("read", 5_000_000, "B")
    assert small.counted() == "0.00 of 5.00 MB"
    assert Meter("gate", 0, "").counted() == ""


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0:00:00"), (61, "0:01:01"), (90_061, "25:01:01")])
def test_times(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_memory_is_that_of_the_process() -> None:
    held = resident()
    assert 10e6 < held < 100e9
    assert re.match(r"\d+ MB|\d+\.\d GB", memory_text())


def test_a_log_gets_lines_seldom_once_it_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_ = Clock(monkeypatch)
    file = io.StringIO()
    shown = TerminalProgress(Console(file=file, width=200))
    shown.start("gate", 0, "")
    shown.start("sweep", 10_000, "cells")
    for _ in range(600):
        clock_.now += 1
        shown.advance(1)
    shown.finish()
    lines = file.getvalue().splitlines()
    assert lines[0] == "gate"
    assert len(lines) - 1 == 11 + 8  # every ten seconds below two minutes, then every minute
    assert lines[1].startswith("sweep: 10 of 10,000 cells, 1.0 cells/s, 2:46:30 left")


@pytest.mark.parametrize("width", [80, 140])
def test_a_bar_fits_the_terminal(width: int) -> None:
    file = io.StringIO()
    shown = TerminalProgress(Console(file=file, force_terminal=True, width=width))
    shown.start("loading the model", 0, "")
    shown.start("sweep", 480, "cells")
    shown.at("unit 3 of 30")
    shown.advance(48)
    shown.finish()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
    assert "loading the model" in text
    line = next(part for part in re.split(r"[\r\n]+", text) if "48 of 480 cells" in part)
    assert len(line) <= width
    assert "left" in line
    assert ("unit 3 of 30" in line) == (width >= showing.WIDE)
    assert ("MB" in line or "GB" in line) == (width >= showing.WIDE)


class Notebook:
    """Stands for IPython in a kernel: keeps what is displayed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shown: list[str] = []
        shell = type("ZMQInteractiveShell", (), {})()
        package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
        package.get_ipython = lambda: shell  # type: ignore[attr-defined]
        module.HTML = lambda text: text  # type: ignore[attr-defined]
        module.display = self.display  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", package)
        monkeypatch.setitem(sys.modules, "IPython.display", module)

    def display(self, shown: str, display_id: bool = False) -> Any:
        self.shown.append(shown)
        return types.SimpleNamespace(update=self.shown.append)


def test_a_notebook_shows_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = Notebook(monkeypatch)
    assert in_notebook()
    shown = usual()
    assert isinstance(shown, NotebookProgress)
    shown.note("<script>x</script>")
    shown.start("sweep", 100, "cells")
    shown.advance(10)
    assert '<progress value="0" max="100"' in notebook.shown[-1]  # not drawn more often than a person can see
    monkeypatch.setattr(showing, "REDRAW", 0.0)
    shown.at("unit 2 of 9")
    shown.advance(10)
    assert '<progress value="20" max="100"' in notebook.shown[-1]
    assert "unit 2 of 9" in notebook.shown[-1]
    assert "&lt;script&gt;" in notebook.shown[-1]
    shown.finish()
    assert "<progress" not in notebook.shown[-1]


def test_elsewhere_python_is_silent_unless_a_terminal_looks_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not in_notebook()
    assert type(usual()) is Progress
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert isinstance(usual(), TerminalProgress)


def test_memory_is_asked_for_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def held() -> int:
        asked.append(1)
        return 5_000_000 * len(asked)

    now = 77_000.0
    monkeypatch.setattr(progress, "resident", held)
    monkeypatch.setattr("codi_engine.core.progress.time.monotonic", lambda: now)
    assert [memory_text() for _ in range(50)] == ["5 MB"] * 50
    now += 1
    assert memory_text() == "10 MB"
    assert len(asked) == 2
