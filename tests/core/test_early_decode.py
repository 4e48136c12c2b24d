"""`early_decode` at step k is the model with k latents, in any company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.running.run import check_experiment, plan_experiment, run_experiment
from codi_engine.core.runs.results import Run
from codi_engine.plugins.models.codi import Codi, CodiOptions

Maker = Callable[..., Experiment]
PROBLEMS = {"plugin": "demo-problems", "limit": 3}
METRICS = ["cross_entropy", "rank", "accuracy"]
EARLY = {"plugin": "early_decode", "site": "latent_in"}


def readings(run: Run, condition: str, step: int | None = None) -> dict[str, tuple[Any, ...]]:
    cells = run.cells[run.cells["condition"] == condition]
    logits = run.activations("logits", edited=condition != "baseline").values
    rows = dict(zip(run.cells[(run.cells["condition"] != "baseline") == (condition != "baseline")]["key"], logits, strict=True))
    cells = cells if step is None else cells[cells["step"] == step]
    return {r["example"]: (r["text"], *(r[m] for m in METRICS), rows[r["key"]].tobytes()) for _, r in cells.iterrows()}


@pytest.mark.parametrize("batch_size", [2, pytest.param(64, marks=pytest.mark.slow)])
def test_k_latents_are_the_model_with_latents_k(demo: Maker, tmp_path: Path, batch_size: int) -> None:
    """Bit for bit: texts, logits, metrics; in a batch with other edits, and in batches of two."""
    conditions = {
        "early": {"intervention": EARLY, "sweep": {"step": "all"}},
        "zero": {"intervention": {"plugin": "zero", "site": "resid_post.1"}, "sweep": {"step": [0, 4]}},
        "late": {"intervention": {"plugin": "zero", "site": "resid_post.2@prompt", "position": -1}, "sweep": {}},
    }
    made = demo(conditions=conditions, data=PROBLEMS, metrics=METRICS, capture=["logits"], generate={"max_new_tokens": 6}, batch_size=batch_size)
    run = run_experiment(made, tmp_path / "run").open()
    alone = {}
    for k in range(1, 6):
        model = {"plugin": "codi", "checkpoint": "demo", "device": "cpu", "latents": k}
        plain = demo(model=model, data=PROBLEMS, metrics=METRICS, capture=["logits"], generate={"max_new_tokens": 6})
        alone[k] = readings(run_experiment(plain, tmp_path / f"k{k}").open(), "baseline")
        assert readings(run, "early", k) == alone[k], k
    assert len({str(v) for v in alone.values()}) == 5
    other = demo(conditions={"zero": conditions["zero"]}, data=PROBLEMS, metrics=METRICS, capture=["logits"], generate={"max_new_tokens": 6})
    assert readings(run_experiment(other, tmp_path / "zero").open(), "zero", 4) == readings(run, "zero", 4)


@torch.inference_mode()
def test_no_latents_are_a_plain_loop(demo: Maker, tmp_path: Path) -> None:
    made = demo(intervention=EARLY, sweep={"step": [0]}, data=PROBLEMS, metrics=METRICS, capture=["logits"], generate={"max_new_tokens": 6})
    run = run_experiment(made, tmp_path / "run").open()
    found = readings(run, "early_decode", 0)
    logits = run.activations("logits", edited=True).values[:, 0]
    adapter = Codi(CodiOptions(checkpoint="demo", device="cpu")).load()
    net = adapter.network
    data = plan_experiment(made).prepared.plan.data
    for at, example in enumerate(data.examples):
        ids = [*adapter.encode_prompt(example.prompts["main"].text), *adapter.answer_start]
        tokens: list[int] = []
        while len(tokens) < 6 and not (tokens and tokens[-1] in adapter.stop_ids):
            out = net(input_ids=torch.tensor([[*ids, *tokens]])).logits[0, -1]
            if not tokens:
                np.testing.assert_allclose(logits[at], out.numpy(), rtol=2e-4, atol=2e-4)
            tokens.append(int(out[: adapter.banned_ids_from].argmax()))
        assert found[example.id][0] == adapter.decode([t for t in tokens if t not in adapter.stop_ids])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"site": "resid_post.1"}, "'early_decode' ends the latent loop; its site is latent_in"),
        ({"downstream": "freeze"}, "'early_decode' ends the latent loop"),
        ({"step": 6}, "step"),
        ({"tokens": "last"}, "latent_in"),
    ],
)
def test_its_place_is_a_step(demo: Maker, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        plan_experiment(demo(intervention={**EARLY, **change}, data=PROBLEMS))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_the_check_passes(demo: Maker) -> None:
    check_experiment(demo(intervention=EARLY, sweep={"step": "all"}, data=PROBLEMS, metrics=METRICS))


def test_sets_of_steps_end_at_the_first(demo: Maker) -> None:
    with pytest.raises(UserError, match=r"are the same computation|different computation"):
        plan_experiment(demo(intervention=EARLY, sweep={"step": [2, [2, 3]]}, data=PROBLEMS))


def test_steps_that_are_left_out_have_no_values(demo: Maker, tmp_path: Path) -> None:
    made = demo(intervention=EARLY, sweep={"step": [0, 2]}, data=PROBLEMS, metrics=METRICS, capture=["latent_in"], generate={"max_new_tokens": 4})
    run = run_experiment(made, tmp_path / "run").open()
    cells = run.cells[run.cells["condition"] != "baseline"]
    values = run.activations("latent_in", edited=True).values
    for step, found in zip(cells["step"], values, strict=True):
        assert np.isfinite(found[: int(step)]).all()
        assert np.isnan(found[int(step) :]).all()
