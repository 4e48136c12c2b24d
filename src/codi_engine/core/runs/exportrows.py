"""A run's cells and captured activations, unit by unit, as the exports write them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.store.layout import text_file

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.runs.results import Run

#: bytes of activations that are held at a time
BLOCK = 32 << 20
#: cells that are held as rows at a time
ROWS = 4096
_METRICS = "cells/metrics/"


class Cells:
    """Cells of a run in the order of their slots (the order in which they were computed), a unit at a time.

    ``dtypes``: column → pandas dtype, the same for every unit: ``slot``, axes, metrics, answer, nonfinite, then the texts' own columns.
    """

    def __init__(self, run: Run, texts: bool = True) -> None:
        self.run, self._store, self._texts = run, run.store, texts

    @cached_property
    def units(self) -> list[int]:
        """Units with finished cells, ascending."""
        return [int(u) for u in np.unique(self._store.slots // self._store.unit_cells)]

    @cached_property
    def axes(self) -> dict[str, list[Any]]:
        """Axis → labels; axes without any label are left out, and ``variant`` where there is but one."""
        found = {a: self._store.labels(a) for a in self.run.axes}
        return {a: labels for a, labels in found.items() if labels and not (a == "variant" and set(labels) <= {"main"})}

    @cached_property
    def dtypes(self) -> dict[str, Any]:
        out: dict[str, Any] = {"slot": "int64", **{a: _dtype(labels) for a, labels in self.axes.items()}}
        out.update(dict.fromkeys(self.run.metrics, "float64"))
        out["answer"] = "float64"
        out["nonfinite"] = "boolean"
        for name, kind in self.text_columns.items():
            out.setdefault(name, kind)
        return out

    @cached_property
    def text_columns(self) -> dict[str, Any]:
        """Return column → dtype of the texts' files, from their schemas."""
        import pyarrow as pa

        if not self._texts:
            return {}
        schemas = [table.schema for unit in self.units if (table := self._table(unit)) is not None]
        whole = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
        return {field.name: _pandas_dtype(field.type) for field in whole if field.name != "slot"}

    def _table(self, unit: int) -> Any:
        file = text_file(unit)
        stated = self._store.committed[unit]["files"].get(file)
        return None if stated is None else self._store.texts_of(unit)

    def slots_of(self, unit: int) -> np.ndarray:
        """Return the slots of a unit's finished cells."""
        size = self._store.unit_cells
        first, last = np.searchsorted(self._store.slots, [unit * size, (unit + 1) * size])
        return self._store.slots[first:last]

    def frame(self, unit: int, slots: np.ndarray | None = None) -> pd.DataFrame:
        """Return the cells of a unit (or those of some of its slots), one row each, with :attr:`dtypes`."""
        import pandas as pd

        slots = self.slots_of(unit) if slots is None else slots
        columns: dict[str, Any] = {"slot": slots}
        for axis, labels in self.axes.items():
            codes = self._values(f"cells/{axis}", unit, slots)
            columns[axis] = [None if c < 0 else labels[c] for c in codes]
        for metric in self.run.metrics:
            columns[metric] = self._values(f"{_METRICS}{metric}", unit, slots)
        columns["answer"] = self._values("cells/answer", unit, slots)
        columns["nonfinite"] = np.isin(slots, self.run.marked)
        table = self._table(unit) if self._texts else None
        if table is not None:
            texts = table.to_pandas().set_index("slot").reindex(slots)
            columns.update({c: texts[c].to_numpy() for c in texts if c not in columns})
        return pd.DataFrame({c: _column(columns.get(c), len(slots), dtype) for c, dtype in self.dtypes.items()})

    def _values(self, name: str, unit: int, slots: np.ndarray) -> np.ndarray:
        """Return an array's rows of some of a unit's slots; its fill value where the unit did not write it."""
        spec = self._store.spec(name)
        if spec.shard(unit) not in self._store.committed[unit]["files"]:
            return np.full(len(slots), spec.fill, np.dtype(spec.dtype))
        values: np.ndarray = self._store.read_unit(name, unit)[slots - unit * self._store.unit_cells]
        return values

    def frames(self) -> Iterator[pd.DataFrame]:
        """Yield the cells of every unit, at most :data:`ROWS` at a time."""
        for unit in self.units:
            slots = self.slots_of(unit)
            for first in range(0, len(slots), ROWS):
                yield self.frame(unit, slots[first : first + ROWS])

    def empty(self) -> pd.DataFrame:
        """Return no row of them."""
        import pandas as pd

        return pd.DataFrame({c: pd.Series([], dtype=dtype) for c, dtype in self.dtypes.items()})


def _dtype(labels: list[Any]) -> Any:
    if all(isinstance(v, int) and not isinstance(v, bool) for v in labels):
        return "Int64"
    return "float64" if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in labels) else object


def _pandas_dtype(kind: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_boolean(kind):
        return "boolean"
    return "Int64" if pa.types.is_integer(kind) else "float64" if pa.types.is_floating(kind) else object


def _column(values: Any, count: int, dtype: Any) -> Any:
    import pandas as pd

    if values is None:
        values = [None] * count
    if dtype is object:
        return pd.Series([None if v is None or v != v else v if isinstance(v, str) else str(v) for v in values], dtype=object)
    series = pd.Series(values)
    return series.astype("float64" if dtype == "float64" else object).astype(dtype) if dtype != "int64" else series.astype("int64")


# ------------------------------------------------------------------------------------------- activations


@dataclass(frozen=True)
class Block:
    """Some cells of a captured array: their labels; dense values, or codes as (row within the block, column, value)."""

    cells: pd.DataFrame
    values: np.ndarray | None = None
    codes: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


class Activations:
    """A captured array, block by block: every cell that has it, in the order of the slots.

    Attributes
    ----------
    name: as captured; ``sparse``: stored as codes
    dims, coords: of a cell's values: names, and labels where the run has any
    shape: of a cell's values; count: cells
    """

    def __init__(self, run: Run, site: str) -> None:
        self.run, self.name = run, run.captured(site)
        if self.name != site:
            raise UserError(f"--what activations/{site}: was captured as a part of '{self.name}'; export activations/{self.name}")
        store = run.store
        self.sparse = store.is_sparse(f"activations/{site}")
        self._array = f"activations/{site}/{'ptr' if self.sparse else 'value'}"
        spec = store.spec(self._array)
        known = dict(spec.attrs.get("coords", {}))
        if self.sparse:
            self.dims: tuple[str, ...] = tuple(known) or ("width",)
            self.shape: tuple[int, ...] = (int(spec.attrs["width"]),)
            self.dtype = np.dtype(store.spec(f"activations/{site}/value").dtype)
        else:
            self.dims, self.shape, self.dtype = tuple(spec.dims[1:]), tuple(spec.shape), np.dtype(spec.dtype)
        self.coords = {d: list(known[d]) for d in self.dims if d in known}
        self.slots = store.read_slots(self._array)
        self.cells = Cells(run, texts=False)

    @property
    def count(self) -> int:
        return len(self.slots)

    def labels(self) -> list[str]:
        """Return the names of the columns that say which cell a row is."""
        return ["slot", *self.cells.axes]

    def blocks(self) -> Iterator[Block]:
        """Yield all cells, at most :data:`BLOCK` bytes of values at a time (but at least one cell)."""
        store, size = self.run.store, self.run.store.unit_cells
        each = max(int(np.prod(self.shape)) * self.dtype.itemsize, 1)
        at_once = max(BLOCK // each, 1)
        for unit in np.unique(self.slots // size).tolist():
            mine = self.slots[self.slots // size == unit]
            codes = store.codes_of(f"activations/{self.name}", unit) if self.sparse else None
            for first in range(0, len(mine), at_once):
                some = mine[first : first + at_once]
                rows = some - unit * size
                cells = self.cells.frame(unit, some)[self.labels()]
                if codes is not None:
                    yield Block(cells, codes=_entries(codes[0][rows], codes[1], codes[2]))
                else:
                    out = np.empty((len(some), *self.shape), self.dtype)
                    store.read_into(self._array, unit, rows, out, np.arange(len(some)))
                    yield Block(cells, out)


def _entries(ptr: np.ndarray, index: np.ndarray, value: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (row, column, value) of the entries that ``ptr`` (cells × 2) points at."""
    length = ptr[:, 1] - ptr[:, 0]
    entry = np.repeat(ptr[:, 0] - (np.cumsum(length) - length), length) + np.arange(int(length.sum()))
    return np.repeat(np.arange(len(ptr)), length), index[entry].astype(np.int64), value[entry]
