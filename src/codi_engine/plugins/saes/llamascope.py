"""The three layouts that OpenMOSS' library wrote: Llama Scope (arXiv 2410.20526), Llama Scope R1, and llamascopium 2 and later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as repr_of
from typing import Any

import torch

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import SaeFormat
from codi_engine.core.sae import SAE, Activation, Norm
from codi_engine.plugins.saes.reading import (
    Tensors,
    audit,
    flag,
    names_in,
    number,
    one_number,
    peek,
    read_config,
    read_pickled,
    read_tensors,
    site_of,
    stated,
    whole,
)

_NORM = "dataset_average_activation_norm"
_ACTIVATIONS: dict[str, Activation] = {"relu": "relu", "jumprelu": "jumprelu", "topk": "topk"}
_NORMS = ("none", "inference", "token-wise", "dataset-wise")
_OLD = {"encoder.weight": "E", "encoder.bias": "bE", "decoder.weight": "D", "decoder.bias": "bD", "encoder_glu.weight": "G", "encoder_glu.bias": "bG"}
_NEW = {"W_E": "E", "b_E": "bE", "W_D": "D", "b_D": "bD", "W_E_glu": "G", "b_E_glu": "bG"}
_PER_FEATURE = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")


@dataclass(frozen=True)
class _Files:
    """The configuration and the weights of one directory."""

    config: Path
    weights: Path


def _build(name: str, path: Path, config: Mapping[str, Any], where: Path, tensors: Tensors) -> SAE:
    """Return the autoencoder of either layout: linear layers (out × in) or matrices (in × out)."""
    _refuse(config, where)
    tensors = dict(tensors)
    norms = {key.removeprefix(f"{_NORM}."): one_number(tensors.pop(key), key, path) for key in list(tensors) if key.startswith(f"{_NORM}.")}
    log_threshold = next((tensors.pop(key) for key in _PER_FEATURE if key in tensors), None)
    names = _OLD if "encoder.weight" in tensors else _NEW
    has_bias, has_glu = flag(config, "use_decoder_bias", where, True), flag(config, "use_glu_encoder", where, False)
    needed = [n for n, short in names.items() if (has_bias or short != "bD") and (has_glu or short not in ("G", "bG"))]
    audit(tensors, path, needed, ["decoder.bias", "b_D"])
    part = {names[n]: tensors[n].float() for n in needed}
    if names is _OLD:
        part |= {short: part[short].T for short in ("E", "D", "G") if short in part and part[short].ndim == 2}
    if part["D"].ndim != 2:
        raise UserError(f"sae: '{path}': the decoder must be a matrix; it has {part['D'].ndim} dimensions")
    features, width = part["D"].shape
    stated(config, where, (width, features), "d_model", "d_sae")
    bias = part.get("bD", torch.zeros(width))
    norm, into, out = _normalisation(config, where, norms, width)
    activation = _activation(config, where)
    subtracts = bool((bias != 0).any()) and _subtracts(config, where, names is _OLD)
    return SAE(
        format=name, path=str(path), w_enc=part["E"] * into, b_enc=part["bE"], w_dec=part["D"] / out, b_dec=bias / out, activation=activation,
        k=whole(config, "top_k", where) if activation == "topk" else None,
        threshold=_threshold(config, where, log_threshold, features) if activation == "jumprelu" else None,
        gauge=part["D"].norm(dim=1) if flag(config, "sparsity_include_decoder_norm", where, True) else None,
        glu=part["G"] * into if has_glu else None, glu_bias=part.get("bG"), center=bias / into if subtracts else None,
        norm=norm, site=site_of(config.get("hook_point_in")),
    )  # fmt: skip


def _refuse(config: Mapping[str, Any], where: Path) -> None:
    kind = config.get("sae_type", "sae")
    if kind != "sae":
        raise UserError(f"sae: '{where}': sae_type is {repr_of(kind)}; only plain autoencoders ('sae') are read")
    into, out = config.get("hook_point_in"), config.get("hook_point_out")
    if out is not None and into != out:
        raise UserError(f"sae: '{where}': reads {into} and writes {out}: a transcoder, not an autoencoder")


def _activation(config: Mapping[str, Any], where: Path) -> Activation:
    given = str(config.get("act_fn", "(none)")).lower()
    if given not in _ACTIVATIONS:
        why = "; its codes depend on the batch" if given == "batchtopk" else f"; {nearest(given, _ACTIVATIONS)}"
        raise UserError(f"sae: '{where}': unknown activation act_fn {repr_of(given)}{why}")
    return _ACTIVATIONS[given]


def _subtracts(config: Mapping[str, Any], where: Path, old: bool) -> bool:
    """Say whether the decoder's bias is subtracted first; the library's default changed, so older files must state it."""
    key = "apply_decoder_bias_to_pre_encoder"
    if old and key not in config:
        raise UserError(f"sae: '{where}': {key} is missing, and the decoder has a bias; state true or false")
    return flag(config, key, where, False)


def _threshold(config: Mapping[str, Any], where: Path, log_threshold: torch.Tensor | None, features: int) -> torch.Tensor:
    """Return the thresholds, in the normalised space."""
    if log_threshold is not None:
        return log_threshold.float().exp().reshape(-1).expand(features)
    if config.get("jump_relu_threshold") is None:
        raise UserError(f"sae: '{where}': jumprelu without a threshold: neither jump_relu_threshold there nor log_jumprelu_threshold in the weights")
    threshold = number(config, "jump_relu_threshold", where)
    if abs(threshold) > torch.finfo(torch.float32).max:
        raise UserError(f"sae: '{where}': jump_relu_threshold is larger than any number of the weights' type; state that of the training")
    return torch.full((features,), threshold)


def _normalisation(config: Mapping[str, Any], where: Path, norms: Mapping[str, float], width: int) -> tuple[Norm, float, float]:
    """Return the normalisation of every state, and the fixed scales of input and output."""
    given = config.get("norm_activation")
    if not isinstance(given, str) or given not in _NORMS:
        why = "it depends on the batch" if given == "batch-wise" else f"known: {', '.join(_NORMS)}"
        raise UserError(f"sae: '{where}': unknown normalisation norm_activation {repr_of(given)}; {why}")
    if given == "token-wise":
        return "rescale", 1.0, 1.0
    if given != "dataset-wise":
        return "none", 1.0, 1.0
    given_norms = config.get(_NORM) or {}
    if not isinstance(given_norms, Mapping):
        raise UserError(f"sae: '{where}': {_NORM} must be an object; it is {repr_of(given_norms)}")
    known = {**norms, **given_norms}
    found = []
    for side in ("in", "out"):
        hook = config.get(f"hook_point_{side}", config.get("hook_point_in"))
        value = known.get(side, known.get(str(hook)))
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            raise UserError(f"sae: '{where}': dataset-wise normalisation without {_NORM} of '{side}' ({hook})")
        found.append(float(width) ** 0.5 / float(value))
    return "none", found[0], found[1]


class LlamaScope(SaeFormat):
    """Llama Scope: hyperparams.json and checkpoints/final.safetensors or .pth (lm-saes 1)."""

    name = "llama_scope"

    def matches(self, path: Path) -> bool:
        return (path / "hyperparams.json").is_file()

    def files(self, path: Path) -> list[Path]:
        found = self._files(path)
        return [found.config, found.weights]

    def read(self, path: Path) -> SAE:
        found = self._files(path)
        tensors = read_tensors(found.weights) if found.weights.suffix == ".safetensors" else read_pickled(found.weights, "sae")
        return _build(self.name, path, read_config(found.config), found.config, tensors)

    def _files(self, path: Path) -> _Files:
        for name in ("final.safetensors", "final.pth", "final.pt"):
            if (path / "checkpoints" / name).is_file():
                return _Files(path / "hyperparams.json", path / "checkpoints" / name)
        raise UserError(f"sae: '{path}' has neither checkpoints/final.safetensors nor checkpoints/final.pth")


class LlamaScopeR1(SaeFormat):
    """Llama Scope R1: config.json and sae_weights.safetensors with linear layers and a threshold per feature."""

    name = "llama_scope_r1"

    def matches(self, path: Path) -> bool:
        return (path / "config.json").is_file() and "encoder.weight" in names_in(path / "sae_weights.safetensors")

    def files(self, path: Path) -> list[Path]:
        return [path / "config.json", path / "sae_weights.safetensors"]

    def read(self, path: Path) -> SAE:
        config = path / "config.json"
        return _build(self.name, path, read_config(config), config, read_tensors(path / "sae_weights.safetensors"))


class Llamascopium(SaeFormat):
    """llamascopium 2 and later: config.json and sae_weights.safetensors or .pt with W_E, b_E, W_D, b_D."""

    name = "llamascopium"

    def matches(self, path: Path) -> bool:
        if not (path / "config.json").is_file():
            return False
        return any((path / f"sae_weights{s}").is_file() for s in (".safetensors", ".pt")) and "d_in" not in peek(path / "config.json")

    def files(self, path: Path) -> list[Path]:
        return [path / "config.json", self._weights(path)]

    def read(self, path: Path) -> SAE:
        config, weights = path / "config.json", self._weights(path)
        tensors = read_tensors(weights) if weights.suffix == ".safetensors" else read_pickled(weights, "sae")
        return _build(self.name, path, read_config(config), config, tensors)

    def _weights(self, path: Path) -> Path:
        safe = path / "sae_weights.safetensors"
        return safe if safe.is_file() else path / "sae_weights.pt"
