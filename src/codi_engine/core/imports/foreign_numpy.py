"""Arrays in npy and npz files: nothing of a compressed one is unpacked before its rows are wanted."""

from __future__ import annotations

import math
import tempfile
import zipfile
from pathlib import Path
from reprlib import repr as repr_of
from typing import IO

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.imports.foreignarray import BLOCK, MOST_DIMS, UNPICKLE, ForeignArray, Header, Mapped, check_plausible, header_of, native, short, stretches


def npy_headers(path: Path) -> dict[str, Header]:
    with path.open("rb") as stream:
        return {".": _npy(stream, path.stat().st_size, str(path), path)}


def npy_open(path: Path, name: str, header: Header) -> ForeignArray:
    return Mapped(str(path), header, path)


def npz_headers(path: Path) -> dict[str, Header]:
    members = _members(path)
    if not members:
        raise UserError(f"{path}: holds no arrays")
    out = {}
    with zipfile.ZipFile(path) as archive:
        for name, info in members.items():
            where = f"{path}: {name}"
            check_plausible(where, info.file_size, info.compress_size)
            try:
                with archive.open(info) as stream:
                    out[name] = _npy(stream, info.file_size, where, path)
            except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
                raise UserError(f"{where}: cannot be read: {short(error)}") from None
    return out


def npz_open(path: Path, name: str, header: Header) -> ForeignArray:
    info = _members(path)[name]
    if info.compress_type != zipfile.ZIP_STORED:
        return _Packed(f"{path}: {name}", header, path, info.filename)
    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        lengths = stream.read(4)
    before = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    if before + info.file_size > path.stat().st_size:
        raise UserError(f"{path}: {name}: ends early; the file is damaged or was cut off")
    return Mapped(f"{path}: {name}", Header(header.shape, header.dtype, header.type, "", before + header.start, header.fortran), path)


def _npy(stream: IO[bytes], size: int, where: str, path: Path) -> Header:
    """Read the header at the beginning of an npy file of ``size`` bytes."""
    try:
        start = stream.read(12)
        length = int.from_bytes(start[8:12] if start[6:7] > b"\1" else start[8:10], "little")
        stream.seek(0)
        if length > BLOCK:
            raise ValueError(f"a header of {length:,} bytes")
        text = stream.read(length + 10)
        if not text[12:].isascii() or sum(text.count(bracket) for bracket in b"([{") > MOST_DIMS:  # a parser of Python would fail in ways of its own
            raise ValueError("its header is damaged")
        stream.seek(0)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (zipfile.BadZipFile, OSError):
        raise
    except Exception as error:  # the header is a Python literal: its reader raises what a parser of Python raises
        raise UserError(f"{where}: is no npy array: {short(error)}") from None
    if dtype.hasobject:
        return Header(shape, dtype, "pickled objects", f"holds pickled objects, which are not read: {UNPICKLE.format(path)}")
    if len(shape) > MOST_DIMS or any(not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 1 << 63 for n in shape):
        raise UserError(f"{where}: its header claims the shape {repr_of(shape)}; it is damaged")
    return header_of(where, shape, dtype, dtype.name, size - stream.tell(), stream.tell(), fortran)


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: is no npz file: {short(error)}") from None


class _Packed(ForeignArray):
    """A compressed member of an npz: read forward as a stream; unpacked to a temporary file when rows are wanted out of order."""

    def __init__(self, where: str, header: Header, path: Path, member: str) -> None:
        super().__init__(where, header)
        self._zip = zipfile.ZipFile(path)
        self._member = member
        self._stream: IO[bytes] | None = None
        self._at = 0
        self._unpacked: Mapped | None = None

    def take(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        shape = self.header.shape
        flat = np.ravel_multi_index(index, shape[: len(index)])
        width = math.prod(shape[len(index) :]) * self.header.dtype.itemsize
        forward = not self.header.fortran and bool((np.diff(flat) > 0).all()) and (len(flat) == 0 or int(flat[0]) * width >= self._at)
        if self._unpacked is None and not forward:
            self._unpack()
        if self._unpacked is not None:
            return self._unpacked.take(index)
        out = np.empty((len(flat), *shape[len(index) :]), self.header.dtype)
        for begin, end in stretches(flat):
            data = self._read(int(flat[begin]) * width, (end - begin) * width)
            out[begin:end] = np.frombuffer(data, self.header.dtype).reshape(end - begin, *out.shape[1:])
        return native(out)

    def _read(self, at: int, count: int) -> bytes:
        """Return ``count`` bytes of the values from ``at``, which is not behind what was read last."""
        try:
            if self._stream is None:
                self._stream = self._zip.open(self._member)
                _skip(self._stream, self.header.start)
            _skip(self._stream, at - self._at)
            data = self._stream.read(count)
        except (zipfile.BadZipFile, OSError, EOFError, ValueError) as error:
            raise UserError(f"{self.where}: is damaged: {error}") from None
        except Exception as error:  # zlib, bz2 and lzma each have an error of their own
            raise UserError(f"{self.where}: is damaged: {error}") from None
        if len(data) != count:
            raise UserError(f"{self.where}: ends early; the file is damaged or was cut off")
        self._at = at + count
        return data

    def _unpack(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream, self._at = None, 0
        with tempfile.TemporaryFile() as file:
            total = math.prod(self.header.shape) * self.header.dtype.itemsize
            for at in range(0, total, BLOCK):
                file.write(self._read(at, min(BLOCK, total - at)))
            file.flush()
            self._unpacked = Mapped(self.where, Header(self.header.shape, self.header.dtype, self.header.type, fortran=self.header.fortran), file)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._zip.close()


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        block = stream.read(min(BLOCK, count))
        if not block:
            raise EOFError("ends early")
        count -= len(block)
