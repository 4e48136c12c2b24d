"""Making clean/corrupted pairs out of problems: one number of each question changed, the answer recomputed where that is possible."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codi_engine.core.errors import UserError
from codi_engine.core.pairs.alter import Bounds, Change, known_changes, undetermined, unknown_changes
from codi_engine.core.pairs.pairfile import SIDES, SOLUTIONS, Record, as_text, check_new, plain_number, read_objects, solution_text, write_text
from codi_engine.core.rollout.sampling import generator
from codi_engine.core.solutions.algebra import parse_solution
from codi_engine.core.solutions.answers import answer_of
from codi_engine.core.solutions.quantities import quantities

_IDS = ("id", "gsm8k_id", "problem_id", "pair_id")


@dataclass
class Generated:
    """What was written, and counts of what became of the problems."""

    path: Path
    pairs: int = 0
    counts: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for a table."""
        return [("pairs", f"{self.pairs:,}"), *((what, f"{count:,}") for what, count in self.counts.items())]


def generate_pairs(
    problems: str | Path,
    out: str | Path,
    *,
    per_problem: int = 1,
    seed: int = 0,
    bounds: Bounds | None = None,
    limit: int | None = None,
    known_only: bool = False,
    force: bool = False,
) -> Generated:
    """Write pairs of a file of problems; the same seed and problem give the same pair whatever else the file holds.

    Parameters
    ----------
    problems: JSON lines or a JSON list with ``question``, ``answer`` and annotations (in the answer, or in ``full_answer``, ``solution``, ``steps``)
    per_problem: pairs of one problem, different numbers first
    limit: the first so many problems
    known_only: leave out pairs whose corrupted answer the annotations do not give
    """
    target = Path(out).expanduser()
    check_new(target, force)
    source = Path(problems).expanduser()
    if target.exists() and source.exists() and target.resolve() == source.resolve():
        raise UserError(f"{out}: is the file of problems itself; give another name")
    records, _, _, broken = read_objects(source)
    if broken:
        raise UserError(f"{broken[0][0]}: {broken[0][1]}")
    done = Generated(target)
    written: list[Record] = []
    for number, (place, record) in enumerate(records[:limit]):
        made = list(itertools.islice(_pairs_of(record, place, number, seed, bounds or Bounds(), known_only, done.counts), per_problem))
        done.counts["problems without a pair"] += not made
        written += made
    ids = Counter(str(r["pair_id"]) for r in written)
    twice = [i for i, count in ids.items() if count > 1]
    if twice:
        raise UserError(f"{source}: the same id stands twice: {', '.join(twice[:6])}")
    if not written:
        raise UserError(f"{source}: no question has a number that can be changed ({'; '.join(f'{k}: {v}' for k, v in done.counts.items() if v)})")
    done.pairs = len(written)
    write_text(target, as_text(written, target))
    done.counts = Counter({k: v for k, v in done.counts.items() if v})
    _count_sources(done, written)
    return done


def _count_sources(done: Generated, written: list[Record]) -> None:
    known = sum(r["answer_source"] == "annotations" for r in written)
    done.counts = Counter({"  answer from the annotations": known, "  answer to be set in review": len(written) - known, **done.counts})


def _pairs_of(record: Record, place: str, number: int, seed: int, bounds: Bounds, known_only: bool, counts: Counter[str]) -> Iterator[Record]:
    """Yield a problem's pairs, those with a known answer only where there is one."""
    problem = _clean(record, place)
    name = next((str(record[k]) for k in _IDS if k in record), str(number))
    question, answer = str(problem["question"]), answer_of(record.get("answer"))
    text = solution_text(record)
    solution = parse_solution(text, question) if text is not None else None
    numbers = solution.numbers if solution is not None else quantities(question)
    reason = undetermined(solution, numbers)
    if solution is not None and answer is not None and solution.answer != answer:
        reason = f"the annotations give {solution.answer:g}, the answer is {answer:g}"
    draw = generator("pairs", seed, name)
    if solution is None or reason:
        counts["answers that the annotations do not determine"] += 1
        if known_only:
            return
        found = unknown_changes(numbers, draw, bounds, reason)
    else:
        found = known_changes(solution, draw, bounds)
    rest = {k: v for k, v in record.items() if k not in (*_IDS, "question", *SOLUTIONS, *SIDES, "variant") and isinstance(v, (str, int, float, bool))}
    for count, change in enumerate(found, 1):
        yield _pair(name if count == 1 else f"{name}-{count}", problem, change, rest)


def _clean(record: Record, place: str) -> Record:
    """Return the clean side: question, numeric answer, and the solution under the name that data sets know."""
    question, answer = record.get("question"), answer_of(record.get("answer"))
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{place}: has no text in its field 'question'")
    if answer is None:
        raise UserError(f"{place}: field 'answer' must be a number or a solution ending in '#### 18'; got {str(record.get('answer'))[:60]!r}")
    side: Record = {"question": question, "answer": plain_number(answer)}
    for name in SOLUTIONS:
        text = record.get(name)
        if isinstance(text, str) and (name != "answer" or "<<" in text):
            side["full_answer" if name == "answer" else name] = text
    return side


def _pair(name: str, clean: Record, change: Change, rest: Record) -> Record:
    answer: Any = None if change.answer is None else plain_number(change.answer)
    corrupted = {"question": change.apply(clean["question"]), "answer": answer, "changed_number": f"{change.number.text} -> {change.text}"}
    return {
        "pair_id": name, "clean": dict(clean), "corrupted": corrupted, **rest,
        "answer_source": "unknown" if answer is None else "annotations", "review_status": "needs_review",
        "notes": f"answer unknown: {change.reason}" if change.reason else "",
    }  # fmt: skip
