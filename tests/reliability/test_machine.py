"""A state machine over run, kill, resume, extend, damage, verify, repair and read, with a simple model beside it.

The model knows which units are committed (their values follow from their numbers) and which files were damaged. Whatever the order:
readers see exactly the committed units, bit for bit; damage never reads as data; verify names exactly the damaged files; repair gives
the exact bytes back; what a dead writer left is gone after the next one.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import COPIES, LEDGER, LOCK, PARTIAL, PROVENANCE, ArraySpec, unit_of
from codi_engine.store.ledger import read_ledger
from codi_engine.store.reader import RunReader
from codi_engine.store.repairing import repair
from codi_engine.store.unitfiles import Content
from codi_engine.store.verifying import verify
from codi_engine.store.writer import RunWriter
from codi_engine.store.zarrs import RunStore
from tests.support.dying import bury, dying

CELLS, NAN = 4, float("nan")
IDENTITY = {"seed": 0}
X = "activations/x/value"
_FAST = Path("/dev/shm")
COPIED = (LEDGER, PROVENANCE)
#: what happened, over all examples
SEEN: Counter[str] = Counter()


def arrays(unit: int) -> dict[str, np.ndarray]:
    """Return what a unit writes; some units write no ``x``."""
    rng = np.random.default_rng(unit)
    found: dict[str, np.ndarray] = {
        "cells/example": np.full(CELLS, unit, np.int32),
        "cells/status": np.ones(CELLS, np.uint8),
        "cells/metrics/m": rng.normal(size=CELLS),
    }
    if unit % 3 != 1:
        found[X] = np.where(rng.random((CELLS, 5)) < 0.5, rng.normal(size=(CELLS, 5)), 0).astype(np.float32)
    return found


def texts(unit: int) -> dict[str, list[Any]]:
    return {"key": [f"{unit}.{i}" for i in range(CELLS)], "text": [f"é {unit} {i}" for i in range(CELLS)]}


def specs() -> list[ArraySpec]:
    return [
        ArraySpec("cells/example", ("cell",), (), "int32", -1, attrs={"labels": []}), ArraySpec("cells/status", ("cell",), (), "uint8", 0),
        ArraySpec("cells/metrics/m", ("cell",), (), "float64", NAN), ArraySpec(X, ("cell", "width"), (5,), "float32", NAN, sparse=True),
    ]  # fmt: skip


class Runs(RuleBasedStateMachine):
    """The run and what it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="codi-machine-", dir=_FAST if _FAST.is_dir() else None))
        self.path = self.root / "run"
        self.units, self.planned, self.plans = 0, 0, 0
        self.damaged: dict[str, tuple[str, bytes]] = {}  # file → what was done to it, its right bytes
        self.early: list[tuple[RunReader, RunStore, int]] = []
        self.left = False  # what a dead writer left may lie there
        SEEN["examples"] += 1

    def teardown(self) -> None:
        self.read()
        bury()
        shutil.rmtree(self.root)

    # ------------------------------------------------------------------------------------------- writing

    def opened(self) -> RunWriter:
        return RunWriter.open(self.path, identity=IDENTITY, unit_cells=CELLS, experiment=f"plan: {self.plans}\n", provenance={"by": "test"})

    @property
    def blocked(self) -> bool:
        """Whether a writer must refuse the run."""
        return LEDGER in self.damaged or self.damaged.get(PROVENANCE, ("delete",))[0] != "delete"

    def work(self, units: int, extend: bool) -> None:
        with self.opened() as writer:
            self.go_on(writer, units, extend)

    def go_on(self, writer: RunWriter, units: int, extend: bool) -> None:
        if extend or not writer.plans:
            writer.experiment = f"plan: {len(writer.plans)}\n"
            writer.add_plan({"plan": len(writer.plans)}, 3, specs(), {"cells/example": list(range(3 * len(writer.plans) + 3))})
        planned = 3 * len(writer.plans)
        for unit in range(len(writer.committed), min(planned, len(writer.committed) + units)):
            writer.commit(unit, "sweep", Content(arrays(unit), texts(unit)))

    def mended(self) -> None:
        """A writer was there: what follows from the ledger is written again, leftovers are gone."""
        self.damaged = {n: d for n, d in self.damaged.items() if d[0] == "foreign" or unit_of(n)}
        self.left = False
        assert not (self.path / LOCK).exists()
        assert not list(self.path.rglob("*" + PARTIAL))

    @rule(units=st.integers(0, 3), extend=st.booleans())
    def run(self, units: int, extend: bool) -> None:
        """Run, resume or extend to the end."""
        if self.blocked:
            before = content(self.path)
            with pytest.raises(StoreError):
                self.work(units, extend)
            assert content(self.path) == before
            SEEN["refused"] += 1
            return
        self.work(units, extend)
        self.plans += extend or not self.plans
        self.planned = 3 * self.plans
        self.units = min(self.planned, self.units + units)
        self.mended()
        SEEN["resumed" if self.units else "planned"] += 1

    @precondition(lambda self: not self.blocked)
    @rule(at=st.integers(1, 60), units=st.integers(1, 3), extend=st.booleans())
    def kill(self, at: int, units: int, extend: bool) -> None:
        """Run, and die somewhere; what is committed afterwards is what was, and perhaps some of the new units."""
        with dying(at) as death:
            self.work(units, extend)
        SEEN[f"killed at {death.fired}" if death.fired else "not killed"] += 1
        bury()
        records = read_ledger(self.path / LEDGER).records if (self.path / LEDGER).exists() else []
        plans, done = (sum(r["kind"] == kind for r in records) for kind in ("plan", "unit"))
        assert self.plans <= plans <= self.plans + 1
        assert self.units <= done <= self.units + units
        self.plans, self.planned, self.units = plans, 3 * plans, done
        if death.fired:
            self.left = True
            self.damaged = {n: d for n, d in self.damaged.items() if d[0] == "foreign" or not self.right(n, d[1])}
        else:
            self.mended()

    def right(self, name: str, data: bytes) -> bool:
        """Whether a damaged file is whole again, or became another one by a later plan."""
        path = self.path / name
        if not path.is_file():
            return False
        found = path.read_bytes()
        return found == data or (not unit_of(name) and name in {d for d in self.ledger_documents() if facts_of(found) == self.ledger_documents()[d]})

    def ledger_documents(self) -> dict[str, Any]:
        plans = [r for r in read_ledger(self.path / LEDGER).records if r["kind"] == "plan"]
        return dict(plans[-1]["files"]) if plans else {}

    # ------------------------------------------------------------------------------------------- damage

    def files(self) -> list[str]:
        """Return what can be damaged: files that the ledger vouches for, it, the provenance and the copies."""
        records = read_ledger(self.path / LEDGER).records
        known = {n for r in records if r["kind"] == "unit" for n in r["files"]} | set(self.ledger_documents())
        copies = {f"{COPIES}/{n}" for n in COPIED}
        return sorted(n for n in known | set(COPIED) | copies if n not in self.damaged and (self.path / n).is_file())

    @precondition(lambda self: self.units and not self.left and LEDGER not in self.damaged)
    @rule(data=st.data(), how=st.sampled_from(["flip", "flip", "truncate", "delete"]))
    def damage(self, data: st.DataObject, how: str) -> None:
        """Damage a file, but never the ledger or the provenance together with its copy."""
        other = {n: f"{COPIES}/{n}" for n in COPIED} | {f"{COPIES}/{n}": n for n in COPIED}
        name = data.draw(st.sampled_from([n for n in self.files() if other.get(n) not in self.damaged]))
        path = self.path / name
        before = path.read_bytes()
        if how == "flip":
            at = data.draw(st.integers(0, len(before) - 1))
            changed = before[:at] + bytes([before[at] ^ (1 << data.draw(st.integers(0, 7)))]) + before[at + 1 :]
            path.write_bytes(changed)
        elif how == "truncate":
            path.write_bytes(before[: data.draw(st.integers(0, len(before) - 1))])
        else:
            path.unlink()
        self.damaged[name] = (how, before)
        SEEN[how] += 1

    @precondition(lambda self: self.units and not self.left)
    @rule(where=st.sampled_from(["data.zarr/mine", "data.zarr/cells/status/c.900", "texts/unit-1.arrow", "data.zarr/cells/x/zarr.json"]))
    def add(self, where: str) -> None:
        """Put a file there that nobody wrote."""
        (self.path / where).parent.mkdir(parents=True, exist_ok=True)
        (self.path / where).write_bytes(b"foreign")
        self.damaged[where] = ("foreign", b"")
        SEEN["foreign"] += 1

    @precondition(lambda self: self.plans)
    @rule()
    def verify(self) -> None:
        """Exactly the damaged files are named, with what happened to them and their unit."""
        found = {f.file: f for f in verify(self.path)}
        assert {n for n, f in found.items() if f.damage} == set(self.damaged)
        begun = [f.file for f in found.values() if not f.damage]  # of units that are not committed: the next commit writes them again
        assert self.left or all((place := unit_of(name)) and place[1] >= self.units for name in begun), begun
        kinds = {"flip": {"damaged"}, "truncate": {"truncated", "damaged"}, "delete": {"missing"}, "foreign": {"foreign"}}
        for name, (how, _) in self.damaged.items():
            assert found[name].kind in kinds[how]
            place = unit_of(name)
            assert found[name].unit == (place[1] if place and how != "foreign" else None)
        SEEN["verified damage" if self.damaged else "verified"] += 1

    @precondition(lambda self: self.plans)
    @rule()
    def repair(self) -> None:
        """Every damaged file is what it was; the damaged units alone are computed; foreign files are told and left."""
        asked: list[int] = []

        def recompute(_: RunWriter, unit: int) -> Content:
            asked.append(unit)
            return Content(arrays(unit), texts(unit))

        done = repair(self.path, recompute)
        expected = {place[1] for n, (how, _) in self.damaged.items() if how != "foreign" and (place := unit_of(n))}
        assert asked == sorted(expected)
        assert {f.file for f in done.left} == {n for n, (how, _) in self.damaged.items() if how == "foreign"}
        for name, (how, before) in self.damaged.items():
            if how != "foreign":
                assert (self.path / name).read_bytes() == before, f"{name}: {how}, and repair gave other bytes"
                SEEN["repaired"] += 1
        self.damaged = {n: d for n, d in self.damaged.items() if d[0] == "foreign"}
        self.mended()

    @precondition(lambda self: any(how == "foreign" for how, _ in self.damaged.values()))
    @rule()
    def tidy(self) -> None:
        """Remove the foreign files."""
        for name in [n for n, (how, _) in self.damaged.items() if how == "foreign"]:
            (self.path / name).unlink()
            del self.damaged[name]

    # ------------------------------------------------------------------------------------------- reading

    @property
    def unreadable(self) -> bool:
        """Whether the run cannot be opened: the ledger, or metadata that follows from it, is damaged."""
        return any(how != "foreign" and not unit_of(n) and n != PROVENANCE and not n.startswith(COPIES) for n, (how, _) in self.damaged.items())

    @rule()
    def read(self) -> None:
        """Through both ways of reading: what is committed, or an error that names the damaged file."""
        if not self.plans:
            return
        if self.unreadable:
            with pytest.raises(StoreError):
                RunReader(self.path)
            SEEN["damage refused"] += 1
            return
        self.compare(RunReader(self.path), RunStore(self.path), self.units)
        SEEN["read"] += 1

    @precondition(lambda self: self.plans and not self.unreadable and len(self.early) < 3)
    @rule()
    def begin_to_read(self) -> None:
        """Keep readers that see what is committed now, whatever comes later."""
        self.early.append((RunReader(self.path), RunStore(self.path), self.units))

    @precondition(lambda self: self.early)
    @rule()
    def read_on(self) -> None:
        for reader, store, units in self.early:
            assert len(reader.committed) == units
            self.compare_store(store, units, (StoreError, ValueError, RuntimeError))  # a file read before is left to its chunks' checksums
        SEEN["read by earlier readers"] += 1

    def compare(self, reader: RunReader, store: RunStore, units: int) -> None:
        assert sorted(reader.committed) == list(range(units))
        for unit in range(units):
            for name, values in arrays(unit).items():
                if reader.spec(name).shard(unit) in self.damaged:
                    with pytest.raises(StoreError, match=reader.spec(name).shard(unit).rsplit("/", 1)[1].replace(".", r"\.")):
                        reader.read_unit(name, unit)
                else:
                    np.testing.assert_array_equal(reader.read_unit(name, unit), values)
        if any(n.startswith("texts/") and how != "foreign" for n, (how, _) in self.damaged.items()):
            with pytest.raises(StoreError, match="unit-"):
                reader.texts()
        else:
            assert reader.texts()["text"].to_pylist() == [t for unit in range(units) for t in texts(unit)["text"]]
        self.compare_store(store, units)

    def compare_store(self, store: RunStore, units: int, errors: tuple[type[Exception], ...] = (StoreError,)) -> None:
        group: Any = zarr.open_group(store, mode="r")
        for name, spec in {s.name: s for s in specs()}.items():
            array = group[name]
            assert array.shape[0] % (3 * CELLS) == 0
            for unit in range(array.shape[0] // CELLS):
                part = slice(unit * CELLS, (unit + 1) * CELLS)
                if unit < units and spec.shard(unit) in self.damaged:
                    with pytest.raises(errors):
                        array[part]
                    continue
                nothing = np.full((CELLS, *spec.shape), spec.fill, spec.numpy)
                expected = arrays(unit).get(name, nothing) if unit < units else nothing
                np.testing.assert_array_equal(array[part], expected)

    @invariant()
    def ledger_is_the_model(self) -> None:
        if self.plans and LEDGER not in self.damaged:
            records = read_ledger(self.path / LEDGER).records
            assert sum(r["kind"] == "unit" for r in records) == self.units


def facts_of(data: bytes) -> dict[str, Any]:
    from codi_engine.store.files import facts

    return facts(data)


def content(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def drive(examples: int, steps: int) -> str:
    SEEN.clear()
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    wanted = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, derandomize=examples < 50, database=None)
    run_state_machine_as_test(Runs, settings=wanted)
    kills = sum(n for what, n in SEEN.items() if what.startswith("killed"))
    assert SEEN["examples"] >= examples
    assert kills, "no kill fired"
    assert SEEN["repaired"], "nothing was repaired"
    return f"{kills} kills; " + ", ".join(f"{n} {what}" for what, n in sorted(SEEN.items()))


def test_the_machine() -> None:
    drive(15, 25)


@pytest.mark.slow
def test_the_machine_at_length() -> None:
    print(drive(300, 40))
