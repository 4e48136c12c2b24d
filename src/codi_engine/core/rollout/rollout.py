"""The rollout: all cells of a batch advance together through prompt, latent steps and answer.

Each phase is a sequence of stages (``core.wavefront``). A row is a distinct state: cells share one as long as neither
their edits nor their tokens differ, so a baseline, a common prefix of edits or thirty trials of one prompt are
computed once. Masks and positions follow from slots at every call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from codi_engine.core.rollout.attention import BLOCK, PromptKV, round_up
from codi_engine.core.rollout.batchrun import BatchRun
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.tasks import Produced, Task, Want
from codi_engine.core.rollout.wavefront import Apply, Batch, Reach, Spans, StageResult, empty_state, run_stage


class Prefilled:
    """A prompt's keys, values and last state, kept between batches (least recently used first to go)."""

    def __init__(self, budget: int) -> None:
        self.budget, self.size = budget, 0
        self.kept: OrderedDict[tuple[int, ...], tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]] = OrderedDict()

    def get(self, ids: tuple[int, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor] | None:
        found = self.kept.get(ids)
        if found is not None:
            self.kept.move_to_end(ids)
        return found

    def put(self, ids: tuple[int, ...], keys: list[torch.Tensor], values: list[torch.Tensor], last: torch.Tensor) -> None:
        size = 2 * sum(k.numel() * k.element_size() for k in keys)
        if size > self.budget or ids in self.kept:
            return
        self.kept[ids] = (keys, values, last)
        self.size += size
        while self.size > self.budget:
            _, (old, _, _) = self.kept.popitem(last=False)
            self.size -= 2 * sum(k.numel() * k.element_size() for k in old)


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
        self.prefilled = Prefilled(cache_bytes)
        self.prefill_tokens = prefill_tokens
        self.fed = 0  # prompt tokens prefilled so far

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], tasks: Sequence[Task], want: Want, apply: Apply = _no_apply) -> Produced:
        """Run every task; prompts are token ids, special tokens included.

        Rows of one call are bounded by the caller (one row per task at most, times prompt tokens after an edit).
        """
        return BatchRun(self, prompts, tasks, want, apply).run()

    def load_prompts(self, prompts: Sequence[Sequence[int]], reach: int = 0) -> tuple[PromptKV, torch.Tensor]:
        """Return keys and values of the prompts, right-aligned, and their last final-norm states; there are slots for ``reach`` tokens at least."""
        slots = max(round_up(max(len(p), reach), BLOCK) for p in prompts)
        found = {}
        todo = []
        for ids in dict.fromkeys(tuple(p) for p in prompts):
            kept = self.prefilled.get(ids)
            if kept is None:
                todo.append(ids)
            else:
                found[ids] = kept
        self.fed += sum(map(len, todo))
        for group in _by_tokens(todo, self.prefill_tokens):
            for ids, entry in zip(group, self._prefill(group), strict=True):
                found[ids] = entry
                self.prefilled.put(ids, *entry)
        entries = [found[tuple(p)] for p in prompts]
        valid = torch.arange(slots)[None] >= torch.tensor([slots - len(p) for p in prompts])[:, None]
        layers = range(len(self.net.blocks))
        return (
            PromptKV(
                [_aligned([e[0][layer] for e in entries], slots) for layer in layers],
                [_aligned([e[1][layer] for e in entries], slots) for layer in layers],
                valid.to(self.net.device),
            ),
            torch.stack([e[2] for e in entries]),
        )

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> list[tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]]:
        result = self.prefill(prompts, frozenset())
        state, entries = result.state, []
        slots = state.used
        for row, ids in enumerate(prompts):
            first = slots - round_up(len(ids), BLOCK)
            keys = [k[row, :, first:slots].clone() for k in state.keys]
            values = [v[row, :, first:slots].clone() for v in state.values]
            entries.append((keys, values, state.last[row].clone()))
        return entries

    def prefill(self, prompts: Sequence[Sequence[int]], capture: frozenset[tuple[str, int | None]]) -> StageResult:
        """Feed whole prompts, one row each, in slots that are a multiple of the block; without captures only last tokens pass the last block."""
        net = self.net
        lengths = np.array([len(p) for p in prompts])
        slots = round_up(int(lengths.max()), BLOCK)
        spans = Spans(slots - lengths, slots)
        ids = torch.tensor([t for prompt in prompts for t in prompt], device=net.device)
        state = empty_state(net, np.arange(len(prompts)), 0)
        batch = Batch(None, lengths, slots)
        last = "latent_out" if net.adapter.projection is not None else None
        cells = np.arange(len(prompts))
        reach = None if capture else Reach(spans.first, slots - 1)
        return run_stage(net, batch, state, net.embed(ids), cells, _no_apply, None, capture, last, spans=spans, reach=reach)


def _by_tokens(prompts: Sequence[tuple[int, ...]], budget: int) -> list[list[tuple[int, ...]]]:
    """Group prompts of like length so that a group's padded tokens stay within the budget."""
    groups: list[list[tuple[int, ...]]] = []
    for ids in sorted(prompts, key=len):
        width = round_up(len(ids), BLOCK)
        if not groups or (len(groups[-1]) + 1) * width > budget:
            groups.append([])
        groups[-1].append(ids)
    return groups


def _aligned(parts: Sequence[torch.Tensor], slots: int) -> torch.Tensor:
    """Stack kv heads × n × head_dim tensors, zeros on the left, into prompts × kv heads × slots × head_dim."""
    out = parts[0].new_zeros(len(parts), parts[0].shape[0], slots, parts[0].shape[2])
    for row, part in enumerate(parts):
        out[row, :, slots - part.shape[1] :] = part
    return out


__all__ = ["Prefilled", "Produced", "Rollout", "Task", "Want"]
