"""Single ``.pt`` files of the studies of continuous thought: linear layers with ReLU, with top-k by magnitude, or Matryoshka."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import SaeFormat
from codi_engine.core.sae import SAE
from codi_engine.plugins.saes.reading import Tensors, audit, load_pickled, stated, whole

_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias")
_DECODER = ("decoder.weight", "decoder.bias")
#: widths of the published Matryoshka levels, and how many features each keeps
_LEVELS, _KEPT = (128, 256, 512), (25, 35, 40)


class TorchFile(SaeFormat):
    """A .pt file of linear layers: ReLU, top-k by magnitude (signed), or the finest level of a Matryoshka autoencoder."""

    name = "torch_pt"

    def matches(self, path: Path) -> bool:
        return path.is_file() and path.suffix in (".pt", ".pth")

    def read(self, path: Path) -> SAE:
        loaded = load_pickled(path)
        if not isinstance(loaded, dict):
            raise UserError(f"sae: '{path}' must hold a dictionary; it holds a {type(loaded).__name__}")
        tensors = loaded.get("model_state_dict", loaded)
        config = loaded.get("config", {})
        if not isinstance(config, Mapping) or not isinstance(tensors, Mapping) or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
            raise UserError(f"sae: '{path}' is neither a state dict of tensors nor a dictionary with model_state_dict and config")
        if any(re.match(r"encoder_\d", str(name)) for name in tensors):
            return _matryoshka(self.name, path, dict(tensors), config)
        return _linear(self.name, path, dict(tensors), config)


def _linear(name: str, path: Path, tensors: Tensors, config: Mapping[str, Any]) -> SAE:
    """ReLU without k in the configuration (or file name), else the k largest by magnitude with their signs."""
    audit(tensors, path, _LINEAR)
    decoder = tensors["decoder.weight"].float().T
    stated(config, path, (decoder.shape[-1], decoder.shape[0]), "input_dim", "n_features" if "n_features" in config else "latent_dim")
    in_name = re.search(r"_k(\d+)(?:_|$)", path.stem)
    k = whole(config, "k", path) if "k" in config else int(in_name[1]) if in_name else None
    return SAE(
        format=name, path=str(path), w_enc=tensors["encoder.weight"].T, b_enc=tensors["encoder.bias"], w_dec=decoder, b_dec=tensors["decoder.bias"],
        activation="relu" if k is None else "abs_topk", k=k, site=_site(config),
    )  # fmt: skip


def _matryoshka(name: str, path: Path, tensors: Tensors, config: Mapping[str, Any]) -> SAE:
    """The finest level: its own encoder where that has every feature, else all encoders side by side; top-k by value, signs kept."""
    encoders = sorted({n.split(".")[0] for n in tensors if n.startswith("encoder_")}, key=lambda n: int(n.removeprefix("encoder_")))
    audit(tensors, path, [*_DECODER, *(f"{e}.{kind}" for e in encoders for kind in ("weight", "bias"))])
    decoder = tensors["decoder.weight"].float().T
    sizes = [tensors[f"{e}.weight"].shape[0] for e in encoders]
    used = encoders[-1:] if sizes[-1] == decoder.shape[0] else encoders
    return SAE(
        format=name, path=str(path), w_enc=torch.cat([tensors[f"{e}.weight"] for e in used]).T, b_enc=torch.cat([tensors[f"{e}.bias"] for e in used]),
        w_dec=decoder, b_dec=tensors["decoder.bias"], activation="topk", k=_finest(config, path, decoder.shape[0]), signed=True, site=_site(config),
    )  # fmt: skip


def _finest(config: Mapping[str, Any], path: Path, features: int) -> int:
    """Return how many features the finest level keeps: the last of the configuration's, or the published one."""
    for key in ("k", "ks", "k_values", "k_levels"):
        if key in config:
            value = config[key]
            last = value[-1] if isinstance(value, (list, tuple)) and value else value
            return whole({key: last}, key, path)
    if features == _LEVELS[-1]:
        return _KEPT[-1]
    raise UserError(f"sae: '{path}': a Matryoshka autoencoder of {features} features without k in its config")


def _site(config: Mapping[str, Any]) -> str | None:
    """These were trained on ``hidden_states[layer]``, which is what block layer − 1 puts out."""
    layer = config.get("layer")
    return f"resid_post.{layer - 1}" if isinstance(layer, int) and layer > 0 else None
