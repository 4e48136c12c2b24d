"""The one answer extractor: every accuracy of every run comes from here."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

# Thousands groups need exactly three digits and no space: "2,000.50" is one number, "1, 2" are two.
_NUMBER = re.compile(r"(?<![\d.])(?P<sign>[-−–]\s?\$?|\$-|-?\$)?(?P<digits>\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?P<fraction>\.\d+)?")
_MARK = re.compile(r"####|\banswer\s+is\s*:?|\banswer\s*:", re.IGNORECASE)
_SOLVED = re.compile(r"####\s*(.+)\s*\Z", re.DOTALL)
#: characters read; a model that never stops must not make the extractor slow
LONGEST = 100_000


@dataclass(frozen=True)
class Extraction:
    """What was found in an answer text.

    ``first`` and ``last`` number of the text, ``marked`` the first number after ``The answer is:``, ``answer:`` or
    ``####``; ``value`` is the marked one, else the last; ``rule`` says which: ``marked``, ``last`` or ``none``.
    """

    first: float | None
    last: float | None
    marked: float | None
    value: float | None
    rule: str


def _value(match: re.Match[str]) -> float:
    sign = match["sign"] or ""
    number = float(match["digits"].replace(",", "") + (match["fraction"] or ""))
    return -number if any(c in sign for c in "-−–") else number


def _is_sign(match: re.Match[str], text: str) -> re.Match[str] | None:
    """A dash between two numbers ("3-4", "3 - 4") is a minus of arithmetic, not a sign; drop it by rematching."""
    sign = match["sign"] or ""
    before = text[: match.start()].rstrip()
    if sign and sign[0] in "-−–" and before and (before[-1].isalnum() or before[-1] in ")."):
        if sign.endswith(" ") or before[-1].isdigit() or match.start() == len(before):
            return _NUMBER.match(text, match.start("digits"))
    return match


def numbers(text: str) -> list[float]:
    """Return all numbers of a text in order."""
    found = []
    for match in _NUMBER.finditer(text[:LONGEST]):
        kept = _is_sign(match, text)
        found.append(_value(kept if kept is not None else match) if kept is not None else abs(_value(match)))
    return found


def extract(text: str) -> Extraction:
    """Extract the answer from generated text: ``The answer is: 2,000.50`` is 2000.5; none is a stated outcome."""
    text = text[:LONGEST]
    found = numbers(text)
    if not found:
        return Extraction(None, None, None, None, "none")
    marked = None
    for mark in _MARK.finditer(text):
        after = numbers(text[mark.end() : mark.end() + 200])
        if after:
            marked = after[0]
            break
    if marked is not None:
        return Extraction(found[0], found[-1], marked, marked, "marked")
    return Extraction(found[0], found[-1], None, found[-1], "last")


def answer_of(value: Any) -> float | None:
    """Return a record's answer as a number: 18, "18", "2,000.50", or GSM8K's solution ending in ``#### 18``; None when there is none."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, (int, float)):
        try:
            return float(value) if math.isfinite(value) else None
        except OverflowError:
            return None
    if not isinstance(value, str):
        return None
    marked = _SOLVED.search(value)
    if marked is None and "####" in value:
        return None
    found = numbers(marked[1] if marked else value)
    return found[0] if len(found) == 1 else None


def reference(text: str) -> float:
    """Return the reference implementation's reading: last ``-?\\d+\\.?\\d*`` after deleting commas; infinity when none."""
    found = re.findall(r"-?\d+\.?\d*", text[:LONGEST].replace(",", ""))
    return float(found[-1]) if found else float("inf")


def equal(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return where two arrays of answers agree to 1e-6 relative; NaN (no answer) agrees with nothing."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore"):
        return np.abs(a - b) <= 1e-6 * np.maximum(1.0, np.abs(b))  # type: ignore[no-any-return]
