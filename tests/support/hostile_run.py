"""Runs of which everything that can be named is hostile, and a browser that says what a page tried."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any

import pandas as pd

from codi_engine.core.imports.importing import import_files
from codi_engine.core.watching.notes import add_note
from tests.support.hostile import Hostile, storable

#: what becomes what of the records
MAPS = ["example=e", "condition=c", "target=t", "layer=l", "text=r", "fields/origin=f", "metrics/accuracy=m", "metrics/change=k"]
#: said in the page by whatever runs in it that must not
CANARY = """
window.pwned = undefined;
window.violations = [];
for (const name of ["alert", "confirm", "prompt", "open"]) window[name] = () => { window.pwned = name; };
document.addEventListener("securitypolicyviolation", (e) => window.violations.push(e.violatedDirective + " " + e.blockedURI));
"""


def records(strings: Sequence[Hostile]) -> list[dict[str, object]]:
    """Return a record for each string unedited and edited: as example, condition, target, text and field of the data."""
    found: list[dict[str, object]] = []
    for number, one in enumerate(strings):
        same = {"e": one.text, "t": one.text, "f": one.text, "l": number % 3}
        found.append({**same, "c": "baseline", "r": f"was {one.text}", "m": 1.0, "k": 0.0})
        found.append({**same, "c": one.text, "r": one.text, "m": 0.0, "k": -1.5 - number})
    return found


def hostile_run(folder: Path, strings: Sequence[Hostile]) -> Path:
    """Import the records as ``folder/run``, with notes and a result whose summary, tables and columns are hostile too; return it."""
    log = folder / "log.jsonl"
    log.write_text("".join(json.dumps(r) + "\n" for r in records(strings)), encoding="utf-8")
    with chdir(folder):
        path = import_files([log.name], MAPS, "hostile", str(folder / "run"), None).path
    for one in strings:
        if one.text.strip():
            add_note(path, one.text)
    texts = [storable(one.text) for one in strings]
    result = path / "results" / "nasty"
    result.mkdir(parents=True)
    (result / "summary.txt").write_text("\n".join(texts), encoding="utf-8")
    effects = pd.DataFrame({"condition": texts, "step": range(len(texts)), "n": 3, "mean": -1.5, "ci_low": 0.0, "ci_high": 1.0, "note": texts})
    effects.to_parquet(result / "effects.parquet")
    pd.DataFrame([[-1.5] * len(texts), [2.0] * len(texts)], columns=texts).to_parquet(result / "wide.parquet")
    return path


class Page:
    """A page of headless Chromium; :meth:`check` says what it tried. ``own``: beginnings of the addresses that it may ask for."""

    def __init__(self, browser: Any, own: Sequence[str]) -> None:
        self.said: list[str] = []
        self._context = browser.new_context(viewport={"width": 1000, "height": 800})
        self._context.add_init_script(CANARY)
        self.page = self._context.new_page()
        self.page.on("console", lambda m: self.said.append(f"console: {m.text}"))
        self.page.on("pageerror", lambda e: self.said.append(f"error: {e}"))
        self.page.on("dialog", self._dialog)
        self.page.on("popup", lambda p: self.said.append(f"popup: {p.url}"))
        self.page.on("download", lambda d: self.said.append(f"download: {d.url}"))
        self.page.on("request", lambda r: None if r.url.startswith((*own, "data:")) else self.said.append(f"request: {r.url}"))
        self.page.on("framenavigated", lambda f: None if f.url.startswith((*own, "about:")) else self.said.append(f"navigation: {f.url}"))

    def _dialog(self, dialog: Any) -> None:
        self.said.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def check(self) -> None:
        """Demand that nothing was run, asked for, navigated to or refused by the policy, in any frame."""
        for frame in self.page.frames:
            assert frame.evaluate("[window.pwned === undefined, window.violations]") == [True, []]
        assert self.said == []

    def text(self) -> str:
        """Return everything that the page says: texts, attributes that are shown, values of fields."""
        return str(
            self.page.evaluate(
                "[...document.querySelectorAll('*')].flatMap(e => [...[...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data),"
                " ...['title', 'alt', 'aria-label', 'placeholder'].map(a => e.getAttribute(a) || '')]).join('\\n')"
            )
        )

    def close(self) -> None:
        self._context.close()


def squeezed(text: str) -> str:
    """Return the text without white space: where a page breaks or joins lines says nothing."""
    return re.sub(r"\s+", "", text)
