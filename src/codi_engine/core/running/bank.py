"""The committed unedited rows, read back: outcomes to compare with, and values that edits take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from codi_engine.core.plugin import Outcome
from codi_engine.core.rollout.sources import Sources, Stored
from codi_engine.core.running.generations import Unit
from codi_engine.core.running.job import Job
from codi_engine.core.running.marks import noted
from codi_engine.core.running.parts import OUTCOME, join_outcomes
from codi_engine.core.running.reading import ANSWER_TOKENS, take
from codi_engine.store.errors import StoreError

if TYPE_CHECKING:
    from codi_engine.core.rollout.editing import Placed


@dataclass(frozen=True)
class _Home:
    """Where a prompt's unedited rows lie: unit, first row, and which trials and source arrays they are."""

    unit: int
    row: int
    first_trial: int
    trials: int
    sources: frozenset[str]


class Bank:
    """The committed unedited rows: which unit holds a prompt, its source values and its outcome."""

    def __init__(self, job: Job, units: Sequence[Unit]) -> None:
        self.job = job
        self._homes: dict[str, list[_Home]] = {}
        self._outcomes: dict[int, Outcome] = {}
        #: (unit, row) of what is not finite
        self._marked = {(u.number, row) for u in units for row in noted(job.writer.committed.get(u.number, {}))}
        for unit in units:
            if unit.stage == "sweep" or unit.number not in job.writer.committed:
                continue
            for row, key in enumerate(unit.keys):
                home = _Home(unit.number, row * unit.trials, unit.first_trial, unit.trials, frozenset(unit.sources))
                self._homes.setdefault(key, []).append(home)

    def locate(self, array: str, prompt: int) -> tuple[int, int]:
        """Return (unit, row) of a prompt's value in a source array."""
        key = self.job.order[prompt]
        for home in self._homes.get(key, ()):
            if array in home.sources:
                return home.unit, home.row
        raise StoreError(f"{array}: no committed unit holds prompt {key}")

    def outcome(self, keys: Sequence[str], trials: Sequence[int]) -> Outcome:
        """Return the unedited outcomes of prompts (captures included where the experiment captures)."""
        picks = [self._row(key, trial) for key, trial in zip(keys, trials, strict=True)]
        units = sorted({u for u, _ in picks})
        start: dict[int, int] = {}
        parts: list[Outcome] = []
        total = 0
        for unit in units:
            part = self._unit(unit)
            start[unit] = total
            total += len(part.answer)
            parts.append(part)
        return take(join_outcomes(parts), [start[u] + row for u, row in picks])

    def marked_references(self, placed: Sequence[Placed]) -> np.ndarray:
        """Return which cells are compared with an unedited row that is not finite: their own prompt's or their partner's."""
        if not self._marked:
            return np.zeros(len(placed), bool)
        keys = [(self.job.order[p.prompt], self.job.order[p.partner], p.cell.trial) for p in placed]
        return np.array([self._row(a, t) in self._marked or (b != a and self._row(b, t) in self._marked) for a, b, t in keys])

    def _row(self, key: str, trial: int) -> tuple[int, int]:
        for home in self._homes.get(key, ()):
            if home.first_trial <= trial < home.first_trial + home.trials:
                return home.unit, home.row + trial - home.first_trial
        raise StoreError(f"no committed unit holds trial {trial} of prompt {key}")

    def _unit(self, unit: int) -> Outcome:
        if unit not in self._outcomes:
            if len(self._outcomes) >= 8:
                self._outcomes.pop(next(iter(self._outcomes)))
            self._outcomes[unit] = self._read(unit)
        return self._outcomes[unit]

    def _read(self, unit: int) -> Outcome:
        job, read = self.job, self.job.writer.read
        answer = read("sources/answer/value", unit)[:, 0]
        blank = np.full((len(answer), ANSWER_TOKENS), np.nan)
        empty = torch.empty(0, job.net.info.vocab_size)
        reads = {name: read(f"sources/{name}/value", unit) if job.needs.number else blank for name in OUTCOME}
        number = torch.from_numpy(read("sources/number_logits/value", unit)) if job.needs.number else empty
        first = torch.from_numpy(read("sources/first_logits/value", unit)) if job.needs.first else empty
        written = job.writer.committed[unit]["stage"] == "baseline"
        kept = {c.name: read(c.array, unit) for c in job.captures} if written else {}
        device = job.net.device
        return Outcome([""] * len(answer), answer, number.to(device), first.to(device), **reads, captures=kept)

    def sources(self) -> Sources:
        """Return the baseline values that edits take, with the pool described."""
        job = self.job
        pool_ids = set(job.pool_ids)
        pool = []
        for key, ref in job.prompts.items():
            if ref.example in pool_ids and key in self._homes:
                home = self._homes[key][0]
                if (home.unit, home.row) in self._marked:
                    continue  # one such row would make every mean over the pool NaN
                answer = float(self._unit(home.unit).answer[home.row])
                correct = None if ref.gold is None else bool(abs(answer - ref.gold) < 1e-6)
                example = job.examples[ref.example]
                pool.append(Stored(job.index[key], ref.variant, example.fields, correct, example.prompts[ref.variant].text, ref.text))
        order = {e: i for i, e in enumerate(job.pool_ids)}
        pool.sort(key=lambda s: (order[job.prompts[job.order[s.index]].example], s.variant))
        return Sources(self.locate, job.writer.read, pool, lengths=job.lengths)
