"""What a batch of rows gave, put together with that of other batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from codi_engine.core.plugin import Outcome
from codi_engine.core.running.codes import CodeReader
from codi_engine.core.running.reading import take

T = TypeVar("T")

OUTCOME = ("gold_logprob", "other_logprob", "gold_logit", "other_logit")


@dataclass(frozen=True)
class Part:
    """Rows that ran together: outcome, rule by which each answer was found, array → rows, and draws that each text took.

    ``broken``: rows of which something that was computed is not finite.
    """

    done: Outcome
    rules: list[str]
    values: dict[str, np.ndarray]
    attempts: np.ndarray
    broken: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.done.answer)

    def with_codes(self, readers: Sequence[CodeReader]) -> Part:
        """Add what the readers collected in the batch that has just run."""
        codes = {r.capture.array: r.codes() for r in readers}
        broken = np.logical_or.reduce([self.broken, *(r.broken for r in readers)])
        return Part(self.done, self.rules, {**self.values, **codes}, self.attempts, broken)

    def take(self, index: np.ndarray) -> Part:
        """Return the rows of an index."""
        rules = [self.rules[i] for i in index]
        return Part(take(self.done, index), rules, {name: v[index] for name, v in self.values.items()}, self.attempts[index], self.broken[index])


def first_part(done: Outcome, rules: list[str], values: Mapping[str, np.ndarray], broken: np.ndarray) -> Part:
    """Return a part whose texts were drawn once."""
    return Part(done, rules, dict(values), np.ones(len(done.answer)), broken)


def join(parts: Sequence[Part]) -> Part:
    """Put the rows of several parts together."""
    if len(parts) == 1:
        return parts[0]
    values = {name: np.concatenate([p.values[name] for p in parts]) for name in parts[0].values}
    attempts = np.concatenate([p.attempts for p in parts])
    broken = np.concatenate([p.broken for p in parts])
    return Part(join_outcomes([p.done for p in parts]), [r for p in parts for r in p.rules], values, attempts, broken)


def join_outcomes(outcomes: Sequence[Outcome]) -> Outcome:
    """Put the rows of several outcomes together."""
    if len(outcomes) == 1:
        return outcomes[0]
    return Outcome(
        text=[t for o in outcomes for t in o.text],
        answer=np.concatenate([o.answer for o in outcomes]),
        number_logits=torch.cat([o.number_logits for o in outcomes]),
        first_logits=torch.cat([o.first_logits for o in outcomes]),
        **{name: np.concatenate([getattr(o, name) for o in outcomes]) for name in OUTCOME},
        captures={name: np.concatenate([o.captures[name] for o in outcomes]) for name in outcomes[0].captures},
    )


def drawn_again(items: Sequence[T], run: Callable[[Sequence[T], int], Part], fits: Callable[[str], bool], retries: int) -> Part:
    """Run items, and those whose text does not fit again with other random numbers, up to ``retries`` times.

    Parameters
    ----------
    run: (items, attempt from 0) → their part
    fits: whether a text is as wanted

    Returns
    -------
    one row an item, its last draw; ``attempts`` says how many draws it took
    """
    part = run(items, 0)
    for attempt in range(1, retries + 1):
        again = np.array([i for i, text in enumerate(part.done.text) if not fits(text)], np.int64)
        if not len(again):
            break
        later = run([items[i] for i in again], attempt)
        index = np.arange(part.rows)
        index[again] = part.rows + np.arange(len(again))
        later = replace(later, attempts=part.attempts[again] + 1)
        part = join([part, later]).take(index)
    return part
