"""The benchmarks run at a size of seconds, and what they compare agrees; no time is judged here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from codi_engine.core.rollout import packing, tokenwise


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


def sweep(module: str) -> ModuleType:
    return importlib.import_module(f"benchmarks.sweep.{module}")


def test_the_contenders_of_the_sweep_agree_and_are_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep("command").main(
        ["--size", "tiny", "--repeats", "1", "--every", "3", "--contender", "hooks", "codi", "vectorised", "--json", str(tmp_path / "said.json")]
    )
    said = capsys.readouterr().out
    for letter in "ABC":
        assert f"\n{letter}: " in said
    assert said.count("equal tokens 100%") == 3
    found = json.loads((tmp_path / "said.json").read_text(encoding="utf-8"))
    for letter in "ABC":
        rows = {row["name"]: row for row in found[letter]["rows"]}
        assert 0 < rows["codi-engine"]["shares"]["of the floor"] < 1
        assert all(row["seconds"] > 0 for row in rows.values())
    floors = found["A"]["floors"]
    assert floors["of the lowered floor"] < floors["of the floor"]
    assert found["C"]["edit and capture / plain"] > 0


@pytest.mark.parametrize("kind", [pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def test_prompts_of_mixed_lengths_and_grouped_heads_agree_too(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    one = ["--contender", "one at a time, last", "batch", "codi"]
    sweep("command").main(["--size", "tiny", "--repeats", "1", "--every", "3", "--workload", "A", "B", "--model", kind, "--mixed", *one])
    assert len(re.findall(r"over [1-9]\d* cells", capsys.readouterr().out)) == 2


@pytest.mark.slow
def test_the_engine_gives_the_same_without_each_of_its_means(capsys: pytest.CaptureFixture[str]) -> None:
    sweep("command").main(["--size", "tiny", "--repeats", "1", "--every", "3", "--levers"])
    said = capsys.readouterr().out
    assert said.count("levers; max |Δ|") == 3
    assert said.count("× codi-engine") == 3


def test_contenders_that_differ_are_not_timed() -> None:
    agreement, timing = sweep("comparing").agreement, sweep("timing")
    cells = {(0,): torch.zeros(3), (1,): torch.ones(3)}
    right = timing.Pass(cells, {(0,): [1, 2], (1,): [3, 4]})
    assert agreement({"a": right, "b": right}).tokens == 1
    for wrong, why in (
        (timing.Pass({**cells, (1,): torch.full((3,), 1.01)}, right.tokens), "'b' differs from 'a' by 1.0"),
        (timing.Pass({**cells, (1,): torch.full((3,), torch.nan)}, right.tokens), "differs"),
        (timing.Pass(cells, {**right.tokens, (1,): [3, 5]}), "tokens differ in 50"),
        (timing.Pass({(2,): torch.zeros(3)}), "no cell in common"),
    ):
        with pytest.raises(SystemExit, match=why):
            agreement({"a": right, "b": wrong})
    with pytest.raises(SystemExit, match="no edit changes anything"):
        agreement({name: timing.Pass({(0,): torch.ones(3), (1,): torch.ones(3)}) for name in "ab"})


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_floor_counts_what_torch_counts(kind: str) -> None:
    floors, models = sweep("floors"), sweep("models").Models(kind, "tiny")
    model, shape = models.fresh("eager"), models.shape
    cache, tokens = DynamicCache(config=model.config), 4
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        for token in range(tokens):
            model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
    assert counter.get_total_flops() == floors._through(shape, 0, tokens, False) + tokens * shape.head


def test_the_engine_computes_no_less_than_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "available", lambda: False)  # torch counts neither packed products
    monkeypatch.setattr(tokenwise, "suits", lambda *_: False)  # nor those of our kernel
    workloads, models = sweep("workloads"), sweep("models").Models("gpt2", "tiny")
    for letter in "ABC":
        work = workloads.WORKLOADS[letter](models, 3, **workloads.TINY[letter])
        engine = dict(work.contenders())["codi-engine"]()
        with FlopCounterMode(display=False) as counter:
            done = engine.run(1)
        result = sweep("comparing").Timed({}, {"plain": 1.0}, {"codi-engine": done})
        floor = max(work.floors(result).values())
        assert floor < counter.get_total_flops() < 4 * floor, letter


@pytest.mark.slow
def test_the_sweep_measures_memory_in_processes_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    sweep("command").main(["--size", "tiny", "--every", "3", "--workload", "B", "--memory", "--contender", "codi"])
    assert float(capsys.readouterr().out.split()[-1]) > 0
