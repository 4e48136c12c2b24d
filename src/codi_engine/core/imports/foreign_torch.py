"""Tensors in PyTorch files, in containers of any kind; mapped, and without running what a pickle says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.imports.foreignarray import BLOCK, UNPICKLE, ForeignArray, Header, header_of
from codi_engine.core.tensorfiles import torch_content

#: containers in each other in a torch file, and values in all of them
_DEEPEST, _MOST_LEAVES = 32, 100_000


def torch_headers(path: Path) -> dict[str, Header]:
    return {name: _torch_header(path, name, value) for name, value in _torch_leaves(path).items()}


def torch_open(path: Path, name: str, header: Header) -> ForeignArray:
    return _Tensor(f"{path}: {name}", header, _torch_leaves(path)[name])


def _torch_header(path: Path, name: str, value: Any) -> Header:
    import torch

    where = f"{path}: {name}"
    if isinstance(value, np.ndarray):
        return header_of(where, value.shape, value.dtype, value.dtype.name, 1 << 62)
    kind = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or value.is_quantized:
        return Header(tuple(value.shape), np.dtype("V1"), kind, "is a sparse or quantized tensor; save it dense")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(f"{where}: claims {value.numel():,} values, the file holds fewer; save it with .clone()")
    try:
        dtype = np.dtype("f4" if value.dtype == torch.bfloat16 else kind)
    except TypeError:
        dtype = np.dtype("V1")
    return header_of(where, value.shape, dtype, kind, 1 << 62)


def _torch_leaves(path: Path) -> dict[str, Any]:
    """Return dotted path → tensor (mapped) or numpy array made of a list of plain values."""
    try:
        content = torch_content(path, "import", mapped=True)
    except UserError as error:
        said = str(error).removeprefix("import: ").replace(f"'{path}'", f"{path}:", 1)
        raise UserError(f"{said}: {UNPICKLE.format(path)}" if "more than tensors" in said else said) from None
    out: dict[str, Any] = {}
    _flatten(content, "", out, [])
    return out


def _flatten(value: Any, path: str, out: dict[str, Any], above: list[Any]) -> None:
    import torch

    if len(above) > _DEEPEST or len(out) > _MOST_LEAVES:  # a container may hold itself, or another one a million times
        raise UserError(f"{(path or '.')[:80]}: nested too deeply, or more than {_MOST_LEAVES:,} values; save a plain dictionary of tensors")
    if isinstance(value, torch.Tensor):
        out[path or "."] = value.detach()
    elif isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, f"{path}/{key}" if path else str(key), out, [*above, value])
    elif isinstance(value, (list, tuple)) and value:
        if all(isinstance(v, (str, int, float)) for v in value):
            out[path or "."] = _plain(value)
        else:
            for number, item in enumerate(value):
                _flatten(item, f"{path}/{number}" if path else str(number), out, [*above, value])


def _plain(values: Sequence[Any]) -> np.ndarray:
    """Return plain values as an array; texts of very different lengths would take the longest one's room each."""
    longest = max((len(v) for v in values if isinstance(v, str)), default=0)
    return np.array(values, object) if longest * len(values) > BLOCK else np.asarray(values)


class _Tensor(ForeignArray):
    """A tensor of a PyTorch file, mapped by torch."""

    def __init__(self, where: str, header: Header, tensor: Any) -> None:
        super().__init__(where, header)
        self._tensor = tensor

    def take(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        if isinstance(self._tensor, np.ndarray):
            return np.asarray(self._tensor[index])
        import torch

        values = self._tensor[tuple(torch.from_numpy(np.ascontiguousarray(i)) for i in index)]
        return np.asarray((values.float() if values.dtype == torch.bfloat16 else values).numpy())
