"""Edits in every forward of a model with latents, and the controls of a patch, against the model's own forward with hooks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codi_engine import Experiment, open_run
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.plugins.models.codi import Codi, CodiOptions
from tests.support import saes

Maker = Callable[..., Experiment]
NEW, WIDTH = 5, 128


@torch.inference_mode()
def hooked(adapter: Any, ids: list[int], tokens: str) -> tuple[str, torch.Tensor, torch.Tensor]:
    """Zero the MLP of block 1 in every forward; returns the text, and block 2's outputs: of the prompt and of what follows."""
    from transformers import DynamicCache

    net = adapter.network
    seen: list[torch.Tensor] = []

    def zero(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
        out = out.clone()
        out[:, -1 if tokens == "last" else 0 :] = 0
        return out

    handles = [net.transformer.h[1].mlp.register_forward_hook(zero)]
    handles.append(net.transformer.h[2].register_forward_hook(lambda _, __, out: seen.append(out[0].clone())))
    try:
        cache = DynamicCache(config=net.config)
        state = net.base_model(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        for _ in range(6):
            state = net.base_model(inputs_embeds=adapter.projection(state)[:, None], past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        feed, made = list(adapter.answer_start), list[int]()
        while True:
            state = net.base_model(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
            if len(made) == NEW:
                break
            made.append(int(net.get_output_embeddings()(state)[0, : adapter.banned_ids_from].argmax()))
            if made[-1] in adapter.stop_ids:
                break
            feed = made[-1:]
    finally:
        for handle in handles:
            handle.remove()
    return adapter.decode([t for t in made if t not in adapter.stop_ids]), seen[0], torch.cat(seen[1:])


def test_prompt_latents_and_answer_are_edited_and_read(demo: Maker, tmp_path: Path) -> None:
    """The token that begins the answer is edited and counted like the others."""
    saes.write_sae(tmp_path / "sae_2", WIDTH, 24)
    sae = str(tmp_path / "sae_{layer}")
    spec = {"sae": sae, "layers": [2]}
    capture = [{**spec, "name": "mean", "reduce": "mean"}, {**spec, "name": "most", "reduce": "max", "at": "all"}, {**spec, "name": "end"}]
    conditions = {t: {"intervention": {"plugin": "zero", "site": "mlp_out.1", "tokens": t}} for t in ("last", "all")}
    made = demo(conditions=conditions, data={"plugin": "demo-problems", "limit": 4}, metrics=["kl"], capture=capture, generate={"max_new_tokens": NEW})
    run = run_experiment(made, tmp_path / "run").open()
    adapter = Codi(CodiOptions(checkpoint="demo", device="cpu")).load()
    examples = {e.id: e.prompts["main"].text for e in plan_experiment(made).prepared.plan.data.examples}
    naive = saes.Naive(tmp_path / "sae_2")
    cells = run.cells[run.cells["condition"] != "baseline"].reset_index(drop=True)
    stored = {name: run.activations(name, edited=True).values for name in ("mean", "most", "end")}
    assert len(cells) == 8
    for at, (_, row) in enumerate(cells.iterrows()):
        text, prompt, later = hooked(adapter, list(adapter.encode_prompt(examples[row["example"]])), row["condition"])
        assert row["text"] == text
        short, whole = naive.encode(torch.cat([prompt[-1:], later])), naive.encode(torch.cat([prompt, later]))
        for name, want in (("mean", short.mean(0)), ("most", whole.max(0).values), ("end", short[-1])):
            np.testing.assert_allclose(stored[name][at], want.numpy(), rtol=2e-4, atol=2e-4, err_msg=name)


# ---------------------------------------------------------------------------------------------------- controls


def controlled(demo: Maker, path: Path, intervention: dict[str, Any], controls: list[str], **keys: Any) -> pd.DataFrame:
    value: dict[str, Any] = {"conditions": {"it": {"intervention": intervention}}, "data": {"plugin": "demo-pairs", "limit": 4}, "metrics": ["kl"]}
    run_experiment(demo(**{**value, "controls": controls, "capture": ["latent_in"], **keys}), path)
    return open_run(path).cells


def test_controls_put_in_what_they_say(demo: Maker, tmp_path: Path) -> None:
    patch = {"plugin": "patch", "site": "latent_in", "direction": "denoise"}
    cells = controlled(demo, tmp_path / "run", patch, ["random", "wrong_step", "shuffled"], sweep={"step": [2, 5]})
    run = open_run(tmp_path / "run")
    assert list(cells["condition"].unique()) == ["baseline", "it", "it~random", "it~wrong_step", "it~shuffled"]
    base = run.activations("latent_in").values
    unedited = {(r["example"], r["variant"]): base[i] for i, (_, r) in enumerate(run.baseline.iterrows())}
    edited = cells[cells["condition"] != "baseline"].reset_index(drop=True)
    values = run.activations("latent_in", edited=True).values
    for at, (_, row) in enumerate(edited.iterrows()):
        step = int(row["step"])
        clean, own, found = unedited[row["example"], "clean"], unedited[row["example"], "corrupted"], values[at]
        np.testing.assert_array_equal(found[:step], own[:step])
        if row["condition"] == "it":
            np.testing.assert_array_equal(found[step], clean[step])
        elif row["condition"] == "it~wrong_step":
            np.testing.assert_array_equal(found[step], clean[(step + 1) % 6])
        elif row["condition"] == "it~shuffled":
            assert not any(np.array_equal(found[step], v) for v in (clean[step], own[step]))  # an example of the pool, not this one
        else:
            moved, meant = found[step] - own[step], clean[step] - own[step]
            assert np.linalg.norm(moved) == pytest.approx(np.linalg.norm(meant), rel=1e-4)
            assert abs(moved @ meant) / np.linalg.norm(meant) ** 2 < 0.6


@pytest.mark.parametrize(
    ("intervention", "wanted"),
    [
        ({"plugin": "zero", "site": "latent_in"}, ["it"]),
        ({"plugin": "patch", "site": "resid_post.1@prompt", "direction": "denoise"}, ["it", "it~random", "it~shuffled"]),
        ({"plugin": "resample", "site": "latent_in", "step": 1}, ["it", "it~random", "it~wrong_step"]),
        ({"plugin": "resample", "site": "latent_in", "step": 1, "match": {"length": "same"}}, ["it", "it~random", "it~wrong_step", "it~shuffled"]),
    ],
)
def test_controls_that_make_sense(demo: Maker, intervention: dict[str, Any], wanted: list[str]) -> None:
    plan = plan_experiment(demo(conditions={"it": {"intervention": intervention}}, controls="auto")).prepared.plan
    assert [c.name for c in plan.conditions] == wanted
