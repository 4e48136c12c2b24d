"""One writer per run: an operating-system lock that dies with its owner, and the owner's name in it."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from pathlib import Path

from codi_engine.store.errors import StoreError


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


class RunLock:
    """Held from construction to :meth:`release`; a second writer is told who has it.

    Raises
    ------
    StoreError: another process (or another writer of this one) has the lock
    OSError: the lock file cannot be made
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                taken = _lock(self._descriptor)
            except OSError:
                os.close(self._descriptor)
                raise
            if not taken:
                owner = _owner(self._descriptor)
                os.close(self._descriptor)
                raise StoreError(f"{path.parent}: is being written by {owner}; wait for it or stop it")
            if _same_file(self._descriptor, path):
                break
            os.close(self._descriptor)  # the former owner removed the file between our open and our lock
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{socket.gethostname()} pid {os.getpid()}".encode())

    def release(self) -> None:
        """Remove the file, then give the lock up."""
        if self._descriptor < 0:
            return
        if sys.platform != "win32":
            self.path.unlink(missing_ok=True)
        os.close(self._descriptor)
        self._descriptor = -1
        if sys.platform == "win32":
            with contextlib.suppress(OSError):  # another process has opened it meanwhile and will use it
                self.path.unlink()


def _owner(descriptor: int) -> str:
    os.lseek(descriptor, 0, os.SEEK_SET)
    return os.read(descriptor, 300).decode("utf-8", "replace").strip() or "another process"


def _same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def holder(path: Path) -> str | None:
    """Return who holds a run's lock, or None; the lock is left as it is.

    Where the owner's process is gone the file is a leftover; otherwise the lock is tried, shared and for a moment.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        owner = _owner(descriptor)
        if sys.platform == "win32":
            return owner  # the file goes with its owner there
        if _gone(owner):
            return None
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return owner
        return None
    finally:
        os.close(descriptor)


def _gone(owner: str) -> bool:
    """True for an owner on this machine whose process has ended."""
    host, _, number = owner.rpartition(" pid ")
    if host != socket.gethostname() or not number.isdigit():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
