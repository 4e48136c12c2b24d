"""The bytes of a shard: one unit's rows of an array, as the Zarr v3 specification lays them out.

A small unit is a single chunk (little-endian values, then crc32c, or zstd with its checksum); a large one is a
``sharding_indexed`` shard of such chunks with its index at the end. Both are written here rather than through a zarr
array: each shard is encoded once, hashed once, and its bytes depend on its rows alone.

References
----------
https://zarr-specs.readthedocs.io: codecs ``bytes``, ``crc32c``, ``zstd``, ``sharding_indexed`` 1.0.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import ArraySpec


def codecs(spec: ArraySpec, unit_cells: int) -> list[dict[str, Any]]:
    """Return the ``codecs`` of an array's ``zarr.json``."""
    endian: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    check: dict[str, Any] = {"name": "crc32c"}
    if spec.numpy.itemsize == 1:
        endian.pop("configuration")
    zstd = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
    inner = [endian, zstd if spec.sparse else check]
    rows = spec.inner_rows(unit_cells)
    if rows == unit_cells:
        return inner
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, check]
    configuration = {"chunk_shape": [rows, *spec.shape], "codecs": inner, "index_codecs": index, "index_location": "end"}
    return [{"name": "sharding_indexed", "configuration": configuration}]


def encode(spec: ArraySpec, unit_cells: int, values: np.ndarray) -> bytes:
    """Return the shard of ``unit_cells`` rows whose first are ``values`` (rows × row shape); the rest is filled."""
    whole = np.full((unit_cells, *spec.shape), spec.fill, spec.numpy)
    whole[: len(values)] = values
    rows = spec.inner_rows(unit_cells)
    chunks = [_pack(spec, whole[at : at + rows].tobytes()) for at in range(0, unit_cells, rows)]
    if len(chunks) == 1:
        return chunks[0]
    sizes = np.array([len(c) for c in chunks], np.uint64)
    index = np.stack([np.cumsum(sizes) - sizes, sizes], 1).astype("<u8").tobytes()
    return b"".join([*chunks, index, _crc(index)])


def decode(spec: ArraySpec, unit_cells: int, data: bytes) -> np.ndarray:
    """Return the rows of a shard as a writable array.

    Raises
    ------
    StoreError: a checksum inside the shard is wrong
    """
    rows = spec.inner_rows(unit_cells)
    count = unit_cells // rows
    out = np.empty((unit_cells, *spec.shape), spec.numpy.newbyteorder("="))
    parts = [data] if count == 1 else _split(spec, data, count)
    for number, part in enumerate(parts):
        block = out[number * rows : (number + 1) * rows]
        raw = _unpack(spec, part)
        if len(raw) != block.nbytes:
            raise StoreError(f"{spec.name}: a chunk holds {len(raw):,} bytes where {block.nbytes:,} belong")
        block[...] = np.frombuffer(raw, spec.numpy).reshape(block.shape)
    return out


def _split(spec: ArraySpec, data: bytes, count: int) -> list[bytes]:
    index, check = data[-16 * count - 4 : -4], data[-4:]
    if _crc(index) != check:
        raise StoreError(f"{spec.name}: a shard's index is damaged")
    table = np.frombuffer(index, "<u8").reshape(count, 2).tolist()
    return [data[offset : offset + size] for offset, size in table]


def _crc(data: bytes) -> bytes:
    import google_crc32c

    value: int = google_crc32c.value(data)
    return value.to_bytes(4, "little")


def _zstd() -> Any:
    from numcodecs.zstd import Zstd  # type: ignore[import-untyped]

    return Zstd(level=1, checksum=True)


def _pack(spec: ArraySpec, raw: bytes) -> bytes:
    return bytes(_zstd().encode(raw)) if spec.sparse else raw + _crc(raw)


def _unpack(spec: ArraySpec, data: bytes) -> bytes | memoryview:
    if not spec.sparse:
        raw = memoryview(data)[:-4]
        if _crc(bytes(raw)) != data[-4:]:
            raise StoreError(f"{spec.name}: a chunk is damaged")
        return raw
    try:
        return bytes(_zstd().decode(data))
    except RuntimeError:
        raise StoreError(f"{spec.name}: a chunk is damaged") from None
