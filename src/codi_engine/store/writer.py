"""Writing a run: plans extend it, units commit to it, and only the ledger makes either true."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.store.arrays import ShardEncoder, make_array, open_group, spec_of
from codi_engine.store.errors import IdentityMismatch, StoreError
from codi_engine.store.files import clean_partials, facts, read_checked, write_durably
from codi_engine.store.ledger import Ledger, canonical, sync_directory
from codi_engine.store.layout import DATA, EXPERIMENT, LEDGER, LOCK, PROVENANCE, TEXTS, ArraySpec, metadata_files, shard_file, text_file
from codi_engine.store.lock import RunLock

FORMAT = 1


class RunWriter:
    """A run opened for writing; use :meth:`open`.

    Attributes
    ----------
    unit_cells: slots per unit, fixed when the run was made
    committed: unit → its ledger record
    provenance: what ``provenance.json`` holds
    experiment: the resolved experiment's text, written with the next plan
    """

    experiment: str = ""

    def __init__(self, path: Path, lock: RunLock, ledger: Ledger) -> None:
        self.path, self._lock, self._ledger = path, lock, ledger
        head = ledger.records[0]
        self.unit_cells: int = head["unit_cells"]
        self.committed: dict[int, dict[str, Any]] = {r["unit"]: r for r in ledger.records if r["kind"] == "unit"}
        self._encoders: dict[str, ShardEncoder] = {}
        self._specs: dict[str, ArraySpec] | None = None
        self.provenance: dict[str, Any] = _read_json(path / PROVENANCE)

    # ----------------------------------------------------------------------------------------- opening

    @classmethod
    def open(cls, path: str | Path, *, identity: Mapping[str, Any], unit_cells: int, experiment: str, provenance: Mapping[str, Any]) -> RunWriter:
        """Create a run, or reopen one of the same identity.

        Raises
        ------
        IdentityMismatch: the directory holds a run of another experiment
        StoreError: not a run, being written by another process, damaged, or not writable
        """
        root = Path(path)
        try:
            return cls._open(root, identity, unit_cells, experiment, provenance)
        except OSError as error:
            raise StoreError(_reason(root, error)) from None

    @classmethod
    def _open(cls, root: Path, identity: Mapping[str, Any], unit_cells: int, experiment: str, provenance: Mapping[str, Any]) -> RunWriter:
        if root.is_file():
            raise StoreError(f"{root}: is a file; give a directory")
        if root.is_dir() and any(p.name not in (LOCK,) for p in root.iterdir()) and not (root / LEDGER).exists():
            if not (root / EXPERIMENT).exists():
                raise StoreError(f"{root}: is not empty and holds no run; give another --output")
        root.mkdir(parents=True, exist_ok=True)
        lock = RunLock(root / LOCK)
        try:
            clean_partials(root)
            if not (root / LEDGER).exists():
                write_durably(root / EXPERIMENT, experiment.encode())
            ledger = Ledger(root / LEDGER)
            if not ledger.records:
                ledger.append({"kind": "run", "format": FORMAT, "unit_cells": unit_cells, "identity": json.loads(canonical(identity))})
            head = ledger.records[0]
            if head.get("format") != FORMAT:
                raise StoreError(f"{root}: was written in format {head.get('format')}; this version reads {FORMAT}")
            differences = _differences(head["identity"], json.loads(canonical(identity)))
            if differences:
                raise IdentityMismatch(differences)
            for folder in (DATA, TEXTS):
                (root / folder).mkdir(exist_ok=True)
            if not (root / DATA / "zarr.json").exists():
                open_group(root, "w")
            sync_directory(root)
            writer = cls(root, lock, ledger)
            writer.experiment = experiment
            if not writer.provenance and provenance:
                writer.set_provenance(dict(provenance))
            return writer
        except BaseException:
            lock.release()
            raise

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the run."""
        self._lock.release()

    # ------------------------------------------------------------------------------------------- plans

    @property
    def plans(self) -> list[dict[str, Any]]:
        """Return the plan records, oldest first."""
        return [r["plan"] for r in self._ledger.records if r["kind"] == "plan"]

    @property
    def labels(self) -> dict[str, list[Any]]:
        """Return array name → the labels that its codes stand for."""
        return {name: list(spec.attrs["labels"]) for name, spec in self.specs.items() if "labels" in spec.attrs}

    @property
    def specs(self) -> dict[str, ArraySpec]:
        if self._specs is None:
            group = open_group(self.path)
            found = sorted(p.parent.relative_to(self.path / DATA) for p in (self.path / DATA).rglob("zarr.json"))
            arrays = {str(p): group[str(p)] for p in found if str(p) != "." and hasattr(group[str(p)], "shape")}
            self._specs = {name: spec_of(name, array) for name, array in arrays.items()}
        return self._specs

    def add_plan(self, record: Mapping[str, Any], units: int, specs: Sequence[ArraySpec], labels: Mapping[str, Sequence[Any]]) -> None:
        """Extend the run by ``units`` units: create or grow arrays, append labels, then record the plan.

        A process that dies on the way leaves no ledger line; the next one repeats the call and reaches the same bytes.
        """
        try:
            self._grow(units, specs, labels)
            write_durably(self.path / EXPERIMENT, self.experiment.encode())
            files = {name: facts((self.path / name).read_bytes()) for name in metadata_files(self.path)}
            self._ledger.append({"kind": "plan", "plan": dict(record), "files": files})
        except OSError as error:
            raise StoreError(_reason(self.path, error)) from None

    def _grow(self, units: int, specs: Sequence[ArraySpec], labels: Mapping[str, Sequence[Any]]) -> None:
        slots = (sum(len(p["units"]) for p in self.plans) + units) * self.unit_cells
        group = open_group(self.path, "a")
        known = dict(self.specs)
        for spec in specs:
            if spec.name not in known:
                make_array(group.store, spec.name, spec, slots, self.unit_cells)
            elif (known[spec.name].shape, known[spec.name].dtype) != (spec.shape, np.dtype(spec.dtype).name):
                raise StoreError(f"{self.path}: {spec.name} has rows of shape {known[spec.name].shape}; the plan needs {spec.shape}")
        for name in [*known, *(s.name for s in specs if s.name not in known)]:
            array = group[name]
            if array.shape[0] != slots:
                array.resize((slots, *array.shape[1:]))
            if name in labels:
                old = list(array.attrs.get("labels", []))
                new = old + [v for v in _plain(labels[name]) if v not in old]
                if new != old:
                    array.update_attributes({**array.attrs, "labels": new})
        for name in metadata_files(self.path):
            _sync_file(self.path / name)
            sync_directory((self.path / name).parent)
        self._specs = None
        self._encoders.clear()

    # ------------------------------------------------------------------------------------------- units

    def commit(self, unit: int, stage: str, arrays: Mapping[str, np.ndarray], texts: Mapping[str, list[Any]] | None, note: Mapping[str, Any] | None) -> None:
        """Write a unit's shards and texts, make them durable, and record them.

        Parameters
        ----------
        arrays: name → rows × row shape, at most ``unit_cells`` rows
        texts: column → one value a row
        note: further facts for the ledger

        Raises
        ------
        StoreError: an undeclared array, a wrong shape, no space (what is committed stays)
        """
        if unit in self.committed:
            raise StoreError(f"{self.path}: unit {unit} is committed already")
        files: dict[str, dict[str, object]] = {}
        folders: set[Path] = set()
        try:
            for name in sorted(arrays):
                data = self._encoder(name).encode(self._checked(name, arrays[name]))
                file = shard_file(name, unit, 1 + len(self.specs[name].shape))
                self._write(file, data, folders)
                files[file] = facts(data)
            if texts:
                data = _arrow(texts, unit * self.unit_cells)
                self._write(text_file(unit), data, folders)
                files[text_file(unit)] = facts(data)
            for folder in sorted(folders):
                sync_directory(folder)
            record = {"kind": "unit", "unit": unit, "stage": stage, "files": files, **(note or {})}
            self._ledger.append(record)
        except OSError as error:
            raise StoreError(_reason(self.path, error)) from None
        self.committed[unit] = self._ledger.records[-1]

    def _write(self, name: str, data: bytes, folders: set[Path]) -> None:
        path = self.path / name
        if not path.parent.exists():
            path.parent.mkdir(parents=True)
            folders.update(p for p in path.parents if p != self.path and self.path in p.parents)
        temporary = path.with_name(path.name + ".partial")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folders.add(path.parent)

    def _encoder(self, name: str) -> ShardEncoder:
        if name not in self.specs:
            raise StoreError(f"{name}: was not declared in the plan")
        if name not in self._encoders:
            self._encoders[name] = ShardEncoder(self.specs[name], self.unit_cells)
        return self._encoders[name]

    def _checked(self, name: str, values: np.ndarray) -> np.ndarray:
        spec = self.specs[name]
        if tuple(values.shape[1:]) != spec.shape or len(values) > self.unit_cells:
            raise StoreError(f"{name}: {values.shape} does not fit {self.unit_cells} rows of {spec.shape}")
        if not np.can_cast(values.dtype, np.dtype(spec.dtype), "same_kind"):
            raise StoreError(f"{name}: {values.dtype} cannot be written as {spec.dtype}")
        return values

    def read(self, name: str, unit: int) -> np.ndarray:
        """Return the ``unit_cells`` rows of a committed unit, checked against the ledger."""
        file = shard_file(name, unit, 1 + len(self.specs[name].shape))
        stated = self.committed[unit]["files"].get(file)
        if stated is None:
            raise StoreError(f"{self.path}: unit {unit} wrote no {name}")
        return self._encoder(name).decode(read_checked(self.path, file, stated))

    def set_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Replace ``provenance.json``."""
        self.provenance = dict(provenance)
        try:
            write_durably(self.path / PROVENANCE, (json.dumps(self.provenance, indent=2, default=str) + "\n").encode())
        except OSError as error:
            raise StoreError(_reason(self.path, error)) from None


def _plain(values: Sequence[Any]) -> list[Any]:
    return [v.item() if isinstance(v, np.generic) else list(v) if isinstance(v, tuple) else v for v in values]


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _arrow(columns: Mapping[str, list[Any]], first_slot: int) -> bytes:
    """Return an Arrow IPC file with a ``slot`` column before the others; the same columns give the same bytes."""
    import pyarrow as pa

    count = len(next(iter(columns.values())))
    table = pa.table({"slot": pa.array(range(first_slot, first_slot + count), pa.int64()), **{k: pa.array(v) for k, v in columns.items()}})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as file:
        file.write_table(table)
    return bytes(sink.getvalue())


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return ``dotted.key: old → new`` for everything that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [d for key in sorted({*old, *new}) for d in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    if old == new:
        return []
    show = [text if len(text) <= 40 else text[:37] + "…" for text in (json.dumps(old), json.dumps(new))]
    return [f"{path}: {show[0]} → {show[1]}"]


def _reason(path: Path, error: OSError) -> str:
    """Say what an operating-system error means for the run."""
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; what is committed stays.\nFree space and repeat the command."
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"{path}: cannot be written ({error.strerror}); give another --output"
    return f"{path}: {error.strerror or error}"

