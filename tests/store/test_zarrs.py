"""A run opened in zarr and xarray: what is committed, bit for bit, and no damage that reads as data."""

from __future__ import annotations

import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.sync import _collect_aiterator, sync
from zarr.storage import LocalStore

from codi_engine.core.runs.results import open_run
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import ArraySpec
from codi_engine.store.reader import RunReader
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter
from codi_engine.store.zarrs import RunStore
from tests.store.sample import CAPTURE, CELLS, CODES, IDENTITY, SOURCE, labels, specs, unit_arrays, write

UNITS = 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of which the last two planned units are not committed."""
    path = tmp_path_factory.mktemp("zarrs") / "run"
    with RunWriter.open(path, identity=IDENTITY, unit_cells=CELLS, experiment="name: x\n", provenance={}) as writer:
        writer.add_plan({}, UNITS + 2, specs(), labels(3))
        for unit in range(UNITS):
            writer.commit(unit, "sweep", Content(unit_arrays(unit)))
    return path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def group_of(store: Any) -> Any:
    return zarr.open_group(store, mode="r")


def keys(store: Any) -> list[str]:
    return sorted(sync(_collect_aiterator(store.list())))


def test_it_gives_what_plain_zarr_gives(run: Path) -> None:
    plain, store = LocalStore(run / "data.zarr", read_only=True), RunStore(run)
    assert keys(store) == keys(plain)
    ours, theirs = group_of(store), group_of(plain)
    assert sorted(k for k, _ in ours.members(None)) == sorted(k for k, _ in theirs.members(None))
    for name, array in theirs.members(None):
        if isinstance(array, zarr.Array):
            np.testing.assert_array_equal(ours[name][:], array[:])
    reader = RunReader(run)
    slots, values = reader.read(CAPTURE)
    np.testing.assert_array_equal(ours[CAPTURE][:][slots], values)


def test_slots_that_no_unit_wrote_hold_the_fill_value(run: Path) -> None:
    group: Any = open_run(run).zarr
    assert np.isnan(group[CAPTURE][UNITS * CELLS :]).all()
    assert (group["cells/example"][UNITS * CELLS :] == -1).all()
    assert np.isnan(group[SOURCE][CELLS:]).all()  # units 1 … wrote no source


def test_xarray_opens_a_run_without_warning(run: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cells = xr.open_zarr(open_run(run).zarr_store, group="cells", chunks=None)
        metrics = xr.open_zarr(open_run(run).zarr_store, group="cells/metrics", chunks=None)
    assert cells["status"].dims == ("cell",)
    np.testing.assert_array_equal(cells["example"][:CELLS], unit_arrays(0)["cells/example"])
    np.testing.assert_array_equal(metrics["m0"][CELLS : 2 * CELLS], unit_arrays(1)["cells/metrics/m0"])


@pytest.mark.parametrize("verify", ["size", "full"])
@pytest.mark.parametrize("name", ["cells/status", "cells/metrics/m0", CAPTURE, CODES])
@pytest.mark.parametrize("damage", ["gone", "empty", "short", "long", "flipped", "folder"])
def test_damage_raises_and_names_the_file(run: Path, name: str, damage: str, verify: Any) -> None:
    shard = run / specs_of(name).shard(1)
    data = shard.read_bytes()
    shard.unlink()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 4
    content = {"empty": b"", "short": data[:-1], "long": data + b"\0", "flipped": bytes(flipped)}
    if damage == "folder":
        shard.mkdir()
    elif damage != "gone":
        shard.write_bytes(content[damage])
    group = group_of(RunStore(run, verify))
    with pytest.raises(StoreError, match=shard.name.replace(".", r"\.")):
        group[name][:]
    np.testing.assert_array_equal(group[name][:CELLS], unit_arrays(0)[name])


def specs_of(name: str) -> ArraySpec:
    return next(s for s in specs() if s.name == name)


def test_leftovers_and_foreign_files_do_not_exist(run: Path) -> None:
    shard = run / specs_of("cells/status").shard(UNITS)  # of a unit that is planned and not committed
    shutil.copy(run / specs_of("cells/status").shard(0), shard)
    (run / "data.zarr/cells/status/c.1.partial").write_bytes(b"half")
    shutil.copytree(run / "data.zarr/cells/status", run / "data.zarr/cells/mine")
    store = RunStore(run)
    group = group_of(store)
    assert (group["cells/status"][UNITS * CELLS :] == 0).all()
    assert "cells/mine" not in group
    assert not [k for k in keys(store) if "mine" in k or k.endswith(("partial", f"status/c.{UNITS}"))]
    assert store.get_sync("../ledger") is None


def test_it_is_a_snapshot(run: Path) -> None:
    before = RunStore(run)
    shape = group_of(before)["cells/status"].shape
    with RunWriter.open(run, identity=IDENTITY, unit_cells=CELLS, experiment="", provenance={}) as writer:
        writer.commit(UNITS, "sweep", Content(unit_arrays(UNITS)))
        writer.add_plan({"more": 1}, 3, specs(3), labels(5))
    old, new = group_of(before), group_of(RunStore(run))
    assert old["cells/status"].shape == shape
    assert (old["cells/status"][UNITS * CELLS :] == 0).all()
    assert "cells/metrics/m2" in new
    assert "cells/metrics/m2" not in old
    assert (new["cells/status"][UNITS * CELLS : (UNITS + 1) * CELLS] == 1).all()


def test_it_can_be_pickled_and_compared_and_not_written(run: Path) -> None:
    store = RunStore(run)
    assert pickle.loads(pickle.dumps(store)) == store == RunStore(RunReader(run))
    assert store != RunStore(run, "full")
    assert store.with_read_only(True) is store
    with pytest.raises(ValueError, match="read-only"):
        store.with_read_only(False)
    with pytest.raises(ValueError, match="read-only"):
        group_of(store).create_array("x", shape=(1,), dtype="f4")
    with pytest.raises(ValueError, match="read-only"):
        group_of(store)["cells/status"][0] = 3


def big(path: Path) -> tuple[Path, np.ndarray]:
    """Write a run with one shard of several chunks; returns it with its values."""
    spec = ArraySpec("activations/x/value", ("cell", "width"), (1 << 19,), "float32", float("nan"))
    values = np.arange(4 << 19, dtype=np.float32).reshape(4, -1)
    with RunWriter.open(path, identity=IDENTITY, unit_cells=4, experiment="", provenance={}) as writer:
        writer.add_plan({}, 1, [spec], {})
        writer.commit(0, "sweep", Content({spec.name: values}))
    return path / spec.shard(0), values


def test_parts_of_large_shards_are_read_and_checked(tmp_path: Path) -> None:
    shard, values = big(tmp_path)
    key, size = "activations/x/value/c.0.0", shard.stat().st_size
    whole = shard.read_bytes()
    store = RunStore(tmp_path)
    for part, expected in (
        (RangeByteRequest(5, 9), whole[5:9]),
        (RangeByteRequest(size - 2, size + 9), whole[-2:]),
        (OffsetByteRequest(size - 3), whole[-3:]),
        (SuffixByteRequest(7), whole[-7:]),
        (SuffixByteRequest(size + 1), whole),
    ):
        found = store.get_sync(key, byte_range=part)
        assert found is not None
        assert found.to_bytes() == expected
    array = group_of(store)["activations/x/value"]
    np.testing.assert_array_equal(array[2, :5], values[2, :5])
    with shard.open("r+b") as file:
        file.seek(100)
        file.write(bytes([whole[100] ^ 1]))
    np.testing.assert_array_equal(array[3, :5], values[3, :5])  # another chunk than the damaged one
    with pytest.raises(ValueError, match="checksum"):
        array[0, :5]
    with pytest.raises(StoreError, match="damaged"):
        group_of(RunStore(tmp_path, "full"))["activations/x/value"][3, :5]
    shard.write_bytes(whole[:-1])
    with pytest.raises(StoreError, match="bytes where"):
        array[3, :5]


def test_open_run_gives_the_demo_kind_of_view(tmp_path: Path) -> None:
    write(tmp_path / "run", 2)
    run = open_run(tmp_path / "run")
    assert run.zarr_store is run.zarr_store
    assert run.zarr.read_only
