"""Array sources of an import: which arrays give a column, what their dimensions stand for, and their values of given cells."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.imports.foreign import headers, open_array
from codi_engine.core.imports.foreign_records import plain_label, template
from codi_engine.core.imports.foreignarray import ForeignArray, Header
from codi_engine.core.imports.importmap import Entry, File, label

#: arrays that are open at the same time
OPEN = 16
#: value dimensions whose places are numbered from 0 where no labels are given
NUMBERED = ("layer", "step", "position")
LARGEST_AXIS = 50_000_000


class Axes:
    """The labels of every axis, numbered as they are met."""

    def __init__(self) -> None:
        self.seen: dict[str, dict[Any, int]] = {}

    def number(self, axis: str, value: Any) -> int:
        """Return the number of a label, a new one for a new label."""
        known = self.seen.setdefault(axis, {})
        return known.setdefault(value, len(known))


@dataclass
class Part:
    """One array of one file: ``bound`` axes lie in its name, ``axes`` in its leading dimensions (labels by number)."""

    file: File
    name: str
    header: Header
    bound: dict[str, int]
    axes: tuple[str, ...]
    numbers: list[np.ndarray]
    homes: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.file.path}: {self.name}" if self.name != "." else str(self.file.path)

    def index(self, codes: Mapping[str, np.ndarray]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """Return which cells this array has, and their indices in its leading dimensions."""
        count = len(next(iter(codes.values())))
        have = np.ones(count, bool)
        for axis, code in self.bound.items():
            have &= codes[axis] == code
        places = []
        if have.any():
            places = [self.homes[axis][codes[axis]] for axis in self.axes]
            for place in places:
                have &= place >= 0
        return have, tuple(place[have] for place in places)

    def close_labels(self, ranks: Mapping[str, np.ndarray]) -> None:
        """Turn label numbers into final codes."""
        self.bound = {axis: int(ranks[axis][number]) for axis, number in self.bound.items()}
        for axis, numbers in zip(self.axes, self.numbers, strict=True):
            home = np.full(len(ranks[axis]), -1, np.int64)
            home[ranks[axis][numbers]] = np.arange(len(numbers))
            self.homes[axis] = home

    def codes(self, ranks: Mapping[str, np.ndarray], axis: str) -> np.ndarray:
        """Return the codes that the array has on one of its axes."""
        if axis in self.bound:
            return np.array([self.bound[axis]])
        return np.asarray(ranks[axis][self.numbers[self.axes.index(axis)]])


@dataclass
class ArrayColumn:
    """A column that arrays give: its parts differ in cells and agree in the shape of a value."""

    entry: Entry
    parts: list[Part]
    dims: tuple[str, ...]
    coords: dict[str, list[Any]]

    @property
    def axes(self) -> set[str]:
        return {*self.parts[0].bound, *self.parts[0].axes}

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].header.shape[len(self.parts[0].axes) :]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Return the floating type in which activations are kept without loss (64-bit integers: nearest double)."""
        found = np.result_type(*[_floating(p.header) for p in self.parts])
        return np.dtype(found)

    def read(self, codes: Mapping[str, np.ndarray], opened: Opened) -> tuple[np.ndarray, np.ndarray]:
        """Return (values, which cells have one)."""
        count = len(next(iter(codes.values())))
        kind: Any = self.dtype if self.entry.kind == "activations" else np.float64 if self.entry.kind in ("metrics", "answer") else object
        values = np.full((count, *self.shape), None if kind is object else np.nan, kind)
        done = np.zeros(count, bool)
        for part in self.parts:
            have, index = part.index(codes)
            if have.any():
                values[have] = opened.get(part).rows(index, int(have.sum()))
                done |= have
        return values, done


class Opened:
    """The arrays read last stay open."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, str, int], ForeignArray] = OrderedDict()

    def get(self, part: Part) -> ForeignArray:
        key = (str(part.file.path), part.name, id(part))
        if key not in self._open:
            while len(self._open) >= OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[key] = open_array(part.file.path, part.name, part.header)
        self._open.move_to_end(key)
        return self._open[key]

    def close(self) -> None:
        for array in self._open.values():
            array.close()
        self._open.clear()


class Arrays:
    """All array files of an import and what the map says of them."""

    def __init__(self, files: Sequence[File], entries: Sequence[Entry], axes: Axes) -> None:
        self.files = [f for f in files if not f.records]
        self.axes = axes
        self.labelled: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.kind == "axis":
                self.labelled.setdefault(entry.name, []).append(entry)
        self.known = {f.name: headers(f.path) for f in self.files}
        self.used: set[str] = set()
        self._lengths: dict[tuple[Any, ...], tuple[int, str]] = {}

    def listing(self) -> str:
        """Say what there is, with shapes."""
        rows = [f"{name} {header}" for f in self.files[:3] for name, header in list(self.known[f.name].items())[:12]]
        return "there are " + ", ".join(dict.fromkeys(rows)) if rows else "there are none"

    def holds(self, entry: Entry) -> bool:
        """True where an axis' source is an array of some file."""
        return any(entry.fits(f) and entry.path in self.known[f.name] for f in self.files)

    def column(self, entry: Entry) -> ArrayColumn | None:
        """Return the column that arrays give, or None when no array has that name.

        Raises
        ------
        UserError: the dimensions do not fit, labels repeat, or the type cannot be imported
        """
        parts, coords = [], []
        for file in self.files:
            for name, bound in self._matching(entry, file):
                header = self.known[file.name][name]
                self._check(entry, file, name, header)
                part = self._part(entry, file, name, header, bound)
                parts.append(part)
                coords.append(self._coords(entry, part))
        if not parts:
            return None
        first = parts[0]
        cut = len(first.axes)
        for part, found in zip(parts, coords, strict=True):
            if part.header.shape[cut:] != first.header.shape[cut:] or found != coords[0]:
                raise UserError(
                    f"--map {entry.target}: {part.where} has values of shape {list(part.header.shape[cut:])}, {first.where} "
                    f"{list(first.header.shape[cut:])}{'' if part.header.shape[cut:] != first.header.shape[cut:] else ', with other labels'}; import them apart"
                )
            if {*part.bound, *part.axes} != {*first.bound, *first.axes}:
                raise UserError(f"--map {entry.target}: {part.where} and {first.where} have different axes; name them apart with FILE:array")
        return ArrayColumn(entry, parts, entry.dims or (), coords[0])

    def _matching(self, entry: Entry, file: File) -> list[tuple[str, dict[str, Any]]]:
        known = self.known[file.name]
        if not entry.fits(file):
            return []
        if "{" in entry.path:
            expression = template(entry.path, "[^/]+")
            matches = [(name, expression.fullmatch(name)) for name in known]
            return [(name, {k: plain_label(v) for k, v in m.groupdict().items()}) for name, m in matches if m]
        if entry.path == "." and len(known) == 1:
            return [(next(iter(known)), {})]
        return [(entry.path, {})] if entry.path in known else []

    def _check(self, entry: Entry, file: File, name: str, header: Header) -> None:
        where = f"{file.path}: {name}"
        if header.problem:
            raise UserError(f"{where} {header.problem}")
        if entry.axes is None:
            names = ", ".join(["example", "…"][: max(1, len(header.shape) - (entry.kind == "activations"))])
            wanted = f"{entry.path}[{names}{' ; width' if entry.kind == 'activations' else ''}]"
            raise UserError(f"--map {entry.target}: {where} is {header}; say what its dimensions are, for example {wanted}")
        given = [*entry.axes, *(entry.dims or ())]
        if len(given) != len(header.shape):
            raise UserError(f"--map {entry.target}: {where} is {header}; '{entry.source}' names {len(given)} dimensions, it has {len(header.shape)}")
        if entry.kind == "activations" and not entry.dims:
            raise UserError(f"--map {entry.target}: {where} is one value a cell; import it as metrics/{entry.name}, or name a dimension after ';'")
        text = header.dtype.kind in "USO"
        if entry.kind != "fields" and text != (entry.kind == "text"):
            raise UserError(f"--map {entry.target}: {where} holds {header.type}; {entry.kind} needs {'text' if entry.kind == 'text' else 'numbers'}")

    def _part(self, entry: Entry, file: File, name: str, header: Header, found: Mapping[str, Any]) -> Part:
        names = {**dict(file.bound), **found}
        twice = [a for a in (entry.axes or ()) if a in names] + [a for a in found if a in dict(file.bound)]
        if twice:
            raise UserError(f"--map {entry.target}: axis '{twice[0]}' is bound by a name and named in the brackets as well; name it once")
        bound = {axis: self.axes.number(axis, value) for axis, value in names.items()}
        part = Part(file, name, header, bound, entry.axes or (), [])
        for axis, length in zip(part.axes, header.shape, strict=False):
            given = self._labels(axis, file, length, part.where)
            if given is None:
                old, place = self._lengths.setdefault((axis, *sorted(bound.items())), (length, part.where))
                if old != length:
                    raise UserError(f"{part.where}: axis '{axis}' has {length} places, in {place} {old}; give labels: --map {axis}=ARRAY")
                given = list(range(length))
            part.numbers.append(np.array([self.axes.number(axis, v) for v in given], np.int64))
        return part

    def _coords(self, entry: Entry, part: Part) -> dict[str, list[Any]]:
        out = {}
        for dim, length in zip(entry.dims or (), part.header.shape[len(part.axes) :], strict=True):
            given = self._labels(dim, part.file, length, part.where)
            if given is not None or dim in NUMBERED:
                out[dim] = list(range(length)) if given is None else given
        return out

    def _labels(self, axis: str, file: File, length: int, where: str) -> list[Any] | None:
        """Return the labels of an axis or value dimension of a file's array; None where the map gives none."""
        if length > LARGEST_AXIS:
            raise UserError(f"{where}: axis '{axis}' has {length:,} places; at most {LARGEST_AXIS:,} are imported")
        for entry in self.labelled.get(axis, ()):
            if entry.labels is not None:
                values, source = list(entry.labels), f"--map {axis}"
            else:
                others = [f for f in (file, *self.files) if entry.fits(f) and entry.path in self.known[f.name]]
                if not others:
                    continue
                values, source = self._read_labels(others[0], entry.path), f"{others[0].path}: {entry.path}"
            self.used.add(entry.target + entry.source)
            if len(values) != length:
                raise UserError(f"{where}: axis '{axis}' has {length} places, {source} gives {len(values)} labels")
            first: dict[Any, int] = {}
            for place, value in enumerate(values):
                if first.setdefault(value, place) != place:
                    raise UserError(f"{source}: the label {value!r} of axis '{axis}' stands twice, at {first[value]} and {place}; labels must differ")
            return values
        return None

    def _read_labels(self, file: File, name: str) -> list[Any]:
        header = self.known[file.name][name]
        if len(header.shape) != 1:
            raise UserError(f"{file.path}: {name} is {header}; labels are an array of one dimension")
        array = open_array(file.path, name, header)
        try:
            return [label(v) for v in array.whole().tolist()]
        except ValueError:
            raise UserError(f"{file.path}: {name} holds {header.type}; labels are words or numbers") from None
        finally:
            array.close()


def _floating(header: Header) -> np.dtype[Any]:
    dtype = header.dtype.newbyteorder("=")
    if dtype.kind == "f":
        return np.dtype("f4") if header.type == "BF16" else dtype
    if header.type == "BF16" or (dtype.kind in "biu" and dtype.itemsize <= 2):
        return np.dtype("f4")
    return np.dtype("f8")


def outer_keys(lists: Sequence[np.ndarray], sizes: Sequence[int]) -> np.ndarray:
    """Return the mixed-radix keys of the product of code lists."""
    total = math.prod(len(codes) for codes in lists)
    out = np.zeros((1,), np.int64)
    for codes, size in zip(lists, sizes, strict=True):
        out = (out[:, None] * size + codes[None, :].astype(np.int64)).reshape(-1)
    assert len(out) == total
    return out
