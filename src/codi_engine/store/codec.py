"""The bytes of a shard: one unit's rows of an array, as the Zarr v3 specification lays them out.

A small unit is a single chunk (little-endian values, then crc32c, or zstd with its checksum); a large one is a
``sharding_indexed`` shard of such chunks with its index at the end. Both are written here rather than through a zarr
array: each shard is encoded once, hashed once, and its bytes depend on its rows alone.

References
----------
https://zarr-specs.readthedocs.io: codecs ``bytes``, ``crc32c``, ``zstd``, ``sharding_indexed`` 1.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import ArraySpec

#: what the index says of a chunk that is not there
_ABSENT = np.uint64(2**64 - 1)


def codecs(spec: ArraySpec, unit_cells: int) -> list[dict[str, Any]]:
    """Return the ``codecs`` of an array's ``zarr.json``."""
    endian: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    check: dict[str, Any] = {"name": "crc32c"}
    if spec.numpy.itemsize == 1:
        endian.pop("configuration")
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
    inner = [endian, zstd if spec.sparse else check]
    rows = spec.inner_rows(unit_cells)
    if rows == spec.rows(unit_cells):
        return inner
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, check]
    configuration = {"chunk_shape": [rows, *spec.shape], "codecs": inner, "index_codecs": index, "index_location": "end"}
    return [{"name": "sharding_indexed", "configuration": configuration}]


def encode(spec: ArraySpec, unit_cells: int, values: np.ndarray) -> bytes:
    """Return the shard whose first rows are ``values`` (rows × row shape); the rest is filled, or absent for entries."""
    rows, total = spec.inner_rows(unit_cells), spec.rows(unit_cells)
    present = total if not spec.entries or total == rows else -(-len(values) // rows) * rows
    whole = np.full((present, *spec.shape), spec.fill, spec.numpy)
    whole[: len(values)] = values
    chunks = [_pack(spec, whole[at : at + rows].tobytes()) for at in range(0, present, rows)]
    if total == rows:
        return chunks[0]
    index = np.full((total // rows, 2), _ABSENT, np.uint64)
    sizes = np.array([len(c) for c in chunks], np.uint64)
    index[: len(chunks)] = np.stack([np.cumsum(sizes) - sizes, sizes], 1)
    table = index.astype("<u8").tobytes()
    return b"".join([*chunks, table, _crc(table)])


def decode(spec: ArraySpec, unit_cells: int, data: bytes | np.ndarray) -> np.ndarray:
    """Return the rows of a shard as a writable array (of entries, those in chunks that are present).

    Raises
    ------
    StoreError: a checksum inside the shard is wrong
    """
    parts = list(blocks(spec, unit_cells, data))
    out = np.empty((sum(map(len, parts)), *spec.shape), spec.numpy.newbyteorder("="))
    at = 0
    for part in parts:
        out[at : at + len(part)] = part
        at += len(part)
    return out


def blocks(spec: ArraySpec, unit_cells: int, data: bytes | np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of a shard chunk by chunk, without a copy where nothing is compressed.

    Raises
    ------
    StoreError: a checksum inside the shard is wrong; the chunks before it have been yielded
    """
    rows, count = spec.inner_rows(unit_cells), spec.rows(unit_cells) // spec.inner_rows(unit_cells)
    shape = (rows, *spec.shape)
    size = int(np.prod(shape, dtype=np.int64)) * spec.numpy.itemsize
    whole = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    for part in [whole] if count == 1 else _split(spec, whole, count):
        raw = _unpack(spec, part)
        if len(raw) != size:
            raise StoreError(f"{spec.name}: a chunk holds {len(raw):,} bytes where {size:,} belong")
        yield np.frombuffer(raw, spec.numpy).reshape(shape)


def _split(spec: ArraySpec, data: np.ndarray, count: int) -> list[np.ndarray]:
    index, check = data[-16 * count - 4 : -4], data[-4:].tobytes()
    if _crc(index) != check:
        raise StoreError(f"{spec.name}: a shard's index is damaged")
    table = np.frombuffer(index.tobytes(), "<u8").reshape(count, 2)
    there = table[table[:, 0] != _ABSENT].astype(np.int64).tolist()
    if len(there) != count and not spec.entries:
        raise StoreError(f"{spec.name}: a shard lacks chunks")
    return [data[offset : offset + size] for offset, size in there]


def _crc(data: bytes | np.ndarray) -> bytes:
    import google_crc32c

    value: int = google_crc32c.value(data)
    return value.to_bytes(4, "little")


def _zstd() -> Any:
    from numcodecs.zstd import Zstd

    return Zstd(level=1, checksum=True)


def _pack(spec: ArraySpec, raw: bytes) -> bytes:
    return bytes(_zstd().encode(raw)) if spec.sparse else raw + _crc(raw)


def _unpack(spec: ArraySpec, data: np.ndarray) -> bytes | np.ndarray:
    if not spec.sparse:
        if len(data) < 4 or _crc(data[:-4]) != data[-4:].tobytes():
            raise StoreError(f"{spec.name}: a chunk is damaged")
        return data[:-4]
    try:
        return bytes(_zstd().decode(np.ascontiguousarray(data)))
    except RuntimeError:
        raise StoreError(f"{spec.name}: a chunk is damaged") from None
