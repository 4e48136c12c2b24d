"""What of a run is committed so far: cells, and the mean of each metric in each condition; a resumed run goes on counting."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.planning.machine import resident_bytes
from codi_engine.core.running.generations import Unit
from codi_engine.store.errors import StoreError

if TYPE_CHECKING:
    from codi_engine.store.writer import RunWriter

_METRICS = "cells/metrics/"


class Tally:
    """Counts committed cells of a run over all its invocations.

    Attributes
    ----------
    units, planned: of the whole run
    cells, done: committed cells and units
    readable: False when what earlier invocations committed cannot be read; there are no means then
    """

    def __init__(self, units: int = 0, planned: int = 0) -> None:
        self.units, self.planned = units, planned
        self.cells = self.done = 0
        self.readable = True
        self._sums: dict[tuple[int, str], list[float]] = {}
        self._begun = self._last = time.perf_counter()
        self._first = 0

    def begin(self) -> None:
        """Start the clock of this invocation."""
        self._begun = self._last = time.perf_counter()
        self._first = self.cells

    def lap(self) -> float:
        """Return the seconds since the last lap."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before

    def add(self, cells: int, arrays: Mapping[str, np.ndarray], units: int = 1) -> None:
        """Take in committed cells; ``arrays`` as they are stored (those of other things than cells are passed over)."""
        self.cells, self.done = self.cells + cells, self.done + units
        codes = arrays.get("cells/condition")
        if codes is None:
            return
        for name, values in arrays.items():
            if not name.startswith(_METRICS):
                continue
            known = np.isfinite(values)
            for code in np.unique(codes[known]):
                mine = values[known & (codes == code)]
                total = self._sums.setdefault((int(code), name.removeprefix(_METRICS)), [0.0, 0.0])
                total[0] += float(mine.sum())
                total[1] += len(mine)

    def means(self, conditions: Sequence[Any]) -> dict[str, float]:
        """Return ``condition/metric`` → mean of the values that are finite."""
        if not self.readable:
            return {}
        return {f"{conditions[code]}/{name}": total / count for (code, name), (total, count) in sorted(self._sums.items()) if code < len(conditions)}

    def aggregates(self, conditions: Sequence[Any]) -> dict[str, float]:
        """Return what trackers are told of a commit."""
        seconds = time.perf_counter() - self._begun
        rate = (self.cells - self._first) / seconds if seconds > 0 else 0.0
        known = {"cells": self.cells, "planned_cells": self.planned, "seconds": seconds, "cells_per_second": rate}
        memory = resident_bytes()
        return {**known, **({} if memory is None else {"memory_bytes": memory}), **self.means(conditions)}


def tally_of(path: Path, units: Sequence[Unit], committed: Mapping[int, Any]) -> Tally:
    """Return the tally of a run as it is on disk: earlier invocations' cells count."""
    cells = {u.number: len(u.keys) * u.trials for u in units if u.stage != "sources"}
    tally = Tally(len(units), sum(cells.values()))
    if committed:
        from codi_engine.store.reader import RunReader

        try:
            store = RunReader(path)
            columns = {n: store.read(n) for n in store.arrays if n == "cells/condition" or n.startswith(_METRICS)}
        except StoreError:  # whoever needs these cells will say so; a mean without them would be another number
            tally.readable, columns = False, {}
        tally.add(sum(cells.get(n, 0) for n in committed), _aligned(columns), len(committed))
    return tally


def columns_of_unit(writer: RunWriter, unit: int) -> dict[str, np.ndarray]:
    """Return what :meth:`Tally.add` needs of a committed unit, read back."""
    names = [n for n in writer.specs if n == "cells/condition" or n.startswith(_METRICS)]
    record = writer.committed[unit]
    return {n: writer.read(n, unit)[: record["rows"]] for n in names if writer.specs[n].shard(unit) in record["files"]}


def _aligned(columns: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, np.ndarray]:
    """Bring columns into the order of the conditions' slots; a metric that some cells lack is NaN there."""
    if "cells/condition" not in columns:
        return {}
    slots, codes = columns["cells/condition"]
    out: dict[str, np.ndarray] = {"cells/condition": codes}
    for name, (mine, values) in columns.items():
        if name != "cells/condition":
            whole = np.full(len(slots), np.nan)
            _, here, there = np.intersect1d(slots, mine, assume_unique=True, return_indices=True)
            whole[here] = np.asarray(values, float)[there]
            out[name] = whole
    return out
