"""One batch of the rollout: rows advance through prompt and latent steps, and split where their edits differ."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from codi_engine.core.rollout.accounting import Missed
from codi_engine.core.rollout.answering import Answering, compact
from codi_engine.core.rollout.attention import BLOCK
from codi_engine.core.rollout.finite import broken_cells
from codi_engine.core.rollout.prefill import Along, Captured, Ids
from codi_engine.core.rollout.spans import Spans
from codi_engine.core.rollout.state import Batch, Reach, StageResult, State, empty_state
from codi_engine.core.rollout.tasks import Apply, Edit, Produced, Task, Want
from codi_engine.core.rollout.wavefront import run_stage
from codi_engine.core.sites import Phase, Site

if TYPE_CHECKING:
    from codi_engine.core.rollout.rollout import Rollout


class BatchRun:
    """One call of :meth:`Rollout.run`: its cells from the prompt to the last latent; ``answering`` goes on from there."""

    def __init__(self, rollout: Rollout, prompts: Sequence[Sequence[int]], tasks: Sequence[Task], want: Want, apply: Apply) -> None:
        self.rollout, self.net = rollout, rollout.net
        self.prompts, self.tasks, self.want, self.apply = prompts, tasks, want, apply
        self.lengths = np.array([len(p) for p in prompts])
        #: latents that each cell consumes
        self.latents = np.array([self.net.info.latents if t.latents is None else t.latents for t in tasks])
        captured = [p for (_, phase), (_, places) in want.captures.items() if phase == "prompt" for p in places]
        # what is captured may lie before the first token of every prompt of this batch, if longer ones are in others
        tail = -min(captured, default=0)
        along = self._along(tail)
        seen: dict[Ids, Captured] = {}
        self.loaded = rollout.load_prompts(prompts, tail, along, seen)
        #: without a prefix the number is predicted at the first answer token: one set of logits serves as both
        self.same_place = not want.prefix
        self.rows = 0
        self.forwarded = 0
        self.reached: set[tuple[int, Site, int | None]] = set()
        #: cells of which a value that was read on the way is not finite
        self.spoilt = np.zeros(len(tasks), bool)
        #: cell → the first place of its prompt that is computed anew, from the end; 0: none
        self.place = np.zeros(len(tasks), np.int64)
        self.opened: dict[tuple[Edit, int], Edit] = {}
        for observer in want.observers:
            observer.begin(len(tasks))
        cells = len(tasks)
        vocabulary = self.net.info.vocab_size
        self.tokens: list[list[int]] = [[] for _ in tasks]
        self.first = torch.empty(cells if want.first and not (want.read and self.same_place) else 0, vocabulary, device=self.net.device)
        self.number = torch.empty(cells if want.read else 0, vocabulary, device=self.net.device)
        self.captured: dict[tuple[str, int | None, Phase], torch.Tensor] = {}
        #: True where the prompts were prefilled just now, and what is captured of them came along
        self.came_along = along is not None and all(tuple(p) in seen for p in prompts)
        if self.came_along:
            self._take_along([seen[tuple(p)] for p in prompts], tail)
        longest = max((max(len(t.gold), len(t.other)) for t in tasks), default=0)
        shape = (cells, max(longest, 1))
        self.answer_reads = {name: np.full(shape, np.nan) for name in ("gold_logprob", "other_logprob", "gold_logit", "other_logit")}

    def run(self) -> Produced:
        for block, cells in self._groups().items():
            self._run_group(cells, edited=block is not None)
        self._account()
        first = self.number if self.want.first and self.want.read and self.same_place else self.first
        lengths = self.lengths[[t.prompt for t in self.tasks]]
        broken = broken_cells((self.first, self.number), self.captured, self.want.captures, lengths, self.latents)
        return Produced(
            self.tokens, first, self.number, **self.answer_reads,
            captures=self.captured, rows=self.rows, forwarded=self.forwarded, broken=broken | self.spoilt,
        )  # fmt: skip

    def _account(self) -> None:
        """Every edit that a cell asks for must have been made: each stage counts its own, and every place must have had its stage.

        Raises
        ------
        Missed: the first one that was not
        """
        for cell, task in enumerate(self.tasks):
            for edits in task.edits.values():
                for edit in edits:
                    if edit.place is not None and (cell, edit.site, edit.place) not in self.reached:
                        raise Missed(edit.site, edit.place, cell, "its place was never reached")

    def _along(self, tail: int) -> Along | None:
        """Return what can be captured while the prompts are prefilled; None where there is nothing, or cells edit their prompts."""
        wanted = {(component, layer) for (component, phase), (layers, _) in self.want.captures.items() if phase == "prompt" for layer in layers}
        if not tail or self.want.observers or any(component == "logits" for component, _ in wanted) or any(t.edits.get("prompt") for t in self.tasks):
            return None
        return Along(frozenset(wanted), tail)

    def _take_along(self, seen: Sequence[Captured], tail: int) -> None:
        """Give cells what was captured of their prompts' last ``tail`` tokens."""
        prompts = [task.prompt for task in self.tasks]
        for (component, phase), (layers, places) in self.want.captures.items():
            for layer in layers if phase == "prompt" else ():
                values = torch.stack([one[component, layer] for one in seen])
                self.captured[component, layer, phase] = values[prompts][:, [tail + p for p in places]]

    def _groups(self) -> dict[int | None, list[int]]:
        """Group cells by the block of places in which the first token lies that they compute anew (None: the prompt is untouched)."""
        groups: dict[int | None, list[int]] = defaultdict(list)
        captured = [p for (_, phase), (_, places) in self.want.captures.items() if phase == "prompt" and not self.came_along for p in places]
        captured += [-1] if self.want.observers else []
        whole = any(o.whole_prompt for o in self.want.observers)
        for cell, task in enumerate(self.tasks):
            places = [e.place for e in task.edits.get("prompt", ()) if e.place is not None] + captured
            places += [-int(self.lengths[task.prompt])] if whole else []
            self.place[cell] = min(places, default=0)
            groups[min(places) // BLOCK if places else None].append(cell)
        return groups

    # -------------------------------------------------------------------------------------------- phases

    def _run_group(self, cells: list[int], edited: bool) -> None:
        used = np.unique([self.tasks[c].prompt for c in cells])
        cell_row = np.full(len(self.tasks), -1)
        cell_row[cells] = np.searchsorted(used, [self.tasks[c].prompt for c in cells])
        if not edited:
            slots = self.loaded.slots
            self.batch = Batch(self.loaded.kv if self._goes_on() else None, self.lengths, slots, self._most())
            state = empty_state(self.net, used, slots)
            state.last = self.loaded.last[torch.from_numpy(used).to(self.net.device)]
        else:
            state, cell_row = self._prompt(used, cell_row)
        for step in range(self.net.info.latents):
            cell_row = self._leave(state, cell_row, step)
            if not (cell_row >= 0).any():
                return
            inputs = self.net.project(state.last)[:, None]
            state, cell_row, _ = self.stage(state, cell_row, inputs, "latent", step, last="latent_out", consume=True)
        if self.want.read or self.want.generate or self.want.first:
            Answering(self).answer(state, cell_row)

    def _leave(self, state: State, cell_row: np.ndarray, step: int) -> np.ndarray:
        """Let the cells that answer in place of this step answer now; return the others' rows."""
        early = np.array([task.latents == step for task in self.tasks]) & (cell_row >= 0)
        if not early.any():
            return cell_row
        leaving, leaving_row = compact(state, np.where(early, cell_row, -1))
        Answering(self).answer(leaving if leaving is not state else state.fork(), leaving_row)
        return np.where(early, -1, cell_row)

    def _most(self) -> int:
        """Return the most tokens that follow a prompt."""
        longest = max(self.want.max_new_tokens if self.want.generate else 0, self.answer_reads["gold_logit"].shape[1] if self.want.read else 0)
        forced = len(self.net.adapter.answer_start) + (len(self.want.prefix) if self.want.read else 0)
        return int(self.latents.max(initial=0)) + forced + longest

    def _prompt(self, used: np.ndarray, cell_row: np.ndarray) -> tuple[State, np.ndarray]:
        """Run of each prompt the tokens that its cells compute anew."""
        slots, device = self.loaded.slots, self.net.device
        live = np.flatnonzero(cell_row >= 0)
        slot = slots + int(self.place[live].min())
        start = slot // self.net.attention.GRAIN * self.net.attention.GRAIN
        kv = self.loaded.kv
        self.batch = Batch(kv.head(start) if start else None, self.lengths, slots, slots - start + self._most())
        reach = np.zeros(len(cell_row), np.int64)
        reach[live] = slots + self.place[live] - slot
        first = np.full(len(used), slots - slot)
        np.minimum.at(first, cell_row[live], reach[live])
        spans = Spans(first, slots - slot)
        state = empty_state(self.net, used, start)
        index = torch.from_numpy(used).to(device)
        state.keys = [k[index, :, start:] for k in kv.keys]
        state.values = [v[index, :, start:] for v in kv.values]
        state.used = slot - start
        ids = [t for prompt, count in zip(used, spans.counts, strict=True) for t in _tail(self.prompts[prompt], count)]
        inputs = self.net.embed(torch.tensor(ids, device=device))
        last = "latent_out" if self.net.info.latents else None
        state, cell_row, _ = self.stage(
            state, cell_row, inputs, "prompt", slot - slots, last=last, keep=self._goes_on(), spans=spans, reach=Reach(reach, self._after(slots - slot))
        )
        return state, cell_row

    def _after(self, tokens: int) -> int:
        """Return the first offset of the prompt's last ``tokens`` that is read after the last block."""
        places = [p for (_, phase), (_, places) in self.want.captures.items() if phase == "prompt" for p in places]
        whole = any(o.whole_prompt for o in self.want.observers)
        return 0 if whole else max(tokens + min(places, default=-1), 0)

    def _goes_on(self) -> bool:
        """True when stages follow the prompt: latents, a forced prefix, or generated tokens."""
        want = self.want
        longer = want.read and any(len(t.gold) > 1 or len(t.other) > 1 for t in self.tasks)
        forced = bool(self.net.adapter.answer_start) and (want.first or want.read)
        return bool(self.net.info.latents or want.generate or longer or forced or (want.read and want.prefix))

    def stage(
        self, state: State, cell_row: np.ndarray, inputs: torch.Tensor, phase: Phase, place: int, last: str | None = None,
        edited: bool = True, captured: bool = True, keep: bool = True, consume: bool = False, observed: bool = True,
        spans: Spans | None = None, reach: Reach | None = None,
    ) -> tuple[State, np.ndarray, StageResult]:  # fmt: skip
        """Run one stage whose first token stands at ``place``; edits and captures of these places apply."""
        tokens = inputs.shape[1] if spans is None else spans.size
        edits: dict[int, list[tuple[int, Edit]]] = {}
        for cell in np.flatnonzero(cell_row >= 0).tolist() if edited else ():
            due = self._due(self.tasks[cell].edits.get(phase, ()), place, tokens)
            if due:
                edits[cell] = due
                self.reached.update((cell, e.site, e.place) for _, e in due)
        self._check_place(state, cell_row, phase, place)
        wanted = self._wanted(phase, place, tokens) if captured else {}
        watched = {site for o in self.want.observers for site in o.sites} if observed else set()
        result = run_stage(
            self.net, self.batch, state, inputs, cell_row, self.apply, edits, frozenset(wanted) | watched, last, keep, consume, spans, reach
        )  # fmt: skip
        if watched:
            self._observe(phase, result, tokens)
        self.rows = max(self.rows, result.state.rows)
        self.forwarded += result.fed
        for (component, layer), places in wanted.items():
            self._keep(component, layer, phase, place, places, result)
        return result.state, result.cell_row, result

    def _check_place(self, state: State, cell_row: np.ndarray, phase: Phase, place: int) -> None:
        """A stage's first token must stand where the file counts it, whatever rows were dropped, split or begun again before it."""
        at = state.start + state.used - self.batch.slots
        passed = self.latents[cell_row >= 0] if phase == "answer" else 0
        if (passed + np.int64(place) != at).any():
            raise RuntimeError(f"{phase}[{place}] stands {at} tokens after the prompt")

    def _due(self, edits: Sequence[Edit], place: int, tokens: int) -> list[tuple[int, Edit]]:
        """Return the edits of a stage as (token offset, edit); an open edit stands at every token."""
        due: list[tuple[int, Edit]] = []
        for edit in edits:
            if edit.place is None:
                due += [(offset, self._placed(edit, place + offset)) for offset in range(tokens)]
            elif 0 <= edit.place - place < tokens:
                due.append((edit.place - place, edit))
        return due

    def _placed(self, edit: Edit, place: int) -> Edit:
        key = (edit, place)
        if key not in self.opened:
            self.opened[key] = replace(edit, place=place)
        return self.opened[key]

    def _observe(self, phase: Phase, result: StageResult, tokens: int) -> None:
        """Show observers what a stage computed, of prompts their own tokens alone: a stage may begin before a short one does."""
        cells = np.flatnonzero(result.cell_row >= 0)
        rows = result.cell_row[cells]
        own = np.full(len(cells), tokens)
        if phase == "prompt":
            own = np.minimum(self.lengths[[self.tasks[c].prompt for c in cells.tolist()]], tokens)
        for count in np.unique(own).tolist():
            mine, seen = own == count, result.captured
            row = rows[mine]
            if count < tokens:
                kept, row = np.unique(row, return_inverse=True)
                index = torch.from_numpy(kept)
                seen = {site: values[index.to(values.device), -count:] for site, values in result.captured.items()}
            for observer in self.want.observers:
                observer.see(phase, cells[mine], row, seen)

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


def _tail(ids: Sequence[int], count: int) -> list[int]:
    """Return the last ``count`` ids, zeros before a shorter prompt's."""
    return [0] * (count - len(ids)) + list(ids)[len(ids) - count if count < len(ids) else 0 :]
