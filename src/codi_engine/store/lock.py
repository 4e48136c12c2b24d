"""One writer per run: an operating-system lock that dies with its owner, and the owner's name in it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from codi_engine.store.errors import StoreError


class RunLock:
    """Held from open to close; a second writer is told who has it."""

    def __init__(self, path: Path) -> None:
        import fcntl

        self.path = path
        self._file = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise StoreError(f"{path.parent}: is being written by {owner}; wait for it or stop it") from None
        self._file.truncate(0)
        self._file.write(f"{socket.gethostname()} pid {os.getpid()}")
        self._file.flush()

    def release(self) -> None:
        self._file.truncate(0)
        self._file.close()
