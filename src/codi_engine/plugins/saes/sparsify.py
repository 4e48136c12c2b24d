"""Sparsify (EleutherAI): ``cfg.json`` and ``sae.safetensors`` of a top-k autoencoder."""

from __future__ import annotations

import re
from pathlib import Path
from reprlib import repr as repr_of

import torch

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import SaeFormat
from codi_engine.core.sae import SAE
from codi_engine.plugins.saes.reading import Tensors, flag, read_config, read_tensors, stated, whole

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_ENCODER, _DECODER = ("encoder.weight", "W_enc"), ("W_dec", "decoder.weight")
_ENCODER_BIAS, _DECODER_BIAS = ("encoder.bias", "b_enc"), ("b_dec", "decoder.bias")


class Sparsify(SaeFormat):
    """Sparsify: a directory with cfg.json and sae.safetensors (top-k; signed where cfg.json says so)."""

    name = "sparsify"

    def matches(self, path: Path) -> bool:
        return (path / WEIGHTS).is_file() and (path / CONFIG).is_file()

    def files(self, path: Path) -> list[Path]:
        return [path / CONFIG, path / WEIGHTS]

    def read(self, path: Path) -> SAE:
        where, file = path / CONFIG, path / WEIGHTS
        config, tensors = read_config(where), read_tensors(file)
        if flag(config, "transcode", where, False) or flag(config, "skip_connection", where, False) or "W_skip" in tensors:
            raise UserError(f"sae: '{path}' is a transcoder (transcode, skip_connection or W_skip), not an autoencoder")
        activation = config.get("activation", "topk")
        if activation != "topk":
            raise UserError(f"sae: '{where}': unknown activation {repr_of(activation)}; topk is read")
        parts = [_one(tensors, names, file) for names in (_ENCODER, _ENCODER_BIAS, _DECODER, _DECODER_BIAS)]
        if tensors:
            raise UserError(f"sae: '{file}': unexpected tensors: {', '.join(sorted(tensors)[:8])}")
        encoder, encoder_bias, decoder, decoder_bias = parts
        width, features = decoder_bias.shape[-1], encoder_bias.shape[-1]
        stated(config, where, (width, features), "d_in", "num_latents" if config.get("num_latents") else "")
        return SAE(
            format=self.name, path=str(path), w_enc=_oriented(encoder, (width, features), "encoder", file), b_enc=encoder_bias,
            w_dec=_oriented(decoder, (features, width), "decoder", file), b_dec=decoder_bias, center=decoder_bias,
            activation="abs_topk" if flag(config, "signed", where, False) else "topk", k=whole(config, "k", where), site=_site(path),
        )  # fmt: skip


def _one(tensors: Tensors, names: tuple[str, str], file: Path) -> torch.Tensor:
    """Take one tensor out, under whichever of its names it has."""
    found = [name for name in names if name in tensors]
    if len(found) != 1:
        raise UserError(f"sae: '{file}': needs one of the tensors {' and '.join(names)}; it has {' and '.join(found) or 'neither'}")
    return tensors.pop(found[0]).float()


def _oriented(matrix: torch.Tensor, shape: tuple[int, int], what: str, file: Path) -> torch.Tensor:
    """Return a matrix in our orientation, which its shape tells; a square one is as the library writes it, features × width."""
    if shape[0] == shape[1] and tuple(matrix.shape) == shape:
        return matrix.T if what == "encoder" else matrix
    if tuple(matrix.shape) == shape:
        return matrix
    if tuple(matrix.shape) == shape[::-1]:
        return matrix.T
    raise UserError(f"sae: '{file}': the {what} is {'×'.join(map(str, matrix.shape))}; the biases say {shape[0]}×{shape[1]} or its transpose")


def _site(path: Path) -> str | None:
    """Return the site that the library's folder names: ``layers.12``, ``layers.12.mlp``, ``embed_tokens``."""
    if path.name == "embed_tokens":
        return "embed"
    found = re.fullmatch(r"(?:.*\.)?(?:layers|h)[._](\d+)(?:\.(mlp|attn|self_attn))?", path.name)
    return None if found is None else f"{ {None: 'resid_post', 'mlp': 'mlp_out'}.get(found[2], 'attn_out') }.{found[1]}"
