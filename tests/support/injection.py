"""What happens to a process at a chosen call: death, refusals of the machine, limits; and mounts that its family alone sees."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.syscalls import Call, Tap


class Injection:
    """What happens to a child at its ``number``-th call of a ``kind`` at a file whose path has ``file`` in it.

    ``act``: ``kill`` (of a write, when its first half is on disk), ``readonly``, ``away`` (the run is renamed), ``gone`` (it is
    removed), ``errno`` (the call fails so; ``often``: and every later one), ``nobody`` (the process is no longer root's), or a
    limit of the process: ``nofile``, ``fsize``, ``memory``.
    """

    def __init__(self, order: Mapping[str, Any], token: int) -> None:
        self.order, self._token = order, token
        self._run = Path(order["run"])
        self._count, self._lock = 0, threading.Lock()
        self._done = False
        self._tap = Tap(self._run, before=self._before)

    def install(self) -> None:
        self._tap.install()

    def _before(self, call: Call) -> None:
        order = self.order
        if order["kind"] not in (call.kind, "any") or order.get("file", "") not in call.path:
            return
        with self._lock:
            self._count += 1
            mine = self._count == order["number"]
        if self._done and order.get("often"):
            raise OSError(order["errno"], os.strerror(order["errno"]), call.path)
        if not mine:
            return
        self._done = True
        half = call.kind == "write" and order["act"] == "kill"
        self._tap.real["write"](self._token, f"{call.kind} {call.path} {len(call.data) // 2 if half else ''}".encode())
        if half:
            call.half()
        getattr(self, f"_{order['act']}")(call)

    def _kill(self, call: Call) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)  # a signal to oneself comes at once, in this thread or another

    def _errno(self, call: Call) -> None:
        raise OSError(self.order["errno"], os.strerror(self.order["errno"]), call.path)

    def _readonly(self, call: Call) -> None:
        """A new mount over the run, read-only: what is open already belongs to the old one, as after errors of a disk."""
        run = str(self._run.resolve())
        problem = mount(run, run, None, 4096, None)
        assert not problem, problem
        until = time.monotonic() + 5
        while (problem := mount(run, run, None, 4096 | 32 | 1, None)) and time.monotonic() < until:
            time.sleep(0.002)  # another thread has just opened a file through the new mount
        assert not problem, problem

    def _away(self, call: Call) -> None:
        self._tap.real["rename"](self._run, self._run.with_name("away"))

    def _gone(self, call: Call) -> None:
        shutil.rmtree(self._run)

    def _nofile(self, call: Call) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))  # these three are taken; what is open stays so

    def _fsize(self, call: Call) -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    def _nobody(self, call: Call) -> None:
        os.setgid(65534)
        os.setuid(65534)

    def _memory(self, call: Call) -> None:
        import resource

        size = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        limit = size + self.order.get("spare", 0)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


# ------------------------------------------------------------------------------------------------------------------ mounts


def _libc() -> Any:
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def own_namespace() -> None:
    """See mounts of one's own, where that is allowed; where it is not, mounting is refused later."""
    libc = _libc()
    if libc.unshare(0x00020000) == 0:  # CLONE_NEWNS
        libc.mount(b"none", b"/", None, 0x44000, None)  # MS_REC | MS_PRIVATE
        global _apart
        _apart = True


_apart = False


def mount(source: str, at: str, kind: str | None, flags: int, options: str | None) -> str:
    import ctypes

    if not _apart:
        return "mounting is not permitted"
    encoded = [None if text is None else text.encode() for text in (source, at, kind)]
    failed = _libc().mount(encoded[0], encoded[1], encoded[2], flags, None if options is None else options.encode())
    return os.strerror(ctypes.get_errno()) if failed else ""


def unmount(at: str) -> str:
    import ctypes

    return os.strerror(ctypes.get_errno()) if _libc().umount2(at.encode(), 2) else ""
