"""Progress in a terminal: a bar with rate and time left; elsewhere a line every ten seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from codi_engine.cli.text import neutral
from codi_engine.core.progress import Progress

#: seconds between lines where the output is no terminal
EVERY = 10.0


class TerminalProgress(Progress):
    """A bar with rate and time left in a terminal, a line every ten seconds elsewhere.

    Parameters
    ----------
    console: where it is shown; standard error by default, so that results can be piped
    every: seconds between lines where the console is no terminal
    """

    def __init__(self, console: Console | None = None, every: float = EVERY) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._every = every
        self._bars: Bars | None = None
        self._task = TaskID(0)
        self._stage, self._unit, self._total, self._done = "", "", 0, 0
        self._begun = self._said = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        self.finish()
        self._stage, self._unit, self._total, self._done = stage, unit, total, 0
        self._begun = self._said = time.monotonic()
        if total and self.console.is_terminal:
            rate = TextColumn("{task.fields[rate]}", markup=False)
            counted = TextColumn("{task.fields[counted]}", markup=False) if unit == "B" else MofNCompleteColumn()
            columns = [TextColumn("{task.description:<9}", markup=False), BarColumn(32), counted, rate, TimeRemainingColumn()]
            self._bars = Bars(*columns, console=self.console, transient=True)
            self._task = self._bars.add_task(neutral(stage), total=total, rate="", counted=self._counted())
            self._bars.start()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        rate = self._done / max(now - self._begun, 1e-9)
        if self._bars is not None:
            self._bars.update(self._task, advance=count, rate=self._rate(rate), counted=self._counted())
        elif now - self._said >= self._every:
            self._said = now
            left = (self._total - self._done) / max(rate, 1e-9)
            self._say(f"{self._stage}: {self._counted()}, {self._rate(rate)}, {left:,.0f} s left")

    def _counted(self) -> str:
        """Say how much is done: ``12 of 40 cells``, or ``1.2 of 30.0 GB``."""
        if self._unit == "B":
            return f"{self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB"
        return f"{self._done:,} of {self._total:,} {self._unit}"

    def _rate(self, rate: float) -> str:
        return f"{rate / 1e9:.2f} GB/s" if self._unit == "B" else f"{rate:,.1f} {self._unit}/s"

    def note(self, text: str) -> None:
        self._say(text, style="dim")

    def finish(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(Text(neutral(text), style=style), soft_wrap=True)


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Yield the progress of a command, and end its bar whatever happens."""
    shown = Progress() if quiet else TerminalProgress()
    try:
        yield shown
    finally:
        shown.finish()
