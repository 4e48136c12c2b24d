"""Lifecycle hooks and trackers: told of everything, in order, and unable to stop a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from codi_engine import Experiment, hookimpl
from codi_engine.cli.main import cli
from codi_engine.core import plugins as plugin_module
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Event, Options, Tracker
from codi_engine.core.plugins import Plugins, plugin_manager
from codi_engine.core.progress import Progress
from codi_engine.core.running.generations import units_of
from codi_engine.core.running.run import run_experiment
from codi_engine.core.watching.eventlog import read_events
from codi_engine.core.watching.lifecycle import Lifecycle
from codi_engine.core.watching.status import status_of
from codi_engine.core.watching.tally import tally_of

SEEN: list[str] = []
TOLD: list[str] = []


class NoOptions(Options):
    """No options."""


class Remembering(Tracker[NoOptions]):
    """Remembers what it was told."""

    name = "remembering"
    Options = NoOptions

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        TOLD.append(f"started {experiment['name']}")

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        TOLD.append(f"unit {unit} of {units}: {aggregates['cells']} cells, {sorted(k for k in aggregates if '/' in k)}")
        raise RuntimeError("the tracker is down")

    def finished(self, run: Path, tables: Mapping[str, Any], figures: Mapping[str, Path]) -> None:
        TOLD.append(f"finished {sorted(figures)}")

    def event(self, event: Event) -> None:
        TOLD.append(f"{event.kind} {event.text}")

    def analysed(self, name: str, folder: Path) -> None:
        TOLD.append(f"analysed {name} {folder.name}")

    def close(self) -> None:
        TOLD.append("closed")


@hookimpl
def trackers() -> list[type[Tracker[Any]]]:
    return [Remembering]


@hookimpl
def run_planned(path: Path, cells: int, units: int) -> None:
    SEEN.append(f"planned {cells} {units}")


@hookimpl
def run_started(path: Path) -> None:
    SEEN.append("started")


@hookimpl
def unit_committed(unit: int, cells: int) -> None:
    SEEN.append(f"unit {unit} {cells}")


@hookimpl
def analysis_finished(name: str) -> None:
    SEEN.append(f"analysis {name}")


@hookimpl
def run_event(event: Event) -> None:
    SEEN.append(f"event {event.kind}")


@hookimpl
def run_finished() -> None:
    SEEN.append("finished")


OBSERVER = SimpleNamespace(
    trackers=trackers, run_planned=run_planned, run_started=run_started, unit_committed=unit_committed,
    analysis_finished=analysis_finished, run_event=run_event, run_finished=run_finished,
)  # fmt: skip


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> None:
    def manager(load: bool = True) -> Plugins:
        made = plugin_manager(load=False)
        made.register(OBSERVER, "observer", "1.0")
        return made

    monkeypatch.setattr(plugin_module, "plugin_manager", manager)
    SEEN.clear()
    TOLD.clear()


ZERO: dict[str, Any] = {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}, "sweep": {"step": "all"}, "trackers": ["remembering"]}


class Notes(Progress):
    """Keeps notes; stops the run after so many commits."""

    def __init__(self, stop: int = -1, error: type[BaseException] = KeyboardInterrupt) -> None:
        self.notes: list[str] = []
        self.stop, self.error, self.commits = stop, error, 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def advance(self, count: int) -> None:
        self.commits += 1
        if self.commits == self.stop + 1:
            raise self.error("the disk is on fire")


@pytest.mark.usefixtures("observed")
def test_everything_is_told_in_order(demo: Callable[..., Experiment]) -> None:
    notes = Notes()
    run_experiment(demo(**ZERO, analyses=["importance"]), "watched", progress=notes)
    assert SEEN == ["planned 18 2", "started", "unit 0 6", "unit 1 18", "analysis importance", "finished"]
    assert TOLD == [
        "started test", "unit 0 of 2: 6 cells, ['baseline/flip', 'baseline/kl']",
        "unit 1 of 2: 24 cells, ['baseline/flip', 'baseline/kl', 'zero/flip', 'zero/kl']",
        "analysed importance importance", "finished ['bars', 'examples', 'heatmap']", "closed",
    ]  # fmt: skip
    named = [n for n in notes.notes if "committed" in n]
    assert named == ["tracker remembering (observer 1.0): committed() failed and is passed over: RuntimeError: the tracker is down"]


@pytest.mark.usefixtures("observed")
def test_a_stopped_run_says_so_and_goes_on_counting(demo: Callable[..., Experiment]) -> None:
    experiment = demo(**ZERO)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, "here", progress=Notes(stop=1))  # the second unit is committed, nobody was told
    assert TOLD[-2:] == ["paused stopped at 6 of 24 cells; the same command goes on", "closed"]
    TOLD.clear()
    larger = demo(**ZERO, data={"plugin": "demo-pairs", "limit": 5})
    with pytest.raises(RuntimeError, match="on fire"):
        run_experiment(larger, "here", progress=Notes(stop=1, error=RuntimeError))
    assert TOLD == [
        "started test", "resumed goes on at 24 of 40 cells", "unit 2 of 4: 28 cells, ['baseline/flip', 'baseline/kl', 'zero/flip', 'zero/kl']",
        "failed RuntimeError: the disk is on fire", "closed",
    ]  # fmt: skip
    run = run_experiment(larger, "here").open()
    told = [e for e in read_events("here") if e["event"] != "note"]
    assert [e["event"] for e in told] == [
        "planned", "started", "unit", "paused", "planned", "started", "resumed", "unit", "failed", "planned", "started", "finished"
    ]  # fmt: skip
    counted = [e["cells"] for e in told if e["event"] == "unit"]
    assert counted == [6, 28]
    assert [e["event"] for e in status_of("here").events()] == ["paused", "resumed", "failed"]
    shown = CliRunner().invoke(cli, ["status", "here"]).output
    assert "failed: RuntimeError: the disk is on fire" in shown
    cells = run.cells[run.cells["condition"] == "zero"]
    assert told[-2]["committed_cells"] == 40 == len(run.cells)
    tally = tally_of(Path("here"), units_of(run.store.state.plans), run.store.committed)
    assert tally.means(run.store.labels("condition"))["zero/kl"] == pytest.approx(cells["kl"].mean(), rel=1e-12)


def test_unknown_trackers_are_refused(demo: Callable[..., Experiment]) -> None:
    with pytest.raises(UserError, match="unknown tracker 'wandbb'"):
        demo(trackers=["wandbb"]).run()


def test_positions_outside_a_prompt_are_named_before_anything_is_computed(demo: Callable[..., Experiment]) -> None:
    with pytest.raises(UserError, match=r"position -400 lies outside the prompt of example 0"):
        demo(intervention={"plugin": "zero", "site": "resid_post.1", "on": "clean"}, sweep={"position": [-400]}).run()
    assert not list(Path("runs").rglob("c.0*"))


def test_hooks_that_fail_are_named_with_their_package_and_the_others_are_called(tmp_path: Path) -> None:
    seen: list[str] = []

    @hookimpl
    def run_started(path: Path) -> None:
        raise ValueError("not\ntoday")

    plugins, said = plugin_manager(load=False), list[str]()
    plugins.register(SimpleNamespace(run_started=hookimpl(lambda path: seen.append("first"))), "codi-first", "1")
    plugins.register(SimpleNamespace(run_started=run_started), "codi-fails", "0.2")
    plugins.register(SimpleNamespace(run_started=run_started), "codi-fails", "0.2", entry="second")
    plugins.register(SimpleNamespace(run_started=hookimpl(lambda: seen.append("last"))), "codi-last", "3")
    life = Lifecycle(plugins, [], tmp_path, said.append)
    life.planned({}, 1, 1)
    life.started()
    life.finished({}, {})
    assert seen == ["last", "first"]
    assert said == ["codi-fails 0.2: run_started() failed and is passed over: ValueError: not today"]
