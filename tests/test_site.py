"""The documentation site: generated references are current, it builds without a warning, links lead somewhere, nothing is fetched."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[1]


class Html(HTMLParser):
    """What a page links to, loads and names: ``loads`` is fetched when the page is read, ``links`` only when they are followed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {k: v or "" for k, v in attrs}
        if "id" in found:
            self.ids.add(found["id"])
        if (tag == "a" and "href" in found) or (tag == "link" and found.get("rel") in ("canonical", "next", "prev", "edit")):
            self.links.append(found["href"])
        else:
            self.loads += [found[k] for k in ("src", "href", "poster", "data") if k in found and tag != "a"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site; any warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    made = subprocess.run(command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=100, check=False)
    assert made.returncode == 0, made.stdout + made.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {p: Html(p.read_text(encoding="utf-8")) for p in sorted(site.rglob("*.html"))}


def test_generated_references_are_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    reference = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reference)
    old = reference.stale()
    assert old == [], f"run: {reference.COMMAND}"


def test_every_option_of_the_reference_is_explained() -> None:
    text = (ROOT / "docs/reference/experiment.md").read_text(encoding="utf-8")
    bare = [line for line in text.splitlines() if line.startswith("| `") and line.rstrip("| ").count(" | ") < 3]
    assert bare == []


def test_internal_links_and_files_exist(site: Path, pages: dict[Path, Html]) -> None:
    assert len(pages) > 25
    broken = []
    for path, page in pages.items():
        for target in [*page.links, *page.loads]:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or path.name == "404.html":
                continue
            where = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            where = where / "index.html" if where.is_dir() else where
            if not where.is_file() or (parts.fragment and where in pages and unquote(parts.fragment) not in pages[where].ids | {"__toc"}):
                broken.append(f"{path.relative_to(site)}: {target}")
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[Path, Html]) -> None:
    outside = {t for page in pages.values() for t in page.loads if urlsplit(t).scheme in ("http", "https") or t.startswith("//")}
    assert outside == set()
    styles = {url for p in site.rglob("*.css") for url in re.findall(r"url\([\"']?(https?:[^)]*|//[^)]*)\)", p.read_text(encoding="utf-8"), re.DOTALL)}
    assert styles == set()
    assert not any("mermaid" in p.read_text(encoding="utf-8") for p in site.rglob("*.html"))  # the theme would fetch it


def test_lists_and_tables_are_not_swallowed_by_paragraphs(pages: dict[Path, Html]) -> None:
    inside = re.compile(r"<p>(?:(?!</p>).)*?\n(?:- |\| |\d\. )[^\n]{0,80}", re.DOTALL)
    swallowed = {path.name: found[0] for path in pages if (found := inside.search(path.read_text(encoding="utf-8")))}
    assert swallowed == {}
    assert inside.search("<p>a <code>b</code>:\n- item</p>")


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Serve the site on a port of this machine."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    server.server_close()
    thread.join(5)


def _search(page: Any, text: str, result: str) -> None:
    """Type until the result is there: what is typed before the page listens is lost."""
    from playwright.sync_api import TimeoutError as TooLate

    for last in (False,) * 9 + (True,):
        page.fill("input[name=query]", "", timeout=10_000)
        page.type("input[name=query]", text, timeout=10_000)
        try:
            page.wait_for_selector(result, state="attached", timeout=3_000)
            return
        except TooLate:
            assert not last, f"searching for '{text}' does not find {result}"


def test_the_site_in_a_browser(address: str, browser: Any) -> None:
    """Search works, no request leaves this machine, no script fails, and a phone scrolls down only."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    try:
        asked: list[str] = []
        failed: list[str] = []
        page.on("request", lambda r: asked.append(r.url))
        page.on("pageerror", lambda e: failed.append(str(e)))
        page.goto(address + "tutorial.html", timeout=15_000)
        _search(page, "freeze", ".md-search-result__link[href*='propagate-freeze']")
        page.set_viewport_size({"width": 390, "height": 844})
        for name in ("index", "tutorial", "concepts/steps", "concepts/coming-from", "reference/experiment", "reference/cli", "analyses"):
            page.goto(f"{address}{name}.html", timeout=15_000)
            assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0, name
        assert [u for u in asked if not u.startswith((address, "data:", "blob:"))] == []
        assert failed == []
    finally:
        page.close()
