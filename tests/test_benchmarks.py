"""The benchmarks run at a size of seconds, and what they compare agrees; no time is judged here."""

from __future__ import annotations

import importlib.util
import os
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


@pytest.fixture
def scale(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the benchmark of large runs; like a script it finds the model beside it."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return benchmark("scale")


def test_the_model_of_large_runs_is_held_against_real_commits(scale: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s = scale.Scenario(workers=20, units=(5, 45), unit=10.0, load=30.0, restart=30.0, mtbf=60.0)
    with monkeypatch.context() as quick:
        quick.setattr(os, "fsync", lambda _: None)
        found = scale.check(tmp_path, s, 4, "writer")
    real = found["real commits"]
    assert real["deaths"] > real["recomputed"] > 0, "nobody ended: the exactness below shows nothing"
    assert real["ledger"] == pytest.approx(found["formula"]["ledger"], rel=0.05)
    assert not list(tmp_path.iterdir())


def test_the_formula_and_the_events_agree_where_one_thing_is_busy(scale: ModuleType) -> None:
    def both(**more: object) -> tuple[float, float]:
        s = scale.Scenario(**{"workers": 50, "units": (50, 2000), "unit": 10.0, "slow": 0.0, "mtbf": 1e9, "load": 60.0, **more})
        return scale.formula(s)["wall"], scale.Events(s, lambda _: s.driver, lambda _: s.put).run()["wall"]

    for more in ({}, {"driver": 0.5}, {"served": (100.0, 1e9), "operations": 50.0}, {"mtbf": 2000.0}, {"slow": 0.02}, {"slow": 0.02, "window": 100}):
        formula, events = both(**more)
        assert formula == pytest.approx(events, rel=0.12), more
    assert dict(scale.card_hours())["one at a time, no cache (as the study did)"]["middle"] == pytest.approx(209, rel=0.1)  # what it took
    assert both(driver=0.5)[1] >= 2050 * 0.5 + 60
    assert both(slow=0.02, window=100)[1] > 1.15 * both(slow=0.02)[1], "a narrow window costs nothing"


@pytest.mark.slow
def test_constants_of_large_runs(scale: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scale.constants(tmp_path, "tiny")
    said = capsys.readouterr().out
    assert "20 units" in said
    assert "600 cells" in said
