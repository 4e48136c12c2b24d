"""A tracker that breaks one clause fails the test of that clause and no other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from codi_engine.core.plugin import Event, NoOptions, Tracker
from codi_engine.testing import TrackerSuite
from tests.support.clauses import failures, suite


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


class Forgets(Lines):
    """Begins its file anew in every start."""

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        super().started(run, experiment)
        self.file.write_text("", encoding="utf-8")


class Closes(Lines):
    """Closes what it has not opened."""

    def close(self) -> None:
        del self.file


class Learned(Lines):
    """Knows the events of today."""

    def event(self, event: Event) -> None:
        {"note": 1, "warning": 2, "disk": 3, "paused": 4, "resumed": 5, "failed": 6}[event.kind]


class Frames(Lines):
    """Takes the files of tables for tables."""

    def finished(self, run: Path, tables: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
        for table in tables.values():
            table.head()


class Tidy(Lines):
    """Removes the results that it has sent."""

    def analysed(self, name: str, folder: Path) -> None:
        (folder / "summary.txt").unlink()


class OfLines(TrackerSuite):
    plugin = Lines

    def steps(self, run: Path) -> list[int]:
        return [int(line) for line in (run / "steps.jsonl").read_text(encoding="utf-8").split()]


LIFE, AGAIN, ALONE = "a_life_from_start_to_finish", "a_second_start_goes_on", "it_leaves_the_run_alone"
WRONG: dict[type[Lines], tuple[str, set[str]]] = {
    Backwards: ("never back", {AGAIN}),
    Forgets: ("must stay", {AGAIN}),
    Closes: ("AttributeError", {"closing_twice_or_unstarted_is_harmless"}),
    Learned: ("of a later version", {"any_event_is_taken"}),
    Frames: ("head", {LIFE, AGAIN, ALONE}),
    Tidy: ("summary.txt", {ALONE}),
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda c: c.__name__)
def test_a_wrong_tracker_fails_its_clauses_and_no_other(cls: type[Lines], tmp_path: Path) -> None:
    words, clauses = WRONG[cls]
    failed = failures(suite(OfLines, cls), tmp_path)
    assert set(failed) == clauses, failed
    assert any(words in said for said in failed.values()), failed


class TestLines(OfLines):
    """A sound one."""
