"""The suite of trackers on a small sound one, and on one that goes back in its steps."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from codi_engine.core.plugin import NoOptions, Tracker
from codi_engine.testing import TrackerSuite


class Lines(Tracker[NoOptions]):
    """One line per unit."""

    name = "lines"
    Options = NoOptions

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        self.file = run / "steps.jsonl"

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(unit) + "\n")


class Backwards(Lines):
    """Counts from zero in every start."""

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        super().started(run, experiment)
        self.count = 0

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        super().committed(self.count, units, aggregates)
        self.count += 1


class OfLines(TrackerSuite):
    plugin = Lines

    def steps(self, run: Path) -> list[int]:
        return [int(line) for line in (run / "steps.jsonl").read_text(encoding="utf-8").split()]


class TestLines(OfLines):
    """A sound one."""


def test_a_tracker_that_goes_back_fails_its_clause(tmp_path: Path) -> None:
    suite = type("OfBackwards", (OfLines,), {"plugin": Backwards})()
    with pytest.raises(AssertionError, match="never back"):
        suite.test_a_second_start_goes_on({}, tmp_path)
