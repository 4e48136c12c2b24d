"""Comparing a run with its ledger, byte for byte: every file that is damaged, cut, missing or foreign is named."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from codi_engine.store.errors import StoreError
from codi_engine.store.files import DAMAGED
from codi_engine.store.layout import COPIES, DATA, LEDGER, LEDGER_COPY, LOCK, PARTIAL, PROVENANCE, PROVENANCE_COPY, TEXTS, text_file, unit_of, waiting_unit
from codi_engine.store.lease import written_by
from codi_engine.store.ledger import Salvaged, salvage
from codi_engine.store.lock import holder
from codi_engine.store.objects import objects_at
from codi_engine.store.outbox import LOCKED, Outbox, owners
from codi_engine.store.provenance import provenance_problem
from codi_engine.store.remote import remote_at
from codi_engine.store.state import State

Kind = Literal["damaged", "missing", "truncated", "foreign", "interrupted", "changed", "absent"]
#: files that are read at the same time
_THREADS = 4
#: how often a run that grows is looked at again
_LOOKS = 50


@dataclass(frozen=True)
class Finding:
    """Something that is not as the ledger says.

    Attributes
    ----------
    file: relative to the run
    kind: ``interrupted`` is what a killed writer leaves and the next one mends; ``changed`` and ``absent`` are files that the run was
        computed from, which are others now or not here
    problem: in words
    unit: the committed unit that wrote the file
    """

    file: str
    kind: Kind
    problem: str
    unit: int | None = None

    @property
    def damage(self) -> bool:
        """True for what is not as it was written; what was interrupted, and inputs that are not here, are no damage."""
        return self.kind not in ("interrupted", "absent")

    def __str__(self) -> str:
        return f"{self.file}: {self.problem}"


def verify(path: str | Path, seen: Callable[[int], None] | None = None) -> list[Finding]:
    """Compare every file of a run with what was written, in order of the files' names.

    Parameters
    ----------
    path: the run directory; another process may be writing it
    seen: told of the bytes of each file after it has been read

    Raises
    ------
    StoreError: no run, or neither the ledger nor its copy can be read
    """
    return sorted(Verifier(Path(path), seen).findings(), key=lambda f: f.file)


class Verifier:
    """One look at a run.

    Attributes
    ----------
    ledger: what ledger and copy give together
    state: the run as they say it
    """

    def __init__(self, root: Path, seen: Callable[[int], None] | None = None) -> None:
        self.root, self._seen = root, seen or (lambda _: None)
        self._objects = objects_at(root)
        self.written = written_by(root) is not None
        self.ledger: Salvaged = salvage(root / LEDGER)
        if not self.ledger.content.records:
            there = (root / LEDGER).exists()
            what = (
                "the first line of its ledger is damaged, and so is the copy; restore the file from a backup" if there else "holds no run (there is no ledger)"
            )
            raise StoreError(f"{root}: {what}")
        self.state = State.of(self.ledger.content.records, str(root))

    @property
    def total(self) -> int:
        """Return the bytes that committed units wrote."""
        return sum(stated["size"] for record in self.state.committed.values() for stated in record["files"].values())

    def findings(self) -> Iterator[Finding]:
        """Yield what is not as it should be."""
        yield from self._settled()
        yield from self._units()

    def _settled(self) -> list[Finding]:
        """Return what is wrong beside units' files; where the run grew meanwhile, it is looked at again."""
        seen, found = self, self._apart()
        for _ in range(_LOOKS):
            if not found:
                break
            again = Verifier(self.root)
            still = again._apart()
            if again.ledger.raw == seen.ledger.raw:
                return [f for f in found if f in still]
            seen, found = again, still
        return found

    def _apart(self) -> list[Finding]:
        documents = [f for name in self.state.documents for f in self._document(name)]
        return [*self._ledgers(), *self._provenance(), *documents, *self._others()]

    # ----------------------------------------------------------------------------------- ledger, provenance

    def _ledgers(self) -> Iterator[Finding]:
        found, copy = self.ledger, LEDGER_COPY
        if found.problem and not (found.kind == "interrupted" and self.written):
            yield Finding(LEDGER, found.kind, found.problem)
        if found.copy is None and self.written:
            return  # it follows the ledger
        if found.copy is None:
            yield Finding(copy, "missing" if self.state.committed else "interrupted", "is missing; repair writes it again")
        elif found.copy != found.raw:
            behind = found.raw.startswith(found.copy.rstrip(b"\0"))  # zeros are what a loss of power leaves
            if not (behind and self.written):
                kind: Kind = "interrupted" if behind else "damaged"
                yield Finding(copy, kind, "lacks the last lines of the ledger" if behind else "is not what the ledger is; repair writes it again")

    def _provenance(self) -> Iterator[Finding]:
        copy = PROVENANCE_COPY
        found = {name: provenance_problem(self.root / name) for name in (PROVENANCE, copy)}
        if self.written and found[copy] == "is missing":
            found[copy] = ""  # it follows the other
        if found[copy] and not found[PROVENANCE] and self.root.joinpath(copy).is_file() and not self.root.joinpath(copy).stat().st_size:
            found[copy] = ""  # a loss of power leaves it so
            yield Finding(copy, "interrupted", "is empty; the next writer completes it")
        for name, problem in found.items():
            late = problem == "is missing" and not self.state.committed  # it is written after the first plan
            if problem and not (late and self.written):
                yield Finding(name, "interrupted" if late else "missing" if problem == "is missing" else "damaged", problem)
        whole = (self.root / PROVENANCE).exists() and (self.root / copy).exists() and not any(found.values())
        if not self.written and whole and (self.root / PROVENANCE).read_bytes() != (self.root / copy).read_bytes():
            yield Finding(copy, "interrupted", f"is older than {PROVENANCE}")

    # ------------------------------------------------------------------------------------- documents, units

    def _document(self, name: str) -> Iterator[Finding]:
        """A metadata file may lag behind while a plan has just been added."""
        found = self._compare(name, self.state.documents[name])
        if found is None:
            return
        former = self.state.former.get(name, [])
        late = (found[0] == "missing" and not former) or any(self._compare(name, stated) is None for stated in former)
        if not (self.state.pending and late):
            if self._compare(name, self.state.documents[name]) is not None:  # else it was replaced between the two looks
                yield Finding(name, *found)
        elif not self.written:
            yield Finding(name, "interrupted", "was not written yet when the run stopped")

    def _units(self) -> Iterator[Finding]:
        """Compare the files of all committed units, a few at a time."""

        def one(job: tuple[int, str, Mapping[str, Any]]) -> Finding | None:
            unit, file, stated = job
            found = self._compare(file, stated)
            return None if found is None else Finding(file, *found, unit)

        jobs = ((unit, file, stated) for unit, record in sorted(self.state.committed.items()) for file, stated in record["files"].items())
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
            while part := list(islice(jobs, 256)):
                for job, finding in zip(part, pool.map(one, part), strict=True):
                    self._seen(job[2]["size"])
                    if finding is not None:
                        yield finding

    def _compare(self, name: str, stated: Mapping[str, Any]) -> tuple[Kind, str] | None:
        """Say how a file differs from what was written; None when it does not."""
        if self._objects is not None and self._objects.holds(name):
            return self._objects.compare(name, stated)
        path = self.root / name
        try:
            found = os.stat(path)
            size = found.st_size
            if not stat.S_ISREG(found.st_mode):
                return "damaged", "is no regular file"
            if size != stated["size"]:
                return "truncated" if size < stated["size"] else "damaged", f"has {size:,} bytes where {stated['size']:,} were written"
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except FileNotFoundError:
            return "missing", "is missing, although the ledger says that it was written"
        except OSError as error:
            return "damaged", f"cannot be read: {error.strerror}"
        return None if digest == stated["sha256"] else ("damaged", DAMAGED)

    # ----------------------------------------------------------------------------------------------- others

    def _others(self) -> Iterator[Finding]:
        """Look for files of the store's folders that nothing vouches for."""
        for folder in (DATA, TEXTS, COPIES):
            for path in sorted((self.root / folder).rglob("*")):
                name = path.relative_to(self.root).as_posix()
                if (path.is_dir() and not path.is_symlink()) or name in self._known:
                    continue
                if not self._left(name):
                    yield Finding(name, "foreign", "is foreign: no plan and no unit wrote it")
                elif not self.written:
                    yield Finding(name, "interrupted", "was left by a writer that was interrupted")
        yield from self._other_objects()
        yield from self._outbox()
        if (self.root / LOCK).exists() and not self.written:
            yield Finding(LOCK, "interrupted", "was left by a process that has ended")

    def _outbox(self) -> Iterator[Finding]:
        """Units that wait are no damage; what nobody will take in, or nobody holds any more, is named."""
        outbox = Outbox(self.root)
        waiting, alive = outbox.receipts(), bool(owners(self.root)) or self.written
        for path in sorted(outbox.path.glob("*")):
            name, unit = path.relative_to(self.root).as_posix(), waiting_unit(path.name)
            private, locked = path.match(f"writer-*{PARTIAL}"), path.match(f"*{LOCKED}")
            if path.name in outbox.refused:
                yield Finding(name, "foreign", f"is foreign: {outbox.refused[path.name].removeprefix(f'{path}: ')}")
            elif unit is not None and path.is_dir() and not path.is_symlink():
                if unit in self.state.committed or unit not in waiting:
                    if not self.written:
                        yield Finding(name, "interrupted", "is what is left of a unit that was taken into the run")
                elif not alive:
                    yield Finding(name, "interrupted", "is computed, and waits to be taken into the run; `codi-engine merge` does it")
            elif not (private or locked):
                yield Finding(name, "foreign", "is foreign: no process that computes units made it")
            elif holder(path / LOCK if private else path) is None:
                yield Finding(name, "interrupted", "was left by a process that has ended")

    def _other_objects(self) -> Iterator[Finding]:
        """Look at the objects of a run elsewhere that are no small files of its folder here."""
        remote = remote_at(self.root)
        if remote is None or self.written:
            return
        from codi_engine.store.auditing import ledger_objects, unvouched

        for name, kind, problem in (*ledger_objects(remote, self.ledger.raw), *unvouched(remote, self._known, self._left)):
            yield Finding(name, kind, problem)

    @cached_property
    def _known(self) -> set[str]:
        """Names of all files that belong to the run."""
        written = {file for record in self.state.committed.values() for file in record["files"]}
        return {*self.state.documents, LEDGER_COPY, PROVENANCE_COPY, *written}

    def _left(self, name: str) -> bool:
        """True for what a running or interrupted writer leaves: its temporary files, and files of units not committed yet."""
        whole = name.removesuffix(PARTIAL)
        if whole != name and whole in self._known:
            return True
        place = unit_of(whole)
        if place is None:
            return False
        array, unit = place
        fits = whole == (text_file(unit) if array == TEXTS else self.state.specs[array].shard(unit) if array in self.state.specs else "")
        return fits and unit < self.state.units and unit not in self.state.committed
