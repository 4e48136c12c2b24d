"""The loop of the studies: five latents of six, eot once or twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codi_engine_originals.checkpoints import CeCodi, CeCodiOptions

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelAdapter
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.rollout.tasks import Produced
from codi_engine.core.runs.results import Run
from codi_engine.plugins.models.codi import Codi, CodiOptions

Make, Ran, Changes = Callable[..., Experiment], Callable[..., Run], Callable[..., np.ndarray]
QUESTION = "Sara buys 26 balls. She buys 8 more. How many balls does Sara have?"
DEMO = {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}
ORACLES = [p / "tests/fixtures/oracle_gpt2" for p in Path(__file__).parents if (p / "tests/fixtures/oracle_gpt2").is_dir()]


def forward(adapter: ModelAdapter, question: str = QUESTION) -> Produced:
    latents = tuple(range(adapter.info.latents))
    want = Want({("latent_out", "prompt"): ((None,), (-1,)), ("latent_out", "latent"): ((None,), latents)}, generate=False, read=False)
    return Rollout(Network(adapter)).run([adapter.encode_prompt(question)], [Task(0)], want)


def states(produced: Produced) -> torch.Tensor:
    """c_0 … c_K, as places × width."""
    return torch.cat([produced.captures["latent_out", None, "prompt"][0], produced.captures["latent_out", None, "latent"][0]])


def ce(**options: Any) -> ModelAdapter:
    return CeCodi(CeCodiOptions(checkpoint="demo", device="cpu", **options)).load()


@pytest.mark.skipif(not ORACLES, reason="the oracle lies in codi-engine's own repository")
def test_its_states_are_the_references_first_six() -> None:
    where = {"checkpoint": str(ORACLES[0] / "ckpt"), "base": str(ORACLES[0] / "tiny-gpt2"), "device": "cpu"}
    oracle, arrays = json.loads((ORACLES[0] / "oracle.json").read_text()), np.load(ORACLES[0] / "oracle.npz")
    adapter = CeCodi(CeCodiOptions(**where)).load()
    compared = 0
    for number, question in enumerate(oracle["questions"]):
        if adapter.encode_prompt(question) != arrays[f"input_ids_{number}"].tolist():
            continue  # spaces that the reference joins
        produced = forward(adapter, question)
        assert states(produced).shape[0] == 6
        assert np.allclose(states(produced).numpy(), arrays[f"c_{number}"][:6], atol=2e-4, rtol=1e-3)
        assert np.abs(produced.first_logits[0].numpy() - arrays[f"logits_first_{number}"]).max() > 0.5  # five latents are another model
        compared += 1
    assert compared >= 4


def test_it_is_codi_with_five_latents() -> None:
    five = Codi(CodiOptions(checkpoint="demo", device="cpu", latents=5)).load()
    six = Codi(CodiOptions(checkpoint="demo", device="cpu")).load()
    mine = forward(ce())
    assert torch.equal(mine.first_logits, forward(five).first_logits)
    assert torch.equal(states(mine), states(forward(six))[:6])
    assert (mine.first_logits - forward(six).first_logits).abs().max() > 0.05


@pytest.mark.skipif(not ORACLES, reason="the oracle lies in codi-engine's own repository")
def test_the_question_is_tokenised_as_it_is_written() -> None:
    where = {"checkpoint": str(ORACLES[0] / "ckpt"), "base": str(ORACLES[0] / "tiny-gpt2"), "device": "cpu"}
    reference, mine = Codi(CodiOptions(**where)).load(), CeCodi(CeCodiOptions(**where)).load()
    assert mine.encode_prompt(QUESTION) == reference.encode_prompt(QUESTION)
    spaced = QUESTION.replace(". ", ".  ")
    assert reference.encode_prompt(spaced) == reference.encode_prompt(QUESTION)
    assert mine.encode_prompt(spaced) == [*mine.encode(spaced), 421]
    assert len(mine.encode_prompt(spaced)) == len(mine.encode_prompt(QUESTION)) + 2


def test_the_last_state_is_fed_to_nothing(make: Make, run: Ran, changes: Changes) -> None:
    last = {"plugin": "zero", "site": "latent_out", "step": [4]}  # c_5
    with pytest.raises(UserError, match=r"cannot change anything: no later computation reads latent_out"):
        make(intervention=last).run()
    assert changes(run(intervention=last, allow_vacuous=True)).tolist() == [0.0, 0.0]
    with pytest.raises(UserError, match=r"step"):
        make(intervention={"plugin": "zero", "site": "latent_in", "step": [5]}).run()


def test_in_the_references_loop_the_last_state_acts(run: Ran, changes: Changes) -> None:
    conditions = {
        "state": {"intervention": {"plugin": "zero", "site": "latent_out", "step": [4]}},
        "latent": {"intervention": {"plugin": "zero", "site": "latent_in", "step": [5]}},
    }
    acting = run(model=DEMO, conditions=conditions)
    assert (changes(acting, condition="state") > 0.05).all()
    assert (changes(acting, condition="latent") > 0.05).all()


def test_eot_twice_alone_moves_the_first_logits() -> None:
    once, twice = forward(ce()), forward(ce(eot_times=2))
    assert torch.equal(states(once), states(twice))
    assert (once.first_logits - twice.first_logits).abs().max() > 0.5
    assert ce(eot_times=2).digest != ce().digest != Codi(CodiOptions(checkpoint="demo", device="cpu", latents=5)).load().digest
