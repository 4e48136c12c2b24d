"""The studies' own metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from codi_engine.core.plugin import Metric, NoOptions, Options, Readings
from codi_engine_originals.answers import RULES


class OriginalAnswerOptions(Options):
    """``rules``: ``patching`` (integers), ``resampling`` (last number, truncated) or ``importance`` (first marked number)."""

    rules: Literal["patching", "resampling", "importance"]


class OriginalAnswer(Metric[OriginalAnswerOptions]):
    """The answer as a study's own rules read it (NaN: none), whether it is the prompt's own and whether it is the other one's (0 or 1)."""

    name = "original-answer"
    Options = OriginalAnswerOptions
    needs = frozenset({"generation"})
    applies_to = frozenset({"problems", "pairs"})

    def columns(self) -> Sequence[str]:
        return ("original_answer", "original_correct", "original_other")

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        read_off, near = RULES[self.options.rules]
        answer = np.array([read_off(text) for text in read.edited.text], np.float64)
        right = {name: _equal(answer, wanted, near) for name, wanted in (("original_correct", read.gold), ("original_other", read.other))}
        return {"original_answer": answer, **right}


def _equal(answer: np.ndarray, wanted: np.ndarray, near: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        difference = np.abs(answer - wanted)
    return np.where(np.isnan(difference), False, (difference < near) | (difference == 0)).astype(np.float64)


class AnswerLogitDiff(Metric[NoOptions]):
    """Mean logit of the clean answer's tokens minus that of the corrupted answer's, all at the first answer token.

    Trained models say "The" there, so it reads the wrong place; the built-in ``logit_diff`` reads the number's. NaN without two answers.
    """

    name = "answer-logit-diff"
    Options = NoOptions
    needs = frozenset({"first_logits"})
    applies_to = frozenset({"pairs"})

    def columns(self) -> Sequence[str]:
        return ("answer_logit_diff",)

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        assert read.encode is not None
        assert read.clean_is_gold is not None
        clean, corrupted = np.where(read.clean_is_gold, read.gold, read.other), np.where(read.clean_is_gold, read.other, read.gold)
        out = np.full(len(clean), np.nan)
        for row, answers in enumerate(zip(clean, corrupted, strict=True)):
            if not np.isnan(answers).any():
                first, second = (read.edited.first_logits[row, list(read.encode(_written(a)))].double().mean().item() for a in answers)
                out[row] = first - second
        return {"answer_logit_diff": out}


def _written(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
