"""The page in a browser: filtering, sorting, hovering, hostile texts, many cells, print and phone."""

from __future__ import annotations

import json
import time
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine import open_run
from codi_engine.core.imports.importing import import_files
from codi_engine.reporting import report
from tests.reporting.conftest import HOSTILE

SET = """([name, value]) => { const s = document.querySelector(`[data-filter="${name}"]`);
  s.value = [...(s.options || [])].filter(o => o.textContent === value || o.value === value).map(o => o.value)[0] ?? value;
  s.dispatchEvent(new Event(s.tagName === "SELECT" ? "change" : "input")); }"""
COLUMN = """name => { const at = [...document.querySelectorAll("#hrow > div")].findIndex(d => d.textContent === name);
  const rows = [...document.querySelectorAll("#grid .row")];
  return rows.sort((a, b) => a.getAttribute("aria-rowindex") - b.getAttribute("aria-rowindex")).map(r => r.children[at].textContent); }"""


def shown(page: Any) -> int:
    return int(page.text_content("#count").split(" ")[0].replace(",", ""))


def sort_by(page: Any, name: str) -> None:
    page.locator("#hrow button", has_text=name).first.click()


def test_filters_are_those_of_the_frame(show: Any, demo_page: Path, demo_run: Path) -> None:
    cells = open_run(demo_run).cells
    page = show(demo_page)
    assert shown(page) == len(cells)
    page.evaluate(SET, ["condition", "patch"])
    assert shown(page) == (cells["condition"] == "patch").sum()
    page.evaluate(SET, ["layer", "2"])
    assert shown(page) == ((cells["condition"] == "patch") & (cells["layer"] == 2)).sum()
    page.click("#clear")
    base = cells[cells["condition"] == "baseline"].set_index(["example", "variant"])
    edited = cells[cells["condition"] != "baseline"]
    before = base.loc[list(zip(edited["example"], edited["variant"], strict=True))]
    page.evaluate(SET, ["outcome", "changed"])
    changed = int((edited["answer"].to_numpy() != before["answer"].to_numpy()).sum())
    assert shown(page) == changed > 0
    page.evaluate(SET, ["outcome", "broken"])
    assert shown(page) == int(((before["accuracy"].to_numpy() == 1) & (edited["accuracy"].to_numpy() == 0)).sum()) > 0
    page.click("#clear")
    wanted = str(cells["text"].iloc[0])
    page.fill("[data-filter=text]", wanted)
    page.wait_for_timeout(200)
    assert 0 < shown(page) < len(cells)


def test_sorting_goes_by_value(show: Any, demo_page: Path, demo_run: Path) -> None:
    cells = open_run(demo_run).cells
    page = show(demo_page)
    sort_by(page, "kl")
    largest = page.evaluate(COLUMN, "kl")
    assert float(largest[0]) == pytest.approx(cells["kl"].max(), rel=5e-3)
    sort_by(page, "kl")
    assert float(page.evaluate(COLUMN, "kl")[0]) == cells["kl"].min() == 0
    table = page.locator("details.table", has_text="effects").first
    table.evaluate("d => { d.open = true; }")
    table.locator("thead button", has_text="mean").click()
    heads = table.locator("thead th").all_text_contents()
    got = [float(t.replace("−", "-")) for t in table.locator(f"tbody td:nth-child({heads.index('mean') + 1})").all_text_contents() if t != "–"]
    expected = open_run(demo_run).results["importance"].table("effects")["mean"].sort_values(ascending=False)
    assert got == pytest.approx(expected.to_list(), rel=1e-3, abs=1e-4)


def test_hovering_and_keys_show_the_tables_numbers(show: Any, demo_page: Path, demo_run: Path) -> None:
    effects = open_run(demo_run).results["importance"].table("effects")
    row = effects[(effects["condition"] == "patch") & (effects["layer"] == 1) & (effects["step"] == 0)].iloc[0]
    page = show(demo_page)
    cell = page.locator("td[data-go='condition=patch&layer=1&step=0']")
    assert float(cell.get_attribute("data-value")) == row["mean"]
    cell.hover()
    tip = dict(zip(page.locator("#tip dt").all_text_contents(), page.locator("#tip dd").all_text_contents(), strict=True))
    assert tip["n"] == str(row["n"])
    assert float(tip["value"].replace("−", "-")) == pytest.approx(row["mean"], rel=1e-3)
    low, high = (float(t.replace("−", "-")) for t in tip["interval"].split(" … "))
    assert (low, high) == pytest.approx((row["ci_low"], row["ci_high"]), rel=1e-2)
    cell.click()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.dataset.go") == "condition=patch&layer=1&step=1"
    page.keyboard.press("Enter")
    cells = open_run(demo_run).cells
    assert shown(page) == ((cells["condition"] == "patch") & (cells["layer"] == 1) & (cells["step"] == 1)).sum()


STOP = """() => { const e = document.activeElement, s = getComputedStyle(e), b = e.getBoundingClientRect();
  if (e === document.body) return null;
  e.dataset.stops = Number(e.dataset.stops || 0) + 1;
  return { what: e.id || e.className || e.tagName, main: e.closest("main") !== null, stops: e.dataset.stops,
    ring: s.outlineStyle === "solid" ? parseFloat(s.outlineWidth) : 0,
    named: Boolean((e.getAttribute("aria-label") || e.textContent || e.labels?.[0]?.textContent || "").trim()),
    seen: b.width > 4 && b.height > 4 && b.bottom > 0 && b.top < innerHeight && b.right > 0 && b.left < innerWidth,
    scrolls: e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1,
    tip: !document.getElementById("tip").hidden, facts: "facts" in e.dataset }; }"""


def test_everything_is_reached_by_tab_and_seen_where_it_is(show: Any, demo_page: Path) -> None:
    page = show(demo_page, reduced_motion="reduce", viewport={"width": 900, "height": 700})
    stops = []
    for _ in range(200):
        page.keyboard.press("Tab")
        if (stop := page.evaluate(STOP)) is None:
            break
        stops.append(stop)
    assert stop is None  # nothing holds the focus
    assert stops[0]["what"] == "skip"
    for stop in stops:
        assert (stop["ring"], stop["named"], stop["seen"], stop["stops"]) == (2, True, True, "1"), stop
        assert stop["scrolls"] or stop["what"] not in ("box", "box tall", "PRE"), stop
    maps = [s for s in stops if s["facts"]]
    assert len(maps) == page.locator("table.map").count() > 0
    assert all(s["tip"] == s["facts"] for s in stops)
    assert {"grid", "theme"} <= {s["what"] for s in stops}
    clickable = "main button:not(:disabled), main summary, main input, main select, main img, main a"
    missed = page.locator(clickable).evaluate_all("all => all.filter(e => !e.dataset.stops && e.checkVisibility()).map(e => e.outerHTML.slice(0, 80))")
    assert missed == []


def test_the_skip_link_images_and_rows_answer_keys(show: Any, demo_page: Path) -> None:
    page = show(demo_page, reduced_motion="reduce")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("Tab")
    assert page.evaluate(STOP)["main"]
    image = page.locator(".figures img").first
    image.focus()
    for key, pressed in (("Enter", "true"), (" ", "false")):
        page.keyboard.press(key)
        assert image.get_attribute("aria-pressed") == pressed
        assert ("whole" in (image.get_attribute("class") or "")) == (pressed == "true")
    cell = page.locator("table.map td[data-facts]").nth(3)
    cell.click()
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Tab")
    assert cell.evaluate("e => e === document.activeElement")
    page.locator("#grid").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.getElementById(document.getElementById('grid').getAttribute('aria-activedescendant')).ariaRowIndex") == "3"


def test_a_cell_has_everything_and_an_address(show: Any, demo_page: Path, demo_run: Path) -> None:
    run = open_run(demo_run)
    page = show(demo_page)
    page.evaluate(SET, ["outcome", "changed"])
    page.locator("#grid .row").first.click()
    slot = int(page.evaluate("location.hash").removeprefix("#cell-"))
    row = run.cells[run.slots == slot].iloc[0]
    text = page.text_content("#inside")
    assert str(row["text"]) in text
    assert "How many" in text
    assert page.locator("#inside del").count() >= 1
    assert page.locator("#inside ins").count() >= 1
    page.keyboard.press("Escape")
    assert not page.locator("#cell").is_visible()
    linked = show(demo_page)
    linked.evaluate(f"location.hash = '#cell-{slot}'")
    linked.wait_for_timeout(100)
    assert linked.locator("#cell").is_visible()


def test_hostile_texts_are_only_texts(show: Any, hostile_page: Path) -> None:
    page = show(hostile_page)
    assert page.evaluate("window.pwned") is None
    assert page.locator("main img, main iframe, main a[href^=javascript], main svg[onload]").count() == 0
    for number in range(page.locator("#grid .row").count()):
        page.locator("#grid .row").nth(number).click()
        page.keyboard.press("Escape")
    page.locator("td[data-facts]").first.hover()
    assert page.evaluate("window.pwned") is None
    body = page.evaluate("document.body.innerText") + page.evaluate("document.body.textContent")
    assert "␛[31mred␀" in body
    assert "⟨U+202E⟩gnp.exe" in body
    assert not {"\x1b", "\x00", "\u202e", "\u2066", "\u200b"} & set(body)
    assert HOSTILE["formula"] in body
    assert page.evaluate("document.documentElement.scrollWidth") == 1280


def test_nothing_else_can_run(show: Any, demo_page: Path, tmp_path: Path) -> None:
    injected = tmp_path / "injected.html"
    text = demo_page.read_text(encoding="utf-8")
    attack = "<script>window.pwned = 1</script><p onclick='window.pwned=2' id=bait style='color:red'>bait</p><img src='http://127.0.0.1:9/x.png'>"
    injected.write_text(text.replace("</main>", attack + "</main>"), encoding="utf-8")
    page = show(injected, expect_errors=True)
    refused: list[str] = []
    sent: list[str] = []
    page.on("requestfailed", lambda asked: refused.append(asked.failure))
    page.on("requestfinished", lambda asked: sent.append(asked.url))
    page.reload()
    page.locator("#bait").click()
    page.wait_for_timeout(100)
    assert page.evaluate("window.pwned") is None
    assert page.evaluate("getComputedStyle(document.getElementById('bait')).color") != "rgb(255, 0, 0)"
    assert set(refused) == {"csp"}
    assert all(url == injected.as_uri() or url.startswith("data:") for url in sent)
    assert shown(page) > 0  # its own script runs


def test_a_phone_has_no_sideways_scroll(show: Any, demo_page: Path, hostile_page: Path) -> None:
    for path in (demo_page, hostile_page):
        page = show(path, viewport={"width": 360, "height": 740})
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.locator("#grid .row").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") == 360


def test_dark_and_light_differ_and_stay_readable(show: Any, demo_page: Path) -> None:
    def colours(page: Any) -> list[float]:
        got = page.evaluate("[getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor].map(c => c.match(/[0-9]+/g).map(Number))")
        return [float(np.mean(c[:3])) for c in got]

    page = show(demo_page, color_scheme="dark")
    ink, paper = colours(page)
    assert ink > 180 > 60 > paper
    for _ in range(1):
        page.click("[data-theme-toggle]")
    ink, paper = colours(page)
    assert ink < 60 < 240 < paper


def test_print_shows_every_section_and_all_of_it(show: Any, demo_page: Path) -> None:
    page = show(demo_page)
    sections = page.evaluate("[...document.querySelectorAll('main > section')].map(s => s.id)")
    assert sections == ["what", "checks", "baseline", "analysis-importance", "cells", "provenance", "reproduce"]
    assert page.pdf(format="A4").count(b"/Type /Page\n") >= 3
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate("[...document.querySelectorAll('main > section')].every(s => s.getBoundingClientRect().height > 60)")
    assert page.evaluate("[...document.querySelectorAll('main details')].every(d => d.open)")
    assert page.locator("#excerpt").is_visible()
    assert not page.locator("#browser").is_visible()
    assert page.locator("details.table thead th").first.text_content() != ""


def test_without_script_everything_fixed_is_there(show: Any, demo_page: Path) -> None:
    page = show(demo_page, java_script_enabled=False)
    assert page.locator("#excerpt").is_visible()
    assert page.locator("noscript p").is_visible()
    assert page.locator("table.map td").count() == 4 * 6 + 6


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of 100,400 cells."""
    folder = tmp_path_factory.mktemp("many")
    draw = np.random.default_rng(0)
    with (folder / "log.jsonl").open("w", encoding="utf-8") as file:
        for example in range(400):
            file.write(json.dumps({"e": f"q{example:03}", "c": "baseline", "l": 0, "s": 0, "r": f"The answer is: {example}", "a": 1.0, "k": 0.0}) + "\n")
            for place in range(250):
                said, kl = int(draw.integers(0, 50)), float(draw.random())
                record = {
                    "e": f"q{example:03}",
                    "c": "patch",
                    "l": place // 10,
                    "s": place % 10,
                    "r": f"The answer is: {said}",
                    "a": float(said == example),
                    "k": kl,
                }
                file.write(json.dumps(record) + "\n")
    with chdir(folder):
        maps = ["example=e", "condition=c", "layer=l", "step=s", "text=r", "metrics/accuracy=a", "metrics/kl=k"]
        return report(import_files(["log.jsonl"], maps, "many", str(folder / "run"), None).path)


@pytest.mark.slow
def test_a_hundred_thousand_cells_do_not_freeze(show: Any, many: Path) -> None:
    begun = time.perf_counter()
    page = show(many)
    page.wait_for_selector("#grid .row")
    assert time.perf_counter() - begun < 8  # 0.4 s on an idle core
    assert shown(page) == 100_400
    assert page.locator("#grid .row").count() < 60
    took = page.evaluate(f"() => {{ const t = performance.now(); ({SET})(['layer', '4']); document.body.offsetHeight; return performance.now() - t; }}")
    assert took < 800  # 16 ms on an idle core
    assert shown(page) == 4_000
    page.click("#clear")
    took = page.evaluate(
        "() => { const t = performance.now();"
        " [...document.querySelectorAll('#hrow button')].find(b => b.textContent === 'kl').click(); return performance.now() - t; }"
    )
    assert took < 3000  # 60 ms on an idle core
    page.evaluate("() => { const g = document.querySelector('#grid'); g.scrollTop = g.scrollHeight; }")
    page.wait_for_timeout(300)
    last = "Math.max(...[...document.querySelectorAll('#grid .row')].map(r => Number(r.getAttribute('aria-rowindex'))))"
    assert page.evaluate(last) == 100_401
