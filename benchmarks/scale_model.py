"""The model of cost that `benchmarks/scale.py` uses: arithmetic of an 8B model, a formula for a run, and its events one by one.

Nothing is measured here. What is assumed of cards and file systems stands in the constants below; what the engine takes comes
from `scale.py constants`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

#: cells of a unit; features and tokens of a trial that are kept
CELLS, FEATURES, TOKENS = 256, 2_787, 30
#: parameters, layers and width of the model; bytes of its weights in bf16
PARAMETERS, LAYERS, WIDTH, WEIGHTS = 8.03e9, 32, 4096, 16.06e9
#: assumed: tokens of a prompt and written by a trial; operations a second that a card reaches, and bytes a second of its memory
PROMPT, WRITTEN, RATES, MEMORY = 100, 100, {"low": 60e12, "middle": 160e12, "high": 300e12}, 2.0e12
#: assumed: cards of a node; a shared file system's operations and bytes a second; seconds to start a process, to hash a byte of weights
NODE, SERVED, START, HASH = 8, (20e3, 20e9), 30.0, 1e-9
#: trials as the study counts them; what has to be computed: unedited ones once, not once for each feature
COUNTED, EDITED, UNEDITED, MOST = 501_660, 334_440, 60, 10_000_000
#: units for each worker that are handed out before those that are not committed yet, where results wait in memory (`core/running/workers.py`)
AHEAD = 3


def token(context: float) -> float:
    """Return the operations of one token after so many."""
    return 2 * PARAMETERS + 4 * LAYERS * WIDTH * context + 2 * WIDTH * FEATURES


def unit_seconds(rate: float, cells: int = CELLS) -> float:
    """Return what a unit of trials takes: the prompt is shared, each step is arithmetic of all rows, or one reading of the weights."""
    return sum(max(cells * token(PROMPT + i) / rate, WEIGHTS / MEMORY) for i in range(WRITTEN))


def card_hours() -> list[tuple[str, Mapping[str, float]]]:
    """Return (how, rate → GPU-hours) of the whole study."""
    whole = sum(PROMPT + i for i in range(WRITTEN)) + PROMPT + WRITTEN  # every token with all before it, and once more to read the codes
    again = {n: COUNTED * whole * token(PROMPT + WRITTEN / 2) / r / 3600 for n, r in RATES.items()}
    cached = {n: COUNTED * (WRITTEN * WEIGHTS / MEMORY + (2 * PROMPT + WRITTEN) * token(PROMPT) / r) / 3600 for n, r in RATES.items()}
    ours = {n: (EDITED + UNEDITED) / CELLS * unit_seconds(r) / 3600 for n, r in RATES.items()}
    counted = {n: h * COUNTED / (EDITED + UNEDITED) for n, h in ours.items()}
    return [
        ("one at a time, no cache (as the study did)", again),
        ("one at a time, cached", cached),
        ("batched, prompt shared", counted),
        ("and unedited trials once", ours),
    ]


# ---------------------------------------------------------------------------------------------------------- the model


@dataclass(frozen=True)
class Scenario:
    """Workers and units in numbers; times in seconds.

    ``sigma``: of a unit's time, lognormal; ``slow``: share of units that take ``slower`` times as long. ``mtbf``: of one worker;
    ``drained``: share of its ends that are announced, so that it finishes its unit. ``restart``: until the next one computes.
    ``window``: a unit is handed out when at most so many before it are not committed (None: any). ``driver``, ``put``: what a
    unit takes the one who commits, and its worker, to write. ``operations``, ``bytes``: of a unit, on a file system that
    serves so many a second (None: without end).
    """

    workers: int
    units: Sequence[int]
    unit: float
    sigma: float = 0.2
    slow: float = 0.005
    slower: float = 8.0
    mtbf: float = 8 * 3600.0
    drained: float = 0.5
    restart: float = 180.0
    load: float = 180.0
    driver: float = 0.01
    put: float = 0.0
    window: int | None = None
    operations: float = 0.0
    bytes: float = 0.0
    served: tuple[float, float] | None = None

    @property
    def mean(self) -> float:
        """Mean seconds of a unit, stragglers included."""
        return self.unit * (1 + self.slow * (self.slower - 1))

    @property
    def store(self) -> float:
        """Seconds of the shared file system for a unit."""
        return 0.0 if self.served is None else self.operations / self.served[0] + self.bytes / self.served[1]


def formula(s: Scenario) -> dict[str, Any]:
    """Return what a run takes, from rates alone: the busiest of workers, driver and file system, and a straggler at each stage's end."""
    busy = s.mean + s.put
    lost = (1 - s.drained) * busy / 2 + s.restart
    workers, driver, store = (sum(s.units) * each for each in (busy * (1 + lost / s.mtbf) / s.workers, s.driver, s.store))
    wall, recomputed = s.load, 0.0
    for units in s.units:
        typical = s.unit * math.exp(s.sigma * math.sqrt(2 * math.log(max(min(s.workers, units), 2))))
        straggler = 1 - (1 - s.slow) ** min(s.workers, units)  # among those that are computed last
        last = straggler * s.slower * s.unit + (1 - straggler) * typical
        rounds = max(units * busy * (1 + lost / s.mtbf) / s.workers, s.unit)
        if s.window is not None:  # every window waits for its slowest
            rounds = max(rounds, units / s.window * last)
        wall += max(rounds + last - s.unit, units * s.driver, units * s.store)
        recomputed += units * busy / s.mtbf * (1 - s.drained)
    what = max((workers, "workers"), (driver, "driver"), (store, "file system"))[1]
    return {"wall": wall, "driver": driver, "store": store, "recomputed": recomputed, "busiest": what,
            "efficiency": sum(s.units) * s.mean / (s.workers * wall)}  # fmt: skip


class Events:
    """Workers that draw units from a driver, in virtual time; ``commit`` and ``put`` say how long a unit took, and may do it."""

    def __init__(self, s: Scenario, commit: Callable[[int], float], put: Callable[[int], float], seed: int = 0) -> None:
        self.s, self._commit, self._put = s, commit, put
        self.rng = np.random.default_rng(seed)
        self.events: list[tuple[float, int, str, int, int]] = []
        self.count = self.deaths = self.recomputed = 0
        self.driver_free = self.store_free = self.driver_busy = 0.0
        self.next = 0  # unit to be committed
        self.arrived: set[int] = set()
        self.dies = s.load + self.rng.exponential(s.mtbf, s.workers)

    def run(self) -> dict[str, Any]:
        s, first = self.s, 0
        idle = dict.fromkeys(range(s.workers))
        at = s.load
        for units in s.units:
            self.queue = list(range(first, first + units))
            first += units
            self._hand_out(at, idle)
            while self.next < first:
                at, _, kind, worker, unit = heapq.heappop(self.events)
                if kind == "computed":
                    self._keep(at, worker, unit)
                elif kind == "made":
                    self.arrived.add(unit)
                    self._go_on(at, worker)
                elif kind == "dead":
                    heapq.heappush(self.queue, unit)
                    self._go_on(at, worker)
                elif kind == "free":
                    idle[worker] = None
                self._take(at)
                self._hand_out(at, idle)
            at = self.driver_free
        return {"wall": at, "driver": self.driver_busy, "recomputed": self.recomputed, "deaths": self.deaths,
                "efficiency": first * s.mean / (s.workers * at)}  # fmt: skip

    def _say(self, at: float, kind: str, worker: int, unit: int = -1) -> None:
        self.count += 1
        heapq.heappush(self.events, (at, self.count, kind, worker, unit))

    def _hand_out(self, at: float, idle: dict[int, None]) -> None:
        while idle and self.queue and (self.s.window is None or self.queue[0] < self.next + self.s.window):
            self._begin(at, idle.popitem()[0], heapq.heappop(self.queue))

    def _begin(self, at: float, worker: int, unit: int) -> None:
        """Let a worker compute a unit, or end before it has; one that ended while it had nothing to do is replaced first."""
        s = self.s
        if self.dies[worker] <= at:
            heapq.heappush(self.queue, unit)
            self._go_on(at, worker, self.dies[worker])
            return
        seconds = s.unit * math.exp(s.sigma * self.rng.standard_normal() - s.sigma**2 / 2) * (s.slower if self.rng.random() < s.slow else 1.0)
        if self.dies[worker] > at + seconds or self.rng.random() < s.drained:
            self._say(at + seconds, "computed", worker, unit)
            return
        self.recomputed += 1
        self._say(self.dies[worker], "dead", worker, unit)

    def _keep(self, at: float, worker: int, unit: int) -> None:
        """Let a worker write what it computed: it arrives when it is durable."""
        end = at + self._put(unit)
        if self.s.served is not None:
            self.store_free = max(self.store_free, at) + self.s.store
            end = max(end, self.store_free)
        self._say(end, "made", worker, unit)

    def _go_on(self, at: float, worker: int, ended: float = math.inf) -> None:
        """Let a worker ask for the next unit, or another one take its place."""
        if self.dies[worker] <= at:
            self.deaths += 1
            at = max(at, min(at, ended) + self.s.restart)
            self.dies[worker] = at + self.rng.exponential(self.s.mtbf)
        self._say(at, "free", worker)

    def _take(self, at: float) -> None:
        """Commit what has arrived, in the order of units."""
        while self.next in self.arrived and self.driver_free <= at:
            self.arrived.remove(self.next)
            seconds = self._commit(self.next)
            self.driver_busy += seconds
            self.driver_free = at + seconds
            self.next += 1
            self._say(self.driver_free, "driver", -1)


def scenario(times: int, workers: int, u: Mapping[str, float], outbox: bool, cells: int = CELLS) -> list[Scenario]:
    """Return the runs that the study becomes, ``times`` as large; a run has at most 10 million cells."""
    runs = math.ceil(times * EDITED / MOST)
    units = [math.ceil(times * UNEDITED / cells / runs), math.ceil(times * EDITED / cells / runs)]
    prepared = START + WEIGHTS * HASH + 2 * u["cell_s"] * times * EDITED / runs
    load, restart = prepared + math.ceil(workers / NODE) * WEIGHTS / SERVED[1], prepared + WEIGHTS / SERVED[1]
    return [
        Scenario(
            workers, units, unit_seconds(RATES["middle"], cells), load=load, restart=restart, window=None if outbox else AHEAD * workers, driver=u["driver_s"],
            put=u["worker_s"], operations=u["operations"], bytes=u["bytes"], served=SERVED,
        )
    ] * runs  # fmt: skip
