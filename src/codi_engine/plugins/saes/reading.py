"""What the readers of autoencoder files share: configuration, tensors, the audit of their names, hook names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from reprlib import repr as repr_of
from typing import Any

import torch

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.sites import parse_site
from codi_engine.core.tensorfiles import regular, torch_content
from codi_engine.plugins.models.weights import check_header, read_weights

Tensors = dict[str, torch.Tensor]
_LARGEST_CONFIG = 16 << 20


def read_config(path: Path) -> dict[str, Any]:
    """Return a JSON object."""
    if regular(path, "sae") > _LARGEST_CONFIG:
        raise UserError(f"sae: '{path}' is larger than any configuration ({_LARGEST_CONFIG >> 20} MB)")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"sae: '{path}' is not readable JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise UserError(f"sae: '{path}' must hold an object; it holds a {type(value).__name__}")
    return value


def peek(path: Path) -> dict[str, Any]:
    """Return a JSON object, or an empty one where there is none that can be read (for ``matches``)."""
    try:
        return read_config(path) if path.is_file() else {}
    except UserError:
        return {}


def names_in(path: Path) -> frozenset[str]:
    """Return the names of a safetensors file's tensors from its header; empty where it cannot be read."""
    try:
        return frozenset(check_header(path, "sae")) - {"__metadata__"} if path.is_file() else frozenset()
    except (UserError, OSError):
        return frozenset()


def read_tensors(path: Path) -> Tensors:
    """Return all tensors of a safetensors file, or of a state dict that is nothing but tensors."""
    if not path.is_file():
        raise UserError(f"sae: '{path.parent}' has no {path.name}")
    return read_weights(path, "sae")


def audit(tensors: Mapping[str, torch.Tensor], path: Path, needed: Iterable[str], allowed: Iterable[str] = ()) -> None:
    """Demand every needed tensor and refuse what is neither needed nor allowed."""
    wanted = set(needed)
    missing, unexpected = sorted(wanted - set(tensors)), sorted(set(tensors) - wanted - set(allowed))
    parts = [f"{what} {', '.join(names[:8])}" for what, names in (("missing", missing), ("unexpected", unexpected)) if names]
    if parts:
        raise UserError(f"sae: '{path}': tensors do not fit its format: {'; '.join(parts)}")


def number(config: Mapping[str, Any], key: str, path: Path, default: float | None = None) -> float:
    """Return a number of the configuration."""
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = f"it is {repr_of(value)}" if key in config else f"it is missing; {nearest(key, config)}"
        raise UserError(f"sae: '{path}': {key} must be a number; {hint}")
    try:
        return float(value)
    except OverflowError:
        raise UserError(f"sae: '{path}': {key} is too large a number") from None


def whole(config: Mapping[str, Any], key: str, path: Path) -> int:
    """Return a whole number of the configuration."""
    value = number(config, key, path)
    if not value.is_integer():
        raise UserError(f"sae: '{path}': {key} must be a whole number; it is {value}")
    return int(value)


def one_number(tensor: torch.Tensor, name: str, path: Path) -> float:
    """Return the number that a tensor holds."""
    if tensor.numel() != 1:
        raise UserError(f"sae: '{path}': {name} must be one number; it has {tensor.numel():,}")
    return float(tensor)


def flag(config: Mapping[str, Any], key: str, path: Path, default: bool) -> bool:
    """Return a yes or no of the configuration."""
    value = config.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"sae: '{path}': {key} must be true or false; it is {repr_of(value)}")
    return value


def stated(config: Mapping[str, Any], path: Path, shape: tuple[int, int], width: str, features: str) -> None:
    """Refuse weights whose width or number of features is not what the configuration says (where it says it)."""
    for key, have in ((width, shape[0]), (features, shape[1])):
        if config.get(key) is not None and config[key] != have:
            raise UserError(f"sae: '{path}': {key} is {repr_of(config[key])}, but the weights have {have}")


def site_of(hook: Any) -> str | None:
    """Return a hook's name as an address of ours; None where there is none or it is no site."""
    if not isinstance(hook, str):
        return None
    try:
        site = parse_site(hook)
    except UserError:
        return None
    return site.component if site.layer is None else f"{site.component}.{site.layer}"


def load_pickled(path: Path) -> Any:
    """Return what a torch file holds, which may be tensors, numbers, text and containers of them, and nothing else.

    Raises
    ------
    UserError: damaged, or a pickle that names any other class or function (it is not loaded)
    """
    return torch_content(path, "sae", _numbers_of_numpy())


def read_pickled(path: Path, key: str) -> Tensors:
    """Return the tensors of a torch file: a state dict, or one under ``key``."""
    loaded = load_pickled(path)
    tensors = loaded.get(key, loaded) if isinstance(loaded, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
        raise UserError(f"sae: '{path}' is no state dict of tensors (at its top, or under '{key}')")
    return {str(k): v for k, v in tensors.items()}


def _numbers_of_numpy() -> list[Any]:
    """Return what numpy's scalars are pickled with: losses and metrics beside the weights are often such numbers."""
    import _codecs

    import numpy as np

    scalar = np.float64(0.0).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, _codecs.encode, *kinds]
