"""The bytes of a shard: one unit's rows of an array, as the Zarr v3 specification lays them out.

A small unit is a single chunk (little-endian values, then crc32c, or zstd with its checksum); a large one is a
``sharding_indexed`` shard of such chunks with its index at the end. Both are written here rather than through a zarr
array: each shard is encoded once, hashed once, and its bytes depend on its rows alone.

References
----------
https://zarr-specs.readthedocs.io: codecs ``bytes``, ``crc32c``, ``zstd``, ``sharding_indexed`` 1.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from codi_engine.store.errors import StoreError
from codi_engine.store.frames import content_size
from codi_engine.store.layout import ArraySpec

#: a piece of a file; a memoryview is one of single bytes
Part = bytes | memoryview
#: what the index says of a chunk that is not there
_ABSENT = np.uint64(2**64 - 1)
#: what the compressed chunks of a shard may hold: so many bytes, and so many more for each stored one
_ROOM, _RATIO = 256 << 20, 400


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
    return b"".join(parts(spec, unit_cells, values))


def parts(spec: ArraySpec, unit_cells: int, values: np.ndarray) -> Iterator[Part]:
    """Yield the bytes of a shard piece by piece, each made when it is asked for.

    Rows that lie in memory as they lie on disk are not copied: their pieces are views of ``values``, which must not change
    while they are used. Other rows are copied a chunk at a time.
    """
    rows, total = spec.inner_rows(unit_cells), spec.rows(unit_cells)
    count = total // rows
    present = -(-len(values) // rows) if spec.entries and count > 1 else count
    sizes, blank = [], None
    for at in range(0, present * rows, rows):
        here = values[at : at + rows]
        if len(here):
            chunk = _pack(spec, _laid_out(spec, rows, here))
        else:  # the chunks that nobody filled are all alike
            chunk = blank = blank or _pack(spec, _laid_out(spec, rows, here))
        sizes.append(sum(map(len, chunk)))
        yield from chunk
    if count > 1:
        yield _index(np.array(sizes, np.uint64), count)


def _laid_out(spec: ArraySpec, rows: int, values: np.ndarray) -> np.ndarray:
    """Return the bytes of a chunk (uint8), as a view where ``values`` fills it and is laid out like it."""
    if len(values) < rows or values.dtype != spec.numpy or not values.flags.c_contiguous:
        whole = np.empty((rows, *spec.shape), spec.numpy)
        whole[: len(values)] = values
        whole[len(values) :] = spec.fill
        values = whole
    return values.reshape(-1).view(np.uint8)


def _index(sizes: np.ndarray, count: int) -> bytes:
    """Return the index of a shard's ``count`` chunks, of which the first have these sizes and the others are absent."""
    index = np.full((count, 2), _ABSENT, np.uint64)
    index[: len(sizes)] = np.stack([np.cumsum(sizes) - sizes, sizes], 1)
    table = index.astype("<u8").tobytes()
    return table + _crc(table)


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


def plain_size(spec: ArraySpec, unit_cells: int) -> int | None:
    """Return the bytes of every shard of an array whose rows lie in it as in memory; None where they must be decoded."""
    if spec.sparse or spec.entries or not spec.numpy.isnative:
        return None
    rows = spec.rows(unit_cells)
    count = rows // spec.inner_rows(unit_cells)
    return math.prod((rows, *spec.shape)) * spec.numpy.itemsize + 4 * count + (16 * count + 4 if count > 1 else 0)


def in_place(spec: ArraySpec, unit_cells: int) -> tuple[np.ndarray, list[memoryview]] | None:
    """Return an array for the rows of a shard, and where the pieces of its file belong, in their order; None where they must be decoded.

    Chunks are read into the array itself, checksums and index beside it; :func:`check` compares them.
    """
    if plain_size(spec, unit_cells) is None:
        return None
    rows, count = spec.inner_rows(unit_cells), spec.rows(unit_cells) // spec.inner_rows(unit_cells)
    out = np.empty((count * rows, *spec.shape), spec.numpy.newbyteorder("="))
    places = []
    for chunk in out.reshape(count, -1).view(np.uint8):
        places += [chunk.data, memoryview(bytearray(4))]
    return out, [*places, memoryview(bytearray(16 * count + 4))] if count > 1 else places


def check(spec: ArraySpec, places: list[memoryview]) -> None:
    """Compare the checksums that were read into the places of :func:`in_place`.

    Raises
    ------
    StoreError: one is wrong
    """
    count = len(places) // 2
    for chunk, stated in zip(places[: 2 * count : 2], places[1 : 2 * count : 2], strict=True):
        if _crc(np.asarray(chunk)) != stated:
            raise StoreError(f"{spec.name}: a chunk is damaged")
    if count > 1 and places[-1] != _index(np.full(count, len(places[0]) + 4, np.uint64), count):
        raise StoreError(f"{spec.name}: a shard's index is damaged")


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
    parts = [whole] if count == 1 else _split(spec, whole, count)
    if spec.sparse and size * len(parts) > _ROOM + _RATIO * len(whole):
        raise StoreError(f"{spec.name}: claims {size * len(parts):,} bytes in {len(whole):,} stored ones; it is made to exhaust memory")
    for part in parts:
        raw = _unpack(spec, part, size)
        if len(raw) != size:
            raise StoreError(f"{spec.name}: a chunk holds {len(raw):,} bytes where {size:,} belong")
        yield np.frombuffer(raw, spec.numpy).reshape(shape)


def _split(spec: ArraySpec, data: np.ndarray, count: int) -> list[np.ndarray]:
    index, check = data[-16 * count - 4 : -4], data[-4:].tobytes()
    if len(index) != 16 * count or _crc(index) != check:
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


def _pack(spec: ArraySpec, raw: np.ndarray) -> tuple[Part, ...]:
    return (bytes(_zstd().encode(raw)),) if spec.sparse else (raw.data, _crc(raw))


def _unpack(spec: ArraySpec, data: np.ndarray, size: int) -> bytes | np.ndarray:
    if not spec.sparse:
        if len(data) < 4 or _crc(data[:-4]) != data[-4:].tobytes():
            raise StoreError(f"{spec.name}: a chunk is damaged")
        return data[:-4]
    if content_size(data) != size:  # a frame of another size, or of none, would be unpacked to any size
        raise StoreError(f"{spec.name}: a chunk does not hold the {size:,} bytes that belong there")
    try:
        return bytes(_zstd().decode(np.ascontiguousarray(data), np.empty(size, np.uint8)))
    except (RuntimeError, ValueError):
        raise StoreError(f"{spec.name}: a chunk is damaged") from None
