"""zarr's own conformance tests and state machines against our stores.

A run's store is read only. For the tests that write, :class:`Filled` puts files there as a run's writer does (whole, durable, facts
noted), so that what is tested is this writing together with the checked reading.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from zarr.core.buffer import Buffer, cpu
from zarr.core.sync import sync
from zarr.testing.stateful import ZarrHierarchyStateMachine, ZarrStoreStateMachine
from zarr.testing.store import StoreTests

from codi_engine.store.files import facts, write_durably
from codi_engine.store.zarrs import CheckedStore


class Filled(CheckedStore):
    """A checked store that can be filled."""

    supports_writes = True
    supports_deletes = True

    def __init__(self, root: Path, *, read_only: bool = False) -> None:
        super().__init__(root, {})
        self._read_only = read_only

    async def set(self, key: str, value: Buffer) -> None:
        self.set_sync(key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._check_writable()
        data = value.to_bytes()
        write_durably(self.root, key, data)
        self._table[key] = facts(data)
        self._files = type(self._files)(self.root)
        self.__dict__.pop("_folders", None)

    async def delete(self, key: str) -> None:
        self.delete_sync(key)

    def delete_sync(self, key: str) -> None:
        self._check_writable()
        if self._table.pop(key, None) is not None:
            (self.root / key).unlink()
            self.__dict__.pop("_folders", None)


class TestChecked(StoreTests[Filled, cpu.Buffer]):
    """All of zarr's tests of stores."""

    store_cls = Filled
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        return {"root": tmp_path}

    @pytest.fixture
    def store(self, open_kwargs: dict[str, Any]) -> Filled:
        return sync(Filled.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs: dict[str, Any]) -> Filled:
        return Filled(**store_kwargs)

    async def set(self, store: Filled, key: str, value: Buffer) -> None:
        store.set_sync(key, value)

    async def get(self, store: Filled, key: str) -> Buffer:
        return cpu.Buffer.from_bytes((store.root / key).read_bytes())

    def test_store_repr(self, store: Filled) -> None:
        assert repr(store) == f"Filled('{store.root}')"

    def test_store_supports_writes(self, store: Filled) -> None:
        assert store.supports_writes
        assert not CheckedStore.supports_writes

    def test_store_supports_listing(self, store: Filled) -> None:
        assert store.supports_listing


class Places:
    """Folders of machines, removed at the end."""

    def __init__(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="codi-machine-"))
        self.made = 0

    def new(self) -> Filled:
        self.made += 1
        return Filled(self.root / str(self.made))


@pytest.fixture
def places() -> Any:
    made = Places()
    made.root.mkdir(exist_ok=True)
    yield made
    shutil.rmtree(made.root)


def drive(machine: Any, places: Places, examples: int, steps: int) -> None:
    """Run one of zarr's machines; says how many examples began."""
    suppressed = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    wanted = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=suppressed, derandomize=examples < 50)

    def begin() -> Any:
        store = places.new()
        store.root.mkdir()
        return machine(store)

    run_state_machine_as_test(begin, settings=wanted)  # type: ignore[arg-type]  # any maker of machines will do
    assert places.made >= examples, f"{places.made} of {examples} examples ran"
    print(f"{machine.__name__}: {places.made} sequences of up to {steps} steps")  # noqa: T201


@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")  # the machines' own arrays
@pytest.mark.parametrize("machine", [ZarrStoreStateMachine, ZarrHierarchyStateMachine])
def test_zarrs_machines(machine: Any, places: Places) -> None:
    drive(machine, places, 4, 10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")  # the machines' own arrays
@pytest.mark.parametrize("machine", [ZarrStoreStateMachine, ZarrHierarchyStateMachine])
def test_zarrs_machines_at_length(machine: Any, places: Places) -> None:
    drive(machine, places, 300, 50)
