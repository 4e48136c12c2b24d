"""A worker that is asked to end (SIGTERM, a nanny that closes) finishes what it computes and takes no more; used in workers alone.

Whoever preempts a machine sends SIGTERM to the worker process, to its nanny (``dask worker`` without ``--no-nanny``), or to both. The worker has a
handler and a plugin, the nanny a plugin: whichever is told first, the task that is computed is finished, those that wait are given back,
and what was answered is fetched, before the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from weakref import WeakKeyDictionary

from distributed import Nanny, NannyPlugin, Status, Worker, WorkerPlugin, get_worker
from distributed.protocol import to_serialize

from codi_engine.core.spreading.cluster import WORDS
from codi_engine.core.spreading.failures import Leaves

#: the plugins' name in workers and nannies
NAME = "codi-engine drains"
#: seconds for which a task is waited for at most; whoever asked may kill the process earlier
LONGEST = 1800.0
#: seconds for: answers to be fetched, the nanny to say that it closes too, the last words with the scheduler, the event loop to take the handler
FETCH, MOMENT, GOODBYE, INSTALL = 5.0, 0.5, 30.0, 120.0


class Drain(WorkerPlugin):  # type: ignore[misc]
    """What a worker has in work, and whether it leaves.

    Attributes
    ----------
    leaves: True once it was asked to end; it begins nothing any more
    """

    def __init__(self) -> None:
        self.leaves = False
        self._busy, self._lock = 0, threading.Lock()
        self._last = ""  # the key of the last answer
        self._closed_by_another = False
        self._worker: Worker
        self._leaving: asyncio.Task[None] | None = None

    @contextlib.contextmanager
    def work(self) -> Iterator[bool]:
        """Yield True where the worker may begin a task; while the context is open it does not end."""
        with self._lock:
            begins = not self.leaves
            self._busy += begins
        try:
            yield begins
        finally:
            with self._lock:
                self._busy -= begins
                self._last = self._worker.get_current_task()

    def check(self) -> None:
        """Begin nothing more, where the worker was asked to end while a task waited for another one.

        Raises
        ------
        Leaves: it was
        """
        if self.leaves:
            raise Leaves

    # ----------------------------------------------------------------- in the worker's event loop

    def setup(self, worker: Worker) -> None:
        """Take SIGTERM, unless somebody else's handler does."""
        self._worker = worker
        if threading.current_thread() is not threading.main_thread():
            return
        former = signal.getsignal(signal.SIGTERM)
        if former is signal.SIG_DFL or str(getattr(former, "__module__", "")).startswith("distributed."):
            signal.signal(signal.SIGTERM, self._arrived)
            if hasattr(signal, "pthread_sigmask"):  # our own nannies start workers with it blocked
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    async def teardown(self, worker: Worker) -> None:
        """The nanny is about to close the worker: let it finish first.

        Ours are ended with the command. One that is closing already (``--lifetime``, ``retire_workers``) can answer nobody any more.
        """
        self.leaves = self._closed_by_another = True
        if not _ours() and worker.status is not Status.closing:
            await self._finished()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        self.leaves = True
        self._worker.loop.asyncio_loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.get_running_loop().create_task(self._leave())

    async def _finished(self) -> None:
        """Wait until the task in work is finished and its answer fetched."""
        until = time.monotonic() + LONGEST
        while self._busy and time.monotonic() < until:
            await asyncio.sleep(0.02)
        await asyncio.sleep(0.1)  # the answer becomes what others can fetch
        until = time.monotonic() + FETCH
        while self._last in self._worker.data and time.monotonic() < until:
            await asyncio.sleep(0.02)

    async def _leave(self) -> None:
        await self._finished()
        await asyncio.sleep(MOMENT)
        if self._closed_by_another:
            return
        try:
            await asyncio.wait_for(self._worker.close_gracefully(restart=_ours(), reason="SIGTERM"), GOODBYE)
        except (OSError, TimeoutError):  # the scheduler is gone
            await self._worker.close(timeout=1, nanny=not _ours(), reason="SIGTERM")


class Patience(NannyPlugin):  # type: ignore[misc]
    """Lets a nanny that closes wait until its worker has finished what it computes."""

    name = NAME
    restart = False

    async def teardown(self, nanny: Nanny) -> None:
        if nanny.process is None or not nanny.process.is_alive():
            return
        with contextlib.suppress(OSError, TimeoutError):  # the worker is gone meanwhile
            async with nanny.rpc(nanny.worker_address) as worker:
                await asyncio.wait_for(getattr(worker, "plugin-remove")(name=NAME), LONGEST + 2 * FETCH)


def _ours() -> bool:
    """True for a process of a local cluster: its nanny is in the command, which ends it, and replaces one that leaves."""
    return WORDS in os.environ


# ------------------------------------------------------------------------------- in the threads of tasks

_DRAINS: WeakKeyDictionary[Worker, Drain] = WeakKeyDictionary()
_INSTALLING = threading.Lock()


def drain() -> Drain:
    """Return that of the worker whose task calls this; it is installed, for as long as the worker lives, by the first call."""
    worker = get_worker()
    with _INSTALLING:
        if (known := _DRAINS.get(worker)) is None:
            known = _DRAINS[worker] = Drain()
            asyncio.run_coroutine_threadsafe(_install(worker, known), worker.loop.asyncio_loop).result(timeout=INSTALL)
        return known


async def _install(worker: Worker, made: Drain) -> None:
    await worker.plugin_add(made, name=NAME)
    if worker.nanny and not _ours():
        with contextlib.suppress(Exception):  # a nanny of another environment: it ends its worker as it always does
            async with worker.rpc(worker.nanny) as nanny:
                await nanny.plugin_add(plugin=to_serialize(Patience()), name=NAME)
