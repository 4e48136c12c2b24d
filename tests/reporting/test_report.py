"""The report as a whole, and its command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import codi_engine
from codi_engine import open_run
from codi_engine.cli.main import main
from codi_engine.reporting import SECTIONS, Section, render_page
from codi_engine.reporting.plain import conditions
from codi_engine.reporting.section import render
from codi_engine.reporting.words import said


def test_it_is_written_without_torch(demo_run: Path, tmp_path: Path) -> None:
    code = "import sys, codi_engine; codi_engine.report(sys.argv[1], sys.argv[2]); sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(Path(codi_engine.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code, str(demo_run), str(tmp_path / "r.html")], env=environment, timeout=50, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert "small-demo" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_command(demo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(demo_run), "-o", str(tmp_path / "new" / "r.html"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["bytes"] == Path(said["report"]).stat().st_size
    assert main(["report", str(demo_run), "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert (demo_run / "report.html").is_file()
    (demo_run / "report.html").unlink()


@pytest.mark.parametrize("case", ["missing", "directory", "unwritable"])
def test_mistakes_are_one_line(case: str, demo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    arguments = {  # nothing there, a folder as the file, a file as the folder
        "missing": [str(tmp_path / "none")], "directory": [str(demo_run), "-o", str(tmp_path)], 
        "unwritable": [str(demo_run), "-o", str(tmp_path / "file" / "r.html")],
    }[case]  # fmt: skip
    assert main(["report", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1
    assert not list(tmp_path.glob("**/.report-*"))


def test_checkpoints_are_refused_by_name(demo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "family").mkdir()
    for name in ("step-10", "step-20"):
        (tmp_path / "family" / name).symlink_to(demo_run)
    assert main(["report", str(tmp_path / "family")]) == 2
    said = capsys.readouterr().err
    assert "step-10, step-20" in said
    assert "codi-engine report" in said


def test_what_it_says_of_a_run(demo_page: Path, demo_run: Path) -> None:
    text = demo_page.read_text(encoding="utf-8")
    run = open_run(demo_run)
    assert "on 5 pairs of demo-pairs: patch at resid_post and zero at latent_in, over 4 layers × 6 steps." in text
    assert "Layer 1 carries the answer." in text
    assert run.digest in text
    assert f"<strong>{len(run.cells):,}</strong>" in text
    assert text.count(">passed<") == 2
    assert "plugin: demo-pairs" in text


def test_a_condition_s_sweep_stands_in_place_of_the_common_one() -> None:
    sweep = {"layer": "all", "step": "all"}
    spec = {"plugin": "zero", "site": "latent_in"}
    experiment = {"intervention": spec, "sweep": sweep, "conditions": {"own": {"sweep": {"step": [0]}}, "common": {"sweep": None}, "bare": None}}
    found = {name: where for name, _, where in conditions(SimpleNamespace(experiment=experiment))}  # type: ignore[arg-type]
    assert found == {"own": {"step": [0]}, "common": sweep, "bare": sweep}


@pytest.mark.parametrize(("value", "shown"), [
    (True, "yes"), ([["a", "b"], ["c", "d"]], "a − b, c − d"), ({"step": [0, 1]}, "step 0, 1"), (["flip"], "flip"), (0.05, "0.05"),
])  # fmt: skip
def test_options_are_written_in_words(value: object, shown: str) -> None:
    assert said(value) == shown


def test_the_gate_is_kept_and_shown(demo_page: Path, demo_run: Path) -> None:
    gate = open_run(demo_run).provenance["gate"]
    assert [g["condition"] for g in gate][:2] == ["patch", "zero"]
    assert all(g["rows edited"] >= g["rows changed"] > 0 for g in gate)
    assert gate[0]["put back"] == "exact"
    assert ">Gate<" in demo_page.read_text(encoding="utf-8")


def test_stale_results_say_so(demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run(demo_run)
    assert "earlier state" not in render_page(run)
    file = demo_run / "results" / "importance" / "result.json"
    kept = file.read_text(encoding="utf-8")
    value = json.loads(kept)
    value["runs"][0]["digest"] = "0" * 64
    try:
        file.write_text(json.dumps(value), encoding="utf-8")
        assert "Made of an earlier state of this run" in render_page(open_run(demo_run))
    finally:
        file.write_text(kept, encoding="utf-8")


def test_further_sections_stand_after_the_analyses(demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "codi_engine.reporting.page.SECTIONS",
        [lambda run: Section("mine", "<Mine>", render("checks.html", rows=[], gate=[], stale=True, columns=[])), lambda run: None],
    )
    text = render_page(open_run(demo_run))
    assert text.index('id="analysis-importance"') < text.index('<section id="mine"') < text.index('<section id="cells"')
    assert "&lt;Mine&gt;" in text
    assert isinstance(SECTIONS, list)


def test_an_unfinished_run_says_how_far_it_is(demo_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(demo_run, tmp_path / "run")
    assert "not finished" not in render_page(open_run(run))
    lines = (run / "ledger").read_bytes().splitlines(keepends=True)
    for name in ("ledger", "copies/ledger.copy"):
        (run / name).write_bytes(b"".join(lines[:-1]))  # as if the last unit had not been committed
    text = render_page(open_run(run))
    assert "not finished" in text
    assert "of the planned cells" in text
    assert "Made of an earlier state" in text


def test_a_run_without_metrics_analyses_or_data(hostile_run: Path, hostile_page: Path) -> None:
    text = hostile_page.read_text(encoding="utf-8")
    assert "An imported or synthetic run" in text
    assert '<section id="reproduce"' not in text
