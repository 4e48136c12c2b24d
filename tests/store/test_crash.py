"""Killed at any point and repeated, a run ends in the same bytes."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codi_engine.store.ledger import read_ledger
from codi_engine.store.reader import RunReader
from codi_engine.store.writer import RunWriter
from tests.store.sample import CELLS, IDENTITY, content, write

ROOT = Path(__file__).parents[2]


def child(path: Path, units: int, plans: int, *kill: int) -> subprocess.Popen[str]:
    code = "import sys, runpy; sys.path[:0] = ['src', '.']; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = [str(path), str(units), str(plans), *map(str, kill)]
    command = [sys.executable, "-c", code, str(ROOT / "tests/store/sample.py"), *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_three_random_kills_reach_the_same_bytes(tmp_path: Path) -> None:
    rng = random.Random(7)
    write(tmp_path / "whole", 20, 2)
    fired = 0
    for upto in sorted(rng.sample(range(1, 36), 3)):
        process = child(tmp_path / "killed", 20, 2)
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) >= upto:
                break
        time.sleep(rng.random() * 0.01)
        process.kill()
        fired += process.wait() == -9
        process.stdout.close()
        assert RunReader(tmp_path / "killed").verify() == []
    assert fired == 3
    write(tmp_path / "killed", 20, 2)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


@pytest.mark.parametrize("call", [2, 40, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3, 5, 9, 21, 58, 75, 90))])
def test_a_kill_at_any_fsync_or_rename_reaches_the_same_bytes(tmp_path: Path, call: int) -> None:
    write(tmp_path / "whole", 1, 2)
    process = child(tmp_path / "killed", 1, 2, call)
    process.communicate()
    assert process.returncode == -9, "the injected kill never fired"
    if (tmp_path / "killed/ledger").exists() and read_ledger(tmp_path / "killed/ledger").records:
        assert RunReader(tmp_path / "killed").verify() == []
    write(tmp_path / "killed", 1, 2)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")
    assert RunReader(tmp_path / "killed").verify() == []


def test_partial_files_of_a_dead_writer_are_removed(tmp_path: Path) -> None:
    write(tmp_path / "run", 2)
    before = content(tmp_path / "run")
    for name in ("data.zarr/cells/status/c.1.partial", "texts/unit-000001.arrow.partial", "experiment.yaml.partial"):
        (tmp_path / "run" / name).write_bytes(b"half")
    RunWriter.open(tmp_path / "run", identity=IDENTITY, unit_cells=CELLS, experiment="", provenance={}).close()
    assert content(tmp_path / "run") == before
