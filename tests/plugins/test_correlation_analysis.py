"""`correlation` on synthetic runs: equal to scipy, independent of memory and threads, resumable."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_engine import analyze, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.runs.analyzing import Analysed
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.core.runs.vectors import Vectors
from codi_engine.core.runs.work import Work
from codi_engine.plugins.analyses import correlation

SMALL = {"targets": 6, "features": 40, "conditions": 2, "trials": 20, "words": 0, "density": 0.3}


def synthetic(path: Path, **keys: Any) -> Path:
    return write_synthetic(Synthetic(**{**SMALL, **keys}), path)


def one(run: Path, **options: Any) -> Analysed:
    return analyze(run, "correlation", **options)[0]


def table(done: Analysed) -> pd.DataFrame:
    assert done.result is not None
    return done.result.tables["correlation"]


def rows(run: Path, condition: int) -> np.ndarray:
    what = Synthetic(**open_run(run).experiment["synthetic"])
    values = what.values(0, what.cells).reshape(what.targets, what.conditions, what.examples, what.trials, what.features)[:, condition]
    return (values.astype(float).mean(2) if what.examples > 1 else values.astype(float)).reshape(-1, what.features)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
@pytest.mark.parametrize("keys", [{}, {"sparse": False}, {"examples": 15, "trials": 3}])
def test_equals_scipy(tmp_path: Path, method: str, keys: dict[str, Any]) -> None:
    run = synthetic(tmp_path / "run", **keys)
    found = table(one(run, method=method, correction="none", min_expected=0, min_coactive=1))
    names = Synthetic(**open_run(run).experiment["synthetic"]).feature_names
    x = {name: rows(run, c) for c, name in enumerate(("baseline", "patch_1"))}
    assert len(found) > 40
    for _, row in found.iterrows():
        a, b = (x[row["condition"]][:, names.index(row[k])] for k in "ab")
        want = (stats.pearsonr if method == "pearson" else stats.spearmanr)(a, b)
        assert row["r"] == pytest.approx(want.statistic, abs=1e-9)
        assert row["p"] == pytest.approx(want.pvalue, rel=1e-6)
        assert row["coactive"] == ((a != 0) & (b != 0)).sum() or method == "spearman"
        assert row["nonzero_a"] == (a != 0).sum()


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_memory_threads_and_scratch_do_not_matter(tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = synthetic(tmp_path / "run")
    whole = table(one(run, method=method))
    monkeypatch.setattr(Work, "piece", property(lambda self: 9000))
    assert len(Vectors(open_run(run), None, "x").parts(9000)) > 2
    for threads, memory in ((1, 2), (2, 0.02)):
        pd.testing.assert_frame_equal(table(one(run, method=method, threads=threads, memory=memory)), whole, check_exact=True)


def test_an_interrupted_analysis_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = synthetic(tmp_path / "run", sparse=False)
    whole = table(one(run))
    monkeypatch.setattr(Work, "piece", property(lambda self: 9000))
    monkeypatch.setattr(correlation, "_KEEP_EVERY", 0.0)
    reads: list[int] = []
    original = Vectors.read_own

    def failing(self: Vectors, part: Any, used: Any = None) -> Any:
        reads.append(part.first)
        if len(reads) == 4:
            raise KeyboardInterrupt
        return original(self, part, used)

    monkeypatch.setattr(Vectors, "read_own", failing)
    with pytest.raises(KeyboardInterrupt):
        one(run)
    reads[:] = [0] * 4
    pd.testing.assert_frame_equal(table(one(run)), whole, check_exact=True)
    assert 0 < len(reads) - 4 < len(Vectors(open_run(run), None, "x").parts(9000))


def test_planted_groups_are_found(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run", targets=30, features=120, density=0.2)
    done = one(run)
    assert done.summary.startswith("Spearman")
    found = table(done)
    truth = {frozenset(p) for p in pd.read_parquet(run / "results" / "synth" / "correlations.parquet").itertuples(index=False)}
    base = [frozenset(p) for p in found[found["condition"] == "baseline"][["a", "b"]].itertuples(index=False)]
    assert sum(p in truth for p in base) == len(truth)
    assert len(base) <= 1.2 * len(truth)
    assert done.figures["heatmap_1"].exists()


def test_bad_input(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run")
    with pytest.raises(UserError, match="condition 'risky'"):
        one(run, conditions=["risky"])
    with pytest.raises(UserError, match=r"need memory="):
        one(run, memory=0.0001)
    with pytest.raises(UserError, match="needs several examples"):
        one(run, unit="example")
    tiny = synthetic(tmp_path / "tiny", targets=1, trials=2)
    with pytest.raises(UserError, match="at least three rows"):
        one(tiny)
