"""Random sparse autoencoders on disk, in SAELens' format, and their arithmetic written out."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


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
