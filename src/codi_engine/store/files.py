"""Files that are either whole and durable or not there, and files that are what the ledger says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import DATA, PARTIAL, TEXTS
from codi_engine.store.ledger import sync_directory

Facts = dict[str, Any]


def facts(data: bytes) -> Facts:
    """Return what the ledger records of a file."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Batch:
    """Files of one run written together: temporary names first, then all synchronised, then all renamed.

    The waits of a disk overlap in a few threads; on return of :meth:`finish` files and directories are durable.
    """

    def __init__(self, root: Path, pool: ThreadPoolExecutor | None = None) -> None:
        self.root, self._pool = root, pool
        self.files: dict[str, Facts] = {}
        self._folders: set[Path] = set()

    def write(self, name: str, data: bytes) -> None:
        """Write a file under its temporary name; ``name`` is relative to the run."""
        path = self.root / name
        self._make(path.parent)
        path.with_name(path.name + PARTIAL).write_bytes(data)
        self.files[name] = facts(data)

    def finish(self) -> dict[str, Facts]:
        """Make everything durable, give the files their names, and return their facts."""
        paths = [self.root / name for name in self.files]
        self._each(_sync_file, [p.with_name(p.name + PARTIAL) for p in paths])
        for path in paths:
            os.replace(path.with_name(path.name + PARTIAL), path)
        self._each(sync_directory, sorted(self._folders | {p.parent for p in paths}))
        return self.files

    def discard(self) -> None:
        """Remove temporary files after a failure, as far as that goes."""
        for name in self.files:
            path = self.root / name
            try:
                path.with_name(path.name + PARTIAL).unlink(missing_ok=True)
            except OSError:
                return  # the next writer cleans up

    def _make(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            self._folders |= {new, new.parent}

    def _each(self, action: Any, paths: Iterable[Path]) -> None:
        if self._pool is None:
            for path in paths:
                action(path)
        else:
            list(self._pool.map(action, paths))


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def write_durably(root: Path, name: str, data: bytes) -> None:
    """Write one file so that it is whole and durable, or as before."""
    batch = Batch(root)
    try:
        batch.write(name, data)
        batch.finish()
    except OSError:
        batch.discard()
        raise


def clean_partials(root: Path) -> None:
    """Remove what an interrupted write left behind (nothing below ``results/`` is touched)."""
    for folder, deep in ((root, False), (root / DATA, True), (root / TEXTS, True)):
        if folder.is_dir():
            for leftover in folder.rglob("*" + PARTIAL) if deep else folder.glob("*" + PARTIAL):
                if leftover.is_file():
                    leftover.unlink()


class CheckedFiles:
    """Reads files of a run after comparing them with what the ledger says of them.

    Parameters
    ----------
    full: compare the sha256 when a file is read for the first time; False compares sizes only
    """

    def __init__(self, root: Path, full: bool = True) -> None:
        self.root, self.full = root, full
        self._seen: set[str] = set()

    def read(self, name: str, stated: Mapping[str, Any]) -> bytes:
        """Return a file's bytes.

        Raises
        ------
        StoreError: the file is missing, truncated or damaged; the message names it
        """
        full = self.full and name not in self._seen
        data = read_file(self.root, name)
        problem = difference(data, stated, full)
        if problem:
            raise StoreError(f"{self.root / name}: {problem}")
        self._seen.add(name)
        return data

    def read_array(self, name: str, stated: Mapping[str, Any], buffer: np.ndarray) -> np.ndarray:
        """Read a file into ``buffer`` (uint8) and return the part it fills; no hash: shards' codecs have checksums of their own.

        Raises
        ------
        StoreError: the file is missing or has another size
        """
        path = self.root / name
        try:
            with path.open("rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                if size != stated["size"]:
                    raise StoreError(f"{path}: has {size:,} bytes where {stated['size']:,} were written")
                data = buffer[:size]
                view, at = memoryview(data.data), 0
                while at < size and (count := file.readinto(view[at:])):
                    at += count
        except FileNotFoundError:
            raise StoreError(f"{path}: is missing, although the ledger says that it was written") from None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
        if at < size:
            raise StoreError(f"{path}: ended after {at:,} of {size:,} bytes")
        return data


def read_file(root: Path, name: str) -> bytes:
    """Return a file's bytes, or raise a StoreError that names it."""
    try:
        return (root / name).read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{root / name}: is missing, although the ledger says that it was written") from None
    except OSError as error:
        raise StoreError(f"{root / name}: cannot be read: {error.strerror}") from None


def difference(data: bytes, stated: Mapping[str, Any], full: bool = True) -> str:
    """Return in words how a file differs from what the ledger says; empty when it does not."""
    if len(data) != stated["size"]:
        return f"has {len(data):,} bytes where {stated['size']:,} were written"
    if full and hashlib.sha256(data).hexdigest() != stated["sha256"]:
        return "is damaged: its checksum is not the one that was recorded"
    return ""
