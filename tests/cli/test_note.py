"""``codi-engine note`` as a command."""

from __future__ import annotations

import io
import json
import stat
from pathlib import Path

import pytest

from codi_engine.cli.main import main
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), "runs/one")
    return "runs/one"


def test_add_and_show(run: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["note", run]) == 0
    assert "no notes yet" in capsys.readouterr().out
    assert main(["note", run, "layer", "3", "matters"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe \x1b[31m\n"))
    assert main(["note", run, "-"]) == 0
    assert "noted in runs/one/notes.md" in capsys.readouterr().out
    with Path(run, "experiment.yaml").open("a", encoding="utf-8") as file:
        file.write("hypothesis: early steps carry it\n")
    assert main(["note", run]) == 0
    out = capsys.readouterr().out
    assert out.index("early steps carry it") < out.index("layer 3 matters") < out.index("from a pipe \\x1b[31m")
    assert "\x1b[31m" not in out
    assert main(["note", run, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["hypothesis"] == "early steps carry it"
    assert [n["text"] for n in found["added"]] == ["layer 3 matters", "from a pipe \x1b[31m"]


def test_with_an_editor(run: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path("editor.sh")
    script.write_text('#!/bin/sh\nsleep 0.01\necho "written in an editor" > "$1"\ntouch -d "2030-01-01" "$1"\n', encoding="utf-8")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("EDITOR", str(script.absolute()))
    monkeypatch.delenv("VISUAL", raising=False)
    assert main(["note", run, "--edit"]) == 0
    assert main(["note", run]) == 0
    assert "written in an editor" in capsys.readouterr().out
    monkeypatch.setenv("EDITOR", "true")
    assert main(["note", run, "--edit"]) == 0
    assert "nothing was written" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"), [(["nowhere", "x"], "holds no run"), (["runs/one", "  "], "no words"), (["runs/one", "x", "--edit"], "not both")]
)
def test_refusals(run: str, capsys: Capture, arguments: list[str], said: str) -> None:
    assert main(["note", *arguments]) == 2
    assert said in capsys.readouterr().err
