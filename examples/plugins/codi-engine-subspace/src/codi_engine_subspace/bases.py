"""Orthonormal bases of subspaces, one per place, in a safetensors file: ``<component>.<layer>@latent[<step>]`` → width × dim."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from codi_engine.core.errors import UserError, nearest


def place_name(component: str, layer: int | None, step: int) -> str:
    """Return a place's name in the file: ``resid_post.1@latent[3]``."""
    return f"{component if layer is None else f'{component}.{layer}'}@latent[{step}]"


def random_basis(width: int, dim: int, seed: int, place: str) -> np.ndarray:
    """Return a random orthonormal basis (width × dim, float32), drawn by the seed and the place's name."""
    rng = np.random.default_rng([seed, *place.encode()])
    found: np.ndarray = np.linalg.qr(rng.standard_normal((width, dim)))[0].astype(np.float32)
    return found


@dataclass(frozen=True)
class Bases:
    """Place → basis, the examples that they were trained on, and the digest of their model."""

    bases: Mapping[str, np.ndarray]
    trained_on: Sequence[str] = ()
    model_digest: str = ""

    def of(self, place: str, path: str) -> np.ndarray:
        """Return a place's basis; raise UserError where there is none."""
        if place not in self.bases:
            raise UserError(f"subspace: path: '{path}' has no basis for {place}; {nearest(place, list(self.bases))}")
        return self.bases[place]


def saved(bases: Bases) -> bytes:
    """Return the file's content."""
    from safetensors.numpy import save

    about = json.dumps({"model_digest": bases.model_digest, "trained_on": list(bases.trained_on)})
    content: bytes = save({n: np.ascontiguousarray(b, np.float32) for n, b in bases.bases.items()}, {"about": about})
    return content


def read(path: str) -> Bases:
    """Read a file.

    Raises
    ------
    UserError: no such file, no safetensors, or columns that are not orthonormal
    """
    from safetensors import SafetensorError, safe_open

    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"subspace: path: no file '{path}'; train_subspace writes results/train_subspace/subspaces.safetensors")
    try:
        with safe_open(file, framework="numpy") as opened:
            bases = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            about = json.loads((opened.metadata() or {}).get("about", "{}"))
    except (SafetensorError, ValueError) as error:
        raise UserError(f"subspace: path: '{path}' is no safetensors file of bases: {str(error)[:100]}") from None
    for name, basis in bases.items():
        if basis.ndim != 2 or not np.allclose(basis.T @ basis, np.eye(basis.shape[1]), atol=1e-4):
            raise UserError(f"subspace: path: '{path}': {name} must be width × dim with orthonormal columns")
    return Bases(bases, about.get("trained_on", ()), about.get("model_digest", ""))
