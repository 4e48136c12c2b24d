"""Reading: only committed units, only undamaged bytes, and xarray sees the same."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from codi_engine.store.errors import StoreError
from codi_engine.store.reader import RunReader
from codi_engine.store.unitfiles import Content
from codi_engine.store.verifying import verify
from codi_engine.store.writer import RunWriter
from tests.store.sample import CAPTURE, CELLS, CODES, IDENTITY, SOURCE, content, labels, rows_of, specs, unit_arrays, unit_texts, write


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "run"
    write(path, 3)
    return path


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    shutil.copytree(run, tmp_path / "copy")
    return tmp_path / "copy"


def test_finished_cells_and_their_values(run: Path) -> None:
    reader = RunReader(run)
    expected = np.concatenate([u * CELLS + np.arange(rows_of(u)) for u in range(3)])
    np.testing.assert_array_equal(reader.slots, expected)
    slots, values = reader.read(CAPTURE)
    np.testing.assert_array_equal(slots, expected)
    np.testing.assert_array_equal(values, np.concatenate([unit_arrays(u, rows_of(u))[CAPTURE] for u in range(3)]))
    assert reader.read(SOURCE)[0].max() < CELLS
    assert (reader.read("cells/layer", stages={"sweep"})[0] >= CELLS).all()
    assert set(reader.codes("layer")[: rows_of(0)]) == {-1}
    assert np.isnan(reader.column(SOURCE)[rows_of(0) :]).all()
    assert reader.labels("layer") == [0, 1, "0+1"]
    assert list(reader.stages[[0, -1]]) == ["baseline", "sweep"]
    assert SOURCE in reader.arrays
    assert reader.attrs(CAPTURE) == {"coords": {"step": [0, 1]}}
    texts = reader.texts()
    assert texts.column("slot").to_pylist() == expected.tolist()
    assert texts.column("text")[0].as_py() == unit_texts(0)["text"][0]
    with pytest.raises(StoreError, match="has no array"):
        reader.read("cells/nothing")


def test_a_directory_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        RunReader(tmp_path)


def test_only_committed_units_are_seen_while_writing(tmp_path: Path) -> None:
    writer = RunWriter.open(tmp_path / "run", identity=IDENTITY, unit_cells=CELLS, experiment="", provenance={})
    with writer:
        writer.add_plan({}, 3, specs(), labels(3))
        writer.commit(0, "sweep", Content(unit_arrays(0)))
        shard = writer.specs["cells/status"].shard(0)
        (tmp_path / "run" / shard.replace("c.0", "c.1")).write_bytes((tmp_path / "run" / shard).read_bytes())
        reader = RunReader(tmp_path / "run")
        assert len(reader.slots) == CELLS
        assert reader.verify() == []
        writer.commit(2, "sweep", Content(unit_arrays(2)))
        assert list(reader.committed) == [0]
        assert list(RunReader(tmp_path / "run").committed) == [0, 2]


def test_a_flipped_byte_in_any_file_is_found(run: Path, copy: Path) -> None:
    rng = np.random.default_rng(0)
    kinds = [*content(run), "provenance.json"]
    assert {Path(k).name for k in kinds} >= {"ledger", "zarr.json", "experiment.yaml", "provenance.json", "unit-000001.arrow"}
    for name in kinds:
        path = copy / name
        whole = path.read_bytes()
        for at in rng.integers(0, len(whole), 4):
            raw = bytearray(whole)
            raw[at] ^= 1 << int(rng.integers(8))
            path.write_bytes(raw)
            assert name in problems(copy), f"{name} at byte {at}"
        path.write_bytes(whole)
    assert RunReader(copy).verify() == []


def problems(path: Path) -> str:
    try:
        return "\n".join(RunReader(path).verify())
    except StoreError as error:
        return str(error)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
@pytest.mark.parametrize("name", [CAPTURE, CODES, "cells/status"])
def test_a_damaged_shard_is_an_error_and_never_a_fill_value(copy: Path, name: str, damage: str) -> None:
    path = copy / RunReader(copy).spec(name).shard(1)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 4
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(raw[:-1] if damage == "truncate" else raw)
    for how in ("full", "size"):
        with pytest.raises(StoreError, match=r"is missing|is damaged|bytes where"):
            RunReader(copy, verify=how).read(name)
    with RunWriter.open(copy, identity=IDENTITY, unit_cells=CELLS, experiment="", provenance={}) as writer, pytest.raises(StoreError, match=r"c\.1"):
        writer.read(name, 1)


def test_the_writer_mends_metadata_from_the_ledger(run: Path, copy: Path) -> None:
    (copy / "experiment.yaml").write_text("name: changed\n")
    (copy / "data.zarr/cells/status/zarr.json").unlink()
    with pytest.raises(StoreError, match=r"repeating the run's command, or `codi-engine repair .*`, mends it"):
        RunReader(copy)
    RunWriter.open(copy, identity=IDENTITY, unit_cells=CELLS, experiment="", provenance={}).close()
    assert content(copy) == content(run)


def test_verify_names_foreign_and_torn(copy: Path) -> None:
    (copy / "data.zarr/cells/c.0").write_bytes(b"x")
    (copy / "texts/notes.txt").write_bytes(b"x")
    with (copy / "ledger").open("ab") as file:
        file.write(b'{"kind":"unit"')
    found = [(f.file, f.kind) for f in verify(copy)]
    assert found == [("data.zarr/cells/c.0", "foreign"), ("ledger", "interrupted"), ("texts/notes.txt", "foreign")]


def test_xarray_opens_the_data_with_coordinates(run: Path) -> None:
    cells = xr.open_zarr(run / "data.zarr", group="cells", consolidated=False)
    assert set(cells.coords) == {"example", "condition", "layer"}
    assert cells["layer"].attrs["labels"] == [0, 1, "0+1"]
    metrics = xr.open_zarr(run / "data.zarr", group="cells/metrics", consolidated=False)
    np.testing.assert_array_equal(metrics["m0"][CELLS : CELLS + rows_of(1)], unit_arrays(1, rows_of(1))["cells/metrics/m0"])
    tree = xr.open_datatree(run / "data.zarr", engine="zarr", consolidated=False)
    assert tree[CAPTURE].dims == ("cell", "step", "width")
