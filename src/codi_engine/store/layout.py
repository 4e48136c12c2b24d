"""Where things lie in a run directory, and how an array is cut into shards."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codi_engine.store.errors import StoreError

DATA = "data.zarr"
TEXTS = "texts"
LEDGER = "ledger"
LOCK = "lock"
EXPERIMENT = "experiment.yaml"
PROVENANCE = "provenance.json"
RESULTS = "results"
#: bytes of an inner chunk: what a reader must decode to see one row
CHUNK_BYTES = 4 << 20
_NAME = re.compile(r"[A-Za-z0-9_.@\[\]:,+-]+(/[A-Za-z0-9_.@\[\]:,+-]+)*\Z")


@dataclass(frozen=True)
class ArraySpec:
    """One array of a run; its first dimension is always ``cell``.

    ``shape`` is the shape of one row; ``sparse`` arrays are compressed, dense ones only checksummed.
    """

    name: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    fill: float
    sparse: bool = False
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.match(self.name) or ".." in self.name.split("/"):
            raise StoreError(f"'{self.name}' cannot be the name of an array")
        if len(self.dims) != 1 + len(self.shape) or self.dims[0] != "cell":
            raise StoreError(f"{self.name}: dimensions {self.dims} do not fit shape {self.shape}")


def text_file(unit: int) -> str:
    return f"{TEXTS}/unit-{unit:06d}.arrow"


def shard_file(name: str, unit: int, dims: int) -> str:
    """Return the path of a unit's shard of an array with ``dims`` dimensions (a unit is one shard of whole rows)."""
    return f"{DATA}/{name}/c/{unit}" + "/0" * (dims - 1)


def metadata_files(path: Path) -> list[str]:
    """Return every zarr.json below a run's data, relative to the run."""
    return sorted(str(p.relative_to(path)) for p in (path / DATA).rglob("zarr.json"))
