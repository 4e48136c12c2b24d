"""Long runs: memory, handles, threads and time per unit stay what they are; Ctrl-C at any moment loses nothing and shows no traceback."""

from __future__ import annotations

import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs.results import open_run
from codi_engine.core.watching.eventlog import read_events
from codi_engine.core.watching.status import status_of
from codi_engine.store.ledger import read_ledger
from tests.support.forked import Forked
from tests.support.soaking import content, experiment, small_units, soak

ROOT = Path(__file__).parents[2]
#: bytes of memory per committed unit: the store's record of it (11 files here, each with size and checksum, 40 bytes a file and what Python needs around them)
PER_UNIT = 4_000


@pytest.fixture
def fast() -> Iterator[Path]:
    """Return a folder in memory where there is one: 10,000 units are not to wait for fsync."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="soak-", dir=place) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_handles_and_threads_stay_what_they_are(fast: Path) -> None:
    looks = soak(fast, 60, every=10)
    assert len(looks) == 6
    assert len({look["handles"] for look in looks[1:]}) == 1, looks
    assert len({look["threads"] for look in looks[1:]}) == 1, looks
    assert len(status_of(fast / "run").stages) == 2
    assert (fast / "counted.txt").read_text(encoding="utf-8").splitlines()[-1] == "59 120"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_ten_thousand_units(fast: Path) -> None:
    """Run 10,000 units in a process of their own, look at it every 100, then read the run."""
    begun = time.monotonic()
    (fast / "temporary").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1", "TMPDIR": str(fast / "temporary")}
    command = [sys.executable, "-m", "tests.support.soaking", str(fast), "10000"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    looks = json.loads(done.stdout.splitlines()[-1])
    assert [look["units"] for look in looks] == list(range(100, 10_001, 100))
    warm = looks[9:]
    handles, threads = {look["handles"] for look in warm}, {look["threads"] for look in warm}
    growth = (warm[-1]["pss"] - warm[0]["pss"]) / (warm[-1]["units"] - warm[0]["units"])
    early, late = (statistics.median(look["cpu"] for look in part) for part in (looks[22:32], looks[-10:]))  # the first 2,000 units are unedited ones
    timed = time.monotonic()
    status = status_of(fast / "run")
    at_status = time.monotonic() - timed
    run = open_run(fast / "run")
    cells = len(run.cells)
    at_open = time.monotonic() - timed - at_status
    figures = (
        f"10,000 units in {time.monotonic() - begun:.0f} s: handles {handles}, threads {threads}, memory {warm[0]['rss'] / 1e6:.0f} to "
        f"{warm[-1]['rss'] / 1e6:.0f} MB ({growth:,.0f} B a unit), CPU a unit {early * 1e3:.2f} then {late * 1e3:.2f} ms, "
        f"status {at_status:.2f} s, open_run with its cells {at_open:.2f} s"
    )
    sys.stdout.write(figures + "\n")
    assert len(handles) == len(threads) == 1, figures
    assert growth < PER_UNIT, figures
    assert late <= 1.2 * early, figures
    assert {look["temporary"] for look in looks} == {0}, figures
    assert (status.state, cells) == ("finished", 20_000)
    assert at_status < 10, figures
    assert at_open < 60, figures
    assert (fast / "run" / "events.jsonl").stat().st_size < 5e6


# --------------------------------------------------------------------------------------- Ctrl-C at any moment


def _interrupted(folder: Path, times: int, units: int, seed: int) -> str:
    """Send SIGINT at random moments of a run, once or twice, then finish it; return the figures."""
    draw = random.Random(seed)
    value = experiment(folder, units)
    file = folder / "file.yaml"
    file.write_text(value.to_yaml(), encoding="utf-8")
    counts = {"stopped": 0, "complete": 0, "sent twice": 0, "after its unit": 0}
    with small_units():
        begun = time.monotonic()
        run_experiment(value, folder / "whole")
        took = time.monotonic() - begun
        for number in range(times):
            run = folder / f"run-{number}"
            arguments = ["run", str(file), "--output", str(run)]
            child = Forked(arguments, folder / "said.txt")
            time.sleep(draw.uniform(0.0, 1.1 * took))
            child.send(signal.SIGINT)
            if draw.random() < 0.4:
                counts["sent twice"] += 1
                time.sleep(draw.uniform(0.0, 0.4))
                child.send(signal.SIGINT)
            code = child.wait()
            said = child.said.read_text(encoding="utf-8")
            assert code in (0, 130), (number, code, said)
            assert "Traceback" not in said, (number, said)
            assert "Exception ignored" not in said, (number, said)
            counts["stopped" if code == 130 else "complete"] += 1
            counts["after its unit"] += "finishing unit" in said
            if (run / "ledger").exists() and code == 130 and " are committed" in said:
                there = sum(r["kind"] == "unit" for r in read_ledger(run / "ledger").records)
                assert f"stopped; {there} of {units} units" in said, (number, there, said)
            again = Forked(arguments, folder / "said.txt")
            assert again.wait() == 0, (number, again.said.read_text(encoding="utf-8"))
            assert content(run) == content(folder / "whole"), number
            assert read_events(run)[-1]["event"] == "finished"
    return f"{times} runs interrupted at random moments: {counts}; all resumed to identical bytes"


def test_ctrl_c_at_any_moment(fast: Path) -> None:
    _interrupted(fast, 2, 10, seed=5)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ctrl_c_at_thirty_random_moments(fast: Path) -> None:
    figures = _interrupted(fast, 30, 40, seed=1)
    sys.stdout.write(figures + "\n")
    assert "'stopped': 0" not in figures, figures
    assert "'after its unit': 0" not in figures, figures
