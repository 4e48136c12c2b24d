"""Starting processes that neither run the user's script again nor see the signals that end a run."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from codi_engine.core.running.stopping import DEFAULTS

_LOCK = threading.Lock()
_INSIDE: list[Any] = []


@contextlib.contextmanager
def apart() -> Iterator[None]:
    """Start a process that neither runs the user's script again nor sees a signal that ends a run: this process ends it.

    May be entered while it is open, by the same thread (tasks of an event loop): the first entrance and the last exit count.
    """
    with _LOCK:
        if not _INSIDE:
            _INSIDE.append(_enter())
        _INSIDE.append(None)
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE.pop()
            if len(_INSIDE) == 1:
                _leave(*_INSIDE.pop())


def _enter() -> tuple[ModuleType, set[signal.Signals] | None]:
    main, mask = sys.modules["__main__"], None
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # starting it unblocks signals
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, set(DEFAULTS))
    sys.modules["__main__"] = ModuleType("__main__")
    return main, mask  # type: ignore[return-value]


def _leave(main: ModuleType, mask: set[signal.Signals] | None) -> None:
    sys.modules["__main__"] = main
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
