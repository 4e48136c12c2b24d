"""One worker: a process that loads the model on its device and computes the units it is given; it commits nothing."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import GateError, PluginError, UserError
from codi_engine.core.planning.machine import peak_bytes, reset_peak
from codi_engine.core.progress import Progress
from codi_engine.core.running.stopping import DEFAULTS
from codi_engine.store.errors import StoreError

if TYPE_CHECKING:
    import numpy as np

#: the number that stands for the gate among the units
GATE = -1
#: errors that keep their kind on the way to the user
KINDS: dict[str, type[Exception]] = {e.__name__: e for e in (UserError, GateError, PluginError, StoreError)}


@dataclass(frozen=True)
class Order:
    """What a worker is started with; ``sharing`` counts the workers on its device, ``words`` is the file it writes its output to."""

    experiment: dict[str, Any]
    source: str
    path: Path
    device: str
    threads: int | None
    sharing: int
    words: Path


@dataclass(frozen=True)
class Ready:
    """The model is loaded and tested: what must be the same in all workers."""

    model: str
    data: str
    reproducible: bool
    bits: str
    peak: int | None
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """What a unit gave, the token rows it took and the peak of memory."""

    unit: int
    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, list[Any]]
    rows: int
    peak: int | None


@dataclass(frozen=True)
class Note:
    """Something to say in passing."""

    text: str


@dataclass(frozen=True)
class Failed:
    """An exception: its kind where it is one of :data:`KINDS`, what it says, and where it was raised."""

    kind: str
    text: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> Failed:
        kind = next((name for name, known in KINDS.items() if isinstance(error, known)), "")
        text = str(error) if kind else f"{type(error).__name__}: {error}"
        return cls(kind, text, "".join(traceback.format_exception(error)))


def work(connection: Connection, order: Order) -> None:
    """Run a worker until its connection is closed."""
    for number in DEFAULTS:  # Ctrl-C and a closing terminal reach all processes, a scheduler's SIGTERM all of a job; the parent ends this one
        signal.signal(number, signal.SIG_IGN)
    _write_to(order.words)
    outbox = _Outbox(connection)
    try:
        try:
            _serve(connection, order, outbox)
        except Exception as error:  # whatever it is, the parent tells the user
            outbox.put(Failed.of(error))
        outbox.flush()
    except OSError:
        return  # the parent is gone


def _serve(connection: Connection, order: Order, outbox: _Outbox) -> None:
    bench = _Bench(order, outbox)
    outbox.put(bench.ready())
    while True:
        try:
            number, exact = connection.recv()
        except (EOFError, OSError):
            return  # nothing more to do
        outbox.put(bench.result(number, exact))


def _write_to(path: Path) -> None:
    """Let whatever this process writes go to a file: the terminal is the parent's."""
    with path.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


class _Outbox(Progress):
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


class _Bench:
    """The model on the worker's device and the committed run, read only."""

    def __init__(self, order: Order, outbox: _Outbox) -> None:
        import torch

        from codi_engine.core.experiment import Experiment
        from codi_engine.core.planning.preparing import prepare
        from codi_engine.core.plugins import plugin_manager
        from codi_engine.core.running.computing import Computer
        from codi_engine.core.running.inputs import MODEL, SMALL, model_digests
        from codi_engine.core.running.runner import Runner
        from codi_engine.store.view import RunView

        if order.threads is not None:
            torch.set_num_threads(order.threads)
        if order.device.startswith("cuda:"):
            torch.cuda.set_device(order.device)
        experiment = Experiment.from_dict(order.experiment, source=order.source)
        runner = Runner(prepare(experiment, plugin_manager()), order.path, outbox)
        adapter, net = runner.load()
        self.view = RunView(order.path)
        job = runner.job(adapter, net, self.view)
        job.sharing = order.sharing
        job.rollout.prefill.kept.budget //= order.sharing
        units = runner.known_units(job)
        self.computer = Computer(job, units)
        self.units = {u.number: u for u in units}
        self.device, self._edited = order.device, False
        read = {**model_digests(runner.prepared.model, SMALL), **runner.digests(job)}
        runner.reuse(job, {MODEL: adapter.digest, **read})  # what does not fit was said by the first process
        self._ready = Ready(adapter.digest, runner.plan.data.digest, runner.reproducible, runner.bits, peak_bytes(self.device), read)

    def ready(self) -> Ready:
        return self._ready

    def result(self, number: int, exact: bool) -> Result:
        """Compute a unit, or run the gate."""
        reset_peak(self.device)
        before = self.computer.forwarded
        if not self._edited and (number == GATE or self.units[number].stage == "sweep"):
            self.view.refresh()  # every unedited unit is committed before the first edited one is handed out
            self._edited = True
        if number == GATE:
            found = self.computer.gate(exact)
            return Result(GATE, {}, {"gate": found}, self.computer.forwarded - before, peak_bytes(self.device))
        made = self.computer.compute(self.units[number])
        return Result(number, made.arrays, made.texts, self.computer.forwarded - before, peak_bytes(self.device))
