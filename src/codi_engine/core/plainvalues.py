"""What a value may be, wherever an experiment comes from: words that are text, numbers that can be computed with, no depths."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

DEEPEST = 30
LONGEST_KEY = 200


def unfit(value: Any) -> str:
    """Say what is wrong with a single value, whatever key it stands at; empty where nothing is."""
    if isinstance(value, str):
        return unfit_text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no number that can be computed with; write a finite one"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return f"a whole number of {value.bit_length():,} bits is too large; write one of at most 64"
    return ""


def unfit_key(key: str) -> str:
    """Say what is wrong with a key, which stands in messages, tables and names of files; empty where nothing is."""
    if len(key) > LONGEST_KEY:
        return f"a key has at most {LONGEST_KEY} characters; '{key[:30]}…' has {len(key):,}: shorten it"
    if any(c < " " or c == "\x7f" for c in key):
        return f"a key must not hold control characters; got {key!r}"
    return unfit_text(key)


def unfit_text(text: str) -> str:
    """Say what no text may hold: NUL, which ends paths and names, and halves of characters, which no file takes."""
    if "\0" in text:
        return "holds a NUL character, which no name, path or text has; remove it"
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"holds \\u{ord(text[error.start]):04x}, half of a character (a lone surrogate); remove it or write the whole character"
    return ""


def unfits(value: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    """Yield (dotted path, what is wrong) of everything in a value that cannot be."""
    if depth > DEEPEST:
        yield path, f"nested deeper than {DEEPEST} levels"
    elif isinstance(value, dict):
        for key, inner in value.items():
            problem = unfit_key(key) if isinstance(key, str) else unfit(key)
            if problem:
                yield path, problem
            else:
                yield from unfits(inner, f"{path}.{key}" if path else str(key), depth + 1)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            yield from unfits(inner, f"{path}[{number}]", depth + 1)
    elif problem := unfit(value):
        yield path, problem
