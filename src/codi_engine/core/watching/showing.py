"""Progress where a person sees it: a bar in a terminal or a notebook, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from html import escape
from typing import TYPE_CHECKING, Any

from codi_engine.core.progress import Meter, Progress, alone, memory_text
from codi_engine.core.text import neutral

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress as Bars

#: seconds between lines in a log, at first and after :data:`PATIENT` seconds
EVERY, PATIENT, SELDOM = 10.0, 120.0, 60.0
#: seconds between two pictures of a notebook's bar
REDRAW = 0.4
#: columns from which a terminal shows the current unit and memory too
WIDE = 100


class TerminalProgress(Progress):
    """A bar with rate, time left, current unit and memory in a terminal; elsewhere a line every ten seconds, later every minute.

    Parameters
    ----------
    console: where it is shown; standard error by default, so that results can be piped
    every: seconds between lines where the console is no terminal
    """

    def __init__(self, console: Console | None = None, every: float = EVERY) -> None:
        from rich.console import Console

        self.console = console or Console(stderr=True, highlight=False)
        self._every, self._said = every, 0.0
        self._meter: Meter | None = None
        self._bars: Bars | None = None

    def start(self, stage: str, total: int, unit: str) -> None:
        self.finish()
        if unit and not total:  # there is nothing to do
            return
        self._meter = Meter(stage, total, unit)
        self._said = self._meter.begun
        if self.console.is_terminal:
            self._bars = _bars(self.console, bool(total))
            self._bars.add_task(neutral(stage), total=total or None, **self._fields())
            with suppress(OSError):  # as in _say
                self._bars.start()
        elif not total:
            self._say(stage)

    def at(self, where: str) -> None:
        if self._meter is not None:
            self._meter.where = where

    def advance(self, count: int) -> None:
        if self._meter is None:
            return
        self._meter.advance(count)
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=self._meter.done, **self._fields())
        elif self._is_time():
            self._say(self._meter.line())

    def _fields(self) -> dict[str, Any]:
        meter = self._meter
        assert meter is not None
        more = f"{meter.where}  {memory_text()}".strip() if self.console.width >= WIDE else ""
        return {"counted": meter.counted(), "rate": meter.speed(), "left": meter.remaining(), "more": neutral(more)}

    def _is_time(self) -> bool:
        """Say whether the log gets a line: seldom once a stage takes long."""
        assert self._meter is not None
        now = time.monotonic()
        due = now - self._said >= (self._every if now - self._meter.begun < PATIENT else max(self._every, SELDOM))
        self._said = now if due else self._said
        return due

    def note(self, text: str) -> None:
        self._say(text, style="dim")

    def finish(self) -> None:
        if self._bars is not None:
            with suppress(OSError):  # as in _say
                self._bars.stop()
        self._bars = self._meter = None

    def _say(self, text: str, style: str = "") -> None:
        from rich.text import Text

        with suppress(OSError):  # the terminal was closed, or nobody reads the pipe: the run goes on
            self.console.print(Text(neutral(text), style=style), soft_wrap=True)


def _bars(console: Console, known: bool) -> Bars:
    """Return a bar, or a spinner where nobody knows how much there is to do."""
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    def text(field: str) -> TextColumn:
        return TextColumn(f"{{task.{field}}}", markup=False)

    if not known:
        return Bars(SpinnerColumn(), text("description"), TimeElapsedColumn(), console=console, transient=True)
    bar = BarColumn(24 if console.width >= WIDE else 12)
    fields = [text(f"fields[{name}]") for name in ("counted", "rate", "left", "more")]
    return Bars(text("description"), bar, *fields, console=console, transient=True)


class NotebookProgress(Progress):
    """One line with a bar under the cell of a notebook, and the notes above it."""

    def __init__(self) -> None:
        self._meter: Meter | None = None
        self._handle: Any = None
        self._notes: list[str] = []
        self._drawn = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        self._meter = Meter(stage, total, unit)
        self._draw(at_once=True)

    def at(self, where: str) -> None:
        if self._meter is not None:
            self._meter.where = where

    def advance(self, count: int) -> None:
        if self._meter is not None:
            self._meter.advance(count)
            self._draw()

    def note(self, text: str) -> None:
        self._notes.append(text)
        self._draw(at_once=True)

    def finish(self) -> None:
        if self._meter is not None:
            self._meter = None
            self._draw(at_once=True)

    def _draw(self, at_once: bool = False) -> None:
        """Show the state; called from worker threads too, never more often than every :data:`REDRAW` seconds."""
        now = time.monotonic()
        if not at_once and now - self._drawn < REDRAW:
            return
        self._drawn = now
        from IPython.display import HTML, display

        shown = HTML(self.html())
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)

    def html(self) -> str:
        """Return notes and bar as HTML."""
        notes = "".join(f'<div style="opacity:.65">{escape(neutral(n))}</div>' for n in self._notes)
        meter = self._meter
        if meter is None:
            return notes or "<div></div>"
        value = f' value="{meter.done}" max="{meter.total}"' if meter.total else ""
        return f'{notes}<div><progress{value} style="width:14em;vertical-align:middle"></progress> {escape(neutral(meter.line()))}</div>'


def in_notebook() -> bool:
    """Say whether a notebook's kernel runs this; IPython is not imported for it."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and type(shell).__name__ == "ZMQInteractiveShell"


def usual() -> Progress:
    """Return what shows progress to whoever calls from Python: a bar in a notebook or a terminal, nothing elsewhere."""
    if in_notebook():
        return NotebookProgress()
    return TerminalProgress() if sys.stderr is not None and sys.stderr.isatty() else Progress()


@contextmanager
def ending(progress: Progress) -> Iterator[Progress]:
    """Yield progress, and end its stage whatever happens; where it shows nothing, libraries do not either."""
    with alone() if type(progress) is Progress else nullcontext():
        try:
            yield progress
        finally:
            progress.finish()
