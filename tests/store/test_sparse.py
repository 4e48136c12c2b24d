"""Sparse codes on disk: what is written is read, by us and by zarr, and damage is noticed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from codi_engine.store import sparse
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import CHUNK_ENTRIES, ArraySpec
from codi_engine.store.reader import RunReader
from codi_engine.store.sparse import sparse_specs, to_codes, to_dense
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter

NAME = "activations/sae"


def written(path: Path, rows: list[np.ndarray], unit_cells: int) -> Path:
    width = rows[0].shape[1]
    specs = [*sparse_specs(NAME, width), ArraySpec("cells/status", ("cell",), (), "uint8", 0), ArraySpec("x", ("cell", "width"), (width,), "float32", 0)]
    with RunWriter.open(path, identity={"a": 1}, unit_cells=unit_cells, experiment="name: x\n", provenance={}) as writer:
        writer.add_plan({"n": 1}, len(rows), specs, {})
        for unit, values in enumerate(rows):
            status = np.ones(len(values), np.uint8)
            writer.commit(unit, "sweep", Content({"cells/status": status, "x": values, **to_codes(NAME, values, unit, unit_cells)}))
    return path


def codes(rng: np.random.Generator, rows: int, width: int, density: float) -> np.ndarray:
    return np.where(rng.random((rows, width)) < density, rng.standard_normal((rows, width)), 0).astype(np.float32)


@pytest.mark.parametrize("width", [7, 3000, 70_000])
@pytest.mark.parametrize("density", [0.0, 0.02, 1.0])
def test_what_is_written_is_read(tmp_path: Path, width: int, density: float) -> None:
    rng = np.random.default_rng(0)
    rows = [codes(rng, n, width, density) for n in (40, 40, 13)]
    if density:
        rows[1][3, 2] = np.nan
    reader = RunReader(written(tmp_path / "run", rows, 40))
    for unit, values in enumerate(rows):
        ptr, index, value = reader.codes_of(NAME, unit)
        np.testing.assert_array_equal(to_dense(ptr, index, value, width)[: len(values)], values)
    assert not reader.verify()


def test_zarr_reads_the_entries(tmp_path: Path) -> None:
    rows = [codes(np.random.default_rng(1), n, 3000, 0.03) for n in (60, 22)]
    path = written(tmp_path / "run", rows, 60)
    group: Any = zarr.open_group(path / "data.zarr", mode="r")
    ptr, index, value = (group[f"{NAME}/{part}"] for part in ("ptr", "index", "value"))
    assert index.shape == (2 * -(-60 * 3000 // CHUNK_ENTRIES) * CHUNK_ENTRIES,)
    first, last = ptr[60 + 5]
    dense = np.zeros(3000, np.float32)
    dense[index[first:last]] = value[first:last]
    np.testing.assert_array_equal(dense, rows[1][5])


def test_absent_chunks_take_no_room(tmp_path: Path) -> None:
    path = written(tmp_path / "run", [codes(np.random.default_rng(2), 100, 20_000, 0.001)], 100)
    files = {p.parent.name: p.stat().st_size for p in (path / "data.zarr" / NAME).rglob("c.0")}
    assert files["value"] < 100 * 20_000 * 4 / 50


def test_rows_are_copied_to_their_places(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = rng.standard_normal((64, 50_000)).astype(np.float32)  # several inner chunks
    reader = RunReader(written(tmp_path / "run", [values], 64))
    rows, into = np.array([0, 1, 2, 30, 31, 63]), np.array([4, 5, 6, 0, 2, 1])
    out = np.zeros((8, 50_000), np.float32)
    assert reader.read_into("x", 0, rows, out, into) > values.nbytes
    np.testing.assert_array_equal(out[into], values[rows])
    assert not out[[3, 7]].any()


@pytest.mark.parametrize("name", ["x", f"{NAME}/value", f"{NAME}/index", f"{NAME}/ptr"])
def test_damage_is_named(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / "run", [codes(np.random.default_rng(4), 64, 5000, 0.02)], 64)
    shard = next((path / "data.zarr" / name).glob("c.0*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 4
    shard.write_bytes(content)
    reader = RunReader(path, verify="size")
    rows = np.arange(64)
    read = (lambda: reader.read_into("x", 0, rows, np.empty((64, 5000), np.float32), rows)) if name == "x" else (lambda: reader.codes_of(NAME, 0))
    with pytest.raises(StoreError, match=str(shard.name)):
        read()


def test_entries_are_not_cells(tmp_path: Path) -> None:
    reader = RunReader(written(tmp_path / "run", [codes(np.random.default_rng(5), 4, 9, 0.5)], 4))
    with pytest.raises(StoreError, match="codes_of"):
        reader.read(f"{NAME}/value")
    with pytest.raises(StoreError, match="'entry'"):
        ArraySpec("a", ("cell",), (), "float32", 0, entries=5)


def test_codes_of_all_cells_need_room_for_their_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [codes(np.random.default_rng(n), 6, 9, 0.5) for n in range(3)]
    reader = RunReader(written(tmp_path / "run", [rows[0], rows[1], rows[2][:4]], 6))
    slots, values = reader.read_codes(NAME)
    np.testing.assert_array_equal(slots, np.arange(16))
    np.testing.assert_array_equal(values, np.concatenate(rows)[:16])
    monkeypatch.setattr(sparse, "MOST_DENSE", values.nbytes - 1)
    with pytest.raises(StoreError, match=r"activations/sae: 16 cells of 9 features would take .* GB with their zeros; read it by units with codes_of"):
        reader.read_codes(NAME)
