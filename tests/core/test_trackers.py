"""Trackers that are slow, raise, hang or exit: the run is the same, and nobody waits for them for long."""

from __future__ import annotations

import hashlib
import math
import shutil
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_engine import Experiment, hookimpl
from codi_engine.core import plugins as plugin_module
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Event, NoOptions, Tracker
from codi_engine.core.plugins import Plugins, plugin_manager
from codi_engine.core.progress import Progress
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.core.watching import disk, lifecycle, observer
from codi_engine.core.watching.disk import DiskWatch
from codi_engine.core.watching.eventlog import EVENTS, EventLog, read_events
from codi_engine.core.watching.lifecycle import Lifecycle
from codi_engine.core.watching.observer import MOST, Observer
from codi_engine.core.watching.tally import Tally, _aligned

RELEASE = threading.Event()


@pytest.fixture(autouse=True)
def _released() -> Iterator[None]:
    """Let hanging trackers go when the test is over."""
    RELEASE.clear()
    yield
    RELEASE.set()


class Sleeping(Tracker[NoOptions]):
    """Takes its time."""

    name, Options = "sleeping", NoOptions

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        RELEASE.wait(0.2)


class Raising(Tracker[NoOptions]):
    """Raises whatever it is told."""

    name, Options = "raising", NoOptions

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        raise ValueError("no")

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        raise KeyboardInterrupt

    def close(self) -> None:
        raise MemoryError


class Hanging(Tracker[NoOptions]):
    """Hangs for ever."""

    name, Options = "hanging", NoOptions
    later = "`send it` sends it"

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        RELEASE.wait()


class Exiting(Tracker[NoOptions]):
    """Calls sys.exit."""

    name, Options = "exiting", NoOptions

    def event(self, event: Event) -> None:
        sys.exit("enough")

    def finished(self, run: Path, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        sys.exit(7)


class Spoiling(Tracker[NoOptions]):
    """Changes what it is given."""

    name, Options = "spoiling", NoOptions

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        experiment["metrics"].clear()

    def finished(self, run: Path, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        figures.clear()  # type: ignore[attr-defined]


class Needy(Tracker[NoOptions]):
    """Lacks something."""

    name, Options = "needy", NoOptions

    def check(self) -> None:
        raise UserError("lacks a moon")


@hookimpl
def trackers() -> list[type[Tracker[Any]]]:
    return [Sleeping, Raising, Hanging, Exiting, Spoiling, Needy]


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> None:
    def manager(load: bool = True) -> Plugins:
        made = plugin_manager(load=False)
        made.register(SimpleNamespace(trackers=trackers), "strange", "0.3")
        return made

    monkeypatch.setattr(plugin_module, "plugin_manager", manager)


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


#: what holds times, or the experiment with its trackers
NAMES_TRACKERS = ("provenance.json", "provenance.copy", "result.json", "experiment.yaml", "ledger", "ledger.copy", EVENTS)


def digests(run: Path) -> dict[str, str]:
    files = [p for p in run.rglob("*") if p.is_file() and p.name not in NAMES_TRACKERS and p.suffix != ".svg"]
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.mark.usefixtures("strange")
def test_a_run_is_the_same_whatever_trackers_do(demo: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifecycle, "PATIENCE", 0.5)
    keys: dict[str, Any] = {
        "intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}, "sweep": {"step": "all"},
        "analyses": ["importance"], "data": {"plugin": "demo-pairs", "limit": 6},
    }  # fmt: skip
    begun = time.perf_counter()
    alone = run_experiment(demo(**keys), "alone")
    quiet = time.perf_counter() - begun
    notes = Notes()
    begun = time.perf_counter()
    names = ["sleeping", "raising", "hanging", "exiting", "spoiling"]
    watched = run_experiment(demo(**keys, trackers=names), "watched", progress=notes)
    took = time.perf_counter() - begun
    assert set(watched.figures) == set(alone.figures)
    mine, theirs = digests(Path("alone")), digests(Path("watched"))
    assert mine == theirs
    assert any(k.startswith("data.zarr") for k in mine)
    assert alone.open().store.committed == watched.open().store.committed
    assert took < 2 * quiet + 10  # a shared machine; who waits for the hanging one waits for ever
    said = [n for n in notes.notes if n.startswith("tracker ")]
    assert sorted(said) == [
        "tracker exiting (strange 0.3): finished() failed and is passed over: SystemExit: 7",
        "tracker hanging (strange 0.3) is still in started(), 4 messages left, and is waited for no longer; `send it` sends it",
        "tracker raising (strange 0.3): close() failed and is passed over: MemoryError: ",
        "tracker raising (strange 0.3): committed() failed and is passed over: KeyboardInterrupt: ",
        "tracker raising (strange 0.3): started() failed and is passed over: ValueError: no",
    ]


@pytest.mark.usefixtures("strange")
def test_what_a_tracker_lacks_is_said_before_anything_is_computed(demo: Callable[..., Experiment]) -> None:
    with pytest.raises(UserError, match=r"trackers\[1\]: lacks a moon"):
        plan_experiment(demo(trackers=["sleeping", "needy"]))


@pytest.mark.parametrize(
    ("tracker", "message"),
    [
        ({"plugin": "wandb", "projekt": "x"}, r"trackers\[0\]\.projekt: unknown key.*project"),
        ({"plugin": "wandb", "mode": "ofline"}, r"trackers\[0\]\.mode"),
        ({"plugin": "wandb", "log_every": 0}, r"trackers\[0\]\.log_every"),
        ({"plugin": "tensorboard", "folder": "x"}, r"trackers\[0\]\.folder"),
        ({"plugin": "webhook"}, r"trackers\[0\].*write url, or url_from"),
        ({"plugin": "webhook", "url": "ftp://x/y"}, r"trackers\[0\]: url: write an http or https address"),
        ({"plugin": "webhook", "url": "http://x/y", "headers": {"Authorization": "NOT_SET_HERE"}}, r"NOT_SET_HERE is not set"),
        ({"plugin": "webhook", "url": "http://x/y", "events": ["finnished"]}, r"trackers\[0\]\.events"),
        ({"plugin": "command", "argv": ["no-such-program-at-all"]}, r"argv: no such program"),
        ({"plugin": "command", "argv": []}, r"trackers\[0\]\.argv"),
    ],
)
def test_mistakes_in_the_file_are_found_at_plan_time(demo: Callable[..., Experiment], tracker: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan_experiment(demo(trackers=[tracker]))


# ---------------------------------------------------------------------------------------------- observers


class Recording(Tracker[NoOptions]):
    """Remembers what it was told; waits at first."""

    name, Options = "recording", NoOptions

    def __init__(self, options: NoOptions) -> None:
        super().__init__(options)
        self.seen: list[Any] = []
        self.go = threading.Event()

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        self.go.wait(10)

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        self.seen.append(unit)

    def event(self, event: Event) -> None:
        self.seen.append(event.text)

    def close(self) -> None:
        self.seen.append("close")


def test_the_newest_unit_wins_and_events_are_never_dropped() -> None:
    tracker = Recording(NoOptions())
    watched = Observer(tracker, "tracker recording", lambda text: None)
    watched.tell("started", Path(), {})
    for unit in range(1_000):
        watched.tell("committed", unit, 1_000, {})
        if unit % 10 == 0:
            watched.tell("event", Event("warning", f"event {unit}"))
    tracker.go.set()
    watched.close()
    watched.wait(time.monotonic() + 10)
    units = [s for s in tracker.seen if isinstance(s, int)]
    assert len(units) == MOST
    assert units[-1] == 999
    assert units == sorted(units)
    assert [s for s in tracker.seen if isinstance(s, str)] == [*(f"event {u}" for u in range(0, 1_000, 10)), "close"]
    watched.tell("event", Event("warning", "too late"))
    assert tracker.seen[-1] == "close"


def test_an_observer_that_is_told_nothing_needs_no_thread_and_no_wait() -> None:
    said: list[str] = []
    watched = Observer(Hanging(NoOptions()), "tracker hanging", said.append)
    watched.close()
    begun = time.monotonic()
    watched.wait(begun + 5)
    assert time.monotonic() - begun < 1
    assert said == []
    assert observer.SHORT < observer.PATIENCE


def test_an_observer_that_can_tell_nobody_goes_on_and_ends() -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError(text)

    def fails(run: Path, experiment: Mapping[str, Any]) -> None:
        raise ZeroDivisionError

    tracker = Recording(NoOptions())
    tracker.started = fails  # type: ignore[method-assign]
    watched = Observer(tracker, "tracker recording", closed)
    watched.tell("started", Path(), {})
    watched.tell("committed", 3, 9, {})
    watched.close()
    begun = time.monotonic()
    watched.wait(begun + 20)
    assert time.monotonic() - begun < 10
    assert tracker.seen == [3, "close"]


def test_a_hook_that_exits_stops_nothing(tmp_path: Path) -> None:
    @hookimpl
    def run_event(event: Event) -> None:
        sys.exit(event.text)

    plugins, said = plugin_manager(load=False), list[str]()
    plugins.register(SimpleNamespace(run_event=run_event), "exits", "1")
    life = Lifecycle(plugins, [], tmp_path, said.append)
    life.warn("early")  # before the plan: told at the start
    life.planned({}, 1, 1)
    life.started()
    life.warn("twice")
    life.warn("twice")
    life.finished({}, {})
    assert said == ["early", "exits 1: run_event() failed and is passed over: SystemExit: early", "twice", "twice"]
    assert [e["text"] for e in read_events(tmp_path) if e["event"] == "warning"] == ["early", "twice"]


# --------------------------------------------------------------------------------------------- the means


@given(st.lists(st.tuples(st.integers(0, 2), st.floats(-1e3, 1e3) | st.just(float("nan"))), max_size=60), st.integers(1, 7))
def test_running_means_are_the_means_whatever_the_units(cells: list[tuple[int, float]], size: int) -> None:
    tally = Tally(units=9, planned=len(cells))
    for at in range(0, len(cells), size):
        part = cells[at : at + size]
        arrays = {"cells/condition": np.array([c for c, _ in part], np.int32), "cells/metrics/kl": np.array([v for _, v in part])}
        tally.add(len(part), {**arrays, "sources/x/value": np.zeros(3)})
    values = {name: [v for c, v in cells if c == code and not math.isnan(v)] for code, name in enumerate("abc")}
    assert tally.means("abc") == pytest.approx({f"{k}/kl": statistics.fmean(v) for k, v in values.items() if v}, abs=1e-9)
    assert tally.aggregates("abc")["cells"] == len(cells)


@given(st.sets(st.integers(0, 50)), st.sets(st.integers(0, 50)))
def test_columns_are_brought_into_the_order_of_the_conditions(cells: set[int], measured: set[int]) -> None:
    slots, mine = np.array(sorted(cells), np.int64), np.array(sorted(measured), np.int64)
    found = _aligned({"cells/metrics/kl": (mine, mine * 0.5), "cells/condition": (slots, slots % 3)})
    assert found["cells/metrics/kl"].tolist() == pytest.approx([s * 0.5 if s in measured else math.nan for s in sorted(cells)], nan_ok=True)
    assert found["cells/condition"].tolist() == [s % 3 for s in sorted(cells)]


# ------------------------------------------------------------------------------------------------ the log


def test_a_torn_line_is_ended_and_passed_over(tmp_path: Path) -> None:
    EventLog(tmp_path, pytest.fail).write("planned", cells=1)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"time":"x","event":"un')
    EventLog(tmp_path, pytest.fail).write("warning", text="line\nbreak \u2028 \x1b[31m ☃")
    assert [e["event"] for e in read_events(tmp_path)] == ["planned", "warning"]
    raw = (tmp_path / EVENTS).read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 3
    assert read_events(tmp_path)[1]["text"] == "line\nbreak \u2028 \x1b[31m ☃"


def test_the_log_of_very_many_units_is_bounded(tmp_path: Path) -> None:
    log, means = EventLog(tmp_path, pytest.fail), {f"condition/m{i}": 0.123456789 for i in range(500)}
    for unit in range(7_000):
        log.unit(7_000, unit == 6_999, means, unit=unit)
    lines = read_events(tmp_path)
    assert len(lines) <= 1_001
    assert (lines[0]["unit"], lines[-1]["unit"]) == (0, 6_999)
    assert (tmp_path / EVENTS).stat().st_size < 5e6


def test_a_log_that_cannot_be_written_is_named_once(tmp_path: Path) -> None:
    (tmp_path / EVENTS).mkdir()
    said: list[str] = []
    log = EventLog(tmp_path, said.append)
    log.write("planned")
    log.write("started")
    assert len(said) == 1
    assert "goes on without it" in said[0]
    assert read_events(tmp_path) == []


# ------------------------------------------------------------------------------------------------- the disk


def test_the_disk_is_complained_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"used": 70, "free": 30}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=110, **sizes))
    monkeypatch.setattr(disk, "EVERY", 0.0)
    watch = DiskWatch(tmp_path, lambda: 25)
    assert watch.look() == []
    sizes.update(used=85, free=26)  # more than the 80 % that are worth a word, less than total says
    assert [e.data["used_share"] for e in watch.look()] == []
    sizes.update(used=86, free=20)
    found = watch.look()
    assert [e.kind for e in found] == ["disk", "disk"]
    assert "81% full" in found[0].text
    assert found[1].data["remaining_bytes"] == 25
    assert watch.look() == []


def test_a_look_at_the_disk_is_rare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        looks.append(path)
        return SimpleNamespace(total=2, used=1, free=1)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    watch = DiskWatch(tmp_path)
    for _ in range(100):
        watch.look()
    assert len(looks) == 1
