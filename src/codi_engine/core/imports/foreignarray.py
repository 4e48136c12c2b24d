"""One array in a file that somebody else wrote: its header, compared with the bytes that there are, and its rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from codi_engine.core.errors import UserError

#: bytes copied at once
BLOCK = 1 << 20
#: dimensions of an array, as numpy has them
MOST_DIMS = 64
#: how many bytes one compressed byte can stand for (deflate's limit is 1032)
RATIO = 1100
#: what data are worth reading: codes of which one in a hundred is not zero shrink to a fiftieth; so many bytes are read of anything
DENSE, ROOM = 200, 256 << 20
UNPICKLE = "pickles can run any code when they are read; if you trust it, convert it: python tools/unpickle.py {}"


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


class Mapped(ForeignArray):
    """Values that lie uncompressed in a file: mapped, so that only the rows read are in memory."""

    def __init__(self, where: str, header: Header, file: Any, bfloat16: bool = False) -> None:
        super().__init__(where, header)
        self._bfloat16 = bfloat16
        order: Any = "F" if header.fortran else "C"
        self._map = np.memmap(file, header.dtype if not bfloat16 else "<u2", "r", header.start, header.shape, order)

    def take(self, index: tuple[np.ndarray, ...]) -> np.ndarray:
        values = np.asarray(self._map)[index]
        return widened(values) if self._bfloat16 else native(values)


def header_of(where: str, shape: Sequence[int], dtype: np.dtype[Any], kind: str, room: int, start: int = 0, fortran: bool = False) -> Header:
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


def check_plausible(where: str, claimed: int, stored: int) -> None:
    """Refuse what no compressed data of that length can hold."""
    if claimed > min(stored * RATIO + BLOCK, stored * DENSE + ROOM):
        raise UserError(f"{where}: claims {claimed:,} bytes in {stored:,} stored ones; it is damaged or made to exhaust memory")


def stretches(flat: np.ndarray, period: int = 0) -> list[tuple[int, int]]:
    """Return (begin, end) of the stretches in which ``flat`` counts up by one without passing a multiple of ``period``."""
    breaks = np.diff(flat) != 1
    if period:
        breaks |= flat[1:] % period == 0
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(flat)]
    return [(a, b) for a, b in pairwise(edges) if b > a]


def short(error: BaseException) -> str:
    lines = str(error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:100]


def native(values: np.ndarray) -> np.ndarray:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def widened(values: np.ndarray) -> np.ndarray:
    """Return bfloat16 bits as float32."""
    return np.asarray((values.astype(np.uint32) << 16).view(np.float32))
