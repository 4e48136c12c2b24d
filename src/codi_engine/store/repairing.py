"""Mending a damaged run: the ledger and the provenance from their copies, metadata from the ledger, units by computing them again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from codi_engine.store.auditing import mend_ledger
from codi_engine.store.contained import check_contained
from codi_engine.store.errors import refused
from codi_engine.store.files import write_durably
from codi_engine.store.layout import LEDGER, LEDGER_COPY, PROVENANCE, PROVENANCE_COPY
from codi_engine.store.lease import hold
from codi_engine.store.provenance import provenance_problem
from codi_engine.store.remote import remote_at
from codi_engine.store.unitfiles import Content
from codi_engine.store.verifying import Finding, Verifier
from codi_engine.store.writer import RunWriter

#: what a damaged file that nothing can restore is kept as
KEPT = ".damaged"

#: computes units of a run that is open for writing
Recompute = Callable[[RunWriter, int], Content]


@dataclass
class Repaired:
    """What was done to a run.

    Attributes
    ----------
    restored: files written again from copies or from the ledger
    units: unit computed again → its files that were written
    replaced: those of them whose bytes are not what they were → the largest difference of a value that is still there, as a share of
        the largest value of its array
    kept: damaged files that could not be restored → the name they have now
    left: foreign files; they are not touched
    results: analyses that were made again
    todo: what the user has to do, in words
    """

    path: Path
    restored: list[str] = field(default_factory=list)
    units: dict[int, list[str]] = field(default_factory=dict)
    replaced: dict[int, float] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    left: list[Finding] = field(default_factory=list)
    results: list[str] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.restored or self.units or self.kept or self.results)


def repair(path: str | Path, recompute: Recompute, found: Callable[[Sequence[Finding]], None] | None = None, replace: bool = False) -> Repaired:
    """Mend what :func:`~codi_engine.store.verifying.verify` finds, and nothing else.

    Parameters
    ----------
    recompute: gives the arrays, texts and note of a unit once more; called for damaged units alone, in ascending order
    found: told of the damage before any unit is computed
    replace: where a unit gives other bytes now (another machine, other versions), write these, with a line in the ledger that says so

    Raises
    ------
    StoreError: no run, being written, not writable, or a unit gives other values than it gave before; what was mended stays mended
    """
    root = Path(path)
    check_contained(root)
    with _disk(root):
        done = _restore(root)
        damage = [f for f in Verifier(root).findings() if f.damage]
    done.left = [f for f in damage if f.kind == "foreign"]
    todo: dict[int, list[str]] = {}
    for finding in damage:
        if finding.unit is not None:
            todo.setdefault(finding.unit, []).append(finding.file)
        elif finding.kind != "foreign" and finding.file not in done.kept:
            done.restored.append(finding.file)  # written by the writer when it opens the run
    if found is not None:
        found(damage)
    with _disk(root):
        writer = _opened(root)
    with writer:
        for unit, files in sorted(todo.items()):
            content = recompute(writer, unit)
            with _disk(root):
                changed = writer.rewrite(unit, content, files, replace)
            if changed is not None:
                done.replaced[unit] = changed
            done.units[unit] = sorted(files)
    return done


@contextmanager
def _disk(root: Path) -> Iterator[None]:
    """Say in the user's words what the disk refuses; what computing units raises is another matter."""
    try:
        yield
    except OSError as error:
        raise refused(root, error) from None


def _opened(root: Path) -> RunWriter:
    """Open a run as what it is; this cleans up after killed writers and writes stale metadata again."""
    state = Verifier(root).state
    return RunWriter.open(root, identity=state.identity, unit_cells=state.unit_cells, experiment=state.experiment, provenance={})


def _restore(root: Path) -> Repaired:
    """Bring ledger and provenance back; what they held and nothing can restore is kept under another name first."""
    done = Repaired(root)
    lock = hold(root)
    try:
        ledger = Verifier(root).ledger
        if ledger.problem:
            for name in (LEDGER, LEDGER_COPY) if ledger.lost else ():
                _keep(done, name)
            write_durably(root, LEDGER, ledger.raw)
            if not ledger.lost:
                done.restored.append(LEDGER)
        if (remote := remote_at(root)) is not None:
            done.restored += mend_ledger(remote, ledger.raw)
        if not _whole(root / PROVENANCE):
            copy = root / PROVENANCE_COPY
            if _whole(copy):
                write_durably(root, PROVENANCE, copy.read_bytes())
                done.restored.append(PROVENANCE)
            else:
                for name in (PROVENANCE, PROVENANCE_COPY):
                    _keep(done, name)
                (root / PROVENANCE).unlink(missing_ok=True)
                (root / PROVENANCE_COPY).unlink(missing_ok=True)
    finally:
        lock.release()
    return done


def _whole(path: Path) -> bool:
    return path.is_file() and not provenance_problem(path)


def _keep(done: Repaired, name: str) -> None:
    """Copy a file that cannot be restored: somebody may still read something out of it."""
    path = done.path / name
    if path.is_file():
        kept = next(n for n in (f"{path.name}{KEPT}{i}" for i in range(1, 10_000)) if not (done.path / n).exists())
        write_durably(done.path, kept, path.read_bytes())
        done.kept[name] = kept
