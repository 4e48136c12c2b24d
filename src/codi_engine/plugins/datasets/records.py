"""Reading records (JSONL, JSON, Parquet) and what all data sets do with them: answers, fields, limits, strata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Data, Example, Options
from codi_engine.core.recordfile import MOST, check_size, digest_of, lines, parse, read_json, said
from codi_engine.core.rollout.sampling import generator
from codi_engine.core.runs.parquet import read_table
from codi_engine.core.runs.places import similar
from codi_engine.core.textfile import opened

Record = dict[str, Any]
#: what people have and what is not read
_OTHERS = frozenset(
    {".csv", ".tsv", ".xlsx", ".xls", ".gz", ".bz2", ".xz", ".zst", ".zip", ".tar", ".yaml", ".yml", ".arrow", ".feather", ".npz", ".npy", ".pt", ".h5"}
)
T = TypeVar("T")


class Sample(Options):
    """Stratified sampling: ``per_stratum`` examples of each value of the field ``by``, drawn with ``seed``."""

    by: str
    per_stratum: int = Field(ge=1)
    seed: int = 0


def read_records(path: str) -> tuple[list[tuple[str, Record]], str]:
    """Return ((place, record), sha256 of the file); the place names file and line for errors.

    Raises
    ------
    UserError: missing, not UTF-8, a line that is not JSON, not a list of objects, empty
    """
    file = Path(path).expanduser()
    if os.path.isdir(file):
        raise UserError(f"data.path: '{path}' is a directory; give a .jsonl, .json or .parquet file")
    if file.suffix.lower() in _OTHERS:
        raise UserError(f"data.path: '{path}' is a {file.suffix} file; data sets are read from .jsonl, .json and .parquet: convert it")
    try:
        records, digest = _read(file)
    except FileNotFoundError:
        hint = similar(file)
        raise UserError(f"data.path: no such file: '{path}'{'; ' if hint else ''}{hint}") from None
    except OSError as error:
        raise UserError(f"data.path: '{path}' cannot be read: {error.strerror}") from None
    if not records:
        raise UserError(f"{file.name}: holds no records; write one JSON object a line")
    return records, digest


def _read(file: Path) -> tuple[list[tuple[str, Record]], str]:
    """Return the records of a file and its sha256; JSON lines are read one by one."""
    with opened(file) as stream:
        check_size(file)
        if file.suffix in (".json", ".parquet"):
            digest = digest_of(file)
            return _parquet(file) if file.suffix == ".parquet" else _json(read_json(file), file.name), digest
        sha = hashlib.sha256()
        records = [_object(_parse(text, place), place) for place, text in lines(stream, file.name, sha)]
        return records, sha.hexdigest()


def _parse(text: str, place: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise UserError(f"{place}: {said(error)}") from None


def _json(text: str, name: str) -> list[tuple[str, Record]]:
    value = _parse(text, name) if text.strip() else []
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        if len(lists) != 1:
            raise UserError(f"{name}: must be a list of records, or an object with one list")
        value = lists[0]
    if not isinstance(value, list):
        raise UserError(f"{name}: must be a list of records; got {type(value).__name__}")
    return [_object(v, f"{name}[{i}]") for i, v in enumerate(value)]


def _object(value: Any, place: str) -> tuple[str, Record]:
    if not isinstance(value, dict):
        raise UserError(f"{place}: a record must be an object; got {type(value).__name__}")
    return place, value


def _parquet(file: Path) -> list[tuple[str, Record]]:
    try:
        with opened(file) as stream:
            rows = read_table(stream.read()).to_pylist()
    except (OSError, ValueError) as error:  # texts that are not UTF-8 among them
        raise UserError(f"{file.name}: not a Parquet file: {str(error)[:120]}; save it again, or as .jsonl") from None
    if len(rows) > MOST:
        raise UserError(f"{file.name}: holds more than {MOST:,} records; split it")
    return [(f"{file.name}[{i}]", row) for i, row in enumerate(rows)]


def text_of(record: Record, field: str, place: str) -> str:
    """Return a text field; missing, empty or not text is an error."""
    if field not in record:
        raise UserError(f"{place}: has no field '{field}'; {nearest(field, map(str, record))}")
    value = record[field]
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{place}: field '{field}' must be text; got {value!r}")
    return value


def scalar_fields(record: Mapping[str, Any], used: Sequence[str]) -> dict[str, Any]:
    """Return the record's other scalar columns."""
    return {str(k): v for k, v in record.items() if k not in used and isinstance(v, (str, int, float, bool))}


class Findings:
    """Collects what validation finds, and does with it what ``on_invalid`` says."""

    def __init__(self, source: str, drop: bool) -> None:
        self.source, self.drop = source, drop
        self.found: dict[str, list[str]] = {}

    def add(self, what: str, place: str) -> None:
        self.found.setdefault(what, []).append(place)

    def report(self) -> list[str]:
        """Return one line per kind, or raise when invalid records may not be dropped."""
        lines = [f"{len(places)} {what}: {', '.join(places[:6])}{' …' if len(places) > 6 else ''}" for what, places in self.found.items()]
        if lines and not self.drop:
            raise UserError(f"{self.source}: {'; '.join(lines)}.\nMend them, or set data.on_invalid: drop.")
        return [f"dropped {line}" for line in lines]


def finish(kind: Any, examples: list[Example], problems: Findings, digest: str, limit: int | None, sample: Sample | None) -> Data:
    """Apply sampling and limit to validated examples; the pool stays whole."""
    report = problems.report()
    if not examples:
        raise UserError(f"{problems.source}: no valid example is left ({'; '.join(report) or 'the data set is empty'})")
    ids = [e.id for e in examples]
    twice = {i for i in ids if ids.count(i) > 1} if len(set(ids)) != len(ids) else set()
    if twice:
        raise UserError(f"{problems.source}: the same id stands twice: {', '.join(sorted(twice)[:6])}")
    chosen = stratified(examples, sample, problems.source) if sample is not None else examples
    return Data(kind, chosen if limit is None else chosen[:limit], examples, tuple(report), digest)


def stratified(examples: Sequence[Example], sample: Sample, source: str) -> list[Example]:
    """Draw ``per_stratum`` examples of each value of a field, interleaved so that a limit keeps the strata balanced."""
    if not any(sample.by in e.fields for e in examples):
        known = sorted({f for e in examples for f in e.fields})
        raise UserError(f"{source}: data.sample.by: no field '{sample.by}'; {nearest(sample.by, known)}")
    strata: dict[str, list[Example]] = {}
    for example in examples:
        strata.setdefault(str(example.fields.get(sample.by)), []).append(example)
    drawn = []
    for value, members in sorted(strata.items()):
        order = generator("sample", sample.seed, sample.by, value).permutation(len(members))
        drawn.append([members[i] for i in order[: sample.per_stratum]])
    longest = max(len(d) for d in drawn)
    return [d[i] for i in range(longest) for d in drawn if i < len(d)]


def folded(text: str) -> str:
    return " ".join(text.split())


def without_duplicates(items: Sequence[tuple[str, T]], key: Callable[[T], Any], problems: Findings) -> list[T]:
    """Return the first of each key; later ones are recorded."""
    seen: set[Any] = set()
    out = []
    for place, item in items:
        if key(item) in seen:
            problems.add("duplicates", place)
            continue
        seen.add(key(item))
        out.append(item)
    return out
