"""What a ledger line may claim: types, names and sizes are compared with what the format allows before anything is made of them.

A run directory can come from anybody. Its chain and checksums then only say that the stranger computed them well.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import ArraySpec, text_file

#: slots per unit, units, and bytes of one unit's rows of an array: far above what any run has
MOST_CELLS, MOST_UNITS, MOST_BYTES = 1 << 20, 1 << 32, 1 << 40
#: features of a dictionary: a cell of sparse codes becomes a row of so many numbers
MOST_FEATURES = 1 << 24
#: dimensions of an array; numpy has 64
_MOST_DIMS = 32
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_STAGE = re.compile(r"[\w.-]{1,64}\Z")
_FILLS = ("NaN", "Infinity", "-Infinity")
_DTYPES = ("bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)), "float16", "float32", "float64")


class _Wrong(ValueError):
    """What is wrong with a line, in words."""


def check_head(record: Mapping[str, Any], where: str) -> None:
    """Refuse a first line that cannot be one; its format has been compared already."""
    with_place(where, 1, _head, record)


def check_record(record: Mapping[str, Any], number: int, where: str, known: Mapping[str, ArraySpec], units: int, unit_cells: int, committed: Any) -> None:
    """Refuse a line that no writer writes.

    Parameters
    ----------
    number: the line's number, for the message
    where: names the run
    known: the arrays of the lines before it
    units, unit_cells, committed: as the lines before it say

    Raises
    ------
    StoreError: naming the line and what is wrong with it
    """
    kind = record.get("kind")
    with_place(where, number, _demand, isinstance(kind, str), "it has no kind")
    if kind == "plan":
        with_place(where, number, _plan, record, known, units, unit_cells)
    elif kind == "unit":
        with_place(where, number, _unit, record, known, units, unit_cells, committed)


def check_receipt(record: Mapping[str, Any], where: str, known: Mapping[str, ArraySpec], units: int, unit_cells: int) -> None:
    """Refuse what a unit that waits in the outbox says of itself, as far as no writer says it.

    Raises
    ------
    StoreError: ``where`` and what is wrong
    """
    try:
        _unit(record, known, units, unit_cells, ())
    except (_Wrong, StoreError) as error:
        raise StoreError(f"{where}: is no receipt of a unit: {error}") from None


def with_place(where: str, number: int, check: Any, *given: Any) -> None:
    """Run a check; what it finds wrong names the run and the line."""
    try:
        check(*given)
    except (_Wrong, StoreError) as error:
        raise StoreError(f"{where}: line {number} of the ledger is no line of a run: {error}; get the run again from where it came from") from None


def _demand(holds: bool, what: str) -> None:
    if not holds:
        raise _Wrong(what)


def _whole(value: Any, least: int, most: int, what: str) -> int:
    fits = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
    _demand(fits, f"{what} must be a whole number from {least:,} to {most:,}")
    return int(value)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    _demand(isinstance(value, dict), f"{what} must be an object")
    return dict(value)


def _list(value: Any, what: str) -> Sequence[Any]:
    _demand(isinstance(value, list), f"{what} must be a list")
    return list(value)


def _head(record: Mapping[str, Any]) -> None:
    _whole(record.get("unit_cells"), 1, MOST_CELLS, "unit_cells")
    _demand("identity" in record, "it has no identity")


# --------------------------------------------------------------------------------------------------------------- plans


def _plan(record: Mapping[str, Any], known: Mapping[str, ArraySpec], units: int, unit_cells: int) -> None:
    _mapping(record.get("plan"), "plan")
    _whole(record.get("units"), 0, MOST_UNITS - units, "units")
    _demand(isinstance(record.get("experiment"), str), "experiment must be text")
    new = [_array(item, known, unit_cells) for item in _list(record.get("arrays"), "arrays")]
    names = {*known, *new}
    _demand(len(set(new)) == len(new), "an array stands twice")
    for name, added in _mapping(record.get("labels"), "labels").items():
        _demand(name in names, "labels name an array that is not declared")
        _demand(all(map(_is_label, _list(added, "labels"))), "labels must be words and numbers")
    _documents(_mapping(record.get("files"), "files"), names)


def _array(item: Any, known: Mapping[str, ArraySpec], unit_cells: int) -> str:
    _demand(isinstance(item, list) and len(item) == 2 and isinstance(item[0], str), "an array must be a name and its description")
    name, described = item[0], _mapping(item[1], "an array's description")
    shown = name[:60]
    _demand(name not in known, f"{shown} is declared already")
    dims, shape = _list(described.get("dims"), f"{shown}: dims"), _list(described.get("shape"), f"{shown}: shape")
    _demand(len(dims) <= _MOST_DIMS and all(isinstance(d, str) and len(d) <= 200 for d in dims), f"{shown}: dims must be names, at most {_MOST_DIMS}")
    for size in shape:
        _whole(size, 1, MOST_BYTES, f"{shown}: a dimension")
    _demand(described.get("dtype") in _DTYPES, f"{shown}: dtype must be one of {', '.join(_DTYPES)}")
    _demand(_fits(described.get("fill"), np.dtype(described["dtype"])), f"{shown}: fill must be a number of its type")
    _demand(isinstance(described.get("sparse"), bool), f"{shown}: sparse must be true or false")
    attrs = _mapping(described.get("attrs"), f"{shown}: attrs")
    _demand("labels" not in attrs or attrs["labels"] == [], f"{shown}: labels do not stand among the attributes")
    if "width" in attrs:
        _whole(attrs["width"], 1, MOST_FEATURES, f"{shown}: width")
    if "coords" in attrs:
        _coords(_mapping(attrs["coords"], f"{shown}: coords"), dict(zip(dims[1:], shape, strict=False)), shown)
    _cells(name, shape, described)
    entries = _whole(described.get("entries", 0), 0, MOST_FEATURES, f"{shown}: entries")
    row = math.prod(shape) * 8
    _demand(row * max(entries, 1) * unit_cells <= MOST_BYTES, f"{shown}: a unit of it would have more than {MOST_BYTES:,} bytes")
    ArraySpec(name, tuple(dims), tuple(shape), described["dtype"], 0, described["sparse"], attrs, entries)  # refuses names and dimensions itself
    return str(name)


def _fits(fill: Any, dtype: np.dtype[Any]) -> bool:
    if dtype.kind in "iu":
        return isinstance(fill, int) and np.iinfo(dtype).min <= fill <= np.iinfo(dtype).max
    if dtype.kind == "f":
        return fill in _FILLS if isinstance(fill, str) else isinstance(fill, (int, float)) and abs(fill) <= float(np.finfo(dtype).max)
    return isinstance(fill, (bool, int))


def _cells(name: str, shape: Sequence[Any], described: Mapping[str, Any]) -> None:
    """What every cell has is one value: a code, a status, a number."""
    if name.startswith("cells/"):
        column = name.removeprefix("cells/")
        kinds = {"status": ("uint8",), "nonfinite": ("uint8",), "answer": ("float64",)}.get(column, ("int32",) if "/" not in column else _DTYPES)
        _demand(not shape and not described.get("entries") and described.get("dtype") in kinds, f"{name[:60]}: must be one value a cell, {kinds[0]}")


def _coords(coords: Mapping[str, Any], sizes: Mapping[str, int], shown: str) -> None:
    for name, values in coords.items():
        _demand(all(map(_is_label, _list(values, f"{shown}: coords"))), f"{shown}: coords must be words and numbers")
        _demand(name not in sizes or sizes[name] == len(values), f"{shown}: coords of {name[:60]} do not fit its size")


def _is_label(value: Any) -> bool:
    return isinstance(value, (str, int, float, bool)) or value is None or (isinstance(value, list) and all(isinstance(v, (str, int, float)) for v in value))


def _documents(files: Mapping[str, Any], arrays: set[str]) -> None:
    """A plan vouches for the experiment and for each array's and group's metadata, and for no file elsewhere."""
    from codi_engine.store.layout import DATA, EXPERIMENT, METADATA

    parts = {"/".join(name.split("/")[:i]) for name in arrays for i in range(name.count("/") + 2)}
    expected = {EXPERIMENT, *(f"{DATA}/{part}/{METADATA}" if part else f"{DATA}/{METADATA}" for part in {"", *parts})}
    _demand(set(files) == expected, "its files are not the metadata of its arrays")
    for name, stated in files.items():
        _facts(name, stated)


# --------------------------------------------------------------------------------------------------------------- units


def _unit(record: Mapping[str, Any], known: Mapping[str, ArraySpec], units: int, unit_cells: int, committed: Any) -> None:
    unit = _whole(record.get("unit"), 0, units - 1, "unit")
    _demand(unit not in committed or record.get("again") is True, f"unit {unit} is committed already")
    stage = record.get("stage")
    _demand(isinstance(stage, str) and bool(_STAGE.match(stage)), "stage must be a word")
    _whole(record.get("rows"), 0, unit_cells, "rows")
    _demand(isinstance(record.get("note", {}), dict), "note must be an object")
    files = _mapping(record.get("files"), "files")
    own = {spec.shard(unit) for spec in known.values()} | {text_file(unit)}
    strange = next((name for name in files if name not in own), None)
    _demand(strange is None, f"'{str(strange)[:80]}' is no file of unit {unit}")
    for name, stated in files.items():
        _facts(name, stated)


def _facts(name: str, stated: Any) -> None:
    facts = _mapping(stated, f"what is said of {name[:80]}")
    _whole(facts.get("size"), 0, MOST_BYTES, f"{name[:80]}: size")
    _demand(isinstance(facts.get("sha256"), str) and bool(_SHA256.match(facts["sha256"])), f"{name[:80]}: sha256 must be 64 hexadecimal digits")
