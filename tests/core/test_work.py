"""Streaming with durable partial results: order, resumption, errors, memory that is used again."""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine.core.errors import UserError
from codi_engine.core.progress import Progress
from codi_engine.core.runs.work import Partial, Work


@dataclass(frozen=True)
class Piece:
    number: int

    @property
    def key(self) -> str:
        return str(self.number)

    @property
    def bytes(self) -> int:
        return 10


PIECES = [Piece(i) for i in range(12)]


def read(part: Piece, used: Any) -> np.ndarray:
    return np.full(3, part.number)


def compute(part: Piece, data: np.ndarray) -> Partial:
    time.sleep(0.001 * ((7 * part.number) % 5))
    return {"x": data * 2}


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order(tmp_path: Path, threads: int) -> None:
    work = Work(tmp_path / "w", threads=threads)
    work.begin({"a": 1})
    assert [int(p["x"][0]) for p in work.stream("s", PIECES, read, compute)] == [2 * i for i in range(12)]


def test_what_was_computed_is_not_computed_again(tmp_path: Path) -> None:
    work = Work(tmp_path / "w", threads=1)
    work.begin({"a": 1})
    seen: list[int] = []

    def breaking(part: Piece, data: np.ndarray) -> Partial:
        if part.number == 5:
            raise RuntimeError("stop here")
        seen.append(part.number)
        return {"x": data * 2}

    with pytest.raises(RuntimeError, match="stop here"):
        list(work.stream("s", PIECES, read, breaking))
    assert set(range(5)) <= set(seen)
    again = Work(tmp_path / "w", threads=1)
    again.begin({"a": 1})
    before = list(seen)
    seen.clear()

    def noting(part: Piece, data: np.ndarray) -> Partial:
        seen.append(part.number)
        return {"x": data * 2}

    got = list(again.stream("s", PIECES, read, noting))
    assert [int(p["x"][0]) for p in got] == [2 * i for i in range(12)]
    assert not set(seen) & set(before)


def test_another_identity_begins_afresh(tmp_path: Path) -> None:
    work = Work(tmp_path / "w")
    work.begin({"a": 1})
    list(work.stream("s", PIECES, read, compute))
    work.begin({"a": 1})
    assert len(list((tmp_path / "w").glob("*.npz"))) == 12
    work.begin({"a": 2})
    assert not list((tmp_path / "w").glob("*.npz"))
    work.clear()
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_torn_partial_is_computed_again(tmp_path: Path, damage: str) -> None:
    work = Work(tmp_path / "w")
    work.begin({})
    list(work.stream("s", PIECES, read, compute))
    file = tmp_path / "w" / "s-3.npz"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[content.index(b"\x93NUMPY") + 130] ^= 1
    file.write_bytes(content[: len(content) // 2] if damage == "truncate" else b"" if damage == "empty" else content)
    got = [int(p["x"][0]) for p in work.stream("s", PIECES, read, compute)]
    assert got == [2 * i for i in range(12)]


def test_errors_of_the_reader_reach_the_caller(tmp_path: Path) -> None:
    def failing(part: Piece, used: Any) -> np.ndarray:
        if part.number == 4:
            raise UserError("shard 4 is damaged")
        return read(part, used)

    before = threading.active_count()
    work = Work(tmp_path / "w", threads=2)
    work.begin({})
    with pytest.raises(UserError, match="shard 4"):
        list(work.stream("s", PIECES, failing, compute))
    assert threading.active_count() == before


def test_few_parts_are_in_memory(tmp_path: Path) -> None:
    alive, most, lock = 0, 0, threading.Lock()
    buffers: set[int] = set()

    def counted(part: Piece, used: Any) -> np.ndarray:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        data = used if used is not None else np.empty(1000)
        buffers.add(id(data))
        return data

    def slow(part: Piece, data: np.ndarray) -> Partial:
        nonlocal alive
        time.sleep(0.005)
        with lock:
            alive -= 1
        return {}

    work = Work(None, threads=2)
    list(work.stream("s", [Piece(i) for i in range(40)], counted, slow))
    assert most <= 4
    assert len(buffers) <= 4


def test_progress_is_told_of_bytes(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []

    class Told(Progress):
        def start(self, stage: str, total: int, unit: str) -> None:
            told.append((stage, (total, unit)))

        def advance(self, count: int) -> None:
            told.append(("advance", count))

    work = Work(tmp_path / "w", progress=Told())
    work.begin({})
    list(work.stream("tests", PIECES, read, compute))
    assert told[0] == ("tests", (120, "B"))
    assert sum(c for k, c in told if k == "advance") == 120
