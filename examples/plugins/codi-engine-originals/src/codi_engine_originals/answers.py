"""The studies' own ways to read an answer off a text. The engine's extractor is ``codi_engine.core.solutions.answers``."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

_INTEGER = r"(-?\d+)"
_DECIMAL = r"(-?\d+(?:\.\d+)?)"
_MARKED = r"(?:answer|total|result)(?:\s+is)?\s*[:=]?\s*"
_PATCHING = [rf"####\s*{_INTEGER}", rf"{_MARKED}{_INTEGER}", rf"\$?\s*{_INTEGER}\s*$"]
_IMPORTANCE = [rf"answer is:?\s*{_DECIMAL}", rf"####\s*{_DECIMAL}", rf"{_MARKED}{_DECIMAL}"]


def patching(text: str) -> float:
    """Integers only: ``####``, ``answer is``, a number at the end, else the last one. "2,000" is 2 after a mark, "12.5" is 12."""
    return _first_rule(text, _PATCHING, _INTEGER)


def importance(text: str) -> float:
    """``answer is``, ``####``, ``total is``, else the last number; commas are not known."""
    return _first_rule(text, _IMPORTANCE, _DECIMAL)


def resampling(text: str) -> float:
    """The last number, cut to an integer: 18.5 is 18."""
    found = re.findall(r"-?\d+\.?\d*", text.replace(",", ""))
    return float(int(float(found[-1]))) if found else math.nan


def _first_rule(text: str, rules: list[str], number: str) -> float:
    for rule in rules:
        match = re.search(rule, text, re.IGNORECASE)
        if match:
            return float(match[1])
    found = re.findall(number, text)
    return float(found[-1]) if found else math.nan


#: name → (text → number or NaN, difference below which two answers are equal)
RULES: dict[str, tuple[Callable[[str], float], float]] = {
    "patching": (patching, 0.0),
    "resampling": (resampling, 0.0),
    "importance": (importance, 0.01),
}
