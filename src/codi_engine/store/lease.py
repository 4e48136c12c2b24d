"""One writer per run at an object store: a lock object that its holder renews, and that anybody may take over once it is not renewed.

The ledger does not depend on it: each of its lines is an object that can be made once (``store/lines.py``). The lease keeps a second
writer from computing in vain, and says who the first one is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import LOCK
from codi_engine.store.lock import RunLock, holder
from codi_engine.store.remote import Conflict, Found, Remote, remote_at

#: seconds after which a lock that was not renewed is anybody's, and between two renewals
LEASE, RENEWED = 60.0, 15.0
#: how often a lock that changes hands meanwhile is looked at again
_TRIES = 5


def hold(root: Path) -> RunLock | Hold:
    """Take the lock of a run, wherever it is.

    Raises
    ------
    StoreError: another process has it
    OSError: the lock file cannot be made
    """
    remote = remote_at(root)
    return RunLock(root / LOCK) if remote is None else Hold(remote)


class Hold:
    """The lock of a run at an object store: that of the folder of this machine, then the object."""

    def __init__(self, remote: Remote) -> None:
        self._local = RunLock(remote.root / LOCK)
        try:
            self._lease = Lease(remote)
        except BaseException:  # whatever happened, the folder's lock must not stay
            self._local.release()
            raise

    def check(self) -> None:
        """Make sure that nobody else writes.

        Raises
        ------
        StoreError: somebody may
        """
        self._local.check()
        self._lease.check()

    def release(self) -> None:
        """Give the lock up."""
        self._lease.release()
        self._local.release()


class Lease:
    """The lock object, held from construction to :meth:`release` and renewed by a thread of its own.

    Raises
    ------
    StoreError: another process has it, or the store refuses
    """

    def __init__(self, remote: Remote) -> None:
        self._remote, self._id, self._process = remote, uuid.uuid4().hex, os.getpid()
        self._lost = ""
        self._turn = threading.Lock()
        self._over = threading.Event()
        self._tag = self._take()
        self._renewed = self._now()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)
        self._thread.start()

    def _body(self) -> bytes:
        renewed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        return json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "id": self._id, "renewed": renewed}).encode()

    def _take(self) -> str:
        for _ in range(_TRIES):
            try:
                return self._remote.create(LOCK, self._body())
            except Conflict:
                pass
            try:
                data, found = self._remote.get(LOCK)
                owner = _read(data)
                if not _ended(owner):
                    age = (self._clock() - found.when).total_seconds()
                    if age < LEASE:
                        raise StoreError(
                            f"{self._remote}: is being written by {_who(owner)}, heard of {max(age, 0):.0f} s ago; wait for it or stop it "
                            f"(of a process that has died the lock ends {LEASE:.0f} s after it was last heard of)"
                        )
                return self._remote.replace(LOCK, self._body(), found.tag)
            except (Conflict, FileNotFoundError):
                continue  # it was given up, or another process was faster
        raise StoreError(f"{self._remote}: several processes try to write it at the same time; wait for them or stop them")

    def _clock(self) -> datetime:
        """Return the time by the store's own clock, to about a second: clocks of machines may differ."""
        name = f"{LOCK}.{self._id}"
        self._remote.put(name, b"")
        try:
            return self._remote.head(name).when
        finally:
            self._remote.delete([name])

    @staticmethod
    def _now() -> float:
        """Return seconds that go on while a machine sleeps, where the system has such a clock."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()

    def _keep(self) -> None:
        while not self._lost and not self._over.wait(RENEWED):
            with contextlib.suppress(StoreError):  # the next turn tries again, and check() says so before anything is written
                self._renew()

    def _renew(self) -> None:
        with self._turn:
            if self._lost or self._over.is_set():
                return
            begun = self._now()
            try:
                self._tag = self._remote.replace(LOCK, self._body(), self._tag)
            except (Conflict, FileNotFoundError):
                if not self._found_again():
                    self._lost = self._taken_by()
                    return
            self._renewed = begun

    def _found_again(self) -> bool:
        """Say whether the object is what a renewal of ours made of it whose answer was lost."""
        try:
            data, found = self._remote.get(LOCK)
        except FileNotFoundError:
            return False
        self._tag = found.tag
        return _read(data).get("id") == self._id

    def _taken_by(self) -> str:
        try:
            return f"{_who(_read(self._remote.get(LOCK)[0]))} has taken it over"
        except FileNotFoundError:
            return "its lock was removed"

    def check(self) -> None:
        """Make sure that the lease is still this process', asking the store where it has not answered lately.

        Raises
        ------
        StoreError: another process may be writing
        """
        if self._process != os.getpid():
            raise StoreError(f"{self._remote}: is being written by the process that this one was forked from")
        if self._now() - self._renewed > LEASE / 2:
            self._renew()
        if self._lost:
            raise StoreError(f"{self._remote}: {self._lost} while it was being written here; this process stops, what is committed stays")

    def release(self) -> None:
        """Remove the object if it is still ours; where the store refuses, the lease ends by itself."""
        if self._process != os.getpid() or self._over.is_set():
            return
        self._over.set()
        with self._turn, contextlib.suppress(StoreError, FileNotFoundError):
            if not self._lost and _read(self._remote.get(LOCK)[0]).get("id") == self._id:
                self._remote.delete([LOCK])


def written_by(root: Path) -> str | None:
    """Return who writes a run, or None; for those who only look on. Whether a lease has run out is told by this machine's clock."""
    here, remote = holder(root / LOCK), remote_at(root)
    if here is not None or remote is None:
        return here
    try:
        data, found = remote.get(LOCK)
    except FileNotFoundError:
        return None
    owner = _read(data)
    return None if _ended(owner) or _age(found) > LEASE else _who(owner)


def _age(found: Found) -> float:
    return (datetime.now(found.when.tzinfo) - found.when).total_seconds()


def _read(data: bytes) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _who(owner: dict[str, Any]) -> str:
    return f"{str(owner.get('host', 'another machine'))[:100]} pid {str(owner.get('pid', '?'))[:20]}"


def _machine() -> str:
    """Return what tells this system's processes from those of others of the same name; empty where nothing does."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _ended(owner: dict[str, Any]) -> bool:
    """True for an owner on this machine whose process has ended."""
    pid = owner.get("pid")
    if not _machine() or owner.get("machine") != _machine() or not isinstance(pid, int) or pid < 1:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False
