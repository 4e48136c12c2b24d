"""Writing: round trips, growth, refusals, locks."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from codi_engine.store import layout
from codi_engine.store.codec import decode, encode
from codi_engine.store.errors import IdentityMismatch, StoreError
from codi_engine.store.layout import ArraySpec
from codi_engine.store.reader import RunReader
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter
from tests.store.sample import CAPTURE, CELLS, CODES, IDENTITY, SOURCE, content, labels, rows_of, specs, unit_arrays, unit_texts, write


def opened(path: Path, **changes: Any) -> RunWriter:
    return RunWriter.open(path, **{"identity": IDENTITY, "unit_cells": CELLS, "experiment": "name: x\n", "provenance": {}, **changes})


def planned(path: Path, units: int = 3) -> RunWriter:
    writer = opened(path)
    writer.add_plan({"n": 1}, units, specs(), labels(3))
    return writer


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_shards_round_trip_and_are_what_zarr_reads(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["float64", "float32", "float16", "int32", "uint8", "int64", "bool"]))
    shape = data.draw(st.lists(st.integers(1, 4), max_size=2).map(tuple))
    cells = data.draw(st.integers(1, 12))
    rows = data.draw(st.integers(0, cells))
    spec = ArraySpec("a/b", ("cell", *"xy"[: len(shape)]), shape, dtype, 0, data.draw(st.booleans()))
    values = data.draw(hnp.arrays(dtype, (rows, *shape)))
    limit, layout.CHUNK_BYTES = layout.CHUNK_BYTES, data.draw(st.sampled_from([1, 40, 4 << 20]))
    try:
        shard = encode(spec, cells, values)
        back = decode(spec, cells, shard)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "run"
            with opened(path, unit_cells=cells) as writer:
                writer.add_plan({}, 2, [spec], {})
                writer.commit(1, "sweep", Content({"a/b": values}))
                read = writer.read("a/b", 1)
            whole = np.asarray(zarr.open_array(path / "data.zarr/a/b", mode="r")[:])
    finally:
        layout.CHUNK_BYTES = limit
    for found in (back, read, whole[cells:]):
        np.testing.assert_array_equal(found[:rows], values)
        assert not found[rows:].any()
    assert back.flags.writeable
    assert back.dtype == dtype


def test_committed_units_are_read_back(tmp_path: Path) -> None:
    write(tmp_path / "run", 4)
    with opened(tmp_path / "run") as writer:
        assert list(writer.committed) == [0, 1, 2, 3]
        assert list(writer.committed_in("baseline")) == [0]
        for unit in range(4):
            for name, values in unit_arrays(unit, rows_of(unit)).items():
                np.testing.assert_array_equal(writer.read(name, unit)[: rows_of(unit)], values)
        assert np.isnan(writer.read("cells/metrics/m0", 1)[rows_of(1) :]).all()
        with pytest.raises(StoreError, match="unit 1 wrote no"):
            writer.read(SOURCE, 1)
        with pytest.raises(StoreError, match="not committed"):
            writer.read(SOURCE, 9)


def test_growth_keeps_codes_and_values(tmp_path: Path) -> None:
    with planned(tmp_path / "small", 2) as writer:
        for unit in (0, 1):
            writer.commit(unit, "sweep", Content(unit_arrays(unit)))
    with opened(tmp_path / "small") as writer:
        more = {**labels(5), "cells/layer": [7, 1]}
        writer.add_plan({"n": 2}, 1, [*specs(3)], more)
        assert writer.labels["cells/example"] == ["e0", "e1", "e2", "e3", "e4"]
        assert writer.labels["cells/layer"] == [0, 1, "0+1", 7]
        writer.commit(2, "sweep", Content({**unit_arrays(2), "cells/metrics/m2": np.ones(CELLS)}))
        assert [p["n"] for p in writer.plans] == [1, 2]
    with planned(tmp_path / "full", 3) as writer:
        for unit in range(3):
            writer.commit(unit, "sweep", Content(unit_arrays(unit)))
    small, full = content(tmp_path / "small"), content(tmp_path / "full")
    shards = [n for n in full if layout.unit_of(n)]
    assert {n: small[n] for n in shards} == {n: full[n] for n in shards}
    array = zarr.open_array(tmp_path / "small/data.zarr/cells/metrics/m2", mode="r")
    assert array.shape == (3 * CELLS,)
    assert np.isnan(array[: 2 * CELLS]).all()
    assert RunReader(tmp_path / "small").verify() == []


def test_a_known_array_cannot_change(tmp_path: Path) -> None:
    with planned(tmp_path / "run") as writer:
        before = content(tmp_path / "run")
        for other in (
            ArraySpec(CODES, ("cell", "width"), (41,), "float32", 0.0, True),
            ArraySpec(CODES, ("cell", "width"), (40,), "float64", 0.0, True),
            ArraySpec(CODES, ("cell", "width"), (40,), "float32", 0.0, True, {"coords": {"width": [1]}}),
        ):
            with pytest.raises(StoreError, match="the larger plan needs"):
                writer.add_plan({}, 1, [other], {})
        with pytest.raises(StoreError, match="cannot hold other arrays"):
            writer.add_plan({}, 1, [ArraySpec(CODES + "/more", ("cell",), (), "float32", 0.0)], {})
        assert content(tmp_path / "run") == before


@pytest.mark.parametrize("name", ["../x", "a/../b", "/etc/x", "a//b", "", ".hidden", "a/zarr.json", "a b", "x.partial", "a\\b", "a\n"])
def test_names_cannot_leave_the_run(name: str) -> None:
    with pytest.raises(StoreError, match="cannot be the name"):
        ArraySpec(name, ("cell",), (), "float64", 0.0)


def test_wrong_commits_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with planned(tmp_path / "run") as writer:
        before = content(tmp_path / "run")
        good = np.zeros(CELLS)
        cases: list[tuple[int, dict[str, np.ndarray], dict[str, list[Any]] | None, str]] = [
            (0, {"cells/metrics/other": good}, None, "was not declared"),
            (0, {"cells/metrics/m0": np.zeros((CELLS, 2))}, None, "does not fit"),
            (0, {"cells/metrics/m0": np.zeros(CELLS + 1)}, None, "does not fit"),
            (0, {CAPTURE: np.zeros((CELLS, 2, 3))}, None, "without loss"),
            (0, {"cells/metrics/m0": good[:3], "cells/metrics/m1": good[:4]}, None, "different rows"),
            (0, {"cells/metrics/m0": good[:3]}, {"key": ["a"] * 3, "text": ["b"] * CELLS}, "different rows"),
            (0, {"cells/metrics/m0": good[:2]}, {"key": ["a", "b"], "mixed": [1, "b"]}, "text column 'mixed'"),
            (3, {"cells/metrics/m0": good}, None, "is not planned"),
        ]
        for unit, arrays, texts, message in cases:
            with pytest.raises(StoreError, match=message):
                writer.commit(unit, "sweep", Content(arrays, texts))
        assert content(tmp_path / "run") == before
        writer.commit(0, "sweep", Content({"cells/metrics/m0": good}))
        with pytest.raises(StoreError, match="committed already"):
            writer.commit(0, "sweep", Content({"cells/metrics/m0": good}))


def test_texts_are_deterministic_and_survive_lone_surrogates(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with planned(tmp_path / name) as writer:
            writer.commit(0, "sweep", Content({}, {**unit_texts(0, 2), "text": ["\ud800x", "y"], "none": [None, None]}))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert RunReader(tmp_path / "a").texts().column("text").to_pylist() == ["?x", "y"]


def test_another_identity_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "run", 1)
    with pytest.raises(IdentityMismatch) as caught:
        opened(tmp_path / "run", identity={"model": {"checkpoint": "other"}, "seed": 0})
    assert caught.value.differences == ['model.checkpoint: "demo" → "other"']
    with opened(tmp_path / "run", unit_cells=99) as writer:
        assert writer.unit_cells == CELLS


def test_nothing_stays_of_a_run_without_a_plan(tmp_path: Path) -> None:
    with opened(tmp_path / "deep/run") as writer:
        assert writer.plans == []
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_directory_or_file_is_refused_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(StoreError, match="is not empty and holds no run"):
        opened(tmp_path)
    with pytest.raises(StoreError, match="is a file"):
        opened(tmp_path / "thesis.tex")
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_process_is_told_who_writes(tmp_path: Path) -> None:
    with planned(tmp_path / "run"):
        code = (
            "import sys; sys.path[:0] = ['src']\n"
            "from codi_engine.store.writer import RunWriter\n"
            "from codi_engine.store.errors import StoreError\n"
            "try: RunWriter.open(sys.argv[1], identity={}, unit_cells=1, experiment='', provenance={})\n"
            "except StoreError as error: sys.stdout.write(str(error))"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "run")]
        said = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
        assert f"pid {os.getpid()}" in said
        with pytest.raises(StoreError, match="is being written by"):
            opened(tmp_path / "run")
        assert (tmp_path / "run/lock").exists()
    opened(tmp_path / "run").close()
    assert not (tmp_path / "run/lock").exists()


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory that this process can read and not write, even when the tests run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_directory_is_one_line(unprivileged: Path) -> None:
    for path in (unprivileged, unprivileged / "run"):
        with pytest.raises(StoreError, match="cannot be written") as caught:
            opened(path)
        assert "\n" not in str(caught.value)


def test_a_full_disk_keeps_what_is_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with planned(tmp_path / "run") as writer:
        writer.commit(0, "baseline", Content(unit_arrays(0), unit_texts(0)))
        before = content(tmp_path / "run")
        real, calls = os.fsync, 0

        def full(descriptor: int) -> None:
            nonlocal calls
            calls += 1
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="the disk is full; what is committed stays"):
            writer.commit(1, "sweep", Content(unit_arrays(1)))
        assert calls
        monkeypatch.setattr(os, "fsync", real)
        assert content(tmp_path / "run") == before
        writer.commit(1, "sweep", Content(unit_arrays(1)))
    assert RunReader(tmp_path / "run").verify() == []


def test_provenance_waits_for_the_run_and_shows_damage(tmp_path: Path) -> None:
    with opened(tmp_path / "run", provenance={"started": "now"}) as writer:
        writer.add_plan({}, 1, specs(), labels(1))
        assert RunReader(tmp_path / "run").provenance == {"started": "now"}
        writer.set_provenance({"started": "now", "device": Path("x")})
    path = tmp_path / "run/provenance.json"
    assert RunReader(tmp_path / "run").provenance == {"started": "now", "device": "x"}
    path.write_text(path.read_text().replace("now", "not"))
    with pytest.raises(StoreError, match=r"provenance\.json: is damaged"):
        opened(tmp_path / "run")
    path.unlink()
    opened(tmp_path / "run").close()
