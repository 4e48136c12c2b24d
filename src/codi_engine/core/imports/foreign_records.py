"""Records in files that others wrote: JSON, JSON lines and CSV, scanned once and then read again one by one."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from codi_engine.core.errors import UserError

RECORDS = (".json", ".jsonl", ".ndjson", ".csv")
#: characters read at once from a JSON list
BLOCK = 1 << 20
#: characters at the end of a block that may be the beginning of something longer: ``1.5`` of ``1.5e16``
CUT = 400
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"\s*")
_SPACE = re.compile(r"[\s,]*")
_WORDS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_DECIMAL = re.compile(r"-?\d+\.\d*(?:[eE][+-]?\d+)?|-?\d+[eE][+-]?\d+|-?\.\d+|nan|NaN", re.ASCII)
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class Record:
    """A record and where it stands: bytes ``offset`` … ``offset + length``; ``number`` is its line, or its place in a list."""

    offset: int
    length: int
    number: int
    value: Any


class RecordFile:
    """A file of records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._kind = path.suffix.lower()
        self._columns: list[str] = []
        self.single = False  # a JSON object, which is one record

    def place(self, number: int) -> str:
        """Name a record for messages."""
        return f"{self.path}[{number}]" if self._kind == ".json" else f"{self.path}:{number}"

    def scan(self) -> Iterator[Record]:
        """Yield every record in order; a JSON object is one record.

        Raises
        ------
        UserError: not JSON, not UTF-8, or a row of another length than the heading
        """
        try:
            if self._kind == ".csv":
                yield from self._scan_csv()
            elif self._kind == ".json":
                yield from self._scan_json()
            else:
                yield from self._scan_lines()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: not UTF-8 text ({error.reason})") from None
        except RecursionError:
            raise UserError(f"{self.path}: nested too deeply") from None

    def read(self, stream: IO[bytes], offset: int, length: int) -> Any:
        """Return the record at these bytes of the opened file.

        Raises
        ------
        UserError: the file was changed since it was scanned
        """
        stream.seek(offset)
        try:
            text = stream.read(length).decode("utf-8")
            if self._kind == ".csv":
                return self._row(next(csv.reader(io.StringIO(text, newline=""))))
            return json.loads(text)
        except ValueError:
            raise UserError(f"{self.path}: was changed while it was read; import it again when it is complete") from None

    def _row(self, row: Sequence[str]) -> dict[str, Any]:
        """Return a CSV row by column."""
        return {name: Cell(text) for name, text in zip(self._columns, row, strict=True)}

    def _scan_lines(self) -> Iterator[Record]:
        offset = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                skip = 3 if number == 1 and line.startswith(b"\xef\xbb\xbf") else 0
                if line[skip:].strip():
                    try:
                        value = json.loads(line[skip:].decode("utf-8"))
                    except UnicodeDecodeError:
                        raise UserError(f"{self.place(number)}: not UTF-8 text") from None
                    except json.JSONDecodeError as error:
                        raise UserError(f"{self.place(number)}: not JSON: {error.msg} (column {error.colno})") from None
                    yield Record(offset + skip, len(line) - skip, number, value)
                offset += len(line)

    def _scan_csv(self) -> Iterator[Record]:
        consumed = 0
        with self.path.open("rb") as file:

            def lines() -> Iterator[str]:
                nonlocal consumed
                for line in file:
                    consumed += len(line)
                    yield line.decode("utf-8-sig" if consumed == len(line) else "utf-8")

            reader = csv.reader(lines(), strict=True)
            try:
                self._columns = next(reader, [])
                if len(set(self._columns)) != len(self._columns):
                    raise UserError(f"{self.path}: two columns have the same name; name each once in the first line")
                begin = consumed
                for row in reader:
                    if row:
                        if len(row) != len(self._columns):
                            raise UserError(f"{self.place(reader.line_num)}: has {len(row)} values, the heading {len(self._columns)}")
                        yield Record(begin, consumed - begin, reader.line_num, self._row(row))
                    begin = consumed
            except csv.Error as error:
                raise UserError(f"{self.place(reader.line_num)}: not CSV: {error}") from None

    def _scan_json(self) -> Iterator[Record]:
        with self.path.open("r", encoding="utf-8", newline="") as file:
            text = file.read(BLOCK)
            start = len(text) - len(text.lstrip("\ufeff \t\r\n"))
            if text[start : start + 1] != "[":
                try:
                    value = json.loads(text[start:] + file.read())
                except json.JSONDecodeError as error:
                    raise UserError(f"{self.path}:{error.lineno}: not JSON: {error.msg}") from None
                self.single = True
                yield Record(len(text[:start].encode()), self.path.stat().st_size - len(text[:start].encode()), 0, value)
                return
            yield from self._elements(file, text, start + 1)

    def _elements(self, file: io.TextIOWrapper, text: str, at: int) -> Iterator[Record]:
        """Yield the elements of a list whose opening bracket was read, holding one block or one element at a time."""
        offset, number, ended = len(text[:at].encode()), 0, False
        text, at = text[at:], 0
        while True:
            after = _past(_SPACE, text, at)
            if text[after : after + 1] == "]":
                return
            value, end, problem = _element(text, after)
            if not problem:
                offset += len(text[at:after].encode())
                length = len(text[after:end].encode())
                yield Record(offset, length, number, value)
                offset, number, at = offset + length, number + 1, end
                continue
            if ended or end < len(text) - CUT:
                raise UserError(f"{self.place(number)}: not JSON: {problem}") from None
            block = file.read(max(BLOCK, len(text) - at))
            ended = not block
            text, at = text[at:] + block, 0


def _past(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _element(text: str, at: int) -> tuple[Any, int, str]:
    """Return a list's element that begins at ``at``, where it ends, and what is wrong where it is not whole."""
    if at >= len(text):
        return None, len(text), "the list is not closed"
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        return None, len(text) if error.msg.startswith("Unterminated") else error.pos, error.msg
    follows = _past(_BLANK, text, end)
    if text[follows : follows + 1] in (",", "]"):
        return value, end, ""
    return None, follows, "a comma is missing" if follows < len(text) else "the list is not closed"


# ------------------------------------------------------------------------------------------------------- paths


class RecordPath:
    """A dotted path such as ``{condition}.solution``; a placeholder stands for every key (or list index) that fits.

    Attributes
    ----------
    names: the placeholders, in order
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names = tuple(_PLACEHOLDER.findall(text))
        self._parts = [_pattern(part) for part in text.split(".")] if text != "." else []

    def find(self, record: Any) -> list[tuple[tuple[Any, ...], Any]]:
        """Return (values of the placeholders, value there) for every place that fits."""
        if not self.names:  # the common case
            if isinstance(record, dict) and self.text in record:  # a key may hold dots, a CSV column for example
                return [((), record[self.text])]
            for part in self._parts:
                if not isinstance(record, dict) or part not in record:
                    return []
                record = record[part]
            return [((), record)]
        found: list[tuple[tuple[Any, ...], Any]] = [((), record)]
        for part in self._parts:
            found = [(keys + new, value) for keys, at in found for new, value in _step(at, part)]
        return found


def _pattern(part: str) -> str | re.Pattern[str]:
    return template(part) if _PLACEHOLDER.search(part) else part


def template(text: str, wild: str = ".+") -> re.Pattern[str]:
    """Return the expression that a text with placeholders stands for; each placeholder is a group."""
    pieces = _PLACEHOLDER.split(text)
    names: set[str] = set()
    out = ""
    for number, piece in enumerate(pieces):
        if number % 2 == 0:
            out += re.escape(piece)
        elif piece in names:
            out += f"(?P={piece})"
        else:
            names.add(piece)
            out += f"(?P<{piece}>{wild})"
    return re.compile(out, re.DOTALL)


def _step(at: Any, part: str | re.Pattern[str]) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(at, list):
        if isinstance(part, str):
            if part.isdigit() and int(part) < len(at):
                yield (), at[int(part)]
        else:
            yield from (((number,), value) for number, value in enumerate(at))
    elif isinstance(at, dict):
        if isinstance(part, str):
            if part in at:
                yield (), at[part]
        else:
            for key, value in at.items():
                if match := part.fullmatch(key):
                    yield tuple(plain_label(v) for v in match.groups()), value


def plain_label(text: str) -> str | int:
    """Return a whole number written in the usual way as a number, other text as it is."""
    return int(text) if re.fullmatch(r"0|-?[1-9]\d{0,17}", text) else text


class Cell(str):
    """A value of a CSV file: text that may mean a number."""


def typed(text: Any) -> Any:
    """Return a CSV value as what it looks like: nothing, a truth value, a number, or text; other values as they are."""
    if not isinstance(text, Cell):
        return text
    if text == "" or text in _WORDS:
        return _WORDS.get(text)
    number = plain_label(text)
    if isinstance(number, str) and _DECIMAL.fullmatch(text):
        return float(text)
    return str(number) if isinstance(number, str) else number


def paths_in(record: Any, prefix: str = "", limit: int = 12) -> Sequence[str]:
    """Return some dotted paths of a record, to be shown where a path was not found."""
    out: list[str] = []
    for key, value in record.items() if isinstance(record, dict) else ():
        path = f"{prefix}{key}"
        out += paths_in(value, path + ".", limit) if isinstance(value, dict) and len(value) < 20 else [path]
    return out[:limit]
