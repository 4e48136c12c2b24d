"""What every run was made of: data, filters, counts, digests. One row per run, read from its ledger and metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.runs.results import BASELINE
from codi_engine.core.watching.notes import notes_of
from codi_engine.core.watching.status import Status
from codi_engine.store.errors import StoreError

#: characters of a digest that are shown
SHORT = 12
#: options of data sets that say where the records are
_PLACES = ("path", "file", "name")
_NOT_FILTERS = ("question_field", "answer_field", "chat_template")


@dataclass(frozen=True)
class Entry:
    """One run: ``examples`` counts those that were swept (``unit``: pairs, examples), ``filters`` are the data's other options."""

    run: str
    name: str
    state: str
    data: str = ""
    origin: str = ""
    filters: Mapping[str, Any] = field(default_factory=dict)
    examples: int | None = None
    unit: str = "examples"
    data_digest: str = ""
    model: str = ""
    model_digest: str = ""
    cells: int = 0
    bytes: int = 0
    hypothesis: str = ""
    notes: int = 0
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @property
    def size(self) -> str:
        """Return how many examples there are, in words."""
        return "–" if self.examples is None else f"{self.examples:,} {self.unit if self.examples != 1 else self.unit.removesuffix('s')}"


def inventory(found: Sequence[Status]) -> list[Entry]:
    """Return one entry per run, by name and then path; of a run that cannot be read what is wrong with it."""
    return sorted((_entry(status) for status in found), key=lambda e: (e.name, e.run))


def _entry(status: Status) -> Entry:
    common: dict[str, Any] = {
        "run": str(status.path), "name": status.name, "state": status.state, "cells": status.cells, "bytes": status.bytes, "problem": status.problem,
    }  # fmt: skip
    if status.problem:
        return Entry(**common)
    from codi_engine.core.runs.results import open_run

    try:
        run = open_run(status.path)
        experiment, provenance = run.experiment, run.store.provenance
        examples, unit = _examples(run.store)
        notes = len(notes_of(status.path))
    except (UserError, StoreError, OSError, ValueError) as error:
        return Entry(**{**common, "state": "damaged", "problem": str(error)})
    data, model = _reference(experiment.get("data")), _reference(experiment.get("model"))
    place = next((p for p in _PLACES if p in data), None)
    origin = str(data[place]) if place else _origin(experiment, provenance)
    filters = {k: v for k, v in data.items() if k not in ("plugin", place, *_NOT_FILTERS)}
    kind = str(data.get("plugin", ""))
    return Entry(
        **common, data=kind, origin=origin, filters=filters, examples=examples, unit=unit, hypothesis=str(experiment.get("hypothesis") or ""),
        data_digest=str(provenance.get("data_digest", "")), model=str(model.get("plugin", "")), model_digest=str(provenance.get("model_digest", "")),
        notes=notes,
    )  # fmt: skip


def _reference(value: Any) -> dict[str, Any]:
    """Return a plugin and its options as the experiment names them."""
    return {"plugin": value} if isinstance(value, str) else dict(value) if isinstance(value, Mapping) else {}


def _origin(experiment: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Say where the cells of a run without a data set are from: files that were imported, or made up."""
    if "synthetic" in experiment:
        return "synthetic"
    files = provenance.get("files") or provenance.get("imported") or experiment.get("files")
    if isinstance(files, (list, tuple, dict)) and files:
        names = [str(f.get("path", f)) if isinstance(f, Mapping) else str(f) for f in files]
        return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    return "imported" if "import" in experiment else "packaged" if str(_reference(experiment.get("data")).get("plugin", "")).startswith("demo") else ""


def _examples(store: Any) -> tuple[int | None, str]:
    """Count the examples of edited cells (of unedited ones where nothing is edited), and say whether they are pairs."""
    if "cells/example" not in store.arrays:
        return None, "examples"
    example, labels = store.codes("example"), store.labels("condition") if "cells/condition" in store.arrays else []
    edited = store.codes("condition") != labels.index(BASELINE) if BASELINE in labels else np.ones(len(example), bool)
    chosen = example[edited] if edited.any() else example
    variants = store.labels("variant") if "cells/variant" in store.arrays else []
    return len(np.unique(chosen[chosen >= 0])), "pairs" if {"clean", "corrupted"} <= set(variants) else "examples"
