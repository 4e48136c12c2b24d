"""Generated texts of chosen cells, and texts made safe to look at."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from codi_engine.reporting import safe

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

#: characters of a text that are shown
SHOWN = 700


def visible(text: object, most: int = SHOWN) -> str:
    """Return text in which hidden characters are seen, cut after ``most`` characters."""
    whole = str(text)
    return safe.visible(whole[:most]) + ("…" if len(whole) > most else "")


def texts_of(run: Run, slots: Iterable[int]) -> dict[int, str]:
    """Return slot → generated text of some cells; each unit's texts are read once. Cells without a text are left out."""
    wanted: dict[int, set[int]] = {}
    known = run.store.text_units()
    for slot in slots:
        unit = int(slot) // run.store.unit_cells
        if unit in known:
            wanted.setdefault(unit, set()).add(int(slot))
    found: dict[int, str] = {}
    for unit, mine in wanted.items():
        there, data, bounds = run.store.text_bytes(unit)
        for row, slot in enumerate(there.tolist()):
            if slot in mine:
                found[slot] = data[bounds[row] : bounds[row + 1]].tobytes().decode("utf-8", "replace")
    return found
