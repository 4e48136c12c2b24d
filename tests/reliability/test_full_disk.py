"""A full disk: real file systems that are too small, and then large enough. Mounts are private to the process that makes them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.store import layout
from codi_engine.store.reader import RunReader
from tests.support.crash import CHUNK, Ended, Nursery, committed, content, experiment, leftovers

RUN = ["run", "-q", "e.yaml", "--output", "disk/run"]
REMOUNT = 32
SIZES = 20
#: a run that pauses because the disk is nearly full ends with 4
FULL = (2, 4)


@pytest.fixture(autouse=True)
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as the children of the engine's nursery write."""
    if "slow" in request.keywords:
        monkeypatch.setattr(layout, "CHUNK_BYTES", CHUNK)


def mounted(nursery: Nursery, at: Path, options: str) -> Path:
    """Mount a small disk, and return where it is seen from here."""
    at.mkdir(exist_ok=True)
    problem = nursery.mount(at, options)
    if problem:
        pytest.skip(f"no file system can be mounted here: {problem}")
    return nursery.seen(at)


def said(ended: Ended) -> str:
    """Check how a run ended that was out of disk, and return what it said."""
    assert ended.code in FULL, ended.said
    assert "Traceback" not in ended.said
    assert "defect" not in ended.said
    assert 1 <= len(ended.lines) <= 2, ended.said
    assert "disk is full" in ended.said or "no more files" in ended.said or ended.code == 4
    assert "repeat the command" in ended.said or ended.code == 4
    return ended.said


def whole(run: Path, reference: dict[str, bytes]) -> None:
    """Check that a run is what an undisturbed one is."""
    found = content(run)
    assert found.keys() == reference.keys()
    assert [name for name in reference if found[name] != reference[name]] == []
    assert leftovers(run) == []
    assert RunReader(run).verify() == []


def readable(run: Path) -> dict[int, Any]:
    """Read back everything that is committed."""
    done = committed(run)
    if done:
        reader = RunReader(run)
        assert not reader.verify()
        for name in (n for n in reader.specs if not reader.spec(n).entries):
            reader.read(name)
        reader.texts()
    return done


# -------------------------------------------------------------------------------------------------- the store alone, quick


@pytest.fixture(scope="module")
def store() -> Iterator[Nursery]:
    with Nursery(engine=False) as nursery:
        yield nursery


@pytest.mark.parametrize("kilobytes", [40, 170])
def test_a_small_run_goes_on_when_there_is_room_again(store: Nursery, tmp_path: Path, kilobytes: int) -> None:
    assert store.store(tmp_path / "whole", 3, 1).code == 0
    seen = mounted(store, tmp_path / "disk", f"size={kilobytes}k")
    assert "the disk is full; what is committed stays: free space" in said(store.store(tmp_path / "disk/run", 3, 1))
    assert bool(readable(seen / "run")) == (kilobytes == 170)
    assert store.mount(tmp_path / "disk", "size=9m", REMOUNT) == ""
    assert store.store(tmp_path / "disk/run", 3, 1).code == 0
    whole(seen / "run", content(tmp_path / "whole"))
    store.unmount(tmp_path / "disk")


def test_a_disk_without_room_for_more_files_says_so(store: Nursery, tmp_path: Path) -> None:
    mounted(store, tmp_path / "disk", "size=9m,nr_inodes=50")
    assert "can hold no more files" in said(store.store(tmp_path / "disk/run", 3, 1))
    store.unmount(tmp_path / "disk")


# ------------------------------------------------------------------------------------------------------ whole runs, slow


@pytest.fixture(scope="module")
def engine() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def place(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """Return a folder with an experiment in it, without analyses where they are not asked for."""
    value = experiment(analyses=getattr(request, "param", ()))
    if "keep_free" in Experiment.model_fields:
        value["keep_free"] = 0
    (tmp_path / "e.yaml").write_text(Experiment.from_dict(value).to_yaml())
    return tmp_path


def reference(engine: Nursery, folder: Path) -> tuple[dict[str, bytes], int]:
    """Return what an undisturbed run leaves, and the kilobytes that it takes on such a disk."""
    seen = mounted(engine, folder / "disk", "size=90m")
    first = engine.warm(folder, RUN)
    assert first.code == 0, first.said
    taken = sum(-(-p.stat().st_size // 4096) * 4 for p in seen.rglob("*") if p.is_file())
    found = content(seen / "run")
    engine.unmount(folder / "disk")
    return found, taken


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_runs_on_disks_of_twenty_sizes(engine: Nursery, place: Path) -> None:
    undisturbed, needed = reference(engine, place)
    heard, kept = set[str](), list[int]()
    for number in range(SIZES):
        size = 4 + (needed - 40) * number // (SIZES - 1) // 4 * 4
        seen = mounted(engine, place / "disk", f"size={size}k")
        heard.add(said(engine.run(place, RUN)).strip())
        done = readable(seen / "run")
        kept.append(len(done))
        assert engine.mount(place / "disk", "size=90m", REMOUNT) == ""
        again = engine.run(place, RUN)
        assert again.code == 0, again.said
        assert done.items() <= committed(seen / "run").items()
        whole(seen / "run", undisturbed)
        engine.unmount(place / "disk")
    assert kept[0] == 0
    assert len(set(kept)) >= 4
    sys.stdout.write(f"\n{SIZES} sizes from 4 to {needed - 40} kB of {needed} needed, {sorted(set(kept))} units committed: each went on alike; said:\n")
    sys.stdout.write("\n".join(sorted(heard)) + "\n")


AFTERWARDS = [
    ["analyze", "-q", "disk/run", "importance"],
    ["report", "disk/run"],
    ["report", "disk/run", "--md"],
    ["export", "disk/run", "--to", "parquet", "-o", "disk/cells.parquet"],
    ["export", "disk/run", "--to", "csv", "-o", "disk/cells.csv"],
    ["export", "disk/run", "--to", "npz", "--what", "activations/resid_post@latent", "-o", "disk/a.npz"],
    ["export", "disk/run", "--to", "pt", "--what", "activations/codes", "-o", "disk/a.pt"],
    ["export", "disk/run", "--to", "netcdf", "-o", "disk/a.nc"],
    ["note", "disk/run", "a word " * 3000],
]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("place", [("importance",)], indirect=True)
def test_what_is_made_of_a_run_on_a_full_disk(engine: Nursery, place: Path) -> None:
    undisturbed, _ = reference(engine, place)
    seen = mounted(engine, place / "disk", "size=90m")
    assert engine.run(place, RUN).code == 0
    for arguments in AFTERWARDS:
        before = set(seen.rglob("*"))
        taken = sum(-(-p.stat().st_size // 4096) * 4 for p in before if p.is_file())
        for room in (0, 8, 16):
            assert engine.mount(place / "disk", f"size={taken + room}k", REMOUNT) == "", arguments
            ended = engine.run(place, arguments)
            if ended.code != 0:
                said(ended)
                break
        else:
            raise AssertionError(f"{arguments} found room")
        assert engine.mount(place / "disk", "size=90m", REMOUNT) == ""
        if arguments[0] != "analyze":
            assert set(seen.rglob("*")) == before, arguments
        again = engine.run(place, arguments)
        assert again.code == 0, again.said
    assert {name: data for name, data in content(seen / "run").items() if name in undisturbed} == undisturbed
    engine.unmount(place / "disk")
