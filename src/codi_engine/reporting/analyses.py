"""One section per stored result: its text, heatmaps drawn from its tables, other figures, sortable tables."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.costs import size_text
from codi_engine.reporting.facts import Facts, metric_of
from codi_engine.reporting.heatmaps import LEVELS, heatmap_of
from codi_engine.reporting.section import Section, render
from codi_engine.reporting.words import number, tick

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.runs.stored import StoredResult

#: a table that a section of its own shows
FILM = "film"
_TITLES = {"synth": "What was planted (the truth of a synthetic run)"}
#: results that have a section of their own
ELSEWHERE = ("checks",)
#: figures that show what a heatmap of the page shows
_SAME = ("heatmap", "matrix")
_ROWS = 200
_COLUMNS = 40
_TEXT = 400
#: largest figure, and all figures of a page together, that are put into it
_FIGURE, _FIGURES = 3_000_000, 24_000_000
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass
class Room:
    """Bytes of figures that still fit into the page."""

    left: int = _FIGURES

    def takes(self, size: int) -> bool:
        if size > min(self.left, _FIGURE):
            return False
        self.left -= size
        return True


@dataclass(frozen=True)
class Figure:
    """A picture in the page (``source`` is a data URI), or where it lies."""

    name: str
    source: str
    path: str
    size: str
    width: int = 0
    height: int = 0


@dataclass(frozen=True)
class Table:
    """A table's first rows. Columns are (name, is a number); cells are (text, value to sort by)."""

    name: str
    columns: list[tuple[str, bool]]
    rows: list[list[tuple[str, str]]]
    total: int
    path: str
    hidden: int = field(default=0)


def sections(facts: Facts) -> list[Section]:
    """Return a section per result."""
    room = Room()
    results = [result for name, result in facts.run.results.items() if name not in ELSEWHERE]
    results.sort(key=lambda r: FILM in r.tables)  # beside the film itself, which follows
    found = [_section(facts, result, room) for result in results]
    return [s for s in found if s is not None]


def _section(facts: Facts, result: StoredResult, room: Room) -> Section | None:
    options = dict(result.about.get("options") or {})
    tables = {name: result.table(name) for name in result.tables}
    metric = metric_of(facts, result)
    maps = {
        n: m
        for n, t in tables.items()
        if n not in ("top", "examples")
        and (m := heatmap_of(t, n, options, metric if n != "metric" else options.get("metric"), result.about.get("analysis", result.name))) is not None
    }
    figures = [_figure(facts, n, p, room) for n, p in result.figures.items() if not ("effects" in maps and n in _SAME)]
    shown = [table_of(n, t, _relative(facts, result.tables[n])) for n, t in tables.items()]
    if not (result.summary or figures or shown):
        return None
    set_options = [(k, v) for k, v in options.items() if v not in (None, {}, [])]
    title = _TITLES.get(result.name, result.name.replace("_", " ").capitalize()) + (": summary and tables" if FILM in result.tables else "")
    html = render(
        "analysis.html", name=result.name, summary=result.summary, maps=list(maps.values()), figures=figures, tables=shown,
        stale=not result.is_of(facts.run.digest), options=set_options, made=result.about.get("made"),
        files=[(n, _relative(facts, p)) for n, p in result.files.items()], levels=range(LEVELS),
    )  # fmt: skip
    return Section(f"analysis-{anchor(result.name)}", title, html)


def anchor(text: str) -> str:
    """Return text as it can stand in an id."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text)


def _relative(facts: Facts, path: Path) -> str:
    return str(path.relative_to(facts.run.path)) if path.is_relative_to(facts.run.path) else str(path)


def _figure(facts: Facts, name: str, path: Path, room: Room) -> Figure:
    size = path.stat().st_size
    where = _relative(facts, path)
    if not room.takes(size):
        return Figure(name.replace("_", " "), "", where, size_text(size))
    raw = path.read_bytes()
    if raw[:8] != _PNG:
        return Figure(name.replace("_", " "), "", where, size_text(size))
    width, height = (int.from_bytes(raw[i : i + 4], "big") for i in (16, 20))
    return Figure(name.replace("_", " "), f"data:image/png;base64,{base64.b64encode(raw).decode()}", where, size_text(size), width, height)


def table_of(name: str, table: pd.DataFrame, path: str) -> Table:
    """Return a table's first rows as texts, each with what it is sorted by."""
    from pandas.api import types

    chosen = list(table.columns[:_COLUMNS])
    columns = [(str(c), bool(types.is_numeric_dtype(table[c]) and not types.is_bool_dtype(table[c]))) for c in chosen]
    whole = [numeric and bool((table[c].dropna() % 1 == 0).all()) for c, (_, numeric) in zip(chosen, columns, strict=True)]
    rows = [[_entry(v, w) for v, w in zip(row, whole, strict=True)] for row in table[chosen].head(_ROWS).itertuples(index=False, name=None)]
    return Table(name.replace("_", " "), columns, rows, len(table), path, len(table.columns) - len(chosen))


def _entry(value: Any, whole: bool = False) -> tuple[str, str]:
    """Return how a value (of a column of whole numbers) is shown, and its key: numbers at full precision, nothing for a missing one."""
    import numpy as np

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is not value or (isinstance(value, float) and value != value) or str(value) == "<NA>":
        return "–", ""
    if isinstance(value, bool):
        return ("yes" if value else "no"), str(int(value))
    if isinstance(value, (int, float)):
        return (tick(value) if whole or isinstance(value, int) else number(value, 4)), repr(float(value))
    text = str(value)
    return (text if len(text) <= _TEXT else f"{text[:_TEXT]}…"), text[:_TEXT]
