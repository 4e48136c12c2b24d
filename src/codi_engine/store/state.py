"""What the ledger says of a run: its plans, arrays, labels and committed units, and the metadata files that follow from it.

The ledger is written first and is the only truth: ``experiment.yaml`` and every ``zarr.json`` are functions of it, so that a
writer that died between the two is mended by the next one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from reprlib import repr as repr_of
from typing import Any

import numpy as np

from codi_engine.store.claims import check_head, check_record
from codi_engine.store.codec import codecs
from codi_engine.store.errors import StoreError
from codi_engine.store.files import Facts, facts
from codi_engine.store.layout import DATA, EXPERIMENT, METADATA, TEXTS, ArraySpec, text_file
from codi_engine.store.ledger import canonical
from codi_engine.store.units import Packer

#: version of everything in a run directory; another one is refused
FORMAT = 1


@dataclass
class State:
    """A run as its ledger describes it.

    Attributes
    ----------
    plans: what was given to ``add_plan``, oldest first
    units: planned units; every array has ``units × unit_cells`` slots
    specs: array name → specification, ``labels`` included, in order of declaration
    committed: unit → its ledger record
    documents: metadata file → what the last plan says of it
    pending: True while the last plan may not have reached the metadata files
    generations: of each plan the units that it added, and the text of its resolved experiment
    chains: of each plan the hash of it and of all before it; equal for runs that were planned alike, whatever is committed of them
    where: names the run in errors
    """

    unit_cells: int
    identity: Any
    plans: list[dict[str, Any]] = field(default_factory=list)
    units: int = 0
    specs: dict[str, ArraySpec] = field(default_factory=dict)
    committed: dict[int, dict[str, Any]] = field(default_factory=dict)
    experiment: str = ""
    documents: dict[str, Facts] = field(default_factory=dict)
    former: dict[str, list[Facts]] = field(default_factory=dict)
    pending: bool = False
    generations: list[tuple[int, str]] = field(default_factory=list)
    chains: list[str] = field(default_factory=list)
    where: str = ""

    def __post_init__(self) -> None:
        self._packer = Packer(self.path_of)

    @classmethod
    def of(cls, records: Sequence[Mapping[str, Any]], where: str) -> State:
        """Read a ledger's records; ``where`` names the run in errors.

        Raises
        ------
        StoreError: another format, or records that no version of codi-engine writes
        """
        head = records[0]
        if head.get("kind") != "run" or head.get("format") != FORMAT:
            raise StoreError(f"{where}: was written in format {repr_of(head.get('format'))}; this version reads {FORMAT}")
        check_head(head, where)
        state = cls(head["unit_cells"], head["identity"], where=where)
        for number, record in enumerate(records[1:], 2):
            check_record(record, number, where, state.specs, state.units, state.unit_cells, state.committed)
            state.add(record)
        return state

    def path_of(self, name: str, unit: int) -> str:
        """Return where a unit's shard of an array, or its texts, lie."""
        if name == TEXTS:
            return text_file(unit)
        if name not in self.specs:
            raise StoreError(f"{self.where}: has no array '{name[:100]}'")
        return self.specs[name].shard(unit)

    def chain_of(self, unit: int) -> str:
        """Return the hash of the plan that a unit belongs to; empty for a unit that no plan has."""
        ends = accumulate(units for units, _ in self.generations)
        return next((chain for end, chain in zip(ends, self.chains, strict=True) if unit < end), "")

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in the next record."""
        if record["kind"] == "plan":
            before = self.chains[-1] if self.chains else canonical([self.unit_cells, self.identity])
            planned = {k: v for k, v in record.items() if k not in ("experiment", "files")}  # its text may name another device
            self.chains.append(hashlib.sha256(f"{before}\n{canonical(planned)}".encode("ascii")).hexdigest())
            self._grow(record)
            for name, stated in self.documents.items():
                self.former.setdefault(name, []).append(stated)
            self.documents = dict(record["files"])
            self.pending = True
        elif record["kind"] == "unit":
            unit = record["unit"]
            self.committed[unit] = {**record, "files": self._packer.pack(unit, record["files"])}
            self.pending = False

    def _grow(self, record: Mapping[str, Any]) -> None:
        self.plans.append(record["plan"])
        self.units += record["units"]
        self.experiment = record["experiment"]
        self.generations.append((record["units"], self.experiment))
        for name, described in record["arrays"]:
            self.specs[name] = _read_spec(name, described)
        for name, new in record["labels"].items():
            spec = self.specs[name]
            self.specs[name] = replace(spec, attrs={**spec.attrs, "labels": [*spec.attrs.get("labels", []), *new]})

    # ------------------------------------------------------------------------------------------- plans

    def plan_record(
        self,
        plan: Mapping[str, Any],
        units: int,
        specs: Iterable[ArraySpec],
        labels: Mapping[str, Sequence[Any]],
        experiment: str,
    ) -> dict[str, Any]:
        """Return the ledger record that extends the run: new arrays, new labels, and checksums of the resulting metadata."""
        new = {spec.name: spec for spec in specs if not self._known(spec)}
        fresh: dict[str, list[Any]] = {}
        for name, wanted in labels.items():
            spec = new.get(name) or self.specs.get(name)
            if spec is None:
                raise StoreError(f"{name}: has labels but was not declared as an array")
            added = _new_labels(spec.attrs.get("labels", []), wanted)
            if added:
                fresh[name] = added
        described = [[name, _described(spec)] for name, spec in new.items()]
        record = {
            "kind": "plan", "plan": dict(plan), "units": units, "arrays": described, "labels": fresh, "experiment": experiment, "files": {},
        }  # fmt: skip
        record = json.loads(canonical(record))
        after = replace(self, plans=list(self.plans), specs=dict(self.specs), generations=[])
        after._grow(record)
        record["files"] = {name: facts(data) for name, data in after.metadata().items()}
        return dict(record)

    def _known(self, spec: ArraySpec) -> bool:
        """True for an array that exists alike; an array that exists otherwise cannot take the new rows."""
        old = self.specs.get(spec.name)
        if old is None:
            return False
        for what in ("dims", "shape", "numpy", "sparse", "entries"):
            if getattr(old, what) != getattr(spec, what):
                raise StoreError(f"{spec.name}: has {what} {getattr(old, what)}; the larger plan needs {getattr(spec, what)}")
        if canonical(_plain_attrs(old)) != canonical(_plain_attrs(spec)):
            raise StoreError(f"{spec.name}: has attributes {_plain_attrs(old)}; the larger plan needs {_plain_attrs(spec)}")
        return True

    # ---------------------------------------------------------------------------------------- metadata

    def metadata(self) -> dict[str, bytes]:
        """Return the content of every metadata file: ``experiment.yaml`` and each ``zarr.json``, by relative path."""
        out = {EXPERIMENT: self.experiment.encode()}
        for name in sorted(self._groups()):
            if name in self.specs:
                raise StoreError(f"{name}: is an array and cannot hold other arrays")
            out[_metadata_of(name)] = _document(self._group(name))
        for name, spec in sorted(self.specs.items()):
            out[_metadata_of(name)] = _document(self._array(spec))
        return out

    def _groups(self) -> set[str]:
        groups = {""}
        for name in self.specs:
            parts = name.split("/")
            groups |= {"/".join(parts[:i]) for i in range(len(parts))}
        return groups

    def _group(self, name: str) -> dict[str, Any]:
        prefix = name + "/" if name else ""
        coordinates = [n[len(prefix) :] for n, s in self.specs.items() if n.startswith(prefix) and "labels" in s.attrs]
        here = [n for n in coordinates if "/" not in n]
        attributes = {"coordinates": " ".join(here)} if here else {}
        return {"zarr_format": 3, "node_type": "group", "attributes": attributes}

    def _array(self, spec: ArraySpec) -> dict[str, Any]:
        return {
            "zarr_format": 3, "node_type": "array", "shape": [self.units * spec.rows(self.unit_cells), *spec.shape],
            "data_type": np.dtype(spec.dtype).name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [spec.rows(self.unit_cells), *spec.shape]}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": _fill(spec), "codecs": codecs(spec, self.unit_cells), "attributes": dict(spec.attrs),
            "dimension_names": list(spec.dims), "storage_transformers": [],
        }  # fmt: skip


def _metadata_of(name: str) -> str:
    """Return the path of a group's or an array's ``zarr.json``."""
    return f"{DATA}/{name}/{METADATA}" if name else f"{DATA}/{METADATA}"


def _fill(spec: ArraySpec) -> Any:
    if spec.numpy.kind == "b":
        return bool(spec.fill)
    if spec.numpy.kind in "iu":
        return int(spec.fill)
    if math.isfinite(spec.fill):
        return float(spec.fill)
    return "NaN" if math.isnan(spec.fill) else "Infinity" if spec.fill > 0 else "-Infinity"


def _described(spec: ArraySpec) -> dict[str, Any]:
    dtype = np.dtype(spec.dtype).name
    attrs = {**spec.attrs, **({"labels": []} if "labels" in spec.attrs else {})}
    first = list(spec.attrs.get("labels", []))
    if first:
        raise StoreError(f"{spec.name}: give labels to add_plan, not as attributes")
    described = {
        "dims": list(spec.dims), "shape": list(spec.shape), "dtype": dtype, "fill": _fill(spec), "sparse": spec.sparse, "attrs": attrs,
    }  # fmt: skip
    return {**described, "entries": spec.entries} if spec.entries else described


def _read_spec(name: str, described: Mapping[str, Any]) -> ArraySpec:
    fill = described["fill"]
    number = float(fill) if isinstance(fill, str) else fill
    dims, shape = tuple(described["dims"]), tuple(described["shape"])
    return ArraySpec(name, dims, shape, described["dtype"], number, described["sparse"], described["attrs"], described.get("entries", 0))


def _plain_attrs(spec: ArraySpec) -> dict[str, Any]:
    return {k: v for k, v in spec.attrs.items() if k != "labels"}


def _document(content: Mapping[str, Any]) -> bytes:
    """Return the text of a ``zarr.json``."""
    text = canonical(content)
    return (json.dumps(json.loads(text), indent=2, ensure_ascii=True) + "\n").encode("ascii")


def _new_labels(old: Sequence[Any], wanted: Iterable[Any]) -> list[Any]:
    seen = {hashable(v) for v in old}
    added = []
    for value in map(_plain, wanted):
        if hashable(value) not in seen:
            seen.add(hashable(value))
            added.append(value)
    return added


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return [_plain(v) for v in value] if isinstance(value, (tuple, list)) else value


def hashable(value: Any) -> Any:
    """Return a label as something that can be looked up: lists as tuples."""
    return tuple(hashable(v) for v in value) if isinstance(value, list) else value


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Return ``dotted.key: old → new`` for everything that differs between two JSON values; of whole sections, which side has them."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for key in keys for d in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
    if canonical(old) == canonical(new):
        return []
    if (isinstance(old, dict) and new is None) or (isinstance(new, dict) and old is None):
        return [f"{path or 'identity'}: {'not in the run' if old is None else 'only in the run'}"]
    shown = [text if len(text) <= 40 else text[:37] + "…" for text in (json.dumps(old), json.dumps(new))]
    return [f"{path or 'identity'}: {shown[0]} → {shown[1]}"]
