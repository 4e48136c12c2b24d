"""Regular expressions that users write: told apart from those that could run for ever, since a match cannot be stopped."""

from __future__ import annotations

from typing import Any

#: repetitions of a repetition that are let through
_FEW = 8


def explosive(pattern: str) -> bool:
    """Say whether a pattern repeats, more than a few times, what is itself repeated a variable number of times and may backtrack."""
    from re import _constants, _parser  # type: ignore[attr-defined]

    return _nested(_parser.parse(pattern), False, _constants)


def _nested(part: Any, inside: bool, names: Any) -> bool:
    """Walk the parsed pattern; ``inside`` says that a repetition of many times stands around this part."""
    if isinstance(part, (list, tuple)) or hasattr(part, "data"):
        items = list(part)
        if len(items) == 2 and any(items[0] is op for op in (names.MAX_REPEAT, names.MIN_REPEAT)):
            low, high, body = items[1]
            return (inside and low != high) or _nested(body, inside or int(high) > _FEW, names)
        if len(items) == 2 and any(items[0] is op for op in (names.POSSESSIVE_REPEAT, names.ATOMIC_GROUP)):
            body = items[1][2] if items[0] is names.POSSESSIVE_REPEAT else items[1]
            return _nested(body, False, names)
        return any(_nested(item, inside, names) for item in items)
    return False
