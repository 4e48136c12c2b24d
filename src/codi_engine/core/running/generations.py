"""A run's plans, one after the other: each adds the cells that no earlier one had.

The ledger holds one plan record per generation. Its units are a function of that record alone, so a resumed run
recomputes the same units, and a larger plan adds units for its new cells and touches no old one.
"""

from __future__ import annotations

import base64
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codi_engine.core.errors import UserError

#: unedited prompts or edited cells per unit, and slots per unit in every array, where the experiment does not say it
UNIT_CELLS = 256


def slots_of(wanted: int | None, trials: int) -> int:
    """Return the slots of a new run's units: as many as are wanted, with room for all trials of two prompts."""
    return max(wanted or UNIT_CELLS, 2 * trials)


@dataclass(frozen=True)
class Unit:
    """A fixed group computed together and committed together.

    ``stage``: ``baseline`` (prompts that are cells of their own), ``sources`` (values that edits take, no cells) or
    ``sweep``. ``keys`` are the prompts' or the cells' keys; ``trials`` multiplies the prompts of a baseline unit.
    """

    number: int
    stage: str
    keys: tuple[str, ...]
    trials: int = 1
    sources: tuple[str, ...] = ()
    first_trial: int = 0


def pack_keys(keys: Sequence[str]) -> str:
    return base64.b64encode(bytes.fromhex("".join(keys))).decode()


def unpack_keys(text: str) -> list[str]:
    raw = base64.b64decode(text).hex()
    return [raw[i : i + 16] for i in range(0, len(raw), 16)]


def generation(
    first: int,
    baseline: Sequence[tuple[Sequence[str], int, int]],
    pool: Sequence[str],
    sources: Sequence[str],
    lacking: Sequence[tuple[Sequence[str], Sequence[str]]],
    cells: Sequence[str],
    size: int,
) -> list[dict[str, Any]]:
    """Return the unit records of a new generation.

    Parameters
    ----------
    first: number of the first unit
    baseline: (prompts, first trial, trials) to run as baseline cells, capturing ``sources`` on the way
    pool: prompts to run for their source values only
    lacking: (prompts whose unedited rows exist, source arrays that they lack): these are run again for those
    cells: edited cells
    size: slots per unit
    """
    units: list[dict[str, Any]] = []

    def add(stage: str, keys: Sequence[str], per_unit: int, **more: Any) -> None:
        for at in range(0, len(keys), per_unit):
            part = keys[at : at + per_unit]
            units.append({"unit": first + len(units), "stage": stage, "keys": pack_keys(part), **more})

    for keys, start, trials in baseline:
        if 2 * trials > size:
            raise UserError(f"trials: at most {size // 2} can be added at once to this run; got {trials}")
        add("baseline", keys, size // trials // 2 * 2, trials=trials, first_trial=start, sources=list(sources))
    add("sources", pool, size, sources=list(sources))
    for keys, missing in lacking:
        add("sources", keys, size, sources=list(missing))
    add("sweep", cells, size)
    return units


def units_of(records: Iterable[Mapping[str, Any]]) -> list[Unit]:
    """Read the units of all plan records, in order."""
    return [
        Unit(u["unit"], u["stage"], tuple(unpack_keys(u["keys"])), u.get("trials", 1), tuple(u.get("sources", ())), u.get("first_trial", 0))
        for record in records
        for u in record["units"]
    ]


def counted(units: Iterable[Unit], committed: Container[int]) -> str:
    """Say how much of units is committed: ``12 of 40 units (3,072 of 10,240 cells)``."""
    cells = [(unit.number in committed, 0 if unit.stage == "sources" else len(unit.keys) * unit.trials) for unit in units]
    there = [count for known, count in cells if known]
    return f"{len(there):,} of {len(cells):,} units ({sum(there):,} of {sum(c for _, c in cells):,} cells)"
