"""Clocks: CPU seconds of the process, wall seconds, and on a GPU the time between two events of its stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import torch

T = TypeVar("T")


@dataclass(frozen=True)
class Spent:
    """Seconds. ``gpu`` is None where no GPU computed."""

    cpu: float = 0.0
    wall: float = 0.0
    gpu: float | None = None

    @property
    def judged(self) -> float:
        """Return the seconds that ratios are made of: the GPU's where there is one, else the process's CPU time."""
        return self.cpu if self.gpu is None else self.gpu

    def plus(self, other: Spent) -> Spent:
        """Add up."""
        gpu = None if self.gpu is None else self.gpu + (other.gpu or 0.0)
        return Spent(self.cpu + other.cpu, self.wall + other.wall, gpu)

    def scaled(self, factor: float, base: Spent) -> Spent:
        """Scale everything but ``base`` by the factor."""
        gpu = None if self.gpu is None else (base.gpu or 0.0) + (self.gpu - (base.gpu or 0.0)) * factor
        return Spent(base.cpu + (self.cpu - base.cpu) * factor, base.wall + (self.wall - base.wall) * factor, gpu)


@dataclass
class Pass:
    """What one pass of a contender gave.

    ``kept``: cell → values by which contenders are compared; ``tokens``: cell → tokens, where it generates; ``factor``: all cells over
    those that were run; ``base``: spent on unedited runs, which are not scaled.
    """

    kept: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    tokens: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    factor: float = 1.0
    base: Spent = Spent()


@dataclass(frozen=True)
class Contender:
    """``run(every, greedy)`` computes every n-th cell; ``every`` is how it is timed. ``ours``: the floor is set against it.

    ``shown``: what the table says of it. ``exact``: its tokens can be compared where it samples.
    """

    name: str
    run: Callable[[int], Pass]
    every: int = 1
    ours: bool = False
    note: str = ""


def measured(device: torch.device, call: Callable[[], T]) -> tuple[T, Spent]:
    """Call and return what it gave and what it took; on a GPU the stream is waited for, before and after."""
    if device.type != "cuda":
        wall, cpu = time.perf_counter(), time.process_time()
        out = call()
        return out, Spent(time.process_time() - cpu, time.perf_counter() - wall)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    first.record()
    out = call()
    last.record()
    torch.cuda.synchronize(device)
    return out, Spent(time.process_time() - cpu, time.perf_counter() - wall, first.elapsed_time(last) / 1000)
