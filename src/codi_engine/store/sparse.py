"""Sparse codes: for each cell the features that are not zero, stored as ``ptr``, ``index`` and ``value``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import ArraySpec

#: bytes of codes of all cells at once, zeros filled in
MOST_DENSE = 1 << 35


def sparse_specs(name: str, width: int, attrs: Mapping[str, Any] | None = None, dtype: str = "float32") -> list[ArraySpec]:
    """Return the three arrays that hold ``width`` features a cell.

    ``ptr`` (cell × 2) says where a cell's entries begin and end in ``index`` and ``value``; a unit's entries lie in its own
    stretch of them, cell after cell, features ascending.
    """
    kind = "uint16" if width <= 1 << 16 else "uint32"
    facts = {**(attrs or {}), "width": width}
    return [
        ArraySpec(f"{name}/ptr", ("cell", "bound"), (2,), "int64", 0, True, facts),
        ArraySpec(f"{name}/index", ("entry",), (), kind, 0, True, {}, width),
        ArraySpec(f"{name}/value", ("entry",), (), dtype, 0, True, {}, width),
    ]


def codes_width(name: str, ptr: ArraySpec, index: ArraySpec, value: ArraySpec) -> int:
    """Return how many features the codes of three arrays have.

    Raises
    ------
    StoreError: these are no arrays of sparse codes
    """
    kinds = (ptr.numpy.kind, index.numpy.kind, value.numpy.kind)
    width = ptr.attrs.get("width")
    if kinds != ("i", "u", "f") or (ptr.shape, index.shape, value.shape) != ((2,), (), ()) or ptr.entries or {index.entries, value.entries} != {width}:
        raise StoreError(f"{name}: its ptr, index and value do not fit together")
    return int(index.entries)


def room_for(name: str, cells: int, width: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Return zeros for ``cells`` × ``width`` features.

    Raises
    ------
    StoreError: that many would be made of few stored bytes, and fit no memory
    """
    size = cells * width * dtype.itemsize
    if size > MOST_DENSE:
        raise StoreError(f"{name}: {cells:,} cells of {width:,} features would take {size / 1e9:,.0f} GB with their zeros; read it by units with codes_of()")
    return np.zeros((cells, width), dtype)


def to_codes(name: str, rows: np.ndarray, unit: int, unit_cells: int) -> dict[str, np.ndarray]:
    """Return the three arrays of a unit's rows (cells × width); NaN are kept, zeros left out."""
    spec = sparse_specs(name, rows.shape[1])[1]
    cell, index = np.nonzero(rows)
    bounds = np.searchsorted(cell, np.arange(len(rows) + 1)) + unit * spec.rows(unit_cells)
    ptr = np.stack([bounds[:-1], bounds[1:]], 1).astype(np.int64)
    return {f"{name}/ptr": ptr, f"{name}/index": index.astype(spec.dtype), f"{name}/value": rows[cell, index]}


def to_dense(ptr: np.ndarray, index: np.ndarray, value: np.ndarray, width: int) -> np.ndarray:
    """Return cells × width of codes; ``ptr`` (cells × 2) says where each cell's entries lie, in any order."""
    out = np.zeros((len(ptr), width), value.dtype)
    fill_dense(out, ptr, index, value)
    return out


def fill_dense(out: np.ndarray, ptr: np.ndarray, index: np.ndarray, value: np.ndarray) -> None:
    """Put the features of codes into ``out`` (cells × width, zeros)."""
    length = ptr[:, 1] - ptr[:, 0]
    entry = np.repeat(ptr[:, 0] - (np.cumsum(length) - length), length) + np.arange(length.sum())
    out[np.repeat(np.arange(len(ptr)), length), index[entry]] = value[entry]
