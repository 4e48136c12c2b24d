"""How many rows fit: a bound from the memory budget, and back-off when it was too much."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from codi_engine.core.errors import UserError
from codi_engine.core.rollout.attention import BLOCK, round_up
from codi_engine.core.rollout.network import Network

if TYPE_CHECKING:
    from codi_engine.core.model import ModelInfo

T = TypeVar("T")
ROWS_ON_CPU = 256
ROWS_ON_GPU = 2048
#: bytes of the prompts' keys and values that a rollout keeps between batches, at least, and their share of what is free or may be used
PREFILL_BYTES, PREFILL_SHARE = 1 << 29, 0.15


def available_bytes(net: Network) -> int:
    """Return free memory on the model's device."""
    if net.device.type == "cuda":
        return int(torch.cuda.mem_get_info(net.device)[0])
    return free_bytes()


def free_bytes() -> int:
    """Return free memory of this machine."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def prefill_bytes(free: float, budget_gb: float | None) -> int:
    """Return how many bytes of prompts' keys and values are kept: each prompt is computed once as long as they fit."""
    return int(max(PREFILL_SHARE * (free if budget_gb is None else budget_gb * 1e9), PREFILL_BYTES))


def bytes_per_row(net: Network, suffix: int, tokens: int) -> int:
    """Estimate what one row needs: its own keys and values (twice, while they are regathered), activations, logits."""
    return row_bytes(net.info, torch.finfo(net.dtype).bits // 8, suffix, tokens)


def row_bytes(info: ModelInfo, size: int, suffix: int, tokens: int) -> int:
    """As :func:`bytes_per_row`, from the model's shape and the ``size`` of its numbers."""
    own = 2 * 2 * info.layers * info.kv_heads * info.head_dim * round_up(suffix + tokens, BLOCK) * size
    work = tokens * (8 * info.width + 3 * info.mlp_width) * size + 6 * info.vocab_size * 4
    return own + work


def rows_at_once(net: Network, batch_size: int | str, budget_gb: float | None, suffix: int, tokens: int, sharing: int = 1) -> int:
    """Return how many rows a batch may hold; ``auto`` fills the budget up to where more rows gain nothing.

    ``sharing``: processes that share what is free on the device.
    """
    if isinstance(batch_size, int):
        return max(batch_size, 1)
    budget = budget_gb * 1e9 if budget_gb is not None else available_bytes(net) * 0.4 / sharing
    most = ROWS_ON_GPU if net.device.type == "cuda" else ROWS_ON_CPU
    return int(max(min(budget / bytes_per_row(net, suffix, tokens), most), 8))


def out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch says that memory is out."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error).lower())


def in_batches(items: Sequence[T], size: int, run: Callable[[Sequence[T]], None], note: Callable[[str], None]) -> int:
    """Call ``run`` on consecutive slices; halve the slice and repeat it when memory is out. Returns the size that held."""
    done = 0
    while done < len(items):
        try:
            run(items[done : done + size])
            done += size
        except (RuntimeError, MemoryError) as error:  # re-raised below unless it says that memory is out
            if not out_of_memory(error):
                raise
            if size == 1:
                raise UserError("out of memory with a single row; free memory, use a smaller dtype or set memory:") from error
            size = max(size // 2, 1)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            note(f"out of memory: going on with {size} rows a batch")
    return size
