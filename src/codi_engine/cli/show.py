"""What the terminal shows: tables, progress, results. Text of models and plugins is shown as plain text only."""

from __future__ import annotations

import sys
import time
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.run import Finished

#: where the output is no terminal there is no width to respect but a reader's
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)
errors = Console(stderr=True, highlight=False)
#: seconds between lines where the output is no terminal
EVERY = 10.0


def plain(text: object) -> Text:
    """Return text without markup, control characters shown as their code."""
    return Text("".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else f"\\x{ord(c):02x}" for c in str(text)))


class TerminalProgress(Progress):
    """A bar with rate and time left in a terminal, a line every ten seconds elsewhere."""

    def __init__(self) -> None:
        self._bars: Bars | None = None
        self._task: Any = None
        self._stage, self._unit, self._total, self._done = "", "", 0, 0
        self._begun = self._said = 0.0

    def start(self, stage: str, total: int, unit: str) -> None:
        self._stage, self._unit, self._total, self._done = stage, unit, total, 0
        self._begun = self._said = time.monotonic()
        if total and errors.is_terminal:
            columns = [
                TextColumn("{task.description:<9}"),
                BarColumn(bar_width=32),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
            ]
            self._bars = Bars(*columns, console=errors, transient=True)
            self._task = self._bars.add_task(stage, total=total, rate="")
            self._bars.start()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        rate = self._done / max(now - self._begun, 1e-9)
        if self._bars is not None:
            self._bars.update(self._task, advance=count, rate=f"{rate:,.0f} {self._unit}/s")
        elif now - self._said > EVERY:
            self._said = now
            left = (self._total - self._done) / max(rate, 1e-9)
            errors.print(plain(f"{self._stage}: {self._done:,} of {self._total:,} {self._unit}, {rate:,.1f}/s, {left:,.0f} s left"))

    def note(self, text: str) -> None:
        errors.print(plain(text), style="dim")

    def finish(self) -> None:
        if self._bars is not None:
            self._bars.stop()
            self._bars = None


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Yield the progress of a command, and end its bar whatever happens."""
    shown = Progress() if quiet else TerminalProgress()
    try:
        yield shown
    finally:
        shown.finish()


def table(rows: Sequence[tuple[str, str]]) -> None:
    """Print label/value rows."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for label, value in rows:
        grid.add_row(plain(label), plain(value))
    console.print(grid)


def finished(experiment: Experiment, done: Finished) -> None:
    """Print what a run gave."""
    new = "all of them new" if done.new_cells == done.cells else f"{done.new_cells:,} of them new" if done.new_cells else "none of them new"
    console.print(plain(f"{experiment.name}: {done.cells:,} cells, {new}, in {done.seconds:.1f} s"), style="bold")
    for note in done.notes:
        console.print(plain(note), style="dim")
    results(done)
    console.print()
    table([("run", str(done.path)), ("python", f'codi_engine.open_run("{done.path}").cells')])


def results(done: Finished) -> None:
    """Print summaries and where the figures are."""
    for summary in done.summaries.values():
        console.print()
        console.print(plain(summary))
    if done.figures:
        console.print()
        table([(name, str(path)) for name, path in done.figures.items() if Path(path).exists()])


def checks(frame: pd.DataFrame) -> None:
    """Print the gate's findings, one row per condition and site."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    left = ("condition", "site", "places", "first_values")
    heads = {"norm_before": "‖h‖ before", "norm_after": "after", "first_values": "first values", "self_patch": "self-patch"}
    for name in frame.columns:
        grid.add_column(heads.get(name, name), justify="left" if name in left else "right", no_wrap=True)
    for record in frame.to_dict("records"):
        shown = {k: f"{v:.2f}" if isinstance(v, float) else v for k, v in record.items()}
        shown["first_values"] = " ".join(f"{v:.2f}" for v in record["first_values"][:3]) + " …"
        grid.add_row(*(plain(v) for v in shown.values()))
    console.print(grid)
    console.print(plain("gate: every edit fired where the plan says; self-patch is an identity"), style="bold")


def plugin_list(plugins: Plugins) -> None:
    """Print every plugin: kind, name, package, help."""
    grid = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("kind", "name", "package", "help"):
        grid.add_column(name, no_wrap=True, overflow="ellipsis")
    for item in sorted(plugins.registered, key=lambda r: (list_order(r.kind), r.package, r.name)):
        grid.add_row(item.kind, plain(item.name), plain(item.package), plain(first_line(item.cls)))
    console.print(grid)
    for problem in plugins.problems:
        errors.print(plain(f"left out: {problem}"), style="yellow")


def list_order(kind: str) -> int:
    return ["model", "dataset", "intervention", "metric", "analysis", "tracker"].index(kind)


def first_line(cls: type[Any]) -> str:
    return (cls.__doc__ or "").strip().splitlines()[0]


def plugin(plugins: Plugins, name: str) -> None:
    """Print one plugin's help and options."""
    found = [r for r in plugins.registered if name in (r.name, f"{r.package}/{r.name}")]
    if not found:
        raise UserError(f"plugins show: unknown plugin '{name}'; {nearest(name, [r.name for r in plugins.registered])}")
    for item in found:
        console.print(plain(f"{item.kind} {item.name}"), style="bold")
        console.print(plain(f"{item.package} {item.version}\n"), style="dim")
        console.print(plain(_dedented(item.cls.__doc__)))
        fields = item.cls.Options.model_fields
        if fields:
            console.print(plain(f"\nOptions: {_dedented(item.cls.Options.__doc__)}"))
            table([(key, f"{_type_name(f.annotation)}{'' if f.is_required() else f' = {f.default!r}'}") for key, f in fields.items()])


def _dedented(text: str | None) -> str:
    import inspect

    return inspect.cleandoc(text or "")


def _type_name(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")
