"""Edited cells whose logits are no numbers: finite edits may still be too large for the model; that is said, never stored in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from codi_engine.core.plugin import Outcome
    from codi_engine.core.rollout.editing import Placed


class Overflow:
    """Tells the user, once per condition, of the first batch in which edited cells overflow, or a metric of them does.

    Parameters
    ----------
    note: tells the user one line
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self.note = note
        self._told: set[tuple[str, str]] = set()

    def look(self, conditions: Sequence[str], placed: Sequence[Placed], done: Outcome, columns: Mapping[str, np.ndarray]) -> None:
        """Look at the logits that the metrics of a batch read, and at what they made of them; ``conditions``: the rows' names."""
        bad = overflowed(done)
        for name in sorted({conditions[i] for i in bad}):
            why = "metrics are undefined there: is the edit too large for the model's dtype?"
            self._tell("after the edit the model's logits are not finite", name, conditions, placed, bad, why)
        for column, values in columns.items():
            infinite = np.flatnonzero(np.isinf(values)).tolist()
            for name in sorted({conditions[i] for i in infinite}):
                self._tell(f"metric '{column}' is infinite", name, conditions, placed, infinite, "means over these cells are no numbers")

    def _tell(self, what: str, name: str, conditions: Sequence[str], placed: Sequence[Placed], rows: Sequence[int], why: str) -> None:
        if (what, name) in self._told:
            return
        self._told.add((what, name))
        mine = [placed[i].cell for i in rows if conditions[i] == name]
        where = ", ".join([f"example '{mine[0].example}'", *(f"{axis} {_one(value)}" for axis, value in mine[0].values.items())])
        self.note(f"condition '{name}': {what}, first at {where} ({len(mine)} of {conditions.count(name)} cells of its batch); {why}")


def _one(value: object) -> object:
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def overflowed(done: Outcome) -> list[int]:
    """Return the rows whose logits are not finite. One column tells: a state that is not finite spoils every product with it."""
    bad = np.zeros(len(done.answer), bool)
    for logits in (done.number_logits, done.first_logits):
        if isinstance(logits, torch.Tensor) and logits.ndim == 2 and len(logits) == len(bad) and logits.shape[1]:
            bad |= ~torch.isfinite(logits[:, 0]).cpu().numpy()
    return np.flatnonzero(bad).tolist()
