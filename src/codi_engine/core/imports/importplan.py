"""What an import will write: its axes, its cells in canonical order, and where each column's values come from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.imports.importarrays import ArrayColumn, Arrays, Axes, Opened, outer_keys
from codi_engine.core.imports.importmap import CANONICAL, NUMBER, Entry, File
from codi_engine.core.imports.importrecords import RecordColumn, Records, _Group
from codi_engine.core.progress import Progress
from codi_engine.core.runs.results import BASELINE

Values = dict[str, tuple[Any, np.ndarray]]


class ImportPlan:
    """The cells and columns of an import. Files are scanned, and wrong ones refused, before anything is written.

    Attributes
    ----------
    axes: names in canonical order
    labels: axis → its labels; a cell's code is the place of its label
    keys: one number a cell, ascending: the cell's codes in mixed radix
    notes: what a user should know: records without values, values without a cell
    """

    def __init__(self, files: Sequence[File], entries: Sequence[Entry], baseline: str | None = None, progress: Progress | None = None) -> None:
        self._axes = Axes()
        self.arrays = Arrays(files, entries, self._axes)
        self.notes: list[str] = []
        axis_entries = [e for e in entries if e.kind == "axis"]
        self.array_columns, rest = self._columns([e for e in entries if e.kind != "axis"])
        self.records = self._record_columns(files, rest, axis_entries)
        self.records.scan(progress or Progress())
        if self.records.skipped:
            self.notes.append(f"{self.records.skipped:,} of the records hold none of the mapped values and were left out")
        self._check_axes_used(axis_entries)
        self.axes = self._order(entries)
        self.labels, self._ranks = self._labelled(baseline)
        for column in self.array_columns:
            for part in column.parts:
                part.close_labels(self._ranks)
        self._check_names(entries)
        self.keys = self._cells()

    # --------------------------------------------------------------------------------------------- columns

    def _columns(self, entries: Sequence[Entry]) -> tuple[list[ArrayColumn], list[Entry]]:
        columns, rest = [], []
        for entry in entries:
            column = self.arrays.column(entry)
            if column is not None:
                columns.append(column)
            else:
                rest.append(entry)
        return columns, rest

    def _record_columns(self, files: Sequence[File], entries: Sequence[Entry], axis_entries: Sequence[Entry]) -> Records:
        have_records = any(f.records for f in files)
        for entry in entries:
            if not have_records or entry.axes:
                known = [n for f in self.arrays.files for n in self.arrays.known[f.name]]
                hint = nearest(entry.path, known) if known else ""
                raise UserError(f"--map {entry.target}: no array '{entry.path}'; {hint + ' ' if hint.startswith('did') else ''}{self.arrays.listing()}")
        paths = [e for e in axis_entries if e.labels is None]
        numbered = not any(e.name == "example" for e in axis_entries) and all(self.arrays.holds(e) for e in paths)
        elsewhere = {e.target + e.source for e in paths if self.arrays.holds(e)}
        return Records(files, entries, axis_entries, self._axes, numbered, elsewhere)

    def _check_axes_used(self, entries: Sequence[Entry]) -> None:
        used = self.arrays.used | self.records.resolved
        for entry in entries:
            if entry.target + entry.source in used:
                continue
            if entry.labels is not None or self.arrays.holds(entry):
                raise UserError(f"--map {entry.target}: no array has an axis '{entry.name}' that these labels could name; write it in the brackets")
            if self.records.files and not self.arrays.files:
                self.records.unresolved(entry)
            keys = " and no record has it" if self.records.files else ""
            raise UserError(f"--map {entry.target}: no array is called '{entry.path}'{keys}; {self.arrays.listing()}")

    @property
    def columns(self) -> dict[str, ArrayColumn | RecordColumn]:
        """Return target → column."""
        arrays: dict[str, ArrayColumn | RecordColumn] = {c.entry.target: c for c in self.array_columns}
        return arrays | {c.entry.target: c for c in self.records.columns}

    def _check_names(self, entries: Sequence[Entry]) -> None:
        taken: dict[str, str] = {axis: f"axis '{axis}'" for axis in (*self.axes, "example", "condition")}
        for entry in entries:
            if entry.kind in ("metrics", "fields"):
                if entry.name in taken:
                    raise UserError(f"--map {entry.target}: {taken[entry.name]} has that name already; choose another")
                taken[entry.name] = entry.target
        for target, column in self.columns.items():
            if len(set(column.dims)) != len(column.shape) or len(column.dims) != len(column.shape):
                raise UserError(
                    f"--map {target}: values of shape {list(column.shape)} need names for their dimensions; write {column.entry.path}[; step, width]"
                )

    # ------------------------------------------------------------------------------------------------ axes

    def _order(self, entries: Sequence[Entry]) -> list[str]:
        used = [*(a for c in self.array_columns for a in sorted(c.axes)), *(a for g in self.records for a in g.axes)]
        named = [a for e in entries for a in (e.axes or ())]
        rank = {a: i for i, a in enumerate(dict.fromkeys([*CANONICAL, *named, *used]))}
        return sorted(set(used), key=lambda a: rank[a])

    def _labelled(self, baseline: str | None) -> tuple[dict[str, list[Any]], dict[str, np.ndarray]]:
        """Return each axis' labels in order (numbers by value, words as met, the baseline first), and met → final place."""
        labels, ranks = {}, {}
        for axis in self.axes:
            met = list(self._axes.seen[axis])
            order = list(range(len(met)))
            if all(isinstance(v, (int, float)) for v in met):
                order.sort(key=lambda i: met[i])
            if axis == "condition":
                chosen = [i for i in order if str(met[i]) == (baseline or BASELINE)]
                order = chosen + [i for i in order if i not in chosen]
            labels[axis] = [met[i] for i in order]
            ranks[axis] = np.argsort(np.array(order, np.int64))
        self._name_baseline(labels, baseline)
        if math.prod(len(v) for v in labels.values()) >= 2**62:
            raise UserError("import: the axes have too many labels; import fewer at once")
        return labels, ranks

    def _name_baseline(self, labels: dict[str, list[Any]], baseline: str | None) -> None:
        if baseline is None:
            return
        conditions = labels.get("condition", [])
        if not conditions or str(conditions[0]) != baseline:
            raise UserError(f"--baseline {baseline}: no condition has that name; {nearest(baseline, map(str, conditions))}")
        if BASELINE in conditions[1:]:
            raise UserError(f"--baseline {baseline}: another condition is called '{BASELINE}' already; leave --baseline out")
        labels["condition"] = [BASELINE, *conditions[1:]]

    # ----------------------------------------------------------------------------------------------- cells

    def _sizes(self, axes: Sequence[str]) -> list[int]:
        return [len(self.labels[a]) for a in axes]

    def _ordered(self, axes: Sequence[str] | set[str]) -> list[str]:
        return [a for a in self.axes if a in axes]

    def _cells(self) -> np.ndarray:
        full: list[np.ndarray] = []
        partial: list[tuple[str, list[str], np.ndarray]] = []
        for column in self.array_columns:
            keys = self._array_keys(column)
            self._collect(f"--map {column.entry.target}", self._ordered(column.axes), keys, full, partial)
        for group in self.records:
            self._close_group(group)
            names = " and ".join(c.entry.target for c in self.records.columns if any(m & c.bit for m in group.mask[:1]))
            self._collect(f"--map {names}", self._ordered(group.axes), group.keys, full, partial)
        if not full:
            if not partial:
                raise UserError("import: no record has any of the mapped values; nothing to import")
            axes = " and ".join(f"[{', '.join(a)}] ({t})" for t, a, _ in partial[:3])
            raise UserError(f"import: the columns have different axes, {axes}, and none has all of them; import them as two runs")
        cells = np.unique(np.concatenate(full))
        for target, axes_here, keys in partial:
            self._note_unused(target, axes_here, keys, cells)
        return cells

    def _collect(self, target: str, axes: list[str], keys: np.ndarray, full: list[np.ndarray], partial: list[Any]) -> None:
        if axes == self.axes:
            full.append(keys)
        else:
            partial.append((target, axes, keys))

    def _note_unused(self, target: str, axes: list[str], keys: np.ndarray, cells: np.ndarray) -> None:
        there = np.unique(self.key(self.codes(cells), axes))
        unused = int((~np.isin(np.unique(keys), there)).sum())
        if unused:
            self.notes.append(f"{unused:,} values of {target.removeprefix('--map ')} belong to no cell and were left out")

    def _array_keys(self, column: ArrayColumn) -> np.ndarray:
        axes = self._ordered(column.axes)
        parts = [outer_keys([part.codes(self._ranks, a) for a in axes], self._sizes(axes)) for part in column.parts]
        keys = np.concatenate(parts)
        if len(parts) > 1 and len(np.unique(keys)) < len(keys):
            double = int(_first_double(keys))
            places = [p.where for p, k in zip(column.parts, parts, strict=True) if double in k]
            raise UserError(
                f"--map {column.entry.target}: {self.describe(double, axes)} stands in {places[0]} and in {places[-1]}; "
                'bind an axis in the file names, for example "{target}.npz", or give one of the files'
            )
        return keys

    def _close_group(self, group: _Group) -> None:
        """Compute the keys of a group's entries, sort them, and refuse values that stand twice."""
        axes = self._ordered(group.axes)
        keys = np.zeros(len(group.record), np.int64)
        for axis, size in zip(axes, self._sizes(axes), strict=True):
            numbers = np.asarray(group.numbers[group.axes.index(axis)])
            keys = keys * size + self._ranks[axis][numbers]
        group.order = np.argsort(keys, kind="stable")
        group.keys = keys[group.order]
        mask = np.asarray(group.mask)[group.order]
        begin = 0
        for same in np.flatnonzero(np.diff(group.keys) == 0):
            begin = begin if begin <= same and group.keys[begin] == group.keys[same] else int(same)
            for other in range(begin, int(same) + 1):
                if mask[other] & mask[same + 1]:
                    self._double(group, axes, other, int(same) + 1, int(mask[other] & mask[same + 1]))

    def _double(self, group: _Group, axes: list[str], one: int, two: int, mask: int) -> None:
        places = [self.records.place(group.record[int(group.order[i])]) for i in (one, two)]
        target = next(c.entry.target for c in self.records.columns if c.bit & mask)
        raise UserError(
            f"{places[0]} and {places[1]} are the same cell ({self.describe(int(group.keys[one]), axes)}) and both have {target};\n"
            f"map an axis that tells them apart, for example --map trial=trial or --map example={NUMBER}"
        )

    def codes(self, keys: np.ndarray) -> dict[str, np.ndarray]:
        """Return axis → codes of cells."""
        return self._codes(keys, self.axes)

    def _codes(self, keys: np.ndarray, axes: Sequence[str]) -> dict[str, np.ndarray]:
        out = {}
        for axis, size in zip(reversed(axes), reversed(self._sizes(axes)), strict=True):
            keys, out[axis] = keys // size, keys % size
        return {axis: out[axis] for axis in axes} if axes else {"": keys}

    def key(self, codes: Mapping[str, np.ndarray], axes: Sequence[str]) -> np.ndarray:
        """Return the key of cells on some axes."""
        out = np.zeros(len(next(iter(codes.values()))), np.int64)
        for axis, size in zip(axes, self._sizes(axes), strict=True):
            out = out * size + codes[axis]
        return out

    def describe(self, key: int, axes: Sequence[str] | None = None) -> str:
        """Name a cell by its labels."""
        chosen = self.axes if axes is None else axes
        codes = self._codes(np.array([key]), chosen)
        return " ".join(f"{a}={self.labels[a][int(codes[a][0])]}" for a in chosen) or "the only cell"

    # ---------------------------------------------------------------------------------------------- values

    def read(self, keys: np.ndarray, opened: Opened) -> Values:
        """Return target → (values of these cells, which have one)."""
        codes = self.codes(keys)
        out: Values = {}
        for column in self.array_columns:
            out[column.entry.target] = column.read(codes, opened)
        for record_column in self.records.columns:
            out[record_column.entry.target] = _empty(record_column, len(keys))
        for group in self.records:
            wanted = self.key(codes, self._ordered(group.axes))
            first, last = (np.searchsorted(group.keys, wanted, side) for side in ("left", "right"))
            self.records.read(group, first, last, out)
        return out


def _empty(column: RecordColumn, count: int) -> tuple[Any, np.ndarray]:
    have = np.zeros(count, bool)
    if column.entry.kind == "activations":
        return np.full((count, *column.shape), np.nan), have
    if column.entry.kind in ("metrics", "answer"):
        return np.full(count, np.nan), have
    return np.full(count, None, object), have


def _first_double(keys: np.ndarray) -> np.int64:
    ordered = np.sort(keys)
    found: np.int64 = ordered[1:][np.diff(ordered) == 0][0]
    return found
