"""Files of tensors that come from elsewhere: what they claim is compared with what they hold before anything is allocated or run."""

from __future__ import annotations

import math
import pickletools
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

#: arrays of a compressed file may have so many bytes, and so many more for each byte of the file: weights hardly compress
ROOM, RATIO = 256 << 20, 16
#: values that a torch file may hold beside and in its containers
_MOST_VALUES = 1_000_000
_OLD = b"\x80\x02\x8a\nl\xfc\x9c"
#: what makes room for as many bytes as a number says, and is no part of a file of tensors
_GREEDY = ("bytearray",)


def regular(path: Path, where: str) -> int:
    """Return the size of a regular file.

    Raises
    ------
    UserError: there is none, or it is a pipe, a device or a directory, which would never end
    """
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{where}: '{path}' cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{where}: '{path}' is no regular file; give a file, or a link to one")
    return found.st_size


def check_folder(folder: Path, where: str) -> None:
    """Refuse a folder with pipes or devices among its files: who opens one waits for ever."""
    for path in sorted(folder.iterdir()):
        if not path.is_dir() and path.exists():
            regular(path, where)


# --------------------------------------------------------------------------------------------------------------- torch


def torch_content(path: Path, where: str, allowed: Sequence[Any] = (), mapped: bool = False) -> Any:
    """Return what a torch file holds: tensors, numbers, text and containers of them.

    Parameters
    ----------
    where: begins the messages
    allowed: classes and functions beyond torch's own that its pickle may name
    mapped: leave tensors in the file until they are read, and do not look at what kind they are

    Raises
    ------
    UserError: damaged, of another kind, more than that, or made to exhaust memory; nothing in it was run
    """
    import torch

    check_torch(path, where)
    try:
        with torch.serialization.safe_globals(list(allowed)):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        for tensor in () if mapped else _tensors(content):
            _check_tensor(tensor, path, where)
    except UserError:
        raise
    except Exception as error:  # torch raises many types for damaged files; none of them may reach the user raw
        reason = "it holds more than tensors and numbers, and is not loaded" if "weights_only" in str(error).lower() else "it is damaged or no checkpoint"
        raise UserError(f"{where}: '{path}' cannot be read: {reason}") from None
    return content


def check_torch(path: Path, where: str) -> None:
    """Refuse a torch file that would take more room than it has bytes; nothing is loaded."""
    size = regular(path, where)
    if size == 0:
        raise UserError(f"{where}: '{path}' is empty")
    try:
        _check_archive(path, size, where)
    except UserError:
        raise
    except Exception:  # zipfile and pickletools raise many types for damaged files
        raise UserError(f"{where}: '{path}' cannot be read: it is damaged or no checkpoint") from None


def _check_archive(path: Path, size: int, where: str) -> None:
    """Refuse what torch would unpack to more than the file has bytes, and pickles that ask for room by number."""
    with path.open("rb") as file:
        start = file.read(len(_OLD))
    if start[:4] != b"PK\3\4":
        what = "is in torch's old format; load it and save it again with torch.save" if start == _OLD else "cannot be read: it is damaged or no checkpoint"
        raise UserError(f"{where}: '{path}' {what}")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(m.file_size for m in members) > size or any(m.compress_type != zipfile.ZIP_STORED for m in members):
            raise UserError(f"{where}: '{path}' cannot be read: it is compressed, or claims more than the file's {size:,} bytes; save it again with torch.save")
        for member in members:
            if member.filename.endswith("data.pkl"):
                _check_pickle(archive.read(member), path, where)


def _check_pickle(data: bytes, path: Path, where: str) -> None:
    for code, argument, _ in pickletools.genops(data):
        if code.name in ("GLOBAL", "INST", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE") and str(argument).rpartition(" ")[2] in _GREEDY:
            raise UserError(f"{where}: '{path}' cannot be read: it holds more than tensors and numbers, and is not loaded")


def _tensors(content: Any) -> Iterator[Any]:
    """Yield the tensors in nested containers, each container once: a pickle may hold one in itself."""
    import torch

    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (dict, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, dict) else value
        if len(waiting) > _MOST_VALUES:
            raise ValueError("too many values")


def _check_tensor(tensor: Any, path: Path, where: str) -> None:
    """Refuse tensors that stand for more values than they have: repeated by their strides, sparse, without content."""
    import torch

    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu" or tensor.is_complex() or tensor.is_nested:
        raise UserError(f"{where}: '{path}' holds a sparse, quantized, complex or empty-handed tensor; save dense tensors of real numbers")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise UserError(f"{where}: '{path}' holds a tensor that claims {tensor.numel():,} values and has fewer; save it with .clone()")


# --------------------------------------------------------------------------------------------------------------- numpy


def numpy_arrays(path: Path, where: str) -> dict[str, np.ndarray]:
    """Return the arrays of an npz (or the one of an npy, called ``.``) after comparing all that they claim with the file's size.

    Raises
    ------
    UserError: damaged, pickled objects, or made to exhaust memory
    """
    from codi_engine.core.imports.foreign import headers, open_array

    size = regular(path, where)
    if path.suffix.lower() not in (".npz", ".npy"):
        raise UserError(f"{where}: '{path}' is neither .npz nor .npy")
    out = {}
    try:
        found = headers(path)
        claimed = sum(_bytes(header) for header in found.values())
        if claimed > ROOM + RATIO * size:
            raise UserError(f"its arrays claim {claimed:,} bytes in a file of {size:,}; it is made to exhaust memory")
        for name, header in found.items():
            array = open_array(path, name, header)
            try:
                out[name] = array.whole()
            finally:
                array.close()
    except UserError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise UserError(f"{where}: '{path}' cannot be read: {said}") from None
    return out


def _bytes(header: Any) -> int:
    return int(math.prod(header.shape) * header.dtype.itemsize)
