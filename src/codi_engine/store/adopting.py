"""Taking units out of the outbox: their files move into the run, and what is of no use is removed. Only the one who holds the lock does it."""

from __future__ import annotations

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from codi_engine.store.errors import StoreError
from codi_engine.store.files import Batch, Facts, difference, read_file
from codi_engine.store.layout import LOCK, OUTBOX, PARTIAL, waiting_folder
from codi_engine.store.lock import RunLock, holder
from codi_engine.store.outbox import LOCKED, RECEIPT, Receipt, check_plain, read_receipt, remove_empty, waiting_units
from codi_engine.store.state import State


def move_in(run: Path, receipt: Receipt, pool: ThreadPoolExecutor | None, lanes: int) -> None:
    """Move a unit's files from the outbox to their places, durably; those that an earlier adoption has moved are in place.

    Raises
    ------
    StoreError: a file is in neither place, or is not what the receipt says
    OSError: the disk refuses; what was moved stays moved, the receipt stays
    """
    folder = run / waiting_folder(receipt.unit)
    sources = {}
    for name, stated in receipt.files.items():
        if os.path.lexists(folder / name):
            check_plain(folder, name)
            if (size := (folder / name).stat().st_size) != stated["size"]:
                raise StoreError(f"{folder / name}: has {size:,} bytes where {stated['size']:,} were written; remove the folder, the unit is computed again")
            sources[name] = folder / name
        elif problem := _in_place(run, name, stated):
            raise StoreError(f"{folder / name}: {problem}; remove the folder, the unit is computed again")
    Batch(run, pool, lanes).move(receipt.files, sources)


def _in_place(run: Path, name: str, stated: Facts) -> str:
    """Say why a file does not count as moved; empty where it does."""
    try:
        check_plain(run, name)
        return difference(read_file(run, name, stated["size"]), stated)
    except StoreError:
        return "is missing"


def forget(run: Path, unit: int) -> None:
    """Remove the folder of a unit that is committed; what stays, the next writer removes."""
    shutil.rmtree(run / waiting_folder(unit), ignore_errors=True)


def clean_outbox(run: Path, state: State) -> set[int]:
    """Remove what is of no use: folders whose owners are gone, units that are committed, locks that nobody holds.

    Only the one who holds the run's lock may do it. Receipts of other plans are left.

    Returns
    -------
    the units that have a receipt there and are not committed
    """
    outbox = run / OUTBOX
    for folder in outbox.glob(f"writer-*{PARTIAL}"):
        if folder.is_dir() and not folder.is_symlink():
            _abandon(folder / LOCK, folder)
    for path in outbox.glob(f"*{LOCKED}"):
        _abandon(path, None)
    kept = set()
    for unit in list(waiting_units(outbox)):
        if os.path.lexists(path := run / waiting_folder(unit) / RECEIPT) and not (unit in state.committed and _belongs(path, unit, state)):
            kept.add(unit)
        else:
            forget(run, unit)
    remove_empty(run)
    return kept - state.committed.keys()


def _belongs(path: Path, unit: int, state: State) -> bool:
    try:
        return read_receipt(path, unit).plan == state.chain_of(unit)
    except (StoreError, FileNotFoundError):
        return False


def _abandon(path: Path, folder: Path | None) -> None:
    """Remove a lock file that nobody holds, with the folder that it stands for: nobody can take it meanwhile."""
    if holder(path) is not None:
        return
    try:
        lock = RunLock(path)
    except (StoreError, OSError):
        return  # somebody has just taken it, or it may not be touched
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    lock.release()
