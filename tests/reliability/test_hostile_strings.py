"""Hostile strings come out of the console, pages, files and names as the characters they are, and as nothing else.

The short form takes one string of each kind, the long one (slow) all of ``tests/support/hostile.py``, two dozen to a run.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from markdown import markdown as to_html
from rich.cells import cell_len

from codi_engine import open_run
from codi_engine.cli.main import main
from codi_engine.core.errors import UserError
from codi_engine.core.experiment import Experiment
from codi_engine.core.runs.drawing import save, style
from codi_engine.core.text import MARKS, json_shown, markdown, marked, neutral, unmarked
from codi_engine.reporting import report
from codi_engine.reporting.safe import visible
from codi_engine.reporting.serve import Viewer
from tests.reporting.test_serve import serving
from tests.support.hostile import SHORT, STRINGS, Hostile, harmful, storable, typed
from tests.support.hostile_run import MAPS, Page, hostile_run, squeezed

#: strings of one run of the long form
EACH = 24
_STYLE = re.compile(r"\x1b\[[\d;]*m")


@dataclass
class Hostiles:
    """A run, the strings in it, and what came of it."""

    path: Path
    strings: Sequence[Hostile]

    @property
    def texts(self) -> list[str]:
        return [storable(one.text) for one in self.strings]


def _parts() -> list[Any]:
    chunks = [STRINGS[at : at + EACH] for at in range(0, len(STRINGS), EACH)]
    return [pytest.param(SHORT, id="short"), *(pytest.param(c, id=f"all-{n}", marks=pytest.mark.slow) for n, c in enumerate(chunks))]


@pytest.fixture(scope="module", params=_parts()[1:])
def all_hostiles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Hostiles:
    folder = tmp_path_factory.mktemp("hostile")
    return Hostiles(hostile_run(folder, request.param), request.param)


@pytest.fixture(scope="module", params=_parts())
def hostiles(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Hostiles:
    folder = tmp_path_factory.mktemp("hostile")
    return Hostiles(hostile_run(folder, request.param), request.param)


def command(folder: Path, *arguments: str, code: int = 0) -> str:
    """Return what a command says on both streams; nothing of it may act on a terminal."""
    out, err = StringIO(), StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        got = main(list(arguments))
    said = out.getvalue() + err.getvalue()
    assert got == code, f"{arguments}: exit code {got}: {said[:300]!r}"
    assert harmful(_STYLE.sub("", said) if "FORCE_COLOR" in os.environ else said) == [], f"{arguments}"
    said.encode()  # no half of a surrogate pair
    return said


def test_there_are_enough() -> None:
    assert len({one.text for one in STRINGS}) == len({one.why for one in STRINGS}) == len(STRINGS) >= 100
    assert len(SHORT) >= 12
    assert sum(bool(harmful(one.text)) for one in STRINGS) >= 35  # the check itself sees them


# ------------------------------------------------------------------------------------------------- console

_SHOWING = [
    ["status", "run"], ["status", "run", "--json"], ["ls", "."], ["ls", ".", "--json"], ["ls", ".", "--cost"], ["ls", ".", "--inventory"],
    ["ls", ".", "--inventory", "--json"], ["plot", "run"], ["plot", "run", "--json"], ["note", "run"], ["note", "run", "--json"],
]  # fmt: skip


@pytest.mark.parametrize("terminal", [False, True])
def test_the_console_shows_characters_and_does_nothing(hostiles: Hostiles, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "80")
    folder = hostiles.path.parent
    said = {" ".join(a): command(folder, *a) for a in _SHOWING}
    for one in hostiles.strings:
        body = one.text.replace("\r\n", "\n").strip("\n")
        if body.strip():
            shown = squeezed(neutral(body.encode("utf-8", "backslashreplace").decode()))
            assert shown in squeezed(_STYLE.sub("", said["note run"])), one.why
    added = [note["text"] for note in json.loads(said["note run --json"])["added"]]
    assert len(added) == sum(bool(one.text.strip()) for one in hostiles.strings)
    for arguments in ("status run", "ls .", "plot run"):
        assert not terminal or max(cell_len(_STYLE.sub("", line)) for line in said[arguments].splitlines()) <= 80


def test_errors_repeat_nothing_that_acts(hostiles: Hostiles) -> None:
    folder = hostiles.path.parent
    for one in hostiles.strings:
        if "\0" in one.text or one.text.startswith("-") or len(one.text) > 4000:
            continue
        text = typed(one.text)
        command(folder, "status", f"no-{text}", code=2)
        command(folder, "plot", "run", f"no-{text}", code=2)
        command(folder, "export", "run", "--to", f"no-{text}", code=2)
        command(folder, "analyze", "run", f"no-{text}", code=2)
        command(folder, "plugins", "show", f"no-{text}", code=2)
        command(folder, "sae", "show", f"no-{text}", code=2)
        command(folder, f"no-{text}", code=2)


# ------------------------------------------------------------------------------------------------- files


def test_csv_holds_no_formula_and_gives_every_text_back(hostiles: Hostiles) -> None:
    folder = hostiles.path.parent
    command(folder, "export", "run", "--to", "csv", "--what", "all", "-o", "csv")
    command(folder, "export", "run", "--to", "csv", "--what", "cells", "-o", "raw.csv", "--raw")
    tables = {p.name: list(csv.reader(StringIO(p.read_bytes().decode(), newline=""))) for p in [*(folder / "csv").rglob("*.csv"), folder / "raw.csv"]}
    cells = open_run(hostiles.path).cells
    for name in ("cells.csv", "raw.csv"):
        head, *rows = tables[name]
        found = dict(zip(head, zip(*rows, strict=True), strict=True))
        assert sorted(unmarked(v) if name == "cells.csv" else v for v in found["text"]) == sorted(cells["text"])
        assert sorted(float(v) for v in found["change"]) == sorted(cells["change"])
        assert "-1.5" in found["change"]
    for name, rows in tables.items():
        if name != "raw.csv":
            wrong = [f for row in rows for f in row if f.lstrip()[:1] in ("=", "+", "-", "@", "＝", "＋", "－", "＠") and not _is_number(f)]
            assert wrong == []
            assert not [f for row in rows for f in row if f[:1] in ("\t", "\r")]
    wide = next(rows for name, rows in tables.items() if "wide" in name)
    assert [unmarked(f) for f in wide[0]] == hostiles.texts
    assert wide[1] == ["-1.5"] * len(hostiles.texts)


def _is_number(field: str) -> bool:
    try:
        return float(field) == float(field)
    except ValueError:
        return False


def test_other_files_hold_the_texts_exactly(hostiles: Hostiles) -> None:
    folder, cells = hostiles.path.parent, open_run(hostiles.path).cells
    for kind in ("parquet", "jsonl", "npz"):
        command(folder, "export", "run", "--to", kind, "--what", "cells", "-o", f"cells.{kind}")
    command(folder, "export", "run", "--to", "jsonl", "--what", "results/nasty", "-o", "lines")
    texts = pd.read_parquet(folder / "cells.parquet")["text"].tolist()
    assert sorted(texts) == sorted(cells["text"]) == sorted([*hostiles.texts, *(f"was {t}" for t in hostiles.texts)])
    lines = [json.loads(line, parse_constant=pytest.fail) for line in (folder / "cells.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    assert [line["text"] for line in lines] == texts
    assert {line["origin"] for line in lines} == set(hostiles.texts)
    for path in (folder / "lines").rglob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            json.loads(line, parse_constant=pytest.fail)
    import numpy as np

    with np.load(folder / "cells.npz", allow_pickle=False) as arrays:
        assert [str(t) for t in arrays["text"]] == [t.rstrip("\0") for t in texts]


def test_netcdf_holds_the_texts(all_hostiles: Hostiles) -> None:
    import xarray as xr

    folder, cells = all_hostiles.path.parent, open_run(all_hostiles.path).cells
    command(folder, "export", "run", "--to", "netcdf", "-o", "cells.nc")
    with xr.open_dataset(folder / "cells.nc", engine="h5netcdf") as data:
        assert sorted(str(t) for t in data["text"].values) == sorted(t.replace("\0", "␀") for t in cells["text"])


def test_analyses_draw_what_is_hostile(all_hostiles: Hostiles, opened: Any) -> None:
    """Analyses of such a run give tables, summaries and figures; the figures again as SVG, in a page each."""
    folder = all_hostiles.path.parent / "few"
    folder.mkdir()
    path = hostile_run(folder, all_hostiles.strings[:8])  # a panel for each takes its time
    command(folder, "analyze", "run", "importance", "-q")
    command(folder, "analyze", "run", "words", "-q")
    command(folder, "plot", "run", "importance/bars", "--format", "svg", "-o", "figures/bars.svg")
    found = [*(path / "results").rglob("*.svg"), folder / "figures" / "bars.svg"]
    assert len(found) >= 2
    for path in found:
        ElementTree.parse(path)
        page = opened(path.as_uri())
        assert page.page.locator("script, foreignObject, a").count() == 0
        page.check()
        page.close()


@pytest.mark.parametrize("one", STRINGS, ids=lambda one: one.why[:40])
def test_marks_are_taken_off_again(one: Hostile) -> None:
    assert unmarked(marked(one.text)) == one.text
    assert marked(marked(one.text)) == marked(one.text) or marked(one.text).startswith("'")
    assert json.loads(json_shown({"x": one.text, one.text: float("nan")})) == {"x": one.text, one.text: None}
    assert neutral(neutral(one.text)) == neutral(one.text)
    assert harmful(neutral(one.text), "\n\t") == harmful(visible(one.text), "\n\t") == []


@pytest.mark.parametrize("text", ["-1.5", "+3", "-1e-9", "-.5", "12"])
def test_numbers_stay_numbers(text: str) -> None:
    assert marked(text) == text
    assert unmarked(f"'{text}") == text


def test_a_word_with_few_marks_is_left_alone() -> None:
    for text in ("naïve", "e\u0301té", "हिन्दी", "Tiê\u0301ng", "数学" * 9, "−1 → 2 … ±"):
        assert neutral(text) == visible(text) == text
    assert neutral("a" + "\u0301" * (MARKS + 3)) == "a" + "\u0301" * MARKS + "⟨3 marks⟩"


# ------------------------------------------------------------------------------------------------- pages


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    pages: list[Page] = []

    def open_(address: str, *own: str) -> Page:
        made = Page(browser, own or (address,))
        pages.append(made)
        made.page.goto(address)
        return made

    yield open_
    for page in pages:
        page.close()


def test_the_report_only_shows(hostiles: Hostiles, opened: Any, tmp_path: Path) -> None:
    page = opened(report(hostiles.path, tmp_path / "report.html").as_uri())
    said = squeezed(page.text())
    for text in hostiles.texts:
        assert squeezed(visible(text[:300])) in said, text[:60]
    rows = page.page.locator("#grid .row")
    for number in range(min(rows.count(), 6)):
        rows.nth(number).click()
        page.page.keyboard.press("Escape")
    assert page.page.locator("main :is(iframe, object, embed, form[action], base, meta, link, svg[onload], math)").count() == 0
    assert not [c for c in harmful(page.text(), "\n\t") if c != "a flood of marks"]
    page.check()


def test_the_live_view_only_shows(all_hostiles: Hostiles, opened: Any) -> None:
    with serving(Viewer(all_hostiles.path)) as viewer:
        page = opened(viewer.url)
        page.page.frame_locator("#report").locator("#cells").wait_for()
        told = page.page.evaluate("fetch('/live.json').then(r => r.text())")
        json.loads(told, parse_constant=pytest.fail)
        assert harmful(told) == []
        page.check()
        page.close()


def test_notebooks_figures_and_journals_only_show(hostiles: Hostiles, opened: Any, tmp_path: Path) -> None:
    """In one page without any policy of its own: what runs and results show in notebooks, and the journal page as HTML."""
    run = open_run(hostiles.path)
    command(hostiles.path.parent, "report", "run", "--md", "-o", str(tmp_path / "report.md"))
    journal = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert harmful(journal, "\n\t") == []
    assert not re.search(r"(?<!\\)<(?!/?(?:details|summary|br)\b)\w", re.sub(r"(?s)(`{3,}).*?\1|`[^`\n]+`", "", journal))
    rendered = to_html(journal, extensions=["tables", "fenced_code"])
    parts = [run._repr_html_(), run.results["nasty"]._repr_html_(), rendered]
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset=utf-8><body>{''.join(parts)}", encoding="utf-8", errors="strict")
    page = opened((tmp_path / "page.html").as_uri())
    assert (
        page.page.locator("body :is(script, img:not([src^='data:']), iframe, object, embed, form, link, base, style, svg, math, video, a[href])").count() == 0
    )
    page.check()


def test_figures_show_what_was_typed(hostiles: Hostiles, opened: Any, tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    with style():
        figure = Figure(figsize=(6, 8))
        ax = figure.subplots()
        ax.barh(range(len(hostiles.texts)), 1.0)
        ax.set_yticks(range(len(hostiles.texts)), labels=hostiles.texts)
        ax.set_title(hostiles.texts[0])
        for number, text in enumerate(hostiles.texts):
            ax.text(0.0, number, text)
    path = tmp_path / "figure.svg"
    save(figure, path)
    if hostiles.strings is not SHORT:
        save(figure, tmp_path / "figure.png", dpi=40)
    written = squeezed(" ".join(ElementTree.parse(path).getroot().itertext()))
    for text in hostiles.texts:
        line = next((line for line in text.split("\n") if line.strip()), "")
        assert squeezed(neutral(line)[:60].partition("⟨")[0]) in written, text[:60]
    page = opened(path.as_uri())
    assert page.page.locator("script, foreignObject, image, a").count() == 0
    page.check()


def test_mathematics_is_drawn_where_it_is_asked_for(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    with style():
        figure = Figure()
        ax = figure.subplots()
        ax.set_title("costs $5 and $6")
        ax.set_xlabel("$x^2$", parse_math=True)
        ax.set_ylabel("$\\frac{", parse_math=True)
        ax.plot([1, 1000], [1, 1000])
        ax.set_xscale("log")
    save(figure, tmp_path / "a.svg")
    written = " ".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert "costs $5 and $6" in written
    assert "$\\frac{" in written
    assert "$x^2$" not in written
    assert "mathdefault" not in written


# ------------------------------------------------------------------------------------------------- names


def test_names_stay_where_they_belong(hostiles: Hostiles, tmp_path: Path) -> None:
    log = hostiles.path.parent / "log.jsonl"
    home, before = tmp_path / "home", sorted(p.name for p in tmp_path.parent.iterdir())
    home.mkdir()
    maps = [part for m in MAPS for part in ("--map", m)]
    for one in hostiles.strings:
        value = {"name": one.text, "model": {"plugin": "codi", "checkpoint": "demo"}, "data": {"plugin": "demo-pairs"}}
        if one.text not in ("yes", "NaN", "_step", "__proto__", "constructor.prototype.pwned"):
            with pytest.raises(UserError, match="name"):
                Experiment.from_dict(value)
        out = StringIO()
        with chdir(home), redirect_stdout(out), redirect_stderr(out):
            code = main(["import", str(log), *maps, f"--name={one.text}", "-q"])
        assert code in (0, 2), out.getvalue()[:300]
        assert harmful(out.getvalue()) == []
        assert code == 2 or re.fullmatch(r"[A-Za-z0-9_][\w.-]*", one.text)
    assert {p.name for p in home.iterdir()} <= {"runs"}
    assert sorted(p.name for p in tmp_path.parent.iterdir()) == sorted({*before, tmp_path.name})


def test_journal_text_is_no_markup(hostiles: Hostiles) -> None:
    for one in hostiles.strings:
        shown = to_html(markdown(storable(one.text)))
        assert not re.search(r"<(?!/?p>)", shown), one.why
