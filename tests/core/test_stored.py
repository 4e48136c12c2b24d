"""What an analysis leaves on disk can be read back without it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.figure import Figure

import codi_engine
from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.runs import analyzing, stored
from codi_engine.core.runs.analyzing import write_result
from codi_engine.core.runs.stored import WRITING, damaged_results, stored_results
from codi_engine.store.files import read_file


def test_a_run_knows_its_results(demo: Callable[..., Experiment]) -> None:
    finished = demo(intervention={"plugin": "zero", "site": "latent_in"}, sweep={"step": [0, 1]}, analyses=[{"plugin": "importance", "top": 2}]).run()
    run = codi_engine.open_run(finished.path)
    result = run.results["importance"]
    assert result.about["options"]["top"] == 2
    assert result.about["options"]["correction"] == "bh"  # defaults too
    assert result.is_of(run.digest)
    assert not result.is_of("another")
    assert result.summary == finished.summaries["importance"]
    assert next(iter(result.tables)) == "effects"
    assert next(iter(result.figures)) == "heatmap"
    assert len(result.table("effects")) == 2
    with pytest.raises(UserError, match="no table 'effect'; did you mean 'effects'"):
        result.table("effect")


def test_results_without_a_record_are_read(tmp_path: Path) -> None:
    write_result(tmp_path / "results" / "old", AnalysisResult({"b": pd.DataFrame({"x": [1]})}, {}, "two\nlines", {"more.md": "# more"}))
    (tmp_path / "results" / "old" / "result.json").unlink()
    result = stored_results(tmp_path)["old"]
    assert result.summary == "two\nlines"
    assert list(result.tables) == ["b"]
    assert list(result.files) == ["more.md"]
    assert result.is_of("anything")
    assert stored_results(tmp_path / "nowhere") == {}


def test_a_result_holds_nothing_of_the_one_before(tmp_path: Path) -> None:
    folder, frame, figure = tmp_path / "results" / "mine", pd.DataFrame({"x": [1]}), Figure()
    write_result(folder, AnalysisResult({"effects": frame, "strata": frame}, {"map": figure, "strata": figure}, "first", {"more.md": "# more"}))
    (folder / "own.txt").write_text("somebody's own")
    (folder / "own.parquet").write_bytes((folder / "strata.parquet").read_bytes())
    write_result(folder, AnalysisResult({"effects": frame}, {"map": figure}, "second", {"weights.bin": b"\x00\xff"}))
    result = stored_results(tmp_path)["mine"]
    assert (list(result.tables), list(result.figures), result.summary) == (["effects"], ["map"], "second")
    assert result.files["weights.bin"].read_bytes() == b"\x00\xff"
    assert {p.name for p in folder.iterdir()} == {
        "effects.parquet", "map.png", "map.svg", "summary.txt", "weights.bin", "result.json", "own.txt", "own.parquet",
    }  # fmt: skip


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "results" / "mine"
    write_result(folder, AnalysisResult({}, {}, "said"))
    for text in ('{"analysis": "mi', "[]"):
        (folder / "result.json").write_text(text)
        with pytest.raises(UserError, match=r"result\.json: is damaged; `codi-engine analyze .* mine` makes it again"):
            stored_results(tmp_path)
    write_result(folder, AnalysisResult({}, {}, "again"))
    assert stored_results(tmp_path)["mine"].summary == "again"


FACTS = {"size": 3, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "sums",
    [
        [], 3, "text", {"effects.parquet": {}}, {"effects.parquet": [3]}, {"effects.parquet": {"size": "3", "sha256": "0" * 64}},
        {"effects.parquet": {"size": 3, "sha256": "0"}}, {"effects.parquet": {"size": True, "sha256": "0" * 64}}, {"../../ff": FACTS}, {"..": FACTS},
        {"/dev/zero": FACTS}, {"": FACTS}, {"a\0": FACTS},
    ],
)  # fmt: skip
def test_checksums_of_strangers_lead_nowhere(sums: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results" / "mine"
    write_result(folder, AnalysisResult({"effects": pd.DataFrame({"x": [1]})}, {}, "said"))
    os.mkfifo(tmp_path / "ff")
    known = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_bytes(stored._encoded({**known, "checksums": sums}))
    monkeypatch.setattr(stored, "read_file", _only_result_json)
    assert [(f.file, f.kind) for f in damaged_results(tmp_path)] == [("results/mine/result.json", "damaged")]
    with pytest.raises(UserError, match=r"result\.json: is damaged"):
        stored_results(tmp_path)


def _only_result_json(folder: Path, name: str, size: int | None = None) -> bytes:
    assert name == "result.json"
    return (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["effects.parquet", "result.json"])
@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_read(name: str, what: str, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "mine"
    write_result(folder, AnalysisResult({"effects": pd.DataFrame({"x": [1]})}, {}, "said"))
    path = folder / name
    path.unlink()
    {"pipe": os.mkfifo, "device": lambda p: p.symlink_to("/dev/zero"), "folder": os.mkdir}[what](path)
    assert [(f.file, f.kind) for f in damaged_results(tmp_path)] == [(f"results/mine/{name}", "damaged")]


class Killed(BaseException):
    """Nothing that anybody catches."""


def _killed(*_: Any, **__: Any) -> None:
    raise Killed


@pytest.mark.parametrize("before", [False, True], ids=["first", "again"])
@pytest.mark.parametrize("moment", ["_write_tables", "write_durably", "write_about", "_write_figures"])
def test_what_a_killed_analysis_leaves_is_no_damage(moment: str, before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, command = tmp_path / "results" / "mine", f"`codi-engine analyze {tmp_path} mine` makes it again"
    first, second = (AnalysisResult({"effects": pd.DataFrame({"x": [n]})}, {}, f"run {n}", {"more.md": str(n)}) for n in (1, 2))
    if before:
        write_result(folder, first)
    real = getattr(analyzing, moment)
    monkeypatch.setattr(analyzing, moment, _killed if moment != "write_durably" else lambda f, n, d: _killed() if n == "more.md" else real(f, n, d))
    with pytest.raises(Killed):
        write_result(folder, second)
    monkeypatch.undo()
    whole = moment == "_write_figures"  # the tables and what is said of them stand
    found = [] if whole else [("results/mine/.writing", "interrupted", f"its analysis is writing it, or was interrupted while it did; {command}")]
    assert [(f.file, f.kind, f.problem) for f in damaged_results(tmp_path)] == found
    assert not any(f.damage for f in damaged_results(tmp_path))
    tables = stored_results(tmp_path)["mine"]
    if whole or (before and moment == "_write_tables"):  # nothing is replaced yet
        assert tables.table("effects")["x"].tolist() == [2 if whole else 1]
    elif "effects" in tables.tables:
        with pytest.raises(UserError, match=r"results/mine: its analysis is writing it, or was interrupted while it did; `codi-engine analyze .* mine` makes"):
            tables.table("effects")
    write_result(folder, second)
    assert not (folder / WRITING).exists()
    assert damaged_results(tmp_path) == []
    assert stored_results(tmp_path)["mine"].table("effects")["x"].tolist() == [2]


def test_results_that_are_replaced_while_they_are_compared_are_looked_at_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results" / "mine"
    first, second = (AnalysisResult({"effects": pd.DataFrame({"x": [n]})}, {}, f"run {n}") for n in (1, 2))
    write_result(folder, first)
    times: list[str] = []

    def replaced(root: Path, name: str, size: int | None = None) -> bytes:
        if name != "result.json" and not times:
            times.append(name)
            write_result(folder, second)
        return read_file(root, name, size)

    monkeypatch.setattr(stored, "read_file", replaced)
    assert damaged_results(tmp_path) == []
    assert len(times) == 1


def test_checks_are_made_again_by_the_run_s_own_command(tmp_path: Path) -> None:
    write_result(tmp_path / "results" / "checks", AnalysisResult({}, {}, "all 2 checks passed"))
    (tmp_path / "results" / "checks" / "summary.txt").unlink()
    (finding,) = damaged_results(tmp_path)
    assert finding.problem == f"is missing; `codi-engine run {tmp_path}/experiment.yaml --output {tmp_path}` makes it again"
