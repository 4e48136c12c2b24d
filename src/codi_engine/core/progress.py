"""What a running experiment tells its surroundings, and how far along that is."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

#: seconds over which a rate is taken: long enough to be calm, short enough to follow a change
WINDOW = 60.0


class Progress:
    """Told of stages, of finished units of work, and of things worth a note. This one says nothing."""

    def start(self, stage: str, total: int, unit: str) -> None:
        """Begin a stage of ``total`` units (``cells``, ``prompts``, ``B``); without a unit, nobody knows how much there is to do."""

    def at(self, where: str) -> None:
        """Say what is being worked on (``unit 12 of 40``)."""

    def advance(self, count: int) -> None:
        """Report that ``count`` more are done."""

    def note(self, text: str) -> None:
        """Say something in passing."""

    def finish(self) -> None:
        """End the stage."""


#: how many who show progress of another kind, or none, do so now
_alone = 0


@contextmanager
def alone() -> Iterator[None]:
    """Let libraries show no bars of their own meanwhile, in any thread."""
    global _alone
    _alone += 1
    try:
        yield
    finally:
        _alone -= 1


def bars_welcome() -> bool:
    """Say whether a library may show a bar of its own: to a person at a terminal who did not ask for silence."""
    return not _alone and sys.stderr is not None and sys.stderr.isatty()


class Meter:
    """How far a stage is, how fast, how long it will still take, and what memory it takes.

    Attributes
    ----------
    stage, unit, total: as :meth:`Progress.start` was told
    done: so far
    where: what is being worked on
    """

    def __init__(self, stage: str, total: int, unit: str) -> None:
        self.stage, self.total, self.unit, self.done, self.where = stage, total, unit, 0, ""
        self.begun = time.monotonic()
        self._seen: deque[tuple[float, int]] = deque([(self.begun, 0)])

    def advance(self, count: int) -> None:
        """Count what is done."""
        now = time.monotonic()
        self.done += count
        self._seen.append((now, self.done))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW:
            self._seen.popleft()

    @property
    def seconds(self) -> float:
        """Time since the stage began."""
        return time.monotonic() - self.begun

    @property
    def rate(self) -> float:
        """Units per second over the last :data:`WINDOW` seconds; 0 before the first."""
        (begun, first), (_, last) = self._seen[0], self._seen[-1]
        return (last - first) / max(time.monotonic() - begun, 1e-9)

    @property
    def left(self) -> float | None:
        """Seconds that it will still take; None before anything is done."""
        return max(self.total - self.done, 0) / self.rate if self.rate and self.total else None

    def counted(self) -> str:
        """Say how much is done: ``12 of 40 cells``, or ``1.20 of 30.00 GB``."""
        if not self.total:
            return f"{self.done:,} {self.unit}" if self.done else ""
        if self.unit == "B":
            scale, unit = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
            return f"{self.done / scale:.2f} of {self.total / scale:.2f} {unit}"
        return f"{self.done:,} of {self.total:,} {self.unit}"

    def speed(self) -> str:
        """Say the rate: ``262.3 cells/s``; empty before anything is done."""
        if not self.rate:
            return ""
        if self.unit == "B":
            return f"{self.rate / 1e9:.2f} GB/s" if self.rate >= 1e8 else f"{self.rate / 1e6:.1f} MB/s"
        return f"{self.rate:,.1f} {self.unit}/s"

    def remaining(self) -> str:
        """Say the time left: ``0:04:10 left``; empty before it is known."""
        return "" if self.left is None else f"{clock(self.left)} left"

    def line(self) -> str:
        """Say everything in one line, as it stands in a log."""
        parts = [self.counted(), self.speed(), self.remaining(), self.where, memory_text()]
        return f"{self.stage}: " + ", ".join(p for p in parts if p)


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds as ``1:02:03``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def memory_text() -> str:
    """Say what this process and its workers hold: ``812 MB``, and on the GPU where torch uses one."""
    held = _resident_about(int(time.monotonic()))
    text = f"{held / 1e9:.1f} GB" if held >= 1e9 else f"{held / 1e6:.0f} MB"
    on_device = _on_device()
    return text + (f" + {on_device / 1e9:.1f} GB GPU" if on_device else "")


@lru_cache(1)
def _resident_about(second: int) -> int:
    """Return :func:`resident` once a second: looking for children goes through all processes of the machine."""
    return resident()


def resident() -> int:
    """Return the bytes that this process and its children hold in memory."""
    import psutil

    try:
        me = psutil.Process()
        return sum(_rss(p) for p in [me, *me.children(recursive=True)])
    except psutil.Error:
        return 0


def _rss(process: object) -> int:
    import psutil

    try:
        return int(process.memory_info().rss)  # type: ignore[attr-defined]
    except psutil.Error:  # it has ended meanwhile
        return 0


def _on_device() -> int:
    """Return the bytes that this process holds on GPUs; torch is not imported for it."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count()))
