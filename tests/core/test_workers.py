"""Runs on several devices: the same bytes as on one, whatever is interrupted or killed; what a worker raises reaches the user."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.cli.main import main
from codi_engine.core.errors import GateError, UserError, WorkerDied
from codi_engine.core.planning.preparing import prepare
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.progress import Progress
from codi_engine.core.running import workers
from codi_engine.core.running.bench import Ready
from codi_engine.core.running.run import run_experiment
from codi_engine.core.running.runner import Runner
from codi_engine.core.running.workers import Workers, _Worker
from codi_engine.core.spreading.failures import Failed, WorkerFailed, raised
from codi_engine.store.errors import StoreError
from codi_engine.store.reader import RunReader

FEATURES: dict[str, Any] = {
    "name": "features",
    "model": {"plugin": "causal_lm", "path": "demo", "device": "cpu"},
    "data": {"plugin": "demo-prompts", "limit": 4},
    "conditions": {
        "more": {"intervention": {"plugin": "sae", "sae": "demo", "site": "resid_post", "tokens": "last", "value": "more"}},
        "less": {"intervention": {"plugin": "sae", "sae": "demo", "site": "resid_post", "tokens": "last", "value": "less"}},
    },
    "sweep": {"feature": {"from": "demo", "limit": 2}},
    "trials": 100,
    "generate": {"max_new_tokens": 4, "do_sample": True, "temperature": 2.0},
    "capture": [{"sae": "demo", "features": {"from": "demo"}, "at": "last", "reduce": "mean"}],
    "metrics": [{"plugin": "outcome", "pattern": "answer is:? *(?P<given>\\d+)", "numbers": ["given"]}],
}


class Watched(Progress):
    """Keeps what is said, acts on the commits of a stage, and stops the run after some of them as Ctrl-C does.

    After a kill it stops once that was noticed too: units that were computed ahead are committed without listening to workers.
    """

    def __init__(self, stage: str, stop: int, kill: int = -1) -> None:
        self.stage, self.stop, self.kill = stage, stop, kill
        self.now, self.commits = "", 0
        self.notes: list[str] = []
        self.seen: list[int] = []

    def start(self, stage: str, total: int, unit: str) -> None:
        self.now, self.commits = stage, 0

    def advance(self, count: int) -> None:
        if self.now != self.stage:
            return
        self.commits += 1
        children = multiprocessing.active_children()
        self.seen += [c.pid for c in children if c.pid is not None]
        if self.commits == self.kill:
            os.kill(self.seen[0], signal.SIGKILL)
        if self.commits >= self.stop and (self.kill < 0 or any("SIGKILL" in note for note in self.notes)):
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def content(run: Path) -> dict[str, bytes]:
    """Return every file of a run but its provenance and its log, which hold times."""
    files = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if name not in ("provenance.json", "copies/provenance.copy", "lock", "events.jsonl")}


def gone(pids: Sequence[int]) -> bool:
    for pid in pids:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            continue
        return False
    return multiprocessing.active_children() == []


@pytest.mark.slow
def test_serial_then_parallel_with_a_killed_worker_then_serial_is_the_serial_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODI_ENGINE_PLUGINS", "")
    experiment = Experiment.from_dict(FEATURES)
    run_experiment(experiment, "whole")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, "parts", progress=Watched("baseline", 1))
    assert len(RunReader("parts").committed) == 1
    monkeypatch.setattr(workers, "AHEAD", 1)  # else all of this small sweep may be computed before the kill
    watched = Watched("sweep", 5, kill=1)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(experiment, "parts", device="cpu,cpu", progress=watched)
    assert len(set(watched.seen)) >= 2
    assert gone(watched.seen)
    assert any("SIGKILL" in note and note.startswith("cpu: ") for note in watched.notes), watched.notes
    reader = RunReader("parts")
    assert len(reader.committed) == 2 + watched.commits < len(RunReader("whole").committed)
    assert reader.provenance["devices"] == ["cpu", "cpu"]
    run_experiment(experiment, "parts")
    assert content(Path("parts")) == content(Path("whole"))
    assert run_experiment(experiment, "parts", device="cpu,cpu").new_cells == 0


def test_the_weights_that_planned_are_gone_before_workers_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    networks: list[weakref.ref[Any]] = []
    load = Runner.load

    def watched(self: Runner) -> Any:
        adapter, net = load(self)
        networks.append(weakref.ref(adapter.network))
        return adapter, net

    def start(self: Workers, device: str, again: bool = False) -> Any:
        assert networks.pop()() is None
        raise KeyboardInterrupt

    monkeypatch.setattr(Runner, "load", watched)
    monkeypatch.setattr(Workers, "_start", start)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Experiment.from_dict(FEATURES), "run", device="cpu,cpu")
    with pytest.raises(KeyboardInterrupt):
        run_experiment(Experiment.from_dict({**FEATURES, "model": {"plugin": "codi", "checkpoint": "demo"}}), "other", device="cpu,cpu")


def test_workers_must_have_the_same_model_and_data_and_say_where_bits_differ(tmp_path: Path) -> None:
    watched = Watched("none", 0)
    runner = Runner(prepare(Experiment.from_dict(FEATURES), plugin_manager(load=False)), tmp_path, watched)
    runner.facts, runner.reproducible = {"model_digest": "m" * 64}, True
    data = runner.plan.data.digest
    workers = Workers(runner, ["cuda:0", "cuda:1"])
    first, second = (_Worker(device, tmp_path, None, None) for device in workers.devices)  # type: ignore[arg-type]
    workers._take(first, Ready("m" * 64, data, True, "bits", 7))
    assert (runner.reproducible, watched.notes, workers._peak) == (True, [], 7)
    workers._take(second, Ready("m" * 64, data, True, "other bits", 5))
    assert watched.notes == ["cuda:1 gives other bits than cuda:0: results agree to rounding, not bit for bit"]
    assert (runner.reproducible, workers._peak) == (False, 7)
    for what, found in (("model", Ready("x" * 64, data, True, "bits", 0)), ("data", Ready("m" * 64, "y" * 64, True, "bits", 0))):
        with pytest.raises(UserError, match=f"cuda:1: the {what} files changed while the run began"):
            workers._take(second, found)


# ------------------------------------------------------------------------------------ what goes wrong in a worker

PLUGIN = """
import os
from codi_engine.core.errors import UserError
from codi_engine.core.hookspecs import hookimpl
from codi_engine.core.plugin import Metric, NoOptions

if os.environ.get("THIRD") == "cannot load" and __import__("multiprocessing").parent_process():
    print("these were its last words", flush=True)
    os._exit(7)


class Wrong(Metric[NoOptions]):
    'Ends the process that measures edited cells, and when that is done again, raises.'

    name = "wrong"
    Options = NoOptions

    def measure(self, read):
        if (read.labels["condition"] == "baseline").all():
            return {"wrong": read.gold}
        if not os.path.exists("ended"):
            open("ended", "x").close()
            os._exit(7)
        raise UserError("wrong: write something else")


@hookimpl
def metrics():
    return [Wrong]
"""
EXPERIMENT = """
name: wrong
model: {plugin: codi, checkpoint: demo, device: [cpu, cpu]}
data: {plugin: demo-pairs, limit: 12}
intervention: {plugin: patch, site: resid_post, direction: denoise}
sweep: {layer: all, step: all}
metrics: [wrong]
controls: none
generate: {max_new_tokens: 4}
output: out
"""


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Install the metric, and let one worker do the work of two (to start one is what takes time); returns an experiment's file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CODI_ENGINE_PLUGINS", "third")
    (tmp_path / "third_metric.py").write_text(PLUGIN, encoding="utf-8")
    folder = tmp_path / "third-1.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: third\nVersion: 1\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text("[codi_engine]\nmetric = third_metric\n", encoding="utf-8")
    begin = Workers.__init__
    monkeypatch.setattr(Workers, "__init__", lambda self, runner, devices: begin(self, runner, devices[:1]))
    file = tmp_path / "wrong.yaml"
    file.write_text(EXPERIMENT, encoding="utf-8")
    return file


@pytest.mark.slow
def test_a_users_mistake_found_by_a_worker_that_took_anothers_place_is_said_as_ever(wrong: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(wrong)]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "loading the model",
        "loading the model on cpu",
        "gate: does every edit fire where it should?",
        "cpu: the worker process ended (exit code 7); another one takes its place",
        "error: wrong: write something else",
    ]
    assert gone([])
    assert {r["stage"] for r in RunReader("out").committed.values()} == {"baseline"}


def test_a_worker_that_cannot_begin_ends_the_run(wrong: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THIRD", "cannot load")
    with pytest.raises(WorkerDied, match=r"cpu: .*ended \(exit code 7\) while it loaded the model; .*\n.*these were its last words"):
        run_experiment(Experiment.from_file(wrong))
    assert gone([])


def test_what_a_worker_raises_names_the_device_and_keeps_its_traceback() -> None:
    try:
        float("missing")
    except ValueError as wrong:
        failed = pickle.loads(pickle.dumps(Failed.of(wrong)))
    error = raised("cuda:1", failed)
    assert isinstance(error, WorkerFailed)
    assert str(error) == "cuda:1: ValueError: could not convert string to float: 'missing'"
    assert 'float("missing")' in str(error.__cause__)
    for kind in (UserError, GateError, StoreError):
        again = raised("cpu", Failed.of(kind("as it is")))
        assert type(again) is kind
        assert str(again) == "as it is"
