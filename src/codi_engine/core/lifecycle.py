"""Telling plugins and trackers what happens to a run; none of them may stop it or be waited for in silence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.plugin import AnalysisResult, Tracker

if TYPE_CHECKING:
    from codi_engine.core.plugins import Plugins


class Lifecycle:
    """Calls the lifecycle hooks and the experiment's trackers; what fails is named once and the run goes on."""

    def __init__(self, plugins: Plugins, trackers: Sequence[Tracker[Any]], path: Path, note: Callable[[str], None]) -> None:
        self.hook, self.trackers, self.path, self.note = plugins.hook, trackers, path, note
        self._experiment: Mapping[str, Any] = {}
        self._failed: set[str] = set()

    def planned(self, experiment: Mapping[str, Any], cells: int, units: int) -> None:
        """The plan stands."""
        self._experiment = experiment
        self._tell("run_planned", lambda: self.hook.run_planned(path=self.path, experiment=self._experiment, cells=cells, units=units))

    def started(self) -> None:
        """The model is loaded, the first unit begins."""
        self._tell("run_started", lambda: self.hook.run_started(path=self.path))
        self._trackers("started", self.path, self._experiment)

    def committed(self, unit: int, units: int, cells: int, metrics: Mapping[str, np.ndarray]) -> None:
        """A unit is durable; trackers get the means of its metrics."""
        self._tell("unit_committed", lambda: self.hook.unit_committed(path=self.path, unit=unit, units=units, cells=cells))
        if self.trackers:
            means = {name: float(np.nanmean(v)) for name, v in metrics.items() if np.isfinite(v).any()}
            self._trackers("committed", unit, units, means)

    def analysed(self, name: str, result: AnalysisResult) -> None:
        """An analysis has written its results."""
        self._tell("analysis_finished", lambda: self.hook.analysis_finished(path=self.path, name=name, result=result))

    def finished(self, tables: Mapping[str, Any], figures: Mapping[str, Path]) -> None:
        """Everything is committed and analysed."""
        self._tell("run_finished", lambda: self.hook.run_finished(path=self.path))
        self._trackers("finished", self.path, tables, figures)

    def _trackers(self, method: str, *arguments: Any) -> None:
        for tracker in self.trackers:
            self._tell(f"tracker {tracker.name}.{method}", lambda t=tracker: getattr(t, method)(*arguments))  # type: ignore[misc]

    def _tell(self, what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # a third party's observer may raise anything; a run of days must not die of it
            if what not in self._failed:
                self._failed.add(what)
                self.note(f"{what} failed and is passed over: {type(error).__name__}: {error}")
