"""Everything that is wrong with a file of pairs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from codi_engine.core.pairs.pairfile import SIDES, STATUSES, Pair, PairFile, Problem, read_pairs, solution_text
from codi_engine.core.solutions.algebra import Solution, parse_solution
from codi_engine.core.solutions.quantities import quantities

_TOKEN = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+|[^\W\d_]+|[^\w\s]|_")
_CHANGED = re.compile(r"\s*(\S.*?)\s*(?:->|→)\s*(\S.*?)\s*")


@dataclass(frozen=True)
class Replaced:
    """A stretch of tokens of the clean question and what stands there in the corrupted one."""

    old: str
    new: str
    start: int
    end: int

    @property
    def said(self) -> str:
        return f"{self.old or 'nothing'} → {self.new or 'nothing'}"


def differences(clean: str, corrupted: str) -> list[Replaced]:
    """Return where two questions differ, in words, numbers and marks (white space does not count); places are the clean one's."""
    a, b = list(_TOKEN.finditer(clean)), list(_TOKEN.finditer(corrupted))
    found = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, [t[0] for t in a], [t[0] for t in b], autojunk=False).get_opcodes():
        if kind != "equal":
            start = a[i].start() if i < len(a) else len(clean)
            old = clean[start : a[j - 1].end()] if j > i else ""
            new = corrupted[b[k].start() : b[m - 1].end()] if m > k else ""
            found.append(Replaced(old, new, start, start + len(old)))
    return found


def check_pairs(path: str) -> tuple[PairFile, list[Problem]]:
    """Read a file of pairs and return it with everything that is wrong, in the file's order.

    Kinds: ``not JSON``, ``no variant``, ``missing side``, ``no question``, ``answer``, ``equal answers``, ``duplicate``,
    ``same question``, ``several changes``, ``changed_number``, ``annotations``, ``review_status``.
    """
    file = read_pairs(path)
    problems = list(file.problems)
    ids: dict[str, str] = {}
    questions: dict[tuple[str, ...], str] = {}
    for pair in file.pairs:
        problems += [Problem(pair.place, pair.id, kind, message) for kind, message in wrong(pair)]
        if pair.id and ids.setdefault(pair.id, pair.place) != pair.place:
            problems.append(Problem(pair.place, pair.id, "duplicate", f"the same pair_id stands at {ids[pair.id]}"))
        key = tuple(" ".join(pair.question(s).split()) for s in SIDES)
        if all(key) and questions.setdefault(key, pair.place) != pair.place:
            problems.append(Problem(pair.place, pair.id, "duplicate", f"the same questions stand at {questions[key]}"))
    return file, sorted(problems, key=lambda p: _line(p.place))


def _line(place: str) -> int:
    found = re.search(r"[:\[](\d+)\]?$", place)
    return int(found[1]) if found else 0


def wrong(pair: Pair) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) of everything wrong with one pair by itself."""
    if "pair_id" not in pair.record:
        yield "pair_id", "has none; results name pairs by it"
    status = pair.record.get("review_status")
    if status is not None and status not in STATUSES:
        yield "review_status", f"'{status}' is none of {', '.join(STATUSES)}"
    missing = [s for s in SIDES if not isinstance(pair.record.get(s), dict)]
    for side in missing:
        yield "missing side", f"has no {side} side"
    for side in (s for s in SIDES if s not in missing):
        yield from _wrong_side(pair, side)
    if missing:
        return
    clean, corrupted = pair.answer("clean"), pair.answer("corrupted")
    if clean is not None and clean == corrupted:
        yield "equal answers", f"both answers are {clean:g}: nothing can be patched between them"
    if all(pair.question(s).strip() for s in SIDES):
        yield from _wrong_change(pair)


def _wrong_side(pair: Pair, side: str) -> Iterator[tuple[str, str]]:
    part = pair.side(side)
    if not pair.question(side).strip():
        yield "no question", f"the {side} side has no question"
    if part.get("answer") is None:
        yield "answer", f"the {side} answer is not set"
    elif pair.answer(side) is None:
        yield "answer", f"the {side} answer {str(part['answer'])[:60]!r} is no number"
    text = solution_text(part)
    solution = parse_solution(text, pair.question(side)) if text is not None else None
    if solution is not None:
        yield from _wrong_solution(solution, pair.answer(side), side)


def _wrong_solution(solution: Solution, answer: float | None, side: str) -> Iterator[tuple[str, str]]:
    for problem in solution.problems:
        yield "annotations", f"{side}: {problem}"
    if answer is not None and solution.answer != answer:
        yield "annotations", f"the {side} answer is {answer:g}, its solution ends in {solution.answer:g}"


def _wrong_change(pair: Pair) -> Iterator[tuple[str, str]]:
    found = differences(pair.question("clean"), pair.question("corrupted"))
    if not found:
        yield "same question", "both questions are the same"
        return
    if len(found) > 1:
        yield "several changes", f"{len(found)} changes between the questions: {', '.join(d.said for d in found[:4])}"
    said = pair.side("corrupted").get("changed_number", pair.record.get("changed_number"))
    if said is not None:
        match = _CHANGED.fullmatch(str(said))
        if match is None:
            yield "changed_number", f"'{said}' must look like '16 -> 17'"
        elif not any(_same(match[1], d.old) and _same(match[2], d.new) for d in found):
            yield "changed_number", f"says '{said}', the questions differ in {found[0].said}"
    if len(found) == 1:
        yield from _wrong_answer(pair, found[0])


def _same(said: str, stands: str) -> bool:
    """``$2,000`` and ``2000`` are the same number."""

    def plain(text: str) -> str:
        return text.replace(",", "").replace("$", "").replace("%", "").replace(" ", "").lstrip("0") or "0"

    return plain(said) == plain(stands)


def _wrong_answer(pair: Pair, change: Replaced) -> Iterator[tuple[str, str]]:
    """Compare the corrupted answer with what the clean side's annotations give for the change."""
    text = solution_text(pair.side("clean"), pair.record)
    solution = parse_solution(text, pair.question("clean")) if text is not None else None
    answer, new = pair.answer("corrupted"), quantities(change.new)
    if solution is None or answer is None or len(new) != 1 or new[0].kind not in ("number", "percent"):
        return
    numbers = [n for n in solution.numbers if n.start <= change.start < n.end and not n.fixed]
    if len(numbers) != 1:
        return
    again = solution.with_number(numbers[0], float(new[0].value))
    if again.value is not None and abs(again.value - answer) > 1e-6 * max(1.0, abs(answer)):
        yield "annotations", f"the corrupted answer is {answer:g}; the annotations give {again.value:g} for {change.said}"
