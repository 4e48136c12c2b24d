"""What plans are estimated to cost, what runs note that they took, and what status says of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.planning.costs import Costs, StageCost, size_text, time_text, total_of
from codi_engine.core.planning.estimate import estimate
from codi_engine.core.planning.machine import Preparing, peak_bytes, reset_peak
from codi_engine.core.planning.preparing import prepare
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.core.runs.stored import WRITING
from codi_engine.core.watching.recording import Recorder, actual_of, estimate_of, invocations_of
from codi_engine.core.watching.status import runs_in, status_of
from codi_engine.store.ledger import read_ledger
from codi_engine.store.lock import RunLock, holder

Maker = Callable[..., Experiment]
PATCH = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
SMALL: dict[str, Any] = {"intervention": PATCH, "sweep": {"layer": "all", "step": "all"}, "data": {"plugin": "demo-pairs", "limit": 12}}


# ----------------------------------------------------------------------------------------------- estimate


def test_a_busy_machine_slows_the_estimate(demo: Maker) -> None:
    prepared = prepare(demo(**SMALL), plugin_manager(load=False))
    free, busy = estimate(prepared), estimate(prepared, 1.0, 3.0)
    assert busy["sweep"].seconds == pytest.approx(3 * (free["sweep"].seconds or 0.0))
    assert (busy["load"].seconds or 0.0) > 1.0
    begun = Preparing()
    assert begun.taken()[1] == 1.0  # too early to tell
    time.sleep(0.6)
    assert begun.taken()[1] > 2.0


def test_a_plan_costs_its_stages(demo: Maker) -> None:
    costs = plan_experiment(demo(**SMALL, analyses=["importance", "words"])).costs
    assert [s.stage for s in costs.stages] == ["load", "baseline", "sweep", "analysis importance", "analysis words"]
    assert costs.unknown == ["analysis words"]
    assert costs.gpu_hours == 0.0
    assert costs.money is None
    assert costs["sweep"].cells == 12 * 24
    assert not Path("runs").exists()


def test_rows_and_bytes_are_about_those_of_the_run(demo: Maker) -> None:
    experiment = demo(**SMALL, capture=["latent_out", "resid_post.1"])
    costs = plan_experiment(experiment).costs
    run = experiment.run().open()
    actual = actual_of(run.provenance)
    for stage in ("baseline", "sweep"):
        assert costs[stage].rows == pytest.approx(actual[stage].rows, rel=0.5)
        assert costs[stage].disk == pytest.approx(actual[stage].disk, rel=0.1)
    sizes = [f["size"] for r in read_ledger(run.path / "ledger").records if r["kind"] == "unit" for f in r["files"].values()]
    assert actual.disk == sum(sizes)


def test_more_of_everything_costs_more(demo: Maker) -> None:
    def seconds(**keys: Any) -> float:
        return plan_experiment(demo(**{**SMALL, **keys})).costs["sweep"].seconds or 0.0

    base = seconds()
    assert seconds(data={"plugin": "demo-pairs", "limit": 120}) > 5 * base / 2
    assert seconds(sweep={"layer": [3], "step": [4]}) < base


def test_the_estimate_meets_what_the_demo_takes(demo: Maker) -> None:
    experiment = demo(**{**SMALL, "data": {"plugin": "demo-pairs", "limit": 40}})
    finished = experiment.run()
    assert finished.estimate is not None
    took = actual_of(finished.open().provenance)
    expected = sum(finished.estimate[s].seconds or 0.0 for s in ("baseline", "sweep"))
    assert 0.25 < expected / sum(took[s].seconds or 0.0 for s in ("baseline", "sweep")) < 4  # within 2 on a quiet machine
    assert finished.took.startswith("took ")
    assert "estimated" in finished.took


def test_price_buys_gpu_hours_or_the_machine() -> None:
    stages = [StageCost("load", 360.0), StageCost("sweep", 3240.0), StageCost("analysis words", 3600.0)]
    assert Costs(stages, "cpu", 2.0).money == pytest.approx(4.0)
    assert Costs(stages, "cuda:1", 2.0).money == pytest.approx(2.0)  # analyses hold no GPU
    assert Costs(stages, "cuda:1").gpu_hours == pytest.approx(1.0)
    assert Costs([StageCost("sweep")], "cpu", 2.0).to_dict()["stages"][0]["money"] is None


def test_the_price_is_no_part_of_the_identity(demo: Maker) -> None:
    assert demo(price=3.0).identity() == demo().identity()
    with pytest.raises(UserError, match="price"):
        demo(price=-1.0)


def test_measuring_times_cells_of_the_plan_and_writes_nothing(demo: Maker) -> None:
    summary = plan_experiment(demo(**{**SMALL, "data": {"plugin": "demo-pairs", "limit": 200}}), measure=True)
    costs = summary.costs
    assert 100 <= costs.timed_cells < summary.cells
    assert "timed on" in costs.basis
    assert costs["sweep"].cells == 200 * 24
    assert costs["sweep"].seconds is not None
    assert not Path("runs").exists()


def test_measuring_knows_donors_means_and_baselines_alone(demo: Maker) -> None:
    resample = {"intervention": {"plugin": "resample", "site": "latent_in"}, "sweep": {"step": [1], "donor": 2}}
    mean = {"intervention": {"plugin": "mean", "site": "latent_in"}, "sweep": {"step": [2]}}
    data = {"plugin": "demo-problems", "limit": 6}
    assert plan_experiment(demo(conditions={"a": resample, "b": mean}, data=data), measure=True).costs.timed_cells > 18
    assert plan_experiment(demo(data=data), measure=True).costs["baseline"].seconds is not None


# ------------------------------------------------------------------------------------------------ records


def test_invocations_add_up(demo: Maker) -> None:
    run_experiment(demo(**{**SMALL, "data": {"plugin": "demo-pairs", "limit": 4}}), "grown")
    run_experiment(demo(**SMALL, analyses=["importance"]), "grown")
    provenance = json.loads(Path("grown/provenance.json").read_text(encoding="utf-8"))
    assert len(invocations_of(provenance)) == 2
    actual, estimate = actual_of(provenance), estimate_of(provenance)
    assert actual["sweep"].cells == 12 * 24
    assert actual["baseline"].cells == 24
    assert (actual["analysis importance"].seconds or 0) > 0
    assert (actual.memory or 0) > 1e8
    assert estimate["sweep"].cells == 12 * 24
    assert estimate.seconds > 0


def test_a_refused_run_gets_no_record(demo: Maker) -> None:
    run_experiment(demo(**SMALL), "here")
    before = Path("here/provenance.json").read_bytes()
    with pytest.raises(UserError, match="holds another experiment"):
        run_experiment(demo(**SMALL, seed=1), "here")
    assert Path("here/provenance.json").read_bytes() == before


def test_a_stopped_invocation_counts_its_share_of_the_estimate() -> None:
    recorder = Recorder("cpu")
    recorder.expect(Costs([StageCost("load", 1.0), StageCost("sweep", 10.0, cells=200)]), {"sweep": (100, 200)})
    recorder.begin("sweep")
    recorder.committed(25, 1000)
    provenance = recorder.into({"seed": 0})
    assert estimate_of(provenance)["sweep"].seconds == pytest.approx(10.0 * 100 / 200 * 25 / 100)
    assert actual_of(provenance)["sweep"].disk == 1000
    assert recorder.into(provenance)["cost"]["invocations"][0]["id"] == provenance["cost"]["invocations"][0]["id"]
    assert len(recorder.into(provenance)["cost"]["invocations"]) == 1


def test_many_invocations_are_added_up() -> None:
    provenance: dict[str, Any] = {}
    for _ in range(60):
        recorder = Recorder("cpu")
        recorder.begin("sweep")
        recorder.committed(1, 10)
        provenance = recorder.into(provenance)
    assert len(invocations_of(provenance)) == 50
    assert actual_of(provenance)["sweep"].cells == 60
    assert actual_of(provenance)["sweep"].disk == 600


def test_the_peak_is_that_of_a_stage() -> None:
    reset_peak()
    before = peak_bytes() or 0
    block = bytearray(200_000_000)
    block[::4096] = b"1" * len(block[::4096])
    assert (peak_bytes() or 0) > before + 100e6
    del block
    if sys.platform == "linux":
        reset_peak()
        assert (peak_bytes() or 0) < before + 150e6


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(0, 10**9)), min_size=1, max_size=5))
def test_totals_are_sums_and_peaks(parts: list[tuple[float, int]]) -> None:
    total = total_of([StageCost("s", seconds, rows, rows) for seconds, rows in parts])
    assert total.seconds == pytest.approx(sum(p[0] for p in parts))
    assert total.rows == sum(p[1] for p in parts)
    assert total.memory == max(p[1] for p in parts)
    assert Costs.from_dict(Costs([total], "cuda", 2.0).to_dict()) == Costs([total], "cuda", 2.0)


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0.04, "0.0 s"), (9.94, "9.9 s"), (12.2, "12 s"), (600, "10 min"), (7200, "2.0 h")])
def test_times_in_words(value: float | None, text: str) -> None:
    assert time_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(None, "–"), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_900, "1 MB"), (4.2e12, "4.2 TB")])
def test_sizes_in_words(value: float | None, text: str) -> None:
    assert size_text(value) == text


# ------------------------------------------------------------------------------------------------- status


def test_status_of_a_finished_run(demo: Maker) -> None:
    demo(**SMALL, price=2.0).run()
    found = status_of("runs/test")
    assert found.state == "finished"
    assert found.share == 1.0
    assert found.holder is None
    assert [(s.stage, s.cells, s.planned_cells) for s in found.stages] == [("baseline", 24, 24), ("sweep", 288, 288)]
    assert found.cells == 312
    assert found.seconds_left == 0.0
    assert found.variance()[-1][0].stage == "total"
    assert found.actual.money is not None
    assert json.loads(json.dumps(found.to_dict()))["state"] == "finished"


@pytest.mark.slow
def test_status_names_the_results_that_a_larger_run_lacks(demo: Maker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from codi_engine.cli.main import main
    from codi_engine.core.runs import analyzing

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    small = {**SMALL, "analyses": ["importance"], "checks": {"kl": ">= 0"}}
    demo(**small).run()
    assert (status_of("runs/test").state, status_of("runs/test").goes_on) == ("finished", "")
    with monkeypatch.context() as patch:
        patch.setattr(analyzing, "analyze_one", stop)
        with pytest.raises(KeyboardInterrupt):
            demo(**{**small, "data": {"plugin": "demo-pairs", "limit": 13}}).run()
    found = status_of("runs/test")
    assert (found.state, found.share, dict(found.lacking)) == ("computed", 1.0, dict.fromkeys(("importance", "checks"), "made before the run grew"))
    assert found.goes_on == "codi-engine run runs/test/experiment.yaml --output runs/test"
    assert main(["analyze", "-q", "runs/test"]) == 0
    assert dict(status_of("runs/test").lacking) == {"checks": "made before the run grew"}
    capsys.readouterr()
    assert main(["status", "runs/test"]) == 0
    shown = capsys.readouterr().out
    assert re.search(r"state +computed, not analysed", shown)
    assert re.search(r"no results +checks \(made before the run grew\)", shown)
    assert "to go on" in shown
    assert main(["run", "-q", "runs/test/experiment.yaml", "--output", "runs/test"]) == 0
    assert status_of("runs/test").state == "finished"
    (Path("runs/test/results/importance") / WRITING).touch()
    found = status_of("runs/test")
    assert (dict(found.lacking), found.goes_on) == ({"importance": "interrupted"}, "codi-engine analyze runs/test")
    shutil.rmtree("runs/test/results/importance")
    assert dict(status_of("runs/test").lacking) == {"importance": "no results"}


@pytest.mark.slow
def test_status_while_another_process_runs(tmp_path: Path, demo: Maker) -> None:
    (tmp_path / "e.yaml").write_text(demo(**{**SMALL, "data": {"plugin": "demo-pairs", "limit": 275}}).to_yaml())
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-m", "codi_engine", "run", "-q", "e.yaml"], env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 50
        ledger = tmp_path / "runs/test/ledger"
        while time.monotonic() < deadline and not (ledger.exists() and ledger.read_bytes().count(b'"kind":"unit"') > 4):
            time.sleep(0.02)
        found = status_of(tmp_path / "runs/test")
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
    assert found.state == "running"
    assert str(process.pid) in (found.holder or "")
    assert 0.0 < found.share < 1.0
    assert (found.seconds_left or 0) > 0
    dead = status_of(tmp_path / "runs/test")
    assert dead.state == "partial"
    assert dead.holder is None
    before = (tmp_path / "runs/test/provenance.json").read_bytes()
    assert [r.state for r in runs_in(tmp_path / "runs")] == ["partial"]
    assert (tmp_path / "runs/test/provenance.json").read_bytes() == before


def test_the_lock_is_read_and_left_alone(tmp_path: Path) -> None:
    assert holder(tmp_path / "lock") is None
    lock = RunLock(tmp_path / "lock")
    assert f"pid {os.getpid()}" in (holder(tmp_path / "lock") or "")
    lock.release()
    (tmp_path / "lock").write_text("elsewhere pid 1")
    assert holder(tmp_path / "lock") is None  # a leftover: nobody has locked it
    RunLock(tmp_path / "lock").release()


def test_runs_that_were_not_recorded_and_damaged_ones_are_listed(tmp_path: Path) -> None:
    from codi_engine.core.runs.synthetic import Synthetic, write_synthetic

    write_synthetic(Synthetic(targets=3, features=8, trials=2, words=0), tmp_path / "runs" / "synth")
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "ledger").write_text("x\ny\n")
    bad, synth = runs_in(tmp_path / "runs")
    assert (bad.state, synth.state) == ("damaged", "finished")
    assert "damaged" in bad.problem
    assert synth.cells > 0
    assert synth.actual.stages == []
    with pytest.raises(UserError, match="is no directory"):
        runs_in(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no run"):
        status_of(tmp_path)
