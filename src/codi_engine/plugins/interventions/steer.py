"""Steering: move the site along a direction."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Intervention, Options, Rows
from codi_engine.core.rollout.sources import Sources
from codi_engine.core.tensorfiles import numpy_arrays, regular, torch_content


class SteerOptions(Options):
    """Where the direction comes from and how it is used.

    ``vector``: a file (.npy, .npz, .safetensors, .pt with weights only) holding [width], [layers, width] or
    [layers, steps, width]; or ``difference``: ``correct`` (mean of examples answered correctly minus the others),
    ``clean`` (clean minus corrupted prompts), or ``field=value`` (examples with that value minus the others).
    ``alpha`` scales it. ``mode``: ``add`` α·v; ``norm_matched`` α·v·‖h‖/‖v‖; ``project_out`` h − α·(h·v̂)v̂.
    """

    vector: str | None = None
    difference: str | None = None
    alpha: float = 1.0
    mode: Literal["add", "norm_matched", "project_out"] = "add"

    @model_validator(mode="after")
    def _one_direction(self) -> SteerOptions:
        if (self.vector is None) == (self.difference is None):
            raise ValueError("give either vector: FILE or difference: correct|clean|field=value")
        return self


def read_vector(path: str) -> np.ndarray:
    """Read one array from .npy, .npz, .safetensors or .pt (weights only); a file with several arrays is refused."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(f"steer: vector: no file '{path}'")
    try:
        arrays = _read_arrays(file)
    except UserError:
        raise
    except (ValueError, OSError, RuntimeError, KeyError, EOFError) as error:
        raise UserError(f"steer: vector: '{path}' cannot be read as {file.suffix or 'an array'}: {str(error)[:120]}") from None
    except Exception as error:  # torch and safetensors raise types of their own for files that are not theirs
        raise UserError(f"steer: vector: '{path}' is not a plain {file.suffix} file: {type(error).__name__}") from None
    if len(arrays) != 1:
        raise UserError(f"steer: vector: '{path}' holds {len(arrays)} arrays; exactly one is needed")
    try:
        array = np.asarray(arrays[0], np.float32)
    except (ValueError, TypeError):
        raise UserError(f"steer: vector: '{path}' holds no numbers") from None
    if not np.isfinite(array).all():
        raise UserError(f"steer: vector: '{path}' holds NaN or infinite values")
    return array


def _read_arrays(file: Path) -> list[Any]:
    if file.suffix in (".npy", ".npz"):
        return list(numpy_arrays(file, "steer: vector").values())
    if file.suffix == ".safetensors":
        from safetensors.numpy import load_file

        regular(file, "steer: vector")
        return list(load_file(file).values())
    if file.suffix in (".pt", ".pth", ".bin"):
        loaded = torch_content(file, "steer: vector")
        tensors = loaded.values() if isinstance(loaded, dict) else [loaded]
        return [t.float().numpy() for t in tensors if isinstance(t, torch.Tensor)]
    raise ValueError("known endings: .npy, .npz, .safetensors, .pt")


class Steer(Intervention[SteerOptions]):
    """Add a steering vector, norm-matched or not, or project it out (Turner et al. 2023; Rimsky et al. 2023)."""

    name = "steer"
    Options = SteerOptions

    def __init__(self, options: SteerOptions) -> None:
        super().__init__(options)
        self._array = read_vector(options.vector) if options.vector is not None else None
        self._sources: Sources | None = None
        self._directions: dict[tuple[str, int | None, str, int], torch.Tensor] = {}

    @property
    def needs_pool(self) -> bool:
        """True when the direction is a difference of means over the data set."""
        return self.options.difference is not None

    def files(self) -> list[str]:
        return [] if self.options.vector is None else [self.options.vector]

    def prepare(self, sources: Sources) -> None:
        self._sources = sources

    def direction(self, rows: Rows) -> torch.Tensor:
        """Return the direction (width) at a site, layer and place."""
        if self._array is None:
            return torch.from_numpy(self._difference(rows)).to(rows.values)
        key = (rows.site, rows.layer, rows.phase, rows.place)
        if key not in self._directions:
            self._directions[key] = torch.from_numpy(self._from_file(rows))
        return self._directions[key].to(rows.values)

    def _from_file(self, rows: Rows) -> np.ndarray:
        assert self._array is not None
        array = self._array
        width = rows.values.shape[1]
        if array.ndim > 1 and array.ndim <= 3 and rows.layer is not None:
            array = array[rows.layer] if rows.layer < len(array) else array[:0]
        if array.ndim == 2:
            if rows.phase != "latent" or not 0 <= rows.place < len(array):
                raise UserError(f"steer: vector: '{self.options.vector}' has {len(array)} steps; it has no vector for {rows.phase}[{rows.place}]")
            array = array[rows.place]
        if array.shape != (width,):
            raise UserError(f"steer: vector has shape {list(self._array.shape)}; needed: [{width}], [layers, {width}] or [layers, steps, {width}]")
        return array

    def _difference(self, rows: Rows) -> np.ndarray:
        assert self._sources is not None and self.options.difference is not None
        return self._sources.difference(self.options.difference, rows.site, rows.layer, rows.place)

    def apply(self, rows: Rows) -> torch.Tensor:
        if self.options.alpha == 0:
            return rows.values
        v = self.direction(rows)
        h, alpha = rows.values, self.options.alpha
        if self.options.mode == "add":
            return h + alpha * v
        norm: torch.Tensor = v.norm()
        if norm == 0:
            raise UserError(f"steer: the direction at {rows.site} layer {rows.layer} is the zero vector")
        if self.options.mode == "norm_matched":
            lengths: torch.Tensor = h.norm(dim=-1, keepdim=True)
            return h + alpha * lengths / norm * v
        unit = v / norm
        along = (h * unit).sum(-1, keepdim=True)  # not h @ unit: the bits of a matrix product depend on how many rows it has
        return h - alpha * along * unit

    def identity(self) -> bool:
        return self.options.alpha == 0

    def neutral(self) -> Steer:
        return Steer(self.options.model_copy(update={"alpha": 0.0}))
