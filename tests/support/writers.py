"""Processes that write and read one small run at the same moment, told what to do line by line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.store.errors import StoreError
from codi_engine.store.ledger import read_ledger
from codi_engine.store.reader import RunReader
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter
from tests.store.sample import CELLS, IDENTITY, labels, rows_of, specs, unit_arrays, unit_texts, write

ROOT = Path(__file__).parents[2]


class Child:
    """A process that waits for commands: a list in JSON each, answered by one value in JSON."""

    def __init__(self) -> None:
        code = "import sys; sys.path[:0] = ['src', '.']; from tests.support.writers import serve; serve()"
        self.process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    @property
    def pid(self) -> int:
        return self.process.pid

    def tell(self, *command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([str(c) if isinstance(c, Path) else c for c in command]) + "\n")
        self.process.stdin.flush()

    def hear(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the child ended with {self.process.wait()}"
        return json.loads(line)

    def ask(self, *command: Any) -> Any:
        self.tell(*command)
        return self.hear()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait(timeout=60)


def serve() -> None:
    """Answer commands until the input ends."""
    held: list[RunWriter] = []
    for line in sys.stdin:
        name, *rest = json.loads(line)
        sys.stdout.write(json.dumps(COMMANDS[name](held, *rest)) + "\n")
        sys.stdout.flush()


def opened(path: str | Path) -> RunWriter:
    return RunWriter.open(path, identity=IDENTITY, unit_cells=CELLS, experiment="name: many\n", provenance={"by": "test"})


def _write(held: list[RunWriter], path: str, units: int, at: float) -> str:
    """Write a run, beginning at a moment of the clock that all processes share; returns what was refused."""
    while time.monotonic() < at:
        pass
    try:
        write(Path(path), units)
    except StoreError as error:
        return str(error)
    return ""


def _hold(held: list[RunWriter], path: str) -> str:
    held.append(opened(path))
    return ""


def _hold_with_children(held: list[RunWriter], path: str) -> list[int]:
    """Hold the run, with a forked and a started child that outlive this process."""
    import os

    held.append(opened(path))
    started = subprocess.Popen(["sleep", "60"], close_fds=False, stdout=subprocess.DEVNULL)
    forked = os.fork()
    if not forked:
        os.dup2(os.open(os.devnull, os.O_RDWR), 1)
        time.sleep(60)
        os._exit(0)
    return [started.pid, forked]


def _grow(held: list[RunWriter], path: str, plans: int) -> list[int]:
    """Add plans with new arrays, labels and examples, and commit their units; returns (plans, units)."""
    with opened(path) as writer:
        for _ in range(plans):
            grow_by(writer, 3)
        return [len(writer.plans), len(writer.committed)]


def grow_by(writer: RunWriter, units: int) -> None:
    """Add a plan and commit its units; everything follows from the units' numbers."""
    plan, first = len(writer.plans), len(writer.committed)
    writer.experiment = f"name: plan {plan}\n"
    writer.add_plan({"plan": plan}, units, specs(2 + plan % 40), labels(3 + plan))
    for unit in range(first, first + units):
        writer.commit(unit, "sweep" if unit else "baseline", Content(unit_arrays(unit, rows_of(unit)), unit_texts(unit, rows_of(unit))))
    writer.set_provenance({"plan": plan})


def _read(held: list[RunWriter], path: str, plans: int) -> list[Any]:
    return list(read_until(Path(path), plans))


def read_until(path: Path, plans: int, zarrs: bool = True) -> tuple[int, int, str]:
    """Open and read a growing run until it has so many plans, all done; returns (openings, units seen last, what was wrong)."""
    until, openings, before = time.monotonic() + 400, 0, set[int]()
    while len(before) < 3 * plans:
        if time.monotonic() > until:
            return openings, len(before), "the run does not grow"
        try:
            if not read_ledger(path / "ledger").records:
                continue
            reader = RunReader(path)
            problem = _wrong(reader, before) or ("; ".join(map(str, reader.verify())) if openings % 4 == 9 else "")
            if not problem and zarrs and openings % 4 == 2:
                problem = wrong_in_zarr(reader)
        except StoreError as error:
            problem = str(error)
        if problem:
            return openings, len(before), problem
        before, openings = set(reader.committed), openings + 1
    return openings, len(before), ""


def _wrong(reader: RunReader, before: set[int]) -> str:
    """Say what is wrong with a reader: its newest and some other units are compared bit for bit."""
    units = sorted(reader.committed)
    if not before <= set(units) or units != list(range(len(units))):
        return f"units {units} after {sorted(before)}"
    for unit in {*units[-2:], *units[:: 1 + len(units) // 4]}:
        for name, values in unit_arrays(unit, rows_of(unit)).items():
            if not np.array_equal(reader.read_unit(name, unit)[: len(values)], values, equal_nan=True):
                return f"unit {unit}: {name} differs"
    return "" if len(reader.texts()) == sum(map(rows_of, units)) else "texts are missing"


def wrong_in_zarr(reader: RunReader) -> str:
    """Say how a run's arrays in zarr differ from what its units wrote."""
    import zarr

    from codi_engine.store.zarrs import RunStore

    group = zarr.open_group(RunStore(reader), mode="r")
    status = np.asarray(group["cells/status"][:])  # type: ignore[index]
    expected = np.zeros(reader.units * CELLS, np.uint8)
    for unit in reader.committed:
        expected[unit * CELLS : unit * CELLS + rows_of(unit)] = 1
    return "" if np.array_equal(status, expected) else "zarr shows other cells than the reader"


COMMANDS: dict[str, Any] = {"write": _write, "hold": _hold, "children": _hold_with_children, "grow": _grow, "read": _read}


def together(children: Sequence[Child], *command: Any) -> list[Any]:
    """Let children do the same from the same moment on, and return their answers."""
    at = time.monotonic() + 0.05
    for child in children:
        child.tell(*command, at)
    return [child.hear() for child in children]
