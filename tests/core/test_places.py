"""What is said where a path holds no run or no file."""

from __future__ import annotations

from pathlib import Path

import pytest

from codi_engine.core.errors import UserError
from codi_engine.core.runs.places import no_run, similar
from codi_engine.core.runs.results import open_run
from codi_engine.core.runs.stored import stored_results
from codi_engine.core.watching.status import status_of
from codi_engine.core.yamlfile import read_yaml
from codi_engine.store.layout import EXPERIMENT, LEDGER, LOCK


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("demo", "which-step"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / LEDGER).write_bytes(b"x")
    (tmp_path / "runs" / "begun").mkdir()
    (tmp_path / "runs" / "begun" / LOCK).write_text("{}")
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    return tmp_path


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("runs/dmo", "runs/dmo: holds no run (there is no ledger); did you mean 'runs/demo'?"),
        ("runs/unlike", "runs/unlike: holds no run (there is no ledger); `codi-engine ls` lists the runs in runs/"),
        ("nowhere/at/all", "nowhere/at/all: holds no run (there is no ledger); `codi-engine ls` lists the runs in runs/"),
        ("runs", "runs: holds no run itself; `codi-engine ls runs` lists those below it"),
        ("runs/begun", "runs/begun: holds no run yet: it is being prepared, nothing is committed"),
        ("mine.yaml", "mine.yaml: is a file and holds no run; give a run directory, such as runs/demo"),
    ],
)
def test_no_run_says_what_lies_near(runs: Path, path: str, said: str) -> None:
    assert str(no_run(path)) == said
    with pytest.raises(UserError) as status:
        status_of(path)
    assert str(status.value) == said


def test_opening_a_misspelt_run_suggests_the_run(runs: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'runs/which-step'"):
        open_run("runs/which_step")


def test_a_missing_file_suggests_its_neighbour_and_never_itself(runs: Path) -> None:
    assert similar(Path("mine")) == "did you mean 'mine.yaml'?"
    assert similar(Path("mien.yaml")) == "did you mean 'mine.yaml'?"
    assert similar(Path("mine.yaml")) == ""
    assert similar(Path("another.txt")) == ""
    with pytest.raises(UserError, match=r"^mine: no such file; did you mean 'mine.yaml'\?$"):
        read_yaml(Path("mine"))


def test_a_run_given_as_a_file_names_its_experiment(runs: Path) -> None:
    (runs / "runs" / "demo" / EXPERIMENT).write_text("name: demo\n")
    with pytest.raises(UserError, match=r"is a directory; give an experiment file: runs/demo/experiment\.yaml"):
        read_yaml(Path("runs/demo"))


def test_results_that_are_not_there_are_answered_with_those_that_are(runs: Path) -> None:
    assert stored_results("runs/demo").get("importance") is None
    with pytest.raises(UserError, match="no results of 'importance'; no analysis of this run has results yet"):
        stored_results("runs/demo")["importance"]
    (runs / "runs" / "demo" / "results" / "importance").mkdir(parents=True)
    with pytest.raises(UserError, match="no results of 'importanse'; did you mean 'importance'"):
        stored_results("runs/demo")["importanse"]
