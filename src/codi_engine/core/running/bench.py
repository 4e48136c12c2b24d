"""The bench of a worker: the model on its device and the committed run, at which units are computed; it commits nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.machine import peak_bytes, reset_peak
from codi_engine.core.progress import Progress, alone

if TYPE_CHECKING:
    import numpy as np

#: the number that stands for the gate among the units
GATE = -1


@dataclass(frozen=True)
class Order:
    """What a worker is started with; ``sharing`` counts the workers on its device.

    ``words``: the file that it writes its output to, where it is a process of our own.
    """

    experiment: dict[str, Any]
    source: str
    path: Path
    device: str
    threads: int | None
    sharing: int
    words: Path | None = None


@dataclass(frozen=True)
class Ready:
    """The model is loaded and tested: what must be the same in all workers. ``device``: where it is."""

    model: str
    data: str
    reproducible: bool
    bits: str
    peak: int | None
    inputs: Mapping[str, str] = field(default_factory=dict)
    device: str = ""


@dataclass(frozen=True)
class Result:
    """What a unit gave, the token rows it took and the peak of memory."""

    unit: int
    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, list[Any]]
    rows: int
    peak: int | None


class Bench:
    """The model on the worker's device and the committed run, read only."""

    def __init__(self, order: Order, progress: Progress) -> None:
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
        runner = Runner(prepare(experiment, plugin_manager()), order.path, progress)
        with alone():
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
        self._ready = Ready(adapter.digest, runner.plan.data.digest, runner.reproducible, runner.bits, peak_bytes(self.device), read, adapter.info.device)

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
