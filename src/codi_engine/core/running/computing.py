"""Who computes the units of a run: this process, or one process for each device (``core/running/workers.py``)."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codi_engine.core.running.bank import Bank
from codi_engine.core.running.gate import run_gate, verdicts
from codi_engine.core.running.generations import Unit
from codi_engine.core.running.job import Job
from codi_engine.core.running.sweeping import editor_for, run_sweep
from codi_engine.core.running.unedited import run_unedited

if TYPE_CHECKING:
    from codi_engine.core.rollout.editing import Editor
    from codi_engine.store.outbox import Receipt


class Made(NamedTuple):
    """What a unit gave; with a ``receipt`` it waits in the run's outbox, and the arrays and texts are left out."""

    unit: Unit
    arrays: Mapping[str, np.ndarray]
    texts: Mapping[str, list[Any]]
    receipt: Receipt | None = None


class Computer:
    """Computes units of one job; edited ones read the unedited ones that are committed when the first of them begins."""

    def __init__(self, job: Job, units: Sequence[Unit]) -> None:
        self.job, self.units = job, units

    @cached_property
    def _bank(self) -> Bank:
        return Bank(self.job, self.units)

    @cached_property
    def _editor(self) -> Editor:
        return editor_for(self.job, self._bank, natural=self.job.plan.natural)

    @property
    def forwarded(self) -> int:
        """Token rows that went through the model so far."""
        return self.job.forwarded + self.job.rollout.fed

    def gate(self, exact: bool) -> list[dict[str, Any]]:
        """Check every condition on a few examples; return what was found, one record per condition."""
        return verdicts(run_gate(self.job, self._bank, exact))

    def compute(self, unit: Unit) -> Made:
        """Return the arrays and texts of a unit."""
        if unit.stage == "sweep":
            return Made(unit, *run_sweep(self.job, unit, self._bank, self._editor))
        return Made(unit, *run_unedited(self.job, unit))


class Hands(AbstractContextManager["Hands"], ABC):
    """What the runner hands its units to."""

    @abstractmethod
    def gate(self) -> list[dict[str, Any]]:
        """Check every condition on a few examples; all unedited units are committed. Return one record per condition.

        Raises
        ------
        GateError: an edit does not do what the plan says
        """

    @abstractmethod
    def results(self, units: Sequence[Unit]) -> Iterator[Made]:
        """Compute units of one stage and yield them in their order."""

    def __exit__(self, *_: object) -> None:
        return None


class Here(Hands):
    """One device: units are computed one after the other, in this process."""

    def __init__(self, computer: Computer, exact: bool) -> None:
        self.computer, self.exact = computer, exact

    def gate(self) -> list[dict[str, Any]]:
        return self.computer.gate(self.exact)

    def results(self, units: Sequence[Unit]) -> Iterator[Made]:
        for unit in units:
            yield self.computer.compute(unit)


def in_order(units: Sequence[Unit], waiting: Mapping[int, Receipt], hands: Hands) -> Iterator[Made]:
    """Yield units of one stage in their order: those that wait in the outbox as they are, the others computed."""
    computed = iter(hands.results([unit for unit in units if unit.number not in waiting]))
    for unit in units:
        yield Made(unit, {}, {}, waiting[unit.number]) if unit.number in waiting else next(computed)


def release_memory() -> None:
    """Give back what the model took that planned the run: its device belongs to a worker now."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
