"""Writing a run: plans extend it, units commit to it, and only the ledger makes either true."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.store.adopting import clean_outbox, forget, move_in
from codi_engine.store.codec import encode
from codi_engine.store.contained import check_contained
from codi_engine.store.errors import IdentityMismatch, StoreError, refused, vanished
from codi_engine.store.files import Batch, CheckedFiles, clean_leftovers, difference, facts, read_file
from codi_engine.store.folders import make_folders, release, sync_above
from codi_engine.store.layout import LEDGER, LEDGER_COPY, ArraySpec, text_file, waiting_folder
from codi_engine.store.lease import Hold, hold
from codi_engine.store.ledger import Ledger, canonical
from codi_engine.store.lines import ledger_at
from codi_engine.store.lock import RunLock
from codi_engine.store.mirror import occupants, pull
from codi_engine.store.outbox import Receipt, check_adoptable
from codi_engine.store.provenance import mend_provenance, read_provenance, write_provenance
from codi_engine.store.reader import read_rows
from codi_engine.store.remote import remote_at
from codi_engine.store.state import FORMAT, State, differences
from codi_engine.store.texts import encode_texts
from codi_engine.store.unitfiles import Content, check_unit, far, unit_record, write_unit

#: threads of a writer, and how many of them write files, so that their waits for the disk overlap (the others hash)
_THREADS, _LANES = 12, 8


class RunWriter:
    """A run opened for writing; use :meth:`open`. Nothing but the lock is on disk before the first plan.

    Attributes
    ----------
    path: the run directory
    unit_cells: slots per unit; an existing run's number wins
    experiment: text of the resolved experiment, written with the next plan
    provenance: what ``provenance.json`` says or will say
    """

    def __init__(self, path: Path, lock: RunLock | Hold, ledger: Ledger, state: State, made: Sequence[Path]) -> None:
        self.path, self._lock, self._ledger, self._state, self._made = path, lock, ledger, state, made
        self.experiment = state.experiment
        self.provenance: dict[str, Any] = {}
        self._files = CheckedFiles(path)
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="store")

    # ----------------------------------------------------------------------------------------- opening

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        identity: Mapping[str, Any],
        unit_cells: int,
        experiment: str,
        provenance: Mapping[str, Any],
    ) -> RunWriter:
        """Create a run, or reopen one of the same identity and mend what an interrupted writer left.

        Parameters
        ----------
        identity: what makes cells comparable, as JSON; compared with the existing run's
        unit_cells: slots per unit of a new run
        experiment: text for ``experiment.yaml``, written with the next plan
        provenance: first content of ``provenance.json``, unless the run has one

        Raises
        ------
        IdentityMismatch: the directory holds a run of another experiment
        StoreError: not a run, being written by another process, damaged, or not writable
        """
        root = Path(path)
        made: list[Path] = []
        lock = None
        try:
            made = make_folders(root)
            check_contained(root)  # before the lock, which is a file in it
            lock = hold(root)
            if (remote := remote_at(root)) is not None:
                pull(remote, writing=True)
            writer = cls._opened(root, lock, made, {"identity": identity, "unit_cells": unit_cells})
            writer.experiment = experiment
            writer.provenance = read_provenance(root) or dict(provenance)
            if not writer._ledger.empty:
                mend_provenance(root, writer.provenance)
            return writer
        except BaseException as error:  # whatever happened, the lock and the empty directory must not stay
            release(root, lock, made)
            if isinstance(error, OSError):
                raise refused(root, error) from None
            raise

    @classmethod
    def _opened(cls, root: Path, lock: RunLock | Hold, made: Sequence[Path], head: Mapping[str, Any]) -> RunWriter:
        others = occupants(root)
        if others and LEDGER not in others and not (root / LEDGER_COPY).exists():
            raise StoreError(f"{root}: is not empty and holds no run; give another output directory")
        if head["unit_cells"] < 1:
            raise StoreError(f"unit_cells must be at least 1; got {head['unit_cells']}")
        identity = json.loads(canonical(head["identity"]))
        read_provenance(root)  # its damage is said before anything is mended
        ledger = ledger_at(root)
        if ledger.empty:
            return cls(root, lock, ledger, State(head["unit_cells"], identity), made)
        state = State.of(ledger.taken(), str(root))
        changed = differences(state.identity, identity)
        if changed:
            raise IdentityMismatch(changed)
        clean_leftovers(root, state.units, state.committed.keys() | clean_outbox(root, state))
        writer = cls(root, lock, ledger, state, ())
        writer._mend()
        return writer

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the run; a directory made for a run that got no plan is removed again."""
        self._pool.shutdown()
        self._ledger.sync_copy()
        with contextlib.suppress(OSError):  # the next writer does it
            clean_outbox(self.path, self._state)
        release(self.path, self._lock, self._made if self._ledger.empty else ())
        self._made = ()

    # ------------------------------------------------------------------------------------------- facts

    @property
    def unit_cells(self) -> int:
        """Return the slots per unit."""
        return self._state.unit_cells

    @property
    def plans(self) -> list[dict[str, Any]]:
        """Return the plan records, oldest first."""
        return self._state.plans

    @property
    def generations(self) -> list[tuple[int, str]]:
        """Return of each plan the units that it added, and the text of its resolved experiment."""
        return self._state.generations

    @property
    def specs(self) -> dict[str, ArraySpec]:
        """Return array name → specification."""
        return self._state.specs

    @property
    def labels(self) -> dict[str, list[Any]]:
        """Return array name → the labels that its codes stand for."""
        return {name: list(spec.attrs["labels"]) for name, spec in self.specs.items() if "labels" in spec.attrs}

    @property
    def committed(self) -> dict[int, dict[str, Any]]:
        """Return unit → its ledger record."""
        return self._state.committed

    def committed_in(self, stage: str) -> dict[int, dict[str, Any]]:
        """Return unit → its ledger record for the committed units of one stage."""
        return {unit: record for unit, record in self.committed.items() if record["stage"] == stage}

    # ------------------------------------------------------------------------------------------- plans

    def add_plan(self, record: Mapping[str, Any], units: int, specs: Sequence[ArraySpec], labels: Mapping[str, Sequence[Any]]) -> None:
        """Extend the run by ``units`` units: declare new arrays, append new labels, let every array grow.

        The ledger line comes first and holds all that the metadata files follow from: a process that dies before it has
        added nothing, one that dies after it is mended by the next :meth:`open`, to the same bytes.

        Parameters
        ----------
        record: the plan, as JSON; returned by ``plans``
        units: how many units it adds
        specs: every array that its units write, known ones included
        labels: array name → labels in order; those that the array has keep their codes, others are appended

        Raises
        ------
        StoreError: an array is declared otherwise than before, or the disk refuses
        """
        self._present()
        if units < 0:
            raise StoreError(f"units must not be negative; got {units}")
        plan = self._state.plan_record(record, units, specs, labels, self.experiment)
        try:
            if self._ledger.empty:
                head = {
                    "kind": "run",
                    "format": FORMAT,
                    "unit_cells": self.unit_cells,
                    "identity": self._state.identity,
                }
                sync_above(self.path)
                self._ledger.append(head)
            self._state.add(self._ledger.append(plan))
            self._mend()
            mend_provenance(self.path, self.provenance)
        except OSError as error:
            raise refused(self.path, error) from None

    def _mend(self) -> None:
        """Bring ``experiment.yaml`` and every ``zarr.json`` to what the ledger says."""
        stale = [name for name, stated in self._state.documents.items() if self._differs(name, stated)]
        content = self._state.metadata() if stale else {}
        batch = Batch(self.path, self._pool, _LANES)
        for name in stale:
            if difference(content.get(name, b""), self._state.documents[name]):
                raise StoreError(f"{self.path / name}: is damaged and cannot be mended by this version; restore it from a copy")
            batch.write(name, content[name])
        batch.finish()

    def _differs(self, name: str, stated: Mapping[str, Any]) -> bool:
        return not (self.path / name).exists() or bool(difference(read_file(self.path, name), stated))

    # ------------------------------------------------------------------------------------------- units

    def commit(self, unit: int, stage: str, content: Content) -> None:
        """Write a unit's shards and texts, make them durable, and record them.

        Parameters
        ----------
        unit: its number, below the planned units
        stage: ``baseline``, ``sources``, ``sweep`` or ``import``
        content: its arrays, texts and what the ledger notes of it

        Raises
        ------
        StoreError: an undeclared array, a wrong shape or type, a committed unit, or no space (what is committed stays)
        """
        self._present()
        if unit in self.committed:
            raise StoreError(f"{self.path}: unit {unit} is committed already")
        rows = check_unit(self._state, str(self.path), unit, content)
        batch = Batch(self.path, self._pool, _LANES)
        try:
            write_unit(batch, self._state, unit, content)
            record = self._ledger.append(unit_record(unit, stage, rows, batch.finish(), content.note))
        except OSError as error:
            problem = refused(self.path, error)  # before there is room again
            batch.discard()
            raise problem from None
        except StoreError:
            batch.discard()
            raise
        self._state.add(record)

    def adopt(self, receipt: Receipt) -> bool:
        """Take a unit of the outbox into the run: its files move to their places, durably, and the ledger gets the line of a commit.

        Call it in the order in which units would be committed. What an earlier call did that was cut short is not done again.

        Returns
        -------
        False where the unit is committed already; its folder in the outbox is removed all the same

        Raises
        ------
        StoreError: a receipt of another plan, or one whose files are not what it says; it is left as it is
        """
        self._present()
        if new := receipt.unit not in self.committed:
            check_adoptable(receipt, self._state, self.path / waiting_folder(receipt.unit))
            try:
                move_in(self.path, receipt, self._pool, _LANES)
                record = self._ledger.append(receipt.record)
            except OSError as error:
                raise refused(self.path, error) from None
            self._state.add(record)
        self._pool.submit(forget, self.path, receipt.unit)  # the unit is committed; what is left is removed meanwhile, or by the next writer
        return new

    def rewrite(self, unit: int, content: Content, files: Collection[str], replace: bool = False) -> float | None:
        """Write damaged ``files`` of a committed unit again, from what it gives when it is computed once more.

        Parameters
        ----------
        replace: accept other bytes than before: all files of the unit are written, and a ledger line takes the old one's place

        Returns
        -------
        None where the bytes are those of before; else the largest difference of a value of an undamaged array, as a share of the
        array's largest value

        Raises
        ------
        StoreError: they are not, and ``replace`` is not given; nothing was written
        """
        self._present()
        record = self.committed[unit]
        stated = dict(record["files"])
        rows = check_unit(self._state, str(self.path), unit, content)
        made = {self.specs[name].shard(unit): encode(self.specs[name], self.unit_cells, values) for name, values in sorted(content.arrays.items())}
        if content.texts:
            made[text_file(unit)] = encode_texts(content.texts, unit * self.unit_cells)
        other = sorted({*stated, *made} - {name for name, data in made.items() if name in stated and facts(data) == stated[name]})
        if other and not replace:
            raise StoreError(
                f"{self.path}: unit {unit}, computed again, gives other bytes than before in {len(other)} of its files ({other[0]}): another machine, "
                "number of threads or version (provenance.json says which they were).\n"
                "Repair it there, restore the files from a copy, or take what it gives here with --replace, which says how far off it is."
            )
        changed = self._furthest(unit, content) if other else None
        batch = Batch(self.path, self._pool, _LANES)
        for name, data in made.items():
            if other or name in files:
                batch.write(name, data)
        written = batch.finish()
        if other:
            kept = {k: v for k, v in record.items() if k not in ("note", "files")}
            note = {"note": dict(content.note)} if content.note else {}
            self._state.add(self._ledger.append({**kept, "rows": rows, "files": written, "again": True, **note}))
            self._remove(stated.keys() - written.keys())
        return changed

    def _remove(self, names: Collection[str]) -> None:
        if (remote := remote_at(self.path)) is not None:
            remote.delete(sorted(names))
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def _furthest(self, unit: int, content: Content) -> float:
        """Compare new values with those on disk, as far as these can be read; return the largest difference."""
        found = 0.0
        for name, values in content.arrays.items():
            with contextlib.suppress(StoreError):
                found = max(found, far(read_rows(self._state, CheckedFiles(self.path), name, unit)[: len(values)], values))
        return found

    def _present(self) -> None:
        """Refuse to write where the run no longer is, or where another process may write: half a run must not come into being in its place."""
        if not self.path.is_dir() or not (self._ledger.empty or (self.path / LEDGER).exists()):
            raise vanished(self.path)
        self._lock.check()

    def read(self, name: str, unit: int) -> np.ndarray:
        """Return the ``unit_cells`` rows that a committed unit wrote, checked against the ledger.

        Raises
        ------
        StoreError: the unit is not committed or did not write the array, or its shard is missing or damaged
        """
        return read_rows(self._state, self._files, name, unit)

    def set_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Replace ``provenance.json`` (kept in memory before the first plan)."""
        self.provenance = dict(provenance)
        if not self._ledger.empty:
            self._present()
            try:
                write_provenance(self.path, self.provenance)
            except OSError as error:
                raise refused(self.path, error) from None
