"""What a solution's calculator annotations say: a chain of steps, what each number in it is, and what another number would give.

GSM8K (Cobbe et al. 2021, 2110.14168) writes ``<<16-3-4=9>>`` beside each step. Every operand is linked to an earlier step's
result, to a quantity of the question, or to neither (a constant). Where more than one is possible the link is ambiguous, and
what depends on it is not computed: :class:`Recomputed` says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal

from codi_engine.core.solutions.expressions import Expression, number_value, read_expression
from codi_engine.core.solutions.quantities import Form, Quantity, quantities, usual

_ANNOTATION = re.compile(r"<<([^<>]*)>>")
_MARKED = re.compile(r"####\s*(?P<sign>[-−])?\s*\$?\s*(?P<sign2>[-−])?(?P<number>\d[\d,]*(?:\.\d+)?|\.\d+)")
_RESULT = re.compile(
    r"\s*(?P<sign>[-−])?\s*[$€£]?\s*(?P<sign2>[-−])?(?P<number>\d[\d,]*(?:\.(?P<decimals>\d*))?|\.(?P<only>\d+))\s*(?P<percent>%)?\s*[A-Za-z. ]*"
)
#: up to here a number that is used twice may be two things that are equal by chance
SMALL = 12
Rounding = Literal["exact", "half_up", "down", "wrong", "unread"]


@dataclass(frozen=True)
class Source:
    """What an operand may be: the ``result`` of step ``index``, the question's quantity ``index``, or a ``usual`` constant."""

    kind: Literal["result", "number", "usual"]
    index: int
    form: Form


@dataclass(frozen=True)
class Link:
    """Where an operand comes from: no candidate (a constant), one, or several (ambiguous).

    ``inferred``: it was one of several, and is taken because that result would otherwise never be used.
    """

    candidates: tuple[Source, ...]
    inferred: bool = False

    @property
    def ambiguous(self) -> bool:
        return len(self.candidates) > 1


@dataclass(frozen=True)
class Step:
    """One annotation: expression (None where it cannot be read), stated result, and how the one gives the other.

    ``rounding``: ``exact``; ``half_up`` or ``down``, to ``decimals`` places; ``wrong``; ``unread``.
    """

    text: str
    expression: Expression | None
    result: Fraction
    decimals: int
    rounding: Rounding
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class Recomputed:
    """An answer under a change; None with the reason where the annotations do not determine it."""

    value: float | None
    reason: str = ""
    results: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class Solution:
    """A chain of annotated steps.

    ``answer`` is what ``####`` states, else the last result; ``answer_step`` the step that gives it (None: none does).
    ``consistent``: every annotation can be read and its result follows from its expression. ``problems`` says what is wrong.
    """

    steps: tuple[Step, ...]
    numbers: tuple[Quantity, ...]
    question: str | None
    answer: float
    answer_step: int | None
    problems: tuple[str, ...]

    @property
    def consistent(self) -> bool:
        return not self.problems

    @property
    def values(self) -> tuple[float, ...]:
        """The stated results, one per step."""
        return tuple(float(s.result) for s in self.steps)

    @cached_property
    def ambiguous(self) -> tuple[str, ...]:
        """Say which operands may be more than one thing."""
        return tuple(self._doubt(k, o) for k, s in enumerate(self.steps) for o, link in enumerate(s.links) if link.ambiguous)

    @cached_property
    def unexplained(self) -> tuple[str, ...]:
        """Constants that neither the question, an earlier result nor a word such as "week" explains."""
        found = []
        for k, step in enumerate(self.steps):
            for o, link in enumerate(step.links):
                assert step.expression is not None
                operand = step.expression.operands[o]
                if not link.candidates and not usual(operand.value, self.question or ""):
                    found.append(f"step {k} uses {operand.text}, which stands nowhere before")
        return tuple(found)

    def with_result(self, step: int, value: float) -> float | None:
        """Return the answer when the result of step ``step`` (from 0) is ``value``; see :meth:`change_result`."""
        return self.change_result(step, value).value

    def change_result(self, step: int, value: float) -> Recomputed:
        """Recompute everything after a step that uses its result, with ``value`` in its place.

        None where the answer does not depend on the step, an operand on the way is ambiguous, a later step cannot be
        read, or a division by zero arises. For the step that gives the answer it is ``value`` itself. Constants stay as
        they are, those too that nothing explains (``unexplained``).

        Raises
        ------
        IndexError: no such step
        """
        if not 0 <= step < len(self.steps):
            raise IndexError(f"step {step}: the solution has {len(self.steps)} steps")
        if not math.isfinite(value):
            return Recomputed(None, f"{value} is no number to compute with")
        return self._recompute("result", step, Fraction(str(value)))

    def with_number(self, old_occurrence: int | Quantity, value: float) -> Recomputed:
        """Return the answer when one quantity of the question is ``value``.

        Parameters
        ----------
        old_occurrence: the quantity, or its place in ``numbers``

        None with a reason where the annotations do not determine it: they are inconsistent, an operand may be this number or
        something else, it is small and used more than once, no step uses it, or a step uses a constant that nothing explains.
        """
        index = old_occurrence if isinstance(old_occurrence, int) else self.numbers.index(old_occurrence)
        if not 0 <= index < len(self.numbers):
            raise IndexError(f"number {index}: the question has {len(self.numbers)} numbers")
        if not math.isfinite(value):
            return Recomputed(None, f"{value} is no number to compute with")
        for reasons in (self.problems, self.unexplained, self._coincidences(index)):
            if reasons:
                return Recomputed(None, reasons[0])
        return self._recompute("number", index, Fraction(str(value)))

    # ------------------------------------------------------------------------------------------- inside

    def _coincidences(self, index: int) -> tuple[str, ...]:
        """Say where a small number is used more than once: "he and his son" are 2 as well, without a number in the question."""
        uses = [k for k, s in enumerate(self.steps) for link in s.links if not link.ambiguous and _is_number(link, index)]
        if len(uses) < 2 or abs(self.numbers[index].value) > SMALL:
            return ()
        return (
            f"{self.numbers[index].text} is used {len(uses)} times (steps {', '.join(map(str, uses))}); not every {self.numbers[index].text} need be this one",
        )

    def _recompute(self, kind: Literal["result", "number"], index: int, value: Fraction) -> Recomputed:
        """Replay the chain with one thing changed; what it does not reach keeps its stated result."""
        changed: dict[tuple[str, int], Fraction] = {(kind, index): value}
        first = index + 1 if kind == "result" else 0
        for k in range(first, len(self.steps)):
            step = self.steps[k]
            if step.expression is None:
                return Recomputed(None, f"step {k} cannot be read: {step.text}")
            operands = self._operands(k, changed)
            if isinstance(operands, str):
                return Recomputed(None, operands)
            if operands is not None:
                exact = step.expression.evaluate(operands)
                if exact is None:
                    return Recomputed(None, f"step {k} divides by zero")
                changed["result", k] = _rounded(exact, step)
        if self.answer_step is None:
            return Recomputed(None, "no step gives the stated answer")
        if ("result", self.answer_step) not in changed:
            what = f"step {index}" if kind == "result" else self.numbers[index].text
            return Recomputed(None, f"the answer does not depend on {what}")
        results = tuple(changed.get(("result", k), s.result) for k, s in enumerate(self.steps))
        return Recomputed(_float(results[self.answer_step]), "", results)

    def _operands(self, k: int, changed: dict[tuple[str, int], Fraction]) -> list[Fraction] | str | None:
        """Return the operands of a step under a change, None where it does not reach them, or why they are not known."""
        step, touched, out = self.steps[k], False, []
        assert step.expression is not None
        for o, (operand, link) in enumerate(zip(step.expression.operands, step.links, strict=True)):
            hit = [c for c in link.candidates if (c.kind, c.index) in changed]
            if not hit:
                out.append(operand.value)
                continue
            if link.ambiguous:
                return self._doubt(k, o)
            form = hit[0].form
            if form.scale is None:
                return f"step {k} uses {operand.text} for a fraction or a word"
            out.append(form.offset + form.scale * changed[hit[0].kind, hit[0].index])
            touched = True
        return out if touched else None

    def _doubt(self, k: int, o: int) -> str:
        expression = self.steps[k].expression
        assert expression is not None
        said = " or ".join(dict.fromkeys(self._said(c) for c in self.steps[k].links[o].candidates))
        return f"step {k}: {expression.operands[o].text} may be {said}"

    def _said(self, source: Source) -> str:
        if source.kind == "result":
            return f"the result of step {source.index}"
        return "a usual constant" if source.kind == "usual" else f"number {source.index} of the question ({self.numbers[source.index].text})"


def parse_solution(text: str, question: str | None = None) -> Solution | None:
    """Return the chain of a solution's annotations; None where it has none.

    Parameters
    ----------
    text: a GSM8K solution, or annotations alone (``<<6*2=12>> <<12+7=19>>``)
    question: links operands to its quantities; without it they are constants
    """
    read = [_step(match[1]) for match in _ANNOTATION.finditer(text)]
    if not read:
        return None
    problems = [f"'{match[1]}': no result is stated" for match, step in zip(_ANNOTATION.finditer(text), read, strict=True) if step is None]
    steps = [s for s in read if s is not None]
    if not steps:
        return None
    for step in steps:
        if step.rounding == "unread":
            problems.append(f"'{step.text}' cannot be read")
        elif step.rounding == "wrong":
            problems.append(f"'{step.text}' is wrong")
    numbers = quantities(question) if question else ()
    marked = _MARKED.search(text)
    answer = _signed(marked) if marked else steps[-1].result
    answer_step = _answer_step(steps, answer)
    return Solution(_linked(steps, numbers, question or "", answer_step), numbers, question, float(answer), answer_step, tuple(problems))


def _signed(match: re.Match[str]) -> Fraction:
    value = number_value(match["number"])
    return -value if match["sign"] or match["sign2"] else value


def _answer_step(steps: Sequence[Step], answer: Fraction) -> int | None:
    """The last step where it gives the answer; else the only step that does."""
    giving = [k for k, s in enumerate(steps) if s.result == answer]
    return giving[-1] if giving and (giving[-1] == len(steps) - 1 or len(giving) == 1) else None


def _step(annotation: str) -> Step | None:
    """Read ``expression=result`` (``a=b=c`` too); None where no result is stated."""
    parts = annotation.split("=")
    stated = _stated(parts[-1]) if len(parts) > 1 else None
    if stated is None:
        return None
    result, decimals = stated
    expression = read_expression(parts[0])
    exact = expression.evaluate() if expression is not None else None
    if expression is None or exact is None:
        return Step(annotation, None, result, decimals, "unread")
    between = [read_expression(p) for p in parts[1:-1]]
    agree = all(b is not None and b.evaluate() == exact for b in between)
    return Step(annotation, expression, result, decimals, _rounding(exact, result, decimals) if agree else "wrong")


def _stated(text: str) -> tuple[Fraction, int] | None:
    """Return a result and its decimals; a result such as 1/2 is exact."""
    match = _RESULT.fullmatch(text)
    if match is None:
        expression = read_expression(text)
        exact = expression.evaluate() if expression is not None else None
        return None if exact is None else (exact, 0)
    if len(match["number"]) > 40:
        return None
    value = _signed(match)
    return (value / 100 if match["percent"] else value), len(match["decimals"] or match["only"] or "")


def _rounding(exact: Fraction, stated: Fraction, decimals: int) -> Rounding:
    """Say how the stated result follows; whole numbers are not taken for rounded ones."""
    if exact == stated:
        return "exact"
    if decimals and _half_up(exact, decimals) == stated:
        return "half_up"
    return "down" if decimals and _down(exact, decimals) == stated else "wrong"


def _half_up(value: Fraction, decimals: int) -> Fraction:
    scaled = abs(value) * 10**decimals
    rounded = Fraction(math.floor(scaled + Fraction(1, 2)), 10**decimals)
    return rounded if value >= 0 else -rounded


def _down(value: Fraction, decimals: int) -> Fraction:
    return Fraction(math.trunc(value * 10**decimals), 10**decimals)


def _rounded(exact: Fraction, step: Step) -> Fraction:
    """Round as the step itself did, so that a replay without a change gives the stated results."""
    if step.rounding == "half_up":
        return _half_up(exact, step.decimals)
    return _down(exact, step.decimals) if step.rounding == "down" else exact


def _float(value: Fraction) -> float | None:
    try:
        return float(value)
    except OverflowError:
        return None


# -------------------------------------------------------------------------------------------------- links


def _linked(steps: Sequence[Step], numbers: Sequence[Quantity], question: str, answer_step: int | None) -> tuple[Step, ...]:
    """Return the steps with every operand's candidates, results that have one use only given to it."""
    out = [s if s.expression is None else replace(s, links=tuple(_link(o.value, k, steps, numbers, question) for o in s.expression.operands))
           for k, s in enumerate(steps)]  # fmt: skip
    settled = False
    while not settled:
        settled = True
        for r in range(len(out)):
            uses = [(k, o) for k in range(r + 1, len(out)) for o, link in enumerate(out[k].links) if _may_be(link, r)]
            if r == answer_step or len(uses) != 1 or not out[uses[0][0]].links[uses[0][1]].ambiguous:
                continue
            k, o = uses[0]
            links = list(out[k].links)
            mine = tuple(c for c in links[o].candidates if c.kind == "result" and c.index == r)
            links[o] = Link(mine, inferred=True)
            out[k] = replace(out[k], links=tuple(links))
            settled = False
    return tuple(out)


def _is_number(link: Link, index: int) -> bool:
    return any(c.kind == "number" and c.index == index for c in link.candidates)


def _may_be(link: Link, result: int) -> bool:
    return any(c.kind == "result" and c.index == result for c in link.candidates)


def _link(value: Fraction, k: int, steps: Sequence[Step], numbers: Sequence[Quantity], question: str) -> Link:
    found = [Source("result", j, Form(value)) for j in range(k) if steps[j].result == value]
    found += [Source("result", j, Form(value, Fraction(-1))) for j in range(k) if value < 0 and steps[j].result == -value]
    for index, number in enumerate(numbers):
        found += [Source("number", index, f) for f in number.forms() if f.value == value]
        found += [Source("number", index, f.negated()) for f in number.forms() if value < 0 and f.value == -value]
    if found and value != 1 and usual(value, question):
        found.append(Source("usual", -1, Form(value)))
    if found or value in (0, 1):
        return Link(tuple(found))
    hundredth = Fraction(1, 100)  # a result that is a percentage: 20, used as 0.2, 0.8 or 1.2
    shapes = [(hundredth, Fraction(0)), (-hundredth, Fraction(1)), (hundredth, Fraction(1))]
    forms = [(j, Form(value, s, o)) for j in range(k) for s, o in shapes if o + s * steps[j].result == value]
    return Link(tuple(Source("result", j, f) for j, f in forms), inferred=bool(forms))
