"""Changing one number of a question so that the problem stays plausible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from numpy.random import Generator

from codi_engine.core.solutions.algebra import Solution
from codi_engine.core.solutions.quantities import Quantity

#: values tried for one number
TRIED = 200


@dataclass(frozen=True)
class Bounds:
    """How far a number may go: ``within`` of itself (0.5: half as much to one and a half times), but three grains at least; between ``low`` and ``high``."""

    within: float = 0.5
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Change:
    """One number changed; ``answer`` None where the annotations do not determine it, and ``reason`` why."""

    number: Quantity
    text: str
    answer: float | None
    reason: str = ""

    def apply(self, question: str) -> str:
        return question[: self.number.start] + self.text + question[self.number.end :]


def changeable(numbers: Sequence[Quantity]) -> list[Quantity]:
    """Return the numbers that may be changed: in digits, at least 2 (or a decimal fraction), standing once in the question.

    0 and 1 stay because the words around them agree with them ("1 apple").
    """
    values = [n.value for n in numbers]
    return [n for n in numbers if not n.fixed and values.count(n.value) == 1 and n.value > 0 and n.value != 1 and (n.value >= 2 or n.value.denominator > 1)]


def choices(number: Quantity, taken: Sequence[Fraction], bounds: Bounds) -> list[Fraction]:
    """Return the values that a number may get: as round as it is, not more than it where it is a share of 100 %, none that stands elsewhere."""
    step = _step(number)
    reach = max(Fraction(str(bounds.within)) * number.value, 3 * step if bounds.within > 0 else Fraction(0))
    low, high = number.value - reach, number.value + reach
    if bounds.low is not None:
        low = max(low, Fraction(str(bounds.low)))
    if bounds.high is not None:
        high = min(high, Fraction(str(bounds.high)))
    least = Fraction(2) if number.value.denominator == 1 else step
    if number.kind == "percent" and number.value < 100:
        high = min(high, Fraction(99))
    first, last = -(-max(low, least) // step), high // step
    width = max(1, -(-(last - first + 1) // TRIED))
    values = [step * i for i in range(int(first), int(last) + 1, int(width))]
    return [v for v in values if v != number.value and v != 1 and v not in taken]


def _step(number: Quantity) -> Fraction:
    """Return the grain of a number: 1 for 25, 10 for 150, 100 for 2,000, 0.25 for 2.75."""
    decimals = len(number.text.partition(".")[2])
    if decimals:
        unit = Fraction(1, 10**decimals)
        return next((s * unit for s in (50, 25, 10, 5) if decimals > 1 and number.value % (s * unit) == 0), unit)
    value = int(number.value)
    if number.kind == "percent" and value % 5 == 0:
        return Fraction(5)
    zeros = len(str(value)) - len(str(value).rstrip("0"))
    return Fraction(10) ** max(zeros - (1 if value // 10**zeros < 10 else 0), 0)


def written(value: Fraction, like: Quantity) -> str:
    """Write a value as the old one was written: decimals, thousands separators, a leading point."""
    decimals = len(like.text.partition(".")[2])
    text = f"{float(value):,.{decimals}f}" if "," in like.text or (value >= 10_000 > like.value) else f"{float(value):.{decimals}f}"
    return text[1:] if like.text.startswith(".") and text.startswith("0.") else text


def known_changes(solution: Solution, draw: Generator, bounds: Bounds) -> Iterator[Change]:
    """Yield plausible changes whose answers the annotations give, one number after the other, round and round."""
    able = changeable(solution.numbers)
    taken = [n.value for n in solution.numbers]
    waiting = [_plausible(solution, able[i], _shuffled(choices(able[i], taken, bounds), draw)) for i in draw.permutation(len(able))]
    while waiting:
        going = []
        for one in waiting:
            change = next(one, None)
            if change is not None:
                yield change
                going.append(one)
        waiting = going


def unknown_changes(numbers: Sequence[Quantity], draw: Generator, bounds: Bounds, reason: str) -> Iterator[Change]:
    """Yield one change of each number, without an answer."""
    able = changeable(numbers)
    taken = [n.value for n in numbers]
    for i in draw.permutation(len(able)):
        values = _shuffled(choices(able[i], taken, bounds), draw)
        if values:
            yield Change(able[i], written(values[0], able[i]), None, reason)


def undetermined(solution: Solution | None, numbers: Sequence[Quantity]) -> str:
    """Say why the annotations give no answer for any changeable number; empty where they do for one."""
    if solution is None:
        return "the solution has no annotations"
    tried = [solution.with_number(n, float(n.value)) for n in changeable(numbers)]
    return "" if any(t.value is not None for t in tried) or not tried else tried[0].reason


def _shuffled(values: Sequence[Fraction], draw: Generator) -> list[Fraction]:
    return [values[i] for i in draw.permutation(len(values))]


def _plausible(solution: Solution, number: Quantity, values: Sequence[Fraction]) -> Iterator[Change]:
    """Yield changes of one number whose answers are known and other than the old one, and whose steps stay like the old ones."""
    for value in values:
        again = solution.with_number(number, float(value))
        if again.value is None or again.value == solution.answer:
            continue
        if all(_alike(step.result, new) for step, new in zip(solution.steps, again.results, strict=True)):
            yield Change(number, written(value, number), again.value)


def _alike(old: Fraction, new: Fraction) -> bool:
    """A whole result stays whole, a positive one positive, cents stay cents."""
    if (old > 0) != (new > 0) or (old < 0) != (new < 0):
        return False
    return new.denominator == 1 if old.denominator == 1 else (new * 100).denominator == 1 or (old * 100).denominator != 1
