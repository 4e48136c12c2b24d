"""One writer per run: an operating-system lock that dies with its owner, and the owner's name in it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
import weakref
from pathlib import Path

from codi_engine.store.errors import Locked, StoreError

#: seconds for which a lock is tried again before its owner is believed: it may not have written its name yet, or only be asked about
_PATIENCE, _PAUSE = 0.5, 0.01
#: tries before a living owner is believed
_TRIES = 5
#: what a file system without locks says
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS)
#: locks of this process; a forked child gives its copies up, or it would keep them after the owner's death
_HELD: weakref.WeakSet[RunLock] = weakref.WeakSet()


class _NoRegularFile(Exception):
    """Something else lies where the lock file belongs."""


def _lock(descriptor: int) -> bool:
    """Take the lock without waiting; False when another process has it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, 1 << 20, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        raise
    return True


def _open(path: Path, flags: int) -> int:
    """Open a lock file and nothing else: no link is followed, no pipe waited for."""
    try:
        descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o644)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise _NoRegularFile from None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _NoRegularFile
    return descriptor


class RunLock:
    """Held from construction to :meth:`release`; a second writer is told who has it.

    A file that is there without its lock is a leftover, whatever it says, and is taken over.

    Raises
    ------
    Locked: another process (or another writer of this one) has the lock
    StoreError: there can be none
    OSError: the lock file cannot be made
    """

    def __init__(self, path: Path) -> None:
        self.path, self._descriptor = path, -1
        until, tries = time.monotonic() + _PATIENCE, 0
        while not self._take():
            tries += 1
            owner = _owner_at(path)
            gone = _gone(owner)
            if (owner and not gone and tries >= _TRIES) or time.monotonic() > until:
                whose = f"a process that {owner} left behind" if gone else owner or "another process"
                raise Locked(f"{path.parent}: is being written by {whose}; wait for it or stop it", whose)
            time.sleep(_PAUSE)
        _HELD.add(self)

    def _take(self) -> bool:
        """Try once; False when another process has the lock, or has just removed the file."""
        try:
            descriptor = _open(self.path, os.O_RDWR | os.O_CREAT)
        except _NoRegularFile:
            raise StoreError(f"{self.path}: is no plain file; remove it (it is made where a run is written)") from None
        except PermissionError:
            if os.path.lexists(self.path):
                raise StoreError(f"{self.path}: cannot be opened for writing; remove it when nobody writes this run") from None
            raise
        try:
            if _lock(descriptor) and _same_file(descriptor, self.path):
                os.ftruncate(descriptor, 0)
                os.lseek(descriptor, 0, os.SEEK_SET)
                os.write(descriptor, f"{socket.gethostname()} pid {os.getpid()}".encode())
                self._descriptor = descriptor
        except OSError as error:
            if error.errno in _NO_LOCKS:
                raise StoreError(
                    f"{self.path.parent}: its file system has no locks ({error.strerror}), and two writers would destroy each other's data; "
                    "give an output directory on another one"
                ) from None
            raise
        finally:
            if self._descriptor != descriptor:  # whatever happened, a handle that stays open would keep the lock
                os.close(descriptor)
        return self._descriptor == descriptor

    def check(self) -> None:
        """Make sure that the lock is still what others see.

        Raises
        ------
        StoreError: somebody removed or replaced the file, or this is a forked child: another process may be writing
        """
        if self._descriptor < 0 or not _same_file(self._descriptor, self.path):
            raise StoreError(f"{self.path}: was removed or replaced while the run was being written; this process stops, what is committed stays")

    def release(self) -> None:
        """Remove the file, then give the lock up; where the disk refuses, the file stays, and nobody holds it."""
        if self._descriptor < 0:
            return
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # a disk that was read-only meanwhile
                if _same_file(self._descriptor, self.path):
                    self.path.unlink(missing_ok=True)
        self._drop()
        if sys.platform == "win32":
            with contextlib.suppress(OSError):  # another process has opened it meanwhile and will use it
                self.path.unlink()

    def _drop(self) -> None:
        """Close the file; where this is a forked child's copy, the owner keeps the lock."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _drop_all() -> None:
    for lock in list(_HELD):
        lock._drop()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_all)


def _owner(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 300).decode("utf-8", "replace").strip()


def _owner_at(path: Path) -> str:
    """Return what a lock file says; empty where nothing can be read."""
    try:
        descriptor = _open(path, os.O_RDONLY)
    except (OSError, _NoRegularFile):
        return ""
    try:
        return _owner(descriptor)
    finally:
        os.close(descriptor)


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return False


def holder(path: Path) -> str | None:
    """Return who holds a run's lock, or None; the lock is left as it is (it is tried, shared and for a moment)."""
    try:
        descriptor = _open(path, os.O_RDONLY)
    except (OSError, _NoRegularFile):
        return None
    try:
        owner = _owner(descriptor) or "another process"
        if sys.platform == "win32":
            return owner  # the file goes with its owner there
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return None if error.errno in _NO_LOCKS and _gone(owner) else owner
        return None
    finally:
        os.close(descriptor)


def _gone(owner: str) -> bool:
    """True for an owner on this machine whose process has ended."""
    host, _, number = owner.rpartition(" pid ")
    if host != socket.gethostname() or not (number.isascii() and number.isdigit()) or len(number) > 9:
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
