"""Attention of packed rows over a shared prompt and their own suffix.

Rows are packed into one sequence of tokens, so that every projection of a layer is one matrix product, whatever the
rows' prompts, steps or edits are. Keys and values of a prompt are kept once per prompt and never expanded to rows; a
row owns only what comes after its branch point.

All sums have an order that depends on the *slot* of a key alone: scores are soft-maxed over slots in slot order, values
are summed in blocks of ``BLOCK`` slots, one after the other, and no matrix product has fewer than four rows (where BLAS
switches to another kernel). So a row's bits do not depend on its neighbours, on the batch, or on where its own
suffix begins; ``core.selftest`` checks this on the machine at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from codi_engine.core.errors import UserError

#: slots per summation block; prompts are padded to a multiple of it on the left
BLOCK = 16
#: fewest rows in a matrix product; below, BLAS takes other kernels with other rounding
MIN_ROWS = 4
NAME = "codi_engine_packed"


def round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


@dataclass(frozen=True)
class PromptKV:
    """Keys and values of E prompts, right-aligned in ``slots`` slots: per layer E × kv heads × slots × head_dim."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    valid: torch.Tensor  # E × slots, bool

    @property
    def slots(self) -> int:
        return self.valid.shape[1]

    def head(self, slots: int) -> PromptKV:
        """Return the first ``slots`` slots (a view)."""
        return PromptKV([k[:, :, :slots] for k in self.keys], [v[:, :, :slots] for v in self.values], self.valid[:, :slots])


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
class Layout:
    """Where the packed tokens of a stage stand; the same for all layers between two splits.

    ``window``: the slots of every row's new tokens where all rows have as many; else ``row`` and ``slot`` of each token.
    """

    count: int
    queries: tuple[Queries, ...]
    back: torch.Tensor | None  # packed token → token of the queries' rectangles, one after the other; None: in their order
    window: slice | None
    row: torch.Tensor | None = None
    slot: torch.Tensor | None = None


@dataclass
class Context:
    """What the attention of the block being called needs to know; set by the rollout for each layer."""

    layout: Layout
    own_keys: torch.Tensor  # rows × kv heads × T × head_dim; the new tokens' are written here
    own_values: torch.Tensor
    prompt_keys: torch.Tensor | None  # E × kv heads × P × head_dim
    prompt_values: torch.Tensor | None
    prompt_mask: torch.Tensor | None  # E × P, bool
    only_store: bool = False  # write keys and values, and compute nothing after them
    calls: int = 0


class Stored(Exception):
    """Ends a block whose keys and values alone were wanted."""


_context: Context | None = None


@contextmanager
def using(context: Context) -> Iterator[Context]:
    """Make ``context`` the one that the next block's attention reads, and insist that it is read exactly once."""
    global _context
    _context, before = context, _context
    try:
        yield context
        if context.calls != 1:
            raise RuntimeError(f"a block called attention {context.calls} times; the packed executor needs exactly one call")
    finally:
        _context = before


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attention function registered with transformers: 1 × heads × tokens × head_dim in, 1 × tokens × heads × head_dim out."""
    context = _context
    if context is None:
        raise RuntimeError("packed attention was called outside the rollout")
    _refuse_unknown(context, kwargs)
    context.calls += 1
    layout = context.layout
    _store(context, key, value)
    if context.only_store:
        raise Stored
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    by_token = query[0].transpose(0, 1)
    parts = []
    for part in layout.queries:
        q = by_token[: layout.count] if part.take is None else by_token[part.take]
        parts.append(attend((q * scale).view(-1, part.tokens, *q.shape[1:]), context, part).flatten(0, 1))
    mixed = parts[0] if len(parts) == 1 else torch.cat(parts)
    if layout.back is not None:
        mixed = mixed[layout.back]
    extra = query.shape[2] - layout.count
    return (torch.nn.functional.pad(mixed, (0, 0, 0, 0, 0, extra)) if extra else mixed)[None], None


def _store(context: Context, key: torch.Tensor, value: torch.Tensor) -> None:
    """Write the new tokens' keys and values (1 × kv heads × tokens × head_dim) into their rows' slots."""
    layout, count = context.layout, context.layout.count
    for own, new in ((context.own_keys, key), (context.own_values, value)):
        by_token = new[0, :, :count].transpose(0, 1)
        if layout.window is not None:
            shape = (own.shape[0], layout.window.stop - layout.window.start, *by_token.shape[1:])
            own[:, :, layout.window] = by_token.reshape(shape).transpose(1, 2)
        else:
            assert layout.row is not None and layout.slot is not None
            own.transpose(1, 2)[layout.row, layout.slot] = by_token


def _refuse_unknown(context: Context, kwargs: dict[str, Any]) -> None:
    """Refuse attention that is not plain and causal over the whole context."""
    window = kwargs.get("sliding_window")
    slots = context.own_keys.shape[2] + (context.prompt_keys.shape[2] if context.prompt_keys is not None else 0)
    if window is not None and slots > window:
        raise UserError(f"model: its attention window of {window} tokens is shorter than the {slots} of prompt and answer; this is not supported yet")
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise UserError(f"model: its attention uses '{name}', which is not supported yet")


def attend(q: torch.Tensor, context: Context, part: Queries) -> torch.Tensor:
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
    for start in range(0, flat.shape[1], BLOCK):
        total.baddbmm_(padded[:, :, start : start + BLOCK], flat[:, start : start + BLOCK])
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
    keys, valid = context.prompt_keys, context.prompt_mask
    assert keys is not None and valid is not None
    prompts, kv_heads, slots, width = keys.shape
    square = _to_rectangle(queries, prompts, rectangle)
    scores = torch.bmm(square, keys.reshape(prompts * kv_heads, slots, width).transpose(1, 2))
    scores = scores.view(prompts, kv_heads, -1, slots).masked_fill(~valid[:, None, None], float("-inf"))
    return _from_rectangle(scores.view(prompts * kv_heads, -1, slots), prompts, rectangle, queries.shape[2])


def _prompt_values(weights: torch.Tensor, context: Context, rectangle: Rectangle, width: int) -> torch.Tensor:
    values = context.prompt_values
    assert values is not None
    prompts, kv_heads, slots = values.shape[:3]
    square = _to_rectangle(weights, prompts, rectangle)
    flat = values.reshape(prompts * kv_heads, slots, width)
    total = square.new_zeros(square.shape[0], square.shape[1], width)
    for start in range(0, slots, BLOCK):
        total.baddbmm_(square[:, :, start : start + BLOCK], flat[:, start : start + BLOCK])
    return _from_rectangle(total, prompts, rectangle, weights.shape[2])


def register() -> None:
    """Register the attention function with transformers under ``NAME`` (idempotent)."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
