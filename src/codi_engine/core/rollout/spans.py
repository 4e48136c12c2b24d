"""Rows with unlike many new tokens, packed one after the other: which token stands where, and what its query may see.

All rows of a stage end at its last token; a row begins at the first token that is its own (``first``), because what stands before
it is the prompt's, whose keys and values are there already.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from codi_engine.core.rollout.attention import MIN_ROWS, Layout, Queries, Rectangle, round_up

#: rows whose numbers of tokens differ by no more than this factor are one rectangle of queries
_LIKE = 4


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


def lay_out(spans: Spans, used: int, room: int, padding: np.ndarray | None, prompts: tuple[np.ndarray, int] | None, group: int, device: torch.device) -> Layout:
    """Return where the tokens of a stage stand in its rows' slots, and what each query may see.

    Parameters
    ----------
    used: filled slots of a row before the stage; its token at offset o takes slot used + o
    room: slots of a row
    padding: per row, its first slots that hold nothing (a short prompt's); None: there are none
    prompts: of each row, and how many there are; None: no prompt is shared
    group: query heads of a kv head
    """
    classes = np.zeros(len(spans.first), np.int64)
    if not spans.whole:
        classes = np.ceil(np.log(np.maximum(spans.counts, 1)) / np.log(_LIKE) - 1e-9).astype(np.int64)
    parts, back, begun = [], np.zeros(spans.total, np.int64), 0
    for one in np.unique(classes).tolist():
        rows = np.flatnonzero(classes == one)
        part, inside = _queries(spans, rows, used, room, padding, prompts, group, device)
        mine = classes[spans.rows] == one
        back[mine] = inside[mine] + begun
        begun += len(rows) * part.tokens
        parts.append(part)
    plain = len(parts) == 1 and parts[0].take is None
    if spans.whole:
        return Layout(spans.total, tuple(parts), None if plain else _on(back, device), slice(used, used + spans.size))
    place = _on(spans.rows, device), _on(spans.offsets + used, device)
    return Layout(spans.total, tuple(parts), None if plain else _on(back, device), None, *place)


def _queries(
    spans: Spans, rows: np.ndarray, used: int, room: int, padding: np.ndarray | None, prompts: tuple[np.ndarray, int] | None, group: int, device: torch.device
) -> tuple[Queries, np.ndarray]:
    """Return the rectangle of some rows, and per packed token its place in it (of use for these rows' tokens alone)."""
    every = len(rows) == len(spans.first)
    longest = int(spans.counts[rows].max())
    tokens = spans.size if spans.whole else round_up(longest, MIN_ROWS)
    rank = np.zeros(len(spans.first), np.int64)
    rank[rows] = np.arange(len(rows))
    inside = rank[spans.rows] * tokens + spans.offsets - (spans.size - tokens)
    take = None
    if not spans.whole:
        wanted = spans.starts[rows][:, None] + (np.arange(tokens) - (tokens - spans.counts[rows][:, None]))
        take = _on(np.maximum(wanted, spans.starts[rows][:, None]).reshape(-1), device)
    query = np.maximum(np.arange(tokens)[:, None] + (used + spans.size - tokens), 0)
    slot = np.arange(room)[None]
    mask = (slot <= query)[None]
    if padding is not None:
        mask = (mask & (slot[None] >= padding[rows][:, None, None])) | (slot == query)[None]
    rectangle = None
    if prompts is not None:
        multiple = 1 if (tokens * group) % MIN_ROWS == 0 else MIN_ROWS
        rectangle = Rectangle.of(prompts[0][rows], prompts[1], multiple, device)
    return Queries(None if every else _on(rows, device), tokens, take, torch.from_numpy(mask).to(device), rectangle), inside


def _on(index: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(index)).to(device)


__all__ = ["Spans", "lay_out"]
