"""``events.jsonl``: what happened to a run, one JSON object per line; for people and for other programs, never for the run itself.

It is no part of what the ledger vouches for: times differ between equal runs. Lines are appended whole; a line that a crash cut off
is ended by the next invocation and passed over by :func:`read_events`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"
#: lines about units, and means in each of them: an invocation's part of the file stays below some MB
UNIT_LINES, MEANS = 1_000, 100


def now() -> str:
    """Return the time, UTC, in milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class EventLog:
    """Appends to a run's log.

    Parameters
    ----------
    run: the run's directory, which exists
    note: told once when the log cannot be written; the run goes on
    """

    def __init__(self, run: Path, note: Callable[[str], None]) -> None:
        self.path, self._note = run / EVENTS, note
        self._broken = False
        self._units = self._computed = 0
        self._begun = False

    def write(self, event: str, **facts: Any) -> None:
        """Append a line: ``time``, ``event`` and the facts."""
        if self._broken:
            return
        line = json.dumps({"time": now(), "event": event, **facts}, default=str, separators=(",", ":"))
        try:
            self._append((line + "\n").encode())
        except OSError as error:
            self._broken = True
            self._note(f"{self.path}: cannot be written: {error.strerror or error}; the run goes on without it")

    def unit(self, units: int, last: bool, means: Mapping[str, float], **facts: Any) -> None:
        """Append a line about a committed unit; of very many units every so manieth, and the last."""
        stride = math.ceil(units / UNIT_LINES) or 1
        if self._units % stride == 0 or last:
            self.write("unit", units=units, **facts, means=dict(list(means.items())[:MEANS]))
        self._units += 1

    def computed(self, units: int, **facts: Any) -> None:
        """Append a line about a unit that this process has computed and another may commit; of very many every so manieth."""
        if self._computed % (math.ceil(units / UNIT_LINES) or 1) == 0:
            self.write("computed", units=units, **facts)
        self._computed += 1

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if not self._begun and _torn(descriptor):
                data = b"\n" + data
            self._begun = True
            os.write(descriptor, data)  # one call: a reader sees the whole line or nothing of it
        finally:
            os.close(descriptor)


def _torn(descriptor: int) -> bool:
    """True when the file ends within a line."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not size:
        return False
    os.lseek(descriptor, size - 1, os.SEEK_SET)
    return os.read(descriptor, 1) != b"\n"


def read_events(run: str | Path) -> list[dict[str, Any]]:
    """Return a run's events, oldest first; nothing for runs without a log. Lines that are no JSON object are passed over."""
    return list(_events(Path(run) / EVENTS))


def _events(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError:
        return
    for line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and "event" in value:
            yield value
