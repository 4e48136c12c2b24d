"""What an analysis leaves on disk can be read back without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

import codi_engine
from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.runs.analyzing import write_result
from codi_engine.core.runs.stored import stored_results


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
        with pytest.raises(UserError, match=r"result\.json: is damaged; run codi-engine analyze"):
            stored_results(tmp_path)
    write_result(folder, AnalysisResult({}, {}, "again"))
    assert stored_results(tmp_path)["mine"].summary == "again"
