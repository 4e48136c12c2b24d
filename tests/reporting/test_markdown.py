"""The journal page: counts of errors against a naive count, numbers out of the tables, foreign text that stays text."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_engine import open_run
from codi_engine.core.errors import UserError
from codi_engine.core.runs.results import Run
from codi_engine.core.watching.notes import add_note
from codi_engine.reporting import mistakes as module
from codi_engine.reporting.escape import block, code, md
from codi_engine.reporting.markdown import _strongest, markdown, write_markdown
from codi_engine.reporting.mistakes import mistakes


def test_errors_are_counted_as_one_would_by_hand(patched: Run) -> None:
    found = mistakes(patched)
    cells = patched.cells
    base = cells[cells["condition"] == "baseline"]
    assert (found.unedited, found.wrong, found.missing) == (len(base), int((base["accuracy"] == 0).sum()), int(base["answer"].isna().sum()))
    before = {(r["example"], r["variant"]): r["accuracy"] for r in base.to_dict("records")}
    assert [c.condition for c in found.changes] == ["patch"]
    change = found.changes[0]
    edited = cells[cells["condition"] == "patch"].to_dict("records")
    broken = [r for r in edited if before[r["example"], r["variant"]] == 1 and r["accuracy"] == 0]
    assert (change.broken, change.cells, change.compared) == (len(broken), len(edited), len(edited))
    assert change.broken > 0
    assert change.mended == sum(before[r["example"], r["variant"]] == 0 and r["accuracy"] == 1 for r in edited)
    texts = {(r["example"], r["variant"], r["layer"], r["step"]): r["text"] for r in broken}
    for case in change.broke:
        axes = dict(part.rsplit(" ", 1) for part in case.where.split(", "))
        assert case.edited == texts[axes["example"], axes["variant"], int(axes["layer"]), int(axes["step"])]
        assert f"{case.gold:g}" not in case.edited


def test_undefined_values_are_counted(patched: Run) -> None:
    found = mistakes(patched).undefined
    cells = patched.cells
    for metric in patched.metrics:
        counts = {c: int(p[metric].isna().sum()) for c, p in cells.groupby("condition") if "~" not in str(c) and p[metric].isna().any()}
        assert found.get(metric, {}) == counts


def test_the_page(patched: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(patched.path, tmp_path / "runs" / "copy")
    add_note(copy, "seen *twice*\nand <script>alert(1)</script>")
    path = write_markdown(open_run(copy))
    text = path.read_text(encoding="utf-8")
    assert path == copy / "report.md"
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {t}" for t in ("Method", "Findings", "Errors", "Limitations", "Notes", "Provenance")
    ]
    assert r"early steps carry the \*operands\*" in text
    assert r"seen \*twice\* and \<script\>" in text
    assert "6 pairs swept" in text
    assert "denoise: sufficiency" in text
    assert "Controls at the same places: `patch`: random" in text
    assert "The experiment demands no checks" in text
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(links) >= 2
    assert all((copy / link).is_file() for link in links)
    first = open_run(copy).results["importance"].table("effects").sort_values("q").iloc[0]
    rows = [line for line in text.splitlines() if line.startswith("| ") and f"{first['q']:.2g} |" in line]
    assert any(f"{first['mean']:.3g}".replace("-", "−") in row and f" {int(first['n'])} " in row for row in rows)


def test_elsewhere_links_still_lead_to_the_figures(patched: Run, tmp_path: Path) -> None:
    text = write_markdown(patched, tmp_path / "my page.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert links
    assert all((tmp_path / link).resolve().is_file() for link in links)
    with pytest.raises(UserError, match="is a directory"):
        write_markdown(patched, tmp_path)
    with pytest.raises(UserError, match="cannot be written"):
        write_markdown(patched, tmp_path / "my page.md" / "page.md")


def test_synthetic_runs_and_runs_without_results(planted: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(planted.path, tmp_path / "copy")
    text = write_markdown(open_run(copy)).read_text(encoding="utf-8")
    assert "synthetic or imported" in text
    assert "Which answers are right is not known" in text
    assert re.search(r"Strongest effects \(of \d+ with a q, \d+ significant\):", text)
    shutil.rmtree(copy / "results")
    assert "Nothing was analysed yet" in write_markdown(open_run(copy)).read_text(encoding="utf-8")


def test_checks_that_failed_or_could_not_be_decided_are_limits(patched: Run, tmp_path: Path) -> None:
    copy = shutil.copytree(patched.path, tmp_path / "copy")
    folder = copy / "results" / "checks"
    folder.mkdir()
    rows = [("accuracy", True, "passed"), ("sign", False, "failed"), ("go", None, "not decided")]
    table = pd.DataFrame([{"check": c, "wanted": ">= 1", "found": "0.5", "passed": p, "result": r} for c, p, r in rows])
    table["passed"] = table["passed"].astype("boolean")
    table.to_parquet(folder / "checks.parquet")
    limits = write_markdown(open_run(copy)).read_text(encoding="utf-8").split("## Limitations")[1].split("## Notes")[0]
    assert "Check `sign`" in limits
    assert "Check `go`" in limits
    assert "Check `accuracy`" not in limits


MARKUP = st.text(st.sampled_from("<>[]()*_`#|~!$&:/\\.-+= \n\t1a@\u202e\x1b"), min_size=1, max_size=40)


@given(MARKUP)
def test_foreign_text_has_no_markup_left(text: str) -> None:
    shown = md(text)
    assert "\n" not in shown
    assert "\u202e" not in shown
    assert "\x1b" not in shown
    assert re.search(r"(?<!\\)(?:\\\\)*[<>\[\]`*_|~]", shown) is None
    assert "://" not in shown
    assert re.match(r"(?:[-+=]|\d+[.)])(?:\s|\Z)", shown) is None


@given(MARKUP)
def test_code_cannot_be_left(text: str) -> None:
    inline, fenced = code(text), block(text)
    fence = re.match(r"`+", inline)
    assert fence is not None
    assert inline[len(fence[0]) : -len(fence[0])].find(fence[0]) == -1
    assert "\n" not in inline
    lines = fenced.split("\n")
    assert lines[-1] == lines[0].removesuffix("text")
    assert all(lines[-1] not in line for line in lines[1:-1])


def test_what_is_significant_is_what_the_analysis_says() -> None:
    frame = pd.DataFrame({"condition": ["a", "b", "c"], "mean": [0.5, 0.01, 0.2], "n": [9, 9, 9], "q": [0.001, 0.01, 0.05]})
    small = frame.assign(significant=[True, False, False])  # min_effect, and a q of exactly the level
    assert _strongest(small)[0] == "Strongest effects (of 3 with a q, 1 significant):"
    assert _strongest(frame)[0] == "Strongest effects (of 3 with a q):"
    assert "0.05" in _strongest(small)[1]


def test_rates_are_of_answers_whose_being_right_is_known(patched: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    base = patched.store.codes("condition") == patched.store.labels("condition").index("baseline")
    right = np.where(base, 1.0, np.nan)
    right[np.flatnonzero(base)[:3]] = [0.0, np.nan, np.nan]
    monkeypatch.setattr(module, "_right", lambda run: (right, np.full(len(right), np.nan), "by hand"))
    n = int(base.sum())
    assert f"1 of {n} answers are wrong ({1 / (n - 2):.1%}), of 2 it is not known" in markdown(patched, patched.path)
