from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_engine.plugins.analyses import effects, figures
from codi_engine.plugins.analyses.console import condition_grids
from codi_engine.plugins.analyses.options import ImportanceOptions


def cells(effect: np.ndarray, metric: str = "kl", trials: int = 1, noise: float = 1.0, cluster: float = 0.0, seed: int = 0, n: int = 20) -> pd.DataFrame:
    """Layers × steps of planted effects for n examples, trials correlated within an example by ``cluster``."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for e in range(n):
        for trial in range(trials):
            rows.append({"example": str(e), "condition": "baseline", "trial": trial, metric: 0.0, "accuracy": 1.0})
        for (layer, step), mean in np.ndenumerate(effect):
            shared = generator.normal() * np.sqrt(cluster)
            for trial in range(trials):
                value = mean + noise * (shared + generator.normal() * np.sqrt(1 - cluster))
                rows.append({"example": str(e), "condition": "patch", "layer": layer, "step": step, "trial": trial, metric: value, "accuracy": 1.0})
    frame = pd.DataFrame(rows)
    for name in ("layer", "step"):
        frame[name] = frame[name].astype("Int64")
    return frame


def table(frame: pd.DataFrame, metric: str = "kl", **options: Any) -> pd.DataFrame:
    per = effects.per_example(frame, metric, ["layer", "step"], None)
    return effects.effect_table(per, ["layer", "step"], ImportanceOptions(**options))


def test_statistics_are_scipys() -> None:
    frame = cells(np.zeros((2, 3)))
    out = table(frame)
    edited = frame[frame["condition"] == "patch"]
    for _, row in out.iterrows():
        values = edited[(edited["layer"] == row["layer"]) & (edited["step"] == row["step"])]["kl"]
        expected = stats.ttest_1samp(values, 0.0)
        assert row["t"] == pytest.approx(expected.statistic)
        assert row["p"] == pytest.approx(expected.pvalue)
        interval = expected.confidence_interval(0.95)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    np.testing.assert_allclose(out["q"], stats.false_discovery_control(out["p"]))


def test_planted_effects_are_found_and_ranked() -> None:
    planted = np.zeros((4, 6))
    planted[1, 2], planted[3, 0] = 2.0, -1.5
    out = table(cells(planted, n=40))
    found = {(r["layer"], r["step"]) for _, r in out[out["significant"]].iterrows()}
    assert {(1, 2), (3, 0)} <= found
    assert len(found) <= 4
    first = effects.top(out, 2)
    assert [(r["layer"], r["step"]) for _, r in first.iterrows()] == [(1, 2), (3, 0)]


def test_false_discoveries_with_correlated_trials_stay_at_the_stated_rate() -> None:
    """Trials of one example are one observation: with an intra-class correlation of 0.3 the family-wise rate holds."""
    wrong = [bool(table(cells(np.zeros((4, 6)), trials=5, cluster=0.3, seed=s, n=12))["significant"].any()) for s in range(60)]
    assert np.mean(wrong) <= 0.05 + 2.5 * np.sqrt(0.05 * 0.95 / 60)
    naive = []
    for s in range(20):
        frame = cells(np.zeros((4, 6)), trials=5, cluster=0.3, seed=s, n=12)
        edited = frame[frame["condition"] == "patch"]
        p = edited.groupby(["layer", "step"])["kl"].apply(lambda v: stats.ttest_1samp(v, 0).pvalue)
        naive.append((stats.false_discovery_control(p) < 0.05).any())
    assert float(np.mean(naive)) > 3 * max(float(np.mean(wrong)), 0.05)


def test_constant_effects_have_a_stated_result() -> None:
    frame = cells(np.array([[0.0, 1.0]]), noise=0.0)
    out = table(frame)
    assert out["note"].tolist() == ["constant: no effect in any example", "constant: the same effect in every example; sign test"]
    assert out["p"].tolist()[0] == 1.0
    assert out["p"].tolist()[1] == 2.0**-19


def test_levels_are_taken_against_the_same_prompt_unedited() -> None:
    frame = cells(np.zeros((1, 2)), metric="logit_diff")
    frame.loc[frame["condition"] == "baseline", "logit_diff"] = 3.0
    out = table(frame, "logit_diff")
    assert out["mean"].mean() == pytest.approx(frame[frame["condition"] == "patch"]["logit_diff"].mean() - 3.0)


def test_shares_have_wilsons_interval() -> None:
    from scipy.stats import binomtest

    from codi_engine.kernels.intervals import wilson

    low, high = wilson(7, 20)
    expected = binomtest(7, 20).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_a_place_where_nothing_happens_is_no_share() -> None:
    """KL of exactly 0 at one place: Wilson's interval is for yes and no, and these are nats."""
    frame = cells(np.array([[0.0, 2.0]]), noise=0.0)
    out = table(frame)
    assert out["interval"].tolist() == ["t", "t"]
    assert out["ci_high"].tolist() == [0.0, 2.0]
    assert table(cells(np.array([[0.0, 1.0]]), noise=0.0))["interval"].tolist() == ["wilson", "wilson"]


def test_by_splits_and_pictures_draw() -> None:
    frame = cells(np.ones((3, 4)))
    frame["level"] = np.where(frame["example"].astype(int) % 2 == 0, "easy", "hard")
    per = effects.per_example(frame, "kl", ["layer", "step"], "level")
    options = ImportanceOptions(by="level")
    out = effects.effect_table(per, ["layer", "step"], options)
    assert set(out["by"]) == {"easy", "hard"}

    tables = {"effects": out, "by_example": effects.by_example(per, ["layer", "step"])}
    drawn = figures.draw(tables, ["layer", "step"], "kl", options, "study")
    assert set(drawn) == {"heatmap", "bars", "examples"}
    texts = [t.get_text() for t in drawn["heatmap"].findobj() if hasattr(t, "get_text")]
    assert any("n = 10" in t for t in texts)
    lines = condition_grids(table(cells(np.ones((3, 4)))), ["layer", "step"], "kl")
    assert lines[0] == "patch: mean kl by layer × step"
    assert max(map(len, lines)) <= 100
