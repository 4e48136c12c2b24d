"""Generated texts of a run, read part by part, and the group that each belongs to."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.runs.arrange import Arrangement, arrange

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run


@dataclass(frozen=True)
class TextPart:
    """Some consecutive units."""

    units: tuple[int, ...]
    bytes: int

    @property
    def key(self) -> str:
        return f"{self.units[0]}-{self.units[-1]}"


class Documents:
    """The texts of a run's cells; a group is a target × condition, or target × condition × example.

    Attributes
    ----------
    by_example: whether examples are groups of their own

    ``asked``: conditions asked for by name (controls are left out otherwise)
    """

    def __init__(self, run: Run, where: str, asked: Collection[str] = ()) -> None:
        self.run, self.by_example = run, False
        self.units = run.store.text_units()
        if not self.units:
            raise UserError(f"{where}: {run.path} holds no texts; runs keep them with `generate:`, and `codi-engine import` takes them from logs")
        self.arrangement: Arrangement = arrange(run, where, asked=asked)

    @property
    def examples(self) -> int:
        """Return the groups of each target and condition."""
        return len(self.arrangement.examples) if self.by_example else 1

    def group(self, target: int, condition: int) -> int:
        """Return the first group of a target and condition (its examples follow)."""
        a = self.arrangement
        if condition in a.own:
            return (target * len(a.own) + a.own.index(condition)) * self.examples
        return (len(a.targets) * len(a.own) + a.shared.index(condition)) * self.examples

    @cached_property
    def group_of_slot(self) -> np.ndarray:
        """Group of each slot; −1 for slots without a finished cell."""
        a = self.arrangement
        out = np.full(self.run.store.units * self.run.store.unit_cells, -1, np.int64)
        for base, grid in ((0, a.slots.reshape(-1, *a.slots.shape[2:])), (a.slots.shape[0] * a.slots.shape[1], a.common)):
            row, example, _ = np.nonzero(grid >= 0)
            out[grid[grid >= 0]] = (base + row) * self.examples + (example if self.by_example else 0)
        return out

    def parts(self, piece: int) -> list[TextPart]:
        """Cut the units into parts of at most ``piece`` bytes of text (at least one unit each)."""
        parts: list[TextPart] = []
        units: list[int] = []
        size = 0
        for unit, count in self.units.items():
            if units and size + count > piece:
                parts.append(TextPart(tuple(units), size))
                units, size = [], 0
            units.append(unit)
            size += count
        return [*parts, TextPart(tuple(units), size)]

    def read(self, part: TextPart, used: Any = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return (groups, UTF-8 bytes, offsets) of a part's texts that belong to a group."""
        found = [self.run.store.text_bytes(unit) for unit in part.units]
        slots = np.concatenate([f[0] for f in found])
        sizes = np.concatenate([np.diff(f[2]) for f in found])
        data = [f[1][f[2][0] : f[2][-1]] for f in found]
        offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return self.group_of_slot[slots], np.concatenate(data) if len(data) > 1 else data[0], offsets
