"""The rollout: all cells of a batch advance together through prompt, latent steps and answer.

Each phase is a sequence of stages (``core.wavefront``). A row is a distinct state: cells share one as long as neither
their edits nor their tokens differ, so a baseline, a common prefix of edits or thirty trials of one prompt are
computed once. Masks and positions follow from slots at every call.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from codi_engine.core.attention import BLOCK, PromptKV, round_up
from codi_engine.core.network import Network
from codi_engine.core.sampling import Sampler, sample
from codi_engine.core.sites import Phase
from codi_engine.core.wavefront import Apply, Batch, Edit, StageResult, State, empty_state, run_stage


@dataclass(frozen=True)
class Task:
    """One cell as the rollout sees it.

    ``prompt`` indexes the batch's prompts; ``edits`` are keyed by phase; ``gold`` and ``other`` are answers in tokens
    (after the forced prefix), empty when there is none; ``key`` seeds the cell's random numbers.
    """

    prompt: int
    edits: Mapping[Phase, Sequence[Edit]] = field(default_factory=dict)
    gold: Sequence[int] = ()
    other: Sequence[int] = ()
    key: int = 0


@dataclass(frozen=True)
class Want:
    """What a rollout shall produce.

    ``captures`` maps (component, phase) to (layers, places): places are negative prompt positions, latent steps or
    answer indices; ``generate`` asks for text of at most ``max_new_tokens``; ``read`` for the forced reading of
    the answer's number; ``first`` for the logits at the first answer token.
    """

    captures: Mapping[tuple[str, Phase], tuple[tuple[int | None, ...], tuple[int, ...]]] = field(default_factory=dict)
    generate: bool = True
    read: bool = True
    first: bool = True
    max_new_tokens: int = 64
    prefix: Sequence[int] = ()
    sampler: Sampler | None = None
    reference_slice: bool = False


@dataclass
class Produced:
    """What the cells of a batch produced, in the order of the tasks (see ``plugin.Outcome`` for the arrays)."""

    tokens: list[list[int]]
    first_logits: torch.Tensor
    number_logits: torch.Tensor
    gold_logprob: np.ndarray
    other_logprob: np.ndarray
    gold_logit: np.ndarray
    other_logit: np.ndarray
    captures: dict[tuple[str, int | None, Phase], torch.Tensor]
    rows: int = 0
    forwarded: int = 0


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
        self.prefilled = Prefilled(cache_bytes)
        self.prefill_tokens = prefill_tokens
        self.fed = 0  # prompt tokens prefilled so far

    @torch.inference_mode()
    def run(self, prompts: Sequence[Sequence[int]], tasks: Sequence[Task], want: Want, apply: Apply = _no_apply) -> Produced:
        """Run every task; prompts are token ids, special tokens included.

        Rows of one call are bounded by the caller (one row per task at most, times prompt tokens after an edit).
        """
        return _Batch(self, prompts, tasks, want, apply).run()

    def load_prompts(self, prompts: Sequence[Sequence[int]]) -> tuple[PromptKV, torch.Tensor]:
        """Return keys and values of the prompts, right-aligned, and their last final-norm states."""
        slots = max(round_up(len(p), BLOCK) for p in prompts)
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
        """Feed whole prompts, one row each, left-padded to a multiple of the block."""
        net = self.net
        lengths = np.array([len(p) for p in prompts])
        slots = round_up(int(lengths.max()), BLOCK)
        ids = torch.zeros(len(prompts), slots, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, slots - len(prompt) :] = torch.tensor(list(prompt))
        state = empty_state(net, np.arange(len(prompts)), 0)
        batch = Batch(None, lengths, slots)
        last = "latent_out" if net.adapter.projection is not None else None
        cells = np.arange(len(prompts))
        return run_stage(net, batch, state, net.embed(ids.to(net.device)), cells, _no_apply, None, capture, last)


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


class _Batch:
    """One call of :meth:`Rollout.run`."""

    def __init__(self, rollout: Rollout, prompts: Sequence[Sequence[int]], tasks: Sequence[Task], want: Want, apply: Apply) -> None:
        self.rollout, self.net = rollout, rollout.net
        self.prompts, self.tasks, self.want, self.apply = prompts, tasks, want, apply
        self.lengths = np.array([len(p) for p in prompts])
        self.kv, self.last = rollout.load_prompts(prompts)
        #: without a prefix the number is predicted at the first answer token: one set of logits serves as both
        self.same_place = not want.prefix
        self.rows = 0
        self.forwarded = 0
        self.reached: set[tuple[int, Phase, int]] = set()
        cells = len(tasks)
        vocabulary = net_vocabulary(self.net)
        self.tokens: list[list[int]] = [[] for _ in tasks]
        self.first = torch.empty(cells if want.first and not (want.read and self.same_place) else 0, vocabulary, device=self.net.device)
        self.number = torch.empty(cells if want.read else 0, vocabulary, device=self.net.device)
        self.captured: dict[tuple[str, int | None, Phase], torch.Tensor] = {}
        longest = max((max(len(t.gold), len(t.other)) for t in tasks), default=0)
        shape = (cells, max(longest, 1))
        self.answer_reads = {name: np.full(shape, np.nan) for name in ("gold_logprob", "other_logprob", "gold_logit", "other_logit")}

    def run(self) -> Produced:
        for slot, cells in self._groups().items():
            self._run_group(slot, cells)
        for cell, task in enumerate(self.tasks):
            for phase, edits in task.edits.items():
                for edit in edits:
                    if (cell, phase, edit.place) not in self.reached:
                        raise RuntimeError(f"an edit at {edit.site}@{phase}[{edit.place}] was never reached")
        first = self.number if self.want.first and self.want.read and self.same_place else self.first
        return Produced(
            self.tokens, first, self.number, **self.answer_reads,
            captures=self.captured, rows=self.rows, forwarded=self.forwarded,
        )  # fmt: skip

    def _groups(self) -> dict[int | None, list[int]]:
        """Group cells by the slot of their earliest prompt edit (None: the prompt is untouched)."""
        groups: dict[int | None, list[int]] = defaultdict(list)
        captured = [p for (_, phase), (_, places) in self.want.captures.items() if phase == "prompt" for p in places]
        for cell, task in enumerate(self.tasks):
            places = [e.place for e in task.edits.get("prompt", ())] + captured
            groups[self.kv.slots + min(places) if places else None].append(cell)
        return groups

    # -------------------------------------------------------------------------------------------- phases

    def _run_group(self, slot: int | None, cells: list[int]) -> None:
        used = np.unique([self.tasks[c].prompt for c in cells])
        cell_row = np.full(len(self.tasks), -1)
        cell_row[cells] = np.searchsorted(used, [self.tasks[c].prompt for c in cells])
        if slot is None:
            self.batch = Batch(self.kv, self.lengths, self.kv.slots)
            state = empty_state(self.net, used, self.kv.slots)
            state.last = self.last[torch.from_numpy(used).to(self.last.device)]
        else:
            state, cell_row = self._prompt(slot, used, cell_row)
        for step in range(self.net.info.latents):
            inputs = self.net.project(state.last)[:, None]
            state, cell_row, _ = self._stage(state, cell_row, inputs, "latent", step, last="latent_out", consume=True)
        if self.want.read or self.want.generate or self.want.first:
            self._answer(state, cell_row)

    def _prompt(self, slot: int, used: np.ndarray, cell_row: np.ndarray) -> tuple[State, np.ndarray]:
        """Run the prompt's tokens from ``slot`` on, for rows whose prompt is edited (or captured) from there."""
        slots = self.kv.slots
        start = slot // BLOCK * BLOCK
        kv = self.kv.head(start) if start else None
        self.batch = Batch(kv, self.lengths, slots)
        state = empty_state(self.net, used, start)
        index = torch.from_numpy(used).to(self.net.device)
        state.keys = [k[index, :, start:slot] for k in self.kv.keys]
        state.values = [v[index, :, start:slot] for v in self.kv.values]
        state.used = slot - start
        ids = torch.zeros(len(used), slots - slot, dtype=torch.long)
        for row, prompt in enumerate(used):
            tail = list(self.prompts[prompt])[-(slots - slot) :]
            ids[row, slots - slot - len(tail) :] = torch.tensor(tail)
        inputs = self.net.embed(ids.to(self.net.device))
        last = "latent_out" if self.net.info.latents else None
        state, cell_row, _ = self._stage(state, cell_row, inputs, "prompt", slot - slots, last=last, keep=self._goes_on())
        return state, cell_row

    def _goes_on(self) -> bool:
        """True when stages follow the prompt: latents, a forced prefix, or generated tokens."""
        want = self.want
        longer = want.read and any(len(t.gold) > 1 or len(t.other) > 1 for t in self.tasks)
        forced = bool(self.net.adapter.answer_start) and (want.first or want.read)
        return bool(self.net.info.latents or want.generate or longer or forced or (want.read and want.prefix))

    def _stage(
        self, state: State, cell_row: np.ndarray, inputs: torch.Tensor, phase: Phase, place: int, last: str | None = None,
        edited: bool = True, captured: bool = True, keep: bool = True, consume: bool = False,
    ) -> tuple[State, np.ndarray, StageResult]:  # fmt: skip
        """Run one stage whose first token stands at ``place``; edits and captures of these places apply."""
        tokens = inputs.shape[1]
        edits: dict[int, list[tuple[int, Edit]]] = {}
        for cell in np.flatnonzero(cell_row >= 0).tolist() if edited else ():
            due = [(e.place - place, e) for e in self.tasks[cell].edits.get(phase, ()) if 0 <= e.place - place < tokens]
            if due:
                edits[cell] = due
                self.reached.update((cell, phase, e.place) for _, e in due)
        wanted = self._wanted(phase, place, tokens) if captured else {}
        result = run_stage(
            self.net, self.batch, state, inputs, cell_row, self.apply, edits, frozenset(wanted), last, keep, consume
        )  # fmt: skip
        self.rows = max(self.rows, result.state.rows)
        self.forwarded += result.state.rows * tokens
        for (component, layer), places in wanted.items():
            self._keep(component, layer, phase, place, places, result)
        return result.state, result.cell_row, result

    def _wanted(self, phase: Phase, place: int, tokens: int) -> dict[tuple[str, int | None], list[int]]:
        wanted: dict[tuple[str, int | None], list[int]] = {}
        for (component, where), (layers, places) in self.want.captures.items():
            here = [p for p in places if place <= p < place + tokens]
            if where == phase and here and component != "logits":
                wanted.update({(component, layer): here for layer in layers})
        return wanted

    def _keep(self, component: str, layer: int | None, phase: Phase, place: int, places: list[int], result: StageResult) -> None:
        values = result.captured[component, layer]
        _, all_places = self.want.captures[component, phase]
        key = (component, layer, phase)
        if key not in self.captured:
            self.captured[key] = values.new_full((len(self.tasks), len(all_places), values.shape[-1]), float("nan"))
        cells = np.flatnonzero(result.cell_row >= 0)
        rows = torch.from_numpy(result.cell_row[cells]).to(values.device)
        index = torch.from_numpy(cells).to(values.device)
        for p in places:
            self.captured[key][index, all_places.index(p)] = values[rows, p - place]

    # -------------------------------------------------------------------------------------------- answer

    def _answer(self, state: State, cell_row: np.ndarray) -> None:
        """Read the number's place after the forced prefix, and generate; tokens that agree are computed once."""
        want, start = self.want, list(self.net.adapter.answer_start)
        forced = start + list(want.prefix) if want.read else start
        before, before_row = state, cell_row
        rows_before = state.rows
        predictions = []
        if not start:
            predictions.append(self.net.logits(state.last))
        normed = None
        if forced:
            inputs = self._embedded([forced] * state.rows)
            state, cell_row, result = self._stage(state, cell_row, inputs, "answer", 0)
            normed = result.normed
            origin = np.arange(state.rows) if state.rows == rows_before else None
            if predictions and origin is None:
                first_cells = _first_cell(cell_row)
                predictions[0] = predictions[0][torch.from_numpy(before_row[first_cells]).to(normed.device)]
            predictions += [self.net.logits(normed[:, i]) for i in self._read_at(len(start), len(forced))]
        if len(self.first):
            self._scatter(self.first, cell_row, predictions[0])
        if want.read:
            self._scatter(self.number, cell_row, predictions[-1])
            self._read_answers(state, cell_row, predictions[-1])
        if want.generate:
            self._generate_from(state, cell_row, predictions, before, before_row)

    def _read_at(self, start: int, forced: int) -> list[int]:
        """Return the forced tokens whose next-token logits are needed: all to follow a generation, else first and last."""
        first = max(start - 1, 0)
        following = self.want.generate and self.want.sampler is None
        return [i for i in range(first, forced) if following or i in (first, forced - 1)]

    def _generate_from(self, state: State, cell_row: np.ndarray, predictions: list[torch.Tensor], before: State, before_row: np.ndarray) -> None:
        """Continue rows whose own tokens are the forced prefix; start the others again right after the latents."""
        prefix = list(self.want.prefix) if self.want.read else []
        agrees = np.full(state.rows, not prefix)
        if prefix and self.want.sampler is None and len(prefix) < self.want.max_new_tokens:
            chosen = np.stack([self._greedy(p).cpu().numpy() for p in predictions[:-1]])
            agrees = (chosen == np.array(prefix)[:, None]).all(0)
        live = np.flatnonzero(cell_row >= 0)
        going = np.full_like(cell_row, -1)
        going[live] = np.where(agrees[cell_row[live]], cell_row[live], -1)
        again = np.full_like(cell_row, -1)
        again[live] = np.where(agrees[cell_row[live]], -1, before_row[live])
        if (going >= 0).any():
            for cell in np.flatnonzero(going >= 0):
                self.tokens[cell] = list(prefix)
            self._decode(state, going, predictions[-1], len(self.net.adapter.answer_start) + len(prefix))
        if (again >= 0).any():
            self._restart(before, again)

    def _restart(self, state: State, cell_row: np.ndarray) -> None:
        start = list(self.net.adapter.answer_start)
        state, cell_row = _compact(state, cell_row)
        if not start:
            self._decode(state, cell_row, self.net.logits(state.last), 0)
            return
        state, cell_row, result = self._stage(
            state, cell_row, self._embedded([start] * state.rows), "answer", 0, captured=False
        )  # fmt: skip
        self._decode(state, cell_row, self.net.logits(result.normed[:, -1]), len(start))

    def _decode(self, state: State, cell_row: np.ndarray, logits: torch.Tensor, place: int) -> None:
        """Generate token by token; a row splits when its cells' tokens differ and ends when all have stopped."""
        stop = set(self.net.adapter.stop_ids)
        while True:
            cells = np.flatnonzero(cell_row >= 0)
            tokens = self._choose(cells, cell_row[cells], logits)
            for cell, token in zip(cells.tolist(), tokens.tolist(), strict=True):
                self.tokens[cell].append(token)
            going = np.array([t not in stop for t in tokens.tolist()])
            going &= np.array([len(self.tokens[c]) < self.want.max_new_tokens for c in cells.tolist()])
            if not going.any():
                return
            cell_row = cell_row.copy()
            key = cell_row[cells[going]] * (net_vocabulary(self.net) + 1) + tokens[going]
            unique, inverse = np.unique(key, return_inverse=True)
            cell_row[cells] = -1
            cell_row[cells[going]] = inverse
            state = state.select(unique // (net_vocabulary(self.net) + 1))
            inputs = self._embedded([[int(t)] for t in unique % (net_vocabulary(self.net) + 1)])
            state, cell_row, result = self._stage(state, cell_row, inputs, "answer", place, captured=False, consume=True)
            logits = self.net.logits(result.normed[:, -1])
            place += 1

    def _choose(self, cells: np.ndarray, rows: np.ndarray, logits: torch.Tensor) -> np.ndarray:
        if self.want.sampler is None:
            return self._greedy(logits).cpu().numpy()[rows]  # type: ignore[no-any-return]
        keys = [self.tasks[c].key for c in cells.tolist()]
        at = [len(self.tokens[c]) for c in cells.tolist()]
        return sample(self._allowed(logits), rows, keys, at, self.want.sampler)

    def _allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask ids that are never generated; the reference's own slice bans the last id only."""
        first = logits.shape[1] - 1 if self.want.reference_slice else self.net.adapter.banned_ids_from
        if first is None or first >= logits.shape[1]:
            return logits
        logits = logits.clone()
        logits[:, first:] = float("-inf")
        return logits

    def _greedy(self, logits: torch.Tensor) -> torch.Tensor:
        return self._allowed(logits).argmax(-1)

    def _read_answers(self, state: State, cell_row: np.ndarray, logits: torch.Tensor) -> None:
        """Teacher-force the gold and the other answer; several tokens need one further stage per answer length."""
        norms = _log_norms(logits)
        for name in ("gold", "other"):
            groups: dict[int, list[int]] = defaultdict(list)
            for cell in np.flatnonzero(cell_row >= 0).tolist():
                if getattr(self.tasks[cell], name):
                    groups[len(getattr(self.tasks[cell], name))].append(cell)
            self._keep_token(name, [c for cells in groups.values() for c in cells], cell_row, 0, logits, norms)
            for length, cells in groups.items():
                if length > 1:
                    self._read_longer(name, state, cell_row, cells, length)

    def _read_longer(self, name: str, state: State, cell_row: np.ndarray, cells: list[int], length: int) -> None:
        keys = {(int(cell_row[c]), tuple(getattr(self.tasks[c], name))): 0 for c in cells}
        nodes = {key: i for i, key in enumerate(sorted(keys))}
        forked = state.select(np.array([row for row, _ in nodes]))
        if forked is state:
            forked = state.fork()
        inputs = self._embedded([ids[:-1] for _, ids in nodes])
        rows = np.full_like(cell_row, -1)
        for c in cells:
            rows[c] = nodes[int(cell_row[c]), tuple(getattr(self.tasks[c], name))]
        _, rows, result = self._stage(forked, rows, inputs, "answer", 0, edited=False, captured=False)
        for i in range(length - 1):
            logits = self.net.logits(result.normed[:, i])
            self._keep_token(name, cells, rows, i + 1, logits, _log_norms(logits))

    def _keep_token(self, name: str, cells: list[int], rows: np.ndarray, place: int, logits: torch.Tensor, norms: torch.Tensor) -> None:
        """Keep logit and log-probability of the ``place``-th answer token of each cell."""
        if not cells:
            return
        index = torch.from_numpy(rows[cells]).to(logits.device)
        token = torch.tensor([getattr(self.tasks[c], name)[place] for c in cells], device=logits.device)
        logit = logits[index, token].double()
        self.answer_reads[f"{name}_logit"][cells, place] = logit.cpu().numpy()
        self.answer_reads[f"{name}_logprob"][cells, place] = (logit - norms[index]).cpu().numpy()

    # -------------------------------------------------------------------------------------------- pieces

    def _embedded(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        return self.net.embed(torch.tensor([list(i) for i in ids], device=self.net.device))

    def _scatter(self, out: torch.Tensor, cell_row: np.ndarray, values: torch.Tensor) -> None:
        cells = np.flatnonzero(cell_row >= 0)
        out[torch.from_numpy(cells).to(out.device)] = values[torch.from_numpy(cell_row[cells]).to(values.device)]


def _log_norms(logits: torch.Tensor) -> torch.Tensor:
    """Return log Σ exp of each row in float64, a few rows at a time."""
    return torch.cat([torch.logsumexp(logits[i : i + 64].double(), -1) for i in range(0, len(logits), 64)])


def net_vocabulary(net: Network) -> int:
    return net.info.vocab_size


def _first_cell(cell_row: np.ndarray) -> np.ndarray:
    """Return one cell of every row."""
    cells = np.flatnonzero(cell_row >= 0)
    _, first = np.unique(cell_row[cells], return_index=True)
    return cells[first]


def _compact(state: State, cell_row: np.ndarray) -> tuple[State, np.ndarray]:
    """Drop rows without cells."""
    cells = np.flatnonzero(cell_row >= 0)
    rows, inverse = np.unique(cell_row[cells], return_inverse=True)
    out = np.full_like(cell_row, -1)
    out[cells] = inverse
    return state.select(rows), out


__all__ = ["Prefilled", "Produced", "Rollout", "Task", "Want"]
