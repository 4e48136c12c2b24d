"""Small autoencoders on disk, in the layouts of their libraries."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from codi_engine.core.plugins import plugin_manager
from codi_engine.core.sae import SAE, SaeStore

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
