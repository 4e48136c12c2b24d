"""One worker: a process that loads the model on its device and computes the units it is given; it commits nothing."""

from __future__ import annotations

import signal
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection

from codi_engine.core.progress import Progress
from codi_engine.core.running.bench import Bench, Order, Ready, Result
from codi_engine.core.running.stopping import DEFAULTS
from codi_engine.core.spreading.failures import Failed
from codi_engine.core.spreading.preload import write_to


@dataclass(frozen=True)
class Note:
    """Something to say in passing."""

    text: str


def work(connection: Connection, order: Order) -> None:
    """Run a worker until its connection is closed."""
    for number in DEFAULTS:  # Ctrl-C and a closing terminal reach all processes, a scheduler's SIGTERM all of a job; the parent ends this one
        signal.signal(number, signal.SIG_IGN)
    if order.words is not None:
        write_to(order.words)
    sender = _Sender(connection)
    try:
        try:
            _serve(connection, order, sender)
        except Exception as error:  # whatever it is, the parent tells the user
            sender.put(Failed.of(error))
        sender.flush()
    except OSError:
        return  # the parent is gone


def _serve(connection: Connection, order: Order, sender: _Sender) -> None:
    bench = Bench(order, sender)
    sender.put(bench.ready())
    while True:
        try:
            number, exact = connection.recv()
        except (EOFError, OSError):
            return  # nothing more to do
        sender.put(bench.result(number, exact))


class _Sender(Progress):
    """Sends messages in a thread, so that the next unit is computed meanwhile; one message waits at most."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="results")
        self._last: Future[None] | None = None

    def put(self, message: Ready | Result | Note | Failed) -> None:
        self.flush()
        self._last = self._thread.submit(self._connection.send, message)

    def flush(self) -> None:
        """Wait for what is being sent.

        Raises
        ------
        OSError: nobody reads it any more
        """
        if self._last is not None:
            last, self._last = self._last, None
            last.result()

    def note(self, text: str) -> None:
        if not text.startswith("loading "):
            self.put(Note(text))
