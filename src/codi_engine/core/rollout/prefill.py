"""Prompts' keys and values: computed once for every prompt and every common beginning, and kept between batches.

A prompt is right-aligned in slots padded to a multiple of a grain, and the order of every sum depends on slots modulo that grain alone
(leading slots without a token add nothing). So tokens that two prompts begin with have the same keys and values, bit for bit, where
the prompts' lengths agree modulo the grain (which is 1 on a CPU); where they do not, nothing is shared. Of such prompts one is
prefilled whole, and each of the others goes on from the one that it has most tokens in common with.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from codi_engine.core.rollout.attention import PromptKV, round_up
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.spans import Spans
from codi_engine.core.rollout.state import Batch, Reach, empty_state
from codi_engine.core.rollout.wavefront import run_stage

Ids = tuple[int, ...]
#: common tokens from which a prompt goes on from another one's; fewer are not worth a forward of their own
LEAST = 8
#: share of the memory for the prompts that came first
FIRST = 0.75
#: a forward takes prompts together whose tokens differ by no more than this factor: where slots come in grains, attention computes
#: shorter ones' padding as well; else it is a matter of their slots alone
LIKE, LIKE_BY_TOKEN = 1.5, 6.0


class Entry(NamedTuple):
    """A prompt's keys and values (per layer kv heads × slots × head_dim, right-aligned in its own slots) and last final-norm state."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    last: torch.Tensor

    @property
    def size(self) -> int:
        return 2 * sum(k.numel() * k.element_size() for k in self.keys)


class Along(NamedTuple):
    """What is captured while prompts are prefilled: (component, layer) of their last ``tail`` tokens."""

    sites: frozenset[tuple[str, int | None]]
    tail: int


#: (component, layer) → tail × width
Captured = dict[tuple[str, int | None], torch.Tensor]


class Prefilled:
    """The entries of prompts, kept between batches up to ``budget`` bytes.

    Sweeps go through the prompts in the order of the unedited stage before them. So the first ones stay, up to :data:`FIRST` of
    the budget, and are there when they are met again; in the rest of it the least recently used one goes first.
    """

    def __init__(self, budget: int, grain: int) -> None:
        self.budget, self.size = budget, 0
        self.first: dict[Ids, Entry] = {}
        self.recent: OrderedDict[Ids, Entry] = OrderedDict()
        self.known = Beginnings(grain)

    def get(self, ids: Ids) -> Entry | None:
        if ids in self.recent:
            self.recent.move_to_end(ids)
        return self.first.get(ids) or self.recent.get(ids)

    def put(self, ids: Ids, entry: Entry) -> None:
        if entry.size > self.budget or ids in self.first or ids in self.recent:
            return
        self.size += entry.size
        if self.size <= self.budget * FIRST:
            self.first[ids] = entry
        else:
            self.recent[ids] = entry
        self.known.add(ids)
        while self.size > self.budget:
            gone, old = self.recent.popitem(last=False)
            self.known.drop(gone)
            self.size -= old.size


class Beginnings:
    """Prompts, found by what they begin with; only prompts of one length modulo the grain find each other."""

    def __init__(self, grain: int) -> None:
        self.grain = grain
        self._sorted: dict[int, list[Ids]] = {}

    def add(self, ids: Ids) -> None:
        insort(self._sorted.setdefault(len(ids) % self.grain, []), ids)

    def drop(self, ids: Ids) -> None:
        there = self._sorted[len(ids) % self.grain]
        del there[bisect_left(there, ids)]

    def closest(self, ids: Ids) -> tuple[Ids | None, int]:
        """Return the prompt with the longest common beginning, and how many tokens that has (its last token is never among them)."""
        there = self._sorted.get(len(ids) % self.grain, [])
        at = bisect_left(there, ids)
        found = [(common(ids, other), other) for other in there[max(at - 1, 0) : at + 1]]  # neighbours in the order share most
        shared, other = max(found, default=(0, None), key=lambda f: f[0])
        return other, shared


class Due(NamedTuple):
    """A prompt to be prefilled: from which other one it goes on, after how many common tokens."""

    ids: Ids
    source: Ids | None
    shared: int

    @property
    def tokens(self) -> int:
        return len(self.ids) - self.shared


def common(first: Ids, second: Ids) -> int:
    """Return how many tokens both begin with; at most all but the last of the shorter one."""
    most = min(len(first), len(second)) - 1
    if first[:most] == second[:most]:
        return most
    low, high = 0, most  # the first ``low`` are equal, the first ``high`` are not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low


def waves(prompts: Sequence[Ids], known: Beginnings) -> list[list[Due]]:
    """Return the prompts in waves: each goes on from a known prompt or from one of an earlier wave.

    In lexicographic order a prompt shares most with a neighbour; so every token of the trie of prompts is computed once,
    but for the few that would need a wave of their own.
    """
    made: dict[Ids, tuple[int, Due]] = {}
    before: dict[int, Ids] = {}
    for ids in sorted(prompts):
        source, shared = known.closest(ids)
        last = before.get(len(ids) % known.grain)
        if last is not None and (here := common(ids, last)) > shared:
            source, shared = last, here
        before[len(ids) % known.grain] = ids
        while source is not None and source in made and (other := made[source][1]).source is not None and other.shared + LEAST > shared:
            source, shared = other.source, min(shared, other.shared)  # siblings go on from the same one
        due = Due(ids, source, shared) if source is not None and shared >= LEAST else Due(ids, None, 0)
        made[ids] = (made[due.source][0] + 1 if due.source is not None and due.source in made else 0, due)
    out: list[list[Due]] = [[] for _ in range(1 + max((wave for wave, _ in made.values()), default=-1))]
    for wave, due in made.values():
        out[wave].append(due)
    return out


class Prefill:
    """Gives prompts their keys and values.

    Parameters
    ----------
    net: the model taken apart
    cache_bytes: how much is kept between batches
    most_tokens: most prompt tokens of one forward
    """

    def __init__(self, net: Network, cache_bytes: int, most_tokens: int) -> None:
        self.net, self.most_tokens = net, most_tokens
        self.kept = Prefilled(cache_bytes, net.attention.GRAIN)
        self.fed = 0  # prompt tokens computed so far

    def forget(self) -> None:
        """Drop what is kept between batches."""
        self.kept = Prefilled(self.kept.budget, self.net.attention.GRAIN)

    def entries(self, prompts: Sequence[Ids], along: Along | None = None, captured: dict[Ids, Captured] | None = None) -> list[Entry]:
        """Return the entry of every prompt; what is not kept is computed, equal prompts once.

        Parameters
        ----------
        along: captured of the prompts whose last tokens are computed now, and put into ``captured``
        """
        found: dict[Ids, Entry] = {}
        for ids in dict.fromkeys(prompts):
            kept = self.kept.get(ids)
            if kept is not None:
                found[ids] = kept
        planned = waves([ids for ids in dict.fromkeys(prompts) if ids not in found], self.kept.known)
        sources: dict[Ids, Entry] = dict(found)
        for source in {d.source for wave in planned for d in wave if d.source is not None}:
            if (kept := self.kept.get(source)) is not None:
                sources[source] = kept
        for wave in planned:
            for group in alike(wave, self.most_tokens, LIKE_BY_TOKEN if self.net.attention.GRAIN == 1 else LIKE):
                self.fed += sum(d.tokens for d in group)
                made = self._go_on(group, [None if d.source is None else sources[d.source] for d in group], along, captured)
                for due, entry in zip(group, made, strict=True):
                    found[due.ids] = sources[due.ids] = entry
                    self.kept.put(due.ids, entry)
        return [found[ids] for ids in prompts]

    def _go_on(
        self, group: Sequence[Due], sources: Sequence[Entry | None], along: Along | None, captured: dict[Ids, Captured] | None
    ) -> list[Entry]:  # fmt: skip
        """Feed what of each prompt is not in its source, one row each; only last tokens, and captured ones, pass the last block."""
        net, rows, grain = self.net, len(group), self.net.attention.GRAIN
        own = [round_up(len(d.ids), grain) for d in group]
        slots, tokens = max(own), max(d.tokens for d in group)
        begin = slots - tokens
        start = begin // grain * grain
        prompt, firsts = self._shared(group, sources)
        heads = [(sources[r], own[r] - slots) for r in firsts]  # what lies before ``start`` is there once for rows that share it
        lengths = np.array([len(group[r].ids) for r in firsts])
        kv = None
        if start:
            valid = torch.arange(start)[None] >= torch.from_numpy(slots - lengths)[:, None]
            kv = PromptKV(self._parts(heads, 0, start, 0), self._parts(heads, 0, start, 1), valid.to(net.device))
        state = empty_state(net, prompt, start)
        each = [(source, own[r] - slots) for r, source in enumerate(sources)]  # what a row feeds itself is written over it
        state.keys, state.values = self._parts(each, start, slots, 0), self._parts(each, start, slots, 1)
        state.used = begin - start
        spans = Spans(np.array([tokens - d.tokens for d in group]), tokens)
        ids = torch.tensor([token for d in group for token in d.ids[-d.tokens :]], device=net.device)
        last = "latent_out" if net.adapter.projection is not None else None
        after, sites = (tokens - 1, frozenset()) if along is None else (max(tokens - along.tail, 0), along.sites)
        result = run_stage(
            net, Batch(kv, lengths, slots), state, net.embed(ids), np.arange(rows), _no_apply, capture=sites, last_component=last,
            spans=spans, reach=Reach(spans.first, after), capture_from=after,
        )  # fmt: skip
        state = result.state
        if along is not None and captured is not None:
            for row, due in enumerate(group):
                if due.tokens >= along.tail:
                    captured[due.ids] = {site: values[row, -along.tail :].clone() for site, values in result.captured.items()}
        before = [start + count - slots for count in own]
        keys, values = (_wholes(sources, which, before, made) for which, made in ((0, state.keys), (1, state.values)))
        return [Entry(*both, last) for both, last in zip(zip(keys, values, strict=True), state.last.clone(), strict=True)]

    def _shared(self, group: Sequence[Due], sources: Sequence[Entry | None]) -> tuple[np.ndarray, list[int]]:
        """Return for each row the number of its source (of its length), and the first row of each."""
        numbers: dict[tuple[int, int], int] = {}
        firsts: list[int] = []
        prompt = np.zeros(len(group), np.int64)
        for row, (due, source) in enumerate(zip(group, sources, strict=True)):
            key = (-1 if source is None else id(source), len(due.ids))
            if key not in numbers:
                numbers[key] = len(firsts)
                firsts.append(row)
            prompt[row] = numbers[key]
        return prompt, firsts

    def _parts(self, entries: Sequence[tuple[Entry | None, int]], begin: int, end: int, which: int) -> list[torch.Tensor]:
        """Return per layer entries × kv heads × (end − begin) × head_dim; slot s of the group is slot s + shift of an (entry, shift)."""
        info, out = self.net.info, []
        for layer in range(len(self.net.blocks)):
            whole = torch.zeros(len(entries), info.kv_heads, end - begin, info.head_dim, device=self.net.device, dtype=self.net.dtype)
            for row, (entry, shift) in enumerate(entries):
                if entry is not None and end + shift > 0:
                    first = max(begin + shift, 0)
                    part = entry[which][layer][:, first : end + shift]
                    whole[row, :, first - shift - begin :][:, : part.shape[1]] = part
            out.append(whole)
        return out


def _wholes(sources: Sequence[Entry | None], which: int, before: Sequence[int], made: list[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Return per row and layer a prompt's keys or values; what was made is given up layer by layer."""
    out: list[list[torch.Tensor]] = [[] for _ in sources]
    for layer in range(len(made)):
        for row, source in enumerate(sources):
            out[row].append(_whole(None if source is None else source[which][layer], before[row], made[layer][row]))
        made[layer] = made[layer].new_empty(0)
    return out


def _whole(source: torch.Tensor | None, before: int, made: torch.Tensor) -> torch.Tensor:
    """Return ``before`` slots of a prompt's source and what was made, without as many slots of it where that is negative."""
    if source is None or before <= 0:  # a prompt without a source was fed from its first token on
        return made[:, -before:].clone()
    return torch.cat([source[:, :before], made], 1)


def alike(dues: Sequence[Due], budget: int, like: float = LIKE) -> list[list[Due]]:
    """Group prompts with about as many tokens to feed, so that a group's padded tokens stay within the budget."""
    groups: list[list[Due]] = []
    for due in sorted(dues, key=lambda d: -d.tokens):
        group = groups[-1] if groups else None
        if group is None or (len(group) + 1) * group[0].tokens > budget or due.tokens * like < group[0].tokens:
            groups.append([])
        groups[-1].append(due)
    return groups


def _no_apply(*_: Any) -> torch.Tensor:
    raise RuntimeError("a prefill edits nothing")
