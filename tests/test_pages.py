"""Every page of the documentation is a program that runs: see tests/support/pages.py for what is run and how."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine.core.runs import drawing
from tests.support.pages import Block, Page, _close, blocks, compare, exists, validate

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = {"reference/experiment.md", "reference/cli.md", "reference/api.md"}
README = ROOT / "README.md"
#: blocks of the README that are not run (their commands and options must exist): how they begin, and why
README_LEFT_OUT = {
    "codi-engine plan position-patching.yaml": "needs a checkpoint",
    "codi-engine analyze runs/features": "needs the runs of other pages",
    'import codi_engine\n\nrun = codi_engine.open_run("runs/position-patching")': "needs a checkpoint",
    "codi-engine run position-patching.yaml --device": "needs a checkpoint",
    "codi-engine run study.yaml --shard auto": "needs other processes, a scheduler and a bucket",
    "codi-engine pairs generate": "needs files of your own",
    "pip install .": "an installation needs the network",
}
PAGES = [README, *sorted(p for p in DOCS.rglob("*.md") if p.relative_to(DOCS).as_posix() not in GENERATED)]
TUTORIAL = DOCS / "tutorial.md"
#: dots per inch of the figures that pages make
SMALL = 30


@pytest.fixture(scope="session")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with runs/demo, computed once: the pages that run the demo find it finished."""
    import os

    from codi_engine.cli.main import main

    folder = tmp_path_factory.mktemp("demo")
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main(["run", "--quiet"]) == 0
    finally:
        os.chdir(here)
    return folder


#: its commands take longest, and most of them stand in other pages, too
LONG = ROOT / "docs" / "analyses.md"


@pytest.mark.parametrize("path", [pytest.param(p, marks=pytest.mark.slow) if p == LONG else p for p in PAGES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_page(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(drawing.save, "__defaults__", ("", SMALL))  # most of a page's time would be pixels that nobody looks at
    if "runs/demo" in text or "codi-engine run\n" in text:
        shutil.copytree(request.getfixturevalue("demo_run") / "runs", tmp_path / "runs")
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("plugins", "runs"))
    page = Page(path.relative_to(ROOT).as_posix(), tmp_path)
    page.run(text, README_LEFT_OUT if path == README else None)
    if path == TUTORIAL:
        assert "codi-engine run which-step.yaml" in page.ran
        _tables_are_true(text, page.names)


def _tables_are_true(text: str, names: dict[str, Any]) -> None:
    """Hold what the tutorial says of tables and cells against what its own Python has just read."""
    three = names["three"].set_index(["condition", "step"])
    rows = re.findall(r"^\| (zero|resample) \| (\d) \| (\d+) \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \|", text, re.MULTILINE)
    assert len(rows) == 6
    for condition, step, *numbers in rows:
        found = three.loc[(condition, int(step)), ["n", "mean", "ci_low", "ci_high"]].to_numpy(float)
        assert np.abs(found - np.array(numbers, float)).max() < 0.011, (condition, step)
    assert (names["unedited"], names["edited"]) == (72, 80)
    answers = names["one"].set_index(["condition", "step"])["answer"]
    assert list(answers["zero"]) == [80, 75, 84, 84, 72, 72]
    assert list(answers["resample"]) == [66, 72, 72, 72, 72, 72]


def test_the_numbers_of_the_tutorials_finding_are_those_of_its_tables() -> None:
    text = " ".join(TUTORIAL.read_text(encoding="utf-8").split())
    finding = text.split("## 7.")[1]
    for share in ("47 %", "33 to 63 %", "15 %", "7 to 29 %", "none of 40", "at most 9 %", "28 % and 23 %"):
        assert share in finding.replace("> ", ""), share
    for row in ("| resample | 0 | 40 | 0.47 | 0.33 to 0.63 |", "| resample | 1 | 40 | 0.15 | 0.07 to 0.29 |", "| resample | 2 | 40 | 0.00 | 0.00 to 0.09 |"):
        assert row in text


def test_blocks_are_found() -> None:
    text = (
        "# A\n\n    codi-engine run\n    codi-engine ls\n\n- item\n\n    not a block\n\ntext\n\n"
        "<!-- not run: needs a GPU -->\n```bash\ncodi-engine ls\n```\n\n"
        '```jsonl title="a.jsonl"\n{}\n```\n\n```yaml\n# b.yaml\nname: b\n```\n\n<!-- before: codi-engine ls -->\nwords\n'
    )
    found = blocks(text)
    assert [(b.language, b.title, b.skipped, b.before) for b in found] == [
        ("", "", "", ""),
        ("bash", "", "needs a GPU", ""),
        ("jsonl", "a.jsonl", "", ""),
        ("yaml", "b.yaml", "", ""),
        ("text", "", "", "codi-engine ls"),
    ]
    assert found[0] == Block(3, "", "codi-engine run\ncodi-engine ls")


def test_wrong_pages_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = {
        "```bash\ncodi-engine lss\n```": "lss",
        "```bash\ncodi-engine plan FILE --measures\n```": "--measures",
        "```yaml\nsweeep: {step: all}\n```": "sweep",
        "```python\n1 / 0\n```": "ZeroDivisionError",
        "```console\n$ codi-engine plugins show zero\nintervention zerro …\n```": "zerro",
        "    codi-engine status runs/none": "none",
        "<!-- not run: no network -->\n```bash\ncodi-engine run x.yaml --deviice all\n```": "--deviice",
    }
    for text, said in wrong.items():
        with pytest.raises(AssertionError, match=said):
            Page("page.md", tmp_path).run(text)


def test_output_is_compared_number_by_number() -> None:
    printed = "model  codi: checkpoint demo\nlayer 3   0.26*  0.04*\nrandom +0.06, wrong\nstep +0.36 against +0.78\n"
    compare(["layer 3   0.27*  0.04", "model codi…", "…", "random +0.06, wrong step +0.36"], printed)
    for line in ("layer 3   0.36*  0.04*", "layer 2   0.26*  0.04*", "layer 3   0.26*", "model codi"):
        with pytest.raises(AssertionError, match="the page shows"):
            compare([line], printed)
    assert _close("3,072", "3,072")
    assert not _close("60", "80")


def test_parts_of_experiments_are_validated() -> None:
    validate("sweep: {step: all}")
    exists(["plan", "FILE", "--measure"])
