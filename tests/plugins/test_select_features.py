"""``select_features``: planted features are found and written with the values that the next run patches in."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from codi_engine import Experiment, analyze, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.imports.importing import import_files
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs.drawing import drawn
from codi_engine.core.runs.work import Work
from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses.select_features import SelectFeatures, SelectFeaturesOptions

PLUGINS = plugin_manager(load=False)
SHIFTS = {"baseline": 0.0, "safe": -0.35, "risky": 0.35}
CAUSAL = ["L2-17", "L5-4"]
FEATURES = [*CAUSAL, "L2-4", "L7-90", "L9-8", "L9-33"]


def records(trials: int = 40, seed: int = 0) -> list[dict[str, Any]]:
    """Two prompts; two features move the decision both ways, L9-8 one way only."""
    draw = np.random.default_rng(seed)
    rows = []
    for feature in FEATURES:
        for condition, shift in SHIFTS.items():
            for prompt, own in (("less", 0.4), ("more", 0.6)):
                for trial in range(trials):
                    moved = shift if feature in CAUSAL else abs(shift) if feature == "L9-8" else 0.0
                    codes = {f: float(draw.gamma(2.0)) * (2 if prompt == "more" else 1) for f in FEATURES[:-1]} if condition == "baseline" else {"L2-4": 9.0}
                    at = {"feature": feature, "condition": condition, "example": prompt, "trial": trial}
                    rows.append({**at, "bet": float(draw.random() < own + moved), "goal": prompt, "codes": codes})
    return rows


def run_of(rows: list[dict[str, Any]], path: Path, *more: str) -> Path:
    path.with_suffix(".jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    maps = ["feature=feature", "condition=condition", "example=example", "trial=trial", "metrics/bet=bet", "fields/goal=goal", *more]
    return import_files([path.with_suffix(".jsonl")], maps, output=path).path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_of(records(), tmp_path_factory.mktemp("features") / "run", "activations/sae=codes.{u}")


def select(run: Path, **options: Any) -> tuple[AnalysisResult, pd.DataFrame]:
    """Analyse without writing figures to disk, which takes longer than everything else."""
    done = PLUGINS.build("analysis", {"plugin": "select_features", **options}, "analyses", "e.yaml").analyze([open_run(run)], Work())
    return done, pd.read_csv(io.StringIO(done.files["features.csv"]))


def test_planted_features_are_selected_with_their_values(run: Path) -> None:
    done, got = select(run, value_by="goal")
    assert set(got["feature"]) == {*CAUSAL, "L9-8"}
    got = got.set_index("feature")
    assert (got.loc["L2-17", "layer"], got.loc["L2-17", "id"]) == (2, 17)
    base = pd.DataFrame([r for r in records() if r["condition"] == "baseline"])
    for feature in got.index:
        for goal in ("less", "more"):
            values = [r["codes"][feature] for _, r in base[base["goal"] == goal].iterrows()]
            assert got.loc[feature, goal] == pytest.approx(np.mean(values), rel=1e-6)
    assert (got["low"] <= got["effect"]).all()
    assert (got["effect"] <= got["high"]).all()
    assert set(drawn(SelectFeatures(SelectFeaturesOptions(value_by="goal")), done)) == {"volcano", "selected"}
    assert "3 of 6 features" in done.summary
    assert "these prompts only" in done.summary


REAL = """
name: real
model: {plugin: causal_lm, path: demo, device: cpu}
data: {plugin: demo-prompts, limit: 2}
conditions:
  off: {intervention: {plugin: sae, sae: demo, site: resid_post, tokens: last, value: 0.0}, sweep: {feature: {from: demo, limit: 1}}}
  reconstructed: {intervention: {plugin: sae, sae: demo, site: resid_post, tokens: last, mode: reconstruct}, sweep: {layer: [0]}}
generate: {max_new_tokens: 12, do_sample: true}
trials: 2
metrics: [{plugin: outcome, pattern: "(?P<given>\\\\d+)", numbers: [given]}]
"""


def test_cells_without_a_feature_are_none(tmp_path: Path) -> None:
    """The control that edits no feature stands beside the others; nothing selected leaves nothing to point to."""
    (tmp_path / "real.yaml").write_text(REAL, encoding="utf-8")
    run_experiment(Experiment.from_file(tmp_path / "real.yaml"), tmp_path / "real")
    done, got = select(tmp_path / "real", q=1e-9)
    assert len(got) == 0
    assert "0 of 1 features" in done.summary
    assert "next run" not in done.summary


def test_the_file_lies_in_the_run(run: Path) -> None:
    done = analyze(run, "select_features")[0]
    assert done.files["features.csv"] == run / "results" / "select_features" / "features.csv"
    assert str(done.files["features.csv"]) in done.summary
    assert len(pd.read_csv(done.files["features.csv"])) == 3


def test_one_value_a_feature_without_groups(run: Path) -> None:
    _, got = select(run)
    base = [r["codes"]["L2-17"] for r in records() if r["condition"] == "baseline"]
    assert got.set_index("feature").loc["L2-17", "mean_code"] == pytest.approx(np.mean(base), rel=1e-6)


def test_opposite_conditions_must_both_have_an_effect(run: Path) -> None:
    done, got = select(run, opposite=["safe", "risky"])
    assert set(got["feature"]) == set(CAUSAL)
    assert (np.sign(got["effect_safe"]) == -np.sign(got["effect_risky"])).all()
    tests = done.tables["tests"]
    p = tests.pivot_table(index="feature", columns="condition", values="p")
    effect = tests.pivot_table(index="feature", columns="condition", values="difference")
    both = pd.Series(np.where(effect["safe"] * effect["risky"] < 0, p.max(axis=1), 1.0), p.index)
    q = pd.Series(adjust(both.to_numpy(), "bh"), p.index)
    np.testing.assert_allclose(got["p"], both[got["feature"]])
    np.testing.assert_allclose(got["q"], q[got["feature"]])


def test_thresholds_and_top(run: Path) -> None:
    assert len(select(run, top=1)[1]) == 1
    done, got = select(run, min_effect=0.99)
    assert len(got) == 0
    assert list(got.columns)[:3] == ["feature", "layer", "id"]
    assert "0 of 6 features" in done.summary


def test_features_without_codes_are_counted(run: Path, tmp_path: Path) -> None:
    rows = records()
    for r in rows:
        r["codes"] = {k: v for k, v in r["codes"].items() if k != "L5-4"}
    done, got = select(run_of(rows, tmp_path / "run", "activations/sae=codes.{u}"))
    assert got.set_index("feature")["mean_code"].isna()["L5-4"]
    assert "not captured of 1 of them" in done.summary
    done, got = select(run_of(rows, tmp_path / "bare"))
    assert "no captured codes" in done.summary
    assert "mean_code" not in got


def test_numbered_captures_of_a_layer_are_found_by_id(tmp_path: Path) -> None:
    """Codes as a vector over all features of a layer, at two steps: the feature's id says which."""
    rows = records()
    for r in rows:
        r["vector"] = [[float(10 * s + i) for i in range(20)] for s in range(2)]
    run = run_of(rows, tmp_path / "run", "activations/mlp_act.2@latent=vector[; step, width]")
    _, got = select(run, site="mlp_act.2@latent")
    assert got.set_index("feature").loc["L2-17", "mean_code"] == pytest.approx(17 + 5)  # over both steps
    assert got.set_index("feature")["mean_code"].isna()["L5-4"]
    assert "mean_code" not in select(run)[1]  # unasked, a neuron's number is no feature's


def test_wrong_questions_are_answered_in_words(run: Path, tmp_path: Path) -> None:
    for options, word in (
        ({"axis": "layer"}, "no axis"),
        ({"opposite": ["safe", "rsiky"]}, "did you mean 'risky'"),
        ({"value_by": "gaol"}, "did you mean 'goal'"),
        ({"site": "sea"}, "did you mean 'sae'"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            select(run, **options)
        assert str(caught.value).count("\n") <= 1
    with pytest.raises(UserError, match="no captured codes"):
        select(run_of(records(10), tmp_path / "bare"), value_by="goal")
