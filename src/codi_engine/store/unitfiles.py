"""What a unit gives, checked against the plan and made into its files: the same bytes whoever writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from codi_engine.store.codec import parts
from codi_engine.store.errors import StoreError
from codi_engine.store.files import Batch, Facts
from codi_engine.store.layout import text_file
from codi_engine.store.state import State
from codi_engine.store.texts import encode_texts


class Content(NamedTuple):
    """What a unit gives.

    Attributes
    ----------
    arrays: name → rows × row shape; all have the same rows, or ``unit_cells`` of them
    texts: column → one value a row
    note: further facts for the ledger (no times: a repeated run must reach the same bytes)
    """

    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, Sequence[Any]] | None = None
    note: Mapping[str, Any] | None = None


def check_unit(state: State, where: str, unit: int, content: Content) -> int:
    """Return the filled rows of a unit after checking everything that can be wrong with it.

    Parameters
    ----------
    where: names the run in errors

    Raises
    ------
    StoreError: a unit that is not planned, an undeclared array, a wrong shape or type, or different rows
    """
    arrays, texts = content.arrays, content.texts or {}
    if not 0 <= unit < state.units:
        raise StoreError(f"{where}: unit {unit} is not planned; {state.units} units are")
    for name, values in arrays.items():
        spec = state.specs.get(name)
        if spec is None:
            raise StoreError(f"{name}: was not declared by a plan")
        room = spec.rows(state.unit_cells)
        if values.shape[1:] != spec.shape or values.ndim == 0 or len(values) > room:
            raise StoreError(f"{name}: an array of shape {values.shape} does not fit {room} rows of shape {spec.shape}")
        if not np.can_cast(values.dtype, spec.numpy, "safe"):
            raise StoreError(f"{name}: {values.dtype} cannot be stored as {spec.dtype} without loss")
    lengths = {len(v) for name, v in arrays.items() if not state.specs[name].entries} | {len(v) for v in texts.values()}
    if len(lengths - {state.unit_cells}) > 1:
        raise StoreError(f"{where}: the arrays and texts of unit {unit} have different rows: {sorted(lengths)}")
    if len({len(v) for v in texts.values()}) > 1 or max(lengths, default=0) > state.unit_cells:
        raise StoreError(f"{where}: the text columns of unit {unit} have different rows, or more than {state.unit_cells}")
    return min(lengths, default=0)


def write_unit(batch: Batch, state: State, unit: int, content: Content) -> None:
    """Have a batch write a unit's shards and texts."""
    for name, values in sorted(content.arrays.items()):
        spec = state.specs[name]
        batch.write(spec.shard(unit), parts(spec, state.unit_cells, values))
    if content.texts:
        batch.write(text_file(unit), encode_texts(content.texts, unit * state.unit_cells))


def unit_record(unit: int, stage: str, rows: int, files: Mapping[str, Facts], note: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the line of the ledger that commits a unit."""
    record = {"kind": "unit", "unit": unit, "stage": stage, "rows": rows, "files": dict(files)}
    return {**record, "note": dict(note)} if note else record


def far(old: np.ndarray, new: np.ndarray) -> float:
    """Return the largest difference of two arrays as a share of the old one's largest value; for other types than floats 0 or 1."""
    if new.dtype.kind != "f" or old.shape != new.shape:
        return float(not np.array_equal(old, new))
    both = np.isfinite(old) & np.isfinite(new)
    if (np.isfinite(old) != np.isfinite(new)).any():
        return float("inf")
    scale = float(np.abs(old[both]).max(initial=0.0)) or 1.0
    return float(np.abs(old[both] - new[both]).max(initial=0.0)) / scale
