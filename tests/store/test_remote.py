"""Runs at an object store: byte for byte those of a directory, from any machine, for one writer at a time, whatever dies when."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.abc.store import RangeByteRequest

from codi_engine import open_run
from codi_engine.core.errors import UserError
from codi_engine.core.runs.analyzing import analyze
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.core.runs.verifying import verify_run
from codi_engine.core.watching.disk import DiskWatch, Room, free_bytes
from codi_engine.store import lease, lines, remote
from codi_engine.store import objects as objects_module
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import LEDGER
from codi_engine.store.lease import Lease, hold
from codi_engine.store.mirror import mirrored, place, publish
from codi_engine.store.reader import RunReader
from codi_engine.store.remote import Remote, folder_of, remote_at
from codi_engine.store.repairing import repair
from codi_engine.store.unitfiles import Content
from codi_engine.store.verifying import verify
from codi_engine.store.writer import RunWriter
from codi_engine.store.zarrs import RunStore
from tests.store.sample import CAPTURE, CELLS, IDENTITY, content, rows_of, specs, unit_arrays, unit_texts, write

pytest.importorskip("obstore")
_NUMBERS = itertools.count()
UNITS = 3


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("CODI_ENGINE_CACHE", str(tmp_path / "machine-0"))
    return f"memory://bucket-{next(_NUMBERS)}/runs/sample"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Go to another machine: one whose cache is empty."""
    number = itertools.count(1)
    return lambda: monkeypatch.setenv("CODI_ENGINE_CACHE", str(tmp_path / f"machine-{next(number)}"))


def at(url: str) -> Remote:
    found = remote_at(folder_of(url))
    assert found is not None
    return found


def objects(url: str) -> dict[str, bytes]:
    """Return every object of a run but the lines of its ledger and its provenance."""
    found = {o.key: at(url).get(o.key)[0] for o in at(url).listed()}
    return {k: v for k, v in found.items() if not k.startswith(("ledger.d/", "provenance.json", "copies/provenance"))}


def lines_of(url: str) -> bytes:
    return b"".join(at(url).get(o.key)[0] for o in at(url).listed("ledger.d"))


@pytest.fixture
def local(tmp_path: Path) -> dict[str, bytes]:
    write(tmp_path / "local", UNITS, 2)
    return content(tmp_path / "local")


def test_objects_are_the_files_of_a_local_run(url: str, local: dict[str, bytes]) -> None:
    write(folder_of(url), UNITS, 2)
    publish(at(url))
    assert objects(url) == local
    assert lines_of(url) == local[LEDGER]
    assert not list(folder_of(url).rglob("c.*"))  # shards and texts are nowhere here
    assert not list(folder_of(url).rglob("*.arrow"))


def test_another_machine_reads_what_was_written(url: str, tmp_path: Path, elsewhere: Callable[[], None]) -> None:
    write(folder_of(url), UNITS)
    write(tmp_path / "local", UNITS)
    elsewhere()
    root = place(url)
    reader, other = RunReader(root), RunReader(tmp_path / "local")
    assert reader.digest == other.digest
    for name in (CAPTURE, "cells/metrics/m0", "activations/sae/value"):
        np.testing.assert_array_equal(reader.read(name)[1], other.read(name)[1])
    out, into = np.zeros((CELLS, 2, 3), np.float32), np.arange(CELLS)
    reader.read_into(CAPTURE, 1, into, out, into, then=2)
    np.testing.assert_array_equal(out, other.read_unit(CAPTURE, 1))
    assert reader.texts().equals(other.texts())
    import zarr

    for verify_as in ("size", "full"):
        mine, theirs = (zarr.open_group(RunStore(r, verify_as), mode="r") for r in (reader, other))
        np.testing.assert_array_equal(mine[f"{CAPTURE}"][:], theirs[f"{CAPTURE}"][:])  # type: ignore[index]


def test_parts_of_large_objects_are_asked_for_one_by_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects_module, "PART", 16)
    write(folder_of(url), UNITS)
    assert [str(f) for f in verify(place(url))] == []
    asked: list[int] = []
    real = Remote.part

    def part(self: Remote, key: str, start: int, length: int) -> tuple[memoryview, int]:
        asked.append(length)
        return real(self, key, start, length)

    monkeypatch.setattr(Remote, "part", part)
    assert RunReader(place(url)).read_unit(CAPTURE, 1).shape == (CELLS, 2, 3)
    assert len(asked) > 5
    assert max(asked) == 16


def test_an_object_that_has_grown_is_not_read(url: str) -> None:
    write(folder_of(url), UNITS)
    name = f"data.zarr/{CAPTURE}/c.1.0.0"
    at(url).put(name, at(url).get(name)[0] + b"more")
    with pytest.raises(StoreError, match=rf"{re.escape(f'{url}/{name}')}: has \d+ bytes where \d+ were written"):
        RunReader(folder_of(url)).read_unit(CAPTURE, 1)
    with pytest.raises(StoreError, match="were written"):
        RunStore(folder_of(url)).get_sync(f"{CAPTURE}/c.1.0.0", byte_range=RangeByteRequest(0, 4))


def test_a_store_that_falls_silent_is_waited_for_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from obstore.exceptions import GenericError

    _prepared(url)
    asked: list[float] = []

    def silent(api: object, store: object) -> None:
        asked.append(time.monotonic())
        raise GenericError("HTTP error: error sending request")

    monkeypatch.setattr(remote, "PATIENCE", 1.2)
    monkeypatch.setattr(remote, "SILENCE", 0.5)
    begun = time.monotonic()
    for _ in range(3):
        with pytest.raises(StoreError, match="does not answer"):
            at(url)._ask(silent)
    assert len(asked) == 2  # again after half a second, then given up
    assert asked[-1] - begun < 1.2
    time.sleep(0.6)
    assert at(url).top() == []


class Killed(BaseException):
    """The process is dead."""


class Death:
    """From the n-th request on nothing is sent any more; with ``late`` the n-th arrives and its answer does not."""

    def __init__(self, number: int, late: bool) -> None:
        self.left, self.late, self.fired = number, late, False

    def ask(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def asked(this: Remote, request: Any) -> Any:
            self.left -= 1
            if self.left == 0 and self.late:
                real(this, request)
            if self.left <= 0:
                self.fired = True
                raise Killed
            return real(this, request)

        return asked


@pytest.mark.parametrize("late", [False, True])
def test_a_death_at_any_request_is_mended_from_another_machine(
    url: str, late: bool, local: dict[str, bytes], elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_ended", lambda owner: True)
    real, fired = Remote._ask, 0
    for number in [*range(2, 26, 5), *range(30, 110, 13)]:
        mine = f"{url}-{number}"
        death = Death(number, late)
        monkeypatch.setattr(Remote, "_ask", death.ask(real))
        with contextlib.suppress(Killed):
            write(folder_of(mine), UNITS, 2)
        monkeypatch.setattr(Remote, "_ask", real)
        fired += death.fired
        before = lines_of(mine)
        elsewhere()
        write(folder_of(mine), UNITS, 2)
        publish(at(mine))
        assert lines_of(mine).startswith(before)
        assert objects(mine) == local
        assert verify(place(mine, fresh=True)) == []
    assert fired >= 10


def test_a_second_writer_is_told_who_the_first_one_is(url: str, elsewhere: Callable[[], None]) -> None:
    held = hold(_prepared(url))
    elsewhere()
    with pytest.raises(StoreError, match=rf"{url}: is being written by .* pid {os.getpid()}, heard of \d s ago"):
        write(folder_of(url), UNITS)
    held.release()
    write(folder_of(url), UNITS)


def _prepared(url: str) -> Path:
    return place(url)


def test_a_lease_that_ran_out_is_taken_over_and_its_holder_stops(
    url: str, local: dict[str, bytes], elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = RunWriter.open(folder_of(url), identity=IDENTITY, unit_cells=CELLS, experiment="", provenance={"by": "test"})
    first.experiment = "name: plan 0\n"
    first.add_plan(
        {"plan": 0}, UNITS, specs(), {"cells/example": [f"e{i}" for i in range(3)], "cells/condition": ["baseline", "patch"], "cells/layer": [0, 1, "0+1"]}
    )
    first.commit(0, "baseline", Content(unit_arrays(0, rows_of(0)), unit_texts(0, rows_of(0)), {"plan": 0}))
    elsewhere()
    with monkeypatch.context() as later:
        later.setattr(lease, "LEASE", -5.0)  # as if a minute had gone by
        second = hold(_prepared(url))
        with pytest.raises(StoreError, match=r"pid \d+ has taken it over while it was being written here"):
            first.commit(1, "sweep", Content(unit_arrays(1, rows_of(1)), unit_texts(1, rows_of(1)), {"plan": 0}))
    second.release()
    first.close()
    write(folder_of(url), UNITS, 2)
    publish(at(url))
    assert objects(url) == local


def test_a_line_of_the_ledger_is_written_once_whoever_holds_the_lock(url: str, elsewhere: Callable[[], None]) -> None:
    write(folder_of(url), UNITS)
    writer = RunWriter.open(folder_of(url), identity=IDENTITY, unit_cells=CELLS, experiment="", provenance={})
    at(url).create(lines.line_key(lines_of(url).count(b"\n")), b"{}\n")
    with pytest.raises(StoreError, match=r"line 6 of its ledger was written by another process; this one stops"):
        writer.add_plan({"plan": 1}, 1, specs(), {})
    writer.close()


def test_an_answer_that_was_lost_is_no_second_writer(url: str) -> None:
    _prepared(url)
    tag = at(url).create("ledger.d/000000000000", b"a")
    assert at(url).create("ledger.d/000000000000", b"a") == tag
    with pytest.raises(remote.Conflict):
        at(url).create("ledger.d/000000000000", b"b")


def test_the_lease_is_renewed_and_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.01)
    _prepared(url)
    renewed = Lease(at(url))
    first = at(url).head("lock").tag
    for _ in range(500):
        if at(url).head("lock").tag != first:
            break
        renewed._over.wait(0.01)
    assert at(url).head("lock").tag != first
    renewed.check()
    renewed.release()
    assert [o.key for o in at(url).listed()] == []


def test_a_process_that_was_given_the_folder_finds_the_store(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder_of(url), UNITS)
    root = folder_of(url)
    monkeypatch.setattr(remote, "_OPEN", {})  # as in a process that was started for another device
    assert RunReader(root).read_unit(CAPTURE, 1).shape == (CELLS, 2, 3)


def test_the_disk_of_this_machine_need_not_hold_the_run(url: str) -> None:
    root = _prepared(url)
    assert free_bytes(root) is None
    room = Room(root, keep=1.0)
    room.wrote({"x": {"size": 1 << 60}})
    room.check(1, 2)
    watch = DiskWatch(root, lambda: 1 << 60)
    assert "still to be written" not in "".join(e.text for e in watch.look())


# ------------------------------------------------------------------------------------------------ damage


def damage(url: str) -> dict[str, str]:
    """Damage a run in every way, and return what verify has to call it."""
    there, sweep = at(url), f"data.zarr/{CAPTURE}/c.1.0.0"
    whole = there.get(sweep)[0]
    there.put(sweep, whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    there.delete(["texts/unit-000002.arrow"])
    there.put("data.zarr/cells/status/c.0", b"\1")
    there.put("data.zarr/cells/stray.bin", b"x")
    there.put("data.zarr/cells/example/zarr.json", b"{}")
    there.put("ledger.d/000000000003", b"{}\n")
    there.put(LEDGER, b"x" + there.get(LEDGER)[0][1:])
    return {
        sweep: "damaged", "texts/unit-000002.arrow": "missing", "data.zarr/cells/status/c.0": "truncated", "data.zarr/cells/stray.bin": "foreign",
        "data.zarr/cells/example/zarr.json": "truncated", "ledger.d/000000000003": "damaged", LEDGER: "damaged",
    }  # fmt: skip


def test_verify_names_what_is_damaged_and_repair_writes_it_again(url: str, elsewhere: Callable[[], None]) -> None:
    write(folder_of(url), UNITS)
    publish(at(url))
    before = objects(url)
    expected = damage(url)
    with pytest.raises(StoreError, match=r"c\.1\.0\.0: is damaged"):
        RunReader(folder_of(url)).read_unit(CAPTURE, 1)
    assert {f.file: f.kind for f in verify(place(url, fresh=True))} == expected
    done = repair(folder_of(url), lambda _, unit: Content(unit_arrays(unit, rows_of(unit)), unit_texts(unit, rows_of(unit)), {"plan": 0}))
    assert set(done.units) == {0, 1, 2}
    at(url).delete(["data.zarr/cells/stray.bin"])
    elsewhere()
    assert verify(place(url)) == []
    assert objects(url) == before


def test_damaged_metadata_is_named_whatever_the_folder_has(url: str) -> None:
    write(folder_of(url), UNITS)
    publish(at(url))
    at(url).put("data.zarr/cells/example/zarr.json", b"{}")
    assert [f.file for f in verify(place(url, fresh=True))] == ["data.zarr/cells/example/zarr.json"]


@pytest.mark.parametrize("lost", ["ledger.d/000000000002", "ledger.d/000000000000"])
def test_a_line_that_nobody_has_is_said(url: str, lost: str, elsewhere: Callable[[], None]) -> None:
    write(folder_of(url), UNITS)
    at(url).delete([lost, LEDGER])
    elsewhere()
    with pytest.raises(StoreError, match=rf"{url}/{lost}: line \d of the ledger is missing"):
        place(url)


def test_a_folder_of_another_history_is_given_up(url: str, local: dict[str, bytes]) -> None:
    write(folder_of(url), UNITS)
    publish(at(url))
    at(url).delete([o.key for o in at(url).listed()])
    with pytest.raises(StoreError, match="holds no run"):
        RunReader(place(url))
    write(folder_of(url), UNITS, 2)
    publish(at(url))
    assert objects(url) == local


def test_a_copied_local_run_is_a_run_there(url: str, tmp_path: Path) -> None:
    write(tmp_path / "local", UNITS)
    for name, data in content(tmp_path / "local").items():
        at(url).put(name, data)
    at(url).put("provenance.json", (tmp_path / "local" / "provenance.json").read_bytes())
    at(url).put("copies/provenance.copy", (tmp_path / "local" / "copies" / "provenance.copy").read_bytes())
    assert verify(place(url)) == []
    write(folder_of(url), UNITS, 2)
    publish(at(url))
    write(tmp_path / "local", UNITS, 2)
    assert objects(url) == content(tmp_path / "local")
    assert verify(place(url, fresh=True)) == []


def test_a_place_with_other_objects_is_refused(url: str) -> None:
    _prepared(url)
    at(url).put("thesis.pdf", b"x")
    with pytest.raises(StoreError, match=f"{url}: is not empty and holds no run"):
        write(folder_of(url), UNITS)
    assert [o.key for o in at(url).listed()] == ["thesis.pdf"]


# ----------------------------------------------------------------------------------------------- results


def test_results_go_there_and_come_from_there(url: str, elsewhere: Callable[[], None]) -> None:
    write_synthetic(Synthetic(targets=2, conditions=2, examples=1, trials=4, features=8, words=6), folder_of(url))
    elsewhere()
    done = analyze(url, "words")
    assert done[0].summary
    key = "results/words/result.json"
    assert json.loads(at(url).get(key)[0])["runs"][0]["path"] == url
    elsewhere()
    run = open_run(url)
    assert run.results["words"].summary == done[0].summary
    assert len(run.cells) > 0
    assert repr(run).startswith(f"<run '{url}': ")
    assert [f for f in verify_run(folder_of(url)) if f.damage] == []
    shutil.rmtree(folder_of(url) / "results" / "words")
    publish(at(url))
    with pytest.raises(FileNotFoundError):
        at(url).head(key)


def test_who_only_looks_on_writes_nothing(url: str, elsewhere: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder_of(url), UNITS)
    at(url).delete([LEDGER])  # as a run is that was killed
    elsewhere()
    monkeypatch.setattr(Remote, "put", lambda *_: pytest.fail("was written"))
    assert {f.kind for f in verify(place(url))} == {"interrupted"}
    publish(at(url))


def test_keys_that_lead_elsewhere_are_no_files() -> None:
    good = ["notes.md", "results/a/b.png", "data.zarr/cells/x/zarr.json", "copies/provenance.copy", "experiment.yaml"]
    bad = ["results/../../x", "/etc/passwd", "results//x", "..", "a\\b", "results/a\0b", "wandb/run", "data.zarr/c.0", "lock", "ledger", "results/.partial/x"]
    assert [mirrored(key) for key in good] == [True] * len(good)
    assert [mirrored(key) for key in bad] == [False] * len(bad)


@pytest.mark.parametrize(
    "text",
    ["s3:/x", "s3://", "s3://bucket", "s3://bucket/", "S3://bucket/x", "s3://bucket/../x", "s3://bucket/a//b", "http://host/x", "s4://bucket/x", "s3://b?/x"],
)
def test_what_is_no_address_is_said(text: str) -> None:
    with pytest.raises(UserError, match="write s3://") as said:
        open_run(text)
    assert len(str(said.value).splitlines()) == 1


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CODI_ENGINE_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UserError, match=r"s3://b/x: object stores need a package that is not installed: pip install 'codi-engine\[s3\]'"):
        open_run("s3://b/x")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there are no credentials"),
        ({"config": "[profile p]\nsso_session = x\n"}, "aws configure export-credentials"),
        ({"credentials": "[p]\naws_access_key_id = a\naws_secret_access_key = b\n", "config": "[profile p]\nendpoint_url = ftp://x\n"}, "ftp://x"),
    ],
)
def test_credentials_are_looked_for_where_others_look(files: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = {"AWS_CONFIG_FILE": "config", "AWS_SHARED_CREDENTIALS_FILE": "credentials"}
    for variable, value in {**{v: str(tmp_path / n) for v, n in found.items()}, "AWS_PROFILE": "p", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("CODI_ENGINE_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=said):
        open_run("s3://b/x")


def test_a_path_that_is_no_url_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("s3"), 1)
    assert RunReader(place("s3")).path == Path("s3")
    assert remote_at(Path("s3")) is None


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Leave no name of a folder behind for other tests' messages."""
    yield
    from codi_engine.store import shown

    shown._NAMES.clear()
    remote._OPEN.clear()
