"""A store that breaks one clause fails the test of that clause and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine.store.errors import StoreError
from codi_engine.store.reader import RunReader
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter
from codi_engine.testing import StoreSuite
from codi_engine.testing.stores import CELLS, IDENTITY, METRIC
from tests.support.clauses import failures, suite


class Writer:
    """A writer that passes everything on."""

    def __init__(self, path: Path, identity: Any) -> None:
        self.real = RunWriter.open(path, identity=identity or IDENTITY, unit_cells=CELLS, experiment="name: x\n", provenance={})

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.real.close()

    @property
    def plans(self) -> list[dict[str, Any]]:
        return self.real.plans

    def add_plan(self, *arguments: Any) -> None:
        self.real.add_plan(*arguments)

    def commit(self, unit: int, stage: str, content: Content) -> None:
        self.real.commit(unit, stage, content)


class Rounds(Writer):
    """Keeps fewer digits."""

    def commit(self, unit: int, stage: str, content: Content) -> None:
        super().commit(unit, stage, content._replace(arrays={**content.arrays, METRIC: content.arrays[METRIC].round(3)}))


class Repeats(Writer):
    """Says nothing when a unit is committed again."""

    def commit(self, unit: int, stage: str, content: Content) -> None:
        if unit not in self.real.committed:
            super().commit(unit, stage, content)


class AnyIdentity(Writer):
    """Goes on with any run."""

    def __init__(self, path: Path, identity: Any) -> None:
        super().__init__(path, IDENTITY)


class Numbered(Writer):
    """Writes how many commits there were before."""

    def commit(self, unit: int, stage: str, content: Content) -> None:
        self.count = getattr(self, "count", -1) + 1
        later = content.arrays[METRIC] + (self.count if self.count != unit else 0)
        super().commit(unit, stage, content._replace(arrays={**content.arrays, METRIC: later}))


class Reader:
    """A reader that passes everything on."""

    def __init__(self, path: Path) -> None:
        self.path, self.real = path, RunReader(path)

    @property
    def committed(self) -> Any:
        return self.real.committed

    def read_unit(self, name: str, unit: int) -> np.ndarray:
        return self.real.read_unit(name, unit)

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.real.read(name)


class Fills(Reader):
    """Reads what is not there as the fill value, in the whole array."""

    def read(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        slots, values = self.real.read(name)
        whole = np.full(4 * CELLS, np.nan)
        whole[slots] = values
        return np.arange(4 * CELLS), whole


class Forgiving(Reader):
    """Reads what is not there as zeros."""

    def read_unit(self, name: str, unit: int) -> np.ndarray:
        try:
            return super().read_unit(name, unit)
        except StoreError:
            return np.zeros(CELLS)


class Unchecked(Reader):
    """Reads damaged units as zeros."""

    def read_unit(self, name: str, unit: int) -> np.ndarray:
        if unit in self.committed and name in self.real.arrays:
            try:
                return super().read_unit(name, unit)
            except StoreError:
                return np.zeros(CELLS)
        return super().read_unit(name, unit)


class Looks(Reader):
    """Takes the files for the commits."""

    @property
    def committed(self) -> Any:
        found = [int(p.name.split(".")[-1]) for p in (self.path / "data.zarr" / METRIC).glob("c*") if p.name.split(".")[-1].isdigit()]
        return dict.fromkeys(sorted(set(found) | set(self.real.committed)))


class OfStore(StoreSuite):
    made: Any = Writer
    read: Any = Reader

    def writer(self, path: Path, identity: Any = None) -> Any:
        return self.made(path, identity)

    def reader(self, path: Path) -> Any:
        return self.read(path)


ROUND, GONE, MISSING = "what_is_committed_is_read_bit_for_bit", "what_is_not_committed_is_not_there", "missing_data_raise"
WRONG: dict[type[Any], tuple[str, set[str]]] = {
    Rounds: ("bit for bit", {ROUND}),
    Repeats: ("DID NOT RAISE", {"a_unit_is_committed_once"}),
    AnyIdentity: ("DID NOT RAISE", {"a_run_of_another_identity_is_refused"}),
    Numbered: ("order of commits", {"the_order_of_commits_leaves_the_same_data", "an_abandoned_run_is_gone_on_with"}),
    Fills: ("slots of committed units alone", {GONE}),
    Forgiving: ("DID NOT RAISE", {MISSING, "damage_is_noticed"}),
    Unchecked: ("DID NOT RAISE", {"damage_is_noticed"}),
    Looks: ("must not be seen", {"an_abandoned_run_is_gone_on_with"}),
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda c: c.__name__)
def test_a_wrong_store_fails_its_clauses_and_no_other(cls: type[Any], tmp_path: Path) -> None:
    words, clauses = WRONG[cls]
    failed = failures(suite(OfStore, None, **({"made": cls} if issubclass(cls, Writer) else {"read": cls})), tmp_path)
    assert set(failed) == clauses, failed
    assert any(words in said for said in failed.values()), failed


class TestPassedOn(OfStore):
    """A sound one."""
