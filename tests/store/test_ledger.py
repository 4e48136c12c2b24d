"""The ledger: torn tails are dropped, damage is named."""

from __future__ import annotations

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine.store.errors import StoreError
from codi_engine.store.ledger import Ledger, canonical, read_ledger, salvage

VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), lambda v: st.lists(v, max_size=3), max_leaves=4)
RECORDS = st.lists(st.dictionaries(st.text(max_size=6), VALUES, max_size=4), min_size=1, max_size=5)


def written(path: Path, records: list[dict[str, Any]]) -> list[int]:
    """Write records and return the file's size after each."""
    ledger = Ledger(path)
    sizes = [0]
    for record in records:
        ledger.append(record)
        sizes.append(path.stat().st_size)
    return sizes


@settings(max_examples=60, deadline=None)
@given(records=RECORDS, data=st.data())
def test_a_ledger_cut_anywhere_keeps_its_whole_lines(records: list[dict[str, Any]], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        sizes = written(path, records)
        whole = path.read_bytes()
        cut = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:cut])
        if cut < len(whole):
            with pytest.raises(StoreError, match=r"of the ledger is (missing|damaged); `codi-engine repair .*` restores it"):
                read_ledger(path)
        assert salvage(path).raw == whole
        shutil.rmtree(path.parent / "copies")  # as a writer leaves it that dies while it writes a line
        kept = sum(size <= cut for size in sizes) - 1
        content = read_ledger(path)
        assert content.records == records[:kept]
        assert content.torn == (cut not in sizes)
        ledger = Ledger(path)
        for record in records[kept:]:
            ledger.append(record)
        assert path.read_bytes() == whole == (path.parent / "copies/ledger.copy").read_bytes()


@settings(max_examples=80, deadline=None)
@given(records=RECORDS, data=st.data())
def test_a_changed_byte_never_changes_a_record(records: list[dict[str, Any]], data: st.DataObject) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ledger"
        sizes = written(path, records)
        whole = path.read_bytes()
        raw = bytearray(whole)
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at] ^= data.draw(st.integers(1, 255))
        path.write_bytes(raw)
        line = sum(size <= at for size in sizes)
        with pytest.raises(StoreError, match=f"line {line} of the ledger"):
            read_ledger(path)
        with pytest.raises(StoreError, match=f"line {line} of the ledger"):
            Ledger(path)
        found = salvage(path)
        assert found.content.records == records
        assert found.raw == whole
        assert f"line {line} is damaged" in found.problem


def test_damage_before_the_last_line_names_the_line(tmp_path: Path) -> None:
    sizes = written(tmp_path / "ledger", [{"n": i} for i in range(4)])
    raw = bytearray((tmp_path / "ledger").read_bytes())
    raw[sizes[1] + 5] ^= 1
    (tmp_path / "ledger").write_bytes(raw)
    with pytest.raises(StoreError, match="line 2 of the ledger"):
        Ledger(tmp_path / "ledger")


def test_lines_cannot_be_exchanged(tmp_path: Path) -> None:
    written(tmp_path / "ledger", [{"n": i} for i in range(3)])
    lines = (tmp_path / "ledger").read_bytes().splitlines(keepends=True)
    (tmp_path / "ledger").write_bytes(b"".join([lines[1], lines[0], lines[2]]))
    with pytest.raises(StoreError, match="line 1"):
        read_ledger(tmp_path / "ledger")


def test_nan_has_no_place_in_the_ledger() -> None:
    with pytest.raises(StoreError, match="cannot be recorded"):
        canonical({"x": float("nan")})


def test_what_neither_has_is_lost_and_said(tmp_path: Path) -> None:
    """Line 3 damaged in the ledger, line 5 in both: what stands after it cannot be trusted, and is not thrown away in silence."""
    path, copy = tmp_path / "ledger", tmp_path / "copies/ledger.copy"
    sizes = written(path, [{"n": i} for i in range(8)])
    whole = path.read_bytes()
    for file, lines in ((path, (2, 4)), (copy, (4,))):
        raw = bytearray(whole)
        for line in lines:
            raw[sizes[line] + 5] ^= 1
        file.write_bytes(raw)
    found = salvage(path)
    assert found.lost
    assert found.raw == whole[: sizes[4]]
    assert "line 5 is damaged, and so is its copy" in found.problem
    copy.write_bytes(whole[: sizes[2]])  # behind, and a line of the ledger shortened
    path.write_bytes(whole[: sizes[3] + 4] + whole[sizes[3] + 9 :])
    assert salvage(path).lost
