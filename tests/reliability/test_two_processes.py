"""Several processes on one run: a second writer is refused with the first one's name, readers see committed units only."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine.cli.main import main
from codi_engine.core.errors import UserError
from codi_engine.core.runs.results import open_run
from codi_engine.store import lock as locks
from codi_engine.store.errors import StoreError
from codi_engine.store.lock import holder
from codi_engine.store.reader import RunReader
from codi_engine.store.zarrs import RunStore
from tests.store.sample import content, write
from tests.support.writers import Child, grow_by, opened, read_until, together

UNITS = 6
PLANS = 8


@pytest.fixture
def children() -> Iterator[Callable[[int], list[Child]]]:
    """Return a maker of processes, which end with the test."""
    made: list[Child] = []

    def make(count: int) -> list[Child]:
        made.extend(Child() for _ in range(count))
        return made[-count:]

    yield make
    for child in made:
        child.kill() if child.process.poll() is None else child.end()


# ------------------------------------------------------------------------------------------------ two writers


def race(writers: list[Child], folder: Path, times: int) -> tuple[int, int]:
    """Let writers begin one run at the same moment, again and again; returns (refused, lossless)."""
    write(folder / "whole", UNITS)
    whole = content(folder / "whole")
    refused, lossless = 0, 0
    for number in range(times):
        path = folder / f"run-{number}"
        said = together(writers, "write", path, UNITS)
        for mine, answer in zip(writers, said, strict=True):
            if answer:
                owners = [w.pid for w in writers if f"{socket.gethostname()} pid {w.pid};" in answer and w is not mine]
                assert len(owners) == 1, f"the refusal names no owner: {answer}"
                assert answer.startswith(f"{path}: is being written by ")
        assert "" in said, f"all were refused: {said}"
        refused, lossless = refused + len(writers) - said.count(""), lossless + said.count("")
        assert content(path) == whole, f"round {number}: other bytes than one writer's"
        assert RunReader(path).verify() == []
    return refused, lossless


def test_writers_that_begin_together_lose_nothing(children: Callable[[int], list[Child]], tmp_path: Path) -> None:
    refused, lossless = race(children(2), tmp_path, 3)
    assert refused > 0, "nobody was refused: the writers did not meet"
    assert lossless >= 3


@pytest.mark.slow
@pytest.mark.parametrize("writers", [2, 5])
def test_writers_that_begin_together_twenty_times(children: Callable[[int], list[Child]], tmp_path: Path, writers: int) -> None:
    refused, lossless = race(children(writers), tmp_path, 20)
    assert refused > 0, "nobody was refused: the writers did not meet"
    print(f"{writers} writers, 20 rounds: {refused} refused by name, {lossless} wrote or found everything, 0 bytes differ")


def test_a_killed_owner_is_succeeded_at_once_whatever_its_children_do(children: Callable[[int], list[Child]], tmp_path: Path) -> None:
    write(tmp_path / "run", 2)
    (owner,) = children(1)
    left = owner.ask("children", tmp_path / "run")
    try:
        assert f"pid {owner.pid}" in (holder(tmp_path / "run/lock") or "")
        with pytest.raises(StoreError, match=f"pid {owner.pid};"):
            opened(tmp_path / "run")
        owner.process.kill()
        owner.process.wait()
        for child in left:
            os.kill(child, 0)  # both live
        begun = time.monotonic()
        assert holder(tmp_path / "run/lock") is None
        opened(tmp_path / "run").close()
        assert time.monotonic() - begun < locks._PATIENCE, "the lock was not free at once"
    finally:
        for child in left:
            os.kill(child, signal.SIGKILL)
    assert not (tmp_path / "run/lock").exists()


# ------------------------------------------------------------------------------------------------- odd locks


@pytest.mark.parametrize("says", [b"elsewhere pid 1", b"", b"\xff\x00\x1b[2J" * 90, b"x" * 100_000, "host pid ²".encode(), b"pid 99999999999999999999"])
@pytest.mark.parametrize("mode", [0o644, 0o444])
def test_a_leftover_is_taken_over_whatever_it_says(tmp_path: Path, says: bytes, mode: int) -> None:
    write(tmp_path / "run", 1)
    lock = tmp_path / "run/lock"
    lock.write_bytes(says.replace(b"host", socket.gethostname().encode()))
    lock.chmod(mode)
    assert holder(lock) is None
    with opened(tmp_path / "run"):
        assert lock.read_bytes().decode() == f"{socket.gethostname()} pid {os.getpid()}"
    assert not lock.exists()


def test_what_is_no_file_is_refused_in_one_line(tmp_path: Path) -> None:
    write(tmp_path / "run", 1)
    lock, precious = tmp_path / "run/lock", tmp_path / "precious"
    precious.write_text("mine")
    makers: tuple[Callable[[], Any], ...] = (
        lambda: lock.mkdir(),
        lambda: os.mkfifo(lock),
        lambda: lock.symlink_to(precious),
        lambda: lock.symlink_to(tmp_path / "new"),
    )
    for make in makers:
        make()
        assert holder(lock) is None
        with pytest.raises(StoreError, match=r"lock: is (no plain file; remove it|a link to .*, which is outside the run)"):
            opened(tmp_path / "run")
        lock.rmdir() if stat.S_ISDIR(lock.lstat().st_mode) else lock.unlink()
    assert precious.read_text() == "mine"
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    import fcntl

    fired = []

    def refuse(descriptor: int, operation: int) -> None:
        fired.append(operation)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(StoreError, match="its file system has no locks") as caught:
        opened(tmp_path / "run")
    assert fired
    assert str(caught.value).count("\n") == 0
    assert len(os.listdir("/proc/self/fd")) == before, "a handle stays open"


def test_a_full_disk_while_locking_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "run", 1)
    real, fired = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        if b" pid " in data:
            fired.append(data)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StoreError, match="disk is full"):
        opened(tmp_path / "run")
    assert fired
    monkeypatch.undo()
    opened(tmp_path / "run").close()


def test_a_lock_that_somebody_removed_stops_its_owner(tmp_path: Path) -> None:
    write(tmp_path / "run", 1)
    first = opened(tmp_path / "run")
    grow_by(first, 1)
    (tmp_path / "run/lock").unlink()
    with opened(tmp_path / "run") as second:
        before = content(tmp_path / "run")
        attempts: tuple[Callable[[], None], ...] = (lambda: grow_by(first, 1), lambda: first.set_provenance({"mine": 1}))
        for attempt in attempts:
            with pytest.raises(StoreError, match="was removed or replaced"):
                attempt()
        first.close()
        assert content(tmp_path / "run") == before, "the first writer wrote, or took the second one's lock away"
        grow_by(second, 1)
    assert RunReader(tmp_path / "run").verify() == []


# -------------------------------------------------------------------------------------------------- readers


@pytest.mark.slow
def test_a_reader_sees_whole_units_while_they_are_written(children: Callable[[int], list[Child]], tmp_path: Path) -> None:
    (writer,) = children(1)
    writer.tell("grow", tmp_path / "run", PLANS)
    openings, seen, wrong = read_until(tmp_path / "run", PLANS, zarrs=False)
    plans, units = writer.hear()
    assert not wrong, f"after {openings} openings: {wrong}"
    assert (plans, seen) == (PLANS, units)
    assert openings > 2, f"only {openings} openings"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_three_readers_see_whole_units_while_they_are_written(children: Callable[[int], list[Child]], tmp_path: Path) -> None:
    writer, *readers = children(4)
    writer.tell("grow", tmp_path / "run", 60)
    for reader in readers:
        reader.tell("read", tmp_path / "run", 60)
    found = [reader.hear() for reader in readers]
    plans, units = writer.hear()
    assert not [wrong for _, _, wrong in found if wrong], found
    openings = sum(o for o, _, _ in found)
    assert openings > 60
    print(f"3 readers: {openings} openings, {units} units in {plans} plans, 0 errors")


def test_a_run_that_goes_away_is_said(tmp_path: Path) -> None:
    write(tmp_path / "run", 2)
    reader, store, writer = RunReader(tmp_path / "run"), RunStore(tmp_path / "run"), opened(tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    with pytest.raises(StoreError, match="is missing"):
        reader.read_unit("cells/status", 0)
    with pytest.raises(StoreError, match="is missing"):
        store.get_sync("cells/status/c.0")
    with pytest.raises(StoreError, match="has vanished, was moved, or was replaced"):
        grow_by(writer, 1)
    writer.close()
    with pytest.raises(UserError, match="run"):
        open_run(tmp_path / "run")
    assert not (tmp_path / "run").exists(), "the writer made its directory again"
    assert RunReader(tmp_path / "elsewhere").committed.keys() == {0, 1}


# ------------------------------------------------------------------------------------------------- commands


def command(*arguments: str) -> subprocess.Popen[str]:
    call = [sys.executable, "-m", "codi_engine", *arguments]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def data_of(path: Path) -> dict[str, bytes]:
    """Return what must be equal: everything but times."""
    return {n: d for n, d in content(path).items() if n.startswith(("data.zarr/", "texts/", "ledger"))}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_twice_at_once(tmp_path: Path) -> None:
    alone = command("run", "--limit", "2", "--output", str(tmp_path / "alone"), "-q")
    assert (alone.communicate(), alone.returncode)[1] == 0
    refused = 0
    for number in range(3):
        both = [command("run", "--limit", "2", "--output", str(tmp_path / f"run-{number}"), "-q") for _ in range(2)]
        said = [process.communicate()[1] for process in both]
        codes = [process.returncode for process in both]
        assert sorted(codes) in ([0, 0], [0, 2]), said
        if 2 in codes:
            line, owner = said[codes.index(2)], both[codes.index(0)].pid
            assert f"is being written by {socket.gethostname()} pid {owner};" in line
            assert len(line.strip().splitlines()) <= 2
            refused += 1
        assert data_of(tmp_path / f"run-{number}") == data_of(tmp_path / "alone")
    assert refused, "the commands never met"
    print(f"codi-engine run twice at once, 3 rounds: {refused} refused with exit code 2 and the owner's pid, equal bytes")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_other_commands_while_a_run_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sees one state of the run, or says in a line why not; an analysis says of which state it is."""
    monkeypatch.chdir(tmp_path)
    owner = command("run", "--output", "run", "-q")
    calls = (
        ("verify", "run"), ("status", "run"), ("export", "run", "--to", "parquet", "-o", "cells.parquet", "--force"), ("report", "run"),
        ("note", "run", "seen"), ("analyze", "run", "importance", "-q"),
    )  # fmt: skip
    seen: Counter[tuple[str, int]] = Counter()
    states = []
    while owner.poll() is None:
        if not Path("run/data.zarr/zarr.json").exists():  # no run yet
            time.sleep(0.01)
            continue
        for call in calls:
            code = main(list(call))
            said = capsys.readouterr().err
            assert code in (0, 2), (call, code, said)
            assert not [word for word in ("defect", "Traceback") if word in said], (call, said)
            assert len(said.strip().splitlines()) <= 3, (call, said)
            seen[call[0], code] += 1
            if call[0] == "analyze" and code == 0:
                states.append(json.loads(Path("run/results/importance/result.json").read_text(encoding="utf-8"))["runs"][0]["digest"])
    assert owner.returncode == 0, owner.communicate()
    owner.communicate()
    chains = [json.loads(line)["chain"] for line in Path("run/ledger").read_text(encoding="utf-8").splitlines()]
    assert set(states) <= set(chains)
    assert not seen["verify", 2], seen
    assert all(seen[name, 0] for name in ("verify", "note", "export")), seen
    assert main(["verify", "run"]) == 0
    print("while a run was written:", ", ".join(f"{n} × {name} → {code}" for (name, code), n in sorted(seen.items())), f"; {len(set(states))} states analysed")
