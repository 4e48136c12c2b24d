"""Pad tokens for latents, a half-scaled and half-loaded LoRA, and what that makes of position and iterative patching."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from codi_engine_originals.checkpoints import FlatPad, FlatPadOptions
from codi_engine_originals.measures import AnswerLogitDiff
from safetensors.torch import load_file, save_file

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelAdapter
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.runs.results import Run
from codi_engine.plugins.models.codi import Codi, CodiOptions

Make, Ran = Callable[..., Experiment], Callable[..., Run]
QUESTION = "Sara buys 26 balls. She buys 8 more. How many balls does Sara have?"
PAIRS = {"plugin": "demo-pairs", "limit": 3}
FLAT = {"plugin": "flat-pad", "checkpoint": "demo", "device": "cpu"}
PATCH = {"plugin": "patch", "site": "resid_post@prompt", "direction": "denoise"}
FIRST_KL = {"plugin": "kl", "at": "first", "direction": "edited_to_baseline"}
PADS = "resid_post@prompt[-6,-5,-4,-3,-2]"


def flat(**options: Any) -> ModelAdapter:
    return FlatPad(FlatPadOptions(checkpoint="demo", device="cpu", **options)).load()


def first_logits(adapter: ModelAdapter) -> torch.Tensor:
    return Rollout(Network(adapter)).run([adapter.encode_prompt(QUESTION)], [Task(0)], Want(generate=False, read=False)).first_logits[0]


def test_the_prompt_holds_pads_for_latents_and_ends_in_eot() -> None:
    adapter, reference = flat(), Codi(CodiOptions(checkpoint="demo", device="cpu")).load()
    question = reference.encode_prompt(QUESTION)[:-1]
    assert adapter.encode_prompt(QUESTION) == [*question, 828, *[827] * 5, 829]
    assert (adapter.info.latents, adapter.projection, tuple(adapter.answer_start)) == (0, None, ())
    assert flat(pads=0).encode_prompt(QUESTION) == [*question, 828, 829]
    described = FlatPad(FlatPadOptions(checkpoint="demo", device="cpu")).describe()
    assert (described.latents, described.layers) == (0, 4)


def test_half_scale_and_no_mlp_lora_are_another_model() -> None:
    whole = first_logits(flat(lora_alpha=32.0, mlp_lora=True))
    half = first_logits(flat(mlp_lora=True))
    attention = first_logits(flat(lora_alpha=32.0))
    for other in (half, attention, first_logits(flat())):
        assert (other - whole).abs().max() > 0.05
    assert len({flat(**o).digest for o in ({}, {"lora_alpha": 32.0}, {"mlp_lora": True}, {"pads": 4})}) == 4
    assert flat().report[-1] == "8 MLP layers without their LoRA; 5 pad tokens, no projection"


def test_the_whole_checkpoint_in_a_flat_prompt_is_the_same_network() -> None:
    """Nothing but the LoRA is changed: with all of it the network answers as the merged one does on the same tokens."""
    merged = Codi(CodiOptions(checkpoint="demo", device="cpu")).load()
    ids = flat().encode_prompt(QUESTION)
    with torch.inference_mode():
        expected = merged.network(input_ids=torch.tensor([ids])).logits[0, -1]
    assert torch.allclose(first_logits(flat(lora_alpha=32.0, mlp_lora=True)), expected, atol=2e-4, rtol=1e-3)


def test_the_built_in_loader_refuses_or_reports_it(tmp_path: Path) -> None:
    from importlib.resources import files

    demo = files("codi_engine.plugins").joinpath("demo")
    state = load_file(str(demo / "checkpoint" / "model.safetensors"))
    save_file({k: v for k, v in state.items() if not (".mlp." in k and ".lora_" in k)}, tmp_path / "model.safetensors")
    lax = Codi(CodiOptions(checkpoint=str(tmp_path), base=str(demo / "base"), device="cpu"))
    with pytest.raises(UserError, match=r"16 missing keys: .*mlp"):
        lax.load()
    right, half = (Codi(CodiOptions(checkpoint="demo", device="cpu", lora_alpha=a)).load() for a in (32.0, 16.0))
    assert "alpha=32" in right.report[-1]
    assert "alpha=16" in half.report[-1]
    assert right.digest != half.digest


# ------------------------------------------------------------------------------------------------------ patching


@pytest.fixture(scope="module")
def iterative(run: Ran) -> Run:
    sets = [[-6], [-6, -5], [-6, -5, -4], [-6, -5, -4, -3], [-6, -5, -4, -3, -2]]
    return run(model=FLAT, data=PAIRS, intervention=PATCH, sweep={"layer": [0, 1, 2], "position": sets}, metrics=[FIRST_KL], capture=[PADS])


def test_the_state_generated_next_is_the_unpatched_runs_own(iterative: Run) -> None:
    """What "iterative" patching reads at position s + 1 lies at the patched layer, which no patch at that layer reaches."""
    base, edited = iterative.activations(PADS), iterative.activations(PADS, edited=True)
    corrupted = {str(e): v for v, e, s in zip(base.values, base["example"].values, base["variant"].values, strict=True) if s == "corrupted"}
    clean = {str(e): v for v, e, s in zip(base.values, base["example"].values, base["variant"].values, strict=True) if s == "clean"}
    compared = 0
    for value, example, layer, places in zip(
        edited.values, edited["example"].values, edited["edited_layer"].values, edited["edited_position"].values, strict=True
    ):
        count = len(str(places).split("+"))
        assert np.array_equal(value[int(layer), :count], clean[str(example)][int(layer), :count])
        if count < 5:
            assert np.array_equal(value[int(layer), count], corrupted[str(example)][int(layer), count])
            if int(layer) < 3:
                assert not np.array_equal(value[int(layer) + 1, count], corrupted[str(example)][int(layer) + 1, count])
            compared += 1
    assert compared == 3 * 3 * 4


def test_iterative_and_parallel_are_one_computation(iterative: Run, run: Ran) -> None:
    parallel = run(model=FLAT, data=PAIRS, intervention=PATCH, sweep={"layer": [0, 1, 2], "position": [[-6, -5, -4, -3, -2]]}, metrics=[FIRST_KL], capture=[])
    last = iterative.cells[iterative.cells["position"] == "-6+-5+-4+-3+-2"]
    both = last.merge(parallel.cells[parallel.cells["condition"] != "baseline"], on=["example", "layer"])
    assert len(both) == 9
    assert (both["kl_x"] == both["kl_y"]).all()
    assert (both["kl_x"] > 0).all()


def test_the_last_layer_has_no_effect_by_construction(make: Make, run: Ran) -> None:
    last = {"model": FLAT, "data": PAIRS, "intervention": PATCH, "sweep": {"layer": [3], "position": "-6:-1"}, "metrics": [FIRST_KL]}
    with pytest.raises(UserError, match="cannot change anything"):
        make(**last).run()
    cells = run(**last, allow_vacuous=True).cells
    assert (cells["kl"] == 0).all()
    assert len(cells) == 3 * 5 + 6


def test_the_planner_says_that_iterative_and_parallel_are_the_same(make: Make, run: Ran) -> None:
    """On the built-in model: the same places are the same computation, and a chain of a latent loop is its first patch."""
    codi = {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}
    patch = {"plugin": "patch", "site": "resid_post", "layer": 1, "direction": "denoise"}
    both = {"iterative": {"intervention": patch, "sweep": {"step": [[0, 1, 2]]}}, "parallel": {"intervention": patch, "sweep": {"step": [[2, 1, 0]]}}}
    with pytest.raises(UserError, match="conditions 'iterative' and 'parallel' are the same computation"):
        make(model=codi, data=PAIRS, conditions=both).run()
    chained = {"model": codi, "data": PAIRS, "intervention": {**patch, "chain": True}, "sweep": {"step": "cumulative"}}
    with pytest.raises(UserError, match="its 6 points are 1 different computation"):
        make(**chained).run()
    cells = run(**chained, allow_vacuous=True).cells
    edited = cells[cells["condition"] == "patch"]
    assert len(edited) == 3 * 6
    assert (edited.groupby("example")["rms_logit_diff"].nunique() == 1).all()
    assert (edited["rms_logit_diff"] > 0).all()


# ------------------------------------------------------------------------------------------------------- metrics


def test_answer_logit_diff_reads_all_tokens_at_the_first_place(run: Ran) -> None:
    both = run(model=FLAT, data=PAIRS, intervention=PATCH, sweep={"layer": [0], "position": [-2]}, metrics=["answer-logit-diff"])
    adapter = flat()
    logits = both.activations("logits@answer[0]")
    cells = both.cells[both.cells["condition"] == "baseline"]
    import json
    from importlib.resources import files

    lines = files("codi_engine.plugins").joinpath("demo").joinpath("pairs.jsonl").read_text(encoding="utf-8").splitlines()
    answers = {str(r["pair_id"]): (r["clean"]["answer"], r["corrupted"]["answer"]) for r in map(json.loads, lines)}
    for value, example, found in zip(logits.values, logits["example"].values, cells["answer_logit_diff"], strict=True):
        clean, corrupted = (np.mean([float(value.reshape(-1)[i]) for i in adapter.encode(str(a))]) for a in answers[str(example)])
        assert found == pytest.approx(clean - corrupted, abs=1e-6)
    assert both.cells["answer_logit_diff"].notna().all()
    assert AnswerLogitDiff.applies_to == {"pairs"}
