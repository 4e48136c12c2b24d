"""SIGKILL at any moment: what is committed stays, the same command goes on, and the end is byte for byte that of an undisturbed run.

Left out of the comparison are the files that hold times (``provenance.json`` and its copy, ``events.jsonl``, ``made`` in ``result.json``).
"""

from __future__ import annotations

import itertools
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.store import layout
from codi_engine.store.ledger import read_ledger
from codi_engine.store.reader import RunReader
from tests.support.crash import CHUNK, Ended, Nursery, committed, content, experiment, leftovers

RUN = ["run", "-q", "e.yaml", "--output", "run"]
KILLS, DIRECTED, PARTIAL = 200, 60, 20
#: (call, part of the path, which one) where a whole run dies; of a write, half of it is on disk then
PLACES = [
    *[("write", "ledger", n) for n in (1, 2, 3, 5, 8, 10)],
    *[("write", "zarr.json", n) for n in (1, 7, 20)],
    *[("write", "/c.", n) for n in (1, 2, 11, 23, 40, 77, 101, 130)],
    *[("write", "texts/", n) for n in (1, 2, 4, 8)],
    *[("write", "provenance.json", n) for n in (1, 2, 3)],
    *[("write", "experiment.yaml", 1), ("write", "events.jsonl", 1), ("write", "events.jsonl", 4), ("write", "lock", 1)],
    *[("rename", "/c.", n) for n in (1, 2, 13, 50, 99)],
    *[("rename", name, 1) for name in ("zarr.json", "experiment.yaml", "provenance.json", "texts/")],
    *[("rename", "zarr.json", 9), ("rename", "texts/", 5), ("rename", "provenance.json", 2)],
    *[("fsync", "ledger", n) for n in (1, 2, 3, 6, 10)],
    *[("fsync", "", n) for n in (1, 2, 30, 60, 90, 150, 260)],
    *[("fsync", "provenance.json", 1), ("fsync", "texts", 2), ("fsync", "/c.", 33)],
    *[("mkdir", "", n) for n in (1, 2, 5, 12)],
    *[("truncate", "ledger", 2), ("truncate", "ledger", 4), ("truncate", "lock", 1)],
    *[("open", "ledger", 1), ("open", "/c.", 60), ("unlink", "lock", 1)],
]
#: where an analysis dies that writes its results
RESULTS = [
    *[("write", "result.json", 1), ("write", "result.json", 2), ("write", "summary.txt", 1), ("write", ".svg", 1), ("write", ".png", 1), ("write", ".png", 3)],
    *[("rename", ".parquet", 1), ("rename", "result.json", 1), ("rename", "result.json", 2), ("rename", ".svg", 2)],
    *[("fsync", "results", 1), ("fsync", "results", 5), ("mkdir", "results", 1)],
]


@pytest.fixture(autouse=True)
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read as the children of the engine's nursery write."""
    if "slow" in request.keywords:
        monkeypatch.setattr(layout, "CHUNK_BYTES", CHUNK)


def unchanged(before: dict[int, Any], run: Path) -> dict[int, Any]:
    """Return what is committed now; what was so before must be among it, unchanged."""
    now = committed(run)
    assert before.items() <= now.items(), "what was committed is lost"
    assert not now or [p for p in RunReader(run).verify() if "last line is torn" not in p] == []  # that is what a kill leaves
    return now


def is_partial(run: Path, ended: Ended) -> bool:
    """Say whether the killed write left a part of a file behind."""
    kind, name, *half = ended.fired.split(" ")
    if kind != "write" or not half or int(half[0] or 0) < 1:
        return False
    return read_ledger(run / name).torn if name == "ledger" else (run / name).stat().st_size > 0


def compared(run: Path, whole: dict[str, bytes]) -> None:
    found = content(run)
    assert found.keys() == whole.keys()
    assert [name for name in whole if whole[name] != found[name]] == []
    assert leftovers(run) == []
    assert RunReader(run).verify() == []


# -------------------------------------------------------------------------------------------------- the store alone, quick


@pytest.fixture(scope="module")
def store() -> Iterator[Nursery]:
    with Nursery(engine=False) as nursery:
        yield nursery


def test_a_small_run_survives_kills(store: Nursery, tmp_path: Path) -> None:
    began = store.store(tmp_path / "whole", 2, 2)
    assert began.code == 0, began.said
    whole = content(tmp_path / "whole")
    places = [("write", "ledger", 3), ("rename", "/c.", 12), ("fsync", "", 40), ("write", "texts/", 2)]
    partial = 0
    for kind, file, number in places:
        run = tmp_path / "run"
        ended = store.store(run, 2, 2, inject={"kind": kind, "file": file, "number": number, "act": "kill", "run": str(run)})
        assert (ended.code, ended.fired[: len(kind)]) == (-9, kind), ended.said
        partial += is_partial(run, ended)
        before = unchanged({}, run)
        assert store.store(run, 2, 2).code == 0
        unchanged(before, run)
        compared(run, whole)
        shutil.rmtree(run)
    assert partial == 2
    fired, before, rng = 0, {}, random.Random(3)
    while fired < 2:
        fired += store.store(tmp_path / "run", 2, 2, kill_after=rng.uniform(0.2, 0.6) * began.seconds).code == -9
        before = unchanged(before, tmp_path / "run")
    assert store.store(tmp_path / "run", 2, 2).code == 0
    compared(tmp_path / "run", whole)


# ------------------------------------------------------------------------------------------------------ whole runs, slow


@pytest.fixture(scope="module")
def engine() -> Iterator[Nursery]:
    with Nursery() as nursery:
        yield nursery


@pytest.fixture
def place(tmp_path: Path) -> Callable[..., Path]:
    """Return a maker of folders with an experiment in them."""

    def make(name: str, analyses: tuple[str, ...]) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "e.yaml").write_text(Experiment.from_dict(experiment(analyses=analyses)).to_yaml())
        return folder

    return make


def reference(engine: Nursery, folder: Path) -> tuple[dict[str, bytes], float]:
    """Return what an undisturbed run leaves, and the seconds that it takes."""
    first = engine.warm(folder, RUN)
    assert first.code == 0, first.said
    whole = content(folder / "run")
    shutil.rmtree(folder / "run")
    second = engine.run(folder, RUN)
    assert content(folder / "run") == whole, "two undisturbed runs differ"
    assert len(committed(folder / "run")) >= 8
    return whole, second.seconds


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_random_kills(engine: Nursery, place: Callable[..., Path]) -> None:
    kinds = {analyses: reference(engine, place(f"whole-{len(analyses)}", analyses)) for analyses in ((), ("importance",))}
    rng, kills, runs, most = random.Random(6), 0, 0, 0
    while kills < KILLS:
        runs += 1
        analyses = ("importance",) if runs % 4 == 0 else ()
        whole, seconds = kinds[analyses]
        folder, before = place(f"run-{runs}", analyses), dict[int, Any]()
        for life in itertools.count(1):
            assert life < 60, "it does not come to an end"
            ended = engine.run(folder, RUN, kill_after=rng.uniform(0.02, 0.9) * seconds)
            if ended.code == 0:
                most = max(most, life - 1)
                break
            assert ended.code == -9, ended.said
            kills += 1
            before = unchanged(before, folder / "run")
        compared(folder / "run", whole)
        shutil.rmtree(folder)
    sys.stdout.write(f"\n{kills} kills at random times in {runs} runs, at most {most} in one: every run ended like the undisturbed one\n")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_directed_kills(engine: Nursery, place: Callable[..., Path]) -> None:
    plain, _ = reference(engine, place("plain", ()))
    analysed, _ = reference(engine, place("analysed", ("importance",)))
    fired = partial = 0
    kinds: dict[str, int] = {}
    for analyses, whole, places in ((("importance",), analysed, RESULTS), ((), plain, PLACES)):
        for kind, file, number in places:
            folder = place(f"at-{fired}", analyses)
            ended = engine.run(folder, RUN, inject={"kind": kind, "file": file, "number": number, "act": "kill", "run": str(folder / "run")})
            assert (ended.code, ended.fired.split(" ")[0]) == (-9, kind), f"{kind} {number} of '{file}' never fired: {ended.fired} {ended.said}"
            fired, kinds[kind] = fired + 1, kinds.get(kind, 0) + 1
            partial += is_partial(folder / "run", ended)
            before = unchanged({}, folder / "run")
            again = engine.run(folder, RUN)
            assert again.code == 0, again.said
            unchanged(before, folder / "run")
            compared(folder / "run", whole)
            shutil.rmtree(folder)
    assert fired >= DIRECTED
    assert partial >= PARTIAL
    sys.stdout.write(
        f"\n{fired} kills at chosen calls ({', '.join(f'{n} {k}' for k, n in sorted(kinds.items()))}), {partial} left a part of a file: all resumed alike\n"
    )
