"""The outbox: units that are computed, and wait to be taken into the run by the one who writes its ledger.

Several processes compute units of one run, and one at a time writes it. Each puts what it has computed into ``outbox/unit-000012/``:
the unit's files, byte for byte as the writer would have written them, and ``receipt.json``, which says what they are and which plan
they belong to. They are written in a folder that is the process' own, made durable, the receipt last, and the folder is renamed: a
unit is in the outbox whole or not at all, and survives whoever computed it. :meth:`~codi_engine.store.writer.RunWriter.adopt` then
moves the files to their places and appends the ledger's line. Until that line is durable the receipt stays, so that an adoption
that was cut short anywhere is completed by the next one.

What lies here is foreign until it has been looked at, as a ledger is: receipts of other plans, names that are no files of the unit,
and links are refused, and left where they are.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codi_engine.store.claims import check_receipt
from codi_engine.store.errors import StoreError, refused
from codi_engine.store.files import Batch, Facts, difference, read_file, write_durably
from codi_engine.store.layout import LEDGER, LOCK, OUTBOX, PARTIAL, waiting_folder, waiting_unit
from codi_engine.store.ledger import canonical, read_ledger, sync_directory
from codi_engine.store.lock import RunLock, holder
from codi_engine.store.state import State
from codi_engine.store.unitfiles import Content, check_unit, unit_record, write_unit

RECEIPT = "receipt.json"
#: version of receipts
FORMAT = 1
#: ends the names of lock files in the outbox: of shards, and of units that one of them computes in another's place
LOCKED = ".lock"
#: bytes of the largest receipt that is read
_MOST = 64 << 20
#: threads of one that writes, and how many of them write files
_THREADS, _LANES = 12, 8
#: how often a folder of one's own is made again that somebody took for a leftover
_TRIES = 20


@dataclass(frozen=True)
class Receipt:
    """What is said of a unit in the outbox.

    Attributes
    ----------
    files: relative path → size and sha256
    note: further facts for the ledger
    plan: the hash of the plan that the unit belongs to (:meth:`~codi_engine.store.state.State.chain_of`)
    """

    unit: int
    stage: str
    rows: int
    files: Mapping[str, Facts]
    note: Mapping[str, Any] | None
    plan: str

    @property
    def record(self) -> dict[str, Any]:
        """The ledger's line, as a commit of the unit would write it."""
        return unit_record(self.unit, self.stage, self.rows, self.files, self.note)

    @property
    def size(self) -> int:
        """Bytes of the unit's files."""
        return sum(int(stated["size"]) for stated in self.files.values())

    def encode(self) -> bytes:
        """Return the bytes of ``receipt.json``."""
        said = {**self.record, "format": FORMAT, "plan": self.plan}
        return (canonical({**said, "checksum": _checksum(said)}) + "\n").encode("ascii")


def _checksum(said: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(said).encode("ascii")).hexdigest()


class Outbox:
    """The outbox of a run, for those who put units into it and for those who look what is there; a context.

    Attributes
    ----------
    refused: folder → why it is not among the receipts, as of the last :meth:`receipts`

    Raises
    ------
    StoreError: the run's ledger cannot be read, or the disk refuses
    """

    def __init__(self, run: Path) -> None:
        self.run, self.path = Path(run), Path(run) / OUTBOX
        self.refused: dict[str, str] = {}
        self._state: State | None = None
        self._seen: dict[int, tuple[tuple[int, ...], Receipt]] = {}
        self._own: tuple[Path, RunLock] | None = None
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the folder of one's own up; what was put stays."""
        if self._pool is not None:
            self._pool.shutdown()
        self._pool, own, self._own = None, self._own, None
        if own is not None:
            shutil.rmtree(own[0], ignore_errors=True)
            own[1].release()
            remove_empty(self.run)

    # ---------------------------------------------------------------------------------------------- writing

    def put(self, unit: int, stage: str, content: Content) -> Receipt:
        """Keep what a unit gave, durably; the parameters are those of :meth:`~codi_engine.store.writer.RunWriter.commit`.

        Where somebody else has put the unit meanwhile, theirs stands and its receipt is returned.

        Raises
        ------
        StoreError: the unit is not planned or does not fit its plan, or the disk refuses; nothing is left in the outbox
        """
        state = self._planned(unit)
        rows = check_unit(state, str(self.run), unit, content)
        room: Path | None = None
        try:
            room = self._room() / f"{unit}"
            room.mkdir()
            self._pool = self._pool or ThreadPoolExecutor(_THREADS, thread_name_prefix="outbox")
            batch = Batch(room, self._pool, _LANES)
            write_unit(batch, state, unit, content)
            receipt = Receipt(unit, stage, rows, batch.finish(), dict(content.note) if content.note else None, state.chain_of(unit))
            return self._enter(room, receipt)
        except BaseException as error:  # whatever it is, half a unit must not take the disk's room
            problem = refused(self.run, error) if isinstance(error, OSError) else None  # before there is room again
            if room is not None:
                shutil.rmtree(room, ignore_errors=True)
            if problem is not None:
                raise problem from None
            raise

    def take_over(self, receipt: Receipt, root: Path, folder: Path) -> Receipt:
        """Copy a unit of another run of the same plan that lies in ``folder`` of its directory ``root``, comparing every byte with its receipt.

        Raises
        ------
        StoreError: a file is missing, a link, or not what the receipt says
        """
        room: Path | None = None
        try:
            room = self._room() / f"{receipt.unit}"
            room.mkdir()
            batch = Batch(room)
            for name, stated in receipt.files.items():
                check_plain(folder, name)
                data = read_file(folder, name, stated["size"])
                if problem := difference(data, stated):
                    raise StoreError(f"{folder / name}: {problem}; `codi-engine verify {root}` says what else is")
                batch.write(name, data)
                batch.finish()  # one file in memory at a time
                batch = Batch(room)
            return self._enter(room, receipt)
        except OSError as error:
            raise refused(self.run, error) from None
        finally:
            if room is not None:
                shutil.rmtree(room, ignore_errors=True)  # gone where all went well

    def _enter(self, room: Path, receipt: Receipt) -> Receipt:
        """Complete a unit's folder by its receipt and give it its name; one that is there already stands."""
        write_durably(room, RECEIPT, receipt.encode())
        target = self.run / waiting_folder(receipt.unit)
        try:
            os.rename(room, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            known = self._receipt(receipt.unit)
            if why := self.refused.get(target.name):
                raise StoreError(f"{target}: is in the way of a unit that was computed; remove it ({why})") from None
            shutil.rmtree(room, ignore_errors=True)
            return known or receipt  # without a receipt it is what is left of a unit that has just been adopted
        sync_directory(self.path)
        return receipt

    def _planned(self, unit: int) -> State:
        """Return the run's state, read again where it does not know the unit yet."""
        if self._state is None or not 0 <= unit < self._state.units:
            self._state = _state(self.run)
        return self._state

    def _room(self) -> Path:
        """Return the folder of one's own, made when it is wanted; a lock in it says that its owner lives."""
        for _ in range(_TRIES):
            if self._own is not None:
                folder, lock = self._own
                try:
                    lock.check()
                    return folder
                except StoreError:  # it was removed, or this is a forked child: the folder is its parent's
                    self._own = None
            make_outbox(self.run)
            folder = self.path / f"writer-{secrets.token_hex(6)}{PARTIAL}"
            try:
                folder.mkdir()
                self._own = folder, RunLock(folder / LOCK)
            except (FileNotFoundError, StoreError):  # the outbox was empty, and removed; or the folder was taken for a leftover
                continue
            return folder
        raise StoreError(f"{self.path}: is removed again and again; nothing can be kept there")

    # ----------------------------------------------------------------------------------------------- looking

    def receipts(self) -> dict[int, Receipt]:
        """Return unit → receipt of all that wait, in ascending order; what is refused is named in :attr:`refused`."""
        self.refused = {}
        found = {unit: self._receipt(unit) for unit in sorted(waiting_units(self.path))}
        self._seen = {unit: seen for unit, seen in self._seen.items() if unit in found}
        return {unit: receipt for unit, receipt in found.items() if receipt is not None}

    def _receipt(self, unit: int) -> Receipt | None:
        """Return the receipt of a unit's folder; None where there is none or it is refused."""
        path = self.run / waiting_folder(unit) / RECEIPT
        try:
            about = path.lstat()
            seen = (about.st_ino, about.st_mtime_ns, about.st_size)
            if unit in self._seen and self._seen[unit][0] == seen:
                return self._seen[unit][1]
            receipt = read_receipt(path, unit)
            if receipt.plan != (state := self._planned(unit)).chain_of(unit):
                state = self._state = _state(self.run)
            check_adoptable(receipt, state, path.parent)
        except FileNotFoundError:
            return None  # what an adoption has left of it, or it has just been adopted
        except StoreError as error:
            self.refused[path.parent.name] = str(error)
            return None
        self._seen[unit] = seen, receipt
        return receipt


def _state(run: Path) -> State:
    records = read_ledger(run / LEDGER).records
    if not records:
        raise StoreError(f"{run}: holds no run (there is no ledger)")
    return State.of(records, str(run))


def make_outbox(run: Path) -> None:
    """Make the folder; its entry is durable."""
    try:
        (run / OUTBOX).mkdir()
    except FileExistsError:
        if (run / OUTBOX).is_symlink() or not (run / OUTBOX).is_dir():
            raise StoreError(f"{run / OUTBOX}: is a link or a file; remove it (computed units wait there)") from None
        return
    sync_directory(run)


def remove_empty(run: Path) -> None:
    """Remove the outbox if nothing is in it."""
    try:
        (run / OUTBOX).rmdir()
    except OSError:
        return  # something waits, somebody works, or there is none


def waiting_units(path: Path) -> Iterator[int]:
    """Yield the units that have a folder in an outbox."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                unit = waiting_unit(entry.name)
                if unit is not None and entry.is_dir(follow_symlinks=False):
                    yield unit
    except (FileNotFoundError, NotADirectoryError):
        return


def read_receipt(path: Path, unit: int) -> Receipt:
    """Return what a ``receipt.json`` says, as far as it can be told without the run.

    Raises
    ------
    StoreError: it is none, or damaged
    FileNotFoundError: it is not there
    """
    about = path.lstat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > _MOST:
        raise StoreError(f"{path}: is no receipt of a unit")
    try:
        said = json.loads(path.read_bytes())
        checksum = said.pop("checksum")
        kinds = isinstance(said["files"], dict) and isinstance(said["plan"], str) and isinstance(said.get("note", {}), dict)
        if checksum != _checksum(said) or said["format"] != FORMAT or said["unit"] != unit or not kinds:
            raise ValueError
        return Receipt(unit, said["stage"], said["rows"], said["files"], said.get("note"), said["plan"])
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, StoreError):
        raise StoreError(f"{path}: is damaged, or no receipt of this version; the unit is computed again when its folder is removed") from None


def check_adoptable(receipt: Receipt, state: State, where: Path) -> None:
    """Refuse a receipt of another plan, and one that says what no writer says.

    Raises
    ------
    StoreError: ``where`` and what is wrong
    """
    check_receipt(receipt.record, str(where), state.specs, state.units, state.unit_cells)
    if receipt.plan != state.chain_of(receipt.unit):
        raise StoreError(f"{where}: belongs to another run, or to another plan of this one; it is left as it is")


def check_plain(root: Path, name: str) -> None:
    """Refuse a file that is reached through a link below ``root``, or is no regular file."""
    places = [root / part for part in Path(name).parents[:-1]]
    if any(place.is_symlink() for place in (root, *places)) or not stat.S_ISREG((root / name).lstat().st_mode if os.path.lexists(root / name) else 0):
        raise StoreError(f"{root / name}: is no plain file")


def owners(run: Path) -> dict[str, str]:
    """Return lock file → who holds it, for all that are held: ``shard-0-of-2`` → ``host pid 12``."""
    found = {path.name.removesuffix(LOCKED): holder(path) for path in sorted((run / OUTBOX).glob(f"*{LOCKED}"))}
    return {name: owner for name, owner in found.items() if owner is not None}
