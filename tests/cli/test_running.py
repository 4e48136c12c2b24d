"""``plan``, ``run --test``, ``status`` and ``ls`` as commands."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from codi_engine.cli.main import main

SMALL = """
name: small
controls: none
model: {plugin: codi, checkpoint: demo, device: cpu}
data: {plugin: demo-pairs, both_correct: true, limit: 8}
intervention: {plugin: patch, site: resid_post, direction: denoise}
sweep: {layer: [0, 3], step: [0, 5]}
metrics: [normalized_effect, flip, accuracy]
generate: {max_new_tokens: 8}
analyses: [importance]
"""
CHECKS = """
checks:
  accuracy: ">= 0.9"
  peak_memory: "<= 8 GB"
  sign: {example: "9", condition: patch, layer: 0, step: 0, metric: normalized_effect, sign: "+"}
  go: {metric: flip, condition: patch, at: {step: 5, layer: 3}, value: ">= 0.05", n: 2}
"""
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process, in a directory with ``small.yaml`` and ``checked.yaml``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODI_ENGINE_PLUGINS", "")
    monkeypatch.setenv("COLUMNS", "100")
    Path("small.yaml").write_text(SMALL, encoding="utf-8")
    Path("checked.yaml").write_text(SMALL + CHECKS, encoding="utf-8")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def without_numbers(text: str) -> list[list[str]]:
    """Times are measured anew by each command."""
    return [re.sub(r"[\d.,]+ ?(s|min|MB|kB|B|GB)?\b", "#", line).split() for line in text.splitlines()]


def test_a_plan_is_a_table_of_stages(cli: Run) -> None:
    code, out, err = cli("plan", "small.yaml")
    assert (code, err) == (0, "")
    for stage in ("load", "baseline", "sweep", "analysis importance", "total"):
        assert re.search(rf"^{stage}\s", out, re.MULTILINE), stage
    assert re.search(r"^stage\s+forwards\s+time\s+GPU-hours\s+peak memory\s+disk\s*$", out, re.MULTILINE)
    assert all(len(line) <= 100 for line in out.splitlines())
    assert without_numbers(cli("run", "small.yaml", "--dry-run")[1]) == without_numbers(out)
    assert not Path("runs").exists()


def test_a_plan_has_a_price_and_is_json(cli: Run) -> None:
    _, out, _ = cli("plan", "small.yaml", "--price", "3.6", "-s", "analyses=[words]")
    assert "at 3.6 per hour of this machine" in out
    assert "without analysis words (unknown)" in " ".join(out.split())
    code, out, _ = cli("plan", "small.yaml", "--json", "--price", "3.6", "--limit", "2")
    assert code == 0
    plan = json.loads(out)
    assert plan["cells"] == 8
    assert plan["total"]["money"] == pytest.approx(plan["total"]["seconds"] * 0.001)
    assert [s["stage"] for s in plan["stages"]] == ["load", "baseline", "sweep", "analysis importance"]
    code, _, err = cli("plan", "small.yaml", "--price", "-1")
    assert code == 2
    assert "--price" in err


def test_a_measured_plan_says_how_much_was_timed(cli: Run) -> None:
    code, out, _ = cli("plan", "small.yaml", "--measure", "-q")
    assert code == 0
    assert "timed on 16 unedited and 32 edited cells" in out
    assert not Path("runs").exists()


def test_a_failed_check_is_exit_code_3(cli: Run) -> None:
    code, out, _ = cli("run", "checked.yaml", "--test", "-q")
    assert code == 3
    assert re.search(r"^accuracy\s+>= 0.9\s+.*\spass\s*$", out, re.MULTILINE)
    assert "NO-GO" in out
    assert re.search(r"^sign\s.*–\s+not run\s*$", out, re.MULTILINE)  # example 9 is not among the first five
    assert "1 of 3 checks failed" in out
    assert "was temporary" in out
    assert all(len(line) <= 100 for line in out.splitlines())
    assert not Path("runs").exists()
    assert cli("run", "checked.yaml", "-q", "-s", "checks={flip: '<= 1'}")[0] == 0
    assert cli("run", "checked.yaml", "-q")[0] == 3  # evaluated again, nothing is computed
    assert Path("runs/small/results/checks/checks.parquet").is_file()
    code, _, err = cli("run", "checked.yaml", "--test", "-s", "checks={acuracy: '>= 1'}")
    assert code == 2
    assert "did you mean 'accuracy'" in err


def test_a_test_without_checks_says_so(cli: Run) -> None:
    code, out, _ = cli("run", "small.yaml", "--test", "--limit", "2", "--output", "kept", "-q")
    assert code == 0
    assert re.search(r"^checks\s+none in the file", out, re.MULTILINE)
    assert Path("kept/ledger").is_file()


def test_status_and_ls(cli: Run) -> None:
    _, out, _ = cli("run", "small.yaml", "-q", "-s", "price=2")
    assert re.search(r"^time\s+took [\d.]+ (s|min), estimated [\d.]+ (s|min)", out, re.MULTILINE)
    code, out, err = cli("status", "runs/small")
    assert (code, err) == (0, "")
    assert re.search(r"^state\s+finished", out, re.MULTILINE)
    assert re.search(r"^sweep\s+1 of 1\s+32 of 32", out, re.MULTILINE)
    assert re.search(r"^stage\s+estimated\s+took\s+variance", out, re.MULTILINE)
    assert re.search(r"^total\s.*[+-]\d+%", out, re.MULTILINE)
    assert json.loads(cli("status", "runs/small", "--json")[1])["cells"] == 48
    cli("run", "small.yaml", "-q", "--output", "runs/deep/er")
    code, out, _ = cli("ls")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["run", "runs/deep/er", "runs/small"]
    _, out, _ = cli("ls", "runs", "--cost")
    assert out.splitlines()[0].split() == ["run", "state", "cells", "disk", "finished", "time", "GPU-hours", "money", "estimated", "variance"]
    found = json.loads(cli("ls", "--json", "--cost")[1])
    assert found[1]["actual"]["total"]["money"] == pytest.approx(found[1]["actual"]["total"]["seconds"] * 2 / 3600)
    assert "actual" not in json.loads(cli("ls", "--json")[1])[0]
    assert cli("ls", "nowhere")[0] == 2
    assert cli("status", "nowhere")[0] == 2
    Path("empty").mkdir()
    assert "no runs here" in cli("ls", "empty")[1]
