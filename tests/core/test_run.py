"""Whole runs on the demo model: what is on disk afterwards, growth, resume, interventions, the gate."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from codi_engine import Experiment, open_run
from codi_engine.core.errors import DifferentRun, GateError, UserError
from codi_engine.core.running.run import check_experiment, plan_experiment, run_experiment
from tests.support.lines import few_problems

Maker = Callable[..., Experiment]
PATCH = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}


def edited(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[frame["condition"] != "baseline"]


def test_patching_restores_the_clean_answer_at_step_0(demo: Maker) -> None:
    data = {"plugin": "demo-pairs", "both_correct": True, "limit": 12}
    finished = demo(intervention=PATCH, sweep={"layer": "all", "step": "all"}, data=data, metrics=["normalized_effect", "kl"], analyses=["importance"]).run()
    run = finished.open()
    effect = run.patch_tensor("normalized_effect", ("layer", "step"))
    assert effect.shape == (4, 6)
    assert effect[:3].max() > 0.3
    assert effect[3, 5] == 0  # the last block's output at the last step is read by nothing
    assert run.store.verify() == []
    assert finished.figures["heatmap"].stat().st_size > 10_000
    baseline = run.baseline
    assert set(baseline["variant"]) == {"clean", "corrupted"}
    assert (baseline["kl"] == 0).all()
    assert (baseline.groupby("variant")["normalized_effect"].mean() == pd.Series({"clean": 1.0, "corrupted": 0.0})).all()


def test_a_larger_plan_grows_the_run_and_equals_one_full_run(demo: Maker) -> None:
    def make(limit: int, **sweep: Any) -> Experiment:
        return demo(intervention=PATCH, sweep={"layer": "all", "step": [0, 3], **sweep}, data={"plugin": "demo-pairs", "limit": limit})

    whole = run_experiment(make(5), "whole")
    first = run_experiment(make(2, layer=[1]), "grown")
    assert first.new_cells == 2 * 2 + 4
    run_experiment(make(5, step=[3]), "grown")
    last = run_experiment(make(5), "grown")
    assert 0 < last.new_cells < whole.new_cells
    assert run_experiment(make(5), "grown").new_cells == 0
    assert run_experiment(make(2), "grown").new_cells == 0
    pd.testing.assert_frame_equal(open_run("whole").cells, open_run("grown").cells, check_exact=True)


def test_a_smaller_plan_with_more_layers_does_not_spoil_a_larger_one(demo: Maker) -> None:
    def make(limit: int, *layers: int) -> Experiment:
        return demo(intervention=PATCH, sweep={"layer": list(layers), "step": [3]}, data={"plugin": "demo-pairs", "limit": limit})

    run_experiment(make(4, 0), "grown")
    run_experiment(make(2, 0, 1), "grown")  # what layer 1 needs is captured of two examples only
    run_experiment(make(4, 0, 1), "grown")
    run_experiment(make(4, 0, 1), "whole")
    pd.testing.assert_frame_equal(open_run("whole").cells, open_run("grown").cells, check_exact=True)


def test_donors_and_trials_grow(demo: Maker) -> None:
    def make(donors: int, trials: int) -> Experiment:
        generate = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5}
        data = {"plugin": "demo-problems", "limit": 2}
        sweep = {"step": [1], "donor": donors}
        return demo(intervention={"plugin": "resample", "site": "latent_in"}, sweep=sweep, trials=trials, generate=generate, data=data)

    run_experiment(make(3, 3), "whole")
    run_experiment(make(2, 1), "grown")
    run_experiment(make(3, 3), "grown")
    a, b = open_run("whole").cells, open_run("grown").cells
    assert len(a) == 2 * 3 + 2 * 3 * 3
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def test_another_experiment_is_refused_with_a_remedy(demo: Maker) -> None:
    run_experiment(demo(intervention=PATCH, sweep={"layer": [0], "step": [0]}), "here")
    with pytest.raises(DifferentRun, match="--output"):
        run_experiment(demo(intervention=PATCH, sweep={"layer": [0], "step": [0]}, seed=1), "here")


def digests(path: Path) -> dict[str, str]:
    skipped = ("provenance.json", "provenance.copy", "lock", "events.jsonl")
    files = [f for f in sorted(path.rglob("*")) if f.is_file() and f.name not in skipped and "results" not in f.parts]
    return {str(f.relative_to(path)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.mark.slow
def test_killed_and_repeated_is_byte_identical(tmp_path: Path, demo: Maker) -> None:
    file = tmp_path / "e.yaml"
    sweep = {"layer": "all", "step": "all"}
    file.write_text(demo(intervention=PATCH, sweep=sweep, data={"plugin": "demo-pairs", "limit": 40}).to_yaml())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "codi_engine", "run", "-q", str(file), "--output"]

    def start(name: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([*command, name], env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    assert start("whole").wait(120) == 0
    kills = 0
    for units in (1, 3):  # after so many committed units
        process = start("killed")
        ledger = tmp_path / "killed" / "ledger"
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if ledger.exists() and ledger.read_bytes().count(b'"kind":"unit"') >= units:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                break
            time.sleep(0.002)
    assert kills == 2
    assert start("killed").wait(120) == 0
    assert digests(tmp_path / "whole") == digests(tmp_path / "killed")


# ------------------------------------------------------------------------------------------- interventions


def test_identities_are_exact(demo: Maker) -> None:
    problems = {"plugin": "demo-problems", "limit": 3}
    conditions = {
        "self": {"intervention": {"plugin": "resample", "site": "latent_in", "self_donor": True}},
        "still": {"intervention": {"plugin": "steer", "site": "resid_post.1", "difference": "reasoning_steps=1", "alpha": 0.0}},
        "silent": {"intervention": {"plugin": "noise", "site": "resid_mid.2", "sigma": 0.0}},
    }
    run = demo(conditions=conditions, sweep={"step": "all"}, data=problems, metrics=["kl", "rms_logit_diff", "flip"]).run().open()
    assert (edited(run.cells)[["kl", "rms_logit_diff", "flip"]] == 0).all().all()


def test_freeze_differs_from_propagate_at_every_step_but_the_last(demo: Maker) -> None:
    def condition(downstream: str) -> dict[str, Any]:
        return {"intervention": {"plugin": "zero", "site": "resid_post.1", "on": "clean", "downstream": downstream}}

    run = demo(conditions={"p": condition("propagate"), "f": condition("freeze")}, sweep={"step": "all"}, metrics=["rms_logit_diff"]).run().open()
    table = edited(run.cells).pivot_table(index=["example", "step"], columns="condition", values="rms_logit_diff").reset_index()
    last = table["step"] == 5
    assert (table[last]["p"] == table[last]["f"]).all()
    assert (table[~last]["p"] != table[~last]["f"]).all()


def test_mean_noise_and_steer_do_what_they_say(demo: Maker) -> None:
    from codi_engine import load

    data = few_problems(Path())
    conditions = {
        "mean": {"intervention": {"plugin": "mean", "site": "latent_in"}},
        "over": {"intervention": {"plugin": "mean", "site": "latent_in", "over": "all"}},
        "noise": {"intervention": {"plugin": "noise", "site": "latent_in", "sigma": 0.5}},
        "away": {"intervention": {"plugin": "steer", "site": "latent_in", "difference": "reasoning_steps=1", "mode": "project_out"}},
    }
    run = demo(conditions=conditions, sweep={"step": [2]}, data=data, metrics=["kl"], capture=["latent_in"]).run().open()
    session = load("demo")
    pool = demo(data=data)
    from codi_engine.core.plugins import plugin_manager

    questions = [e.prompts["main"].text for e in plugin_manager().build("dataset", pool.data, "data", "t").load().pool]
    z = np.stack([session.capture(q, ["latent_in"])["latent_in"].values for q in questions[:]])
    values = run.activations("latent_in", edited=True)
    by = {c: values.values[(values["condition"] == c).values] for c in conditions}
    np.testing.assert_allclose(by["mean"][:, 2], np.repeat(z[:, 2].mean(0)[None], 2, 0), atol=1e-5)
    np.testing.assert_allclose(by["over"][0, 2], z.mean((0, 1)), atol=1e-5)
    scale = np.sqrt(((z[:, 2] - z[:, 2].mean(0)) ** 2).mean())
    moved = (by["noise"][:, 2] - z[:2, 2]) / scale
    assert 0.3 < moved.std() < 0.7
    steps = pd.DataFrame(run.cells)["reasoning_steps"]
    assert steps.notna().all()
    direction = by["away"][0, 2] - z[0, 2]
    assert abs(np.dot(by["away"][0, 2], direction / np.linalg.norm(direction))) < 1e-3


def test_resample_takes_the_recorded_donor_at_the_same_step(demo: Maker) -> None:
    from codi_engine import load
    from codi_engine.core.planning.preparing import prepare
    from codi_engine.core.plugins import plugin_manager

    data = {"plugin": "demo-problems", "limit": 2}
    experiment = demo(intervention={"plugin": "resample", "site": "latent_in"}, sweep={"step": "all", "donor": 2}, data=data, capture=["latent_in"])
    run = experiment.run().open()
    plan = prepare(experiment, plugin_manager(load=False)).plan
    pool = {e.id: e.prompts["main"].text for e in plan.data.pool}
    session = load("demo", device="cpu")
    own, values = run.activations("latent_in"), run.activations("latent_in", edited=True)
    assert values.sizes["cell"] == 2 * 6 * 2
    seen: dict[tuple[str, int], str] = {}
    for i in range(values.sizes["cell"]):
        cell = values.isel(cell=i)
        example, step, number = str(cell["example"].item()), int(cell["edited_step"].item()), int(cell["donor"].item())
        donor = plan.donors.of(example, plan.conditions[0], {"step": (step,), "donor": number})
        assert donor != example
        assert seen.setdefault((example, number), donor) == donor  # the same donor at every step
        expected = session.capture(pool[donor], ["latent_in"])["latent_in"].sel(step=step)
        assert np.array_equal(cell.sel(step=step), expected)
        if step:
            assert np.array_equal(cell.sel(step=step - 1), own.sel(example=example, step=step - 1))


def test_parts_of_captures_can_be_asked_for(demo: Maker) -> None:
    spec = {"plugin": "zero", "site": "resid_post", "on": "clean"}
    run = demo(intervention=spec, sweep={"layer": [0, 1], "step": [5]}, capture=["resid_mid@latent[4,5]", "resid_post"]).run().open()
    assert run.activations("resid_mid.2@latent[5]", edited=True).sizes == {"cell": 6, "step": 1, "width": 128}
    zeroed = run.activations("resid_post.1@latent[5]", edited=True)
    assert (zeroed.values[zeroed["edited_layer"].values == 1] == 0).all()
    assert (zeroed.values[zeroed["edited_layer"].values == 0] != 0).any()


def test_sets_of_steps_and_heads(demo: Maker) -> None:
    spec = {"plugin": "zero", "site": "attn_z.1", "on": "clean"}
    run = demo(intervention=spec, sweep={"step": "cumulative", "head": [0, [1, 2]]}, metrics=["kl"]).run().open()
    frame = edited(run.cells)
    assert list(dict.fromkeys(frame["step"])) == ["0", "0+1", "0+1+2", "0+1+2+3", "0+1+2+3+4", "0+1+2+3+4+5"]
    assert set(frame["head"]) == {"0", "1+2"}


def test_no_intervention_is_an_experiment(demo: Maker) -> None:
    run = (
        demo(capture=["latent_out", "resid_post.2@latent[3]", "logits@answer[0]"], metrics=["accuracy"], data={"plugin": "demo-problems", "limit": 4})
        .run()
        .open()
    )
    assert run.activations("latent_out").dims == ("example", "step", "width")
    assert run.activations("latent_out")["step"].values.tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert run.activations("resid_post.2@latent[3]").shape == (4, 1, 128)
    with pytest.raises(UserError, match="not captured"):
        run.activations("mlp_out.1")


def test_position_patching_on_a_causal_lm(demo: Maker, tiny_gpt2: Path, tmp_path: Path) -> None:
    from tests.support.lines import write_lines

    records = [
        {
            "pair_id": i,
            "clean": {"question": f"there are {i} apples and {i + 3} pears", "answer": i},
            "corrupted": {"question": f"there are {i} apples and {i + 4} pears", "answer": i + 1},
        }
        for i in range(4)
    ]
    path = write_lines(tmp_path / "pairs.jsonl", records)
    run = demo(
        model={"plugin": "causal_lm", "path": str(tiny_gpt2)}, data={"plugin": "pairs", "path": str(path)},
        intervention={**PATCH, "site": "blocks.0.hook_resid_post"},
        sweep={"layer": "all", "position": [-1, -2, -3, 1]}, metrics=["kl", "logit_diff", "normalized_effect"],
    ).run().open()  # fmt: skip
    effect = run.patch_tensor("normalized_effect")
    assert effect.shape == (3, 4)
    assert np.allclose(run.to_xarray()["kl"].sel(position=1), 0.0)  # the same token on both sides: nothing to carry over
    assert np.abs(effect).max() > 0.05


def test_sampled_trials_share_a_prompt(demo: Maker, tiny_gpt2: Path, tmp_path: Path) -> None:
    from tests.support.lines import write_lines

    path = write_lines(tmp_path / "p.jsonl", [{"text": "there are 3 apples", "condition": "safe"}, {"text": "there are 9 pears", "condition": "risky"}])
    experiment = demo(
        model={"plugin": "causal_lm", "path": str(tiny_gpt2)}, data={"plugin": "prompts", "path": str(path)},
        metrics=["flip"], trials=30,
        intervention={"plugin": "zero", "site": "mlp_out.1@prompt[-1]"}, generate={"max_new_tokens": 6, "do_sample": True, "top_p": 0.9},
        common_random_numbers=True,
    )  # fmt: skip
    frame = experiment.run().open().cells
    assert len(frame) == 2 * 30 * 2
    assert frame["text"].nunique() > 20
    with pytest.raises(UserError, match="does not apply to prompts"):
        demo(data={"plugin": "prompts", "path": str(path)}, metrics=["accuracy"]).run()


# -------------------------------------------------------------------------------------------- gate and plan


def test_check_shows_where_edits_fire(demo: Maker) -> None:
    frame = check_experiment(demo(intervention=PATCH, sweep={"layer": [1, 2], "step": [0, 5]}))
    assert list(frame["site"]) == ["resid_post.1@latent", "resid_post.2@latent"]
    assert set(frame["places"]) == {"0,5"}
    assert (frame["rows"] == 6).all()
    assert (frame["self_patch"] == "exact").all()


def test_the_gate_stops_an_edit_that_changes_nothing(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    from codi_engine.plugins.interventions.ablate import Zero

    monkeypatch.setattr(Zero, "apply", lambda self, rows: rows.values.clone())
    with pytest.raises(GateError, match="changed none"):
        demo(intervention={"plugin": "zero", "site": "latent_in", "on": "clean"}, sweep={"step": [0]}).run()


def test_the_gate_stops_a_swap_one_step_late(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    from codi_engine.core.rollout.sources import Sources

    right = Sources.values

    def late(self: Sources, component: str, layer: Any, phase: Any, prompts: Any, places: Any) -> np.ndarray:
        return right(self, component, layer, phase, prompts, [max(p - 1, 0) for p in places] if phase == "latent" else places)

    monkeypatch.setattr(Sources, "values", late)
    with pytest.raises(GateError, match="not an identity"):
        demo(intervention=PATCH, sweep={"layer": [0], "step": [2]}).run()


def test_vacuous_conditions_are_refused(demo: Maker) -> None:
    same = {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}}
    with pytest.raises(UserError, match="same computation"):
        demo(conditions={"a": same, "b": same}, sweep={"step": "all"}).run()
    run_experiment(demo(conditions={"a": same, "b": same}, sweep={"step": [0]}, allow_vacuous=True), "allowed")


def test_a_plan_needs_no_weights(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    from codi_engine.plugins.models.codi import Codi

    monkeypatch.setattr(Codi, "load", lambda self: pytest.fail("weights were loaded"))
    summary = plan_experiment(demo(intervention=PATCH, sweep={"layer": "all", "step": "all"}))
    assert summary.cells == 3 * 24
    assert summary.bytes > 0
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sweep": {"layer": [0], "step": [6]}}, "`step` must be in 0..5"),
        ({"sweep": {"layer": [4], "step": [0]}}, "`layer` must be in 0..3"),
        ({"sweep": {"layers": [0]}}, "did you mean 'layer'"),
        ({"intervention": {**PATCH, "site": "resid_pots"}}, "did you mean 'resid_post'"),
        ({"intervention": {**PATCH, "plugin": "pacth"}}, "did you mean 'patch'"),
        ({"intervention": {"plugin": "patch", "site": "resid_post"}}, "direction: state"),
        ({"sweep": {"step": [0]}}, "needs a layer"),
        ({"metrics": ["k1"]}, "unknown metric"),
        ({"intervention": {**PATCH, "strength": 2}}, "unknown key 'strength'"),
        ({"capture": ["resid_post.9"]}, "layer must be in 0..3"),
        ({"data": {"plugin": "demo-pairs", "limit": 0}}, "greater than or equal to 1"),
    ],
)
def test_bad_plans_name_field_and_remedy(demo: Maker, change: dict[str, Any], message: str) -> None:
    keys = {"intervention": PATCH, "sweep": {"layer": [0], "step": [0]}, **change}
    with pytest.raises(UserError, match=message) as caught:
        demo(**keys).run()
    assert len(str(caught.value).splitlines()) <= 2
    assert not Path("runs").exists() or "capture" in change
