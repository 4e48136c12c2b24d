"""Record sources of an import: one scan finds every cell and checks every value, then records are read again unit by unit."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.imports.foreign_records import Record, RecordFile, RecordPath, paths_in, typed
from codi_engine.core.imports.importarrays import Axes
from codi_engine.core.imports.importmap import NUMBER, Entry, File, label
from codi_engine.core.progress import Progress

MB = 1 << 20
#: columns that records can give: one bit each
MOST = 60


class RecordColumn:
    """A column that records give.

    Attributes
    ----------
    features: key → place in the vector, for a source such as ``all_features.{feature}``; None otherwise
    types: what kinds of values a field has
    shape: shape of a value, once one was seen
    """

    def __init__(self, entry: Entry, bit: int) -> None:
        self.entry, self.bit = entry, 1 << bit
        head, _, last = entry.path.rpartition(".")
        spread = entry.kind == "activations" and last.startswith("{") and RecordPath(last).names == (last[1:-1],)
        self.path = RecordPath((head or ".") if spread else entry.path)
        self.feature = last[1:-1] if spread else ""
        self.features: dict[Any, int] = {}
        self.types: set[type] = set()
        self.shape: tuple[int, ...] = ()
        self.found = False

    @property
    def dims(self) -> tuple[str, ...]:
        """Return the names of the value dimensions."""
        if self.feature:
            return (self.feature,)
        return self.entry.dims or (("width",) if len(self.shape) == 1 else ())

    @property
    def coords(self) -> dict[str, list[Any]]:
        labels = [label(k) for k in self.features]
        return {self.feature: labels if all(isinstance(k, int) for k in labels) else [str(label(k)) for k in self.features]} if self.feature else {}

    def check(self, value: Any, where: str) -> None:
        """Take note of a value, or say why it cannot be imported."""
        self.found = True
        try:
            if self.entry.kind == "activations":
                self._check_vector(value)
            elif self.entry.kind in ("metrics", "answer"):
                number(value)
            elif isinstance(value, (list, dict)):
                raise ValueError(f"a {'list' if isinstance(value, list) else 'group of keys'}")
            elif self.entry.kind == "fields" and value is not None:
                self._see(typed(value))
        except (ValueError, TypeError, OverflowError) as error:
            hint = f"; import it as fields/{self.entry.name}" if self.entry.kind in ("metrics", "answer") else ""
            needed = {"activations": "a list of numbers of one shape", "text": "text", "fields": "one value"}.get(self.entry.kind, "a number")
            raise UserError(f"{where}: {self.entry.path} must be {needed}, for --map {self.entry.target}; got {error}{hint}") from None

    def _see(self, value: Any) -> None:
        if value is not None:
            self.types.add(str if isinstance(value, int) and not -(2**63) <= value < 2**63 else type(value))

    def _check_vector(self, value: Any) -> None:
        if value is None:
            return
        if self.feature:
            for key, item in value.items():
                self.features.setdefault(key, len(self.features))
                number(item)
            self.shape = (len(self.features),)
            return
        found = _numbers(value)
        if self.shape not in ((), found.shape):
            raise ValueError(f"the shape {list(found.shape)}, {list(self.shape)} before")
        self.shape = found.shape

    def plain(self, value: Any) -> Any:
        """Return a value as it is stored."""
        if self.entry.kind in ("metrics", "answer"):
            return number(value)
        if value is None:
            return None
        if self.entry.kind == "text":
            return str(value)
        value = typed(value)
        if value is None or self.types <= {bool} or self.types <= {int}:
            return value
        return number(value) if self.types <= {int, float} else str(value)

    def fill(self, out: np.ndarray, value: Any) -> None:
        """Write a vector into ``out``, which is NaN before."""
        if value is None:
            return
        if not self.feature:
            out[...] = _numbers(value)
            return
        for key, item in value.items():
            out[self.features[key]] = number(item)


def number(value: Any) -> float:
    """Return a number, true and false as 1 and 0, nothing as NaN; ``ValueError`` for anything else."""
    if value is None or value == "":
        return math.nan
    if isinstance(value, (bool, int, float)):
        return float(value)
    if isinstance(value, str):
        words = {"true": 1.0, "false": 0.0}
        try:
            return words[value.strip().lower()] if value.strip().lower() in words else float(value)
        except ValueError:
            raise ValueError(f"'{value[:40]}'") from None
    raise ValueError(f"a {'list' if isinstance(value, list) else 'group of keys'}")


def _numbers(value: Any) -> np.ndarray:
    if not isinstance(value, list):
        raise ValueError("a group of keys; end the path with .{feature}" if isinstance(value, dict) else f"{value!r:.40}")
    found = np.array(value, np.float64)
    if found.size == 0:
        raise ValueError("an empty list")
    return found


@dataclass
class _Group:
    """Values with the same axes: for every (record, placeholders) its labels' numbers, its record, and which columns it has."""

    axes: tuple[str, ...]
    numbers: list[array[int]] = field(default_factory=list)
    record: array[int] = field(default_factory=lambda: array("q"))
    mask: array[int] = field(default_factory=lambda: array("Q"))
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    order: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))


class Records:
    """All record files of an import."""

    def __init__(self, files: Sequence[File], columns: Sequence[Entry], axis_entries: Sequence[Entry], axes: Axes, numbered: bool, elsewhere: Set[str]) -> None:
        self.files = [(f, RecordFile(f.path)) for f in files if f.records]
        if len(columns) > MOST:
            raise UserError(f"--map: {len(columns)} columns of records; at most {MOST} can be imported at once")
        self.columns = [RecordColumn(entry, bit) for bit, entry in enumerate(columns)]
        self._sources = [(e, RecordPath(e.path)) for e in axis_entries if e.labels is None]
        for path in (c.path for c in self.columns):
            if len(set(path.names)) != len(path.names):
                raise UserError(f"--map: '{path.text}' names a placeholder twice; use two names")
        self._axes, self._numbered, self._elsewhere = axes, numbered, elsewhere
        self.resolved: set[str] = set()
        self.groups: dict[tuple[str, ...], _Group] = {}
        self._file, self._offset, self._length, self._number = array("q"), array("q"), array("q"), array("q")
        self.skipped = 0
        self._first: Any = None
        self._last: tuple[int, Any] = (-1, None)
        self._stream: tuple[int, IO[bytes]] | None = None

    # -------------------------------------------------------------------------------------------- scanning

    def scan(self, progress: Progress) -> None:
        """Read every file once.

        Raises
        ------
        UserError: a value that does not fit, an axis that some records lack, a source that is nowhere
        """
        counts: dict[Any, int] = {}
        progress.start("reading", sum(f.path.stat().st_size for f, _ in self.files) // MB, "MB")
        for position, (file, reader) in enumerate(self.files):
            expected: frozenset[str] | None = None
            told = 0
            for record in reader.scan():
                if record.offset // MB > told:
                    progress.advance(record.offset // MB - told)
                    told = record.offset // MB
                self._first = record.value if self._first is None else self._first
                count = counts.get(file.bound, 0)
                counts[file.bound] = count + 1
                where = reader.place(record.number)
                found = self._values(record.value, file, where)
                if not found:
                    self.skipped += 1
                    continue
                labels = self._labels(record.value, file, count, where, reader.single)
                if expected is not None and labels.keys() != expected:
                    lacking = sorted(labels.keys() ^ expected)[0]
                    raise UserError(
                        f"{where}: has {'no' if lacking in expected else 'a'} '{lacking}', unlike the records before it; every record needs the same axes"
                    )
                expected = frozenset(labels)
                self._add(position, record, labels, found, where)
        progress.finish()
        for column in self.columns:
            if not column.found:
                self._unknown(column.entry)

    def _values(self, value: Any, file: File, where: str) -> dict[tuple[tuple[str, ...], tuple[Any, ...]], int]:
        """Return (placeholders, their keys) → which columns are there."""
        out: dict[tuple[tuple[str, ...], tuple[Any, ...]], int] = {}
        for column in self.columns:
            if column.entry.fits(file):
                for keys, item in column.path.find(value):
                    if column.feature and not isinstance(item, (dict, type(None))):
                        continue
                    column.check(item, where)
                    place = (column.path.names, keys)
                    out[place] = out.get(place, 0) | column.bit
        return out

    def _labels(self, value: Any, file: File, count: int, where: str, single: bool) -> dict[str, Any]:
        labels: dict[str, Any] = dict(file.bound)
        for entry, path in self._sources:
            if not entry.fits(file):
                continue
            found = [((), count)] if entry.path == NUMBER else path.find(value)
            if found and entry.target + entry.source in self._elsewhere and isinstance(found[0][1], (list, dict)):
                continue  # it means an array; that a record has such a key as well is chance
            if found:
                self.resolved.add(entry.target + entry.source)
                try:
                    labels.setdefault(entry.name, label(typed(found[0][1])))
                except (ValueError, UnicodeDecodeError):
                    raise UserError(f"{where}: {entry.path} must be a word or number, as label of axis '{entry.name}'; got {found[0][1]!r:.60}") from None
        if self._numbered and "example" not in labels and not single:
            labels["example"] = count
        return labels

    def _add(self, position: int, record: Record, labels: Mapping[str, Any], found: Mapping[Any, int], where: str) -> None:
        at = len(self._file)
        for store, value in ((self._file, position), (self._offset, record.offset), (self._length, record.length), (self._number, record.number)):
            store.append(value)
        for (names, keys), mask in found.items():
            here = {**labels, **dict(zip(names, keys, strict=True))}
            if len(here) != len(labels) + len(names) and not (self._numbered and "example" in names):
                raise UserError(f"{where}: axis '{next(n for n in names if n in labels)}' has two sources: a placeholder and a path or file name; keep one")
            axes = tuple(sorted(here))
            group = self.groups.setdefault(axes, _Group(axes, [array("q") for _ in axes]))
            for store, axis in zip(group.numbers, axes, strict=True):
                store.append(self._axes.number(axis, here[axis]))
            group.record.append(at)
            group.mask.append(mask)

    def _unknown(self, entry: Entry) -> None:
        names = ", ".join(paths_in(self._first)) or "no keys"
        where = ", ".join(str(f.path) for f, _ in self.files[:3])
        if not len(self._file) and self._first is None:
            raise UserError(f"{where}: no records; the file is empty")
        raise UserError(f"--map {entry.target}: no record of {where} has '{entry.path}'; the first has {names}")

    def unresolved(self, entry: Entry) -> None:
        """Say that an axis' source is nowhere."""
        self._unknown(entry)

    # ---------------------------------------------------------------------------------------------- reading

    def place(self, at: int) -> str:
        """Name the record of an entry for messages."""
        return self.files[self._file[at]][1].place(self._number[at])

    def read(self, group: _Group, first: np.ndarray, last: np.ndarray, out: Mapping[str, tuple[Any, np.ndarray]]) -> None:
        """Write the values of cells, whose entries are ``order[first … last)``, into ``out``: target → (values, which have one)."""
        wanted = [(int(group.order[e]), row) for row in range(len(first)) for e in range(int(first[row]), int(last[row]))]
        records = np.asarray(group.record)
        for entry, row in sorted(wanted, key=lambda pair: int(records[pair[0]])):
            at = int(records[entry])
            value, mask = self._record(at), group.mask[entry]
            labels = {axis: store[entry] for axis, store in zip(group.axes, group.numbers, strict=True)}
            for column in self.columns:
                if mask & column.bit:
                    self._put(column, value, labels, row, out[column.entry.target])

    def _put(self, column: RecordColumn, value: Any, labels: Mapping[str, int], row: int, out: tuple[Any, np.ndarray]) -> None:
        for keys, item in column.path.find(value):
            if all(self._axes.seen[n].get(k) == labels[n] for n, k in zip(column.path.names, keys, strict=True)):
                out[1][row] = (item if column.entry.kind == "text" else typed(item)) is not None
                if column.entry.kind == "activations":
                    column.fill(out[0][row], item)
                else:
                    out[0][row] = column.plain(item)
                return

    def _record(self, at: int) -> Any:
        if self._last[0] != at:
            position = self._file[at]
            if self._stream is None or self._stream[0] != position:
                self.close()
                self._stream = (position, self.files[position][0].path.open("rb"))
            self._last = (at, self.files[position][1].read(self._stream[1], self._offset[at], self._length[at]))
        return self._last[1]

    def close(self) -> None:
        """Close what is open."""
        if self._stream is not None:
            self._stream[1].close()
            self._stream = None

    def __iter__(self) -> Iterator[_Group]:
        return iter(self.groups.values())
