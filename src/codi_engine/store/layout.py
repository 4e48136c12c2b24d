"""Where things lie in a run directory, and how an array is cut into shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codi_engine.store.errors import StoreError

DATA = "data.zarr"
TEXTS = "texts"
LEDGER = "ledger"
LOCK = "lock"
EXPERIMENT = "experiment.yaml"
PROVENANCE = "provenance.json"
#: folder with copies of the ledger and the provenance, which nothing could recompute; only ``repair`` reads them
COPIES = "copies"
#: not called as what it is a copy of: a folder with a ledger is a run
LEDGER_COPY = f"{COPIES}/ledger.copy"
PROVENANCE_COPY = f"{COPIES}/provenance.copy"
RESULTS = "results"
#: units that are computed and wait for the one who writes the ledger (``store/outbox.py``)
OUTBOX = "outbox"
METADATA = "zarr.json"
PARTIAL = ".partial"
STATUS = "cells/status"
#: bytes of an inner chunk: what a reader must decode to see one row
CHUNK_BYTES = 4 << 20
#: entries of an inner chunk of sparse codes
CHUNK_ENTRIES = 1 << 16

_PART = re.compile(r"[A-Za-z0-9_@\[\]:,+=-][A-Za-z0-9_.@\[\]:,+=-]{0,199}\Z")
_SHARD = re.compile(r"data\.zarr/(?P<name>.+)/c\.(?P<unit>\d+)(?:\.0)*\Z")
_TEXT = re.compile(r"texts/unit-(?P<unit>\d{6,})\.arrow\Z")
_WAITING = re.compile(r"unit-(?P<unit>\d{6,12})\Z", re.ASCII)


@dataclass(frozen=True)
class ArraySpec:
    """One array of a run.

    Attributes
    ----------
    name: path below ``data.zarr``, such as ``cells/metrics/kl``
    dims: dimension names; the first is always ``cell``
    shape: shape of one row (all dimensions but ``cell``)
    dtype: a numpy boolean, integer or float type
    fill: the value of rows that no unit wrote (NaN, 0 for status, −1 for codes)
    sparse: True compresses (zstd level 1 with its checksum), False only checksums (crc32c)
    entries: 0 for an array over cells; otherwise the array lists entries of sparse codes, at most so many per cell, its
        dimension is ``entry``, and chunks that a unit does not need are absent
    attrs: JSON attributes; ``labels`` (what codes mean) may be appended to later, nothing else may change
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    fill: float
    sparse: bool = False
    attrs: Mapping[str, Any] = field(default_factory=dict)
    entries: int = 0

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if not all(_PART.match(part) and part != METADATA and not part.endswith(PARTIAL) for part in parts):
            raise StoreError(f"'{self.name[:100]}' cannot be the name of an array: use letters, digits and _ . @ [ ] : , + = -")
        first = "entry" if self.entries else "cell"
        if len(self.dims) != 1 + len(self.shape) or self.dims[0] != first or len(set(self.dims)) != len(self.dims):
            raise StoreError(f"{self.name}: dimensions {self.dims} do not fit rows of shape {self.shape}; the first is '{first}'")
        if any(size < 1 for size in self.shape):
            raise StoreError(f"{self.name}: rows of shape {self.shape} are empty")
        if self.numpy.kind not in "biuf" or self.numpy.itemsize > 8:
            raise StoreError(f"{self.name}: {self.dtype} cannot be stored; use a boolean, integer or float type")

    @property
    def numpy(self) -> np.dtype[Any]:
        """Return the little-endian numpy type."""
        return np.dtype(self.dtype).newbyteorder("<")

    def rows(self, unit_cells: int) -> int:
        """Return how many rows of the array a unit owns: its cells, or room for its entries in whole chunks."""
        if not self.entries:
            return unit_cells
        room = unit_cells * self.entries
        return room if room <= CHUNK_ENTRIES else -(-room // CHUNK_ENTRIES) * CHUNK_ENTRIES

    def inner_rows(self, unit_cells: int) -> int:
        """Return rows per inner chunk: at most about 4 MB, and a divisor of the rows of a unit."""
        if self.entries:
            return min(CHUNK_ENTRIES, self.rows(unit_cells))
        row = int(np.prod(self.shape, dtype=np.int64)) * self.numpy.itemsize
        inner = max(min(CHUNK_BYTES // row, unit_cells), 1)
        while unit_cells % inner:
            inner -= 1
        return inner

    def shard(self, unit: int) -> str:
        """Return the path of a unit's shard, relative to the run."""
        return f"{DATA}/{self.name}/c.{unit}" + ".0" * len(self.shape)


def text_file(unit: int) -> str:
    """Return the path of a unit's texts, relative to the run."""
    return f"{TEXTS}/unit-{unit:06d}.arrow"


def waiting_folder(unit: int) -> str:
    """Return the folder in which a unit waits that is computed and not committed, relative to the run."""
    return f"{OUTBOX}/unit-{unit:06d}"


def waiting_unit(name: str) -> int | None:
    """Return the unit of a folder of the outbox; None for other names."""
    match = _WAITING.match(name)
    return int(match["unit"]) if match and f"unit-{int(match['unit']):06d}" == name else None


def unit_of(file: str) -> tuple[str, int] | None:
    """Return (array name or ``texts``, unit) of a shard's or text file's relative path; None for other files."""
    if match := _SHARD.match(file):
        return match["name"], int(match["unit"])
    if match := _TEXT.match(file):
        return TEXTS, int(match["unit"])
    return None
