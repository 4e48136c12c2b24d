"""Published numbers as one side of a comparison: a small CSV or JSON table, one number per place."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from codi_engine.core.errors import UserError, nearest

#: columns with a meaning of their own, never taken for the numbers unless asked
_ASIDE = ("n", "ci_low", "ci_high", "example", "condition", "variant", "trial", "donor", "layer", "step", "position", "head")
_SHAPES = 'a list of records, {"step": {"0": 18.7, …}} or a list of numbers'
Records = list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True)
class Published:
    """``frame``: axes as label texts, then value, ci_low, ci_high, n (NaN where not given)."""

    file: str
    column: str
    axes: Sequence[str]
    frame: pd.DataFrame


def label_text(value: Any) -> str:
    """Return an axis value as it is compared: ``3`` for 3, 3.0 and "3"; other text as it stands."""
    text = str(value).strip()
    try:
        number = float(text)
    except ValueError:
        return text
    return str(int(number)) if np.isfinite(number) and number == int(number) else str(number)


def read_published(path: str, column: str | None, axes: Mapping[str, Sequence[str]], who: str) -> Published:
    """Read a table of numbers.

    Parameters
    ----------
    path: CSV, TSV or JSON
    column: the one with the numbers; default the first numeric one that is no axis
    axes: the run's axes and their labels, as :func:`label_text` writes them, in order

    Raises
    ------
    UserError: missing, of no known shape, no column called like an axis, no numeric column, a place twice, not a number
    """
    file = Path(path).expanduser()
    at = f"{who}: table '{path}'"
    records = _records(_text(file, at), file.suffix.lower(), axes, at)
    names = list(dict.fromkeys(k for _, r in records for k in r))
    if not records:
        raise UserError(f"{at}: holds no rows")
    used = [a for a in axes if a in names]
    if not used:
        raise UserError(f"{at}: no column is called like an axis of the run ({', '.join(axes)}); its columns are {', '.join(names)}")
    chosen = _column(records, names, column, used, at)
    return Published(file.name, chosen, used, _frame(records, used, chosen, at))


def _text(file: Path, at: str) -> str:
    if file.suffix.lower() not in (".csv", ".tsv", ".json"):
        raise UserError(f"{at}: give a .csv, .tsv or .json file")
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{at}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{at}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def _records(text: str, suffix: str, axes: Mapping[str, Sequence[str]], at: str) -> Records:
    """Return (where, row) for each row, whatever the shape."""
    if suffix != ".json":
        return _csv_records(text, "\t" if suffix == ".tsv" else ",", at)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{at}: not valid JSON: {str(error)[:120]}") from None
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return [(f"record {i}", v) for i, v in enumerate(value)]
    if isinstance(value, list) and value and not any(isinstance(v, (dict, list)) for v in value):
        return _in_order(value, _only_varying(axes, at), axes, at)
    if isinstance(value, dict) and len(value) == 1:
        axis, inner = next(iter(value.items()))
        if axis not in axes:
            raise UserError(f"{at}: '{axis}' is no axis of the run; it has {', '.join(axes)}")
        if isinstance(inner, dict) and not any(isinstance(v, (dict, list)) for v in inner.values()):
            return [(f"{axis} {label}", {axis: label, "value": number}) for label, number in inner.items()]
        if isinstance(inner, list) and not any(isinstance(v, (dict, list)) for v in inner):
            return _in_order(inner, axis, axes, at)
    raise UserError(f"{at}: write {_SHAPES}")


def _csv_records(text: str, delimiter: str, at: str) -> Records:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    out: Records = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise UserError(f"{at}: line {reader.line_num} has {'more' if None in row else 'fewer'} fields than the header")
            out.append((f"line {reader.line_num}", {k.strip(): v for k, v in row.items()}))
    except csv.Error as error:
        raise UserError(f"{at}: line {reader.line_num}: {error}") from None
    return out


def _only_varying(axes: Mapping[str, Sequence[str]], at: str) -> str:
    varying = [a for a, labels in axes.items() if len(labels) > 1]
    if len(varying) != 1:
        raise UserError(f"{at}: a plain list of numbers needs a run in which one axis varies; here {', '.join(varying) or 'none'} do{'' if varying else 'es'}")
    return varying[0]


def _in_order(values: Sequence[Any], axis: str, axes: Mapping[str, Sequence[str]], at: str) -> Records:
    labels = axes[axis]
    if len(values) != len(labels):
        raise UserError(f"{at}: has {len(values)} numbers for {len(labels)} values of {axis} ({', '.join(labels[:12])}{', …' if len(labels) > 12 else ''})")
    return [(f"number {i}", {axis: label, "value": v}) for i, (label, v) in enumerate(zip(labels, values, strict=True))]


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _number(value: Any) -> float | None:
    """Return a finite number; NaN where the field is empty; None where it is something else."""
    if _blank(value):
        return float("nan")
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if np.isfinite(number) else None


def _column(records: Records, names: Sequence[str], wanted: str | None, axes: Sequence[str], at: str) -> str:
    if wanted is not None:
        if wanted not in names:
            raise UserError(f"{at}: column: there is no '{wanted}'; {nearest(wanted, names)}")
        if wanted in axes:
            raise UserError(f"{at}: column: '{wanted}' is an axis; name the column with the numbers")
        return wanted
    for name in names:
        values = [_number(r.get(name)) for _, r in records]
        if name not in axes and name not in _ASIDE and all(v is not None for v in values) and not all(np.isnan(v or 0.0) for v in values):
            return name
    raise UserError(f"{at}: no numeric column beside {', '.join(axes)}; its columns are {', '.join(names)}")


def _frame(records: Records, axes: Sequence[str], column: str, at: str) -> pd.DataFrame:
    rows, seen = [], dict[tuple[str, ...], str]()
    for where, record in records:
        empty = [a for a in axes if _blank(record.get(a))]
        if empty:
            raise UserError(f"{at}: {where}: {empty[0]} is empty; every row names its place")
        place = tuple(label_text(record[a]) for a in axes)
        if place in seen:
            shown = " ".join(f"{a} {v}" for a, v in zip(axes, place, strict=True))
            raise UserError(f"{at}: {where}: {shown} stands twice (first: {seen[place]}); keep one row per place")
        seen[place] = where
        row: dict[str, Any] = dict(zip(axes, place, strict=True))
        for name, source in (("value", column), ("ci_low", "ci_low"), ("ci_high", "ci_high"), ("n", "n")):
            row[name] = _number(record.get(source))
            if row[name] is None:
                raise UserError(f"{at}: {where}: {source} is {record[source]!r}; write a number, or leave it empty")
        rows.append(row)
    return pd.DataFrame(rows)
