"""A run on several devices: one process for each computes units, this one hands them out and commits them in their order.

What is on disk is therefore what one device writes, byte for byte, wherever the devices compute the same bits.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import WorkerDied
from codi_engine.core.planning.machine import peak_bytes
from codi_engine.core.running.agreeing import Agreement
from codi_engine.core.running.bench import GATE, Order, Ready, Result
from codi_engine.core.running.computing import Hands, Made, release_memory
from codi_engine.core.running.generations import Unit
from codi_engine.core.running.worker import Note, work
from codi_engine.core.spreading.apart import apart
from codi_engine.core.spreading.failures import Failed, raised

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from codi_engine.core.running.runner import Runner

#: units that a worker holds: the one it computes, and one that waits for it
DEPTH = 2
#: units a worker may be ahead of the commits, on average; bounds what waits in memory
AHEAD = 3
#: seconds that workers get to end by themselves, and that one takes to be gone when it has ended
PATIENCE, SHORT = 10.0, 3.0


@dataclass
class _Worker:
    """This process' side of a worker. ``tasks``: units it was given and has not returned; ``again``: it replaces one that died."""

    device: str
    words: Path
    process: SpawnProcess
    connection: Connection
    again: bool = False
    ready: bool = False
    tasks: list[int] = field(default_factory=list)

    def give(self, number: int, exact: bool) -> None:
        self.tasks.append(number)
        with contextlib.suppress(OSError):  # it died; its closed connection will say so
            self.connection.send((number, exact))


class Workers(Hands):
    """Workers on the devices of a run; a context that starts them, and ends them whatever happens.

    Attributes
    ----------
    forwarded: token rows that went through their models

    Raises
    ------
    WorkerDied: a process ended, and ended again
    WorkerFailed: a plugin or the engine raised; UserError, GateError and StoreError come as they are
    """

    def __init__(self, runner: Runner, devices: Sequence[str]) -> None:
        self.runner, self.devices, self.progress = runner, list(devices), runner.progress
        self.forwarded = 0
        self._peak: int | None = None
        self._crew: list[_Worker] = []
        self._agreement = Agreement(runner)
        self._queue: list[int] = []
        self._made: dict[int, Result] = {}
        self._lost: set[int] = set()
        self._started = 0

    def peak(self) -> int | None:
        """Return the largest peak of memory on one device since the last call; of this process when the workers have ended."""
        if not self._crew:
            return peak_bytes(self.runner.plan.info.device)
        peak, self._peak = self._peak, None
        return peak

    # ------------------------------------------------------------------------------------- beginning, end

    def __enter__(self) -> Workers:
        release_memory()
        self._folder = tempfile.TemporaryDirectory(prefix="codi-engine-workers-", ignore_cleanup_errors=True)
        self.progress.start(f"loading the model on {', '.join(self.devices)}", 0, "")
        try:
            for device in self.devices:
                self._crew.append(self._start(device))
            while not all(worker.ready for worker in self._crew):
                self._listen()
        except BaseException:  # whatever it is, no worker may stay behind
            self._close(at_once=True)
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        self._close(at_once=raised[0] is not None)

    def _start(self, device: str, again: bool = False) -> _Worker:
        import torch

        cpus, threads = self.devices.count("cpu"), None
        if device == "cpu":
            threads = max(torch.get_num_threads() // cpus, 1)
        changes = [f"model.device={device}", "analyses=[]", "trackers=[]", "checks={}"]
        experiment = self.runner.experiment.with_overrides(changes)
        self._started += 1
        words = Path(self._folder.name) / f"{self._started}.txt"
        words.touch()
        order = Order(experiment.to_dict(), experiment.source, self.runner.path, device, threads, self.devices.count(device), words)
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=work, args=(there, order), name=f"codi-engine {device}", daemon=True)
        with apart():
            process.start()
        there.close()
        return _Worker(device, words, process, here, again)

    def _close(self, at_once: bool) -> None:
        """End all workers: idle ones end when their connection is closed, others are made to; they hold nothing that must be kept."""
        for worker in self._crew:
            worker.connection.close()
        _join(self._crew, 0.0 if at_once else PATIENCE)
        for worker in self._crew:
            worker.process.kill()
            worker.process.join()
            worker.process.close()
        self._crew.clear()
        self._folder.cleanup()

    # ------------------------------------------------------------------------------------------ computing

    def gate(self) -> list[dict[str, Any]]:
        return [record for result in self._in_order([GATE]) for record in result.texts["gate"]]

    def results(self, units: Sequence[Unit]) -> Iterator[Made]:
        for unit, result in zip(units, self._in_order([u.number for u in units]), strict=True):
            yield Made(unit, result.arrays, result.texts)

    def _in_order(self, numbers: Sequence[int]) -> Iterator[Result]:
        """Have units computed and yield their results in the order of their numbers, which ascend."""
        self._queue = list(numbers)
        for place, number in enumerate(numbers):
            last = numbers[min(place + AHEAD * len(self._crew), len(numbers)) - 1]
            self._hand_out(last)
            while number not in self._made:
                self._listen()
                self._hand_out(number if self.runner.stopping.asked else last)
            yield self._made.pop(number)

    def _hand_out(self, last: int) -> None:
        """Give units up to ``last`` to the workers that have least to do; the last ones of a stage do not wait behind others."""
        while self._queue and self._queue[0] <= last:
            depth = DEPTH if len(self._queue) > len(self._crew) else 1
            free = [w for w in self._crew if w.ready and len(w.tasks) < depth]
            if not free:
                return
            min(free, key=lambda w: len(w.tasks)).give(heapq.heappop(self._queue), self._agreement.exact)

    # ------------------------------------------------------------------------------------------ listening

    def _listen(self) -> None:
        """Wait until some worker says something or ends, and take that in."""
        awake = wait([*(w.connection for w in self._crew), *(w.process.sentinel for w in self._crew)])
        for worker in list(self._crew):
            if worker.connection not in awake and worker.process.sentinel not in awake:
                continue
            try:
                if worker.connection not in awake and not worker.connection.poll():
                    raise EOFError
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._died(worker)
                continue
            self._take(worker, message)

    def _take(self, worker: _Worker, message: Any) -> None:
        if isinstance(message, Note):
            self.runner.life.warn(f"{worker.device}: {message.text}")
        elif isinstance(message, Failed):
            raise raised(worker.device, message)
        elif isinstance(message, Ready):
            self._agreement.compare(worker.device, message)
            worker.ready = True
        elif isinstance(message, Result):
            worker.tasks.remove(message.unit)
            self._made[message.unit] = message
            self.forwarded += message.rows
        if isinstance(message, (Ready, Result)) and message.peak is not None:
            self._peak = max(self._peak or 0, message.peak)

    def _died(self, worker: _Worker) -> None:
        """Replace a worker that ended and hand its units out again; once, for the device and for the unit."""
        worker.process.join(SHORT)
        unit = worker.tasks[0] if worker.tasks else None
        if not worker.ready or worker.again or unit in self._lost:
            raise WorkerDied(_obituary(worker, unit))
        self.runner.life.warn(f"{worker.device}: the worker process ended ({_ended(worker)}); another one takes its place")
        if unit is not None:
            self._lost.add(unit)
        for number in worker.tasks:
            heapq.heappush(self._queue, number)
        worker.connection.close()
        self._crew[self._crew.index(worker)] = self._start(worker.device, again=True)


def _ended(worker: _Worker) -> str:
    code = worker.process.exitcode
    return signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"


def _obituary(worker: _Worker, unit: int | None) -> str:
    """Say in two lines which worker ended, how, and what it said last."""
    doing = "loaded the model" if not worker.ready else "waited" if unit is None else "ran the gate" if unit == GATE else f"computed unit {unit}"
    said = [line.strip() for line in worker.words.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    hint = f"It said last: {said[-1][:160]}" if said else "A system that is out of memory ends processes: lower memory: or batch_size:, or list fewer devices."
    return f"{worker.device}: the worker process ended ({_ended(worker)}) while it {doing}; what is committed stays, the same command goes on.\n{hint}"


def _join(crew: Sequence[_Worker], seconds: float) -> None:
    until = time.monotonic() + seconds
    for worker in crew:
        worker.process.join(max(until - time.monotonic(), 0.0))
