"""Decisions about pairs, one by one or from a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.pairs.pairfile import Pair, PairFile, plain_number, read_pairs, write_text
from codi_engine.core.solutions.answers import answer_of
from codi_engine.core.text import marked, unmarked

_DECISIONS = {"": "needs_review", "needs_review": "needs_review", "approve": "approved", "approved": "approved", "reject": "rejected", "rejected": "rejected"}
_SHOWN = {"needs_review": "", "approved": "approve", "rejected": "reject"}
COLUMNS = ("pair_id", "clean_question", "corrupted_question", "changed_number", "clean_answer", "answer", "decision", "notes")
#: lines of bad decisions that are named
_NAMED = 8


@dataclass(frozen=True)
class Imported:
    """What a spreadsheet changed."""

    approved: int
    rejected: int
    undecided: int
    changed: int

    def lines(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for a table."""
        counts = [("approved", self.approved), ("rejected", self.rejected), ("undecided", self.undecided), ("changed", self.changed)]
        return [(what, f"{count:,}") for what, count in counts]


def open_for_review(path: str | Path) -> PairFile:
    """Read a file whose decisions can be saved back.

    Raises
    ------
    UserError: it has broken records, pairs without an id of their own, or one record per variant
    """
    file = read_pairs(path)
    if file.flat:
        raise UserError(f"{path}: has one record per variant; 'codi-engine pairs filter {path} OUT.jsonl' writes it as pairs, which can be reviewed")
    if file.problems:
        raise UserError(f"{file.problems[0].place}: {file.problems[0].message}; 'codi-engine pairs validate {path}' lists everything")
    twice = [i for i, count in Counter(p.id for p in file.pairs).items() if count > 1 or not i]
    if twice:
        named = ", ".join(map(repr, twice[:4]))
        raise UserError(f"{path}: every pair needs a pair_id of its own ({named}); 'codi-engine pairs validate {path}' lists everything")
    return file


def refusal(pair: Pair) -> str:
    """Say why a pair cannot be approved; empty where it can."""
    for side in ("clean", "corrupted"):
        if not pair.question(side).strip():
            return f"the {side} side has no question"
        if pair.answer(side) is None:
            return f"the {side} answer is not set"
    if pair.answer("clean") == pair.answer("corrupted"):
        return "both answers are the same"
    return "both questions are the same" if pair.question("clean") == pair.question("corrupted") else ""


def set_answer(pair: Pair, text: str) -> str:
    """Set the corrupted answer from what was typed; return what is wrong with it, empty when it was set."""
    value = answer_of(text)
    if value is None:
        return f"'{text.strip()}' is no number"
    if not isinstance(pair.record.get("corrupted"), dict):
        return "the pair has no corrupted side"
    if value != pair.answer("corrupted"):
        pair.record["corrupted"]["answer"] = plain_number(value)
        pair.record["answer_source"] = "review"
    return ""


# ------------------------------------------------------------------------------------------- spreadsheets


def export_csv(file: PairFile, path: str | Path, force: bool = False) -> int:
    """Write a table for a spreadsheet; return its rows. Texts that look like formulas get an apostrophe in front."""
    target = Path(path).expanduser()
    if target.exists() and not force:
        raise UserError(f"{path}: exists; give another name, or --force to overwrite it")
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(COLUMNS)
    for pair in file.pairs:
        texts = [pair.id, pair.question("clean"), pair.question("corrupted"), str(pair.side("corrupted").get("changed_number", ""))]
        numbers = ["" if (a := pair.answer(s)) is None else str(plain_number(a)) for s in ("clean", "corrupted")]
        table.writerow([*map(marked, texts), *numbers, _SHOWN.get(pair.status, pair.status), marked(str(pair.record.get("notes", "")))])
    write_text(target, "\ufeff" + out.getvalue())
    return len(file.pairs)


def import_csv(file: PairFile, path: str | Path) -> Imported:
    """Take answers, decisions and notes from a table; all of them, or none where one is wrong.

    Raises
    ------
    UserError: not such a table, or the lines whose decision, answer or pair is wrong
    """
    rows = _rows(Path(path).expanduser())
    known = {p.id: p for p in file.pairs}
    wrong: list[str] = []
    seen: set[str] = set()
    changes: list[tuple[Pair, str, str, str]] = []
    for line, row in rows:
        pair = known.get(row["pair_id"])
        problem = _problem(pair, row, list(known)) or ("the pair stands twice" if row["pair_id"] in seen else "")
        seen.add(row["pair_id"])
        if problem or pair is None:
            wrong.append(f"line {line}: {problem}")
        else:
            changes.append((pair, _DECISIONS[row["decision"].strip().lower()], row["answer"], row["notes"]))
    if wrong:
        more = f"; and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise UserError(f"{path}: {'; '.join(wrong[:_NAMED])}{more}.\nNothing was changed.")
    changed = sum(_apply(*change) for change in changes)
    if changed:
        file.save()
    count = Counter(p.status for p in file.pairs)
    return Imported(count["approved"], count["rejected"], len(file.pairs) - count["approved"] - count["rejected"], changed)


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return (line, columns) of a table; separators may be commas, semicolons or tabs."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, OSError):
        raise UserError(f"{path}: cannot be read as UTF-8 text; save it as CSV (UTF-8)") from None
    first = text.partition("\n")[0]
    table = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
    try:
        heading = [h.strip() for h in next(table, [])]
        missing = [c for c in ("pair_id", "decision") if c not in heading]
        if missing:
            raise UserError(f"{path}: has no column '{missing[0]}'; --export writes a table to fill in")
        out = []
        for row in table:
            if any(cell.strip() for cell in row):
                cells = dict(zip(heading, map(unmarked, row), strict=False))
                out.append((table.line_num, {c: cells.get(c, "") for c in (*COLUMNS,)} | {"_has": " ".join(cells)}))
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV table: {error}") from None
    return out


def _problem(pair: Pair | None, row: dict[str, str], known: list[str]) -> str:
    """Say what is wrong with one line; empty when nothing is."""
    if pair is None:
        return f"no pair '{row['pair_id'][:60]}'; {nearest(row['pair_id'][:60], known)}"
    decision = row["decision"].strip().lower()
    if decision not in _DECISIONS:
        return f"decision '{row['decision'][:60]}' is none of approve, reject or nothing"
    for side in ("clean", "corrupted"):
        said = row[f"{side}_question"]
        if f"{side}_question" in row["_has"] and " ".join(said.split()) != " ".join(pair.question(side).split()):
            return f"the {side} question differs from the file's; questions are not changed here"
    if row["answer"].strip() and answer_of(row["answer"]) is None:
        return f"answer '{row['answer'][:60]}' is no number"
    trial = Pair(pair.place, {**pair.record, "corrupted": dict(pair.side("corrupted"))})
    if row["answer"].strip():
        set_answer(trial, row["answer"])
    why = refusal(trial) if _DECISIONS[decision] == "approved" else ""
    return f"cannot be approved: {why}" if why else ""


def _apply(pair: Pair, status: str, answer: str, notes: str) -> bool:
    before = (pair.answer("corrupted"), pair.status, pair.record.get("notes", ""))
    if answer.strip():
        set_answer(pair, answer)
    pair.record["review_status"] = status
    pair.record["notes"] = notes
    return before != (pair.answer("corrupted"), pair.status, pair.record["notes"])
