"""Every edit that is planned for a stage is made there, once: counted by site, place and cell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from codi_engine.core.rollout.tasks import Edit
    from codi_engine.core.sites import Site

    #: site → (rows, token offset, edit, representative cells)
    Waiting = Mapping[str, Sequence[tuple[np.ndarray, int, Edit, list[int]]]]


class Missed(RuntimeError):
    """An edit that was planned was not made: where, and for which cell of the batch."""

    def __init__(self, site: Site, place: int | None, cell: int, why: str) -> None:
        super().__init__(f"an edit at {site}[{place}] did not fire: {why}")
        self.site, self.place, self.cell, self.why = site, place, cell, why


class Account:
    """The edits of one stage, planned and made.

    Parameters
    ----------
    edits: cell → (token offset, edit)
    cell_row: cell → row, −1 for cells that take no part
    """

    def __init__(self, edits: Mapping[int, Sequence[tuple[int, Edit]]], cell_row: np.ndarray) -> None:
        self._edits = {cell: items for cell, items in edits.items() if cell_row[cell] >= 0}
        self._made: list[tuple[Site, int | None, np.ndarray]] = []

    def add(self, edit: Edit, rows: np.ndarray, count: int, cell_row: np.ndarray) -> None:
        """Take in an edit of some of ``count`` rows: all cells that share a row have the same edits in it."""
        mine = np.zeros(count + 1, bool)  # the last entry is that of cells without a row
        mine[rows] = True
        self._made.append((edit.site, edit.place, np.flatnonzero(mine[cell_row])))

    def settle(self, pending: Waiting) -> None:
        """Compare what was made with what was planned; ``pending``: what waits still, by site.

        Raises
        ------
        Missed: the first edit that was left out, made more than once, or made in another cell
        """
        if not self._edits and not self._made and not pending:
            return
        planned: dict[tuple[Site, int | None], list[int]] = defaultdict(list)
        for cell, items in self._edits.items():
            for _, edit in items:
                planned[edit.site, edit.place].append(cell)
        made: dict[tuple[Site, int | None], list[np.ndarray]] = defaultdict(list)
        for site, place, cells in self._made:
            if len(cells):
                made[site, place].append(cells)
        alike = planned.keys() == made.keys() and all(np.array_equal(np.sort(cells), np.sort(np.concatenate(made[key]))) for key, cells in planned.items())
        if pending or not alike:
            self.miss("it was planned and not made", pending)

    def miss(self, why: str, pending: Waiting) -> None:
        """Raise for the first edit that waits, or whose count is not the planned one."""
        counts: dict[tuple[Site, int | None, int], int] = {}
        for site, place, cells in self._made:
            for cell in cells.tolist():
                counts[site, place, cell] = counts.get((site, place, cell), 0) + 1
        for cell, items in self._edits.items():
            for _, edit in items:
                counts[edit.site, edit.place, cell] = counts.get((edit.site, edit.place, cell), 0) - 1
        waiting = [(edit.site, edit.place, cells[0], why) for items in pending.values() for _, _, edit, cells in items]
        wrong = [(*key, why if count < 0 else "it was made and not planned") for key, count in counts.items() if count]
        raise Missed(*[*waiting, *wrong][0])
