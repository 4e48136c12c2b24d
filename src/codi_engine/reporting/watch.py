"""What the live view says of a run, second by second; a run that is being written is not disturbed, and nothing is read twice in vain."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

from codi_engine.core.errors import UserError
from codi_engine.core.planning.costs import size_text, time_text
from codi_engine.core.watching.eventlog import EVENTS
from codi_engine.core.watching.status import LATEST, SHOWN, Status, status_of
from codi_engine.reporting.text import visible
from codi_engine.store.layout import LEDGER, LOCK, PROVENANCE, RESULTS
from codi_engine.store.lease import written_by

#: bytes of the end of a run's log that are read
_TAIL = 64_000
#: seconds over which cells per second are measured here, where the run has not recorded them yet
_WINDOW = 20.0


class Watch:
    """A run's state for the live view. Safe to be asked by several threads; files are read only when they have changed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._seen: tuple[Any, ...] = ()
        self._status: Status | None = None
        self._problem = ""
        self._events: list[str] = []
        self._counted: deque[tuple[float, int]] = deque()

    def version(self) -> str:
        """Return a text that changes when the run's committed cells, results or notes do."""
        parts: list[Any] = [_stamp(self.path / LEDGER), _stamp(self.path / "notes.md")]
        results = self.path / RESULTS
        if results.is_dir():
            parts += [(p.name, _stamp(p / "result.json")) for p in sorted(results.iterdir()) if p.is_dir()]
        return format(hash(json.dumps(parts)) & 0xFFFFFFFFFFFF, "x")

    def read(self) -> dict[str, Any]:
        """Return everything that the live view shows, as plain values."""
        with self._lock:
            self._refresh()
            said: dict[str, Any] = {"version": self.version(), "path": str(self.path), "events": self._events}
            if self._status is None:
                return {**said, "state": "damaged" if self._problem else "waiting", "problem": self._problem, "cells": 0, "stages": []}
            return {**said, **self._of(self._status)}

    def _refresh(self) -> None:
        stamps = [_stamp(self.path / name) for name in (LEDGER, PROVENANCE, LOCK, EVENTS)]
        seen = (*stamps, written_by(self.path))
        if seen == self._seen:
            return
        try:
            self._status, self._problem = (status_of(self.path), "") if (self.path / LEDGER).exists() else (None, "")
        except UserError as error:
            self._status, self._problem = None, visible(error, 500)
        self._seen, self._events = seen, _told(self.path / EVENTS)

    def _of(self, status: Status) -> dict[str, Any]:
        self._counted.append((time.monotonic(), status.cells))
        while len(self._counted) > 2 and self._counted[0][0] < time.monotonic() - _WINDOW:
            self._counted.popleft()
        stages = [
            {
                "stage": s.stage, "cells": s.cells, "planned": s.planned_cells, "units": s.units, "planned_units": s.planned_units,
                "rate": s.rate, "left": "" if s.left is None else time_text(s.left),
            }
            for s in status.stages
        ]  # fmt: skip
        units, planned = sum(s.units for s in status.stages), sum(s.planned_units for s in status.stages)
        peak = max((s.memory for s in status.actual.stages if s.memory is not None), default=None)
        now = _resident(status.holder)
        memory = [f"{size_text(now)} now"] if now else []
        memory += [f"{size_text(peak)} at most"] if peak else []
        return {
            "state": status.state, "name": visible(status.name, 120), "hypothesis": visible(status.hypothesis, 600), "share": status.share,
            "cells": status.cells, "stages": stages, "rate": self._rate() if status.state == "running" else None,
            "unit": f"unit {min(units + 1, planned):,} of {planned:,}" if status.state == "running" else f"{units:,} of {planned:,} units",
            "left": "" if status.seconds_left is None or status.whole else time_text(status.seconds_left),
            "memory": ", ".join(memory), "disk": size_text(status.bytes), "problem": "",
            "device": visible(status.actual.device, 60) if status.invocations else "", "finished": status.finished or "",
            "commit": None if status.last_commit is None else max(time.time() - status.last_commit, 0.0),
        }  # fmt: skip

    def _rate(self) -> float | None:
        """Return cells per second of the last seconds, as seen from here."""
        (begun, first), (ended, last) = self._counted[0], self._counted[-1]
        return (last - first) / (ended - begun) if last > first and ended - begun > 1.0 else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _resident(owner: str | None) -> int | None:
    """Return the memory of the process that writes the run, where it is on this machine."""
    host, _, number = (owner or "").rpartition(" pid ")
    if host != socket.gethostname() or not number.isdigit():
        return None
    import psutil

    try:
        return int(psutil.Process(int(number)).memory_info().rss)
    except psutil.Error:
        return None


def _told(path: Path) -> list[str]:
    """Return the last warnings, pauses and failures of a run's log; nothing where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL, 0))
            lines = file.read().split(b"\n")
    except OSError:
        return []
    found = []
    for line in lines:
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and str(value.get("event", "")) in SHOWN:
            text = value.get("message") or value.get("text") or ", ".join(f"{k} {v}" for k, v in value.items() if k not in ("event", "time"))
            found.append(visible(f"{value.get('time', '')} {value['event']}: {text}".strip(), 300))
    return found[-LATEST:]
