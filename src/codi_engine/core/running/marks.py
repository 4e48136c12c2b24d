"""The marked cells of a run, as its ledger notes them: read without an array, a model or torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.store.unitfiles import Content

if TYPE_CHECKING:
    from codi_engine.core.running.generations import Unit

#: the array of marked cells; only units that have some write it
MARKED = "cells/nonfinite"
#: where the ledger notes a unit's rows that are not finite
NOTE = "nonfinite"


def noted(record: Mapping[str, Any]) -> list[int]:
    """Return the rows of a committed unit that are not finite, as the ledger notes them."""
    return list((record.get("note") or {}).get(NOTE, ()))


def marked_slots(committed: Mapping[int, Mapping[str, Any]], unit_cells: int) -> np.ndarray:
    """Return the slots of a run's cells that are not finite, ascending."""
    found = [unit * unit_cells + row for unit, record in committed.items() if record["stage"] != "sources" for row in noted(record)]
    return np.array(sorted(found), np.int64)


def counts(committed: Mapping[int, Mapping[str, Any]]) -> tuple[int, int]:
    """Return how many unedited rows and how many edited cells of a run are marked."""
    unedited = sum(len(noted(r)) for r in committed.values() if r["stage"] != "sweep")
    return unedited, sum(len(noted(r)) for r in committed.values() if r["stage"] == "sweep")


def in_words(committed: Mapping[int, Mapping[str, Any]]) -> str:
    """Say how many rows of a run are marked; empty where none is."""
    unedited, edited = counts(committed)
    if not unedited and not edited:
        return ""
    cells = sum(r["rows"] for r in committed.values() if r["stage"] == "sweep")
    parts = [f"{edited:,} of {cells:,} edited cells"] * bool(edited) + [f"{unedited:,} unedited rows"] * bool(unedited)
    return f"{' and '.join(parts)} are not finite (NaN or infinity): marked in the column nonfinite, left out of every mean and test"


def committable(unit: Unit, arrays: Mapping[str, np.ndarray], texts: Mapping[str, Sequence[Any]]) -> Content:
    """Return what a unit gave as it is written, with what the ledger notes of it."""
    stored = dict(arrays)
    marked = np.flatnonzero(stored.get(MARKED, ())).tolist()
    if unit.stage == "sources":
        stored.pop(MARKED, None)  # it holds no cells
    return Content(stored, texts or None, {NOTE: marked} if marked else None)
