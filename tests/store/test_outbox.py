"""The outbox: units put by those who do not write the run, adopted by the one who does, to the bytes of a plain commit."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from codi_engine.store.errors import StoreError
from codi_engine.store.lock import RunLock
from codi_engine.store.outbox import Outbox, Receipt, owners
from codi_engine.store.reader import RunReader
from codi_engine.store.repairing import repair
from codi_engine.store.unitfiles import Content
from codi_engine.store.verifying import verify
from codi_engine.store.writer import RunWriter
from tests.store.sample import CELLS, IDENTITY, content, labels, rows_of, specs, unit_arrays, unit_texts, write
from tests.support.injection import Injection
from tests.support.syscalls import Call, Tap

UNITS = 3
Change = Callable[[Path], object]


def opened(path: Path, **changes: Any) -> RunWriter:
    return RunWriter.open(path, **{"identity": IDENTITY, "unit_cells": CELLS, "experiment": "", "provenance": {"by": "test"}, **changes})


def planned(path: Path, plans: int = 1) -> Path:
    with opened(path) as writer:
        for plan in range(plans):
            writer.experiment = f"name: plan {plan}\n"
            writer.add_plan({"plan": plan}, UNITS, specs(), labels(3 * (plan + 1)))
    return path


def put(outbox: Outbox, unit: int) -> Receipt:
    rows = rows_of(unit)
    return outbox.put(unit, "sweep" if unit else "baseline", Content(unit_arrays(unit, rows), unit_texts(unit, rows), {"plan": unit // UNITS}))


def filled(path: Path, units: Sequence[int] = range(UNITS)) -> Path:
    with Outbox(planned(path)) as outbox:
        for unit in units:
            put(outbox, unit)
    return path


def adopt(path: Path) -> list[bool]:
    with opened(path) as writer, Outbox(path) as outbox:
        return [writer.adopt(receipt) for receipt in outbox.receipts().values()]


@pytest.fixture
def serial(tmp_path: Path) -> dict[str, bytes]:
    """Return the files of the run that one writer has committed."""
    write(tmp_path / "serial", UNITS)
    return content(tmp_path / "serial")


def test_adopted_units_are_byte_for_byte_committed_ones(tmp_path: Path, serial: dict[str, bytes]) -> None:
    run = planned(tmp_path / "run")
    with Outbox(run) as one, Outbox(run) as other:
        first = [put(one, unit) for unit in (2, 1)]
        assert [put(other, unit) for unit in (0, 2)][1] == first[0]  # the second 2 is the first one's
    with opened(run) as writer, Outbox(run) as outbox:
        found = outbox.receipts()
        assert list(found) == [0, 1, 2]
        assert outbox.refused == {}
        assert [writer.adopt(receipt) for receipt in found.values()] == [True] * UNITS
        assert writer.adopt(found[2]) is False
    assert not (run / "outbox").exists()
    assert verify(run) == []
    assert content(run) == serial


def test_units_of_a_larger_plan_wait_beside_those_of_the_first(tmp_path: Path) -> None:
    run = filled(tmp_path / "run")
    with opened(run, experiment="name: plan 1\n") as writer:
        writer.add_plan({"plan": 1}, UNITS, specs(), labels(6))
    with Outbox(run) as outbox:
        put(outbox, UNITS)
    assert adopt(run) == [True] * (UNITS + 1)
    assert verify(run) == []


def test_wrong_units_and_a_full_disk_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = planned(tmp_path / "run")
    with Outbox(run) as outbox:
        with pytest.raises(StoreError, match="unit 7 is not planned; 3 units are"):
            put(outbox, 7)
        with pytest.raises(StoreError, match="was not declared"):
            outbox.put(1, "sweep", Content({"cells/other": unit_arrays(1)["cells/layer"]}))
        put(outbox, 0)
        fired = []

        def full(descriptor: int) -> None:
            fired.append(descriptor)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            with pytest.raises(StoreError, match="the disk is full"):
                put(outbox, 1)
        assert fired
        assert [p.name for p in (run / "outbox").rglob("*") if p.is_file() and "unit-000000" not in p.parts] == ["lock"]
        put(outbox, 1)
    assert sorted(p.name for p in (run / "outbox").iterdir()) == ["unit-000000", "unit-000001"]
    with pytest.raises(StoreError, match="holds no run"):
        Outbox(tmp_path).put(0, "sweep", Content({}))


# ------------------------------------------------------------------------------------------------------------------ deaths


def died(run: Path, work: Callable[[], object], inject: dict[str, Any]) -> tuple[int, str]:
    """Let a forked child do something with an injection; return how it ended and what was injected."""
    read, token = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of threads, which the child has none of
        pid = os.fork()
    if pid == 0:
        try:
            Injection({"run": str(run), **inject}, token).install()
            work()
        finally:
            os._exit(7)
    os.close(token)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read) as said:
        return os.waitstatus_to_exitcode(status), said.read()


@contextmanager
def calls(run: Path) -> Iterator[list[Call]]:
    made: list[Call] = []
    with Tap(run, before=made.append).installed():
        yield made


def adopted_in_spite_of(numbers: Sequence[int], tmp_path: Path, serial: dict[str, bytes]) -> None:
    for number in numbers:
        run = tmp_path / f"run-{number}"
        shutil.copytree(tmp_path / "full", run)
        ended = died(run, partial(adopt, run), {"kind": "any", "number": number, "act": "kill"})
        assert ended[0] == -9, f"call {number} was never made"
        assert ended[1], "it died of something else"
        assert [f for f in verify(run) if f.damage] == []
        done = set(RunReader(run).committed)
        with Outbox(run) as outbox:
            assert done | set(outbox.receipts()) == set(range(UNITS)), "a finished unit is lost"
        adopt(run)
        assert content(run) == serial, f"call {number}: {ended[1]}"
        assert not (run / "outbox").exists()
        shutil.rmtree(run)


def test_an_adoption_killed_at_some_of_its_steps_is_completed_by_the_next(tmp_path: Path, serial: dict[str, bytes]) -> None:
    shutil.copytree(filled(tmp_path / "full"), tmp_path / "tried")
    with calls(tmp_path / "tried") as made:
        adopt(tmp_path / "tried")
    kinds = {kind: [n for n, call in enumerate(made, 1) if call.kind == kind] for kind in ("rename", "fsync", "write", "unlink", "rmdir")}
    assert all(kinds.values())
    chosen = sorted({numbers[len(numbers) // 2] for numbers in kinds.values()})
    adopted_in_spite_of(chosen, tmp_path, serial)


@pytest.mark.slow
def test_an_adoption_killed_at_each_of_its_steps_is_completed_by_the_next(tmp_path: Path, serial: dict[str, bytes]) -> None:
    shutil.copytree(filled(tmp_path / "full"), tmp_path / "tried")
    with calls(tmp_path / "tried") as made:
        adopt(tmp_path / "tried")
    adopted_in_spite_of(range(1, len(made) + 1), tmp_path, serial)
    sys.stdout.write(f"an adoption of {UNITS} units: killed at each of its {len(made)} calls, no unit lost\n")


@pytest.mark.parametrize("every", [40, pytest.param(1, marks=pytest.mark.slow)])
def test_a_put_killed_at_any_step_leaves_the_unit_whole_or_not_at_all(tmp_path: Path, serial: dict[str, bytes], every: int) -> None:
    filled(tmp_path / "full", [0, 2])
    shutil.copytree(tmp_path / "full", tmp_path / "tried")
    with calls(tmp_path / "tried") as made, Outbox(tmp_path / "tried") as outbox:
        put(outbox, 1)
    whole = 0
    for number in [*range(1, len(made) + 1, every), len(made)]:
        run = tmp_path / f"run-{number}"
        shutil.copytree(tmp_path / "full", run)

        def work(at: Path = run) -> None:
            with Outbox(at) as outbox:
                put(outbox, 1)

        ended = died(run, work, {"kind": "any", "number": number, "act": "kill"})
        assert ended[0] == -9, f"call {number} was never made"
        assert ended[1]
        with Outbox(run) as outbox:
            there = outbox.receipts()
            assert outbox.refused == {}
            whole += 1 in there
            put(outbox, 1)
        adopt(run)
        assert content(run) == serial
        assert not (run / "outbox").exists()  # what the dead one left is gone too
        shutil.rmtree(run)
    assert whole  # the last calls come after the rename


def test_who_opens_a_run_leaves_what_waits_and_what_lives_and_takes_away_the_rest(tmp_path: Path) -> None:
    run = filled(tmp_path / "run")
    with opened(run) as writer:
        writer.adopt(Outbox(run).receipts()[0])
    with Outbox(run) as living:
        put(living, 0)  # late: it is committed by now
        (run / "outbox/writer-0123.partial/data.zarr").mkdir(parents=True)
        (run / "outbox/shard-1-of-2.lock").write_text("elsewhere pid 1")
        lock = RunLock(run / "outbox/shard-0-of-2.lock")
        assert list(owners(run)) == ["shard-0-of-2"]
        kinds = {f.file.partition("-")[2]: f.kind for f in verify(run)}
        assert set(kinds.values()) == {"interrupted"}
        assert len(kinds) == 3  # the unit that is committed, the folder, the lock; neither what waits nor what lives
        opened(run).close()
        names = sorted(p.name.partition("-")[0] + p.suffix for p in (run / "outbox").iterdir())
        assert names == ["shard.lock", "unit", "unit", "writer.partial"]
        lock.release()
    assert [f.kind for f in verify(run)] == ["interrupted"] * 2  # nobody lives who would take them in
    assert not repair(run, lambda *_: pytest.fail("nothing is damaged"))
    assert adopt(run) == [True, True]
    assert verify(run) == []


# ----------------------------------------------------------------------------------------------------------------- hostile


def said(unit: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what a receipt says, with a checksum that fits."""
    from codi_engine.store.outbox import _checksum

    about = json.loads((unit / "receipt.json").read_bytes())
    about.pop("checksum")
    change(about)
    (unit / "receipt.json").write_text(json.dumps({**about, "checksum": _checksum(about)}))


def moved(about: dict[str, Any], name: str) -> None:
    about["files"][name] = about["files"].pop("texts/unit-000001.arrow")


def linked(path: Path, to: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(to)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


REFUSED: dict[str, tuple[Change, str]] = {
    "a path that leads out": (lambda u: said(u, lambda a: moved(a, "../../../secret")), "is no file of unit 1"),
    "the ledger": (lambda u: said(u, lambda a: moved(a, "ledger")), "is no file of unit 1"),
    "another unit's file": (lambda u: said(u, lambda a: moved(a, "texts/unit-000002.arrow")), "is no file of unit 1"),
    "another plan": (lambda u: said(u, lambda a: a.update(plan="0" * 64)), "belongs to another run"),
    "another unit": (lambda u: said(u, lambda a: a.update(unit=2)), "is damaged, or no receipt"),
    "a note that is none": (lambda u: said(u, lambda a: a.update(note=[1])), "is damaged, or no receipt"),
    "a size that none is": (lambda u: said(u, lambda a: a["files"]["texts/unit-000001.arrow"].update(size=-1)), "size must be a whole number"),
    "rows that no unit has": (lambda u: said(u, lambda a: a.update(rows=99)), "rows must be a whole number"),
    "files that are none": (lambda u: said(u, lambda a: a.update(files=["x"])), "is damaged, or no receipt"),
    "a damaged receipt": (lambda u: (u / "receipt.json").write_bytes((u / "receipt.json").read_bytes()[:-9]), "is damaged, or no receipt"),
    "no JSON": (lambda u: (u / "receipt.json").write_text("[" * 100_000), "is damaged, or no receipt"),
    "a receipt that is a link": (lambda u: linked(u / "receipt.json", u.parent / "unit-000000/receipt.json"), "is no receipt"),
    "a pipe": (lambda u: piped(u / "receipt.json"), "is no receipt"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_hostile_receipts_are_refused_and_left(tmp_path: Path, what: str) -> None:
    change, problem = REFUSED[what]
    run = filled(tmp_path / "run")
    (tmp_path / "secret").write_text("mine")
    change(run / "outbox/unit-000001")
    with Outbox(run) as outbox:
        assert list(outbox.receipts()) == [0, 2]
        assert problem in outbox.refused["unit-000001"]
        with pytest.raises(StoreError, match="is in the way of a unit that was computed; remove it"):
            put(outbox, 1)
    assert ("outbox/unit-000001", "foreign") in [(f.file, f.kind) for f in verify(run)]
    opened(run).close()
    assert (run / "outbox/unit-000001/texts/unit-000001.arrow").is_file()
    assert (tmp_path / "secret").read_text() == "mine"


UNFIT: dict[str, tuple[Change, str]] = {
    "a file of another size": (lambda u: (u / "texts/unit-000001.arrow").write_bytes(b"x"), "has 1 bytes where"),
    "a missing file": (lambda u: (u / "texts/unit-000001.arrow").unlink(), "is missing"),
    "a link": (lambda u: linked(u / "texts/unit-000001.arrow", u / "data.zarr/cells/status/c.1"), "is no plain file"),
    "a linked folder": (lambda u: linked((u / "texts").rename(u / "other").with_name("texts"), Path("other")), "is no plain file"),
    "a pipe": (lambda u: piped(u / "texts/unit-000001.arrow"), "is no plain file"),
}


@pytest.mark.parametrize("what", UNFIT)
def test_files_that_are_not_what_the_receipt_says_are_not_taken(tmp_path: Path, what: str) -> None:
    change, problem = UNFIT[what]
    run = filled(tmp_path / "run")
    change(run / "outbox/unit-000001")
    before = (run / "ledger").read_bytes()
    with opened(run) as writer, pytest.raises(StoreError, match=problem):
        writer.adopt(Outbox(run).receipts()[1])
    assert (run / "ledger").read_bytes() == before
    assert (run / "outbox/unit-000001/receipt.json").is_file()


def test_a_link_that_leads_out_of_the_run_is_not_written_through(tmp_path: Path) -> None:
    run = filled(tmp_path / "run")
    shutil.move(run / "outbox", tmp_path / "elsewhere")
    (run / "outbox").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=r"is a link to .*elsewhere, which is outside the run"):
        opened(run)
    with pytest.raises(StoreError, match="is a link"):
        put(Outbox(run), 1)
