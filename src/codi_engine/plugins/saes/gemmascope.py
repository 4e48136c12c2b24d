"""Gemma Scope (arXiv 2408.05147): ``params.npz`` with a JumpReLU autoencoder."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import SaeFormat
from codi_engine.core.sae import SAE
from codi_engine.core.tensorfiles import numpy_arrays
from codi_engine.plugins.saes.reading import Tensors, audit

WEIGHTS = "params.npz"
_NEEDED = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")


class GemmaScope(SaeFormat):
    """Gemma Scope: params.npz (or another .npz of the same arrays); embedding autoencoders are scaled as published."""

    name = "gemma_scope"

    def matches(self, path: Path) -> bool:
        return path.suffix == ".npz" if path.is_file() else (path / WEIGHTS).is_file()

    def files(self, path: Path) -> list[Path]:
        return [_file(path)]

    def read(self, path: Path) -> SAE:
        file = _file(path)
        tensors = {re.sub(r"^w_", "W_", name): value for name, value in _arrays(file).items()}
        audit(tensors, file, _NEEDED)
        encoder, decoder = tensors["W_enc"].float(), tensors["W_dec"].float()
        embedding = "embedding" in file.absolute().parts[-4:]
        scale = float(decoder.shape[-1]) ** 0.5 if embedding else 1.0
        return SAE(
            format=self.name, path=str(path), w_enc=encoder / scale, b_enc=tensors["b_enc"], w_dec=decoder * scale, b_dec=tensors["b_dec"],
            activation="jumprelu", threshold=tensors["threshold"], site="embed" if embedding else _site(file),
        )  # fmt: skip


def _file(path: Path) -> Path:
    return path if path.is_file() else path / WEIGHTS


def _arrays(file: Path) -> Tensors:
    try:
        return {name: torch.from_numpy(np.asarray(values, np.float32)) for name, values in numpy_arrays(file, "sae").items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"sae: '{file}' holds more than numbers: {str(error)[:120]}") from None


def _site(file: Path) -> str | None:
    """Return the site that the published folders name: ``layer_12/…``; the releases for attention and MLP outputs say so above it."""
    place = str(file.absolute())
    layer = re.search(r"layer_(\d+)", place)
    if layer is None:
        return None
    component = next(
        (c for mark, c in (("-att", "attn_z"), ("-mlp", "mlp_out"), ("-res", "resid_post")) if re.search(rf"gemma-?scope[\w.-]*{mark}\b", place)), None
    )
    return f"{component}.{layer[1]}" if component else None
