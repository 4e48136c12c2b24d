"""Reading a run: committed units only, every file checked against the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.store.arrays import ShardEncoder, open_group, spec_of
from codi_engine.store.errors import StoreError
from codi_engine.store.files import read_checked
from codi_engine.store.ledger import read_ledger
from codi_engine.store.layout import DATA, LEDGER, TEXTS, ArraySpec, shard_file, text_file


class RunReader:
    """A run opened for reading; it may be in the middle of being written.

    Raises
    ------
    StoreError: no run there, or metadata that differ from the ledger
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / LEDGER).is_file():
            raise StoreError(f"{self.path}: is not a run (it has no ledger)")
        records, _, _ = read_ledger(self.path / LEDGER)
        if not records:
            raise StoreError(f"{self.path}: holds nothing yet")
        self.unit_cells: int = records[0]["unit_cells"]
        self.plans = [r["plan"] for r in records if r["kind"] == "plan"]
        self.units: dict[int, dict[str, Any]] = {r["unit"]: r for r in records if r["kind"] == "unit"}
        self._metadata: dict[str, Any] = next((r["files"] for r in reversed(records) if r["kind"] == "plan"), {})
        self._specs = self._read_specs()
        self._encoders: dict[str, ShardEncoder] = {}

    def _read_specs(self) -> dict[str, ArraySpec]:
        for name, stated in self._metadata.items():
            read_checked(self.path, name, stated)
        if not self._metadata:
            return {}
        group = open_group(self.path)
        names = [str(Path(n).parent.relative_to(DATA)) for n in self._metadata]
        return {n: spec_of(n, group[n]) for n in names if n != "." and hasattr(group[n], "shape")}

    @property
    def arrays(self) -> list[str]:
        """Names of the arrays that committed units have written."""
        return sorted(n for n, spec in self._specs.items() if any(True for _ in self._homes(n, spec)))

    def attrs(self, name: str) -> dict[str, Any]:
        return dict(self.spec(name).attrs)

    def spec(self, name: str) -> ArraySpec:
        if name not in self._specs:
            raise StoreError(f"{self.path}: has no array '{name}'")
        return self._specs[name]

    def labels(self, axis: str) -> list[Any]:
        """Return what the codes of ``cells/<axis>`` stand for."""
        return list(self.attrs(f"cells/{axis}").get("labels", []))

    def _homes(self, name: str, spec: ArraySpec) -> Iterator[tuple[int, str]]:
        for unit in sorted(self.units):
            file = shard_file(name, unit, 1 + len(spec.shape))
            if file in self.units[unit]["files"]:
                yield unit, file

    def read_unit(self, name: str, unit: int) -> np.ndarray:
        """Return the rows of one unit (``unit_cells`` of them, empty slots filled), checked."""
        spec = self.spec(name)
        file = shard_file(name, unit, 1 + len(spec.shape))
        stated = self.units[unit]["files"].get(file)
        if stated is None:
            raise StoreError(f"{self.path}: unit {unit} wrote no {name}")
        if name not in self._encoders:
            self._encoders[name] = ShardEncoder(spec, self.unit_cells)
        return self._encoders[name].decode(read_checked(self.path, file, stated)).copy()

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Return (slots, rows) of every filled slot of the units that wrote the array."""
        spec = self.spec(name)
        slots, rows = [], []
        for unit, _ in self._homes(name, spec):
            filled = np.flatnonzero(self.read_unit("cells/status", unit) == 1)
            slots.append(filled + unit * self.unit_cells)
            rows.append(self.read_unit(name, unit)[filled])
        if not slots:
            return np.empty(0, np.int64), np.empty((0, *spec.shape), spec.dtype)
        return np.concatenate(slots), np.concatenate(rows)

    def texts(self) -> Any:
        """Return the texts of all committed units as one Arrow table."""
        import pyarrow as pa

        tables = []
        for unit in sorted(self.units):
            stated = self.units[unit]["files"].get(text_file(unit))
            if stated is not None:
                data = read_checked(self.path, text_file(unit), stated)
                tables.append(pa.ipc.open_file(pa.BufferReader(data)).read_all())
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({"slot": pa.array([], pa.int64())})

    def verify(self) -> list[str]:
        """Return one line for every missing, truncated, damaged or foreign file."""
        problems = []
        expected = {LEDGER, *self._metadata}
        files = dict(self._metadata)
        for record in self.units.values():
            files.update(record["files"])
        for name, stated in files.items():
            expected.add(name)
            try:
                read_checked(self.path, name, stated)
            except StoreError as error:
                problems.append(str(error))
        for folder in (DATA, TEXTS):
            for found in sorted((self.path / folder).rglob("*")):
                name = str(found.relative_to(self.path))
                if found.is_file() and name not in expected:
                    problems.append(f"{found}: is not in the ledger")
        return problems

