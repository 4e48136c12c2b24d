"""``across``: the trend table against a naive twin, depths, order, undefined values, real models of different depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.runs.drawing import drawn
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.work import Work
from codi_engine.kernels.intervals import wilson
from codi_engine.plugins.analyses.across import Across, AcrossOptions
from codi_engine.plugins.analyses.across_tables import matched
from codi_engine.testing import tiny
from tests.support.lines import write_lines


class Fake:
    """What the analysis reads of a run: effects are examples × layers × steps of one condition."""

    def __init__(self, label: str, values: np.ndarray, layers: Any = 3, metric: str = "kl", **more: Any) -> None:
        self.path = Path("runs/x") / label
        self.experiment = {"name": f"study-{label}"}
        self.provenance = {"data_digest": more.get("data", "d"), "layers": layers, "latents": 6, "model_digest": label}
        self.metrics, self.axes = ["accuracy", metric], ["example", "condition", "layer", "step"]
        names = more.get("layer_names") or list(range(values.shape[1]))
        rows = [{"example": f"e{e}", "condition": "baseline", metric: 0.0, "accuracy": float(e % 2)} for e in range(len(values))]
        for (e, place, step), value in np.ndenumerate(values):
            rows.append({"example": f"e{e}", "condition": more.get("condition", "zero"), "layer": names[place], "step": step, metric: value, "accuracy": 1.0})
        self.cells = pd.DataFrame(rows)
        if all(isinstance(n, int) for n in names):
            self.cells["layer"] = self.cells["layer"].astype("Int64")
        self.cells["step"] = self.cells["step"].astype("Int64")


def fake(label: str, values: np.ndarray, *more: Any, **keys: Any) -> Run:
    return cast(Run, Fake(label, values, *more, **keys))


def across(runs: Sequence[Run], **options: Any) -> AnalysisResult:
    return Across(AcrossOptions(**options)).analyze(runs, Work())


def draw(n: int = 12, layers: int = 3, steps: int = 2, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, layers, steps))


# --------------------------------------------------------------------------------------------- trends


def test_the_trend_table_is_its_naive_twins() -> None:
    values = [draw(seed=s) + s * np.arange(3)[:, None] for s in range(4)]
    labels = ["step-900", "step-10", "step-1000", "step-200"]
    trend = across([fake(label, v) for label, v in zip(labels, values, strict=True)], metric="kl", confidence=0.9).tables["trend"]
    order = [1, 3, 0, 2]  # 10, 200, 900, 1000
    assert len(trend) == 6
    p = []
    for _, row in trend.iterrows():
        mine = [values[i][:, row["layer"], row["step"]] for i in order]
        expected = stats.ttest_rel(mine[-1], mine[0])
        interval = expected.confidence_interval(0.9)
        assert (row["t"], row["p"]) == pytest.approx((expected.statistic, expected.pvalue))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
        assert (row["first"], row["last"], row["n"], row["checkpoints"]) == (pytest.approx(mine[0].mean()), pytest.approx(mine[-1].mean()), 12, 4)
        assert row["difference"] == pytest.approx(mine[-1].mean() - mine[0].mean())
        assert row["rho"] == pytest.approx(stats.spearmanr([10, 200, 900, 1000], [m.mean() for m in mine]).statistic)
        p.append(expected.pvalue)
    np.testing.assert_allclose(trend["q"], stats.false_discovery_control(p))


def test_trials_and_donors_are_averaged_before_examples_are_compared() -> None:
    one, two = draw(seed=1), draw(seed=2)
    runs = [fake("1", one), fake("2", two)]
    for run in runs:  # the same cell twice, its value split in two
        edited = run.cells["condition"] == "zero"
        halves = [run.cells[edited].assign(kl=run.cells.loc[edited, "kl"] * f, donor=d) for d, f in ((0, 0.5), (1, 1.5))]
        run.__dict__["cells"] = pd.concat([run.cells[~edited], *halves], ignore_index=True)
    plain = across([fake("1", one), fake("2", two)], metric="kl").tables["trend"]
    doubled = across(runs, metric="kl").tables["trend"]
    pd.testing.assert_frame_equal(doubled, plain)


def test_yes_and_no_has_mcnemars_test_and_newcombes_interval() -> None:
    first, last = np.zeros((20, 1, 1)), np.zeros((20, 1, 1))
    first[:4], last[2:15] = 1.0, 1.0
    [row] = across([fake("a", first, metric="flip"), fake("b", last, metric="flip")], metric="flip").tables["trend"].to_dict("records")
    assert row["test"] == "McNemar"
    assert row["p"] == pytest.approx(stats.binomtest(2, 13).pvalue)
    assert row["difference"] == pytest.approx((13 - 4) / 20)
    assert np.isnan(row["t"])
    low, high = wilson(13, 20)
    below, above = wilson(4, 20)
    assert -1 <= row["ci_low"] < row["difference"] < row["ci_high"] <= 1
    assert row["ci_low"] > low - above - 0.2
    assert row["ci_high"] < high - below + 0.2


def test_undefined_values_are_stated() -> None:
    base = draw(n=4, layers=1)
    gone = base.copy()
    gone[:, 0, 1] = np.nan
    trend = across([fake("1", base), fake("2", base), fake("3", gone)], metric="kl").tables["trend"].set_index("step")
    assert trend.loc[0, "note"] == "constant: no effect in any example; the same mean in all checkpoints: no rho"
    assert trend.loc[0, "p"] == 1.0
    assert pd.isna(trend["rho"]).tolist() == [True, True]
    assert trend.loc[1, "note"] == "no value in 3; in fewer than three checkpoints: no rho"
    assert pd.isna(trend["p"]).tolist() == [False, True]
    assert not trend["significant"].any()


def test_words_as_labels_have_no_rho_and_keep_their_order() -> None:
    result = across([fake(v, draw(seed=s)) for s, v in enumerate(("zeta", "beta", "alpha"))], metric="kl")
    assert result.tables["checkpoints"]["checkpoint"].tolist() == ["zeta", "beta", "alpha"]
    assert result.tables["trend"]["rho"].isna().all()
    assert "the labels are no numbers: no trend over checkpoints" in result.summary
    assert "from zeta to alpha" in result.summary


def test_planted_changes_are_found_and_nulls_are_not() -> None:
    """Under no change, with examples that differ much from each other, the family-wise rate holds; a planted change is found."""
    wrong = 0
    for seed in range(40):
        shared = draw(n=10, seed=seed) * 3
        runs = [fake(str(k), shared + draw(n=10, seed=1000 + 10 * seed + k) * 0.3) for k in (1, 2)]
        wrong += bool(across_trend(runs)["significant"].any())
    assert wrong / 40 <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 40)
    planted = shared + draw(n=10, seed=7) * 0.3
    planted[:, 1, 0] += 1.0  # a third of the spread over examples: pairing finds it
    found = across_trend([fake("1", shared), fake("2", planted)])
    assert set(map(tuple, found.loc[found["significant"], ["layer", "step"]].to_numpy())) >= {(1, 0)}


def across_trend(runs: Sequence[Run]) -> pd.DataFrame:
    """The trend table alone, without figures."""
    from codi_engine.plugins.analyses.across_tables import series_of, trend_table
    from codi_engine.plugins.analyses.options import ImportanceOptions

    return trend_table(series_of(runs, ImportanceOptions(metric="kl")), ImportanceOptions())


def test_accuracies_and_effects_stand_for_each_checkpoint() -> None:
    tables = across([fake("1", draw(seed=1)), fake("2", draw(seed=2))], metric="kl").tables
    assert tables["baseline"][["checkpoint", "accuracy", "n"]].to_numpy().tolist() == [["1", 0.5, 12], ["2", 0.5, 12]]
    assert len(tables["effects"]) == 12
    np.testing.assert_allclose(tables["effects"]["q"], stats.false_discovery_control(tables["effects"]["p"]))


# --------------------------------------------------------------------------------------------- depths


@given(st.integers(2, 40), st.integers(2, 40))
def test_depths_are_matched_one_to_one_and_near(a: int, b: int) -> None:
    least = min(a, b)
    first, second = np.arange(least) / (least - 1), np.arange(max(a, b)) / (max(a, b) - 1)
    pairs = matched(first, second, 1 / (least - 1))
    assert len({x for x, _ in pairs}) == len({y for _, y in pairs}) == len(pairs)
    assert all(abs(x - y) <= 1 / (least - 1) + 1e-9 for x, y in pairs)
    assert (0.0, 0.0) in pairs
    assert (1.0, 1.0) in pairs
    assert len(pairs) == least  # every layer of the shallower model has a partner where both sweep all


def test_early_middle_and_late_of_different_models_meet() -> None:
    """3, 6, 11 of 12 and 4, 8, 14 of 16."""
    a, b = np.array([3, 6, 11]) / 11, np.array([4, 8, 14]) / 15
    assert matched(a, b, 1 / 11) == list(zip(a, b, strict=True))
    assert matched(a, np.array([0.0]), 1 / 11) == []


def test_models_of_different_depth_are_compared_at_the_shallow_ones_layers() -> None:
    deep, shallow = draw(layers=5, seed=3), draw(layers=3, seed=4)
    result = across([fake("deep", deep, 5), fake("shallow", shallow, 3)], metric="kl")
    trend = result.tables["trend"]
    assert trend["depth"].tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    for _, row in trend.iterrows():
        layer = int(row["depth"] * 2)
        assert row["difference"] == pytest.approx((shallow[:, layer, row["step"]] - deep[:, 2 * layer, row["step"]]).mean())
    assert set(drawn(Across(AcrossOptions(metric="kl")), result)) == {"lines", "heatmap", "depth", "accuracy"}
    assert "deep: layers 1, 3 are compared with none of shallow's" in result.summary
    effects = result.tables["effects"]
    assert len(effects) == 16
    assert effects.loc[effects["checkpoint"] == "deep", "depth"].unique().tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_sets_of_layers_have_no_depth_and_unknown_models_are_said() -> None:
    sets = {"layer_names": ["0+1", "2"]}
    result = across([fake("a", draw(layers=2), 3, **sets), fake("b", draw(layers=2, seed=1), 5, **sets)], metric="kl")
    assert "a: layers 0+1, 2 are compared with none" in result.summary
    assert result.tables["trend"].empty
    unknown = across([fake("a", draw(), None), fake("b", draw(seed=1), 3)], metric="kl")
    assert "layers are compared by number" in unknown.summary
    assert "layer" in unknown.tables["trend"]


# -------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("runs", "words"),
    [
        ([fake("1", draw())], "needs the runs of two or more checkpoints"),
        ([fake("1", draw()), fake("2", draw(), data="other")], "has other data than"),
        ([fake("1", draw()), fake("2", draw(), condition="mean")], r"no edited condition in common \(1: zero; 2: mean\)"),
        ([fake("1", draw()), fake("2", draw(), metric="flip")], "2: metric 'kl' is not in the run"),
        ([fake("1", draw()), fake("1", draw())], "two of the runs are called x/1"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs: list[Run], words: str) -> None:
    with pytest.raises(UserError, match=f"^across: .*{words}"):
        across(runs, metric="kl")


# ----------------------------------------------------------------------------------------- real models


@pytest.mark.slow
def test_two_models_of_different_depth_run_from_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    places = {name: tiny.tiny_codi(tmp_path / name, "gpt2", layers=layers) for name, layers in (("small", 3), ("large", 5))}
    questions = [{"question": f"there are {a} apples and {b} pears how many ?", "answer": a + b} for a, b in ((3, 4), (5, 9), (20, 7))]
    write_lines(tmp_path / "p.jsonl", questions)
    experiment = Experiment.from_dict(
        {
            "name": "depths", "model": {"plugin": "codi", "lora_r": 4, "device": "cpu", "latents": 2},
            "checkpoints": {name: {"checkpoint": str(c), "base": str(b)} for name, (c, b) in places.items()},
            "data": {"plugin": "problems", "path": "p.jsonl"}, "intervention": {"plugin": "zero", "site": "resid_post"},
            "sweep": {"layer": "all", "step": [1]}, "metrics": ["kl", "accuracy"], "generate": {"max_new_tokens": 4},
            "analyses": ["across"],
        }
    )  # fmt: skip
    finished = experiment.run()
    assert [p.cells for p in finished.parts.values()] == [3 + 9, 3 + 15]
    trend = pd.read_parquet(finished.tables["trend"])
    assert trend["depth"].tolist() == [0.0, 0.5, 1.0]
    cells = [p.open().cells for p in finished.parts.values()]
    for _, row in trend.iterrows():
        shallow, deep = (c[c["layer"] == round(row["depth"] * (n - 1))].set_index("example")["kl"] for c, n in zip(cells, (3, 5), strict=True))
        assert row["difference"] == pytest.approx((deep - shallow).mean())
    assert finished.figures["depth"].stat().st_size > 10_000
    assert "across" in finished.console or "checkpoints: small, large" in finished.console
