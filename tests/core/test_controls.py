"""Controls beside every effect, and how unusual edited states are: against captured states and a naive computation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine import Experiment, load, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.planning.controls import AUTO_EXAMPLES, control_of, is_control
from codi_engine.core.running import natural
from codi_engine.core.running.natural import Population
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.core.runs.arrange import arrange
from codi_engine.core.runs.results import Run

Maker = Callable[..., Experiment]
PATCH = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
SITE = "resid_post.1@latent"
SIDES = ("clean", "corrupted")


def states(run: Run, edited: bool) -> dict[tuple[Any, ...], np.ndarray]:
    """(condition, example, edited step) or (variant, example) → captured steps × width."""
    data = run.activations(SITE, edited=edited)
    names = ("condition", "example", "edited_step") if edited else ("variant", "example")
    keys = zip(*(data[n].values.tolist() for n in names), strict=True)
    return {key: np.asarray(values) for key, values in zip(keys, data.values, strict=True)}


def test_controls_put_in_what_they_say(demo: Maker) -> None:
    experiment = demo(intervention=PATCH, sweep={"layer": [1], "step": [0, 2, 5]}, capture=[SITE], controls=["random", "wrong_step", "shuffled"])
    run = experiment.run().open()
    edited, unedited = states(run, True), states(run, False)
    plan, model = plan_experiment(experiment).prepared.plan, load("demo")
    texts = {e.id: e.prompts["clean"].text for e in plan.data.pool}
    control = {str(c.control): c for c in plan.conditions}["shuffled"]
    assert set(run.cells["condition"]) == {"baseline", "patch", "patch~random", "patch~wrong_step", "patch~shuffled"}
    for example in dict.fromkeys(run.cells["example"]):
        other = plan.donors.shuffled(example, control)
        assert other is not None
        assert other != example
        stranger = np.asarray(model.capture(texts[other], [SITE])[SITE])
        for step in (0, 2, 5):
            own, clean = unedited["corrupted", example], unedited["clean", example]
            move = edited["patch", example, step][step] - own[step]
            aside = edited["patch~random", example, step][step] - own[step]
            assert np.linalg.norm(aside) == pytest.approx(np.linalg.norm(move), rel=1e-5)
            assert abs(aside @ move) < 0.5 * np.linalg.norm(move) ** 2
            np.testing.assert_array_equal(edited["patch~wrong_step", example, step][step], clean[(step + 1) % 6])
            np.testing.assert_allclose(edited["patch~shuffled", example, step][step], stranger[step], atol=1e-5)


@pytest.mark.slow
def test_auto_takes_the_first_examples_and_grows(demo: Maker) -> None:
    def make(limit: int, controls: str) -> Experiment:
        return demo(intervention=PATCH, sweep={"layer": [1], "step": [0]}, data={"plugin": "demo-pairs", "limit": limit}, controls=controls)

    whole = run_experiment(make(18, "auto"), "whole")
    assert whole.cells == 18 * 2 + 18 + 3 * AUTO_EXAMPLES
    assert make(18, "auto").identity() == make(18, "none").identity()
    run_experiment(make(3, "auto"), "grown")
    run_experiment(make(18, "auto"), "grown")
    pd.testing.assert_frame_equal(open_run("whole").cells, open_run("grown").cells, check_exact=True)
    first = list(dict.fromkeys(open_run("whole").baseline["example"]))[:AUTO_EXAMPLES]
    for control in ("random", "wrong_step", "shuffled"):
        cells = open_run("whole").cells
        assert list(cells[cells["condition"] == f"patch~{control}"]["example"]) == first

    run_experiment(make(18, "none"), "later")
    assert not open_run("later").cells["condition"].map(is_control).any()
    assert run_experiment(make(18, "auto"), "later").new_cells == 3 * AUTO_EXAMPLES
    pd.testing.assert_frame_equal(open_run("whole").cells, open_run("later").cells, check_exact=True)
    assert run_experiment(make(18, "none"), "later").new_cells == 0


def names(experiment: Experiment) -> list[str]:
    return [c.name for c in plan_experiment(experiment).prepared.plan.conditions if c.control]


def test_only_controls_that_make_sense_are_planned(demo: Maker) -> None:
    conditions = {
        "p": {"intervention": {**PATCH, "position": -1, "layer": 0}},
        "z": {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}},
        "r": {"intervention": {"plugin": "resample", "site": "latent_in", "on": "clean"}},
        "m": {"intervention": {"plugin": "resample", "site": "latent_in", "on": "clean", "match": {"answer": "different"}}},
        "s": {"intervention": {"plugin": "resample", "site": "latent_in", "on": "clean", "self_donor": True}},
    }
    made = names(demo(conditions=conditions, controls="auto"))
    assert made == ["p~random", "p~shuffled", "r~random", "r~wrong_step", "m~random", "m~wrong_step", "m~shuffled"]
    assert names(demo(conditions=conditions, controls=["wrong_step"])) == ["r~wrong_step", "m~wrong_step"]
    assert names(demo(conditions=conditions, controls=[])) == []
    with pytest.raises(UserError, match=r"controls: no condition of this experiment can have 'random'; write controls: none, or leave it to auto"):
        plan_experiment(demo(conditions={"z": conditions["z"]}, controls=["random"]))
    with pytest.raises(UserError, match=r"can have 'shuffled'; write controls: \[random\]"):
        plan_experiment(demo(conditions={"r": conditions["r"]}, controls=["random", "shuffled"]))


def test_vacuous_conditions_have_no_controls(demo: Maker) -> None:
    same = {"intervention": {**PATCH, "layer": 1, "step": 2}}
    dead = {"intervention": {**PATCH, "layer": 3, "step": 5}}
    experiment = demo(conditions={"a": same, "b": same, "dead": dead}, controls="auto", allow_vacuous=True)
    assert names(experiment) == ["a~random", "a~wrong_step", "a~shuffled"]
    notes = plan_experiment(experiment).prepared.plan.notes
    assert len(notes) == 2
    assert not any("~" in n for n in notes)


def test_the_plan_lists_control_cells_separately(demo: Maker) -> None:
    experiment = demo(intervention=PATCH, sweep={"layer": "all", "step": "all"}, controls="auto", data={"plugin": "demo-pairs", "limit": 40})
    lines = plan_experiment(experiment).lines()
    assert ("  controls", "of patch: random, wrong step, shuffled; 16 examples, 1,152 cells") in lines
    assert dict(lines)["cells"].startswith("960 edited + 1,152 of controls + ")
    assert "controls" not in str(plan_experiment(demo(intervention=PATCH, sweep={"layer": "all", "step": "all"})).lines())


def test_bad_controls_are_named(demo: Maker) -> None:
    with pytest.raises(UserError, match="controls"):
        demo(controls="shufled")
    with pytest.raises(UserError, match="controls"):
        demo(controls=["shufled"])
    with pytest.raises(UserError, match="choose another name"):
        plan_experiment(demo(conditions={"a~random": {"intervention": {**PATCH, "layer": 0}}}))
    assert control_of("a~random") == ("a", "random")
    assert control_of("a~other") is control_of("~random") is control_of("random") is None


def test_controls_are_left_out_unless_asked_for(demo: Maker) -> None:
    run = demo(intervention=PATCH, sweep={"layer": [1], "step": [0, 1]}, controls="auto").run().open()
    assert set(arrange(run, "x").conditions) == {"baseline", "patch"}
    assert set(arrange(run, "x", asked=["patch~random"]).conditions) == {"baseline", "patch", "patch~random"}
    assert dict(run.to_xarray().sizes) == dict(run.to_xarray("patch~random").sizes) == {"example": 3, "step": 2}


# --------------------------------------------------------------------------------------------- unusualness


def naive(state: np.ndarray, others: np.ndarray) -> float:
    """The share of other states that are nearer to their mean, in each dimension's standard deviations."""
    mean, sd = others.astype(float).mean(0), others.astype(float).std(0)
    distance = [np.sqrt((((x - mean) / sd) ** 2).mean()) for x in others.astype(float)]
    return float(np.mean(np.array(distance) < np.sqrt((((state.astype(float) - mean) / sd) ** 2).mean()) - 1e-12))


def test_unusual_is_the_share_of_less_extreme_natural_states(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natural, "STATES", 9)
    conditions = {
        "patch": {"intervention": {**PATCH, "layer": 1}, "sweep": {"step": [0, 4, [0, 4], [0, 1, 4]]}},
        "zero": {"intervention": {"plugin": "zero", "site": "resid_post.1", "on": "clean", "downstream": "freeze"}, "sweep": {"step": [2]}},
        "steer": {"intervention": {"plugin": "noise", "site": "resid_post.1", "on": "clean", "sigma": 0.3}, "sweep": {"step": [0, [0, 3]]}},
    }
    data = {"plugin": "demo-pairs", "limit": 9}
    run = demo(conditions=conditions, data=data, capture=[SITE], metrics=["unusual"], controls=["random"]).run().open()
    assert run.baseline["unusual"].isna().all()
    edited, unedited = states(run, True), states(run, False)
    variant = {"patch": "corrupted", "patch~random": "corrupted", "zero": "clean", "steer": "clean"}
    cells = run.cells[run.cells["condition"] != "baseline"]
    assert len(cells) == 9 * (4 + 4 + 1 + 2)
    for _, cell in cells.iterrows():
        found = edited[cell["condition"], cell["example"], cell["step"]]
        side = variant[cell["condition"]]
        there = np.stack([v for (v_side, _), v in unedited.items() if v_side == side])
        steps = [int(s) for s in str(cell["step"]).split("+")]
        assert cell["unusual"] == pytest.approx(max(naive(found[s], there[:, s]) for s in steps)), dict(cell)
    assert 0.2 < cells[cells["condition"] == "patch"]["unusual"].mean() < 0.95
    assert (cells[cells["condition"] == "zero"]["unusual"] == 1).all()


@pytest.mark.parametrize("positions", [[-2, -1], [1, 3]])
def test_unusual_of_heads_and_positions(demo: Maker, monkeypatch: pytest.MonkeyPatch, positions: list[int]) -> None:
    """Positions from the start are the same tokens of prompts of any length, those from the end as far from it."""
    monkeypatch.setattr(natural, "STATES", 8)
    site = "attn_z.1@prompt"
    intervention = {"plugin": "resample", "site": "attn_z.1", "on": "clean", "head": 1, "position": positions}
    run = demo(intervention=intervention, data={"plugin": "demo-pairs", "limit": 8}, capture=[site], metrics=["unusual"]).run().open()
    assert run.store.verify() == []
    unedited, edited = run.activations(site), run.activations(site, edited=True)
    size = unedited.shape[-1] // 4

    def at(tokens: np.ndarray) -> np.ndarray:
        """The edited head at both positions: captured positions end with the prompt, NaN before it."""
        inside = tokens[~np.isnan(tokens).any(-1)]
        return np.asarray(inside[positions, size : 2 * size])

    there = np.stack([at(v) for v in unedited.values[unedited["variant"].values == "clean"]])
    found = {e: at(v) for e, v in zip(edited["example"].values.tolist(), edited.values, strict=True)}
    cells = run.cells[run.cells["condition"] == "resample"]
    assert len(cells) == 8
    for _, cell in cells.iterrows():
        assert cell["unusual"] == pytest.approx(max(naive(found[cell["example"]][place], there[:, place]) for place in (0, 1)))


@pytest.mark.slow
def test_short_prompts_of_the_pool_are_no_natural_states_of_far_positions(demo: Maker) -> None:
    """Neither the metric nor a control makes a plan fail because an example beyond the limit is short."""
    problems = [{"question": f"there are {n} apples and some more words", "answer": n} for n in range(12)]
    problems += [{"question": f"{n} apples", "answer": n} for n in range(30, 40)]
    Path("problems.jsonl").write_text("\n".join(map(json.dumps, problems)), encoding="utf-8")
    data = {"plugin": "problems", "path": "problems.jsonl", "limit": 2}
    intervention = {"plugin": "zero", "site": "resid_post.1", "position": -8}
    cells = demo(intervention=intervention, data=data, metrics=["unusual"]).run().open().cells
    assert cells[cells["condition"] == "zero"]["unusual"].tolist() == [1.0, 1.0]
    pairs = [{"pair_id": str(n), "variant": v, "question": p["question"], "answer": n + 2 * (v == "clean")} for n, p in enumerate(problems) for v in SIDES]
    Path("pairs.jsonl").write_text("\n".join(json.dumps({**p, "question": f"{p['answer']} {p['question']}"}) for p in pairs), encoding="utf-8")
    data = {"plugin": "pairs", "path": "pairs.jsonl", "limit": 3}
    experiment = demo(name="pairs", intervention={**PATCH, "position": -9, "layer": 1}, data=data, controls="auto", metrics=["kl"])
    assert (experiment.run().open().cells["condition"] == "patch~shuffled").sum() == 3


def test_unusual_says_where_it_is_not_defined(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(**more: Any) -> Experiment:
        return demo(intervention={"plugin": "zero", "on": "clean", **more}, metrics=["unusual"])

    for bad in ({"site": "resid_post.1", "tokens": "last"}, {"site": "resid_post.1@answer"}):
        with pytest.raises(UserError, match="'unusual' is not defined for edits"):
            plan_experiment(make(**bad))
    monkeypatch.setattr(natural, "FEWEST", 1000)
    experiment = make(site="latent_in", step=1)
    assert any("undefined (NaN)" in n for n in plan_experiment(experiment).prepared.plan.notes)
    assert experiment.run().open().cells["unusual"].isna().all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(8, 40), st.integers(1, 12))
def test_unusualness_knows_no_units(seed: int, n: int, width: int) -> None:
    generator = np.random.default_rng(seed)
    others, new = generator.normal(size=(n, width)), generator.normal(size=(5, width)) * 2
    scale, shift = np.exp(generator.normal(size=width)), generator.normal(size=width)
    share = Population.of(others).share(new)
    np.testing.assert_allclose(share, Population.of(others * scale + shift).share(new * scale + shift))
    assert ((share >= 0) & (share <= 1)).all()
    assert Population.of(others).share(others.mean(0)[None] + 1e6).tolist() == [1.0]
    np.testing.assert_allclose(share, [naive(x, others) for x in new])


def test_a_place_that_never_varies_makes_every_other_state_unusual() -> None:
    same = np.ones((10, 4))
    assert Population.of(same).share(np.array([[1.0, 1, 1, 1], [1, 1, 1, 2]])).tolist() == [0.0, 1.0]
