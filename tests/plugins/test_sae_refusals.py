"""Autoencoder files that are damaged, incomplete, unknown or harmful are refused by name, in one or two lines."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codi_engine.core.errors import UserError
from tests.support.saes import BASIC, LINEAR, PLAIN, Array, D, F, K, directory, drawn, read, tensors


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read(path)
    text = str(caught.value)
    assert 1 <= len(text.splitlines()) <= 2
    assert text.startswith("sae: '")
    return text


GOOD: dict[str, Any] = {"d_in": D, "d_sae": F, "architecture": "jumprelu"}


def jumprelu() -> dict[str, Array]:
    return drawn(**BASIC, threshold=(F,))


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        ({"d_in": 99}, {}, "d_in is 99, but the weights have 12"),
        ({"d_sae": 99}, {}, "d_sae is 99, but the weights have 40"),
        ({"architecture": "magic"}, {}, "unknown architecture 'magic'"),
        ({"architecture": "standard", "activation_fn": "tanh-relu"}, {}, "unknown activation 'tanh-relu'"),
        ({"normalize_activations": "batch"}, {}, "unknown normalize_activations 'batch'"),
        ({"apply_b_dec_to_input": "yes"}, {}, "apply_b_dec_to_input must be true or false"),
        ({}, {"threshold": None}, "missing threshold"),
        ({}, {"W_more": np.zeros(3, np.float32)}, "unexpected W_more"),
        ({}, {"b_enc": np.zeros(39, np.float32)}, "b_enc is 39; with 40 features and width 12 it must be 40"),
        ({}, {"W_enc": np.zeros((F, D), np.float32)}, "W_enc is 40×12; with 40 features and width 12 it must be 12×40"),
        ({}, {"W_enc": np.full((D, F), np.nan, np.float32)}, "W_enc holds NaN"),
        ({"architecture": "topk"}, {"threshold": None}, "k must be a number; it is missing"),
        ({"architecture": "topk", "k": 41}, {"threshold": None}, "k is 41; it must lie between 1 and its 40 features"),
    ],
)
def test_bad_saelens_files_are_refused_by_name(tmp_path: Path, config: dict[str, Any], change: dict[str, Any], says: str) -> None:
    arrays = {k: v for k, v in {**jumprelu(), **change}.items() if v is not None}
    assert says in refused(directory(tmp_path / "x", {**GOOD, **config}, arrays))


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"act_fn": "gelu"}, "unknown activation act_fn 'gelu'"),
        ({"act_fn": "batchtopk"}, "depend on the batch"),
        ({"norm_activation": "batch-wise"}, "norm_activation 'batch-wise'; it depends on the batch"),
        ({"norm_activation": None}, "unknown normalisation"),
        ({"jump_relu_threshold": None}, "jumprelu without a threshold"),
        ({"dataset_average_activation_norm": {"in": 3.0}}, "without dataset_average_activation_norm of 'out'"),
        ({"apply_decoder_bias_to_pre_encoder": None}, "must be true or false"),
        ({"hook_point_out": "blocks.5.hook_mlp_out"}, "a transcoder"),
        ({"sae_type": "clt"}, "only plain autoencoders"),
        ({"d_model": 13}, "d_model is 13"),
        ({"act_fn": "topk", "top_k": None}, "top_k must be a number"),
    ],
)
def test_bad_llama_scope_files_are_refused_by_name(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    path = directory(tmp_path / "x", {**PLAIN, **config}, drawn(**LINEAR), ("hyperparams.json", "checkpoints/final.safetensors"))
    assert says in refused(path)


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        ({"activation": "groupmax"}, {}, "unknown activation 'groupmax'"),
        ({"transcode": True}, {}, "is a transcoder"),
        ({}, {"W_skip": np.zeros((D, D), np.float32)}, "is a transcoder"),
        ({"k": None}, {}, "k must be a number"),
        ({}, {"W_dec": np.zeros((5, D), np.float32)}, "the decoder is 5×12"),
        ({}, {"b_dec": None}, "needs one of the tensors b_dec and decoder.bias"),
        ({}, {"extra": np.zeros(3, np.float32)}, "unexpected tensors: extra"),
    ],
)
def test_bad_sparsify_files_are_refused_by_name(tmp_path: Path, config: dict[str, Any], change: dict[str, Any], says: str) -> None:
    w = drawn(encoder__weight=(F, D), encoder__bias=(F,), W_dec=(F, D), b_dec=(D,))
    arrays = {k: v for k, v in {**w, **change}.items() if v is not None}
    assert says in refused(directory(tmp_path / "x", {"d_in": D, "k": K, **config}, arrays, ("cfg.json", "sae.safetensors")))


class Runs:
    """A pickle of this would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, ("touch ran",))


def test_pickles_with_code_are_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": tensors(drawn(**LINEAR)), "config": Runs()}, "code.pt")
    assert "it holds more than tensors and numbers, and is not loaded" in refused(Path("code.pt"))
    Path("plain.pt").write_bytes(pickle.dumps(Runs()))
    refused(Path("plain.pt"))
    path = directory(tmp_path / "x", PLAIN, drawn(**LINEAR), ("hyperparams.json", "checkpoints/final.safetensors"))
    (path / "checkpoints" / "final.safetensors").rename(path / "checkpoints" / "unused")
    torch.save({"sae": Runs()}, path / "checkpoints" / "final.pth")
    refused(path)
    assert not Path("ran").exists()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    lens = directory(tmp_path / "lens", GOOD, jumprelu())
    cut(lens / "sae_weights.safetensors")
    assert "truncated" in refused(lens)
    np.savez(tmp_path / "params.npz", allow_pickle=False, **jumprelu())
    cut(tmp_path / "params.npz")
    assert "truncated" in refused(tmp_path / "params.npz")
    torch.save(tensors(drawn(**LINEAR)), tmp_path / "x.pt")
    cut(tmp_path / "x.pt")
    assert "damaged" in refused(tmp_path / "x.pt")
    (lens / "cfg.json").write_text('{"d_in": ', encoding="utf-8")
    assert "not readable JSON" in refused(lens) or "no known format" in refused(lens)


def test_arrays_of_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "params.npz", allow_pickle=True, **{**jumprelu(), "threshold": np.array([Runs()], dtype=object)})
    assert "holds pickled objects, which are not read" in refused(tmp_path / "params.npz")


def test_unknown_directories_and_sharded_checkpoints_name_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is in no known format (saelens, sparsify" in refused(tmp_path / "empty")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "x" / "sae_weights.dcp").mkdir()
    assert "save it as safetensors with the library that wrote it" in refused(tmp_path / "x")


@pytest.mark.parametrize(
    ("arrays", "config", "says"),
    [
        ({"decoder.bias": None}, {}, "missing decoder.bias"),
        ({}, {"input_dim": 13}, "input_dim is 13"),
        ({}, {"latent_dim": 13}, "latent_dim is 13"),
        ({}, {"k": "five"}, "k must be a number; it is 'five'"),
    ],
)
def test_bad_pt_files_are_refused_by_name(tmp_path: Path, arrays: dict[str, Any], config: dict[str, Any], says: str) -> None:
    kept = {k: v for k, v in {**drawn(**LINEAR), **arrays}.items() if v is not None}
    torch.save({"model_state_dict": tensors(kept), "config": config}, tmp_path / "x.pt")
    assert says in refused(tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "y.pt")
    assert "must hold a dictionary" in refused(tmp_path / "y.pt")
