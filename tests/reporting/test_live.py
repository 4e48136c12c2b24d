"""The live view in a browser, of a run that another process is really writing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine import open_run
from codi_engine.core.watching.status import status_of
from codi_engine.reporting.serve import Viewer
from tests.reporting.test_serve import serving

#: small batches, so that it takes some seconds
SLOW = """
name: slow
hypothesis: "early steps carry the <b>operands</b>"
controls: none
model: {plugin: codi, checkpoint: demo, device: cpu}
data: {plugin: demo-pairs, limit: 10}
intervention: {plugin: patch, site: resid_post, direction: denoise}
sweep: {layer: all, step: all}
metrics: [flip]
generate: {max_new_tokens: 8}
batch_size: 2
"""


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of a headless browser that fails on any error in its console."""
    made = browser.new_page(viewport={"width": 1000, "height": 700})
    problems: list[str] = []
    made.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else None)
    made.on("pageerror", lambda e: problems.append(str(e)))
    made.set_default_timeout(90_000)
    yield made
    made.close()
    assert problems == []


def counted(path: Path) -> str:
    return f"<!doctype html><title>stand-in</title><h1>{len(open_run(path).cells)}</h1>" + "<p>line</p>" * 200


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_from_nothing_to_finished(page: Any, tmp_path: Path) -> None:
    (tmp_path / "slow.yaml").write_text(SLOW, encoding="utf-8")
    path = tmp_path / "runs" / "slow"
    path.parent.mkdir()
    with serving(Viewer(path, 0, counted)) as viewer:
        page.goto(viewer.url)
        page.wait_for_selector("#waiting:not([hidden])")
        assert "does not hold a run yet" in page.inner_text("#why")
        run = subprocess.Popen([sys.executable, "-m", "codi_engine", "run", "slow.yaml", "-q"], cwd=tmp_path, stdout=subprocess.DEVNULL, env=os.environ)
        try:
            page.wait_for_selector("#report:not([hidden])")
            frame = page.frame_locator("#report")
            first = int(frame.locator("h1").inner_text())
            assert first > 0
            frame.locator("p").nth(100).scroll_into_view_if_needed()
            page.wait_for_selector("#reload:not([hidden])")
            assert "new cell" in page.inner_text("#reload")
            assert int(frame.locator("h1").inner_text()) == first  # nothing jumps by itself
            assert run.wait(120) == 0
        finally:
            run.kill()
            run.wait()
        page.wait_for_selector("#live[data-state=finished]")
        final = status_of(path).cells
        page.locator("#reload", has_text=f"{final - first} new cells: reload").wait_for()
        bars = page.eval_on_selector_all("progress", "all => all.map(one => [one.value, one.max])")
        assert [tuple(b) for b in bars] == [(s.cells, s.planned_cells) for s in status_of(path).stages]
        assert page.inner_text("#hypothesis") == "Hypothesis: early steps carry the <b>operands</b>"
        page.click("#reload")
        frame.locator("h1", has_text=str(final)).wait_for()
        assert page.is_hidden("#reload")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_cards_and_film_in_the_real_page(page: Any, planted: Any, patched: Any, tmp_path: Path) -> None:
    import shutil

    from tests.reporting.films import write_film

    with serving(Viewer(planted.path, 0)) as viewer:
        page.goto(f"{viewer.url}report")
        cards = page.locator(".fcard")
        assert cards.count() == 6
        name = cards.nth(3).locator(".fcard-name").inner_text()
        page.fill(".fcards-search", name.lower())
        shown = page.eval_on_selector_all(".fcard", "all => all.filter(one => !one.hidden).map(one => one.id)")
        assert f"feature-{name}" in shown
        assert len(shown) < 6 or "6 cards" in page.inner_text(".fcards-count")
        page.fill(".fcards-search", "no such word anywhere")
        assert page.is_visible(".fcards-none")
        page.goto(f"{viewer.url}report#feature-{name}")
        page.wait_for_selector(f"#feature-{name}[open]")
        page.click(".fcards-close")
        assert page.locator(".fcard[open]").count() == 0
        page.click(".fcards-open")
        assert page.locator(".fcard[open]").count() == 6
    copy = shutil.copytree(patched.path, tmp_path / "filmed")
    write_film(open_run(copy))
    with serving(Viewer(copy, 0)) as viewer:
        page.goto(f"{viewer.url}report")
        table = open_run(copy).results["latent_film"].table("film")
        page.select_option(".film-example", index=1)
        page.select_option(".film-edit", index=1)
        name = list(dict.fromkeys(table["example"]))[1]
        wanted = table[(table["example"] == name) & (table["edited_step"] == 5) & (table["rank"] == 1)].sort_values("step")
        frames = page.locator(".film-frame")
        assert frames.count() == 14
        shown = [frames.nth(2 * i + 1).locator("code").first.inner_text() for i in range(7)]
        assert shown == [t.replace("\n", "⏎").replace(" ", "␣", 1 if t.startswith(" ") else 0).replace("\u202e", "⟨U+202E⟩") for t in wanted["token"]]
        base = table[(table["example"] == name) & (table["condition"] == "baseline") & (table["rank"] == 1)].sort_values("step")
        changed = [a != b for a, b in zip(base["token"], wanted["token"], strict=True)]
        marks = page.eval_on_selector_all(".film-frame", "all => all.map(one => one.classList.contains('film-changed'))")
        assert marks[1::2] == changed
        assert not any(marks[::2])
        at = page.eval_on_selector_all(".film-frame", "all => all.map(one => one.classList.contains('film-at'))")
        assert [i // 2 - 1 for i, yes in enumerate(at) if yes] == [5]


@pytest.mark.timeout(120)
def test_nothing_is_wider_than_a_phone(page: Any, planted: Any) -> None:
    page.set_viewport_size({"width": 375, "height": 800})
    with serving(Viewer(planted.path, 0)) as viewer:
        page.goto(f"{viewer.url}report")
        page.click(".fcards-open")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
        page.goto(viewer.url)
        page.wait_for_selector("#report:not([hidden])")
        assert page.evaluate("document.documentElement.scrollWidth") <= 375
