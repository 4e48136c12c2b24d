"""Attention by torch's batched products: rows with about as many new tokens are a rectangle of queries, prompts are shared by their rows.

All sums have an order that depends on the *slot* of a key alone: scores are soft-maxed over slots in slot order, values
are summed in blocks of ``GRAIN`` slots, one after the other, and no matrix product has fewer than four rows (where BLAS
switches to another kernel).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from codi_engine.core.rollout.attention import BLOCK, MIN_ROWS, Context, Standing, round_up

#: slots per summation block; prompts are padded to a multiple of it on the left
GRAIN = BLOCK
#: rows whose numbers of tokens differ by no more than this factor are one rectangle of queries
_LIKE = 4


@dataclass(frozen=True)
class Rectangle:
    """Where packed rows stand in a prompts × rows-per-prompt rectangle (for the shared-prefix product)."""

    gather: torch.Tensor  # E·width → row (padding repeats row 0)
    scatter: torch.Tensor  # row → E·width
    width: int

    @staticmethod
    def of(prompt_of_row: np.ndarray, prompts: int, multiple: int, device: torch.device) -> Rectangle:
        order = np.argsort(prompt_of_row, kind="stable")
        counts = np.bincount(prompt_of_row, minlength=prompts)
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        width = round_up(int(counts.max()), multiple)
        scatter = np.empty(len(order), np.int64)
        scatter[order] = prompt_of_row[order] * width + rank
        gather = np.zeros(prompts * width, np.int64)
        gather[scatter] = np.arange(len(order))
        return Rectangle(torch.from_numpy(gather).to(device), torch.from_numpy(scatter).to(device), width)


@dataclass(frozen=True)
class Queries:
    """Rows of a stage that feed like many tokens, as a rows × S rectangle of packed tokens, right-aligned."""

    rows: torch.Tensor | None  # which rows; None: all, in their order
    tokens: int  # S
    take: torch.Tensor | None  # rows·S → packed token (padding: any token); None: in their order
    mask: torch.Tensor  # (rows | 1) × S × T, bool
    rectangle: Rectangle | None


@dataclass(frozen=True)
class Rectangles:
    """Where the packed tokens of a stage stand; the same for all layers between two splits.

    ``window``: the slots of every row's new tokens where all rows have as many; else ``row`` and ``slot`` of each token.
    """

    count: int
    queries: tuple[Queries, ...]
    back: torch.Tensor | None  # packed token → token of the queries' rectangles, one after the other; None: in their order
    window: slice | None
    row: torch.Tensor | None = None
    slot: torch.Tensor | None = None

    def store(self, context: Context, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the new tokens' keys and values (1 × kv heads × tokens × head_dim) into their rows' slots."""
        for own, new in ((context.own_keys, key), (context.own_values, value)):
            by_token = new[0, :, : self.count].transpose(0, 1)
            if self.window is not None:
                shape = (own.shape[0], self.window.stop - self.window.start, *by_token.shape[1:])
                own[:, :, self.window] = by_token.reshape(shape).transpose(1, 2)
            else:
                assert self.row is not None and self.slot is not None
                own.transpose(1, 2)[self.row, self.slot] = by_token

    def attend(self, query: torch.Tensor, context: Context, scale: float) -> torch.Tensor:
        """Return tokens × heads × head_dim for 1 × heads × tokens × head_dim."""
        by_token = query[0].transpose(0, 1)
        parts = []
        for part in self.queries:
            q = by_token[: self.count] if part.take is None else by_token[part.take]
            parts.append(_attend((q * scale).view(-1, part.tokens, *q.shape[1:]), context, part).flatten(0, 1))
        mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
        return mixed if self.back is None else mixed[self.back]


def lay_out(standing: Standing, heads: int, device: torch.device) -> Rectangles:
    """Lay out a stage's tokens: rows with about as many tokens are a rectangle of queries."""
    spans, used = standing.spans, standing.used
    classes = np.zeros(len(spans.first), np.int64)
    if not spans.whole:
        classes = np.ceil(np.log(np.maximum(spans.counts, 1)) / np.log(_LIKE) - 1e-9).astype(np.int64)
    parts, back, begun = [], np.zeros(spans.total, np.int64), 0
    for one in np.unique(classes).tolist():
        rows = np.flatnonzero(classes == one)
        part, inside = _queries(standing, rows, heads, device)
        mine = classes[spans.rows] == one
        back[mine] = inside[mine] + begun
        begun += len(rows) * part.tokens
        parts.append(part)
    plain = len(parts) == 1 and parts[0].take is None
    if spans.whole:
        return Rectangles(spans.total, tuple(parts), None if plain else _on(back, device), slice(used, used + spans.size))
    place = _on(spans.rows, device), _on(spans.offsets + used, device)
    return Rectangles(spans.total, tuple(parts), None if plain else _on(back, device), None, *place)


def only_store(rows: np.ndarray, slots: np.ndarray, device: torch.device) -> Rectangles:
    """Lay out tokens whose keys and values alone are wanted."""
    return Rectangles(len(rows), (), None, None, _on(rows, device), _on(slots, device))


def _queries(standing: Standing, rows: np.ndarray, heads: int, device: torch.device) -> tuple[Queries, np.ndarray]:
    """Return the rectangle of some rows, and per packed token its place in it (of use for these rows' tokens alone)."""
    spans, used = standing.spans, standing.used
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
    slot = np.arange(standing.room)[None]
    mask = (slot <= query)[None]
    empty = standing.begin[rows] - standing.shared  # own slots before a short prompt's first token
    if (empty > 0).any():
        mask = (mask & (slot[None] >= empty[:, None, None])) | (slot == query)[None]
    rectangle = None
    if standing.shared:
        multiple = 1 if (tokens * heads) % MIN_ROWS == 0 else MIN_ROWS
        rectangle = Rectangle.of(standing.prompt[rows], standing.prompts, multiple, device)
    return Queries(None if every else _on(rows, device), tokens, take, torch.from_numpy(mask).to(device), rectangle), inside


def _on(index: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(index)).to(device)


def _attend(q: torch.Tensor, context: Context, part: Queries) -> torch.Tensor:
    """Return rows × S × heads × head_dim of attention output for scaled queries of the same shape."""
    rows, tokens, heads, width = q.shape
    keys, values = (own if part.rows is None else own[part.rows] for own in (context.own_keys, context.own_values))
    kv_heads, own = keys.shape[1], keys.shape[2]
    group = heads // kv_heads
    # rows × kv heads × (group · S) × head_dim: grouped heads are further queries of their kv head
    queries = q.view(rows, tokens, kv_heads, group, width).permute(0, 2, 3, 1, 4).reshape(rows, kv_heads, group * tokens, width)
    own_scores = _own_scores(queries, keys).view(rows, kv_heads, group, tokens, own)
    own_scores = own_scores.masked_fill(~part.mask[:, None, None], float("-inf"))
    scores = own_scores.view(rows, kv_heads, group * tokens, own)
    if part.rectangle is not None:
        scores = torch.cat([_prompt_scores(queries, context, part.rectangle), scores], -1)
    weights = torch.softmax(scores.float(), -1).to(q.dtype)
    shared = scores.shape[-1] - own
    mixed = _prompt_values(weights[..., :shared], context, part.rectangle, width) if part.rectangle is not None else torch.zeros_like(queries)
    mixed = _own_values(mixed, weights[..., shared:], values)
    return mixed.view(rows, kv_heads, group, tokens, width).permute(0, 3, 1, 2, 4).reshape(rows, tokens, heads, width)


def _padded(x: torch.Tensor) -> torch.Tensor:
    """Pad the query dimension (second to last) to a multiple of ``MIN_ROWS`` and flatten rows and heads."""
    extra = -x.shape[2] % MIN_ROWS
    if extra:
        x = torch.nn.functional.pad(x, (0, 0, 0, extra))
    return x.reshape(-1, x.shape[2], x.shape[3])


def _own_scores(queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    rows, kv_heads, count, width = queries.shape
    flat = keys.reshape(rows * kv_heads, -1, width)
    return torch.bmm(_padded(queries), flat.transpose(1, 2)).view(rows, kv_heads, -1, flat.shape[1])[:, :, :count]


def _own_values(mixed: torch.Tensor, weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    rows, kv_heads, count, width = mixed.shape
    total, padded = _padded(mixed), _padded(weights)
    flat = values.reshape(rows * kv_heads, -1, width)
    for start in range(0, flat.shape[1], GRAIN):
        total.baddbmm_(padded[:, :, start : start + GRAIN], flat[:, start : start + GRAIN])
    return total.view(rows, kv_heads, -1, width)[:, :, :count]


def _to_rectangle(x: torch.Tensor, prompts: int, rectangle: Rectangle) -> torch.Tensor:
    """Rows × kv heads × count × width → (prompts · kv heads) × (rows per prompt · count) × width."""
    kv_heads, count, width = x.shape[1:]
    x = x[rectangle.gather].view(prompts, rectangle.width, kv_heads, count, width)
    return x.transpose(1, 2).reshape(prompts * kv_heads, rectangle.width * count, width)


def _from_rectangle(x: torch.Tensor, prompts: int, rectangle: Rectangle, count: int) -> torch.Tensor:
    kv_heads, width = x.shape[0] // prompts, x.shape[2]
    x = x.view(prompts, kv_heads, rectangle.width, count, width).transpose(1, 2)
    return x.reshape(prompts * rectangle.width, kv_heads, count, width)[rectangle.scatter]


def _prompt_scores(queries: torch.Tensor, context: Context, rectangle: Rectangle) -> torch.Tensor:
    assert context.prompts is not None
    keys, valid = context.prompts.keys[context.layer], context.prompts.valid
    prompts, kv_heads, slots, width = keys.shape
    square = _to_rectangle(queries, prompts, rectangle)
    scores = torch.bmm(square, keys.reshape(prompts * kv_heads, slots, width).transpose(1, 2))
    scores = scores.view(prompts, kv_heads, -1, slots).masked_fill(~valid[:, None, None], float("-inf"))
    return _from_rectangle(scores.view(prompts * kv_heads, -1, slots), prompts, rectangle, queries.shape[2])


def _prompt_values(weights: torch.Tensor, context: Context, rectangle: Rectangle, width: int) -> torch.Tensor:
    assert context.prompts is not None
    values = context.prompts.values[context.layer]
    prompts, kv_heads, slots = values.shape[:3]
    square = _to_rectangle(weights, prompts, rectangle)
    flat = values.reshape(prompts * kv_heads, slots, width)
    total = square.new_zeros(square.shape[0], square.shape[1], width)
    for start in range(0, slots, GRAIN):
        total.baddbmm_(square[:, :, start : start + GRAIN], flat[:, start : start + GRAIN])
    return _from_rectangle(total, prompts, rectangle, weights.shape[2])


__all__ = ["GRAIN", "Rectangles", "lay_out", "only_store"]
