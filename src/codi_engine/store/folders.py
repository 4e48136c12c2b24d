"""The folder of a run: made with its parents, found again after a loss of power, given up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from codi_engine.store.errors import StoreError
from codi_engine.store.lease import Hold
from codi_engine.store.ledger import sync_directory
from codi_engine.store.lock import RunLock


def make_folders(root: Path) -> list[Path]:
    """Create the run directory with its parents and return those that did not exist, innermost first."""
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root}: is a file; give a directory")
    missing = []
    at = root
    while not at.exists():
        missing.append(at)
        at = at.parent
    root.mkdir(parents=True, exist_ok=True)
    return missing


def sync_above(root: Path) -> None:
    """Make the entries durable under which a new run is found: without them a loss of power takes all of it.

    Upwards as far as folders hold nothing else: a writer that was killed may have made them.
    """
    folder = root.absolute()
    with contextlib.suppress(PermissionError):  # a directory that may be passed through but not be read
        while not os.path.ismount(folder):
            folder = folder.parent
            sync_directory(folder)
            if len(os.listdir(folder)) > 1:
                return


def release(root: Path, lock: RunLock | Hold | None, made: Sequence[Path]) -> None:
    """Give up the lock, and remove the folders that were made for nothing."""
    if lock is not None:
        lock.release()
    for folder in made:
        try:
            os.rmdir(folder)
        except OSError:
            return  # somebody uses it
