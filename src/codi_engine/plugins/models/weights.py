"""Reading weight files: .safetensors and .bin (weights only), with errors that say what is wrong with the file."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from codi_engine.core.errors import UserError
from codi_engine.core.tensorfiles import regular, torch_content

NAMES = ("model.safetensors", "pytorch_model.bin")
#: bytes; a hundred for each tensor are usual
_LARGEST_HEADER = 16 << 20


def weight_file(checkpoint: str, where: str, download: Callable[[str, str], str | None]) -> Path:
    """Return the weight file of a directory, of a Hub repository, or the file itself."""
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        for name in NAMES:
            if (path / name).is_file():
                return path / name
        raise UserError(f"{where}: '{checkpoint}' holds neither {NAMES[0]} nor {NAMES[1]}")
    for name in NAMES:
        found = download(checkpoint, name)
        if found is not None:
            return Path(found)
    raise UserError(f"{where}: '{checkpoint}' has neither {NAMES[0]} nor {NAMES[1]}")


def read_weights(path: Path, where: str) -> dict[str, torch.Tensor]:
    """Return all tensors of a checkpoint on the CPU.

    Raises
    ------
    UserError: truncated, empty, not a checkpoint, or a pickle that holds more than tensors
    """
    if regular(path, where) == 0:
        raise UserError(f"{where}: '{path}' is empty")
    if path.suffix == ".safetensors":
        return _read_safetensors(path, where)
    loaded = torch_content(path, where)
    tensors = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(v, torch.Tensor) for v in tensors.values()):
        raise UserError(f"{where}: '{path}' is no state dict of tensors")
    return {str(k): v for k, v in tensors.items()}


def _read_safetensors(path: Path, where: str) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    check_header(path, where)
    try:
        loaded: dict[str, torch.Tensor] = load_file(path)
        return loaded
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{where}: '{path}' is truncated or damaged: {str(error)[:120]}") from None


def check_header(path: Path, where: str) -> Mapping[str, object]:
    """Return a safetensors header after checking its size and that the file is as long as it says."""
    size = regular(path, where)
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(size, _LARGEST_HEADER):
            raise UserError(f"{where}: '{path}' is not a safetensors file, or truncated")
        try:
            header = json.loads(file.read(length))
            ends = [int(v["data_offsets"][1]) for k, v in header.items() if k != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            raise UserError(f"{where}: '{path}' is not a safetensors file") from None
    if 8 + length + max(ends, default=0) != size:
        raise UserError(f"{where}: '{path}' is truncated: {size:,} bytes of {8 + length + max(ends, default=0):,}")
    return header  # type: ignore[no-any-return]


def file_digest(path: Path, *labels: object) -> str:
    """Return the sha256 of a file's bytes and some labels."""
    digest = hashlib.sha256(json.dumps(labels, sort_keys=True, default=str).encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def configured(config: Any) -> dict[str, Any]:
    """Return a transformers configuration as plain values, without the path it was read from: a model that was moved is the same model."""
    return {name: value for name, value in config.to_dict().items() if name != "_name_or_path"}


def listed(items: list[str], most: int = 8) -> str:
    """Return the first items in words, and how many more there are."""
    return ", ".join(items[:most]) + (f" … and {len(items) - most} more" if len(items) > most else "")
