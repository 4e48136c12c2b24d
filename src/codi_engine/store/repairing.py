"""Mending a damaged run: the ledger and the provenance from their copies, metadata from the ledger, units by computing them again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.store.contained import check_contained
from codi_engine.store.errors import refused
from codi_engine.store.files import write_durably
from codi_engine.store.layout import LEDGER, LOCK, PROVENANCE, PROVENANCE_COPY
from codi_engine.store.lock import RunLock
from codi_engine.store.provenance import decode_provenance
from codi_engine.store.verifying import Finding, Verifier
from codi_engine.store.writer import RunWriter

#: what a damaged file that nothing can restore is kept as
KEPT = ".damaged"

#: a unit's arrays and texts
Content = tuple[Mapping[str, np.ndarray], Mapping[str, Sequence[Any]] | None]
#: computes units of a run that is open for writing
Recompute = Callable[[RunWriter, int], Content]


@dataclass
class Repaired:
    """What was done to a run.

    Attributes
    ----------
    restored: files written again from copies or from the ledger
    units: unit computed again → its files that were written
    replaced: those of them whose bytes are not what they were
    kept: damaged files that could not be restored → the name they have now
    left: foreign files; they are not touched
    results: analyses that were made again
    """

    path: Path
    restored: list[str] = field(default_factory=list)
    units: dict[int, list[str]] = field(default_factory=dict)
    replaced: list[int] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)
    left: list[Finding] = field(default_factory=list)
    results: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.restored or self.units or self.kept or self.results)


def repair(path: str | Path, recompute: Recompute, found: Callable[[Sequence[Finding]], None] | None = None, replace: bool = False) -> Repaired:
    """Mend what :func:`~codi_engine.store.verifying.verify` finds, and nothing else.

    Parameters
    ----------
    recompute: gives the arrays and texts of a unit once more; called for damaged units alone, in ascending order
    found: told of the damage before any unit is computed
    replace: where a unit gives other bytes now (another machine, other versions), write these, with a line in the ledger that says so

    Raises
    ------
    StoreError: no run, being written, not writable, or a unit gives other bytes than it gave before; what was mended stays mended
    """
    root = Path(path)
    check_contained(root)
    try:
        done = _restore(root)
        damage = [f for f in Verifier(root).findings() if f.damage]
        done.left = [f for f in damage if f.kind == "foreign"]
        todo: dict[int, list[str]] = {}
        for finding in damage:
            if finding.unit is None:
                done.restored += [] if finding.kind == "foreign" else [finding.file]  # written by the writer when it opens the run
            else:
                todo.setdefault(finding.unit, []).append(finding.file)
        if found is not None:
            found(damage)
        with _opened(root) as writer:
            for unit, files in sorted(todo.items()):
                if not writer.rewrite(unit, *recompute(writer, unit), files, replace):
                    done.replaced.append(unit)
                done.units[unit] = sorted(files)
    except OSError as error:
        raise refused(root, error) from None
    return done


def _opened(root: Path) -> RunWriter:
    """Open a run as what it is; this cleans up after killed writers and writes stale metadata again."""
    state = Verifier(root).state
    return RunWriter.open(root, identity=state.identity, unit_cells=state.unit_cells, experiment=state.experiment, provenance={})


def _restore(root: Path) -> Repaired:
    """Bring ledger and provenance back, or put aside what cannot be restored."""
    done = Repaired(root)
    lock = RunLock(root / LOCK)
    try:
        ledger = Verifier(root).ledger
        if ledger.problem:
            if ledger.kind == "damaged" and not ledger.copied:
                done.kept[LEDGER] = _aside(root, LEDGER)
            write_durably(root, LEDGER, ledger.raw)
            done.restored.append(LEDGER)
        if not _whole(root / PROVENANCE):
            copy = root / PROVENANCE_COPY
            if _whole(copy):
                write_durably(root, PROVENANCE, copy.read_bytes())
                done.restored.append(PROVENANCE)
            elif (root / PROVENANCE).exists():
                done.kept[PROVENANCE] = _aside(root, PROVENANCE)
    finally:
        lock.release()
    return done


def _whole(path: Path) -> bool:
    try:
        decode_provenance(path.read_bytes())
    except (OSError, ValueError):
        return False
    return True


def _aside(root: Path, name: str) -> str:
    """Rename a file that cannot be restored: somebody may still read something out of it."""
    number = next(n for n in range(1, 10_000) if not (root / f"{name}{KEPT}{n}").exists())
    os.replace(root / name, root / f"{name}{KEPT}{number}")
    return f"{name}{KEPT}{number}"
