"""Telling plugins, trackers and the run's own log what happens to a run; none of them may stop it or be waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.contributed import said
from codi_engine.core.errors import CodiEngineError, Paused
from codi_engine.core.plugin import AnalysisResult, Event, Tracker
from codi_engine.core.watching.eventlog import EventLog, now
from codi_engine.core.watching.observer import PATIENCE, SHORT, Observer
from codi_engine.core.watching.tally import Tally
from codi_engine.store.errors import StoreError
from codi_engine.store.shown import named

if TYPE_CHECKING:
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.watching.disk import DiskWatch


class Lifecycle:
    """Calls the lifecycle hooks, the experiment's trackers and the log; what fails is named once and the run goes on.

    Parameters
    ----------
    path: the run's directory
    note: tells the user one line

    Attributes
    ----------
    disk: asked at commits whether there is room left
    quiet: trackers are told nothing: several processes compute the run, and would tell several stories
    """

    def __init__(self, plugins: Plugins, trackers: Sequence[Tracker[Any]], path: Path, note: Callable[[str], None]) -> None:
        self.plugins, self.path, self.note = plugins, path, note
        self.observers = [Observer(t, f"tracker {_called(plugins, t)}", note) for t in trackers]
        self.disk: DiskWatch | None = None
        self._tally = Tally()
        self._log: EventLog | None = None
        self._experiment: Mapping[str, Any] = {}
        self._early: list[Event] = []
        self._told: set[str] = set()
        self._failed: set[tuple[str, str]] = set()
        self._over = self.quiet = False

    # --------------------------------------------------------------------------------------------- moments

    def planned(self, experiment: Mapping[str, Any], cells: int, units: int, tally: Tally | None = None) -> None:
        """The plan stands; the run's directory is there. ``tally``: what is committed already."""
        from codi_engine import __version__

        self._experiment, self._tally = experiment, tally or Tally(units, cells)
        self._log = EventLog(self.path, self.note)
        known = self._tally
        self._log.write("planned", version=__version__, cells=cells, units=units, planned_cells=known.planned, committed_cells=known.cells)
        self._tell("run_planned", path=self.path, experiment=self._experiment, cells=cells, units=units)

    def started(self) -> None:
        """The model is loaded, the first unit begins."""
        self._tally.begin()
        self._write("started", committed_cells=self._tally.cells, planned_cells=self._tally.planned)
        self._tell("run_started", path=self.path)
        self._trackers("started", self.path, self._experiment)
        if 0 < self._tally.cells < self._tally.planned:
            self.event("resumed", f"goes on at {self._tally.cells:,} of {self._tally.planned:,} cells", cells=self._tally.cells)
        early, self._early = self._early, []
        for event in early:
            self._send(event)

    def committed(self, unit: int, units: int, cells: int, arrays: Mapping[str, np.ndarray], conditions: Sequence[Any], stage: str = "sweep") -> None:
        """A unit is durable. ``arrays``: what it stored; ``conditions``: their names by code; ``cells``: none of them are its ``sources``."""
        self._tally.add(0 if stage == "sources" else cells, arrays)
        self._tell("unit_committed", path=self.path, unit=unit, units=units, cells=cells)
        known = self._tally.aggregates(conditions)
        self._log_unit(unit, units, stage, known)
        self._trackers("committed", unit, units, known)
        self.look()

    def computed(self, unit: int, units: int, shard: str) -> None:
        """A unit is durable in the outbox; whoever commits it tells of it."""
        if self._log is not None:
            self._log.computed(units, unit=unit, shard=shard)
        self.look()

    def caught_up(self, cells: int, units: int) -> None:
        """Count what others have committed; what they measured is not known here."""
        self._tally.cells, self._tally.done, self._tally.readable = cells, units, False

    def finishes(self) -> None:
        """This process finishes the run that several have computed: from here on trackers are told."""
        self.quiet = False
        self._trackers("started", self.path, self._experiment)

    def leaves(self, text: str) -> None:
        """This process has done its share of the run."""
        self._write("shard", text=text)
        self._end(SHORT)

    def look(self) -> None:
        """Say what is new of the disk."""
        for event in self.disk.look() if self.disk is not None else ():
            self.note(event.text)
            self.event(event.kind, event.text, **event.data)

    def analysed(self, name: str, result: AnalysisResult, folder: Path) -> None:
        """An analysis has written its results."""
        self._write("analysed", name=name, folder=named(str(folder)))
        self._tell("analysis_finished", path=self.path, name=name, result=result)
        self._trackers("analysed", name, folder)

    def finished(self, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        """Everything is committed and analysed; waits for trackers, not for ever."""
        self._write("finished", committed_cells=self._tally.cells)
        self._tell("run_finished", path=self.path)
        self._trackers("finished", self.path, dict(tables), dict(figures))
        self._end(PATIENCE)

    @property
    def counted(self) -> str:
        """How far the run is: ``3,072 of 10,240 cells``."""
        return f"{self._tally.cells:,} of {self._tally.planned:,} cells"

    def stopped(self, error: BaseException) -> None:
        """The run ends before its time: it was interrupted, or something failed."""
        if self._over:
            return
        if isinstance(error, KeyboardInterrupt):
            self.event("paused", f"stopped at {self.counted}; the same command goes on", cells=self._tally.cells)
        elif isinstance(error, Paused):
            self.event("paused", str(error), cells=self._tally.cells)
        else:
            ours = isinstance(error, (CodiEngineError, StoreError))
            text = str(error) if ours else f"{type(error).__name__}: {error}"
            self.event("failed", text, cells=self._tally.cells, error=type(error).__name__)
        self._end(SHORT)

    # ---------------------------------------------------------------------------------------------- events

    def warn(self, text: str, kind: str = "warning") -> None:
        """Tell the user something that matters, and everybody else once."""
        self.note(text)
        self.warned(text, kind)

    def warned(self, text: str, kind: str = "warning") -> None:
        """Tell everybody but the user, who knows; what comes before the plan waits for it."""
        if text in self._told:
            return
        self._told.add(text)
        if self._log is None:
            self._early.append(Event(kind, text, {}, now()))
        else:
            self.event(kind, text)

    def event(self, kind: str, text: str, **data: Any) -> None:
        """Something happened that somebody may want to know at once."""
        self._send(Event(kind, text, data, now()))

    def _send(self, event: Event) -> None:
        self._write(event.kind, text=event.text, data=dict(event.data))
        self._tell("run_event", path=self.path, event=event)
        self._trackers("event", event)

    # --------------------------------------------------------------------------------------------- telling

    def _write(self, what: str, **facts: Any) -> None:
        if self._log is not None:
            self._log.write(what, **facts)

    def _log_unit(self, unit: int, units: int, stage: str, known: Mapping[str, float]) -> None:
        if self._log is None:
            return
        means = {k: v for k, v in known.items() if "/" in k}
        facts = {"unit": unit, "stage": stage, "cells": self._tally.cells, "planned_cells": self._tally.planned, "seconds": round(self._tally.lap(), 4)}
        more = {k: round(known[k], 3) for k in ("cells_per_second", "memory_bytes") if k in known}
        self._log.unit(units, self._tally.done >= units, means, **facts, **more)

    def _trackers(self, method: str, *arguments: Any) -> None:
        for observer in self.observers if not self.quiet else ():
            observer.tell(method, *arguments)

    def _end(self, seconds: float) -> None:
        """Let all trackers end, and wait for them together."""
        self._over = True
        for observer in self.observers:
            observer.close()
        until = time.monotonic() + seconds
        for observer in self.observers:
            observer.wait(until)

    def _tell(self, hook: str, **facts: Any) -> None:
        for package, call in self.plugins.observers(hook):
            try:
                call(facts)
            except (Exception, SystemExit) as error:  # a third party's observer may raise anything; a run of days must not die of it
                if (package, hook) not in self._failed:
                    self._failed.add((package, hook))
                    self.note(f"{package}: {hook}() failed and is passed over: {said(error)}")


def _called(plugins: Plugins, tracker: Tracker[Any]) -> str:
    """Name a tracker, with its package where that is not ours."""
    from codi_engine.core.calling import BUILTIN

    found = next((r for r in plugins.registered if r.cls is type(tracker)), None)
    return tracker.name if found is None or found.package == BUILTIN else f"{tracker.name} ({found.package} {found.version})"
