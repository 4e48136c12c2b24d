"""Units and analyses spread over a Dask cluster: the same bytes; what a worker lacks is said in a line."""

import os
import re
import shutil
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine.cli.main import main
from codi_engine.core.errors import UserError, WorkerDied
from codi_engine.core.experiment import Experiment
from codi_engine.core.running import clustered
from codi_engine.core.running.agreeing import Agreement
from codi_engine.core.running.bench import Ready
from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs import clustered as analyses
from codi_engine.core.runs.analyzing import analyze
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.core.runs.work import Work
from codi_engine.core.spreading import cluster as clusters
from codi_engine.core.spreading import crew as crews
from codi_engine.core.spreading.cluster import Cluster, Spread, spread_of
from codi_engine.core.spreading.crew import Crew
from codi_engine.core.spreading.entering import Common, check
from codi_engine.plugins.analyses.correlation import Correlation

SMALL = Synthetic(targets=8, examples=2, trials=4, features=30, words=12)
DEMO: dict[str, Any] = {
    "name": "spread",
    "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
    "data": {"plugin": "demo-pairs", "limit": 8},
    "conditions": {"patch": {"intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": "all", "step": [0, 1]}}},
    "controls": "none",
    "metrics": ["logit_diff"],
    "generate": {"max_new_tokens": 4},
}


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A cluster that is there: two workers, in threads of this process, behind a loopback address."""
    import dask
    from distributed import LocalCluster

    with dask.config.set({"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}):
        here = LocalCluster(n_workers=2, threads_per_worker=2, processes=False, protocol="tcp://", host="127.0.0.1", dashboard_address="127.0.0.1:0")
        yield here.scheduler_address
        here.close()


def tables(run: Path) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("results/*/*.parquet"))}


def content(run: Path) -> dict[str, bytes]:
    """What the ledger vouches for, and the ledger."""
    found = [run / "ledger", *(p for name in ("data.zarr", "texts") for p in (run / name).rglob("*") if p.is_file())]
    return {str(p.relative_to(run)): p.read_bytes() for p in found}


def seen(monkeypatch: pytest.MonkeyPatch, kind: Any, tasks: list[Any]) -> None:
    """Take note of every task that a worker of this process is given."""
    do = kind.do

    def noted(self: Any, task: Any) -> Any:
        tasks.append(task)
        return do(self, task)

    monkeypatch.setattr(kind, "do", noted)


# --------------------------------------------------------------------------------------------- the same


def test_an_analysis_in_workers_gives_the_same_tables(tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_synthetic(SMALL, tmp_path / "run")
    other = shutil.copytree(run, tmp_path / "other")
    done: list[Any] = []
    seen(monkeypatch, analyses.Replay, done)
    monkeypatch.setattr(Work, "piece", property(lambda self: 3_000))  # several parts of a small run
    analyze(run, "pathways")
    analyze(other, "pathways", executor="dask", scheduler=scheduler)
    assert len(done) == len(set(done)) > 2
    assert len(tables(run)) > 1
    assert tables(other) == tables(run)
    assert not list(other.rglob(".partial"))


@pytest.mark.parametrize("method", ["pearson", pytest.param("spearman", marks=pytest.mark.slow)])
def test_sums_over_the_whole_run_are_the_same(method: str, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers read and average; this process adds up, in the order of one process; conditions one after the other here."""
    run = write_synthetic(Synthetic(targets=8, examples=6, trials=4, features=30, words=12), tmp_path / "run")
    other = shutil.copytree(run, tmp_path / "other")
    done: list[Any] = []
    seen(monkeypatch, analyses.Replay, done)
    monkeypatch.setattr(Work, "piece", property(lambda self: 20_000))
    monkeypatch.setattr(Correlation, "_groups", lambda self, vectors, chosen, kind, work: [[c] for c in chosen])
    analyze(run, "correlation", method=method, q=0.999, min_expected=0.0)
    assert not done
    analyze(other, "correlation", method=method, q=0.999, min_expected=0.0, executor="dask", scheduler=scheduler)
    assert len(done) == len(set(done)) > 2
    assert tables(other) == tables(run)
    assert sum(map(len, tables(run).values())) > 10_000
    assert not list(other.rglob(".partial"))


@pytest.mark.slow
def test_gradients_in_workers_are_the_same(tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[Any] = []
    seen(monkeypatch, analyses.Replay, done)
    run_experiment(Experiment.from_dict({**DEMO, "data": {"plugin": "demo-pairs", "limit": 3}}), str(tmp_path / "run"))
    other = shutil.copytree(tmp_path / "run", tmp_path / "other")
    analyze(tmp_path / "run", "attribution")
    assert not done
    analyze(other, "attribution", executor="dask", scheduler=scheduler)
    assert sorted(done) == [(0, "attribution-0", str(n)) for n in range(3)]
    mine, theirs = (tables(path) for path in (tmp_path / "run", other))
    assert len(mine) == len(theirs) > 3
    assert {n: t for n, t in mine.items() if "cost" not in n} == {n: t for n, t in theirs.items() if "cost" not in n}  # the cost has seconds


def test_units_in_workers_give_the_same_run(tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks: list[Any] = []
    seen(monkeypatch, clustered.Station, tasks)
    monkeypatch.chdir(tmp_path)
    run_experiment(Experiment.from_dict(DEMO), "serial")
    run_experiment(Experiment.from_dict(DEMO), "spread", spread=Spread(scheduler))
    made = [task[0] for task in tasks]
    assert sorted(made) == list(range(-1, len(made) - 1))  # the gate, and every unit once
    assert len(made) > 2
    assert content(Path("spread")) == content(Path("serial"))
    assert not Path("spread/outbox").exists()


# ------------------------------------------------------------------------------------------- what is refused


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize(
    ("address", "said"), [("tcp://127.0.0.1:{port}", "no Dask scheduler answers there"), ("nonsense://here", "is no address of a Dask scheduler")]
)
def test_a_scheduler_that_does_not_answer_is_said(address: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(clusters, "ANSWER", 0.5)
    assert main(["run", "--executor", "dask", "--scheduler", address.format(port=free_port())]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_a_server_that_is_no_scheduler_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(clusters, "ANSWER", 0.5)
    answered: list[bytes] = []

    def answer() -> None:
        with server.accept()[0] as other:
            answered.append(other.recv(8))
            other.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            other.recv(1 << 20)
            over.wait(10)

    over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=answer, daemon=True).start()
        assert main(["run", "--executor", "dask", "--scheduler", f"tcp://127.0.0.1:{server.getsockname()[1]}"]) == 2
    over.set()
    lines = capsys.readouterr().err.splitlines()
    assert answered
    assert len(lines) == 1
    assert "no Dask scheduler answers there" in lines[0]


def test_what_is_asked_for_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert spread_of(None, None) is None
    with pytest.raises(UserError, match="'ray' is unknown; write dask"):
        spread_of("ray", None)
    with pytest.raises(UserError, match="needs --executor dask"):
        spread_of(None, "tcp://here:8786")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UserError, match=r"pip install 'codi-engine\[dask\]'"):
        spread_of("dask", None)


def test_a_worker_with_other_packages_or_files_is_refused(tmp_path: Path) -> None:
    mine = Common.of({})
    check(mine)
    with pytest.raises(UserError, match=r"has codi-engine .* .sha256 [0-9a-f]{12}., not 0.0.1; install it there"):
        check(Common({**mine.packages, "codi-engine": "0.0.1"}, {}, {}, mine.folder))
    with pytest.raises(UserError, match=r"has no codi-other .this process has 2.0."):
        check(Common({**mine.packages, "codi-other": "2.0"}, {}, {}, mine.folder))
    with pytest.raises(UserError, match="does not see /nowhere"):
        check(Common(mine.packages, {}, {}, "/nowhere"))
    with pytest.raises(UserError, match="does not see the run /nowhere/run; workers need the same file system"):
        check(Common(mine.packages, {}, {"/nowhere/run": None}, mine.folder))
    run = write_synthetic(SMALL, tmp_path / "run")
    with pytest.raises(UserError, match="sees another run in"):
        check(Common(mine.packages, {}, {str(run): "0" * 64}, mine.folder))


def test_a_refusal_names_the_worker(scheduler: str) -> None:
    common = Common.of({"/nowhere/run": None})
    with Cluster(Spread(scheduler), 0) as cluster:
        crew = Crew(cluster, common, dict, lambda _: (), welcome=lambda *_: None, say=lambda _: None)
        with pytest.raises(UserError, match=r"^tcp://127\.0\.0\.1:\d+: .* does not see the run /nowhere/run"):
            crew.begin()


def test_other_model_files_are_refused() -> None:
    class Runner:
        inputs: dict[str, str] = {}
        facts = {"model_digest": "a" * 64}

        class plan:
            class data:
                digest = "d"

    with pytest.raises(UserError, match=r"^tcp://far:1: has other model files .sha256 bbbbbbbbbbbb. than this process .aaaaaaaaaaaa.; give it"):
        Agreement(Runner(), elsewhere=True).compare("tcp://far:1", Ready("b" * 64, "d", True, "", None))  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------- deaths


def worker_pids(spread: clustered.Clustered) -> list[int]:
    return [hand.member.pid for hand in spread._crew._hands.values() if hand.ready and hand.member.pid]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_five_deaths_change_nothing_and_cost_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of two processes is killed five times (whichever is ready); every unit that was finished is computed once."""
    monkeypatch.chdir(tmp_path)
    patch = {**DEMO["conditions"]["patch"], "sweep": {"layer": "all", "step": "all"}}
    back = {**patch, "intervention": {**patch["intervention"], "direction": "noise"}}
    experiment = {**DEMO, "data": {"plugin": "demo-pairs", "limit": 400}, "conditions": {"there": patch, "back": back}}
    run_experiment(Experiment.from_dict(experiment), "serial")
    answered: Counter[int] = Counter()
    kills: list[int] = []
    over = threading.Event()
    made: list[clustered.Clustered] = []
    taken, begin = clustered.Clustered._taken, clustered.Clustered.__enter__

    def counted(self: clustered.Clustered, answer: Any) -> Any:
        if answer.value.rows and answer.task[0] >= 0:
            answered[answer.task[0]] += 1
        return taken(self, answer)

    def entered(self: clustered.Clustered) -> clustered.Clustered:
        made.append(self)
        return begin(self)

    def kill() -> None:
        while len(kills) < 5 and not over.wait(0.2):
            pids = worker_pids(made[0]) if made and hasattr(made[0], "_crew") else []
            if pids and pids[0] not in kills and sum(answered.values()) > len(kills):
                os.kill(pids[0], signal.SIGKILL)
                kills.append(pids[0])

    monkeypatch.setattr(clustered.Clustered, "_taken", counted)
    monkeypatch.setattr(clustered.Clustered, "__enter__", entered)
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run_experiment(Experiment.from_dict(experiment), "spread", device="cpu,cpu", spread=Spread())
    finally:
        over.set()
        killer.join()
    again = sum(answered.values()) - len(answered)
    print(f"\n{len(kills)} kills, {len(answered)} units answered by workers, {again} answered twice")  # noqa: T201
    assert len(kills) == 5
    assert again == 0
    assert {k: v for k, v in content(Path("spread")).items() if k != "ledger"} == {k: v for k, v in content(Path("serial")).items() if k != "ledger"}
    assert not Path("spread/outbox").exists()


class Deadly:
    """Kills its process when it is asked to work."""

    def entered(self) -> None: ...

    def close(self) -> None: ...

    def do(self, task: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_task_that_kills_every_worker_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "DEATHS", 3)
    with Cluster(Spread(), 1) as cluster:
        crew = Crew(cluster, Common.of({}), Deadly, lambda _: (), welcome=lambda *_: None, say=lambda _: None, doing=lambda task: f"computed unit {task}")
        crew.begin()
        crew.give(7)
        answers = (answer for _ in range(200) for answer in crew.answers())
        with pytest.raises(WorkerDied, match="3 worker processes in a row ended while they computed unit 7"):
            next(answers)
        crew.end(at_once=True)


class Greedy:
    """Holds 400 MB in every process that it is asked to work in, or in the first one alone."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def entered(self) -> None: ...

    def close(self) -> None: ...

    def do(self, task: int) -> int:
        if task or not (self.folder / "once").exists():
            (self.folder / "once").touch()
            held = bytearray(os.urandom(1 << 20)) * 400
            time.sleep(30)
            del held
        return task


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_worker_that_holds_too_much_is_ended_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once: its task is done by the next one. Whoever comes: two lines, with the remedy."""
    monkeypatch.setattr(crews, "DEATHS", 2)
    said: list[str] = []
    with Cluster(Spread(), 1, memory=350_000_000) as cluster:
        crew = Crew(cluster, Common.of({}), Greedy, lambda _: (str(tmp_path),), welcome=lambda *_: None, say=said.append, doing=lambda task: f"computed {task}")
        crew.begin()
        crew.give(0)
        answers = (answer for _ in range(60) for answer in crew.answers())
        assert next(answers).task == 0
        assert crew.died == 1
        assert len(said) == 1
        assert re.search(r"was ended because it held 0\.\d+ GB, more than the 0\.35 GB that it may; its work goes to another one", said[0])
        crew.give(1)
        with pytest.raises(WorkerDied, match=r"2 worker processes in a row ended while they computed 1; .*\nThe last one held .*: -s threads=1") as raised:
            next(answers)
        assert len(str(raised.value).splitlines()) == 2
        crew.end(at_once=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_analysis_in_two_processes_gives_the_same_tables(tmp_path: Path) -> None:
    run = write_synthetic(Synthetic(targets=40, examples=4, trials=10, features=400, words=40), tmp_path / "run")
    other = shutil.copytree(run, tmp_path / "other")
    settings: list[tuple[str, dict[str, Any]]] = [("pathways", {}), ("words", {"ngrams": 2})]
    for name, options in settings:  # pairs of words: the second stage needs what the first one found
        analyze(run, name, memory=0.02, **options)
        analyze(other, name, memory=0.02, executor="dask", **options)
    assert tables(other) == tables(run)
