"""Files that are either whole and durable or not there, and files that are what the ledger says."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np

from codi_engine.store.codec import Part, check, decode, in_place, plain_size
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import COPIES, DATA, PARTIAL, TEXTS, ArraySpec, unit_of
from codi_engine.store.ledger import sync_directory
from codi_engine.store.objects import objects_at
from codi_engine.store.remote import Remote, remote_at

Facts = dict[str, Any]
T = TypeVar("T")
#: bytes of a part that is worth a thread of its own
_MUCH = 256 << 10
DAMAGED = "is damaged: its checksum is not the one that was recorded"


def facts(data: bytes) -> Facts:
    """Return what the ledger records of a file."""
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


class Batch:
    """Files of one run written together: under temporary names and synchronised, then all renamed, then their folders.

    Nothing is written before :meth:`finish`; on its return files and directories are durable. With a pool, the waits of a
    disk overlap, and large files are hashed while they are being written.
    """

    def __init__(self, root: Path, pool: ThreadPoolExecutor | None = None, lanes: int = 1) -> None:
        self.root, self._pool, self._lanes = root, pool, lanes
        self._parts: dict[str, Iterable[Part]] = {}
        self._folders: set[Path] = set()

    def write(self, name: str, data: bytes | Iterable[Part]) -> None:
        """Have a file written; ``name`` is relative to the run, ``data`` whole or in pieces that are made when they are wanted."""
        self._parts[name] = [data] if isinstance(data, bytes) else data

    def finish(self) -> dict[str, Facts]:
        """Make everything durable, give the files their names, and return their facts."""
        remote = remote_at(self.root)
        return self._finish_here() if remote is None else self._finish_at(remote)

    def _finish_at(self, remote: Remote) -> dict[str, Facts]:
        """Send everything, and keep what is small in the folder too."""

        def send(name: str) -> Facts:
            return remote.send(name, self._parts[name] if unit_of(name) else self._kept(name))

        names = list(self._parts)
        found = dict(zip(names, self._each(send, names), strict=True))
        self._parts = {name: parts for name, parts in self._parts.items() if unit_of(name) is None}
        if self._parts:
            self._finish_here()
        return found

    def _kept(self, name: str) -> list[Part]:
        """Return a file's pieces, made once."""
        self._parts[name] = parts = list(self._parts[name])
        return parts

    def _finish_here(self) -> dict[str, Facts]:
        paths = {name: self.root / name for name in self._parts}
        for folder in sorted({path.parent for path in paths.values()}):
            self._make(folder)
        found = self._each(lambda name: self._store(_partial(paths[name]), self._parts[name]), list(paths))
        for path in paths.values():
            os.replace(_partial(path), path)
        self._each(sync_directory, sorted(self._folders | {p.parent for p in paths.values()}))
        return {name: facts() for name, facts in zip(paths, found, strict=True)}

    def move(self, names: Iterable[str], sources: Mapping[str, Path]) -> None:
        """Give files that are whole and durable elsewhere on the disk their names in the run, durably.

        ``names``: of all of them; ``sources``: where those lie that have not their names yet
        """
        folders = {(self.root / name).parent for name in names}
        for folder in sorted(folders):
            self._make(folder)
        for name, source in sources.items():
            os.replace(source, self.root / name)
        self._each(sync_directory, sorted(self._folders | folders))

    def discard(self) -> None:
        """Remove temporary files after a failure, as far as that goes."""
        for name in self._parts:
            try:
                _partial(self.root / name).unlink(missing_ok=True)
            except OSError:
                return  # the next writer cleans up

    def _make(self, folder: Path) -> None:
        missing = []
        while not folder.is_dir():
            if folder == self.root:  # it was there when the run was opened: it is not made again with half of a run in it
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
            missing.append(folder)
            folder = folder.parent
        for new in reversed(missing):
            new.mkdir(exist_ok=True)
            self._folders |= {new, new.parent}

    def _store(self, path: Path, parts: Iterable[Part]) -> Callable[[], Facts]:
        """Write and synchronise a file; what is returned gives its facts once its hash is known."""
        digest = _Digest(self._pool)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            for part in parts:
                digest.add(part)
                _write_all(descriptor, part, digest.size)
            os.fsync(descriptor)
        finally:
            digest.end()
            os.close(descriptor)
        return digest.facts

    def _each(self, action: Callable[[Any], T], things: Sequence[Any]) -> list[T]:
        """Apply an action to each in a few threads; an error is raised when all threads have come to rest."""
        if self._pool is None or len(things) < 2:
            return [action(thing) for thing in things]
        results: dict[int, T] = {}
        todo = deque(enumerate(things))

        def lane() -> None:
            while todo:
                try:
                    number, thing = todo.popleft()
                except IndexError:  # another thread was faster
                    return
                try:
                    results[number] = action(thing)
                except BaseException:  # whatever it is, no other thread begins another file
                    todo.clear()
                    raise

        lanes = [self._pool.submit(lane) for _ in range(min(self._lanes, len(things)))]
        wait(lanes)
        for done in lanes:
            done.result()
        return [results[number] for number in range(len(things))]


class _Digest:
    """Size and sha256 of a file whose parts come one by one; where there are many bytes another thread computes it."""

    def __init__(self, pool: ThreadPoolExecutor | None) -> None:
        self._pool, self._hash = pool, hashlib.sha256()
        self._coming: SimpleQueue[Part | None] = SimpleQueue()
        self._thread: Future[None] | None = None
        self.size = 0

    def add(self, part: Part) -> None:
        """Take the next part; it must not change before :meth:`facts`."""
        self.size += len(part)
        if self._thread is None and (self._pool is None or len(part) < _MUCH):
            self._hash.update(part)
            return
        if self._thread is None and self._pool is not None:
            self._thread = self._pool.submit(self._follow)
        self._coming.put(part)

    def end(self) -> None:
        """Say that no part follows."""
        self._coming.put(None)

    def facts(self) -> Facts:
        """Return size and hash, waiting for the latter."""
        if self._thread is not None:
            self._thread.result()
        return {"size": self.size, "sha256": self._hash.hexdigest()}

    def _follow(self) -> None:
        while (part := self._coming.get()) is not None:
            self._hash.update(part)


def _partial(path: Path) -> Path:
    return path.with_name(path.name + PARTIAL)


def _write_all(descriptor: int, part: Part, end: int) -> None:
    """Write a part that ends at ``end`` of the file, and let the disk begin with it if it is large."""
    view = memoryview(part)
    while view:
        view = view[os.write(descriptor, view) :]
    if len(part) >= _MUCH and hasattr(os, "posix_fadvise"):  # on Linux this begins to write back what is dirty, and waits for nothing
        os.posix_fadvise(descriptor, end - len(part), len(part), os.POSIX_FADV_DONTNEED)


def write_durably(root: Path, name: str, data: bytes) -> None:
    """Write one file so that it is whole and durable, or as before."""
    batch = Batch(root)
    try:
        batch.write(name, data)
        batch.finish()
    except OSError:
        batch.discard()
        raise


def clean_leftovers(root: Path, units: int, committed: Container[int]) -> None:
    """Remove what an interrupted write left behind: temporary files, and files of units that are planned but not committed.

    ``committed``: those units, and those that wait in the outbox: some of their files may be in place already.
    Nothing below ``results/`` is touched, and nothing that no writer of this run makes.
    """
    for leftover in root.glob("*" + PARTIAL):
        if leftover.is_file():
            leftover.unlink()
    for top in (DATA, TEXTS, COPIES):
        for folder, _, names in os.walk(root / top):
            for name in names:
                place = unit_of(f"{os.path.relpath(folder, root)}/{name}".replace(os.sep, "/"))
                if name.endswith(PARTIAL) or (place is not None and place[1] < units and place[1] not in committed):
                    os.unlink(os.path.join(folder, name))


class CheckedFiles:
    """Reads files of a run after comparing them with what the ledger says of them.

    Parameters
    ----------
    full: compare the sha256 when a file is read for the first time; False compares sizes only
    """

    def __init__(self, root: Path, full: bool = True) -> None:
        self.root, self.full = root, full
        self.objects = objects_at(root)
        self._seen: set[str] = set()

    def read(self, name: str, stated: Mapping[str, Any]) -> bytes:
        """Return a file's bytes.

        Raises
        ------
        StoreError: the file is missing, truncated or damaged; the message names it
        """
        full = self.full and name not in self._seen
        data = self._bytes(name, stated["size"])
        problem = difference(data, stated, full)
        if problem:
            raise StoreError(f"{self.root / name}: {problem}")
        self._seen.add(name)
        return data

    def _bytes(self, name: str, size: int) -> bytes:
        if self.objects is not None and self.objects.holds(name):
            return self.objects.read(name, size)
        return read_file(self.root, name, size)

    def size(self, name: str, stated: Mapping[str, Any]) -> int:
        """Return a file's size after comparing it with what is stated, before room is made for its content.

        Raises
        ------
        StoreError: the file is missing, of another size, or no regular file
        """
        if self.objects is not None and self.objects.holds(name):
            return self.objects.size(name, stated["size"])
        return _size(self.root / name, stated["size"])

    def read_array(self, name: str, stated: Mapping[str, Any], buffer: np.ndarray) -> np.ndarray:
        """Read a file into ``buffer`` (uint8) and return the part it fills; no hash: shards' codecs have checksums of their own.

        Raises
        ------
        StoreError: the file is missing or has another size
        """
        data = buffer[: stated["size"]]
        self._fill(name, stated, [data.data])
        return data

    def read_rows(self, name: str, stated: Mapping[str, Any], spec: ArraySpec, unit_cells: int) -> np.ndarray:
        """Return all rows of a shard, which is compared as by :meth:`read`; dense rows are read straight into their array.

        Raises
        ------
        StoreError: the file is missing, truncated or damaged; the message names it
        """
        size = plain_size(spec, unit_cells)
        if size is not None and self.size(name, stated) != size:  # before room is made for rows that are not there
            raise StoreError(f"{self.root / name}: is damaged: it has {stated['size']:,} bytes where its rows take {size:,}")
        made = in_place(spec, unit_cells)
        data = self.read(name, stated) if made is None else self._read_places(name, stated, made[1])
        try:
            if made is None:
                return decode(spec, unit_cells, data)
            check(spec, made[1])
            return made[0]
        except StoreError as error:
            raise StoreError(f"{self.root / name}: is damaged ({error})") from None

    def _read_places(self, name: str, stated: Mapping[str, Any], places: Sequence[memoryview]) -> bytes:
        """Read a file into several places one after another; nothing else is returned."""
        self._fill(name, stated, places)
        if self.full and name not in self._seen:
            digest = hashlib.sha256()
            for place in places:
                digest.update(place)
            if digest.hexdigest() != stated["sha256"]:
                raise StoreError(f"{self.root / name}: {DAMAGED}")
        self._seen.add(name)
        return b""

    def _fill(self, name: str, stated: Mapping[str, Any], places: Sequence[memoryview]) -> None:
        if self.objects is not None and self.objects.holds(name):
            self.objects.fill(name, stated["size"], places)
            return
        path = self.root / name
        size = self.size(name, stated)
        try:
            with path.open("rb", buffering=0) as file:
                at = 0
                for place in places:
                    while place and (count := file.readinto(place)):
                        place, at = place[count:], at + count
        except FileNotFoundError:
            raise StoreError(f"{path}: is missing, although the ledger says that it was written") from None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
        if at < size or at < sum(map(len, places)):
            raise StoreError(f"{path}: ended after {at:,} of {size:,} bytes")


def read_file(root: Path, name: str, size: int | None = None) -> bytes:
    """Return a file's bytes, or raise a StoreError that names it; a file of another size than ``size`` is not read."""
    path = root / name
    _size(path, size)
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None


def _size(path: Path, expected: int | None) -> int:
    """Return the size of a regular file; a pipe or a device would never end."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise StoreError(f"{path}: is missing, although the ledger says that it was written") from None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise StoreError(f"{path}: is no regular file; get the run again from where it came from")
    if expected is not None and found.st_size != expected:
        raise StoreError(f"{path}: has {found.st_size:,} bytes where {expected:,} were written")
    return found.st_size


def difference(data: bytes, stated: Mapping[str, Any], full: bool = True) -> str:
    """Return in words how a file differs from what the ledger says; empty when it does not."""
    if len(data) != stated["size"]:
        return f"has {len(data):,} bytes where {stated['size']:,} were written"
    if full and hashlib.sha256(data).hexdigest() != stated["sha256"]:
        return DAMAGED
    return ""
