"""Metrics that sort generated answers into classes: whose answer it is, or what a pattern reads in the text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from codi_engine.core.patterns import explosive
from codi_engine.core.plugin import Metric, Options, Readings
from codi_engine.core.solutions.answers import LONGEST, equal, numbers

#: classes of ``answer_class``; exactly one of them is 1
ANSWER_CLASSES = ("clean_answer", "corrupted_answer", "other_answer", "unintelligible")
OTHER, UNPARSABLE = "other", "unparsable"
_LEGAL = re.compile(r"[A-Za-z0-9_.@\[\]:,+-]{1,80}\Z")


class NoOptions(Options):
    """No options."""


class AnswerClass(Metric[NoOptions]):
    """Whose answer was given, as four columns of which exactly one is 1, whichever prompt was run.

    ``clean_answer``: the clean side's gold answer. ``corrupted_answer``: the corrupted side's. ``other_answer``: another
    number. ``unintelligible``: no number was found. Problems with ``resample``: the prompt's own answer counts as clean,
    the donor's as corrupted; where both are the same number it is clean. Problems without a donor have no corrupted side (0).
    """

    name = "answer_class"
    Options = NoOptions
    compares_sides = True
    needs = frozenset({"generation"})
    applies_to = frozenset({"problems", "pairs"})

    def columns(self) -> Sequence[str]:
        return ANSWER_CLASSES

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        answer = read.edited.answer
        clean_is_gold = np.ones(len(answer), bool) if read.clean_is_gold is None else read.clean_is_gold
        clean = equal(answer, np.where(clean_is_gold, read.gold, read.other))
        corrupted = equal(answer, np.where(clean_is_gold, read.other, read.gold)) & ~clean
        nothing = np.isnan(answer)
        classes = (clean, corrupted, ~(clean | corrupted | nothing), nothing)
        return {name: values.astype(np.float64) for name, values in zip(ANSWER_CLASSES, classes, strict=True)}


class OutcomeOptions(Options):
    """``pattern``: a regular expression with named groups, upper and lower case alike, searched in the generated text.

    ``categories``: group → the values that become columns (``action: [stop, bet]`` gives ``action=stop``, ``action=bet``,
    ``action=other``, ``action=unparsable``). ``numbers``: groups that are read as numbers. ``match``: which match counts
    where the text has several, ``last`` or ``first``.
    """

    pattern: str = Field(min_length=1, max_length=2000)
    categories: dict[str, list[str]] = Field(default_factory=dict)
    numbers: list[str] = Field(default_factory=list)
    match: Literal["last", "first"] = "last"

    @model_validator(mode="after")
    def _readable(self) -> OutcomeOptions:
        try:
            compiled = re.compile(self.pattern, re.IGNORECASE)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"`pattern` is no regular expression: {error}") from None
        if explosive(self.pattern):
            raise ValueError(r"`pattern` repeats a repetition, which can take forever; make the inner one possessive, as in (\d++,)+")
        if not self.categories and not self.numbers:
            raise ValueError("name groups of the pattern in `categories` or `numbers`")
        for group in [*self.categories, *self.numbers]:
            if group not in compiled.groupindex:
                has = ", ".join(compiled.groupindex) or "none; write (?P<name>…)"
                raise ValueError(f"`pattern` has no group '{group}'; its named groups: {has}")
        names = outcome_columns(self)
        for name in names:
            if not all(_LEGAL.match(part) for part in name.split("=")) or names.count(name) > 1:
                raise ValueError(f"`categories` gives the column '{name}', which is taken or no legal name; use other groups or values")
        return self


def outcome_columns(options: OutcomeOptions) -> list[str]:
    """Return the columns that a pattern gives, spaces of values written as ``_``."""
    named = {group: [_column(v) for v in values] for group, values in options.categories.items()}
    return [f"{group}={value}" for group, values in named.items() for value in (*values, OTHER, UNPARSABLE)] + list(options.numbers)


def _column(value: str) -> str:
    return re.sub(r"\s+", "_", value.strip().casefold())


class Outcome(Metric[OutcomeOptions]):
    """What a pattern reads in the generated text: a decision as columns of 0 and 1, and numbers beside it.

    Of a group's columns exactly one is 1: ``other`` for text that is none of the values, ``unparsable`` where the pattern or
    the group matches nothing. Numbers are NaN where their group is not found or holds no number. Texts are read up to
    100,000 characters. A pattern that repeats a repetition is refused, because a match cannot be stopped once it runs;
    alternatives that overlap, ``(a|ab)*``, are as slow and are not recognised.
    """

    name = "outcome"
    Options = OutcomeOptions
    needs = frozenset({"generation"})

    def columns(self) -> Sequence[str]:
        return outcome_columns(self.options)

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        return read_outcomes(read.edited.text, self.options)


def read_outcomes(texts: Sequence[str], options: OutcomeOptions) -> dict[str, np.ndarray]:
    """Return column → value per text: 0 or 1 of categories, numbers with NaN."""
    pattern = re.compile(options.pattern, re.IGNORECASE)
    out = {name: np.zeros(len(texts)) for name in outcome_columns(options)}
    for row, text in enumerate(texts):
        found = _match(pattern, text[:LONGEST], options.match)
        for group, values in options.categories.items():
            out[f"{group}={_category(found and found[group], values)}"][row] = 1.0
        for group in options.numbers:
            read = numbers(found[group]) if found and found[group] else []
            out[group][row] = read[0] if read else np.nan
    return out


def _match(pattern: re.Pattern[str], text: str, which: str) -> re.Match[str] | None:
    matches = pattern.finditer(text)
    found = next(matches, None)
    if which == "last":
        for later in matches:
            found = later
    return found


def _category(text: str | None, values: Sequence[str]) -> str:
    if text is None:
        return UNPARSABLE
    known = {_column(v): None for v in values}
    return _column(text) if _column(text) in known else OTHER
