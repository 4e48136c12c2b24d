"""What stages of a run cost: time, token rows, memory, disk and money, whether estimated or measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

#: stages that hold a GPU
COMPUTING = ("load", "baseline", "sweep")


@dataclass(frozen=True)
class StageCost:
    """One stage. None is what nobody knows; ``cells`` counts rows of results (prompts of the baseline, edited cells).

    ``memory`` is the peak of one device; ``device_seconds`` adds up the devices that a stage holds (None: it holds one).
    """

    stage: str
    seconds: float | None = None
    rows: int | None = None
    memory: int | None = None
    disk: int | None = None
    cells: int | None = None
    device_seconds: float | None = None

    @property
    def held(self) -> float:
        """Seconds of devices."""
        return (self.seconds or 0.0) if self.device_seconds is None else self.device_seconds

    def on(self, devices: int) -> StageCost:
        """Return the cost of a stage that holds so many devices."""
        return self if devices == 1 or self.stage not in COMPUTING else replace(self, device_seconds=devices * (self.seconds or 0.0))

    def scaled(self, share: float) -> StageCost:
        """Return the cost of a share of the stage's cells."""

        def part(value: int | None) -> int | None:
            return None if value is None else round(value * share)

        seconds, held = (None if v is None else v * share for v in (self.seconds, self.device_seconds))
        return replace(self, seconds=seconds, rows=part(self.rows), disk=part(self.disk), cells=part(self.cells), device_seconds=held)


@dataclass(frozen=True)
class Costs:
    """Stages in the order in which they run, and what an hour costs.

    ``price`` is per GPU-hour on a CUDA device and per hour of the machine elsewhere; ``basis`` says where the numbers are from.
    """

    stages: list[StageCost]
    device: str = "cpu"
    price: float | None = None
    basis: str = ""
    timed_cells: int = 0
    notes: list[str] = field(default_factory=list)

    def __getitem__(self, stage: str) -> StageCost:
        return next((s for s in self.stages if s.stage == stage), StageCost(stage))

    @property
    def gpu(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def seconds(self) -> float:
        """Sum of the known times."""
        return float(sum(s.seconds for s in self.stages if s.seconds is not None))

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.stages if s.rows is not None)

    @property
    def disk(self) -> int:
        return sum(s.disk for s in self.stages if s.disk is not None)

    @property
    def memory(self) -> int | None:
        return max((s.memory for s in self.stages if s.memory is not None), default=None)

    @property
    def gpu_hours(self) -> float:
        return sum(self.gpu_hours_of(s) for s in self.stages)

    @property
    def money(self) -> float | None:
        return None if self.price is None else float(sum(self.money_of(s) or 0.0 for s in self.stages))

    @property
    def unknown(self) -> list[str]:
        """Stages without a time."""
        return [s.stage for s in self.stages if s.seconds is None]

    def gpu_hours_of(self, stage: StageCost) -> float:
        return stage.held / 3600 if self.gpu and stage.stage in COMPUTING else 0.0

    def money_of(self, stage: StageCost) -> float | None:
        """Return what a stage costs; None without a price or a time."""
        if self.price is None or stage.seconds is None:
            return None
        return self.price * (self.gpu_hours_of(stage) if self.gpu else stage.seconds / 3600)

    def total(self) -> StageCost:
        return StageCost("total", self.seconds, self.rows, self.memory, self.disk)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, totals included."""
        stages = [{**asdict(s), "gpu_hours": self.gpu_hours_of(s), "money": self.money_of(s)} for s in self.stages]
        total = {**asdict(self.total()), "gpu_hours": self.gpu_hours, "money": self.money}
        return {
            "device": self.device, "price": self.price, "basis": self.basis, "timed_cells": self.timed_cells, "stages": stages, "total": total,
            "without_estimate": self.unknown,
        }  # fmt: skip

    @staticmethod
    def from_dict(value: Mapping[str, Any]) -> Costs:
        """Read what :meth:`to_dict` wrote."""
        keys = StageCost.__dataclass_fields__
        stages = [StageCost(**{k: v for k, v in s.items() if k in keys}) for s in value.get("stages", [])]
        return Costs(stages, value.get("device", "cpu"), value.get("price"), value.get("basis", ""), value.get("timed_cells", 0))


def total_of(parts: Iterable[StageCost]) -> StageCost:
    """Add up costs of one stage (of several invocations): sums, and the largest peak."""
    out: StageCost | None = None
    for part in parts:
        if out is None:
            out = part
            continue
        memory = max((m for m in (out.memory, part.memory) if m is not None), default=None)
        seconds = None if out.seconds is None and part.seconds is None else (out.seconds or 0.0) + (part.seconds or 0.0)
        held = None if out.device_seconds is None and part.device_seconds is None else out.held + part.held
        rows, disk, cells = _sum(out.rows, part.rows), _sum(out.disk, part.disk), _sum(out.cells, part.cells)
        out = replace(out, seconds=seconds, rows=rows, memory=memory, disk=disk, cells=cells, device_seconds=held)
    return out or StageCost("")


def _sum(a: int | None, b: int | None) -> int | None:
    return None if a is None and b is None else (a or 0) + (b or 0)


# ------------------------------------------------------------------------------------------------- words


def size_text(count: float | None) -> str:
    """Return a number of bytes in words."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def time_text(seconds: float | None) -> str:
    """Return a time in words."""
    if seconds is None:
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def money_text(money: float | None) -> str:
    """Return money; small amounts keep two digits."""
    if money is None:
        return "–"
    return f"{money:.2f}" if money >= 0.1 or money == 0 else f"{money:.2g}"
