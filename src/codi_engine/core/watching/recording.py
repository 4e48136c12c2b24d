"""What a run took, stage by stage and invocation by invocation, beside what was estimated: ``cost`` in ``provenance.json``."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.costs import Costs, StageCost, total_of
from codi_engine.core.planning.machine import Preparing, peak_bytes, reset_peak
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import LEDGER
from codi_engine.store.lease import hold
from codi_engine.store.provenance import read_provenance, write_provenance

if TYPE_CHECKING:
    from codi_engine.store.writer import RunWriter

KEY = "cost"
#: seconds between two writes while units are committed
EVERY = 2.0
#: invocations that are kept apart; older ones are added up
KEPT = 50


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def gone_back(provenance: Mapping[str, Any]) -> str:
    """Say that this machine's clock stands before times that a run has recorded; empty where it does not."""
    times = [str(provenance.get("started") or ""), *(str(i.get("updated") or "") for i in invocations_of(provenance))]
    last = max(times, default="")
    if last <= now():  # ISO 8601 in UTC sorts as text
        return ""
    return f"the clock went back: this run has records of {last}, and it is {now()} here; durations are measured by another clock and hold"


class Recorder:
    """Times the stages of one invocation; they follow one another, each begins where the last one ends.

    Parameters
    ----------
    device: where the model is
    begun: when the invocation began; what lies before the first stage belongs to ``load``
    price: kept with the record

    Attributes
    ----------
    rows: token rows so far
    peak: most memory of a device since it was asked last, or since the stage began
    devices: how many devices the run holds
    """

    def __init__(self, device: str, begun: Preparing | None = None, price: float | None = None) -> None:
        self.device, self.price, self.devices = device, price, 1
        created = time.perf_counter()
        self.prepared_in, self.slowed = (0.0, 1.0) if begun is None else begun.taken()
        self.estimate: Costs | None = None
        self.rows: Callable[[], int] = lambda: 0
        self.peak: Callable[[], int | None] = lambda: peak_bytes(self.device)
        self._id, self._started, self._written = secrets.token_hex(4), now(), created
        self._stages: dict[str, StageCost] = {}
        self._planned: dict[str, int] = {}
        self._stage, self._since, self._rows = "load", created - self.prepared_in, 0

    def expect(self, estimate: Costs, planned: Mapping[str, tuple[int, int]]) -> None:
        """Take the whole plan's estimate and, per stage, how many of its cells this invocation is to compute: (these, all)."""
        self._planned = {stage: count for stage, (count, _) in planned.items()}
        shares = {stage: count / whole if whole else 0.0 for stage, (count, whole) in planned.items()}
        stages = [s.scaled(shares[s.stage]) if s.stage in shares else s for s in estimate.stages]
        self.estimate = Costs(stages, estimate.device, estimate.price, estimate.basis, estimate.timed_cells)

    @property
    def disk_left(self) -> int:
        """Bytes that this invocation is still to write, as far as they were estimated."""
        written = sum(s.disk or 0 for s in self._stages.values())
        return 0 if self.estimate is None else max(self.estimate.disk - written, 0)

    def begin(self, stage: str) -> None:
        """End the stage that is timed, and begin another."""
        self._take()
        self._stage = stage
        reset_peak(self.device)

    def end(self) -> None:
        """End the stage that is timed; time until the next one belongs to none."""
        self._take()
        self._stage = ""

    def committed(self, cells: int, disk: int) -> None:
        """A unit is durable."""
        self._take(cells, disk)

    def _take(self, cells: int = 0, disk: int = 0) -> None:
        at, rows = time.perf_counter(), self.rows()
        if self._stage:
            part = StageCost(self._stage, at - self._since, rows - self._rows, self.peak(), disk, cells).on(self.devices)
            old = self._stages.get(self._stage)
            self._stages[self._stage] = part if old is None else total_of([old, part])
        self._since, self._rows = at, rows

    # --------------------------------------------------------------------------------------------- on disk

    def record(self) -> dict[str, Any]:
        """Return this invocation as plain values."""
        stages = {name: {k: v for k, v in asdict(s).items() if k != "stage"} for name, s in self._stages.items()}
        for name, count in self._planned.items():
            if name in stages:
                stages[name]["planned"] = count
        estimate = None if self.estimate is None else self.estimate.to_dict()
        return {"started": self._started, "updated": now(), "device": self.device, "price": self.price, "stages": stages, "estimate": estimate}

    def into(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """Return provenance with this invocation in place of its earlier state."""
        known = [i for i in provenance.get(KEY, {}).get("invocations", []) if i.get("id") != self._id]
        while len(known) >= KEPT:
            known[:2] = [_merged(known[0], known[1])]
        return {**provenance, KEY: {"invocations": [*known, {"id": self._id, **self.record()}]}}

    def write(self, writer: RunWriter, at_once: bool = False) -> None:
        """Bring the run's provenance up to date, not more often than every :data:`EVERY` seconds."""
        if at_once or time.perf_counter() - self._written >= EVERY:
            writer.set_provenance(self.into(writer.provenance))
            self._written = time.perf_counter()

    def save(self, path: Path) -> None:
        """As :meth:`write`, when the run's writer is closed; nothing is written to a run that was refused or is another process'."""
        if self.estimate is None or not os.path.exists(path / LEDGER):  # False too where it may not be looked at
            return
        try:
            lock = hold(path)
        except (StoreError, OSError):
            return
        try:
            write_provenance(path, self.into(read_provenance(path)))
        except (StoreError, OSError):
            return  # a run must not fail for its bookkeeping
        finally:
            lock.release()


def _merged(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """Add up two invocations."""
    stages: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([*a["stages"], *b["stages"]]):
        parts = [i["stages"][name] for i in (a, b) if name in i["stages"]]
        stages[name] = {k: v for k, v in asdict(total_of([_stage(name, p) for p in parts])).items() if k != "stage"}
    done = [_done_share(i) for i in (a, b)]
    estimate = _added(done, a.get("device", "cpu"), b.get("price")).to_dict()
    return {**a, "updated": b["updated"], "price": b.get("price"), "stages": stages, "estimate": estimate}


def _stage(name: str, value: Mapping[str, Any]) -> StageCost:
    return StageCost(name, **{k: v for k, v in value.items() if k in StageCost.__dataclass_fields__})


def _done_share(invocation: Mapping[str, Any]) -> list[StageCost]:
    """Return the estimate of what an invocation did: of a stage that was stopped, the share of its cells."""
    out = []
    for stage in Costs.from_dict(invocation.get("estimate") or {}).stages:
        done = invocation["stages"].get(stage.stage)
        if done is None:
            continue
        planned = done.get("planned")
        out.append(stage.scaled((done.get("cells") or 0) / planned) if planned else stage)
    return out


def _added(parts: Sequence[Sequence[StageCost]], device: str, price: float | None) -> Costs:
    stages: dict[str, list[StageCost]] = {}
    for part in parts:
        for stage in part:
            stages.setdefault(stage.stage, []).append(stage)
    return Costs([total_of(s) for s in stages.values()], device, price)


def invocations_of(provenance: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what was recorded of a run, oldest first; nothing for runs that were imported or made before."""
    found = provenance.get(KEY)
    return list(found.get("invocations", [])) if isinstance(found, dict) else []


def actual_of(provenance: Mapping[str, Any]) -> Costs:
    """Return what the run took over all its invocations."""
    known = invocations_of(provenance)
    parts = [[_stage(name, s) for name, s in i["stages"].items()] for i in known]
    return _added(parts, *_where(known))


def estimate_of(provenance: Mapping[str, Any]) -> Costs:
    """Return what had been estimated for what the run's invocations did."""
    known = invocations_of(provenance)
    return _added([_done_share(i) for i in known], *_where(known))


def _where(known: Sequence[Mapping[str, Any]]) -> tuple[str, float | None]:
    return (known[-1].get("device", "cpu"), known[-1].get("price")) if known else ("cpu", None)
