"""What is read of every row: answers in tokens, outcomes, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelAdapter
from codi_engine.core.plugin import Metric, Outcome, Readings
from codi_engine.core.returned import measured
from codi_engine.core.rollout.rollout import Produced
from codi_engine.core.solutions.answers import extract

#: most tokens an answer may have where it is teacher-forced
ANSWER_TOKENS = 8


def number_text(value: float) -> str:
    """Write a number as an answer states it: 18, −3, 2000.5."""
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(value)


class Answers:
    """The model's way of writing an answer: the forced prefix and a number's tokens after it.

    Tokens that every number starts with (a lone space in some tokenizers) belong to the prefix.
    """

    def __init__(self, adapter: ModelAdapter, prefix: str | None) -> None:
        self.adapter = adapter
        text = adapter.answer_prefix if prefix is None else prefix
        self.text = text
        probe = [self._whole(text, n) for n in (7.0, 18.0, 42.0)]
        shared = 0
        while all(len(p) > shared + 1 for p in probe) and len({p[shared] for p in probe}) == 1:
            shared += 1
        self.prefix = tuple(probe[0][:shared])
        self._known: dict[float, tuple[int, ...]] = {}

    def _whole(self, text: str, value: float) -> list[int]:
        return self.adapter.encode(f"{text} {number_text(value)}" if text else number_text(value))

    def tokens(self, value: float | None) -> tuple[int, ...]:
        """Return the ids of a number after the prefix; empty for no number.

        Raises
        ------
        UserError: the tokenizer splits the number differently after the prefix, or into more than eight tokens
        """
        if value is None or np.isnan(value):
            return ()
        if value not in self._known:
            ids = tuple(self._whole(self.text, value))
            if ids[: len(self.prefix)] != self.prefix:
                raise UserError(f"generate.answer_prefix: '{self.text}' is tokenised differently before {number_text(value)}; choose another prefix")
            rest = ids[len(self.prefix) :]
            if not 0 < len(rest) <= ANSWER_TOKENS:
                raise UserError(f"data: the answer {number_text(value)} takes {len(rest)} tokens; 1 to {ANSWER_TOKENS} can be read")
            self._known[value] = rest
        return self._known[value]


@dataclass(frozen=True)
class Needs:
    """Which parts of an outcome the metrics of an experiment read."""

    generation: bool
    number: bool
    first: bool

    @staticmethod
    def of(metrics: Sequence[Metric], reads_numbers: bool) -> Needs:  # type: ignore[type-arg]
        wanted = {n for m in metrics for n in m.needs}
        number = bool(wanted & {"number_logits", "gold", "other"}) and reads_numbers
        return Needs(True, number, "first_logits" in wanted or not number)  # the gate compares one or the other


def outcome(produced: Produced, adapter: ModelAdapter, captures: Mapping[str, np.ndarray]) -> tuple[Outcome, list[str]]:
    """Return what the rows of a batch produced, and the rule by which each answer was found."""
    texts = [adapter.decode([t for t in tokens if t not in adapter.stop_ids]) for tokens in produced.tokens]
    found = [extract(t) for t in texts]
    answer = np.array([f.value if f.value is not None else np.nan for f in found], np.float64)
    reads = {
        name: _padded(getattr(produced, name)) for name in ("gold_logprob", "other_logprob", "gold_logit", "other_logit")
    }  # fmt: skip
    return Outcome(texts, answer, produced.number_logits, produced.first_logits, **reads, captures=captures), [f.rule for f in found]


def _padded(values: np.ndarray) -> np.ndarray:
    out = np.full((len(values), ANSWER_TOKENS), np.nan)
    out[:, : values.shape[1]] = values
    return out


def take(source: Outcome, index: Sequence[int] | np.ndarray) -> Outcome:
    """Return the outcome's rows by index."""
    rows = np.asarray(index, np.int64)

    def pick(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return value[torch.from_numpy(rows).to(value.device)] if len(value) else value
        if isinstance(value, np.ndarray):
            return value[rows]
        if isinstance(value, Mapping):
            return {k: v[rows] for k, v in value.items()}
        assert isinstance(value, Sequence)
        return [value[i] for i in rows]

    return Outcome(**{f.name: pick(getattr(source, f.name)) for f in fields(Outcome)})  # type: ignore[arg-type]


def measure(metrics: Sequence[Metric], read: Readings, name: Callable[[Metric, str], str]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """Return column → rows for all metrics; a metric that returns other columns or another shape is refused by name."""
    out: dict[str, np.ndarray] = {}
    for metric in metrics:
        for column, array in measured(metric, read).items():
            out[name(metric, column)] = array
    return out
