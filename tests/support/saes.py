"""Small autoencoders on disk, in the layouts of their libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from codi_engine.core.plugins import plugin_manager
from codi_engine.core.sae import SAE
from codi_engine.core.saestore import SaeStore

D, F, K, ROWS = 12, 40, 5, 23
Array = Any  # a numpy array of floats
STATES = np.random.default_rng(1).normal(size=(ROWS, D)).astype(np.float32) * 3 + 1


def store() -> SaeStore:
    return SaeStore(plugin_manager(load=False), "cpu")


def read(path: Path) -> SAE:
    return store().get(str(path))


def drawn(**shapes: tuple[int, ...]) -> dict[str, Array]:
    """Random tensors of these shapes; dots in names are written as __."""
    rng = np.random.default_rng(2)
    return {name.replace("__", "."): rng.normal(size=shape).astype(np.float32) * 0.5 for name, shape in shapes.items()}


def tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def directory(path: Path, config: Mapping[str, Any], arrays: Mapping[str, Array], names: tuple[str, str] = ("cfg.json", "sae_weights.safetensors")) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / names[0]).write_text(json.dumps(config), encoding="utf-8")
    (path / names[1]).parent.mkdir(exist_ok=True)
    save_file(tensors(arrays), path / names[1])
    return path


BASIC = {"W_enc": (D, F), "b_enc": (F,), "W_dec": (F, D), "b_dec": (D,)}
LINEAR = {"encoder__weight": (F, D), "encoder__bias": (F,), "decoder__weight": (D, F), "decoder__bias": (D,)}
HOOK = "blocks.5.hook_resid_post"
PLAIN: dict[str, Any] = {
    "hook_point_in": HOOK,
    "hook_point_out": HOOK,
    "d_model": D,
    "d_sae": F,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "jump_relu_threshold": 0.6,
    "sparsity_include_decoder_norm": False,
    "apply_decoder_bias_to_pre_encoder": False,
    "top_k": K,
    "dataset_average_activation_norm": {"in": 8.0, "out": 11.0},
}


def write_sae(folder: Path, width: int, features: int = 40, seed: int = 0, hook: str | None = None) -> Path:
    """Write one autoencoder (standard, ReLU, b_dec subtracted from its input)."""
    folder.mkdir(parents=True)
    made = torch.Generator().manual_seed(seed)
    tensors = {
        "W_enc": torch.randn(width, features, generator=made) / width**0.5,
        "b_enc": torch.randn(features, generator=made) * 0.3,
        "W_dec": torch.randn(features, width, generator=made) / width**0.5,
        "b_dec": torch.randn(width, generator=made) * 0.2,
    }
    save_file(tensors, folder / "sae_weights.safetensors")
    config = {"architecture": "standard", "d_in": width, "d_sae": features, "apply_b_dec_to_input": True, "normalize_activations": "none"}
    (folder / "cfg.json").write_text(json.dumps({**config, **({"hook_name": hook} if hook else {})}), encoding="utf-8")
    return folder


def write_saes(folder: Path, layers: int, width: int, features: int = 40) -> str:
    """Write one autoencoder per layer; returns the path with ``{layer}`` in it."""
    for layer in range(layers):
        write_sae(folder / f"sae_{layer}", width, features, seed=100 + layer)
    return str(folder / "sae_{layer}")


class Naive:
    """What a standard autoencoder does, in float64."""

    def __init__(self, folder: str | Path) -> None:
        self.tensors = {k: v.double() for k, v in load_file(Path(folder) / "sae_weights.safetensors").items()}

    def encode(self, h: torch.Tensor) -> torch.Tensor:
        t = self.tensors
        return torch.relu((h.double() - t["b_dec"]) @ t["W_enc"] + t["b_enc"])

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = codes @ self.tensors["W_dec"] + self.tensors["b_dec"]
        return states

    def edit(self, h: torch.Tensor, mode: str, feature: int | None, value: float | None, error: str) -> torch.Tensor:
        """Return edited states, rows × width."""
        codes = self.encode(h)
        if mode == "reconstruct":
            return self.decode(codes).to(h.dtype)
        assert feature is not None
        assert value is not None
        new = codes.clone()
        new[:, feature] = {"set": torch.full_like(codes[:, feature], value), "add": codes[:, feature] + value, "scale": codes[:, feature] * value}[mode]
        if error == "drop":
            return self.decode(new).to(h.dtype)
        return (h.double() + self.decode(new) - self.decode(codes)).to(h.dtype)
