"""Arrays in files that others wrote: what a file holds, and rows of it, without loading whole arrays or running pickles."""

from __future__ import annotations

import json
import math
import tempfile
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from reprlib import repr as repr_of
from typing import IO, Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.tensorfiles import regular, torch_content

#: bytes copied at once
BLOCK = 1 << 20
#: dimensions of an array, as numpy has them; bytes of a chunk, which is unpacked as a whole
_MOST_DIMS, _LARGEST_CHUNK = 64, 256 << 20
#: containers in each other in a torch file, and values in all of them
_DEEPEST, _MOST_LEAVES = 32, 100_000
#: how many bytes one compressed byte can stand for (deflate's limit is 1032)
RATIO = 1100
#: what data are worth reading: codes of which one in a hundred is not zero shrink to a fiftieth; so many bytes are read of anything
DENSE, ROOM = 200, 256 << 20
#: bytes of decompressed chunks that h5py keeps, for rows that are wanted in another order than on disk
H5_CACHE = 64 << 20
UNPICKLE = "pickles can run any code when they are read; if you trust it, convert it: python tools/unpickle.py {}"
#: bytes of a safetensors header
_LARGEST_HEADER = 16 << 20
_SAFETENSORS = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip


@dataclass(frozen=True)
class Header:
    """What a file says of one array: ``type`` as shown to users; ``problem`` is why it cannot be read, if it cannot."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    type: str
    problem: str = ""
    start: int = 0
    fortran: bool = False

    def __str__(self) -> str:
        return f"{self.type}[{', '.join(map(str, self.shape))}]"


class ForeignArray(ABC):
    """One array of a file, open for reading rows; :meth:`close` when done."""

    def __init__(self, where: str, header: Header) -> None:
        self.where, self.header = where, header

    @abstractmethod
    def take(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        """Return the values at these indices of the leading dimensions: rows × the other dimensions."""

    def rows(self, index: tuple[np.ndarray, ...], count: int) -> np.ndarray:
        """Return ``count`` rows; without an index the whole array is each of them."""
        if index:
            return self.take(index)
        return np.broadcast_to(self.whole(), (count, *self.header.shape))

    def whole(self) -> np.ndarray:
        """Return all values (for labels and other small arrays)."""
        if not self.header.shape:
            raise UserError(f"{self.where}: is a single value; an array is needed")
        return self.take((np.arange(self.header.shape[0]),))

    def close(self) -> None:  # noqa: B027 - most hold nothing open
        """Give back files and memory maps."""


class _Mapped(ForeignArray):
    """Values that lie uncompressed in a file: mapped, so that only the rows read are in memory."""

    def __init__(self, where: str, header: Header, file: Any, bfloat16: bool = False) -> None:
        super().__init__(where, header)
        self._bfloat16 = bfloat16
        order: Any = "F" if header.fortran else "C"
        self._map = np.memmap(file, header.dtype if not bfloat16 else "<u2", "r", header.start, header.shape, order)

    def take(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        values = np.asarray(self._map)[index]
        return _widened(values) if self._bfloat16 else _native(values)


class _Packed(ForeignArray):
    """A compressed member of an npz: read forward as a stream; unpacked to a temporary file when rows are wanted out of order."""

    def __init__(self, where: str, header: Header, path: Path, member: str) -> None:
        super().__init__(where, header)
        self._zip = zipfile.ZipFile(path)
        self._member = member
        self._stream: IO[bytes] | None = None
        self._at = 0
        self._unpacked: _Mapped | None = None

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
        for begin, end in _runs(flat):
            data = self._read(int(flat[begin]) * width, (end - begin) * width)
            out[begin:end] = np.frombuffer(data, self.header.dtype).reshape(end - begin, *out.shape[1:])
        return _native(out)

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
            self._unpacked = _Mapped(self.where, Header(self.header.shape, self.header.dtype, self.header.type, fortran=self.header.fortran), file)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._zip.close()


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
            raise UserError(f"{where}: cannot be read: {_short(error)}") from None

    def take(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        shape = self.header.shape
        flat = np.ravel_multi_index(index, shape[: len(index)])
        out = np.empty((len(flat), *shape[len(index) :]), self.header.dtype)
        try:
            for begin, end in _runs(flat, shape[len(index) - 1]):
                place = tuple(int(i[begin]) for i in index)
                out[begin:end] = self._data[(*place[:-1], slice(place[-1], place[-1] + end - begin))]
        except Exception as error:  # as for its header
            raise UserError(f"{self.where}: cannot be read: {_short(error)}") from None
        return _native(out)

    def close(self) -> None:
        self._file.close()


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


def _runs(flat: np.ndarray, period: int = 0) -> list[tuple[int, int]]:
    """Return (begin, end) of the stretches in which ``flat`` counts up by one without passing a multiple of ``period``."""
    breaks = np.diff(flat) != 1
    if period:
        breaks |= flat[1:] % period == 0
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(flat)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def _skip(stream: IO[bytes], count: int) -> None:
    while count > 0:
        block = stream.read(min(BLOCK, count))
        if not block:
            raise EOFError("ends early")
        count -= len(block)


def _short(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:100]


def _native(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _widened(values: np.ndarray) -> np.ndarray:
    """Return bfloat16 bits as float32."""
    return np.asarray((values.astype(np.uint32) << 16).view(np.float32))


# ------------------------------------------------------------------------------------------------------ headers


def _header(where: str, shape: Sequence[int], dtype: np.dtype[Any], kind: str, room: int, start: int = 0, fortran: bool = False) -> Header:
    """Return the header of an array after comparing what it claims with the bytes that there are."""
    claimed = math.prod(shape) * dtype.itemsize
    if claimed > room:
        shown = f"{claimed:,}" if claimed < 1 << 64 else f"{claimed.bit_length() // 8:,}-byte number of"
        raise UserError(f"{where}: its header claims {shown} bytes, the file has room for {room:,}; it is damaged")
    problem = ""
    if dtype.kind not in "biufUSO" or (dtype.itemsize == 16 and dtype.kind == "f"):
        problem = f"values of type {kind} cannot be imported; convert them to float32"
    elif 0 in shape:
        problem = "is empty"
    return Header(tuple(map(int, shape)), dtype, kind, problem, start, fortran)


def _npy(stream: IO[bytes], size: int, where: str, path: Path) -> Header:
    """Read the header at the beginning of an npy file of ``size`` bytes."""
    try:
        start = stream.read(12)
        length = int.from_bytes(start[8:12] if start[6:7] > b"\1" else start[8:10], "little")
        stream.seek(0)
        if length > BLOCK:
            raise ValueError(f"a header of {length:,} bytes")
        text = stream.read(length + 10)
        if not text[12:].isascii() or sum(text.count(bracket) for bracket in b"([{") > _MOST_DIMS:  # a parser of Python would fail in ways of its own
            raise ValueError("its header is damaged")
        stream.seek(0)
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(stream)
    except (zipfile.BadZipFile, OSError):
        raise
    except Exception as error:  # the header is a Python literal: its reader raises what a parser of Python raises
        raise UserError(f"{where}: is no npy array: {_short(error)}") from None
    if dtype.hasobject:
        return Header(shape, dtype, "pickled objects", f"holds pickled objects, which are not read: {UNPICKLE.format(path)}")
    if len(shape) > _MOST_DIMS or any(not isinstance(n, int) or isinstance(n, bool) or not 0 <= n < 1 << 63 for n in shape):
        raise UserError(f"{where}: its header claims the shape {repr_of(shape)}; it is damaged")
    return _header(where, shape, dtype, dtype.name, size - stream.tell(), stream.tell(), fortran)


def _npy_headers(path: Path) -> dict[str, Header]:
    with path.open("rb") as stream:
        return {".": _npy(stream, path.stat().st_size, str(path), path)}


def _members(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path}: is no npz file: {_short(error)}") from None


def _npz_headers(path: Path) -> dict[str, Header]:
    members = _members(path)
    if not members:
        raise UserError(f"{path}: holds no arrays")
    out = {}
    with zipfile.ZipFile(path) as archive:
        for name, info in members.items():
            where = f"{path}: {name}"
            _plausible(where, info.file_size, info.compress_size)
            try:
                with archive.open(info) as stream:
                    out[name] = _npy(stream, info.file_size, where, path)
            except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
                raise UserError(f"{where}: cannot be read: {_short(error)}") from None
    return out


def _plausible(where: str, claimed: int, stored: int) -> None:
    """Refuse what no compressed data of that length can hold."""
    if claimed > min(stored * RATIO + BLOCK, stored * DENSE + ROOM):
        raise UserError(f"{where}: claims {claimed:,} bytes in {stored:,} stored ones; it is damaged or made to exhaust memory")


def _npz_open(path: Path, name: str, header: Header) -> ForeignArray:
    info = _members(path)[name]
    if info.compress_type != zipfile.ZIP_STORED:
        return _Packed(f"{path}: {name}", header, path, info.filename)
    with path.open("rb") as stream:
        stream.seek(info.header_offset + 26)
        lengths = stream.read(4)
    before = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
    if before + info.file_size > path.stat().st_size:
        raise UserError(f"{path}: {name}: ends early; the file is damaged or was cut off")
    return _Mapped(f"{path}: {name}", Header(header.shape, header.dtype, header.type, "", before + header.start, header.fortran), path)


def _safetensors_headers(path: Path) -> dict[str, Header]:
    size = path.stat().st_size
    out = {}
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
            raise UserError(f"{path}: is no safetensors file: its header would have {length:,} bytes")
        try:
            content = {k: v for k, v in json.loads(stream.read(length)).items() if k != "__metadata__"}
            described = {k: (str(v["dtype"]), [int(n) for n in v["shape"]], [int(n) for n in v["data_offsets"]]) for k, v in content.items()}
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            raise UserError(f"{path}: is no safetensors file: its header is damaged") from None
    for name, (kind, shape, place) in described.items():
        if len(shape) > _MOST_DIMS or len(place) != 2 or not all(0 <= n < 1 << 63 for n in shape):
            raise UserError(f"{path}: {name[:80]}: its header claims the shape {repr_of(shape)}; it is damaged")
        begin, end = place
        dtype = np.dtype(_SAFETENSORS.get(kind, "V1"))
        where = f"{path}: {name}"
        if not 0 <= begin <= end <= size - 8 - length or min(shape, default=1) < 0:
            raise UserError(f"{where}: its header points outside the file; it is damaged")
        if kind in _SAFETENSORS and math.prod(shape) * dtype.itemsize != end - begin:
            raise UserError(f"{where}: its header claims the shape {shape} for {end - begin:,} bytes; it is damaged")
        out[name] = _header(where, shape, dtype, kind, size if kind in _SAFETENSORS else 1 << 62, 8 + length + begin)
    return out


def _safetensors_open(path: Path, name: str, header: Header) -> ForeignArray:
    return _Mapped(f"{path}: {name}", header, path, header.type == "BF16")


def _h5(path: Path) -> Any:
    try:
        import h5py
    except ImportError:
        raise UserError(f"{path}: reading HDF5 needs h5py: pip install 'codi-engine[h5]'") from None
    try:
        return h5py.File(path, "r", rdcc_nbytes=H5_CACHE)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: is no HDF5 file: {_short(error)}") from None


def _h5_headers(path: Path) -> dict[str, Header]:
    found: dict[str, Header] = {}
    with _h5(path) as file:
        import h5py

        def visit(name: str, item: Any) -> None:
            if not isinstance(item, h5py.Dataset) or item.shape is None:
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
            _plausible(where, math.prod(item.shape) * item.dtype.itemsize, item.id.get_storage_size())
            found[name] = _header(where, item.shape, dtype, "text" if strings else str(item.dtype), 1 << 62)

        try:
            file.visititems(visit)
        except UserError:
            raise
        except Exception as error:  # h5py turns what the library finds damaged into many types
            raise UserError(f"{path}: is damaged: {_short(error)}") from None
    return found


def _h5_open(path: Path, name: str, header: Header) -> ForeignArray:
    return _Sliced(f"{path}: {name}", header, path, name)


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


def _torch_header(path: Path, name: str, value: Any) -> Header:
    import torch

    where = f"{path}: {name}"
    if isinstance(value, np.ndarray):
        return _header(where, value.shape, value.dtype, value.dtype.name, 1 << 62)
    kind = str(value.dtype).removeprefix("torch.")
    if value.layout != torch.strided or value.is_quantized:
        return Header(tuple(value.shape), np.dtype("V1"), kind, "is a sparse or quantized tensor; save it dense")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(f"{where}: claims {value.numel():,} values, the file holds fewer; save it with .clone()")
    try:
        dtype = np.dtype("f4" if value.dtype == torch.bfloat16 else kind)
    except TypeError:
        dtype = np.dtype("V1")
    return _header(where, value.shape, dtype, kind, 1 << 62)


def _torch_headers(path: Path) -> dict[str, Header]:
    return {name: _torch_header(path, name, value) for name, value in _torch_leaves(path).items()}


def _torch_open(path: Path, name: str, header: Header) -> ForeignArray:
    return _Tensor(f"{path}: {name}", header, _torch_leaves(path)[name])


def _npy_open(path: Path, name: str, header: Header) -> ForeignArray:
    return _Mapped(str(path), header, path)


_READERS: dict[str, tuple[Callable[[Path], dict[str, Header]], Callable[[Path, str, Header], ForeignArray]]] = {
    ".npz": (_npz_headers, _npz_open),
    ".npy": (_npy_headers, _npy_open),
    ".h5": (_h5_headers, _h5_open),
    ".hdf5": (_h5_headers, _h5_open),
    ".safetensors": (_safetensors_headers, _safetensors_open),
    ".pt": (_torch_headers, _torch_open),
    ".pth": (_torch_headers, _torch_open),
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
