"""``step_effects`` and ``trajectories``: distances against loops over cells, causality, mediation, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from codi_engine import Experiment
from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.runs.results import Run
from codi_engine.plugins.analyses import effect_matrix, latent_states
from codi_engine.plugins.analyses.importance import Importance
from codi_engine.plugins.analyses.step_effects import Moves, StepEffects, StepEffectsOptions
from codi_engine.plugins.analyses.trajectories import Trajectories, mean_interval
from tests.support.steps import ZERO, analysed, demo_run, refused

STATES = [-1, 0, 1, 2, 3, 4, 5]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Run:
    conditions = {
        "follows": {"intervention": ZERO, "sweep": {"step": "all"}},
        "pinned": {"intervention": {**ZERO, "downstream": "freeze"}, "sweep": {"step": "all"}},
    }
    return demo_run(tmp_path_factory.mktemp("both"), conditions=conditions, metrics=["kl", "flip"], capture=["latent_out", "resid_post@latent"])


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Run:
    conditions = {
        "denoise": {"intervention": {"plugin": "patch", "site": "resid_post.1", "direction": "denoise"}, "sweep": {"step": "cumulative"}},
        "noise": {"intervention": {"plugin": "patch", "site": "resid_post", "direction": "noise"}, "sweep": {"step": [0, [0, 1]], "layer": [0, 2]}},
        "read": {"intervention": {"plugin": "patch", "site": "resid_post.1", "direction": "noise", "position": [-1]}},
    }
    data = {"plugin": "demo-pairs", "limit": 6}
    return demo_run(tmp_path_factory.mktemp("pairs"), data=data, conditions=conditions, metrics=["kl"], capture=["latent_out", "resid_post@latent"])


# ------------------------------------------------------------------------------------------- step_effects


def naive(run: Run, condition: str, step: Any, state: int) -> list[float]:
    """Relative distances per example, one vector at a time."""
    edited, base = run.activations("latent_out", edited=True), run.activations("latent_out")
    out = []
    for cell in range(edited.sizes["cell"]):
        one = edited.isel(cell=cell)
        if str(one["condition"].item()) == condition and str(one["edited_step"].item()) == str(step):
            a = one.sel(step=state).values.astype(float)
            b = base.sel(example=one["example"].item(), step=state).values.astype(float)
            out.append(float(np.sqrt(((a - b) ** 2).sum()) / np.sqrt((b**2).sum())))
    return out


def test_matrices_are_those_of_a_loop_over_cells(both: Run) -> None:
    effects = analysed(StepEffects, both).tables["effects"].set_index(["effect", "edited", "state"])
    assert len(effects) == 2 * 6 * 7
    for kind, condition in (("total", "follows"), ("direct", "pinned")):
        for step, state in ((0, 0), (0, 5), (2, 3), (3, 1), (5, 5)):
            values = naive(both, condition, step, state)
            row = effects.loc[kind, step, state]
            assert row["mean"] == pytest.approx(np.mean(values), rel=1e-12, abs=1e-15)
            assert row["n"] == len(values) == 8
            if state >= step:
                interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
                assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
            else:
                assert row["mean"] == 0.0


def test_nothing_moves_before_the_edit_and_the_last_step_has_no_mediator(both: Run) -> None:
    result = analysed(StepEffects, both)
    table = result.tables["causality"]
    assert table["exact"].all()
    assert (table["rule"].value_counts()[effect_matrix.BEFORE], table["rule"].value_counts()[effect_matrix.SAME]) == (2 * 21, 6)
    assert "before the edit: exactly 0: holds at all 42 places" in result.summary
    metric = result.tables["metric"].set_index(["effect", "edited"])
    assert metric.loc[("total", 5), "mean"] == metric.loc[("direct", 5), "mean"]
    assert metric.loc[("total", 0), "mean"] != metric.loc[("direct", 0), "mean"]


def test_the_last_layer_acts_through_the_next_latent_alone(tmp_path: Path) -> None:
    """What leaves the last block is in no key and no value, so pinned latents stop it: no direct effect at all."""
    edit = {"plugin": "zero", "site": "resid_post.3"}
    conditions = {
        "total": {"intervention": edit, "sweep": {"step": [1, 3]}},
        "direct": {"intervention": {**edit, "downstream": "freeze"}, "sweep": {"step": [1, 3]}},
    }
    run = demo_run(tmp_path, data={"plugin": "demo-problems", "limit": 3}, conditions=conditions, capture=["latent_out"], allow_vacuous=True)
    table = analysed(StepEffects, run).tables["mediated"]
    assert (table["direct"] == 0).all()
    assert (table["total"] > 0).all()
    assert (table["share"] == 1).all()


def test_unedited_prompts_of_templates_are_not_mixed_up(tmp_path: Path) -> None:
    sweep = {"step": [0]}
    conditions = {"plain": {"intervention": ZERO, "sweep": sweep}, "asked": {"intervention": ZERO, "sweep": sweep, "prompt": "Solve. {question}"}}
    run = demo_run(tmp_path, data={"plugin": "demo-problems", "limit": 2}, conditions=conditions, metrics=["kl"], capture=["latent_out"])
    assert "several unedited prompts per example" in refused(Trajectories, run)
    assert "several unedited prompts per example" in refused(StepEffects, run, condition="plain")


def test_mediated_shares(both: Run) -> None:
    table = analysed(StepEffects, both).tables["mediated"].set_index(["edited", "state"])
    assert sorted(table.index) == [(i, j) for i in range(6) for j in range(i + 1, 6)]
    total, direct = np.array(naive(both, "follows", 1, 3)), np.array(naive(both, "pinned", 1, 3))
    row = table.loc[(1, 3)]
    assert row["share"] == pytest.approx(1 - direct.mean() / total.mean())
    assert row["share_ci_low"] < row["share"] < row["share_ci_high"]
    assert row["p"] == pytest.approx(stats.ttest_rel(total, direct).pvalue)
    np.testing.assert_allclose(table["q"], stats.false_discovery_control(table["p"]))


def test_the_metric_beside_the_matrix_is_that_of_importance(both: Run) -> None:
    found = analysed(StepEffects, both, metric="kl").tables["metric"].set_index(["condition", "edited"])
    expected = analysed(Importance, both, metric="kl").tables["effects"].set_index(["condition", "step"])
    for key, row in found.iterrows():
        other = expected.loc[key]
        assert (row["mean"], row["p"], row["hedges_g"]) == pytest.approx((other["mean"], other["p"], other["hedges_g"]))


def test_one_layer_of_another_site_and_one_kind_alone(both: Run) -> None:
    assert "has 4 layers; name one, such as resid_post.0@latent" in refused(StepEffects, both, site="resid_post@latent")
    result = analysed(StepEffects, both, site="resid_post.3@latent", condition="pinned")
    assert set(result.tables["effects"]["condition"]) == {"follows", "pinned"}
    assert list(dict.fromkeys(result.tables["effects"]["state"])) == STATES[1:]
    assert "downstream: freeze; give it as direct" in refused(StepEffects, both, total="pinned").replace("step_effects: total: ", "")


def test_figures_and_lines(both: Run) -> None:
    done = analyze_runs([both.path], ["step_effects"])[0]
    assert set(done.figures) == {"matrix", "total", "direct", "mediated_share"}
    assert set(done.tables) == {"effects", "mediated", "metric", "causality"}
    assert max(map(len, done.summary.splitlines())) <= 100


def test_a_leak_is_reported() -> None:
    """Something that moves before it is edited is a warning with its size and place."""
    distance = np.zeros((3, 2, 3))
    distance[:, 0, 1:] = distance[:, 1, 2] = 0.5
    distance[1, 1, 0] = 1e-7
    table = effect_matrix.causality_table({"total": Moves("zero", distance, distance, None)}, [0, 1], [-1, 0, 1])
    wrong = table[~table["exact"]]
    assert wrong[["edited", "state", "violating", "largest"]].values.tolist() == [[1, -1, 1, 1e-7]]
    effects = effect_matrix.effect_table({"total": Moves("zero", distance, distance, None)}, [0, 1], [-1, 0, 1], 0.95)
    text = effect_matrix.summary({"effects": effects, "causality": table}, "latent_out", None, StepEffectsOptions())
    assert "WARNING before the edit: exactly 0: violated at 1 of 3 places, at most 1e-07 (edited step 1, state -1)" in text


def test_nothing_to_mediate_has_a_stated_result() -> None:
    zeros = np.zeros((4, 1, 2))
    table = effect_matrix.mediated_table(Moves("a", zeros, zeros, None), Moves("b", zeros, zeros, None), [0], [0, 1], StepEffectsOptions())
    assert np.isnan(table["share"]).all()
    assert table["note"].tolist() == ["the reference is 0: no share can be formed; constant: no effect in any example"]


def test_what_is_needed_is_said(pairs: Run, demo: Any, tmp_path: Any) -> None:
    assert "edits several steps at once" in refused(StepEffects, pairs)
    run = Experiment.from_dict({**demo(intervention=ZERO, sweep={"step": [0]}, metrics=["kl"]).to_dict()}).run(tmp_path / "bare").open()
    assert "add capture: [latent_out] to the experiment" in refused(StepEffects, run)
    prompt = {"plugin": "zero", "site": "resid_post.1", "position": [-1]}
    run = demo(intervention=prompt, metrics=["kl"], capture=["latent_out"]).run(tmp_path / "prompt").open()
    assert "edits latent steps; sweep step in the experiment" in refused(StepEffects, run)


# ------------------------------------------------------------------------------------------- trajectories


def naive_similarity(
    run: Run, condition: str, side: str | None, state: int, site: str = "latent_out", of_layer: int | None = None, **axes: Any
) -> tuple[float, float]:
    """Mean cosine and relative distance of one curve's point, cell by cell; side None is the own prompt."""
    edited, base = run.activations(site, edited=True), run.activations(site)
    cosines, distances = [], []
    for cell in range(edited.sizes["cell"]):
        one = edited.isel(cell=cell)
        wanted = {"condition": condition, **axes}
        names = {a: f"edited_{a}" if f"edited_{a}" in one.coords else a for a in wanted}
        if any(str(one[names[a]].item()).removesuffix(".0") != str(v) for a, v in wanted.items()):
            continue
        variant = side or one["variant"].item()
        rows = [i for i in range(base.sizes["cell"]) if base["example"].values[i] == one["example"].item() and base["variant"].values[i] == variant]
        a, b = one.sel(step=state), base.isel(cell=rows[0]).sel(step=state)
        if of_layer is not None:
            a, b = a.sel(layer=of_layer), b.sel(layer=of_layer)
        x, y = a.values.astype(float), b.values.astype(float)
        cosines.append(x @ y / np.sqrt((x @ x) * (y @ y)))
        distances.append(np.sqrt(((x - y) ** 2).sum() / (y @ y)))
    assert len(cosines) == 6
    return float(np.mean(cosines)), float(np.mean(distances))


def one(table: Any, **keys: Any) -> Any:
    """The one row with these values."""
    for column, value in keys.items():
        table = table[(table[column] == value).fillna(False).to_numpy(bool)]
    assert len(table) == 1
    return table.iloc[0]


def test_cumulative_patches_against_every_reference(pairs: Run) -> None:
    table = analysed(Trajectories, pairs).tables["trajectories"]
    for label, state in (("0", 0), ("0", 4), ("0+1+2", 2), ("0+1+2+3+4+5", 5)):
        for reference, side in (("own", None), ("clean", "clean"), ("corrupted", "corrupted")):
            row = one(table, condition="denoise", step=label, reference=reference, state=state)
            expected = naive_similarity(pairs, "denoise", side, state, step=label)
            assert (row["cosine"], row["distance"]) == pytest.approx(expected, rel=1e-9)
            assert row["n"] == 6
    denoise = table[table["condition"] == "denoise"]
    own = denoise[denoise["reference"] == "own"].set_index(["edit", "state"])
    corrupted = denoise[(denoise["reference"] == "corrupted") & (denoise["edit"] != "unedited")].set_index(["edit", "state"])
    pd.testing.assert_frame_equal(own.drop(columns="reference"), corrupted.drop(columns="reference"))
    assert list(dict.fromkeys(denoise["edit"])) == ["unedited", *(f"step {'+'.join(map(str, range(i + 1)))}" for i in range(6))]


def test_the_unedited_run_is_the_yardstick(pairs: Run) -> None:
    table = analysed(Trajectories, pairs).tables["trajectories"]
    plain = table[table["edit"] == "unedited"].set_index(["condition", "reference", "state"]).sort_index()
    base = pairs.activations("latent_out")
    for state in STATES:
        assert plain.loc[("denoise", "corrupted", state), "cosine"] == 1.0
        assert plain.loc[("noise", "clean", state), "distance"] == 0.0
        sides = {v: base.isel(cell=(base["variant"] == v).values).sel(step=state).values.astype(float) for v in ("clean", "corrupted")}
        expected = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in zip(sides["corrupted"], sides["clean"], strict=True)]
        assert plain.loc[("denoise", "clean", state), "cosine"] == pytest.approx(np.mean(expected), rel=1e-9)


def test_layers_of_the_edit_and_of_the_capture_are_kept_apart(pairs: Run) -> None:
    result = analysed(Trajectories, pairs, site="resid_post@latent", conditions=["noise"], at={"layer": 2})
    table = result.tables["trajectories"]
    assert set(table["layer"].dropna()) == {2}
    assert sorted(set(table["state_layer"])) == [0, 1, 2, 3]
    row = table.set_index(["edit", "reference", "state_layer", "state"]).loc[("step 0+1", "corrupted", 3, 1)]
    expected = naive_similarity(pairs, "noise", "corrupted", 1, "resid_post@latent", 3, step="0+1", layer=2)
    assert (row["cosine"], row["distance"]) == pytest.approx(expected, rel=1e-9)
    assert "shown: layer 3; the table has all 4" in result.summary
    below = table[(table["state_layer"] < 2) & (table["state"] == 0) & (table["reference"] == "own") & (table["edit"] != "unedited")]
    assert (below["distance"] == 0).all()


def test_distances_are_those_of_step_effects(both: Run) -> None:
    own = analysed(Trajectories, both).tables["trajectories"]
    effects = analysed(StepEffects, both).tables["effects"]
    for row in effects.itertuples():
        assert one(own, condition=row.condition, step=row.edited, state=row.state)["distance"] == pytest.approx(row.mean, rel=1e-12)


def test_trajectories_are_written_and_refusals_named(pairs: Run, both: Run) -> None:
    done = analyze_runs([pairs.path], ["trajectories"], ["draw=2"])[0]
    assert set(done.figures) == {"denoise", "noise_layer_0"}
    assert max(map(len, done.summary.splitlines())) <= 96
    assert "did you mean 'noise'" in refused(Trajectories, pairs, conditions=["noize"])
    assert "is no axis of the edits" in refused(Trajectories, pairs, at={"donor": 1})
    assert "no cell has step 9" in refused(Trajectories, both, at={"step": 9})


# --------------------------------------------------------------------------------------------- numbers

vectors = arrays(np.float32, 4, elements=st.floats(-10, 10, width=32))


@given(vectors, vectors, st.floats(0.5, 4))
def test_distance_and_cosine(a: np.ndarray, b: np.ndarray, factor: float) -> None:
    assert latent_states.distance(a, a) == 0.0
    assert latent_states.cosine(a, a) == 1.0
    d, c = float(latent_states.distance(a, b)), float(latent_states.cosine(a, b))
    if not b.any():
        assert np.isnan(d) == bool(a.any())
        assert np.isnan(c) == bool(a.any())
    elif a.any() and not np.isnan(c):
        x, y = a.astype(float), b.astype(float)
        # the law of cosines ties the two
        size = float(np.linalg.norm(x) / np.linalg.norm(y))
        assert d**2 == pytest.approx(1 + size**2 - 2 * size * c, abs=1e-6 * (1 + size**2))
        assert latent_states.cosine(factor * x, y) == pytest.approx(c, abs=1e-9)


def test_intervals_leave_out_what_is_missing() -> None:
    values = np.random.default_rng(0).normal(size=(9, 3))
    values[2, 1] = np.nan
    values[1:, 2] = np.nan
    mean, low, high, n = mean_interval(values, 0.9)
    for j in range(2):
        test = stats.ttest_1samp(values[~np.isnan(values[:, j]), j], 0).confidence_interval(0.9)
        assert (low[j], high[j]) == pytest.approx((test.low, test.high))
    assert n.tolist() == [9, 8, 1]
    assert mean[2] == values[0, 2]
    assert np.isnan([low[2], high[2]]).all()
