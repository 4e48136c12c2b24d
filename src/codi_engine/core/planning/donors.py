"""Which other examples an edited cell takes its values from, and what the algebra predicts of the exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Data, Example
from codi_engine.core.rollout.sampling import generator
from codi_engine.core.solutions.algebra import Solution, parse_solution

if TYPE_CHECKING:
    from codi_engine.core.planning.conditions import Condition

#: number of tokens of a prompt's text
Length = Callable[[str], int]
#: what donors may be matched by beside the data's own fields
MEANINGS = ("answer", "length", "value")


class Donors:
    """Draws donors without replacement: the ``donor``-th of a sequence of its own for every example.

    The sequence is keyed by (seed, example), and by the set of steps or positions with ``donors: per_place``; it does not
    depend on ``limit`` or on how many donors are asked for. ``match`` keeps the examples of the same or another
    answer, prompt length, intermediate value (result ``carries`` of the written solution, the first is 1) or field.
    """

    def __init__(self, seed: int, data: Data, length: Length | None = None) -> None:
        self.seed = seed
        self.pool = list(data.pool)
        self.examples = {e.id: e for e in [*data.pool, *data.examples]}
        self.length: Length = length or (lambda text: len(text.split()))
        self._orders: dict[tuple[Any, ...], list[str]] = {}
        self._shuffled: dict[tuple[str, ...], str | None] = {}
        self._solutions: dict[str, Solution | None] = {}
        self._lengths: dict[tuple[str, str], int] = {}

    def has(self, example: str, condition: Condition, point: Mapping[str, Any]) -> bool:
        """False where ``match`` leaves too few donors for a cell, or the control has none; True where it takes none."""
        if condition.control == "shuffled" and condition.plugin.source == "partner":
            return self.shuffled(example, condition) is not None
        if condition.plugin.source != "donor" or not condition.options_at(point).get("match"):
            return True
        return int(point["donor"]) < len(self._order(example, condition, point))

    def of(self, example: str, condition: Condition, point: Mapping[str, Any]) -> str:
        """Return the donor of one cell.

        Raises
        ------
        UserError: more donors asked for than there are other examples
        """
        if condition.options_at(point).get("self_donor"):
            return example
        order = self._order(example, condition, point)
        index = int(point["donor"])
        if index >= len(order):
            raise UserError(f"sweep.donor: {index + 1} donors asked for, but only {len(order)} other examples exist")
        return order[index]

    def shuffled(self, example: str, condition: Condition) -> str | None:
        """Return an unrelated example whose partner state stands in for the own partner's, for the control.

        Drawn from the pool, so that a larger ``limit`` keeps it. For edits of the prompt it is one at least as long, so that
        every position exists; None where there is none.
        """
        key = (example, condition.phase, condition.variant, condition.partner)
        if key not in self._shuffled:
            self._shuffled[key] = next((o for o in self._drawn(example, []) if self._reaches(o, example, condition)), None)
        return self._shuffled[key]

    def _reaches(self, other: str, example: str, condition: Condition) -> bool:
        return condition.phase != "prompt" or self._tokens(other, condition.partner) >= self._tokens(example, condition.variant)

    def _drawn(self, example: str, place: list[Any]) -> list[str]:
        """Return all other examples of the pool in the order in which they are drawn for one."""
        others = [e.id for e in self.pool if e.id != example]
        return [others[i] for i in generator("donors", self.seed, example, place).permutation(len(others))]

    def _tokens(self, name: str, variant: str) -> int:
        if (name, variant) not in self._lengths:
            self._lengths[name, variant] = self.length(self.examples[name].prompts[variant].text)
        return self._lengths[name, variant]

    def _order(self, example: str, condition: Condition, point: Mapping[str, Any]) -> list[str]:
        options = condition.options_at(point)
        place = [point.get("step"), point.get("position")] if options.get("donors") == "per_place" else []
        match = {} if condition.control == "shuffled" else dict(options.get("match") or {})
        carries = options.get("carries")
        key = (example, tuple(map(str, place)), tuple(sorted(match.items())), carries, condition.variant if match else None)
        if key not in self._orders:
            drawn = self._drawn(example, place)
            self._orders[key] = [o for o in drawn if self._fits(example, o, match, condition, carries)] if match else drawn
        return self._orders[key]

    def _fits(self, example: str, other: str, match: Mapping[str, str], condition: Condition, carries: int | None) -> bool:
        for meaning, wanted in match.items():
            a, b = (self._meaning(i, meaning, condition, carries) for i in (example, other))
            if a is None or b is None or (a == b) != (wanted == "same"):
                return False
        return True

    def _meaning(self, name: str, meaning: str, condition: Condition, carries: int | None) -> Any:
        example = self.examples[name]
        prompt = example.prompts[condition.variant]
        if meaning == "answer":
            return prompt.answer
        if meaning == "length":
            return self._tokens(name, condition.variant)
        if meaning == "value":
            assert carries is not None  # the options demand it
            return self.value(name, int(carries))
        if not any(meaning in e.fields for e in self.pool):
            known = [*MEANINGS, *dict.fromkeys(f for e in self.pool for f in e.fields)]
            raise UserError(f"match: the data has no field '{meaning}'; {nearest(meaning, known)}")
        return example.fields.get(meaning)

    # ------------------------------------------------------------------------------------------ algebra

    def solution(self, name: str) -> Solution | None:
        """Return an example's written solution, read from its field ``steps`` or ``solution``; None without one."""
        if name not in self._solutions:
            self._solutions[name] = solution_of(self.examples[name])
        return self._solutions[name]

    def value(self, name: str, number: int) -> float | None:
        """Return an intermediate value of an example's solution; the first is number 1."""
        solution = self.solution(name)
        return solution.values[number - 1] if solution is not None and number <= len(solution.values) else None

    def predicted(self, example: str, donor: str, condition: Condition, point: Mapping[str, Any]) -> float | None:
        """Return the answer that follows when the value which ``carries`` names is the donor's; None when nothing does."""
        number = condition.options_at(point).get("carries")
        solution = self.solution(example)
        if number is None or solution is None or number > len(solution.values):
            return None
        value = self.value(donor, int(number))
        return None if value is None else solution.with_result(int(number) - 1, value)


def solution_of(example: Example) -> Solution | None:
    """Parse the written solution that an example's fields hold."""
    for name in ("steps", "solution"):
        text = example.fields.get(name)
        if isinstance(text, str):
            return parse_solution(text, next(iter(example.prompts.values())).text)
    return None
