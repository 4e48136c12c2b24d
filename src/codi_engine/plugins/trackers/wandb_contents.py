"""What is sent to Weights & Biases: facts of the provenance, rows of the table, files of the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codi_engine.plugins.trackers.places import Effects, plain
from codi_engine.store.layout import EXPERIMENT

#: what of the provenance becomes part of the config; the rest is long or changes while the run goes on
_FACTS = ("versions", "git", "model_digest", "data_digest", "device", "devices", "layers", "latents", "seed", "reproducible_bits", "started")


def provenance_facts(run: Path) -> dict[str, Any]:
    """Return the facts of a run's provenance that say how it was made."""
    from codi_engine.store.provenance import read_provenance

    known = read_provenance(run)
    return {key: known[key] for key in _FACTS if known.get(key) is not None}


def effects_rows(effects: Effects, most: int) -> tuple[list[str], list[list[Any]], int]:
    """Return columns, rows and the number of rows left out: places first, then examples (pairs), until the table is full.

    ``example`` is empty in the rows of places, whose ``n`` counts examples.
    """
    means, examples = effects.places, effects.examples
    columns = ["condition", "example", *[str(c) for c in means if c not in ("condition", "n")], "n"]
    rows: list[list[Any]] = []
    for frame in (means, examples):
        part = frame.head(most - len(rows)).to_dict("records")
        rows += [[plain(row.get(c)) for c in columns] for row in part]
    return columns, rows, len(means) + len(examples) - len(rows)


def result_files(run: Path, folders: Mapping[str, Path], tables: Mapping[str, Path], figures: Mapping[str, Path]) -> dict[str, Path]:
    """Return name in the artifact → file: the resolved experiment, and what analyses wrote."""
    found = {f"{name}/{path.name}": path for name, folder in folders.items() for path in sorted(folder.iterdir()) if _is_result(path)}
    if not folders:
        found = {path.name: path for path in (*tables.values(), *figures.values())}
    experiment = run / EXPERIMENT
    return {**({EXPERIMENT: experiment} if experiment.is_file() else {}), **found}


def _is_result(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")
