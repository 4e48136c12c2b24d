"""What a notebook shows of runs and results: what is there, escaped, without colours that only one theme bears."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.core.running.run import Finished
from codi_engine.core.runs.stored import StoredResult

VOID = {"img", "br"}


class Balanced(HTMLParser):
    """Fails where tags are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def shown(thing: Any) -> str:
    """The HTML that a notebook displays, through IPython's formatter where it is installed."""
    try:
        from IPython.core.formatters import HTMLFormatter
    except ImportError:
        html = thing._repr_html_()
    else:
        html = HTMLFormatter()(thing)
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert not {"script", "style", "link", "iframe"} & set(parser.tags)
    colours = set(re.findall(r"(?:color|background):([^;\"]+)", html))
    assert colours <= {"inherit", "transparent", "#fff"}  # white paper behind figures alone
    return str(html)


@pytest.fixture
def finished(demo: Callable[..., Experiment]) -> Finished:
    patch = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
    experiment = demo(name="notebook", intervention=patch, sweep={"step": [0, 1], "layer": [1]}, capture=["latent_out"], analyses=["importance"])
    return experiment.run()


def test_runs_results_and_finished_runs_show_what_they_hold(finished: Finished) -> None:
    run = finished.open()
    html = shown(run)
    for said in (
        "notebook",
        "codi: checkpoint demo",
        "demo-pairs",
        "step 2",
        "latent_out",
        "importance",
        "baseline",
        "patch",
        f"{len(run.cells):,} cells",
        "run.cells",
    ):
        assert said in html
    kl = run.cells.groupby("condition")["kl"].mean()["patch"]
    assert f"{kl:.3g}" in html
    result = run.results["importance"]
    html = shown(result)
    assert 'src="data:image/png;base64,' in html
    assert all(name in html for name in (*result.tables, *result.figures))
    assert "strongest" in html
    html = shown(finished)
    assert "finished.open()" in html
    assert 'src="data:image/png;base64,' in html
    assert repr(result) == f"<result '{result.folder}': tables {', '.join(result.tables)}; figures {', '.join(result.figures)}>"
    assert repr(finished).startswith(f"<finished '{finished.path}': {finished.cells:,} cells")


def test_hostile_names_are_escaped(tmp_path: Path) -> None:
    result = StoredResult("<script>alert(1)</script>", tmp_path, '<img src=x onerror="1">', {"made": "<b>"}, {"<i>": tmp_path / "a"})
    html = shown(result)
    assert "<script>" not in html
    assert "<img" not in html
    assert "&lt;script&gt;" in html
    done = Finished(tmp_path / "<u>", 1, 1, 1.0, notes=["<script>"], summaries={"a": "<script>x"})
    assert "<script>" not in shown(done)
