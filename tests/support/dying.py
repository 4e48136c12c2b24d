"""A writer that dies inside this process: at its n-th call of the operating system nothing more happens, as after SIGKILL."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine.store import lock as locks
from codi_engine.store.writer import RunWriter

#: what a store does to the disk
CALLS = ("fsync", "replace", "write", "pwrite", "mkdir", "unlink", "rmdir", "ftruncate", "truncate", "rename", "link")


class Killed(BaseException):
    """The process is dead."""


class Death:
    """Counts calls; from the n-th on each raises, whoever handles the error. A file that is written whole gets its first half."""

    def __init__(self, at: int) -> None:
        self.at, self.calls, self.fired = at, 0, ""
        self._lock = threading.Lock()

    def due(self, name: str) -> bool:
        with self._lock:
            self.calls += 1
            if self.calls >= self.at and not self.fired:
                self.fired = name
            return bool(self.fired)


@contextlib.contextmanager
def dying(at: int) -> Iterator[Death]:
    """Let this process's writers die at the n-th call; afterwards the system works again and their locks are free, as the kernel leaves them."""
    death = Death(at)

    def wrapped(name: str, real: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if death.due(name):
                raise Killed(name)
            return real(*args, **kwargs)

        return call

    def written(self: Path, data: bytes) -> int:
        first = not death.fired
        if death.due("write_bytes"):
            if first:
                with self.open("wb") as file:
                    file.write(data[: len(data) // 2])
            raise Killed("write_bytes")
        with self.open("wb") as file:
            return file.write(data)

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            if hasattr(os, name):
                patch.setattr(os, name, wrapped(name, getattr(os, name)))
        patch.setattr(Path, "write_bytes", written)
        try:
            yield death
        except Killed:
            bury()


def bury(writer: RunWriter | None = None) -> None:
    """Do what the kernel does with a dead process: give its locks up; their files stay."""
    for lock in list(locks._HELD):
        lock._drop()
    if writer is not None:
        writer._pool.shutdown()
