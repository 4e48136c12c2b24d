"""Features by name: ``L26-1069`` is feature 1069 of layer 26; tables of them, with a value for each."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any

from codi_engine.core.errors import UserError, nearest

_LABEL = re.compile(r"L(\d{1,9})-(\d{1,9})\Z")
_WHOLE = re.compile(r"\d{1,9}")
#: most rows of a feature table
LARGEST = 10_000_000


@dataclass(frozen=True)
class Feature:
    """One feature of one layer's sparse autoencoder; ``values`` are its table's other numeric columns."""

    layer: int
    index: int
    values: Mapping[str, float] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"L{self.layer}-{self.index}"


def parse_feature(text: str, where: str) -> Feature:
    """Read ``L26-1069``."""
    match = _LABEL.match(text)
    if match is None:
        raise UserError(f"{where}: '{text}' is no feature; write L<layer>-<feature>, for example L26-1069")
    return Feature(int(match[1]), int(match[2]))


def is_feature(value: Any) -> bool:
    return isinstance(value, str) and _LABEL.match(value) is not None


def names_features(value: Any) -> bool:
    """True for ``{from: FILE}`` and for labels such as L26-1069: what is swept, one cell a feature."""
    if isinstance(value, Mapping):
        return True
    return is_feature(value) or (isinstance(value, (list, tuple)) and bool(value) and all(is_feature(v) for v in value))


def table_path(name: str) -> Path:
    """Return a feature table's file; ``demo`` is the packaged one."""
    if name == "demo" and not Path("demo").exists():
        return Path(str(files("codi_engine.plugins").joinpath("demo") / "features.csv"))
    return Path(name).expanduser()


def table_digest(name: str) -> str:
    """Return the sha256 of a feature table, or ``absent``."""
    path = table_path(name)
    return sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "absent"


def read_features(name: str, where: str) -> list[Feature]:
    """Read a table with a column ``feature`` (L26-1069), or ``layer`` and ``id``; every other numeric column is a value.

    Raises
    ------
    UserError: no file, no such columns, a label that is none, a feature that stands twice
    """
    path = table_path(name)
    if not path.is_file():
        raise UserError(f"{where}: no file '{name}'")
    return list(_read(str(path), path.stat().st_mtime_ns, where))


@lru_cache(maxsize=8)
def _read(path: str, _: int, where: str) -> tuple[Feature, ...]:
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error, OSError) as error:
        raise UserError(f"{where}: '{path}' is no CSV table: {error}") from None
    if not rows:
        raise UserError(f"{where}: '{path}' has no rows")
    if len(rows) > LARGEST:
        raise UserError(f"{where}: '{path}' has {len(rows):,} rows; at most {LARGEST:,} are read")
    columns = [c for c in rows[0] if c]
    if "feature" not in columns and not {"layer", "id"} <= set(columns):
        raise UserError(f"{where}: '{path}' has no column feature (L26-1069), nor layer and id; it has {', '.join(columns)}")
    found = tuple(_feature(row, f"{path}:{number}") for number, row in enumerate(rows, 2))
    label, times = Counter(f.label for f in found).most_common(1)[0]
    if times > 1:
        raise UserError(f"{where}: '{path}': feature {label} stands twice")
    return found


def _feature(row: Mapping[str, Any], at: str) -> Feature:
    if row.get("feature"):
        base = parse_feature(str(row["feature"]).strip(), at)
    else:
        layer, index = _whole(row.get("layer")), _whole(row.get("id"))
        if layer is None or index is None:
            raise UserError(f"{at}: layer and id must be whole numbers from 0 on; got {row.get('layer')!r} and {row.get('id')!r}")
        base = Feature(layer, index)
    values = {}
    for name, text in row.items():
        if name in (None, "feature", "layer", "id") or not isinstance(text, str):
            continue
        try:
            values[name] = float(text)
        except ValueError:
            continue
    return Feature(base.layer, base.index, values)


def _whole(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and _WHOLE.fullmatch(text.strip()) else None


def resolve_features(value: Any, where: str) -> list[Feature]:
    """Return the features of an axis or a capture: ``{from: FILE, limit: n}``, a label, or a list of labels."""
    if isinstance(value, Mapping):
        unknown = set(value) - {"from", "limit"}
        if unknown or not isinstance(value.get("from"), str):
            raise UserError(f"{where}: write {{from: features.csv}}, with limit: n for the first n; got {dict(value)!r}")
        found = read_features(value["from"], where)
        limit = value.get("limit")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise UserError(f"{where}.limit: must be a whole number from 1 on; got {limit!r}")
        return found if limit is None else found[:limit]
    labels: Sequence[Any] = value if isinstance(value, (list, tuple)) else [value]
    return [parse_feature(str(label), where) for label in labels]


def value_of(feature: Feature, wanted: Any, means: Mapping[str, float] | None, where: str) -> float:
    """Return the value that a feature is set to: a column of its table, or its mean in ``means``."""
    if means is not None:
        if feature.label not in means:
            raise UserError(f"{where}: the run did not capture feature {feature.label}")
        return means[feature.label]
    if wanted not in feature.values:
        raise UserError(f"{where}: the table has no numbers in a column '{wanted}'; {nearest(str(wanted), list(feature.values))}")
    number = feature.values[wanted]
    if not math.isfinite(number):
        raise UserError(f"{where}: column '{wanted}' of feature {feature.label} is {number}")
    return number


def mean_codes(spec: Mapping[str, Any], where: str) -> dict[str, float]:
    """Return label → mean captured code over the unedited cells of a run: ``{run: DIR, where: {group: more}, site: NAME}``."""
    from codi_engine.core.runs.results import open_run
    from codi_engine.core.runs.vectors import captured

    unknown = set(spec) - {"run", "where", "site"}
    if unknown or not isinstance(spec.get("run"), str):
        raise UserError(f"{where}: write {{run: DIR, where: {{field: value}}}}; got {dict(spec)!r}")
    try:
        run = open_run(spec["run"])
    except UserError as error:
        raise UserError(f"{where}: run: {error}") from None
    name = captured(run, spec.get("site"), where)
    codes = run.activations(name)
    if "feature" not in codes.dims:
        raise UserError(f"{where}: '{name}' of {spec['run']} holds no features")
    rows = run.baseline
    keep = rows.index == rows.index
    for column, wanted in dict(spec.get("where") or {}).items():
        if column not in rows:
            raise UserError(f"{where}: where: the run has no field '{column}'; {nearest(column, [str(c) for c in rows])}")
        keep = keep & (rows[column].astype(str) == str(wanted)).to_numpy()
    if not keep.any():
        raise UserError(f"{where}: where: no unedited cell of {spec['run']} has {dict(spec.get('where') or {})}")
    means = codes.values[keep].mean(0)
    return {str(label): float(value) for label, value in zip(codes["feature"].values, means, strict=True)}
