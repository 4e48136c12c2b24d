"""Every built-in goes through the suites that a third party's plugins go through."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codi_engine import Experiment
from codi_engine.core.plugins import plugin_manager
from codi_engine.testing import DatasetSuite, InterventionSuite, MetricSuite, SaeFormatSuite, StoreSuite
from codi_engine.testing.runs import shared_run, small_data
from tests.support.saes import BASIC, LINEAR, PLAIN, D, F, directory, drawn, tensors, write_sae

BUILTIN: dict[str, dict[str, Any]] = {
    kind: {r.name: r.cls for r in plugin_manager(load=False).registered if r.kind == kind} for kind in ("intervention", "metric", "dataset", "sae_format")
}

#: name → attributes of its suite; a built-in without an entry fails
INTERVENTIONS: dict[str, dict[str, Any]] = {
    "zero": {},
    "mean": {"options": ({}, {"over": "all"})},
    "resample": {"options": ({}, {"self_donor": True})},
    "patch": {},
    "noise": {"options": ({"sigma": 0.5}, {"sigma": 0.0})},
    "steer": {"options": tuple({"difference": "clean", "mode": m} for m in ("add", "norm_matched", "project_out")), "pairs": True},
    "sae": {
        "options": tuple({"sae": "demo", **o} for o in ({"feature": 3, "value": 2.0}, {"feature": 3, "value": 0.0, "mode": "add"}, {"mode": "reconstruct"}))
    },
    "early_decode": {"site": "latent_in@latent[3]"},
    "recorded": {"options": ({"run": "{run}", "variant": "clean"},), "pairs": True, "address": {"on": "corrupted"}},
}
METRICS: dict[str, dict[str, Any]] = {
    "accuracy": {}, "flip": {"unedited": 0.0}, "equals_other": {"nan_where": "some"}, "equals_predicted": {"nan_where": "some"},
    "kl": {"unedited": 0.0, "options": ({}, {"at": "first", "direction": "edited_to_baseline"})}, "logit_diff": {"nan_where": "some"},
    "normalized_effect": {"nan_where": "some"}, "prob": {}, "rank": {}, "cross_entropy": {"options": ({}, {"reduce": "mean"})},
    "rms_logit_diff": {"unedited": 0.0}, "argmax_changed": {"unedited": 0.0}, "clean_score": {"nan_where": "some"}, "corrupted_score": {"nan_where": "some"},
    "norm": {}, "cosine": {"unedited": 1.0}, "l2": {"unedited": 0.0}, "clean_similarity": {}, "answer_class": {}, "perplexity": {},
    "outcome": {"options": ({"pattern": r"(?P<n>\d+)", "numbers": ["n"]},), "nan_where": "some"}, "unusual": {"nan_where": "unedited"},
}  # fmt: skip
LINE = '{"question": "What is %d + 1?", "answer": %d}\n'
PAIR = '{"clean": {"question": "What is %d + 1?", "answer": %d}, "corrupted": {"question": "What is %d + 2?", "answer": %d}}\n'
DATASETS: dict[str, dict[str, Any]] = {
    "problems": {
        "options": ({"path": "{path}"},), "records": "".join(LINE % (n, n + 1) for n in range(4)), "changed": "".join(LINE % (n, n + 1) for n in range(1, 5)),
        "broken": {LINE % (1, 2) + "not json\n": "data.jsonl:2", LINE % (1, 2) + '{"answer": 3}\n': "data.jsonl:2"},
    },
    "pairs": {
        "options": ({"path": "{path}"},), "records": "".join(PAIR % (n, n + 1, n, n + 2) for n in range(4)),
        "changed": "".join(PAIR % (n, n + 1, n, n + 2) for n in range(1, 5)),
        "broken": {PAIR % (1, 2, 1, 3) + "[]\n": "data.jsonl:2", PAIR % (1, 2, 1, 3) + '{"clean": {"question": "a"}}\n': "data.jsonl:2"},
    },
    "prompts": {
        "options": ({"path": "{path}"},), "records": '{"text": "a b"}\n{"text": "c d"}\n{"text": "e"}\n', "broken": {'{"text": "a"}\n{}\n': "data.jsonl:2"},
    },
    "demo-problems": {}, "demo-pairs": {}, "demo-prompts": {},
}  # fmt: skip


def _gemma(folder: Path) -> Path:
    np.savez(folder / "params.npz", allow_pickle=False, **{k: np.abs(v) if k == "threshold" else v for k, v in drawn(**BASIC, threshold=(F,)).items()})
    return folder


def _torch(folder: Path) -> Path:
    torch.save({"model_state_dict": tensors(drawn(**LINEAR)), "config": {"input_dim": D, "n_features": F}}, folder / "pos_0_final.pt")
    return folder / "pos_0_final.pt"


def _sparsify(folder: Path) -> Path:
    arrays = drawn(encoder__weight=(F, D), encoder__bias=(F,), W_dec=(F, D), b_dec=(D,))
    config = {"d_in": D, "expansion_factor": 3, "num_latents": F, "k": 5, "normalize_decoder": True, "signed": False}
    return directory(folder / "layers.7", config, arrays, ("cfg.json", "sae.safetensors"))


#: format → what writes a small autoencoder of it; None tries junk only: its layouts are in tests/plugins/test_saes.py
SAES: dict[str, Any] = {
    "saelens": lambda folder: write_sae(folder / "sae", D, F),
    "gemma_scope": _gemma,
    "torch_pt": _torch,
    "sparsify": _sparsify,
    "llama_scope": lambda folder: directory(folder / "L5R-8x", PLAIN, drawn(**LINEAR), ("hyperparams.json", "checkpoints/final.safetensors")),
    "llama_scope_r1": None,
    "llamascopium": None,
}


def suites(base: type[Any], kind: str, given: dict[str, dict[str, Any]]) -> dict[str, type[Any]]:
    """Return a test class per built-in of a kind that has an entry."""
    named = {}
    for name, cls in BUILTIN[kind].items():
        if name in given and "skip" not in given[name]:
            title = "Test" + kind.title().replace("_", "") + name.title().replace("_", "").replace("-", "")
            named[title] = type(title, (base,), {"plugin": cls, "__module__": __name__, **given[name]})
    return named


@pytest.mark.parametrize(("kind", "given"), [("intervention", INTERVENTIONS), ("metric", METRICS), ("dataset", DATASETS), ("sae_format", SAES)])
def test_every_builtin_has_a_suite(kind: str, given: dict[str, Any]) -> None:
    assert sorted(BUILTIN[kind]) == sorted(given), "a new built-in: add options for it above"


class OfIntervention(InterventionSuite):
    """``{run}`` in an option stands for a run that captured both sides of the pairs."""

    def build(self, setting: Mapping[str, Any]) -> Any:
        return super().build(_filled(setting))

    def bench(self, setting: Mapping[str, Any], batch_size: int | str = "auto") -> Any:
        return super().bench(_filled(setting), batch_size)


def _filled(setting: Mapping[str, Any]) -> dict[str, Any]:
    return {k: str(_captured()) if v == "{run}" else v for k, v in setting.items()}


@cache
def _captured() -> Path:
    return shared_run(intervention=None, data=small_data("pairs"), capture=["resid_post.1@latent"], metrics=[]).path


globals().update(suites(OfIntervention, "intervention", INTERVENTIONS))
#: ours are tried in batches of one all together, in two runs instead of two for each
TOGETHER = "test_batches_of_one_give_the_same_cells"
globals().update(suites(MetricSuite, "metric", {name: {**given, TOGETHER: None} for name, given in METRICS.items()}))


@pytest.mark.parametrize(("kind", "edit"), [("pairs", {"plugin": "patch", "direction": "denoise"}), ("problems", {"plugin": "resample"})])
def test_metrics_in_batches_of_one_give_the_same_cells(kind: str, edit: dict[str, Any], tmp_path: Path) -> None:
    mine = {name: given for name, given in METRICS.items() if kind in BUILTIN["metric"][name].applies_to and "skip" not in given}
    metrics = [{"plugin": name, **options} for name, given in mine.items() for options in given.get("options", ({},))]
    assert len(metrics) > 15
    value = {
        "name": "together", "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}, "data": small_data(kind), "metrics": metrics,
        "controls": "none",
        "intervention": {"site": "resid_post.1@latent", "step": [1, 3], **edit}, "capture": ["latent_out"],
        "generate": {"max_new_tokens": 8},
    }  # fmt: skip
    batched, single = (Experiment.from_dict({**value, "batch_size": size}).run(tmp_path / str(size)).open().cells for size in ("auto", 1))
    pd.testing.assert_frame_equal(batched, single, check_exact=True)


globals().update(suites(DatasetSuite, "dataset", DATASETS))


def _written(make: Any) -> dict[str, Any]:
    return {} if make is None else {"written": lambda self, folder: make(folder)}


globals().update(suites(SaeFormatSuite, "sae_format", {name: _written(make) for name, make in SAES.items()}))


class TestRunStore(StoreSuite):
    """Ours."""
