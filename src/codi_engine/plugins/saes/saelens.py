"""SAELens: ``cfg.json`` and ``sae_weights.safetensors``, version 6 and the flat keys before it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from reprlib import repr as repr_of
from typing import Any

import torch

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import SaeFormat
from codi_engine.core.sae import SAE, Norm
from codi_engine.plugins.saes.reading import Tensors, audit, flag, names_in, peek, read_config, read_tensors, site_of, stated, whole

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
_NORMS: dict[Any, Norm] = {
    "none": "none",
    None: "none",
    False: "none",
    True: "none",
    "expected_average_only_in": "none",
    "constant_norm_rescale": "rescale",
    "layer_norm": "layer_norm",
}
_SCALED = ("expected_average_only_in", True)
_BASIC = ("W_enc", "W_dec", "b_dec")
_NEEDED = {
    "standard": (*_BASIC, "b_enc"),
    "topk": (*_BASIC, "b_enc"),
    "jumprelu": (*_BASIC, "b_enc", "threshold"),
    "gated": (*_BASIC, "b_gate", "b_mag", "r_mag"),
}


class SaeLens(SaeFormat):
    """SAELens: a directory with cfg.json and sae_weights.safetensors (standard, jumprelu, gated, topk)."""

    name = "saelens"
    shortcuts = {"demo": str(files("codi_engine.plugins").joinpath("demo", "sae", "layer_{layer}"))}

    def matches(self, path: Path) -> bool:
        if not (path / CONFIG).is_file() or not (path / WEIGHTS).exists():
            return False
        return "W_dec" in names_in(path / WEIGHTS) or "d_in" in peek(path / CONFIG)

    def files(self, path: Path) -> list[Path]:
        return [p for p in (path / CONFIG, path / WEIGHTS, path / SCALER) if p.is_file()]

    def read(self, path: Path) -> SAE:
        config, tensors, where = read_config(path / CONFIG), read_tensors(path / WEIGHTS), path / CONFIG
        kind = _architecture(config, where)
        audit(tensors, path / WEIGHTS, _NEEDED[kind], {"scaling_factor"})
        encoder, decoder, center = tensors["W_enc"].float(), tensors["W_dec"].float(), tensors["b_dec"].float()
        if decoder.ndim == 2:
            stated(config, where, (decoder.shape[1], decoder.shape[0]), "d_in", "d_sae")
        gate: dict[str, Any] = {}
        if kind == "gated":
            gate = {"gate_bias": tensors["b_gate"], "mag_scale": tensors["r_mag"].float().exp(), "mag_bias": tensors["b_mag"]}
        bias = tensors["b_enc"].float() if kind != "gated" else torch.zeros(decoder.shape[0])
        if kind == "topk" and flag(config, "rescale_acts_by_decoder_norm", where, False):
            length = decoder.norm(dim=1)
            if not (length > 0).all():
                raise UserError(f"sae: '{path}': rescale_acts_by_decoder_norm with a decoder row of zeros")
            encoder, bias, decoder = encoder * length, bias * length, decoder / length[:, None]
        decoder = _finetuned(decoder, tensors, config, path)
        norm, scale = _normalisation(config, path)
        return SAE(
            format=self.name, path=str(path), w_enc=encoder * scale, b_enc=bias, w_dec=decoder / scale, b_dec=center / scale,
            activation="relu" if kind == "standard" else kind,  # type: ignore[arg-type]
            k=_k(config, where) if kind == "topk" else None, threshold=tensors.get("threshold"),
            center=center / scale if flag(config, "apply_b_dec_to_input", where, True) else None,
            norm=norm, site=site_of(_hook(config)), **gate,
        )  # fmt: skip


def _architecture(config: Mapping[str, Any], where: Path) -> str:
    kind = config.get("architecture", "standard")
    activation = config.get("activation_fn_str", config.get("activation_fn", "relu" if kind == "standard" else None))
    if kind == "standard" and activation == "topk":
        kind = "topk"
    if not isinstance(kind, str) or kind not in _NEEDED:
        raise UserError(f"sae: '{where}': unknown architecture {repr_of(kind)}; {nearest(str(kind), _NEEDED)}")
    if kind == "standard" and activation != "relu":
        raise UserError(f"sae: '{where}': unknown activation {repr_of(activation)}; a standard autoencoder has relu or topk")
    return str(kind)


def _k(config: Mapping[str, Any], where: Path) -> int:
    given = config.get("activation_fn_kwargs")
    return whole({**(given if isinstance(given, Mapping) else {}), **config}, "k", where)


def _hook(config: Mapping[str, Any]) -> Any:
    metadata = config.get("metadata")
    inner = metadata.get("hook_name") if isinstance(metadata, Mapping) else None
    return inner or config.get("hook_name") or config.get("hook_point")


def _finetuned(decoder: torch.Tensor, tensors: Tensors, config: Mapping[str, Any], path: Path) -> torch.Tensor:
    """Fold the per-feature scale of a fine-tuned autoencoder into its decoder."""
    factor = tensors.get("scaling_factor")
    if factor is None or bool((factor == 1).all()):
        return decoder
    if not flag(config, "finetuning_scaling_factor", path / CONFIG, False):
        raise UserError(f"sae: '{path}': the weights hold a scaling_factor, but cfg.json does not say finetuning_scaling_factor: true")
    return decoder * factor.float()[:, None]


def _normalisation(config: Mapping[str, Any], path: Path) -> tuple[Norm, float]:
    """Return the normalisation of every state, and the fixed scale of the data set (1 where there is none)."""
    stated_norm = config.get("normalize_activations", "none")
    if not isinstance(stated_norm, (str, bool, type(None))) or stated_norm not in _NORMS:
        raise UserError(
            f"sae: '{path / CONFIG}': unknown normalize_activations {repr_of(stated_norm)}; "
            f"{nearest(str(stated_norm)[:60], [n for n in _NORMS if isinstance(n, str)])}"
        )
    factor = peek(path / SCALER).get("scaling_factor", config.get("scaling_factor"))
    if stated_norm not in _SCALED:
        return _NORMS[stated_norm], 1.0
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1e30:
        raise UserError(
            f"sae: '{path}': normalize_activations is expected_average_only_in, and neither {SCALER} nor cfg.json states its scaling_factor.\n"
            "Write it there, or fold it into the weights with SAELens and save them again."
        )
    return "none", float(factor)
