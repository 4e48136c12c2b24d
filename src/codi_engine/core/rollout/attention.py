"""Attention of packed rows over a shared prompt and their own suffix: what is common to the ways of computing it.

Rows are packed into one sequence of tokens, so that every projection of a layer is one matrix product, whatever the
rows' prompts, steps or edits are. Keys and values of a prompt are kept once per prompt and never expanded to rows; a
row owns only what comes after its branch point.

There are two ways, and in both a row's bits depend on the keys that it sees and their slots alone, neither on its neighbours,
nor on the batch, nor on where its own suffix begins: ``core.rollout.tokenwise`` (on a CPU, in float32) and
``core.rollout.rectangles`` (everywhere). ``core.rollout.selftest`` checks that on the machine at hand.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from codi_engine.core.errors import UserError
from codi_engine.core.rollout.spans import Spans

#: tokens of a product are padded to a multiple of it, and the slots of prompts where attention is computed in rectangles
BLOCK = 16
#: own slots are made so many at a time, up to what a row can need
ROOM = 32
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
class Standing:
    """Where the tokens of a stage stand: in slots, first those of a row's prompt, then the row's own."""

    spans: Spans
    used: int  # own slots that were filled before the stage; the token at offset o takes own slot used + o
    room: int  # own slots of a row
    shared: int  # slots of a prompt
    prompts: int  # how many prompts there are; of each row which one, and its first slot that holds a token:
    prompt: np.ndarray
    begin: np.ndarray


class Layout(Protocol):
    """Tokens laid out for one way of computing attention; the same for all layers between two splits."""

    def store(self, context: Context, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the new tokens' keys and values (1 × kv heads × tokens × head_dim) into their rows' slots."""

    def attend(self, query: torch.Tensor, context: Context, scale: float) -> torch.Tensor:
        """Return tokens × heads × head_dim for 1 × heads × tokens × head_dim."""


class Way(Protocol):
    """A module that computes attention."""

    GRAIN: int  #: a prompt's slots, and the first slot that a row owns, are multiples of it

    def lay_out(self, standing: Standing, heads: int, device: torch.device) -> Layout:
        """Lay out a stage's tokens; ``heads``: query heads of a kv head."""

    def only_store(self, rows: np.ndarray, slots: np.ndarray, device: torch.device) -> Layout:
        """Lay out tokens whose keys and values alone are wanted."""


@dataclass
class Context:
    """What the attention of the block being called needs to know; set by the rollout for each layer."""

    layout: Layout
    own_keys: torch.Tensor  # rows × kv heads × T × head_dim; the new tokens' are written here
    own_values: torch.Tensor
    prompts: PromptKV | None
    layer: int
    only_store: bool = False  # write keys and values, and compute nothing after them
    calls: int = 0

    @property
    def slots(self) -> int:
        """Return how many slots a row has, its prompt's included."""
        return self.own_keys.shape[2] + (self.prompts.slots if self.prompts is not None else 0)


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
    context.layout.store(context, key, value)
    if context.only_store:
        raise Stored
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    mixed = context.layout.attend(query, context, scale)
    extra = query.shape[2] - mixed.shape[0]
    return (torch.nn.functional.pad(mixed, (0, 0, 0, 0, 0, extra)) if extra else mixed)[None], None


def _refuse_unknown(context: Context, kwargs: dict[str, Any]) -> None:
    """Refuse attention that is not plain and causal over the whole context."""
    window = kwargs.get("sliding_window")
    if window is not None and context.slots > window:
        raise UserError(f"model: its attention window of {window} tokens is shorter than the {context.slots} of prompt and answer; this is not supported yet")
    for name in ("softcap", "s_aux"):
        if kwargs.get(name) is not None:
            raise UserError(f"model: its attention uses '{name}', which is not supported yet")


def register() -> None:
    """Register the attention function with transformers under ``NAME`` (idempotent)."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, packed_attention)
