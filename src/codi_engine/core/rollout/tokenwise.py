"""Attention by a kernel that takes one query after the other: on a CPU, in float32. Nothing is gathered, padded or masked."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from codi_engine.core.rollout.attention import Context, Standing
from codi_engine.kernels import accelerate

GRAIN = 1
#: products of a query and a key below which one thread is faster
_ALONE = 1 << 15


def suits(device: torch.device, dtype: torch.dtype) -> bool:
    """True where the kernel is compiled and can read what a model of that kind computes."""
    return accelerate.ENABLED and device.type == "cpu" and dtype == torch.float32


@dataclass(frozen=True)
class Tokens:
    """Row and own slot of each packed token; prompt of each row, and its first slot that holds a token."""

    rows: np.ndarray
    slots: np.ndarray
    prompt: np.ndarray
    begin: np.ndarray
    pairs: int = 0  # of a query and a key that it sees

    def store(self, context: Context, key: torch.Tensor, value: torch.Tensor) -> None:
        """Write the new tokens' keys and values (1 × kv heads × tokens × head_dim) into their rows' slots."""
        from codi_engine.kernels.attention import store

        heads, width = key.shape[1], key.shape[3]
        own_keys, own_values, steps = _both(context.own_keys, context.own_values)
        for own, new in ((own_keys, key), (own_values, value)):
            store(*_flat(new[0].transpose(0, 1)), own, steps, self.rows, self.slots, width, 0, heads)

    def attend(self, query: torch.Tensor, context: Context, scale: float) -> torch.Tensor:
        """Return tokens × heads × head_dim for 1 × heads × tokens × head_dim."""
        from codi_engine.kernels.attention import attend

        _, heads, _, width = query.shape
        kv_heads = context.own_keys.shape[1]
        out = query.new_empty(len(self.rows), heads, width)
        asked = _flat(query[0].transpose(0, 1))
        own_keys, own_values, own_steps = _both(context.own_keys, context.own_values)
        if context.prompts is None:
            keys, values, steps, shared = own_keys, own_values, own_steps, 0
        else:
            keys, values, steps = _both(context.prompts.keys[context.layer], context.prompts.values[context.layer])
            shared = context.prompts.slots

        def some(first: int, last: int) -> None:
            attend(
                *asked, own_keys, own_values, own_steps, keys, values, steps, shared, self.rows, self.slots, self.prompt, self.begin,
                heads // kv_heads, width, np.float32(scale), out.view(-1).numpy(), first, last,
            )  # fmt: skip

        _spread(some, kv_heads, self.pairs * heads)
        return out


def lay_out(standing: Standing, heads: int, device: torch.device) -> Tokens:
    """Lay out a stage's tokens.

    Raises
    ------
    RuntimeError: one would stand outside of what rows have; the kernel does not look
    """
    spans = standing.spans
    rows, slots = spans.rows, spans.offsets + standing.used
    if standing.used + spans.size > standing.room or standing.begin.min(initial=0) < 0:
        raise RuntimeError(f"{standing.used} + {spans.size} tokens do not stand in {standing.room} slots from {standing.begin.min()} on")
    pairs = int((slots + 1 + standing.shared - standing.begin[rows]).sum())
    return Tokens(rows, slots, standing.prompt, standing.begin, pairs)


def only_store(rows: np.ndarray, slots: np.ndarray, device: torch.device) -> Tokens:
    """Lay out tokens whose keys and values alone are wanted."""
    none = np.zeros(0, np.int64)
    return Tokens(rows, slots, none, none)


def _flat(x: torch.Tensor) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return a tensor's memory as one array, and the steps of its dimensions but the last, whose entries lie side by side."""
    if x.stride(-1) != 1:
        x = x.contiguous()
    reach = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0
    return x.as_strided((reach,), (1,)).numpy(), x.stride()[:-1]


def _both(keys: torch.Tensor, values: torch.Tensor) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """Return the memory of keys and values, and their steps.

    Raises
    ------
    RuntimeError: they lie unlike each other, or their slots do not lie side by side
    """
    if keys.stride() != values.stride() or keys.stride()[2:] != (keys.shape[3], 1):
        raise RuntimeError(f"keys and values lie in memory by {keys.stride()} and {values.stride()}: the kernel reads slots side by side")
    (first, steps), (second, _) = _flat(keys), _flat(values)
    return first, second, steps


def _spread(some: Callable[[int, int], None], heads: int, pairs: int) -> None:
    """Call over all kv heads, in as many threads as torch computes with: a head's bits are the same in any."""
    threads = min(torch.get_num_threads(), heads, max(pairs // _ALONE, 1))
    if threads == 1:
        some(0, heads)
        return
    bounds = np.linspace(0, heads, threads + 1).astype(int).tolist()
    waiting = [_pool(os.getpid()).submit(some, *part) for part in pairwise(bounds[1:])]
    some(0, bounds[1])
    for one in waiting:
        one.result()


@cache
def _pool(process: int) -> Any:
    """Return the threads of this process: those of its parent are not here."""
    return ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="attention")


__all__ = ["GRAIN", "Tokens", "lay_out", "only_store", "suits"]
