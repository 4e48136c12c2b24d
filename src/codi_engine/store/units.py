"""What the ledger says of committed units, kept in little memory: a day-long run has tens of thousands of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import unit_of

Facts = dict[str, Any]
_SIZE, _HASH = 8, 32
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")


class Files(Mapping[str, Facts]):
    """The files of one unit: relative path → size and sha256, 40 bytes each.

    Parameters
    ----------
    unit: its number
    places: array (or ``texts``) → place in ``packed``; one object for all units that write the same
    packed: size (little-endian) and hash of each file
    path: (array, unit) → relative path
    """

    __slots__ = ("_packed", "_path", "_places", "_unit")

    def __init__(self, unit: int, places: Mapping[str, int], packed: bytes, path: Callable[[str, int], str]) -> None:
        self._unit, self._places, self._packed, self._path = unit, places, packed, path

    def __getitem__(self, file: str) -> Facts:
        place = unit_of(file)
        if place is None or place[0] not in self._places or self._path(place[0], self._unit) != file:
            raise KeyError(file)
        at = self._places[place[0]] * (_SIZE + _HASH)
        return {"size": int.from_bytes(self._packed[at : at + _SIZE], "little"), "sha256": self._packed[at + _SIZE : at + _SIZE + _HASH].hex()}

    def __iter__(self) -> Iterator[str]:
        return (self._path(name, self._unit) for name in self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return repr(dict(self))


class Packer:
    """Packs the files of units as they come.

    Parameters
    ----------
    path: (array, unit) → relative path, or StoreError where there is no such array
    where: names the run in errors
    """

    def __init__(self, path: Callable[[str, int], str], where: str) -> None:
        self._path, self._where = path, where
        self._shared: dict[tuple[str, ...], dict[str, int]] = {}

    def pack(self, unit: int, files: Mapping[str, Any]) -> Files:
        """Return the files of a unit.

        Raises
        ------
        StoreError: a file that this unit cannot have written, or facts that are none: the ledger was not written by codi-engine
        """
        names, packed = [], bytearray()
        for file, stated in files.items():
            place = unit_of(file)
            if place is None or place[1] != unit or self._path(place[0], unit) != file:
                raise StoreError(f"{self._where}: the ledger lists '{file[:100]}', which unit {unit} cannot have written")
            names.append(place[0])
            packed += _packed(stated, f"{self._where}: the ledger's facts of '{file[:100]}'")
        key = tuple(names)
        places = self._shared.setdefault(key, {name: i for i, name in enumerate(names)})
        return Files(unit, places, bytes(packed), self._path)


def _packed(stated: Any, what: str) -> bytes:
    size, digest = (stated.get("size"), stated.get("sha256")) if isinstance(stated, dict) else (None, None)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63 or not isinstance(digest, str) or not _SHA256.match(digest):
        raise StoreError(f"{what} are no size and sha256")
    return size.to_bytes(_SIZE, "little") + bytes.fromhex(digest)
