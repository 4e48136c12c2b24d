"""A run whose units are computed by the workers of a Dask cluster; this process hands them out, and commits them in their order.

A worker puts what a unit gave into the run's outbox, where it is durable, before it answers; what travels is a receipt. A unit that was
computed is therefore never computed again, whoever dies: this process, a worker, or the scheduler.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.planning.machine import peak_bytes
from codi_engine.core.progress import Progress
from codi_engine.core.running.agreeing import Agreement
from codi_engine.core.running.bench import GATE, Bench, Order, Ready
from codi_engine.core.running.computing import Hands, Made, release_memory
from codi_engine.core.running.generations import Unit
from codi_engine.core.running.marks import committable
from codi_engine.core.spreading.cluster import Cluster, Member, Spread
from codi_engine.core.spreading.crew import Answer, Crew
from codi_engine.core.spreading.entering import Common
from codi_engine.store.outbox import Outbox, Receipt

if TYPE_CHECKING:
    from codi_engine.core.running.runner import Runner


@dataclass(frozen=True)
class Done:
    """What a worker answers: the receipt of a unit, or what the gate found; token rows, peak of memory, and what is to be said."""

    receipt: Receipt | None
    gate: Sequence[dict[str, Any]]
    rows: int
    peak: int | None
    notes: Sequence[str]


class Clustered(Hands):
    """The workers of a cluster; a context that starts or finds them, and leaves them whatever happens.

    Attributes
    ----------
    forwarded: token rows that went through their models
    devices: of a local cluster's workers, one each; of others, what the experiment says

    Raises
    ------
    WorkerDied: several workers in a row died over one unit
    WorkerFailed: a plugin or the engine raised; UserError, GateError and StoreError come as they are
    """

    def __init__(self, runner: Runner, spread: Spread, devices: Sequence[str]) -> None:
        if spread.scheduler is not None and len(devices) > 1:
            raise UserError(f"{runner.experiment.source}: model.device: with --scheduler every worker has one device; write auto, cpu or cuda")
        self.runner, self.spread, self.devices, self.progress = runner, spread, list(devices), runner.progress
        self.forwarded = 0
        self._peak: int | None = None
        self._agreement = Agreement(runner, elsewhere=True)
        self._outbox = Outbox(runner.path)
        self._stack = contextlib.ExitStack()
        self._crew: Crew

    def peak(self) -> int | None:
        """Return the largest peak of memory of one worker since the last call; of this process when they have ended."""
        peak, self._peak = self._peak, None
        return peak if peak is not None else peak_bytes(self.runner.plan.info.device)

    def __enter__(self) -> Clustered:
        release_memory()
        where = ", ".join(self.devices) if self.spread.scheduler is None else f"the workers of {self.spread.scheduler}"
        self.progress.start(f"loading the model on {where}", 0, "")
        with contextlib.ExitStack() as stack:
            cluster = stack.enter_context(Cluster(self.spread, len(self.devices)))
            common = Common.of({str(self.runner.path.absolute()): None})
            self._crew = Crew(cluster, common, Station, self._given, welcome=self._welcome, say=self.runner.life.warn, doing=_in_words)
            stack.push(lambda kind, *_: self._crew.end(at_once=kind is not None))
            if cluster.local:
                self._crew.all_begun()
            else:
                self._crew.begin()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)
        self._outbox.close()

    def _given(self, member: Member) -> tuple[dict[str, Any]]:
        """Return what a worker loads: the experiment on its device."""
        import torch

        runner, changes = self.runner, ["analyses=[]", "trackers=[]", "checks={}"]
        device, threads, sharing = str(runner.experiment.model.options.get("device", "auto")), member.threads, 1
        if self.spread.scheduler is None:
            device = self.devices[int(member.name) % len(self.devices)]
            sharing, threads = self.devices.count(device), max(torch.get_num_threads() // max(self.devices.count("cpu"), 1), 1)
        experiment = runner.experiment.with_overrides([f"model.device={device}", *changes])
        order = Order(experiment.to_dict(), experiment.source, runner.path.absolute(), device, threads, sharing)
        return ({**asdict(order), "path": str(order.path)},)

    def _welcome(self, who: str, told: tuple[Ready, Sequence[str]]) -> None:
        ready, notes = told
        self._say(who, notes)
        self._agreement.compare(who, ready)
        self._held(ready.peak)

    # ------------------------------------------------------------------------------------------ computing

    def gate(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for done in self._computed([GATE], {}):
            found += done.gate
        return found

    def results(self, units: Sequence[Unit]) -> Iterator[Made]:
        kept = {number: Done(receipt, (), 0, None, ()) for number, receipt in self._outbox.receipts().items()}
        for unit, done in zip(units, self._computed([u.number for u in units], kept), strict=True):
            yield Made(unit, {}, {}, done.receipt)

    def _computed(self, numbers: Sequence[int], done: dict[int, Done]) -> Iterator[Done]:
        """Have units computed that are not ``done`` and yield what was answered, in the order of their numbers."""
        waiting = deque(number for number in numbers if number not in done)
        for number in numbers:
            while number not in done:
                while waiting and self._crew.room(len(waiting)) and (waiting[0] <= number or not self.runner.stopping.asked):
                    self._crew.give((waiting.popleft(), self._agreement.exact))
                if not self._crew.size:  # nobody computes: a run that is to stop need not wait for new workers
                    self.runner.stopping.check()
                for answer in self._crew.answers():
                    done[answer.task[0]] = self._taken(answer)
            yield done.pop(number)

    def _taken(self, answer: Answer) -> Done:
        done: Done = answer.value
        self.forwarded += done.rows
        self._say(answer.worker, done.notes)
        self._held(done.peak)
        return done

    def _say(self, who: str, notes: Sequence[str]) -> None:
        for note in notes:
            self.runner.life.warn(f"{who}: {note}")

    def _held(self, peak: int | None) -> None:
        if peak is not None:
            self._peak = max(self._peak or 0, peak)


def _in_words(task: tuple[int, bool]) -> str:
    return "ran the gate" if task[0] == GATE else f"computed unit {task[0]}"


# ------------------------------------------------------------------------------------------- in a worker


class _Notes(Progress):
    """Keeps what is said until the next answer takes it along."""

    def __init__(self) -> None:
        self._said: list[str] = []

    def note(self, text: str) -> None:
        if not text.startswith("loading "):
            self._said.append(text)

    def taken(self) -> tuple[str, ...]:
        said, self._said = tuple(self._said), []
        return said


class Station:
    """The bench of a worker, and the run's outbox beside it: what is computed is durable before it is told."""

    def __init__(self, order: Mapping[str, Any]) -> None:
        path = Path(order["path"])
        self._notes = _Notes()
        self._bench = Bench(Order(**{**order, "path": path}), self._notes)
        self._outbox = Outbox(path)
        self._lock = threading.Lock()  # a worker may have several threads

    def entered(self) -> tuple[Ready, Sequence[str]]:
        return self._bench.ready(), self._notes.taken()

    def do(self, task: tuple[int, bool]) -> Done:
        """Compute a unit that is not in the outbox, and put it there; or run the gate."""
        from codi_engine.core.spreading.draining import drain

        number, exact = task
        with self._lock:
            drain().check()
            if number != GATE and (known := self._outbox.receipts().get(number)) is not None:
                return Done(known, (), 0, None, ())
            result = self._bench.result(number, exact)
            if number == GATE:
                return Done(None, result.texts["gate"], result.rows, result.peak, self._notes.taken())
            unit = self._bench.units[number]
            receipt = self._outbox.put(number, unit.stage, committable(unit, result.arrays, result.texts))
            return Done(receipt, (), result.rows, result.peak, self._notes.taken())

    def close(self) -> None:
        """Give up the model and one's folder in the outbox."""
        with self._lock:
            self._outbox.close()
            del self._bench
        release_memory()
