"""What a tracker must be: told of a run's life, never in its way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from codi_engine import Experiment
from codi_engine.core.run import run_experiment
from codi_engine.testing.suite import DEMO, Suite, demand, offered

EXPERIMENT: Mapping[str, Any] = {"name": "conformance", "model": dict(DEMO), "seed": 0}


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
        lived(self.build(setting), tmp_path, range(3))

    def test_a_second_start_goes_on(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        lived(self.build(setting), tmp_path, range(2), finished=False)
        lived(self.build(setting), tmp_path, range(2, 4))
        steps = self.steps(tmp_path)
        demand(steps is None or (steps == sorted(steps) and len(set(steps)) == len(steps)), f"a resumed run's steps must go on and never back: {steps}")

    def test_closing_twice_or_unstarted_is_harmless(self, setting: Mapping[str, Any]) -> None:
        tracker = self.build(setting)
        for _ in range(2):
            _call(tracker, "close")

    def test_a_run_goes_on_where_it_cannot_write(self, setting: Mapping[str, Any], tmp_path: Path) -> None:
        """Its folder is a file; whatever it raises, the run is whole."""
        self.build(setting)
        path = tmp_path / "run"
        with offered("tracker", self.plugin) as name:
            value = {
                "name": "conformance", "model": dict(DEMO), "data": {"plugin": "demo-problems", "limit": 1}, "metrics": ["accuracy"],
                "generate": {"max_new_tokens": 2}, "controls": "none", "trackers": [{"plugin": name, **setting}],
            }  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(self.plugin, "started", _refused)
                run = run_experiment(Experiment.from_dict(value), path).open()
        demand(len(run.cells) == 1, "a tracker that fails must not harm the run")


def _refused(*_: Any) -> None:
    raise OSError("no space left on device")


def _call(tracker: Any, method: str, *arguments: Any) -> None:
    """Call a method that may be left out."""
    function = getattr(tracker, method, None)
    if function is not None:
        function(*arguments)


def lived(tracker: Any, run: Path, units: range, finished: bool = True) -> None:
    """Tell a tracker of a run's life."""
    _call(tracker, "started", run, EXPERIMENT)
    for unit in units:
        _call(tracker, "committed", unit, 4, {"kl": 0.5 + unit, "flip": 0.0})
    if finished:
        _call(tracker, "analysed", "importance", run)
        _call(tracker, "finished", run, {"effects": pd.DataFrame({"layer": [0, 1], "mean": [0.25, 0.5]})}, {})
    _call(tracker, "close")
