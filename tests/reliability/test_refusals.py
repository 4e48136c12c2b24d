"""A machine that refuses in the middle of a run: disks that turn read-only, vanish or fail, limits of files, sizes and memory."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.core.errors import of_the_machine
from codi_engine.store import layout
from codi_engine.store.reader import RunReader
from tests.support.crash import CHUNK, Ended, Nursery, committed, content, experiment, leftovers

RUN = ["run", "-q", "e.yaml", "--output", "run"]
#: what happens, and what is said of it
EVENTS: dict[str, tuple[dict[str, Any], str]] = {
    "readonly": ({"act": "readonly"}, "cannot be written (Read-only file system); what is committed stays"),
    "moved": ({"act": "away"}, "has vanished, was moved, or was replaced"),
    "removed": ({"act": "gone"}, "has vanished, was moved, or was replaced"),
    "forbidden": ({"act": "nobody"}, "cannot be written (Permission denied)"),
    "open files": ({"act": "nofile"}, "too many files are open; what is committed stays: raise the limit"),
    "large files": ({"act": "fsize"}, "larger than is allowed"),
    "failing": ({"act": "errno", "errno": errno.EIO, "often": True}, "the disk fails"),
    "failing once": ({"act": "errno", "errno": errno.EIO}, "the disk fails"),
    "quota": ({"act": "errno", "errno": errno.EDQUOT}, "the disk is full; what is committed stays"),
}


@pytest.fixture(autouse=True)
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as the children of the engine's nursery write."""
    if "slow" in request.keywords:
        monkeypatch.setattr(layout, "CHUNK_BYTES", CHUNK)


def told(ended: Ended, *parts: str) -> None:
    assert ended.code == 2, ended.said
    assert "Traceback" not in ended.said
    assert "defect" not in ended.said
    assert 1 <= len(ended.lines) <= 2, ended.said
    assert any(part in ended.said for part in parts), ended.said


def mended(nursery: Nursery, run: Path, event: str, before: dict[int, Any]) -> None:
    """Bring the disk back as the user would, and check that nothing was lost and nothing made in its absence."""
    if event == "readonly":
        nursery.unmount(run)
    if event == "moved":
        assert not run.exists(), "a run that was moved was begun again in its place"
        run.with_name("away").rename(run)
    if event == "removed":
        assert not run.exists(), "a run that was removed was begun again in its place"
    else:
        assert before.items() <= committed(run).items()


def alike(run: Path, whole: dict[str, bytes]) -> None:
    found = content(run)
    assert [name for name in sorted({*whole, *found}) if whole.get(name) != found.get(name)] == []
    assert leftovers(run) == []
    assert RunReader(run).verify() == []


# -------------------------------------------------------------------------------------------------- the store alone, quick


@pytest.fixture(scope="module")
def store() -> Iterator[Nursery]:
    with Nursery(engine=False) as nursery:
        yield nursery


@pytest.fixture(scope="module")
def undisturbed(store: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small run that nothing happened to."""
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    assert store.store(path, 2, 1).code == 0
    return path


@pytest.mark.parametrize("event", EVENTS)
def test_a_small_run_is_refused_and_goes_on(store: Nursery, undisturbed: Path, tmp_path: Path, event: str) -> None:
    if event == "readonly":
        trial = tmp_path / "trial"
        trial.mkdir()
        if problem := store.mount(trial, "size=1m"):
            pytest.skip(f"no file system can be mounted here: {problem}")
        store.unmount(trial)
    run = tmp_path / "run"
    order, message = EVENTS[event]
    ended = store.store(run, 2, 1, inject={"kind": "open", "file": "c.1", "number": 5, "run": str(run), **order})
    assert ended.fired
    told(ended, message)
    mended(store, run, event, {} if event == "removed" else {0: committed(undisturbed)[0]})
    assert store.store(run, 2, 1).code == 0
    alike(run, content(undisturbed))


def test_what_is_a_state_of_the_machine_is_no_defect() -> None:
    for number in (errno.ENOSPC, errno.EROFS, errno.EMFILE, errno.EIO, errno.EFBIG, errno.ENOMEM):
        assert "what is committed stays" in str(of_the_machine(OSError(number, "said by the system", "a/file")))
    assert str(of_the_machine(OSError(errno.EIO, "", "a/file"))).startswith("a/file: the disk fails")
    assert "a/file: Permission denied; what is committed stays" in str(of_the_machine(PermissionError(errno.EACCES, "Permission denied", "a/file")))
    assert "memory is used up" in str(of_the_machine(MemoryError()))
    assert "memory is used up" in str(of_the_machine(RuntimeError("could not create a primitive")))
    assert "memory is used up" in str(of_the_machine(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")))
    for defect in (FileNotFoundError(errno.ENOENT, "No such file", "x"), OSError("words alone"), RuntimeError("other"), ValueError(), KeyError("x")):
        assert of_the_machine(defect) is None


# ------------------------------------------------------------------------------------------------------ whole runs, slow


@pytest.fixture(scope="module")
def engine() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_whole_runs_are_refused_and_go_on(engine: Nursery, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(Experiment.from_dict(experiment(analyses=())).to_yaml())
    assert engine.warm(tmp_path, RUN).code == 0
    run = tmp_path / "run"
    whole = content(run)
    places = [("open", "/c.2", 5), ("any", "ledger", 9), ("any", "", 700), ("write", "provenance.json", 2)]
    refused, heard = 0, set[str]()
    for event, (order, _) in EVENTS.items():
        for kind, file, number in places:
            shutil.rmtree(run)
            ended = engine.run(tmp_path, RUN, inject={"kind": kind, "file": file, "number": number, "run": str(run), **order})
            assert ended.fired, (event, kind, file)
            if ended.code != 0:  # one failure of the bookkeeping beside a run does not end it
                told(ended, "run: ", "run/")
                refused += 1
                heard.add(ended.said.strip())
            mended(engine, run, event, {})
            again = engine.run(tmp_path, RUN)
            assert again.code == 0, (event, kind, file, again.said)
            alike(run, whole)
    assert refused >= 30
    sys.stdout.write(f"\n{refused} of {len(EVENTS) * len(places)} runs were refused something and ended with a message; all went on alike; said:\n")
    sys.stdout.write("\n".join(sorted(heard)) + "\n")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_that_is_used_up(engine: Nursery, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(Experiment.from_dict(experiment()).to_yaml())
    assert engine.warm(tmp_path, RUN).code == 0
    run = tmp_path / "run"
    whole, refused, hung = content(run), 0, 0
    for number in (1, 60, 200, 400, 700, 900):
        for spare in (0, 1 << 20, 16 << 20):
            shutil.rmtree(run)
            inject = {"kind": "any", "number": number, "act": "memory", "spare": spare, "run": str(run)}
            ended = engine.run(tmp_path, RUN, inject=inject)
            assert ended.fired
            if ended.hung:
                hung += 1
            elif ended.code != 0:
                told(ended, "memory")
                refused += 1
            again = engine.run(tmp_path, RUN)
            assert again.code == 0, again.said
            alike(run, whole)
    assert refused >= 9
    assert hung <= 4
    sys.stdout.write(f"\n{refused} of 18 runs without memory ended with a message, {hung} waited for a thread and were killed; all went on alike\n")


@pytest.mark.slow
def test_runs_is_a_file(engine: Nursery, tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text(Experiment.from_dict(experiment(analyses=())).to_yaml())
    (tmp_path / "runs").write_text("mine")
    told(engine.run(tmp_path, ["run", "-q", "e.yaml"]), "runs")
    told(engine.run(tmp_path, ["run", "-q", "e.yaml", "--output", "runs"]), "is a file; give a directory")
    assert (tmp_path / "runs").read_text() == "mine"
