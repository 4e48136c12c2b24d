"""The benchmark of the store runs, and its contenders agree, at a size of seconds; no time is judged here."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", Path(__file__).parents[1] / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_race_of_the_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("store").main(["race", "--size", "tiny", "--rounds", "1", "--dir", str(tmp_path)])
    lines = {line[:36].strip(): line.split() for line in capsys.readouterr().out.splitlines()}
    for ours in ("codi-engine", "codi-engine, as analyses read", "codi-engine, sparse"):
        assert lines[ours][-1] == "10/10", f"{ours}: damage was read in silence"
    assert lines["plain files, one call"][-1] == "0/10", "a flipped byte of a plain file cannot be noticed: was it flipped?"
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_what_safety_costs_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("store").main(["share", "--size", "tiny", "--rounds", "1", "--dir", str(tmp_path)])
    said = capsys.readouterr().out
    assert "checksums, fsync and ledger:" in said
    assert "0.000 s CPU" not in said, "nothing was measured"
    assert not list(tmp_path.iterdir())
