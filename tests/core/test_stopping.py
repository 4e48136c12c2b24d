"""Signals end a run after the unit that is computed, or now; a full disk pauses it; the same command goes on to the same bytes."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from codi_engine.cli.main import main
from codi_engine.core.errors import Paused, Stopped
from codi_engine.core.progress import Progress
from codi_engine.core.running import stopping
from codi_engine.core.running.computing import Computer, Here, Made
from codi_engine.core.running.generations import Unit
from codi_engine.core.running.run import run_experiment, try_experiment
from codi_engine.core.running.stopping import DEFAULTS, ECHO, listening
from codi_engine.core.watching.disk import Room
from codi_engine.core.watching.eventlog import read_events
from codi_engine.core.watching.showing import TerminalProgress
from codi_engine.core.watching.status import status_of
from codi_engine.store.ledger import read_ledger
from tests.support.soaking import content, experiment, small_units

UNITS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with an experiment of ten units and its uninterrupted run."""
    made = tmp_path_factory.mktemp("stopping")
    with small_units():
        run_experiment(experiment(made, UNITS), made / "whole")
        yield made


class Notes(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], list[int]]:
    """Return a function that has something happen while the nth unit of an invocation is computed; what it returns tells that it did."""

    def at(number: int, happen: Callable[[], None]) -> list[int]:
        fired: list[int] = []
        compute, count = Computer.compute, [0]

        def computed(self: Computer, unit: Unit) -> Made:
            count[0] += 1
            if count[0] == number:
                fired.append(unit.number)
                happen()
            return compute(self, unit)

        monkeypatch.setattr(Computer, "compute", computed)
        return fired

    return at


def raised(*numbers: int, apart: float = 0.0) -> Callable[[], None]:
    def happen() -> None:
        for place, number in enumerate(numbers):
            time.sleep(apart if place else 0.0)
            signal.raise_signal(number)

    return happen


def units_in(run: Path) -> int:
    return sum(r["kind"] == "unit" for r in read_ledger(run / "ledger").records)


def handlers() -> list[Any]:
    return [signal.getsignal(number) for number in DEFAULTS]


CASES = {
    "once": ((signal.SIGINT,), 0.0, 3, 130, "finishing unit 3 of 10; Ctrl-C again stops now"),
    "twice": ((signal.SIGINT, signal.SIGINT), ECHO * 1.2, 2, 130, "finishing unit 3 of 10; Ctrl-C again stops now"),
    "passed on by a launcher": ((signal.SIGINT, signal.SIGINT), 0.0, 3, 130, "finishing unit 3 of 10; Ctrl-C again stops now"),
    "terminated, again and again": ((signal.SIGTERM, signal.SIGTERM), ECHO * 1.2, 3, 143, "finishing unit 3 of 10; Ctrl-C stops now"),
    "terminated, then Ctrl-C": ((signal.SIGTERM, signal.SIGINT), ECHO * 1.2, 2, 130, "finishing unit 3 of 10; Ctrl-C stops now"),
    "the terminal is closed": ((signal.SIGHUP,), 0.0, 3, 129, "finishing unit 3 of 10; Ctrl-C stops now"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_signal_ends_a_run_which_goes_on_to_the_same_bytes(folder: Path, tmp_path: Path, during: Any, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    numbers, apart, kept, code, said = CASES[case]
    before, notes = handlers(), Notes()
    fired = during(3, raised(*numbers, apart=apart))
    with pytest.raises(Stopped) as stopped:
        run_experiment(experiment(folder, UNITS), tmp_path / "run", progress=notes)
    assert fired == [2]
    assert units_in(tmp_path / "run") == kept
    assert stopped.value.code == code
    cells = 2 * kept
    assert stopped.value.kept == f"{kept} of 10 units ({cells} of 20 cells) are committed in {tmp_path / 'run'}"
    assert str(stopped.value) == f"stopped; {stopped.value.kept}; the same call goes on"
    assert [n for n in notes.notes if n.startswith("finishing")] == [said]
    assert handlers() == before == list(DEFAULTS.values())
    assert read_events(tmp_path / "run")[-1]["event"] == "paused"
    monkeypatch.undo()
    assert run_experiment(experiment(folder, UNITS), tmp_path / "run").new_cells == 20 - cells
    assert content(tmp_path / "run") == content(folder / "whole")


def test_where_no_unit_is_computed_the_first_signal_stops_now(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gate(self: Here) -> Any:
        signal.raise_signal(signal.SIGTERM)
        pytest.fail("the gate went on")

    monkeypatch.setattr(Here, "gate", gate)
    notes = Notes()
    with pytest.raises(Stopped) as stopped:
        run_experiment(experiment(folder, UNITS), tmp_path / "run", progress=notes)
    assert (stopped.value.code, units_in(tmp_path / "run")) == (143, 2)
    assert not any("finishing" in n for n in notes.notes)


def test_the_command_says_how_to_go_on_and_so_does_status(
    folder: Path, tmp_path: Path, during: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file.yaml").write_text(experiment(folder, UNITS).to_yaml(), encoding="utf-8")
    fired = during(4, raised(signal.SIGTERM))
    assert main(["run", "a file.yaml", "--quiet", "--output", "runs/it{seed}"]) == 143
    assert fired == [3]
    assert capsys.readouterr().err.strip().splitlines()[-2:] == [
        "stopped; 4 of 10 units (8 of 20 cells) are committed in runs/it0",
        "codi-engine run 'a file.yaml' --quiet --output 'runs/it{seed}' goes on",
    ]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["status", "runs/it0"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "committed 4 of 10 units, 8 of 20 cells to go on repeat its command, or: codi-engine run runs/it0/experiment.yaml --output runs/it0" in shown
    command = status_of("runs/it0").goes_on.split()
    with small_units():
        assert main([*command[1:], "--quiet"]) == 0
    assert content(Path("runs/it0")) == content(folder / "whole")
    assert status_of("runs/it0").goes_on == ""


def test_a_run_that_is_tried_out_stops_at_once_and_keeps_nothing(
    folder: Path, during: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    fired = during(1, raised(signal.SIGINT))
    with pytest.raises(Stopped) as stopped:
        try_experiment(experiment(folder, UNITS), limit=2)
    assert fired == [0]
    assert str(stopped.value) == "stopped; nothing is kept of a run that is tried out"
    Path("file.yaml").write_text(experiment(folder, UNITS).to_yaml(), encoding="utf-8")
    during(1, raised(signal.SIGINT))
    assert main(["run", "file.yaml", "--test", "--quiet"]) == 130
    assert capsys.readouterr().err.strip().splitlines()[-1] == "stopped; nothing is kept of a run that is tried out"


def test_checkpoints_stop_too_and_name_the_one_that_was_stopped(folder: Path, tmp_path: Path, during: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "model", other)
    family = experiment(folder, UNITS).model_copy(update={"checkpoints": {"first": str(folder / "model"), "second": str(other)}})
    fired = during(UNITS + 2, raised(signal.SIGINT))
    with pytest.raises(Stopped, match=r"2 of 10 units \(4 of 20 cells\) are committed in .*second; the same call goes on"):
        run_experiment(family, tmp_path / "runs")
    assert fired == [1]
    assert (units_in(tmp_path / "runs/first"), units_in(tmp_path / "runs/second")) == (UNITS, 2)


def test_handlers_of_others_stay_and_other_threads_install_none() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: seen.append(number))
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening(print) as outer, outer.units(lambda: "unit 1 of 1"):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            signal.raise_signal(signal.SIGINT)
            with listening(print) as inner:
                assert inner is outer
            there: list[Any] = []
            thread = threading.Thread(target=lambda: there.append(_listened(outer)))
            thread.start()
            thread.join()
            assert there == [True]
        assert seen == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGHUP, ignored)
    assert handlers() == list(DEFAULTS.values())


def _listened(outer: stopping.Stopping) -> bool:
    """In another thread: a listener of its own, without handlers."""
    before = handlers()
    with listening(print) as mine:
        return mine is not outer and handlers() == before


def test_a_signal_while_handlers_are_put_back_is_not_lost() -> None:
    def interrupted() -> None:
        with listening(print) as made:
            made._leaving = True
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Stopped):
        interrupted()
    assert handlers() == list(DEFAULTS.values())


@pytest.mark.parametrize("moment", ["before the handlers are put back", "after"])
def test_a_signal_at_the_end_leaves_nothing_that_the_next_run_would_listen_with(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put, fired = signal.signal, []

    def interrupted() -> None:
        with listening(print):
            monkeypatch.setattr(signal, "signal", put_back)

    def put_back(number: int, handler: Any) -> Any:
        if moment == "after":
            put(number, handler)
        if number == signal.SIGINT:
            fired.append(number)
            signal.raise_signal(number)
        return put(number, handler)

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    monkeypatch.undo()
    assert fired == [signal.SIGINT]
    assert handlers() == list(DEFAULTS.values())
    with listening(print) as made, pytest.raises(Stopped):
        signal.raise_signal(signal.SIGINT)
    assert made.asked


# ------------------------------------------------------------------------------------------------- the disk


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return what the disk has free; a test changes it."""
    sizes = {"free": 50e9}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=100e9, used=100e9 - sizes["free"], free=sizes["free"]))
    return sizes


def test_a_run_pauses_before_its_disk_is_full_and_goes_on_to_the_same_bytes(
    folder: Path, tmp_path: Path, during: Any, free: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text(experiment(folder, UNITS).to_yaml(), encoding="utf-8")
    fired = during(4, lambda: free.update(free=0.9e9))
    assert main(["run", "file.yaml", "--quiet", "--output", "run"]) == 4
    assert fired == [3]
    message = "only 900 MB are free on the disk of run (keep_free 1 GB): paused after unit 4 of 10; free space and repeat the command"
    assert capsys.readouterr().err.strip().splitlines()[-1] == message
    assert [e["text"] for e in read_events("run") if e["event"] == "paused"] == [message]
    assert units_in(Path("run")) == 4
    assert main(["run", "file.yaml", "--quiet", "--output", "run"]) == 4  # nothing was freed: said before the model is loaded
    assert main(["run", "file.yaml", "--quiet", "--output", "run", "-s", "keep_free=0.5"]) == 0
    assert content(Path("run")) == content(folder / "whole")
    assert main(["run", "file.yaml", "--quiet", "--output", "run"]) == 0  # there is nothing to write


def test_room_counts_the_next_unit_and_small_disks_work(tmp_path: Path, free: dict[str, float]) -> None:
    room = Room(tmp_path, None)
    free["free"] = 1.001e9
    room.check(0, 3)
    room.wrote({"a": {"size": 1_000_000}, "b": {"size": 1}})
    with pytest.raises(Paused, match=r"only 1 GB are free .* and a unit takes up to 1.01 MB \(keep_free 1 GB\): paused after unit 1 of 3"):
        room.check(1, 3)
    free["free"] = 0.0
    Room(tmp_path, 0).check(1, 3)
    with pytest.raises(Paused, match=r"\(keep_free 2.5 GB\)"):
        Room(tmp_path, 2.5e9).check(1, 3)


def test_at_most_a_share_of_a_small_disk_is_kept_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1e6, used=9e5, free=1e5))
    Room(tmp_path, None).check(0, 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1e6, used=9.6e5, free=4e4))
    with pytest.raises(Paused, match=r"keep_free 50 kB"):
        Room(tmp_path, None).check(0, 1)


def test_what_does_not_fit_is_said_before_anything_is_computed(
    folder: Path, tmp_path: Path, during: Any, free: dict[str, float], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    free["free"] = 2000.0
    value = experiment(folder, UNITS).with_overrides(["keep_free=0"])
    notes = Notes()
    fired = during(1, lambda: notes.notes.append("computing"))
    run_experiment(value, tmp_path / "run", progress=notes)
    assert fired == [0]
    said = [n for n in notes.notes if "still to be written" in n]
    assert len(said) == 1
    assert notes.notes.index(said[0]) < notes.notes.index("computing")
    monkeypatch.chdir(tmp_path)
    Path("file.yaml").write_text(value.to_yaml(), encoding="utf-8")
    assert main(["plan", "file.yaml", "--quiet"]) == 0
    assert "; 2 kB are free there, which is too little" in capsys.readouterr().out


def test_a_terminal_that_is_gone_stops_nothing() -> None:
    from rich.console import Console

    class Gone:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise OSError(5, "Input/output error")

        def flush(self) -> None:
            raise OSError(5, "Input/output error")

        def isatty(self) -> bool:
            return False

    shown = TerminalProgress(Console(file=Gone()), every=0.0)  # type: ignore[arg-type]
    shown.start("loading", 0, "")
    shown.start("sweep", 3, "cells")
    shown.advance(1)
    shown.note("something")
    shown.finish()
