"""Lifecycle hooks and trackers: told of everything, in order, and unable to stop a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codi_engine import Experiment, hookimpl
from codi_engine.core import plugins as plugin_module
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Options, Tracker
from codi_engine.core.plugins import Plugins, plugin_manager
from codi_engine.core.run import run_experiment

SEEN: list[str] = []


class NoOptions(Options):
    """No options."""


class Remembering(Tracker[NoOptions]):
    """Remembers what it was told."""

    name = "remembering"
    Options = NoOptions

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        SEEN.append(f"tracker started {experiment['name']}")

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        SEEN.append(f"tracker {unit} {sorted(aggregates)}")
        raise RuntimeError("the tracker is down")

    def finished(self, run: Path, tables: Mapping[str, Any], figures: Mapping[str, Path]) -> None:
        SEEN.append(f"tracker finished {sorted(figures)}")


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
def run_finished() -> None:
    SEEN.append("finished")


OBSERVER = SimpleNamespace(
    trackers=trackers, run_planned=run_planned, run_started=run_started, unit_committed=unit_committed,
    analysis_finished=analysis_finished, run_finished=run_finished,
)  # fmt: skip


def test_everything_is_told_in_order(demo: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    def manager(load: bool = True) -> Plugins:
        made = plugin_manager(load=False)
        made.register(OBSERVER, "observer", "1.0")
        return made

    monkeypatch.setattr(plugin_module, "plugin_manager", manager)
    SEEN.clear()
    experiment = demo(
        intervention={"plugin": "zero", "site": "latent_in", "on": "clean"}, sweep={"step": "all"}, trackers=["remembering"], analyses=["importance"]
    )  # fmt: skip
    run_experiment(experiment, "watched")
    assert SEEN == [
        "planned 18 2", "started", "tracker started test", "unit 0 6", "tracker 0 ['flip', 'kl']", "unit 1 18", "tracker 1 ['flip', 'kl']",
        "analysis importance", "finished", "tracker finished ['bars', 'examples', 'heatmap']",
    ]  # fmt: skip


def test_unknown_trackers_are_refused(demo: Callable[..., Experiment]) -> None:
    with pytest.raises(UserError, match="unknown tracker 'wandbb'"):
        demo(trackers=["wandbb"]).run()


def test_positions_outside_a_prompt_are_named_before_anything_is_computed(demo: Callable[..., Experiment]) -> None:
    with pytest.raises(UserError, match=r"position -400 lies outside the prompt of example 0"):
        demo(intervention={"plugin": "zero", "site": "resid_post.1", "on": "clean"}, sweep={"position": [-400]}).run()
    assert not list(Path("runs").rglob("c.0*"))
