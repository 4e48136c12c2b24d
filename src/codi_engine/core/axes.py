"""Axis values: ``all``, lists, ranges, sets, and the short forms of experiment files."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from codi_engine.core.errors import UserError, nearest

#: single layers at a quarter, half and seven eighths of the depth (3, 6, 11 of 12; 4, 8, 14 of 16)
DEPTHS = ("early", "middle", "late")
SHORT = ("all", "each", "cumulative", "all_at_once", "pairs", "subsets")
#: values of a range
LONGEST_RANGE = 100_000
#: of more indices `subsets` would be thousands of sets
SUBSETS_OF = 10


def depth_layer(name: str, layers: int) -> int:
    """Return the layer that ``early``, ``middle`` or ``late`` stands for."""
    return {"early": layers // 4, "middle": layers // 2, "late": min(math.ceil(layers * 0.875), layers - 1)}[name]


def label(value: Sequence[int]) -> int | str:
    """Return how a set of indices is called in tables: 3, or ``0+1`` for a set."""
    return value[0] if len(value) == 1 else "+".join(map(str, value))


def resolve_axis(name: str, value: Any, size: int | None, where: str, source: str) -> list[tuple[int, ...]]:
    """Resolve an axis to its values, each a set of indices (mostly of one).

    Parameters
    ----------
    value: ``all``/``each`` (one by one), an index, a list of indices or of lists (sets), ``"0:6"`` or {range: [0, 6]},
        ``cumulative`` ([0], [0, 1], …), ``all_at_once``, ``pairs`` (all i < j), ``subsets`` (every non-empty set, small
        ones first), ``early|middle|late`` for layers
    size: how many there are; None for positions, which may be negative (from the prompt's end)

    Raises
    ------
    UserError: out of range, duplicate, or not an axis value
    """
    at = f"{source}: {where}"
    values = _values(name, value, size, at)
    if not values:
        raise UserError(f"{at}: the axis is empty")
    if len(set(values)) != len(values):
        raise UserError(f"{at}: a value stands twice in {value!r}")
    return values


def _values(name: str, value: Any, size: int | None, at: str) -> list[tuple[int, ...]]:
    if isinstance(value, str):
        return _short(name, value, size, at)
    if isinstance(value, dict):
        return [(i,) for i in _range(name, value, size, at)]
    if isinstance(value, (list, tuple)):
        return [v for number, item in enumerate(value) for v in _item(name, item, size, f"{at}[{number}]")]
    return [(_index(name, value, size, at),)]


def _item(name: str, item: Any, size: int | None, at: str) -> list[tuple[int, ...]]:
    if isinstance(item, (list, tuple)):
        if not item:
            raise UserError(f"{at}: an empty set edits nothing")
        chosen = [_index(name, i, size, f"{at}[{n}]") for n, i in enumerate(item)]
        if len(set(chosen)) != len(chosen):
            raise UserError(f"{at}: an index stands twice in {list(item)}")
        return [tuple(sorted(chosen))]
    if isinstance(item, str):
        return _short(name, item, size, at)
    return [(_index(name, item, size, at),)]


def _short(name: str, text: str, size: int | None, at: str) -> list[tuple[int, ...]]:
    if name == "layer" and text in DEPTHS and size is not None:
        return [(depth_layer(text, size),)]
    if ":" in text:
        return [(i,) for i in _slice(name, text, size, at)]
    if text in SHORT:
        if size is None:
            raise UserError(f"{at}: '{text}' needs a known number of values; list the positions, such as [-3, -2, -1] or \"-8:0\"")
        every = range(size)
        if text == "cumulative":
            return [tuple(range(i + 1)) for i in every]
        if text == "all_at_once":
            return [tuple(every)]
        if text == "pairs":
            return [(i, j) for i in every for j in every if i < j]
        if text == "subsets":
            return _subsets(name, size, at)
        return [(i,) for i in every]
    known = [*SHORT, *(DEPTHS if name == "layer" else ())]
    raise UserError(f"{at}: '{text}' is no value of `{name}`; {nearest(text, known)}")


def _subsets(name: str, size: int, at: str) -> list[tuple[int, ...]]:
    if size > SUBSETS_OF:
        raise UserError(f"{at}: 'subsets' of {size} would be {2**size - 1:,} sets; it takes at most {SUBSETS_OF}. List the sets: [[0], [0, 1]]")
    return [chosen for count in range(1, size + 1) for chosen in itertools.combinations(range(size), count)]


def _slice(name: str, text: str, size: int | None, at: str) -> range:
    try:
        parts = [int(p) for p in text.split(":")]
        if not 2 <= len(parts) <= 3:
            raise ValueError
        chosen = range(*parts)
    except ValueError:
        raise UserError(f'{at}: \'{text}\' is no range; write "0:6" (6 is not included) or "0:12:2"') from None
    return _checked(name, chosen, size, at)


def _range(name: str, value: dict[Any, Any], size: int | None, at: str) -> range:
    bounds = value.get("range")
    if set(value) != {"range"} or not isinstance(bounds, list) or not 2 <= len(bounds) <= 3:
        raise UserError(f"{at}: write {{range: [0, 6]}} (6 is not included); got {value!r}")
    if any(isinstance(b, bool) or not isinstance(b, int) for b in bounds) or (len(bounds) == 3 and bounds[2] == 0):
        raise UserError(f"{at}.range: needs whole numbers and a step other than 0; got {bounds!r}")
    return _checked(name, range(*bounds), size, at)


def _checked(name: str, chosen: range, size: int | None, at: str) -> range:
    if chosen[LONGEST_RANGE:]:  # len() would not take every range
        raise UserError(f"{at}: a range of more than {LONGEST_RANGE:,} values; write a shorter one")
    for i in chosen[:1], chosen[-1:]:
        for j in i:
            _index(name, j, size, at)
    return chosen


def _index(name: str, value: Any, size: int | None, at: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{at}: `{name}` takes whole numbers; got {value!r}")
    if size is None:
        return value
    low = -size if name == "layer" else 0
    if not low <= value < size:
        owner = {"layer": "layers", "step": "latents", "head": "heads"}.get(name, "values")
        raise UserError(f"`{name}` must be in 0..{size - 1} for a model with {size} {owner}; got {value} ({at})")
    return value % size
