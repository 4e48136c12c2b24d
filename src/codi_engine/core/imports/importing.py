"""Caches and logs that users already have, streamed into a run that reads like our own."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.imports.importarrays import Opened
from codi_engine.core.imports.importmap import Entry, File, find_files, read_map
from codi_engine.core.imports.importplan import ImportPlan, Values
from codi_engine.core.naming import filled_path, unfit_name
from codi_engine.core.progress import Progress
from codi_engine.store.errors import IdentityMismatch
from codi_engine.store.layout import ArraySpec
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter

#: bytes of a shard of the largest array
SHARD = 32 << 20
#: cells per unit at most: what is held of their texts at once
MOST_CELLS = 4096
STAGE = "import"
#: bytes read at once for checksums: 1 MB
BLOCK = 1 << 20
#: the condition of cells for which the map has none
CONDITION = "imported"


@dataclass
class Imported:
    """What an import wrote, and what it did not find."""

    path: Path
    name: str
    cells: int
    new_cells: int
    axes: dict[str, int]
    columns: list[str]
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


def import_files(
    files: Sequence[str | Path],
    mapping: Sequence[str] | Mapping[str, Any],
    name: str | None = None,
    output: str | Path | None = None,
    baseline: str | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Import arrays and records as a run; what is committed is not read again.

    Parameters
    ----------
    files: paths; ``{target}`` in a name binds an axis to that part
    mapping: ``TARGET=SOURCE`` texts, or a mapping of them (``docs/import.md``)
    name: default: the first file's name, or its folder's where labels are bound from file names
    output: the run directory; default ``runs/<name>``
    baseline: the condition that is the unedited one, where it is not called ``baseline``
    progress: told of cells

    Raises
    ------
    UserError: files, map and values do not fit together; nothing was written
    DifferentRun: the directory holds another run
    """
    begun = time.perf_counter()
    progress = progress or Progress()
    entries = read_map(mapping)
    found = find_files([str(f) for f in files])
    name = _checked_name(name) if name else _default_name(found[0])
    path = _output(output, name)
    progress.note(f"reading {len(found):,} file{'s' if len(found) > 1 else ''}")
    plan = ImportPlan(found, entries, baseline, progress)
    sources = _digests(found, progress)
    told = _map_as_given(entries)
    identity = {"imported": {"files": {s["name"]: s["sha256"] for s in sources}, "map": told, "baseline": baseline}}
    specs = _specs(plan)
    provenance = {"imported": True, "files": sources, "started": _now()}
    text = _experiment(name, found, told, baseline)
    unit_cells = _unit_cells(specs, len(plan.keys))
    with _open(path, identity, unit_cells, text, provenance) as writer:
        if not writer.plans:
            writer.add_plan({"imported": name, "cells": len(plan.keys)}, -(-len(plan.keys) // writer.unit_cells), specs, _labels(plan))
        new = _write(plan, writer, progress)
        notes = [*plan.notes, *_found(plan, writer)]
        if "finished" not in writer.provenance:
            writer.set_provenance({**writer.provenance, "finished": _now(), "notes": notes})
    return Imported(path, name, len(plan.keys), new, {a: len(plan.labels[a]) for a in plan.axes}, list(plan.columns), time.perf_counter() - begun, notes)


def reimport(told: Mapping[str, Any], writer: RunWriter, progress: Progress) -> Callable[[RunWriter, int], Content]:
    """Return what reads units of an imported run once more, from the files that its experiment names.

    Raises
    ------
    UserError: a file is not here, or not what was imported
    """
    found = find_files([str(f) for f in told["files"]])
    stated = {f["name"]: f["sha256"] for f in writer.provenance.get("files", [])}
    changed = next((f for f in _digests(found, progress) if stated.get(f["name"], f["sha256"]) != f["sha256"]), None)
    if changed is not None:
        raise UserError(f"{changed['path']}: is not the file that was imported (its sha256 differs); put that back")
    plan = ImportPlan(found, read_map(told["map"]), told.get("baseline"), progress)

    def unit(run: RunWriter, number: int) -> Content:
        keys = plan.keys[number * run.unit_cells : (number + 1) * run.unit_cells]
        opened = Opened()
        try:
            return _unit(plan, keys, plan.read(keys, opened))
        finally:
            opened.close()

    return unit


def _default_name(file: File) -> str:
    """Return the file's name; its folder's where the name is a label."""
    text = file.path.resolve().parent.name if file.bound else file.path.stem
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip("-._")[:101]
    return "import" if unfit_name(plain) else plain


def _checked_name(name: str) -> str:
    problem = unfit_name(name)
    if problem:
        raise UserError(f"--name {name}: {problem}")
    return name


def _output(output: str | Path | None, name: str) -> Path:
    return filled_path(str(output or "runs/{name}"), {"date": date.today().isoformat(), "name": name}, "--output")


def _open(path: Path, identity: Mapping[str, Any], unit_cells: int, experiment: str, provenance: Mapping[str, Any]) -> RunWriter:
    try:
        return RunWriter.open(path, identity=identity, unit_cells=unit_cells, experiment=experiment, provenance=provenance)
    except IdentityMismatch as mismatch:
        raise DifferentRun(f"{path}: holds another run ({'; '.join(mismatch.differences[:2])}).\nChoose a new --output.") from None


# ------------------------------------------------------------------------------------------------------- facts


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _digests(files: Sequence[File], progress: Progress) -> list[dict[str, Any]]:
    """Return path, name, size and sha256 of every file."""
    progress.start("checksums", sum(f.path.stat().st_size for f in files) // BLOCK, "MB")
    out = []
    for file in files:
        digest, size = hashlib.sha256(), 0
        with file.path.open("rb") as stream:
            while block := stream.read(BLOCK):
                digest.update(block)
                size += len(block)
                progress.advance(len(block) // BLOCK)
        out.append({"path": str(file.path), "name": file.name, "size": size, "sha256": digest.hexdigest()})
    progress.finish()
    return out


def _map_as_given(entries: Sequence[Entry]) -> dict[str, Any]:
    """Return target → source; a list where an axis has several."""
    out: dict[str, Any] = {}
    for entry in entries:
        old = out.get(entry.target)
        out[entry.target] = entry.source if old is None else [*(old if isinstance(old, list) else [old]), entry.source]
    return out


def _experiment(name: str, files: Sequence[File], told: Mapping[str, Any], baseline: str | None) -> str:
    import yaml

    imported: dict[str, Any] = {"files": [str(f.path) for f in files], "map": dict(told)}
    if baseline is not None:
        imported["baseline"] = baseline
    return yaml.safe_dump({"name": name, "imported": imported}, sort_keys=False, allow_unicode=True, width=120)


# ------------------------------------------------------------------------------------------------------ layout


def _specs(plan: ImportPlan) -> list[ArraySpec]:
    axes = dict.fromkeys(["example", "condition", *plan.axes])
    specs = [ArraySpec(f"cells/{a}", ("cell",), (), "int32", -1, attrs={"labels": []}) for a in axes]
    specs.append(ArraySpec("cells/status", ("cell",), (), "uint8", 0))
    specs.append(ArraySpec("cells/answer", ("cell",), (), "float64", np.nan))
    for column in plan.columns.values():
        entry = column.entry
        if entry.kind == "metrics":
            specs.append(ArraySpec(f"cells/metrics/{entry.name}", ("cell",), (), "float64", np.nan))
        elif entry.kind == "activations":
            dtype = np.dtype(getattr(column, "dtype", np.float64)).name
            sparse = bool(getattr(column, "feature", ""))  # named features are mostly zero
            attrs = {"coords": column.coords}
            specs.append(ArraySpec(_array(entry), ("cell", *column.dims), column.shape, dtype, np.nan, sparse, attrs))
    return specs


def _array(entry: Entry) -> str:
    return f"activations/{entry.name}/value"


def _labels(plan: ImportPlan) -> dict[str, list[Any]]:
    labels = {f"cells/{axis}": values for axis, values in plan.labels.items()}
    labels.setdefault("cells/condition", [CONDITION])
    return labels


def _unit_cells(specs: Sequence[ArraySpec], cells: int) -> int:
    largest = max(int(np.prod(s.shape, dtype=np.int64)) * s.numpy.itemsize for s in specs)
    return max(1, min(SHARD // largest, MOST_CELLS, cells))


# ----------------------------------------------------------------------------------------------------- writing


def _write(plan: ImportPlan, writer: RunWriter, progress: Progress) -> int:
    """Commit every unit that is not committed, and return the cells written."""
    size = writer.unit_cells
    missing = [u for u in range(-(-len(plan.keys) // size)) if u not in writer.committed]
    total = sum(len(plan.keys[u * size : (u + 1) * size]) for u in missing)
    opened = Opened()
    progress.start("import", total, "cells")
    try:
        for unit in missing:
            keys = plan.keys[unit * size : (unit + 1) * size]
            writer.commit(unit, STAGE, _unit(plan, keys, plan.read(keys, opened)))
            progress.advance(len(keys))
    finally:
        opened.close()
        plan.records.close()
        progress.finish()
    return total


def _unit(plan: ImportPlan, keys: np.ndarray, values: Values) -> Content:
    """Return the arrays, texts and counts of missing values of one unit."""
    codes = plan.codes(keys)
    arrays = {f"cells/{axis}": codes[axis].astype(np.int32) for axis in plan.axes}
    arrays.setdefault("cells/condition", np.zeros(len(keys), np.int32))
    arrays.setdefault("cells/example", np.full(len(keys), -1, np.int32))
    arrays["cells/status"] = np.ones(len(keys), np.uint8)
    arrays["cells/answer"] = np.full(len(keys), np.nan)
    names = [[f"{axis}={plan.labels[axis][code]}" for code in codes[axis].tolist()] for axis in plan.axes]
    texts: dict[str, list[Any]] = {"key": [" ".join(parts) for parts in zip(*names, strict=True)] or ["cell"], "text": [None] * len(keys)}
    lacking, undefined = {}, {}
    for target, column in plan.columns.items():
        found, have = values[target]
        entry = column.entry
        lacking[target] = int((~have).sum())
        if entry.kind in ("text", "fields"):
            texts[entry.name] = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in found.tolist()]
            continue
        arrays["cells/answer" if entry.kind == "answer" else f"cells/metrics/{entry.name}" if entry.kind == "metrics" else _array(entry)] = found
        undefined[target] = int((np.isnan(found.reshape(len(keys), -1)).any(1) & have).sum())
    return Content(arrays, texts, {"missing": {k: v for k, v in lacking.items() if v}, "nan": {k: v for k, v in undefined.items() if v}})


def _found(plan: ImportPlan, writer: RunWriter) -> list[str]:
    """Say how many cells lack a value or hold NaN, over all units."""
    totals: dict[tuple[str, str], int] = {}
    for record in writer.committed.values():
        for what, counts in record.get("note", {}).items():
            for target, count in counts.items():
                totals[what, target] = totals.get((what, target), 0) + count
    said = {"missing": "have no {}", "nan": "hold NaN in {}"}
    return [f"{count:,} of {len(plan.keys):,} cells {said[what].format(target)}" for (what, target), count in sorted(totals.items())]
