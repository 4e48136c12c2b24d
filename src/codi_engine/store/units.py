"""What the ledger says of committed units, kept in little memory: a day-long run has tens of thousands of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from codi_engine.store.layout import unit_of

Facts = dict[str, Any]
_SIZE, _HASH = 8, 32


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
    """Packs the files of units as they come; what a ledger claims has been looked at (``store/claims.py``).

    Parameters
    ----------
    path: (array, unit) → relative path
    """

    def __init__(self, path: Callable[[str, int], str]) -> None:
        self._path = path
        self._shared: dict[tuple[str, ...], dict[str, int]] = {}

    def pack(self, unit: int, files: Mapping[str, Any]) -> Files:
        """Return the files of a unit, each of which it can have written."""
        key = tuple(place[0] for file in files if (place := unit_of(file)))
        places = self._shared.setdefault(key, {name: i for i, name in enumerate(key)})
        packed = b"".join(stated["size"].to_bytes(_SIZE, "little") + bytes.fromhex(stated["sha256"]) for stated in files.values())
        return Files(unit, places, packed, self._path)
