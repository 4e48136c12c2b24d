"""Arrays in files that others wrote: what a file holds, and rows of it, without loading whole arrays or running pickles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from codi_engine.core.errors import UserError
from codi_engine.core.imports.foreign_h5 import h5_headers, h5_open
from codi_engine.core.imports.foreign_numpy import npy_headers, npy_open, npz_headers, npz_open
from codi_engine.core.imports.foreign_safetensors import safetensors_headers, safetensors_open
from codi_engine.core.imports.foreign_torch import torch_headers, torch_open
from codi_engine.core.imports.foreignarray import ForeignArray, Header
from codi_engine.core.tensorfiles import regular

_READERS: dict[str, tuple[Callable[[Path], dict[str, Header]], Callable[[Path, str, Header], ForeignArray]]] = {
    ".npz": (npz_headers, npz_open),
    ".npy": (npy_headers, npy_open),
    ".h5": (h5_headers, h5_open),
    ".hdf5": (h5_headers, h5_open),
    ".safetensors": (safetensors_headers, safetensors_open),
    ".pt": (torch_headers, torch_open),
    ".pth": (torch_headers, torch_open),
}
ARRAYS = tuple(_READERS)


def headers(path: Path) -> dict[str, Header]:
    """Return name → header of the arrays in a file; an npy file's is called ``.``.

    Raises
    ------
    UserError: the file is damaged, claims more than it holds, or cannot be read without running code
    """
    regular(path, "import")
    return _READERS[path.suffix.lower()][0](path)


def open_array(path: Path, name: str, header: Header) -> ForeignArray:
    """Open one array for reading; nothing of it is in memory yet.

    Raises
    ------
    UserError: its values cannot be imported; the message says why and what to do
    """
    if header.problem:
        raise UserError(f"{path}: {name}: {header.problem}" if name != "." else f"{path}: {header.problem}")
    return _READERS[path.suffix.lower()][1](path, name, header)
