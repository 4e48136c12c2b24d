"""Arrays in HDF5 files."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.imports.foreignarray import ForeignArray, Header, check_plausible, header_of, native, short, stretches

#: bytes of a chunk, which is unpacked as a whole
_LARGEST_CHUNK = 256 << 20
#: bytes of decompressed chunks that h5py keeps, for rows that are wanted in another order than on disk
H5_CACHE = 64 << 20


def h5_headers(path: Path) -> dict[str, Header]:
    found: dict[str, Header] = {}
    with _h5(path) as file:
        import h5py

        def visit(name: str | bytes, item: Any) -> None:
            if not isinstance(item, h5py.Dataset) or item.shape is None:
                return
            if isinstance(name, bytes):
                problem = "its name is no text in UTF-8; rename it, for example with h5copy"
                found[name.decode("utf-8", "backslashreplace")] = Header(item.shape, np.dtype("V1"), str(item.dtype), problem)
                return
            where, strings = f"{path}: {name}", h5py.check_string_dtype(item.dtype) is not None
            dtype = np.dtype(object) if strings else item.dtype
            if not strings and dtype.hasobject:
                dtype = np.dtype("V1")
            chunk = math.prod(item.chunks or ()) * item.dtype.itemsize
            if chunk > _LARGEST_CHUNK:
                problem = f"its chunks of {chunk:,} bytes are too large to be read; write it again with smaller ones, for example with h5repack"
                found[name] = Header(item.shape, dtype, str(item.dtype), problem)
                return
            if item.external or item.is_virtual:
                problem = "its values lie in other files; copy them into one file, for example with h5repack"
                found[name] = Header(item.shape, dtype, str(item.dtype), problem)
                return
            check_plausible(where, math.prod(item.shape) * item.dtype.itemsize, item.id.get_storage_size())
            found[name] = header_of(where, item.shape, dtype, "text" if strings else str(item.dtype), 1 << 62)

        try:
            file.visititems(visit)
        except UserError:
            raise
        except Exception as error:  # h5py turns what the library finds damaged into many types
            raise UserError(f"{path}: is damaged: {short(error)}") from None
    return found


def h5_open(path: Path, name: str, header: Header) -> ForeignArray:
    return _Sliced(f"{path}: {name}", header, path, name)


def _h5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading HDF5 needs h5py: pip install 'codi-engine[h5]'") from None
    try:
        return h5py.File(path, "r", rdcc_nbytes=H5_CACHE)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: is no HDF5 file: {short(error)}") from None


class _Sliced(ForeignArray):
    """A dataset of an HDF5 file, read by slices along its last indexed dimension."""

    def __init__(self, where: str, header: Header, path: Path, name: str) -> None:
        super().__init__(where, header)
        self._file = _h5(path)
        try:
            data = self._file[name]
            self._data = data.asstr() if header.dtype.kind == "O" else data
        except Exception as error:  # as for its header
            self._file.close()
            raise UserError(f"{where}: cannot be read: {short(error)}") from None

    def take(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        shape = self.header.shape
        flat = np.ravel_multi_index(index, shape[: len(index)])
        out = np.empty((len(flat), *shape[len(index) :]), self.header.dtype)
        try:
            for begin, end in stretches(flat, shape[len(index) - 1]):
                place = tuple(int(i[begin]) for i in index)
                out[begin:end] = self._data[(*place[:-1], slice(place[-1], place[-1] + end - begin))]
        except Exception as error:  # as for its header
            raise UserError(f"{self.where}: cannot be read: {short(error)}") from None
        return native(out)

    def close(self) -> None:
        self._file.close()
