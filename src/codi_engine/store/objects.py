"""Shards and texts of a run at an object store, read part by part and compared with what the ledger says of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from codi_engine.store.connecting import Unreachable
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import DATA, unit_of
from codi_engine.store.remote import Remote, remote_at

#: bytes of one request for a part of an object
PART = 8 << 20
#: bytes from which room for an object is made only after its size was asked for
_LARGE = 64 << 20


def objects_at(folder: Path) -> Objects | None:
    """Return the shards and texts of the run in a folder, or of its ``data.zarr``, where they are objects; None where they are files."""
    remote = remote_at(folder)
    if remote is not None:
        return Objects(remote, "")
    if folder.name == DATA and (remote := remote_at(folder.parent)) is not None:
        return Objects(remote, f"{DATA}/")
    return None


class Objects:
    """Shards and texts of a run as objects; names are relative to the run, or to its ``data.zarr``."""

    def __init__(self, remote: Remote, prefix: str) -> None:
        self._remote, self._prefix = remote, prefix

    def holds(self, name: str) -> bool:
        """Say whether a file of this name is an object; others lie in the folder."""
        return unit_of(self._prefix + name) is not None

    def size(self, name: str, stated: int | None) -> int:
        """Return an object's size; a small one is believed to have the stated one until it is read.

        Raises
        ------
        StoreError: the object is missing or has another size
        """
        if stated is not None and stated < _LARGE:
            return stated
        try:
            found = self._remote.head(self._prefix + name).size
        except FileNotFoundError:
            raise self._missing(name) from None
        if stated is not None and found != stated:
            raise self._other_size(name, found, stated)
        return found

    def read(self, name: str, size: int | None) -> bytes:
        """Return an object's bytes.

        Raises
        ------
        StoreError: the object is missing or has another size
        """
        data = bytearray(self.size(name, None) if size is None else size)
        self.fill(name, len(data), [memoryview(data)])
        return bytes(data)

    def fill(self, name: str, size: int, places: Sequence[memoryview]) -> None:
        """Read an object into several places, one after another.

        Raises
        ------
        StoreError: the object is missing, or has another size than these
        """
        left = list(places)
        for data in self.pieces(name, size):
            while len(data):
                if not left:
                    raise self._other_size(name, size, sum(map(len, places)))
                count = min(len(data), len(left[0]))
                left[0][:count] = data[:count]
                data, left[0] = data[count:], left[0][count:]
                if not len(left[0]):
                    left.pop(0)
        if any(map(len, left)):
            raise self._other_size(name, size, sum(map(len, places)))

    def pieces(self, name: str, size: int) -> Iterator[memoryview]:
        """Yield an object piece by piece.

        Raises
        ------
        StoreError: the object is missing or has another size
        """
        if not size:
            found = self.size(name, None)
            if found:
                raise self._other_size(name, found, 0)
            return
        for start in range(0, size, PART):
            yield self.piece(name, size, start, min(PART, size - start))

    def compare(self, name: str, stated: Mapping[str, Any]) -> tuple[Literal["missing", "truncated", "damaged"], str] | None:
        """Say how an object differs from what was written, reading all of it; None when it does not."""
        try:
            size = self._remote.head(self._prefix + name).size
            if size != stated["size"]:
                return "truncated" if size < stated["size"] else "damaged", f"has {size:,} bytes where {stated['size']:,} were written"
            digest = hashlib.sha256()
            for data in self.pieces(name, size):
                digest.update(data)
        except FileNotFoundError:
            return "missing", "is missing, although the ledger says that it was written"
        return None if digest.hexdigest() == stated["sha256"] else ("damaged", "is damaged: its checksum is not the one that was recorded")

    def piece(self, name: str, size: int, start: int, length: int) -> memoryview:
        """Return a part of an object that is ``size`` bytes long.

        Raises
        ------
        StoreError: the object is missing or has another size
        """
        try:
            data, found = self._remote.part(self._prefix + name, start, length)
        except FileNotFoundError:
            raise self._missing(name) from None
        except Unreachable:
            raise
        except StoreError:
            found = self.size(name, None)  # beyond the end of a shorter object there is nothing to be had
            if found == size:
                raise
            raise self._other_size(name, found, size) from None
        if found != size or len(data) != length:
            raise self._other_size(name, found, size)
        return data

    def _place(self, name: str) -> str:
        return f"{self._remote}/{self._prefix}{name}"

    def _missing(self, name: str) -> StoreError:
        return StoreError(f"{self._place(name)}: is missing, although the ledger says that it was written")

    def _other_size(self, name: str, found: int, stated: int) -> StoreError:
        return StoreError(f"{self._place(name)}: has {found:,} bytes where {stated:,} were written")
