"""The rollout: all cells of a batch advance together through prompt, latent steps and answer.

Each phase is a sequence of stages (``core.wavefront``). A row is a distinct state: cells share one as long as neither
their edits nor their tokens differ, so a baseline, a common prefix of edits or thirty trials of one prompt are
computed once. Masks and positions follow from slots at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from codi_engine.core.rollout.attention import PromptKV, round_up
from codi_engine.core.rollout.batchrun import BatchRun
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.prefill import Along, Captured, Entry, Ids, Prefill
from codi_engine.core.rollout.tasks import Apply, Produced, Task, Want


def _no_apply(*_: Any) -> torch.Tensor:
    raise RuntimeError("a rollout without edits applied one")


class Rollout:
    """Runs batches of cells on one model.

    Parameters
    ----------
    net: the model taken apart
    cache_bytes: how much of the prompts' keys and values is kept between batches
    prefill_tokens: most prompt tokens prefilled in one forward
    """

    def __init__(self, net: Network, cache_bytes: int = 1 << 29, prefill_tokens: int = 4096) -> None:
        self.net = net
        net.pack()
        self.prefill = Prefill(net, cache_bytes, prefill_tokens)

    @property
    def fed(self) -> int:
        """Prompt tokens prefilled so far."""
        return self.prefill.fed

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], tasks: Sequence[Task], want: Want, apply: Apply = _no_apply) -> Produced:
        """Run every task; prompts are token ids, special tokens included.

        Rows of one call are bounded by the caller (one row per task at most, times prompt tokens after an edit).
        """
        return BatchRun(self, prompts, tasks, want, apply).run()

    def load_prompts(
        self, prompts: Sequence[Sequence[int]], reach: int = 0, along: Along | None = None, captured: dict[Ids, Captured] | None = None
    ) -> Loaded:  # fmt: skip
        """Compute or find the prompts' keys and values; there are slots for ``reach`` tokens at least.

        What ``along`` asks for is put into ``captured`` of the prompts that are computed now.
        """
        slots = max(round_up(max(len(p), reach), self.net.attention.GRAIN) for p in prompts)
        return Loaded(self.prefill.entries([tuple(p) for p in prompts], along, captured), [len(p) for p in prompts], slots)


@dataclass(frozen=True)
class Loaded:
    """The prompts of a batch, right-aligned in ``slots`` slots."""

    entries: list[Entry]
    lengths: list[int]
    slots: int

    @cached_property
    def kv(self) -> PromptKV:
        """Their keys and values side by side: where nothing follows the prompts, nobody asks for them."""
        valid = torch.arange(self.slots)[None] >= torch.tensor([self.slots - n for n in self.lengths])[:, None]
        layers = range(len(self.entries[0].keys))
        keys = [_aligned([e.keys[layer] for e in self.entries], self.slots) for layer in layers]
        values = [_aligned([e.values[layer] for e in self.entries], self.slots) for layer in layers]
        return PromptKV(keys, values, valid.to(keys[0].device))

    @property
    def last(self) -> torch.Tensor:
        """Their last final-norm states, prompts × width."""
        return torch.stack([e.last for e in self.entries])


def _aligned(parts: Sequence[torch.Tensor], slots: int) -> torch.Tensor:
    """Stack kv heads × n × head_dim tensors, zeros on the left, into prompts × kv heads × slots × head_dim; a single one is a view."""
    if len(parts) == 1 and parts[0].shape[1] == slots:
        return parts[0][None]
    out = parts[0].new_zeros(len(parts), parts[0].shape[0], slots, parts[0].shape[2])
    for row, part in enumerate(parts):
        out[row, :, slots - part.shape[1] :] = part
    return out


__all__ = ["Produced", "Rollout", "Task", "Want"]
