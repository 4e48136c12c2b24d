"""Files of clean/corrupted pairs and of problems: read with the place of every record, written whole or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from codi_engine.core.errors import UserError
from codi_engine.core.recordfile import check_size, digest_of, lines, parse, read_json, said
from codi_engine.core.solutions.answers import answer_of
from codi_engine.core.textfile import opened
from codi_engine.store.files import write_durably

Record = dict[str, Any]
SIDES = ("clean", "corrupted")
STATUSES = ("needs_review", "approved", "rejected")
#: fields in which a solution with annotations may stand
SOLUTIONS = ("full_answer", "solution", "steps", "answer")


@dataclass(frozen=True)
class Problem:
    """Something wrong with a record: where, which pair, what kind, and what to mend."""

    place: str
    pair_id: str
    kind: str
    message: str


@dataclass
class Pair:
    """A pair and where it stands; ``record`` has ``clean`` and ``corrupted`` objects whatever the file looks like."""

    place: str
    record: Record

    @property
    def id(self) -> str:
        return str(self.record.get("pair_id", ""))

    def side(self, name: str) -> Record:
        """Return one side; empty where it is missing."""
        part = self.record.get(name)
        return part if isinstance(part, dict) else {}

    def answer(self, name: str) -> float | None:
        return answer_of(self.side(name).get("answer"))

    def question(self, name: str) -> str:
        text = self.side(name).get("question")
        return text if isinstance(text, str) else ""

    @property
    def status(self) -> str:
        return str(self.record.get("review_status", "needs_review"))


@dataclass
class PairFile:
    """A file of pairs. ``flat``: one record per variant. ``key``: the list's name in a JSON object."""

    path: Path
    pairs: list[Pair]
    flat: bool = False
    whole: Record | None = None
    key: str = ""
    problems: list[Problem] = field(default_factory=list)
    digest: str = ""

    def save(self) -> None:
        """Write the pairs back in the file's own shape, atomically.

        Raises
        ------
        UserError: somebody else has changed the file since it was read; it stays as it is
        """
        if _digest(self.path) != self.digest:
            raise UserError(f"{self.path}: was changed by somebody else meanwhile; nothing was written. The same command goes on with the file as it is now.")
        records = [p.record for p in self.pairs]
        if self.whole is not None:
            write_text(self.path, json.dumps({**self.whole, self.key: records}, ensure_ascii=False, indent=1) + "\n")
        else:
            write_text(self.path, as_text(records, self.path))
        self.digest = _digest(self.path)


def _digest(path: Path) -> str:
    try:
        return digest_of(path)
    except OSError:
        return ""


def plain_number(value: float) -> int | float:
    """Return 18 for 18.0, so that files hold whole numbers as such."""
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def solution_text(*records: Record) -> str | None:
    """Return the first text with calculator annotations."""
    for record in records:
        for name in SOLUTIONS:
            text = record.get(name)
            if isinstance(text, str) and "<<" in text:
                return text
    return None


# ------------------------------------------------------------------------------------------------ reading


def read_pairs(path: str | Path) -> PairFile:
    """Read a file of pairs; records that are no pair at all are listed in ``problems``.

    Raises
    ------
    UserError: the file cannot be read or holds no record
    """
    file = Path(path).expanduser()
    digest = _digest(file)
    records, whole, key, broken = read_objects(file)
    flat = bool(records) and "variant" in records[0][1]
    problems = [Problem(place, "", "not JSON", message) for place, message in broken]
    pairs = _grouped(records, problems) if flat else [Pair(place, r) for place, r in records]
    return PairFile(file, pairs, flat, whole, key, problems, digest)


def _grouped(records: Sequence[tuple[str, Record]], problems: list[Problem]) -> list[Pair]:
    """One record per variant becomes one per pair; what both sides share stands once."""
    pairs: dict[str, Pair] = {}
    for place, record in records:
        pair_id, variant = str(record.get("pair_id", "")), record.get("variant")
        if not pair_id or variant not in SIDES:
            problems.append(Problem(place, pair_id, "no variant", "needs pair_id and variant: clean or corrupted"))
            continue
        pair = pairs.setdefault(pair_id, Pair(place, {"pair_id": record["pair_id"]}))
        if variant in pair.record:
            problems.append(Problem(place, pair_id, "duplicate", f"the {variant} variant stands twice"))
            continue
        pair.record[variant] = {k: v for k, v in record.items() if k not in ("pair_id", "variant")}
    return list(pairs.values())


def read_objects(file: Path) -> tuple[list[tuple[str, Record]], Record | None, str, list[tuple[str, str]]]:
    """Return (place, object) of a JSON-lines file or a JSON list, the object around the list and its key, and broken lines.

    Raises
    ------
    UserError: the file cannot be read, is not UTF-8, is no list, or holds nothing
    """
    if file.suffix.lower() not in (".jsonl", ".json", ".ndjson"):
        raise UserError(f"{file}: must be a .jsonl or .json file")
    whole, key = None, ""
    try:
        with opened(file) as stream:
            check_size(file)
            if file.suffix.lower() == ".json":
                records, whole, key, broken = _list(read_json(file), file.name)
            else:
                records, broken = _lines(stream, file.name)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
    if not records and not broken:
        raise UserError(f"{file}: holds no records")
    return records, whole, key, broken


def _lines(stream: BinaryIO, name: str) -> tuple[list[tuple[str, Record]], list[tuple[str, str]]]:
    records, broken = [], []
    for place, line in lines(stream, name):
        try:
            value = parse(line)
        except ValueError as error:
            broken.append((place, said(error)))
            continue
        if isinstance(value, dict):
            records.append((place, value))
        else:
            broken.append((place, f"must be an object; got {type(value).__name__}"))
    return records, broken


def _list(text: str, name: str) -> tuple[list[tuple[str, Record]], Record | None, str, list[tuple[str, str]]]:
    try:
        value = parse(text)
    except ValueError as error:
        raise UserError(f"{name}: {said(error)}") from None
    whole, key = None, ""
    if isinstance(value, dict):
        lists = [k for k, v in value.items() if isinstance(v, list)]
        if len(lists) != 1:
            raise UserError(f"{name}: must be a list of records, or an object with one list")
        whole, key, value = value, lists[0], value[lists[0]]
    if not isinstance(value, list):
        raise UserError(f"{name}: must be a list of records; got {type(value).__name__}")
    records = [(f"{name}[{i}]", v) for i, v in enumerate(value) if isinstance(v, dict)]
    broken = [(f"{name}[{i}]", f"must be an object; got {type(v).__name__}") for i, v in enumerate(value) if not isinstance(v, dict)]
    return records, whole, key, broken


# ------------------------------------------------------------------------------------------------ writing


def as_text(records: Sequence[Record], path: Path) -> str:
    """Return records as JSON lines, or as a list where the file is called .json."""
    if path.suffix.lower() == ".json":
        return json.dumps(list(records), ensure_ascii=False, indent=1) + "\n"
    # a line end inside a text would be one of the file for readers that know U+2028
    return "".join(re.sub("[\u2028\u2029\x85]", lambda m: f"\\u{ord(m[0]):04x}", json.dumps(r, ensure_ascii=False)) + "\n" for r in records)


def check_new(path: Path, force: bool) -> None:
    """Refuse to overwrite a file, or to write one that the data sets cannot read."""
    if path.suffix.lower() not in (".jsonl", ".json", ".ndjson"):
        raise UserError(f"{path}: name it .jsonl (or .json)")
    if path.is_dir():
        raise UserError(f"{path}: is a directory; give a file name")
    if path.exists() and not force:
        raise UserError(f"{path}: exists; give another name, or --force to overwrite it")


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is whole and durable, or as before.

    Raises
    ------
    UserError: it cannot be written
    """
    target = path.expanduser()
    try:
        target = target.resolve()
        write_durably(target.parent, target.name, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
