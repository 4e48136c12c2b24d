"""What an analysis leaves on disk can be read back without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import codi_engine
from codi_engine import Experiment
from codi_engine.core.analyzing import write_result
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.stored import stored_results


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
