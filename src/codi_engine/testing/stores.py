"""What a store of runs must be: what is committed is there bit for bit, what is not is nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine.store.errors import IdentityMismatch, StoreError
from codi_engine.store.layout import ArraySpec
from codi_engine.store.reader import RunReader
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter
from codi_engine.testing.suite import demand

CELLS, UNITS = 8, 4
IDENTITY = {"model": "tiny", "seed": 0}
METRIC, STATES = "cells/metrics/m", "activations/resid_post.8@latent/value"


class StoreSuite:
    """Conformance of an implementation of the run store; override the two ways in."""

    def writer(self, path: Path, identity: Any = None) -> Any:
        """Return a writer (see ``RunWriter``) of the run at ``path``, new or gone on with."""
        return RunWriter.open(path, identity=identity or IDENTITY, unit_cells=CELLS, experiment="name: x\n", provenance={})

    def reader(self, path: Path) -> Any:
        """Return a reader (see ``RunReader``) of the run at ``path``."""
        return RunReader(path)

    def filled(self, path: Path, units: Sequence[int]) -> Path:
        """Write a run with these units committed, in this order."""
        with self.writer(path) as writer:
            if not writer.plans:
                writer.add_plan({"n": 1}, UNITS, _specs(), {"cells/condition": ["baseline", "patch"]})
            for unit in units:
                writer.commit(unit, "sweep", Content(_arrays(unit), {"text": [f"é {unit}"] * CELLS}))
        return path

    def test_what_is_committed_is_read_bit_for_bit(self, tmp_path: Path) -> None:
        reader = self.reader(self.filled(tmp_path / "run", range(UNITS)))
        for unit in range(UNITS):
            for name, values in _arrays(unit).items():
                found = reader.read_unit(name, unit)
                demand(found.dtype == values.dtype and found[: len(values)].tobytes() == values.tobytes(), f"{name} of unit {unit} must be read bit for bit")

    def test_what_is_not_committed_is_not_there(self, tmp_path: Path) -> None:
        reader = self.reader(self.filled(tmp_path / "run", [2]))
        demand(list(reader.committed) == [2], f"only unit 2 is committed; the reader says {list(reader.committed)}")
        slots, values = reader.read(METRIC)
        demand(list(slots) == list(range(2 * CELLS, 3 * CELLS)), "read() must give the slots of committed units alone")
        demand(np.isfinite(values).all(), "a fill value must never be read as a value")

    def test_missing_data_raise(self, tmp_path: Path) -> None:
        reader = self.reader(self.filled(tmp_path / "run", [2]))
        for name, unit in ((METRIC, 0), ("cells/metrics/none", 2), (METRIC, 99)):
            with pytest.raises(StoreError):
                reader.read_unit(name, unit)

    def test_the_order_of_commits_leaves_the_same_data(self, tmp_path: Path) -> None:
        first, second = self.filled(tmp_path / "a", [0, 1, 2, 3]), self.filled(tmp_path / "b", [3, 1, 0, 2])
        a, b = self.reader(first), self.reader(second)
        for name in (METRIC, STATES):
            for unit in range(UNITS):
                demand(a.read_unit(name, unit).tobytes() == b.read_unit(name, unit).tobytes(), f"{name}: data must not depend on the order of commits")
        files = [{p.relative_to(r): p.read_bytes() for p in (r / "data.zarr").rglob("*") if p.is_file()} for r in (first, second)]
        demand(files[0] == files[1], "the files of the arrays must be the same bytes in any order of commits")

    def test_an_abandoned_run_is_gone_on_with(self, tmp_path: Path) -> None:
        path = self.filled(tmp_path / "run", [0, 1])
        left = path / "data.zarr" / METRIC / "c.2"
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"half of a shard")
        demand(list(self.reader(path).committed) == [0, 1], "bytes that no commit states must not be seen")
        self.filled(path, [2, 3])
        whole = self.reader(self.filled(tmp_path / "whole", range(UNITS)))
        again = self.reader(path)
        for unit in range(UNITS):
            demand(again.read_unit(METRIC, unit).tobytes() == whole.read_unit(METRIC, unit).tobytes(), "a resumed run must be the uninterrupted one")

    def test_a_second_writer_is_refused(self, tmp_path: Path) -> None:
        with self.writer(tmp_path / "run"), pytest.raises(StoreError):
            self.writer(tmp_path / "run")

    def test_a_run_of_another_identity_is_refused(self, tmp_path: Path) -> None:
        self.filled(tmp_path / "run", [0])
        with pytest.raises(IdentityMismatch, match="seed"):
            self.writer(tmp_path / "run", {**IDENTITY, "seed": 1})

    def test_a_unit_is_committed_once(self, tmp_path: Path) -> None:
        with self.writer(self.filled(tmp_path / "run", [0])) as writer, pytest.raises(StoreError):
            writer.commit(0, "sweep", Content(_arrays(0)))

    def test_damage_is_noticed(self, tmp_path: Path) -> None:
        path = self.filled(tmp_path / "run", [0])
        shard = max((p for p in (path / "data.zarr" / STATES).rglob("c*") if p.is_file()), key=lambda p: p.stat().st_size)
        content = bytearray(shard.read_bytes())
        content[len(content) // 2] ^= 1
        shard.write_bytes(bytes(content))
        with pytest.raises(StoreError):
            self.reader(path).read_unit(STATES, 0)


def _specs() -> list[ArraySpec]:
    return [
        ArraySpec("cells/condition", ("cell",), (), "int32", -1, attrs={"labels": []}),
        ArraySpec("cells/status", ("cell",), (), "uint8", 0),
        ArraySpec(METRIC, ("cell",), (), "float64", float("nan")),
        ArraySpec(STATES, ("cell", "step", "width"), (2, 3), "float32", float("nan"), attrs={"coords": {"step": [0, 1]}}),
    ]


def _arrays(unit: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(unit)
    return {
        "cells/condition": np.full(CELLS, int(unit > 0), np.int32),
        "cells/status": np.ones(CELLS, np.uint8),
        METRIC: rng.normal(size=CELLS),
        STATES: rng.normal(size=(CELLS, 2, 3)).astype(np.float32),
    }
