"""Zarr arrays of a run: created with dimension names and checksums, written one whole shard at a time.

A unit's rows are one shard. Shards are encoded through zarr's own codecs into memory, hashed there, and written to disk
durably by us: zarr's local store never calls fsync, and its bytes would have to be read again to be hashed.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ZstdCodec
from zarr.storage import MemoryStore

from codi_engine.store.layout import CHUNK_BYTES, DATA, ArraySpec


def make_array(store: Any, path: str, spec: ArraySpec, rows: int, unit_cells: int) -> Any:
    """Create an array of ``rows`` cells in a zarr store."""
    row_bytes = int(np.prod(spec.shape, dtype=np.int64)) * np.dtype(spec.dtype).itemsize
    inner = max(min(CHUNK_BYTES // max(row_bytes, 1), unit_cells), 1)
    while unit_cells % inner:
        inner -= 1
    sharded = inner < unit_cells
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zarr.create_array(
            store=store, name=path, shape=(rows, *spec.shape), dtype=spec.dtype, fill_value=spec.fill,
            chunks=(inner if sharded else unit_cells, *spec.shape), shards=(unit_cells, *spec.shape) if sharded else None,
            serializer=BytesCodec(), compressors=[ZstdCodec(level=1, checksum=True)] if spec.sparse else [Crc32cCodec()],
            dimension_names=spec.dims, attributes=dict(spec.attrs), config={"write_empty_chunks": True},
        )  # fmt: skip


class ShardEncoder:
    """Encodes one unit's rows of an array into the bytes of its shard."""

    def __init__(self, spec: ArraySpec, unit_cells: int) -> None:
        self.spec, self.unit_cells = spec, unit_cells
        self._store = MemoryStore()
        self._array = make_array(self._store, "a", spec, unit_cells, unit_cells)
        self._key = "a/c/0" + "/0" * len(spec.shape)

    def encode(self, values: np.ndarray) -> bytes:
        """Return the shard of ``unit_cells`` rows (missing ones filled)."""
        whole = np.full((self.unit_cells, *self.spec.shape), self.spec.fill, self.spec.dtype)
        whole[: len(values)] = values
        self._array[:] = whole
        return bytes(self._store._store_dict[self._key].to_bytes())

    def decode(self, data: bytes) -> np.ndarray:
        """Return the rows of a shard."""
        from zarr.core.buffer import default_buffer_prototype

        buffer = default_buffer_prototype().buffer.from_bytes(data)
        self._store._store_dict[self._key] = buffer
        return np.asarray(self._array[:])


def open_group(path: Path, mode: Any = "r") -> Any:
    """Open a run's data as a zarr group."""
    return zarr.open_group(str(path / DATA), mode=mode)


def spec_of(name: str, array: Any) -> ArraySpec:
    """Return the specification of an array on disk."""
    metadata = array.metadata
    sparse = any(isinstance(c, ZstdCodec) for c in getattr(metadata.codecs[0], "codecs", metadata.codecs))
    return ArraySpec(name, tuple(metadata.dimension_names), tuple(array.shape[1:]), str(array.dtype), float(array.fill_value), sparse, dict(array.attrs))
