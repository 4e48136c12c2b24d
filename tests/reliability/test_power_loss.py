"""Loss of power, which no kill can try: the order of the calls, and disks that lose whatever was not yet durable."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.core.running import generations
from codi_engine.core.running.run import run_experiment
from codi_engine.store.reader import RunReader
from codi_engine.store.writer import RunWriter
from tests.store.sample import write
from tests.support.crash import committed, content, experiment, leftovers
from tests.support.powerloss import Disk, disordered, restore
from tests.support.syscalls import Call, Tap

#: stands for the return of commit() in a trace
COMMITTED = "committed"
RUN = "above/run"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], Any]], list[Call]]:
    """Return what records the calls of a function that is given a run's path, and the units that were reported as committed."""

    def recorded(work: Callable[[Path], Any]) -> list[Call]:
        trace: list[Call] = []
        commit = RunWriter.commit

        def told(self: RunWriter, unit: int, *args: Any, **keywords: Any) -> None:
            commit(self, unit, *args, **keywords)
            trace.append(Call(COMMITTED, "", at=unit))

        (tmp_path / "disk").mkdir()
        monkeypatch.setattr(RunWriter, "commit", told)
        with Tap(tmp_path / "disk", after=trace.append).installed():
            work(tmp_path / "disk" / RUN)
        monkeypatch.undo()
        return trace

    return recorded


def lost(trace: Sequence[Call], rng: random.Random, folder: Path) -> list[int]:
    """Play a random part of a trace, lay out what a loss of power leaves of it, and return the units that had been committed."""
    disk = Disk()
    part = trace[: rng.randint(1, len(trace))]
    for call in part:
        disk.take(call)
    restore(disk.after_loss(rng), folder)
    return [call.at for call in part if call.kind == COMMITTED]


def resumed(trace: Sequence[Call], tries: int, tmp_path: Path, go_on: Callable[[Path], Any]) -> tuple[int, int]:
    """Let runs lose their power and go on; returns how many had lost something, and how many units had been committed in all."""
    rng, torn, units = random.Random(1), 0, 0
    whole = content(tmp_path / "disk" / RUN)
    for number in range(tries):
        run = tmp_path / f"lost-{number}" / RUN
        done = lost(trace, rng, tmp_path / f"lost-{number}")
        kept = committed(run)
        assert set(done) <= set(kept), "a unit that was reported as committed is lost"
        torn += bool(run.exists() and leftovers(run))
        units += len(done)
        go_on(run)
        assert content(run) == whole
        assert leftovers(run) == []
        assert RunReader(run).verify() == []
        shutil.rmtree(tmp_path / f"lost-{number}")
    return torn, units


def small(run: Path) -> None:
    write(run, 3, 2)


@pytest.mark.parametrize("missing", ["directory", "file", "parent"])
def test_the_check_of_the_order_sees_what_is_missing(record: Callable[..., list[Call]], missing: str) -> None:
    trace = record(small)
    assert disordered(trace, RUN) == ([], 6)
    last = {"directory": "/cells/status", "file": ".partial", "parent": "above"}[missing]
    without = [call for call in trace if call.kind != "fsync" or not call.path.endswith(last)]
    assert len(without) < len(trace)
    assert disordered(without, RUN)[0]


def test_a_small_run_goes_on_after_a_loss_of_power(record: Callable[..., list[Call]], tmp_path: Path) -> None:
    trace = record(small)
    assert resumed(trace, 4, tmp_path, small)[1]


@pytest.mark.slow
def test_many_losses_of_power(record: Callable[..., list[Call]], tmp_path: Path) -> None:
    torn, units = resumed(record(small), 300, tmp_path, small)
    assert torn >= 20
    sys.stdout.write(f"\n300 losses of power, {torn} with leftovers; none of {units} units committed before was lost, all went on alike\n")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_whole_run_loses_its_power(record: Callable[..., list[Call]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = Experiment.from_dict(experiment(analyses=()))

    def work(run: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(generations, "UNIT_CELLS", 8)
            run_experiment(made, run)

    trace = record(work)
    problems, count = disordered(trace, RUN)
    assert problems == []
    assert count >= 8
    torn, units = resumed(trace, 8, tmp_path, work)
    sys.stdout.write(f"\n{count} units and {len(trace)} calls in order; 8 losses of power, {torn} with leftovers, none of {units} units lost\n")
