"""What the fast writer does: the bytes of an obviously simple encoder, no copies, nothing named before it is durable."""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.zstd import Zstd

from codi_engine.store import files, layout
from codi_engine.store.codec import check, decode, encode, in_place, parts, plain_size
from codi_engine.store.errors import StoreError
from codi_engine.store.files import Batch, CheckedFiles, facts
from codi_engine.store.layout import CHUNK_ENTRIES, LEDGER, PARTIAL, ArraySpec
from codi_engine.store.reader import RunReader
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter

NAN = float("nan")


def naive_crc32c(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return struct.pack("<I", crc ^ 0xFFFFFFFF)


def naive_shard(spec: ArraySpec, unit_cells: int, values: np.ndarray) -> bytes:
    """Fill a whole unit, cut it into chunks, check or compress each, write their index: the specification, word by word."""
    whole = np.full((spec.rows(unit_cells), *spec.shape), spec.fill, spec.numpy)
    whole[: len(values)] = values
    rows = spec.inner_rows(unit_cells)
    chunks: list[bytes | None] = []
    for first in range(0, len(whole), rows):
        raw = b"".join(value.tobytes() for value in whole[first : first + rows].ravel())
        if spec.entries and len(whole) > rows and first >= len(values):
            chunks.append(None)
        else:
            chunks.append(Zstd(level=1, checksum=True).encode(raw) if spec.sparse else raw + naive_crc32c(raw))
    if len(chunks) == 1:
        return bytes(chunks[0] or b"")
    data, index = b"", b""
    for chunk in chunks:
        index += struct.pack("<QQ", 2**64 - 1, 2**64 - 1) if chunk is None else struct.pack("<QQ", len(data), len(chunk))
        data += chunk or b""
    return data + index + naive_crc32c(index)


@st.composite
def shards(draw: st.DrawFn) -> tuple[ArraySpec, int, np.ndarray]:
    """Draw arrays that lie in memory as on disk, and others: strided, transposed, big-endian, of a smaller type, cut short."""
    dtype = draw(st.sampled_from(["float64", "float32", "float16", "int32", "uint16", "uint8", "bool"]))
    shape = draw(st.lists(st.integers(1, 4), max_size=2).map(tuple))
    cells = draw(st.integers(1, 12))
    entries = draw(st.sampled_from([0, 0, 3])) if not shape else 0
    spec = ArraySpec(
        "a/b", ("entry" if entries else "cell", *"xy"[: len(shape)]), shape, dtype, draw(st.sampled_from([0, 1])), draw(st.booleans()), {}, entries
    )
    rows = draw(st.sampled_from([spec.rows(cells), draw(st.integers(0, spec.rows(cells)))]))
    values = np.random.default_rng(draw(st.integers(0, 9))).integers(0, 2 if dtype == "bool" else 90, (rows, *shape)).astype(dtype)
    kind = draw(st.sampled_from(["as it is", "strided", "transposed", "big-endian", "smaller", "read-only"]))
    if kind == "strided":
        values = np.repeat(values, 2, 0)[::2]
    elif kind == "transposed":
        values = np.asfortranarray(values)
    elif kind == "big-endian":
        values = values.astype(values.dtype.newbyteorder(">"))
    elif kind == "smaller" and np.can_cast("uint8", dtype, "safe"):
        values = values.astype(np.uint8)
    elif kind == "read-only":
        values.flags.writeable = False
    return spec, cells, values


@settings(max_examples=150, deadline=None)
@given(case=shards(), chunk=st.sampled_from([1, 40, 4 << 20]), room=st.sampled_from([4, 1 << 16]))
def test_bytes_are_those_of_the_simple_encoder(case: tuple[ArraySpec, int, np.ndarray], chunk: int, room: int) -> None:
    spec, cells, values = case
    before = layout.CHUNK_BYTES, layout.CHUNK_ENTRIES
    layout.CHUNK_BYTES, layout.CHUNK_ENTRIES = chunk, room
    try:
        if spec.entries:  # its room depends on the size of a chunk
            values = values[: spec.rows(cells)]
        shard = encode(spec, cells, values)
        assert shard == naive_shard(spec, cells, values)
        np.testing.assert_array_equal(decode(spec, cells, shard)[: len(values)], values)
    finally:
        layout.CHUNK_BYTES, layout.CHUNK_ENTRIES = before


@pytest.mark.parametrize("much", [1, 1 << 30], ids=["hashed by another thread", "hashed where it is written"])
def test_files_and_facts_are_those_of_the_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, much: int) -> None:
    monkeypatch.setattr(files, "_MUCH", much)
    monkeypatch.setattr(layout, "CHUNK_BYTES", 1000)
    specs = [ArraySpec(f"a{i}", ("cell", "x"), (50,), "float32", NAN, bool(i % 2)) for i in range(20)]
    arrays = {s.name: np.random.default_rng(i).standard_normal((13 if i % 3 else 16, 50), np.float32) for i, s in enumerate(specs)}
    with RunWriter.open(tmp_path / "run", identity={}, unit_cells=16, experiment="", provenance={}) as writer:
        writer.add_plan({}, 2, specs, {})
        writer.commit(1, "sweep", Content({n: v[:13] for n, v in arrays.items()}))
        writer.commit(0, "sweep", Content({n: np.resize(v, (16, 50)) for n, v in arrays.items()}))
        stated = {**writer.committed[0]["files"], **writer.committed[1]["files"]}
    for spec in specs:
        for unit, values in ((0, np.resize(arrays[spec.name], (16, 50))), (1, arrays[spec.name][:13])):
            data = (tmp_path / "run" / spec.shard(unit)).read_bytes()
            assert data == naive_shard(spec, 16, values)
            assert stated[spec.shard(unit)] == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_rows_that_lie_right_are_not_copied() -> None:
    values = np.zeros((64, 12, 6, 768), np.float32)
    spec = ArraySpec("a", ("cell", "layer", "step", "width"), values.shape[1:], "float32", NAN)
    pieces = [p for p in parts(spec, 64, values) if isinstance(p, memoryview)]
    assert len(pieces) == 64 // spec.inner_rows(64) > 1
    assert all(np.shares_memory(np.asarray(piece), values) for piece in pieces)


@pytest.mark.parametrize(("lies", "copies"), [("right", 0.25), ("transposed", 1.25), ("half full", 0.5)])
def test_a_commit_copies_at_most_once(tmp_path: Path, lies: str, copies: float) -> None:
    values = np.ones((64, 12, 6, 768), np.float32)
    spec = ArraySpec("a", ("cell", "layer", "step", "width"), values.shape[1:], "float32", NAN)
    given = {"right": values, "transposed": np.ones(values.shape[::-1], np.float32).T, "half full": values[:32]}[lies]
    with RunWriter.open(tmp_path / "run", identity={}, unit_cells=64, experiment="", provenance={}) as writer:
        writer.add_plan({}, 1, [spec], {})
        tracemalloc.start()
        try:
            writer.commit(0, "sweep", Content({"a": given}))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < copies * values.nbytes, f"{peak / values.nbytes:.2f} of the unit was held at once"


class Watched:
    """Notes what is done to files, by name, and may fail at the n-th write."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fail: int = 0) -> None:
        self.done: list[tuple[str, str]] = []
        self.names: dict[int, str] = {}
        self.writes, self.fired = 0, False
        real_open, real_write, real_sync, real_replace = os.open, os.write, os.fsync, os.replace

        def opened(path: Any, *args: Any, **kwargs: Any) -> int:
            descriptor = real_open(path, *args, **kwargs)
            self.names[descriptor] = str(path)
            return descriptor

        def write(descriptor: int, data: Any) -> int:
            self.writes += 1
            if self.writes == fail:
                self.fired = True
                raise OSError(errno.ENOSPC, "No space left on device")
            return real_write(descriptor, data[: max(1, len(data) // 2)])  # a disk may take less than it is given

        def sync(descriptor: int) -> None:
            real_sync(descriptor)
            self.done.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

        def replace(old: Any, new: Any) -> None:
            real_replace(old, new)
            self.done.append(("rename", str(new)))

        for name, function in {"open": opened, "write": write, "fsync": sync, "replace": replace}.items():
            monkeypatch.setattr(os, name, function)


def planned(path: Path) -> tuple[RunWriter, dict[str, np.ndarray]]:
    specs = [ArraySpec(f"a{i}", ("cell", "x"), (50,), "float32", NAN) for i in range(12)]
    writer = RunWriter.open(path, identity={}, unit_cells=16, experiment="", provenance={})
    writer.add_plan({}, 2, specs, {})
    return writer, {s.name: np.ones((16, 50), np.float32) for s in specs}


def test_durable_before_named_and_named_before_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MUCH", 1)
    writer, arrays = planned(tmp_path / "run")
    with writer:
        seen = Watched(monkeypatch)
        writer.commit(0, "sweep", Content(arrays, {"key": ["k"] * 16}))
        monkeypatch.undo()
        stated = writer.committed[0]["files"]
    assert len(stated) == 13
    recorded = seen.done.index(("sync", str(tmp_path / "run" / LEDGER)))
    renames = [seen.done.index(("rename", str(tmp_path / "run" / name))) for name in stated]
    for name, renamed in zip(stated, renames, strict=True):
        path = tmp_path / "run" / name
        assert seen.done.index(("sync", str(path) + PARTIAL)) < min(renames)
        folders = [i for i, done in enumerate(seen.done) if done == ("sync", str(path.parent))]
        assert len(folders) == 1, "each folder once"
        assert renamed < folders[0] < recorded
    assert ("sync", str(tmp_path / "run")) in seen.done[:recorded], "the folder of texts is new in the run's"


@pytest.mark.parametrize("much", [1, 1 << 30])
@pytest.mark.parametrize("fail", [1, 7, 30])
def test_a_disk_that_fills_leaves_nothing_and_the_unit_can_be_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, much: int, fail: int) -> None:
    writer, arrays = planned(tmp_path / "run")
    with writer:
        before = sorted(p.name for p in (tmp_path / "run").rglob("*") if p.is_file())
        monkeypatch.setattr(files, "_MUCH", much)
        seen = Watched(monkeypatch, fail)
        with pytest.raises(StoreError, match="the disk is full"):
            writer.commit(0, "sweep", Content(arrays))
        assert seen.fired
        monkeypatch.undo()
        assert sorted(p.name for p in (tmp_path / "run").rglob("*") if p.is_file()) == before
        writer.commit(0, "sweep", Content(arrays))
    assert RunReader(tmp_path / "run").verify() == []


def test_without_threads_the_same_files_are_written(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    batch = Batch(tmp_path)
    batch.write("x/a", b"one")
    batch.write("y/z/b", iter([b"t", b"wo"]))
    found = batch.finish()
    assert {n: (tmp_path / n).read_bytes() for n in found} == {"x/a": b"one", "y/z/b": b"two"}
    assert found["y/z/b"] == {"size": 3, "sha256": hashlib.sha256(b"two").hexdigest()}


@settings(max_examples=100, deadline=None)
@given(case=shards(), chunk=st.sampled_from([1, 40, 4 << 20]), at=st.floats(0, 1, exclude_max=True))
def test_reading_in_place_is_decoding(case: tuple[ArraySpec, int, np.ndarray], chunk: int, at: float) -> None:
    spec, cells, values = case
    before, layout.CHUNK_BYTES = layout.CHUNK_BYTES, chunk
    try:
        shard, made = encode(spec, cells, values), in_place(spec, cells)
        assert (made is None) == bool(spec.sparse or spec.entries)
        if made is None:
            return
        fill(made[1], shard)
        check(spec, made[1])
        np.testing.assert_array_equal(made[0], decode(spec, cells, shard))
        assert made[0].dtype == decode(spec, cells, shard).dtype
        damaged = bytearray(shard)
        damaged[int(at * len(shard))] ^= 16
        fill(made[1], bytes(damaged))
        with pytest.raises(StoreError, match="damaged"):
            check(spec, made[1])
    finally:
        layout.CHUNK_BYTES = before


def fill(places: list[memoryview], data: bytes) -> None:
    at = 0
    for place in places:
        place[:] = data[at : at + len(place)]
        at += len(place)
    assert at == len(data)


@pytest.mark.parametrize("verify", ["full", "size"])
@pytest.mark.parametrize("harm", ["flipped", "cut", "longer", "gone"])
def test_harm_to_a_shard_is_named_once(tmp_path: Path, verify: Literal["full", "size"], harm: str) -> None:
    writer, arrays = planned(tmp_path / "run")
    with writer:
        writer.commit(0, "sweep", Content(arrays))
        path = tmp_path / "run" / writer.specs["a3"].shard(0)
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    else:
        path.write_bytes({"flipped": data[:99] + bytes([data[99] ^ 1]) + data[100:], "cut": data[:-1], "longer": data + b"x"}[harm])
    reader = RunReader(tmp_path / "run", verify)
    with pytest.raises(StoreError) as caught:
        reader.read_unit("a3", 0)
    assert str(caught.value).count(path.name) == 1
    np.testing.assert_array_equal(reader.read_unit("a4", 0), arrays["a4"])


def test_no_room_is_made_for_rows_that_are_not_there(tmp_path: Path) -> None:
    spec, data = ArraySpec("x", ("cell", "width"), (1 << 9,), "float32", 0.0), b"short"
    (tmp_path / "shard").write_bytes(data)
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=r"shard: is damaged: it has 5 bytes where its rows take 2,147,\d{3},\d{3}"):
            CheckedFiles(tmp_path).read_rows("shard", facts(data), spec, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@settings(max_examples=100, deadline=None)
@given(case=shards(), chunk=st.sampled_from([1, 40, 4 << 20]))
def test_the_size_of_a_shard_is_known_before_it_is_read(case: tuple[ArraySpec, int, np.ndarray], chunk: int) -> None:
    spec, cells, values = case
    before, layout.CHUNK_BYTES = layout.CHUNK_BYTES, chunk
    try:
        assert plain_size(spec, cells) == (None if spec.sparse or spec.entries else len(encode(spec, cells, values)))
    finally:
        layout.CHUNK_BYTES = before


def test_a_shard_that_is_shorter_than_its_index_is_refused() -> None:
    spec = ArraySpec("x", ("entry",), (), "uint32", 0, True, {}, CHUNK_ENTRIES)
    index = struct.pack("<2Q", 0, 8)
    with pytest.raises(StoreError, match="x: a shard's index is damaged"):
        decode(spec, 4, index + naive_crc32c(index))
