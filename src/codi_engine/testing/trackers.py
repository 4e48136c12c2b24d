"""What a tracker must be: told of a run's life, never in its way."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from codi_engine import Experiment
from codi_engine.core.plugin import AnalysisResult, Event
from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs.analyzing import write_result
from codi_engine.testing.runs import shared_run
from codi_engine.testing.suite import DEMO, Suite, demand, offered

KINDS = ("note", "warning", "disk", "paused", "resumed", "failed", "of a later version")


class TrackerSuite(Suite):
    """Conformance of a tracker. Override :meth:`steps` where what it wrote can be read back."""

    kind = "tracker"

    def steps(self, run: Path) -> list[int] | None:
        """Return the steps that it has written so far, in order; None where they cannot be read."""
        return None

    @pytest.fixture(autouse=True)
    def away(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Work in an empty directory."""
        monkeypatch.chdir(tmp_path)

    def test_a_life_from_start_to_finish(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        lived(self.build(setting), finished_run(tmp_path / "run"), range(3))

    def test_a_second_start_goes_on(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        run = finished_run(tmp_path / "run")
        lived(self.build(setting), run, range(2), whole=False)
        before = self.steps(run)
        lived(self.build(setting), run, range(2, 4))
        steps = self.steps(run)
        if steps is None or before is None:
            return
        demand(steps == sorted(steps) and len(set(steps)) == len(steps), f"a resumed run's steps must go on and never back: {steps}")
        demand(steps[: len(before)] == before and len(steps) > len(before), f"what was written before a pause must stay: {before} became {steps}")

    def test_any_event_is_taken(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        """Kinds that it does not know too: later versions add some."""
        tracker, run = self.build(setting), finished_run(tmp_path / "run")
        _call(tracker, "started", run, _experiment(run))
        for kind in KINDS:
            _call(tracker, "event", Event(kind, "something happened", {"cells": 3}, "2030-01-01T00:00:00Z"))
        _call(tracker, "close")

    def test_closing_twice_or_unstarted_is_harmless(self, setting: Mapping[str, Any]) -> None:
        tracker = self.build(setting)
        for _ in range(2):
            _call(tracker, "close")

    def test_it_leaves_the_run_alone(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        """It may add files of its own; what the run holds stays what it is, byte for byte."""
        run = finished_run(tmp_path / "run")
        before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
        lived(self.build(setting), run, range(1))
        changed = [str(p.relative_to(run)) for p, content in before.items() if not p.is_file() or p.read_bytes() != content]
        demand(not changed, f"a tracker must never change a run's own files; it changed {', '.join(changed[:3])}")

    def test_a_run_goes_on_where_it_cannot_write(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        """Whatever it raises, the run is whole."""
        with offered("tracker", self.plugin) as name, pytest.MonkeyPatch.context() as patch:
            value = {
                "name": "conformance", "model": dict(DEMO), "data": {"plugin": "demo-problems", "limit": 1}, "metrics": ["accuracy"],
                "generate": {"max_new_tokens": 2}, "controls": "none", "trackers": [{"plugin": name, **setting}],
            }  # fmt: skip
            patch.setattr(self.plugin, "started", _refused)
            run = run_experiment(Experiment.from_dict(value), tmp_path / "run").open()
        demand(len(run.cells) == 1, "a tracker that fails must not harm the run")


def _refused(*_: Any) -> None:
    raise OSError("no space left on device")


def _call(tracker: Any, method: str, *arguments: Any) -> None:
    """Call a method that may be left out."""
    function = getattr(tracker, method, None)
    if function is not None:
        function(*arguments)


def finished_run(path: Path) -> Path:
    """Return the directory of a small finished and analysed run, a copy."""
    import matplotlib.pyplot as plt

    shutil.copytree(shared_run().path, path)
    figure, axes = plt.subplots(figsize=(1, 1))
    axes.plot([0, 1])
    write_result(path / "results" / "conformance", AnalysisResult({"effects": pd.DataFrame({"layer": [0, 1], "mean": [0.25, 0.5]})}, {"line": figure}, "two"))
    plt.close(figure)
    return path


def _experiment(run: Path) -> Mapping[str, Any]:
    from codi_engine.core.runs.results import open_run

    return open_run(run).experiment


def lived(tracker: Any, run: Path, units: range, whole: bool = True) -> None:
    """Tell a tracker of a run's life, in the order in which the engine does; not ``whole``: it is paused.

    Parameters
    ----------
    run: a finished run
    units: those that are committed in this invocation, of four
    """
    results = run / "results" / "conformance"
    _call(tracker, "check")
    _call(tracker, "started", run, _experiment(run))
    if units.start:
        _call(tracker, "event", Event("resumed", f"{units.start} of 4 units are there", {}, "2030-01-01T00:00:00Z"))
    for unit in units:
        cells = {"cells": 8.0 * (unit + 1), "planned_cells": 32.0, "seconds": 1.5, "cells_per_second": 6.0, "memory_bytes": 1e9}
        _call(tracker, "committed", unit, 4, {**cells, "patch/kl": 0.5 + unit, "patch/flip": 0.0})
    if whole:
        _call(tracker, "analysed", "conformance", results)
        _call(tracker, "finished", run, {"effects": results / "effects.parquet"}, {"line": results / "line.png"})
    else:
        _call(tracker, "event", Event("paused", "stopped", {}, "2030-01-01T00:00:00Z"))
    _call(tracker, "close")
