"""Rows with unlike many new tokens, packed one after the other: which token stands where.

All rows of a stage end at its last token; a row begins at the first token that is its own (``first``), because what stands before
it is the prompt's, whose keys and values are there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Spans:
    """``first``: of each row, the offset of its first own token in a stage of ``size`` tokens."""

    first: np.ndarray
    size: int

    @cached_property
    def counts(self) -> np.ndarray:
        return np.asarray(self.size - self.first)

    @cached_property
    def starts(self) -> np.ndarray:
        return np.asarray(np.cumsum(self.counts) - self.counts)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    @cached_property
    def whole(self) -> bool:
        """True when every row has all tokens."""
        return not self.first.any()

    @cached_property
    def rows(self) -> np.ndarray:
        """The row of each packed token."""
        return np.repeat(np.arange(len(self.first)), self.counts)

    @cached_property
    def offsets(self) -> np.ndarray:
        """The offset in the stage of each packed token."""
        return np.asarray(np.arange(self.total) + np.repeat(self.first - self.starts, self.counts))

    @cached_property
    def last(self) -> np.ndarray:
        """The last token of each row."""
        return np.asarray(self.starts + self.counts - 1)

    def at(self, rows: np.ndarray, offset: int) -> np.ndarray:
        """Return the packed tokens that stand at an offset of some rows.

        Raises
        ------
        RuntimeError: a row does not own that token
        """
        if (self.first[rows] > offset).any():
            raise RuntimeError(f"a token at offset {offset} is not among its row's own")
        return np.asarray(self.starts[rows] + (offset - self.first[rows]))

    def of(self, parent: np.ndarray, child: Spans) -> np.ndarray:
        """Return for each token of ``child``, whose rows continue ``parent``, the token here."""
        return np.asarray(np.arange(child.total) + np.repeat(self.starts[parent] - self.first[parent] + child.first - child.starts, child.counts))


__all__ = ["Spans"]
