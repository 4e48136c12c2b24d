"""Workers that are asked to end (SIGTERM): what they compute is finished, what waits goes to others, and nothing is computed twice."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from codi_engine.core.experiment import Experiment
from codi_engine.core.running import clustered
from codi_engine.core.running.run import run_experiment
from codi_engine.core.spreading.cluster import Cluster, Spread
from codi_engine.core.spreading.crew import Answer, Crew
from codi_engine.core.spreading.entering import Common
from tests.core.test_spreading import DEMO, content, worker_pids


class Slow:
    """Writes down when it begins and ends a task, which takes a while."""

    def __init__(self, folder: str, seconds: float) -> None:
        self.folder, self.seconds = Path(folder), seconds

    def entered(self) -> None: ...

    def close(self) -> None: ...

    def do(self, task: int) -> int:
        (self.folder / f"{task}.{os.getpid()}.{threading.get_ident()}.begun").touch()
        time.sleep(self.seconds)
        (self.folder / f"{task}.done").touch()
        return task


def begun(folder: Path) -> list[tuple[int, int]]:
    """Return (task, process) of what was begun."""
    return [(int(p.name.split(".")[0]), int(p.name.split(".")[1])) for p in folder.glob("*.begun")]


def crew_of(cluster: Cluster, folder: Path, seconds: float, said: list[str]) -> Crew:
    crew = Crew(cluster, Common.of({}), Slow, lambda _: (str(folder), seconds), welcome=lambda *_: None, say=said.append)
    until = time.monotonic() + 60
    crew.begin()
    while crew.size < 2 and time.monotonic() < until:
        crew._listen(0.2)
    assert crew.size == 2
    return crew


def answered(crew: Crew, tasks: list[int], meanwhile: Any) -> list[Answer]:
    """Have tasks computed; ``meanwhile`` is called until it returns True."""
    waiting, over, until = list(tasks), False, time.monotonic() + 60
    answers: list[Answer] = []
    while len(answers) < len(tasks):
        assert time.monotonic() < until
        while waiting and crew.room(len(waiting)):
            crew.give(waiting.pop(0))
        over = over or meanwhile()
        answers += list(crew.answers())
    assert over
    return answers


def test_a_worker_that_is_closed_finishes_what_it_computes(tmp_path: Path) -> None:
    """A nanny that closes asks in this way."""
    import dask
    from distributed import LocalCluster

    from codi_engine.core.spreading.draining import NAME

    said: list[str] = []
    asked: list[Any] = []
    finished: list[set[str]] = []
    settings: dict[str, Any] = {"distributed.scheduler.http.routes": [], "distributed.worker.http.routes": []}
    options = {"processes": False, "protocol": "tcp://", "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with dask.config.set(settings), LocalCluster(n_workers=2, threads_per_worker=1, **options) as here, Cluster(Spread(here.scheduler_address), 0) as cluster:
        crew = crew_of(cluster, tmp_path, 0.4, said)

        async def close(worker: Any) -> None:
            await worker.plugin_remove(NAME)
            finished.append({p.name for p in tmp_path.glob("*.done")})

        leaver, until = here.workers[0].address, time.monotonic() + 10

        def ask() -> bool:
            while not begun(tmp_path) and time.monotonic() < until:
                time.sleep(0.01)
            if not asked:
                assert not list(tmp_path.glob("*.done"))
                asked.append(asyncio.run_coroutine_threadsafe(close(here.workers[0]), here.loop.asyncio_loop))
            return bool(asked)

        answers = answered(crew, list(range(6)), ask)
        asked[0].result(timeout=10)
        crew.end()
    assert finished[0]  # it waited
    assert sorted(a.task for a in answers) == list(range(6))
    assert sorted(task for task, _ in begun(tmp_path)) == list(range(6))  # none twice
    assert sum(a.worker.startswith(leaver) for a in answers) <= 1  # one at most was begun when it was asked
    assert len(said) == 1
    assert "was asked to end, and leaves" in said[0]
    assert crew.died == 0


@contextlib.contextmanager
def outside(tmp_path: Path, *options: str) -> Iterator[str]:
    """Start ``dask scheduler`` and two times ``dask worker``; yield the address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    here = ["--host", "127.0.0.1", "--no-dashboard"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, sys.path)])
    commands = [["dask_scheduler", *here, "--port", address.rpartition(":")[2]]]
    commands += [["dask_worker", address, *here, "--nthreads", "1", "--local-directory", str(tmp_path), *options]] * 2
    started: list[subprocess.Popen[bytes]] = []
    with (tmp_path / "dask.log").open("wb") as log:
        try:
            for command in commands:
                full = [sys.executable, "-m", f"distributed.cli.{command[0]}", *command[1:]]
                started.append(subprocess.Popen(full, stdout=log, stderr=log, env={**os.environ, "PYTHONPATH": path}))
                if len(started) == 1:
                    _answers(address)
            yield address
        finally:
            for process in reversed(started):
                process.terminate()
            for process in reversed(started):
                try:
                    process.wait(30)
                finally:
                    process.kill()


def _answers(address: str) -> None:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1):
            return
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("who", ["local", "worker", "nanny", "both", "without a nanny"])
def test_sigterm_in_mid_task(who: str, tmp_path: Path) -> None:
    """To a worker of ours; to a process of ``dask worker``: the worker, its nanny, or both as a preempted job gets it."""
    import psutil

    said: list[str] = []
    asked: list[int] = []
    before: list[str] = []
    given = contextlib.nullcontext(None) if who == "local" else outside(tmp_path, *(["--no-nanny"] if who == "without a nanny" else []))
    with given as address, Cluster(Spread(address), 2) as cluster:
        crew = crew_of(cluster, tmp_path, 2.0, said)

        def ask() -> bool:
            for _, pid in begun(tmp_path)[:1]:
                nanny = psutil.Process(pid).ppid()
                before.extend(p.name for p in tmp_path.glob("*.done"))
                asked.extend({"nanny": [nanny], "both": [nanny, pid]}.get(who, [pid]))
                for one in asked:
                    os.kill(one, signal.SIGTERM)
            return bool(asked)

        answered(crew, list(range(6)), ask)
        pids = dict(begun(tmp_path))
        worker = psutil.Process(asked[-1]) if psutil.pid_exists(asked[-1]) else None
        _, alive = psutil.wait_procs([worker], timeout=20) if worker else ([], [])
        assert all(p.status() == psutil.STATUS_ZOMBIE for p in alive)  # our own child, not yet waited for
        crew.end()
    assert before == []
    assert sorted(task for task, _ in begun(tmp_path)) == list(range(6))  # none twice
    if who != "nanny":
        assert list(pids.values()).count(asked[-1]) == 1  # what it had begun, and no more
    assert any("was asked to end, and leaves" in line for line in said)
    assert crew.died == 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_workers_of_a_run_drain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run whose workers get SIGTERM three times is what one process writes, and no unit is computed twice."""
    monkeypatch.chdir(tmp_path)
    experiment = {**DEMO, "data": {"plugin": "demo-pairs", "limit": 200}}
    run_experiment(Experiment.from_dict(experiment), "serial")
    answers: list[int] = []
    asked: list[int] = []
    over = threading.Event()
    made: list[clustered.Clustered] = []
    taken, begin = clustered.Clustered._taken, clustered.Clustered.__enter__

    def counted(self: clustered.Clustered, answer: Any) -> Any:
        answers.extend([answer.task[0]] if answer.value.rows and answer.task[0] >= 0 else [])
        return taken(self, answer)

    def entered(self: clustered.Clustered) -> clustered.Clustered:
        made.append(self)
        return begin(self)

    def ask() -> None:
        while len(asked) < 3 and not over.wait(0.05):
            pids = worker_pids(made[0]) if made and hasattr(made[0], "_crew") else []
            if pids and pids[0] not in asked and len(answers) > 2 * len(asked):
                asked.append(pids[0])
                os.kill(pids[0], signal.SIGTERM)

    monkeypatch.setattr(clustered.Clustered, "_taken", counted)
    monkeypatch.setattr(clustered.Clustered, "__enter__", entered)
    asker = threading.Thread(target=ask)
    asker.start()
    try:
        run_experiment(Experiment.from_dict(experiment), "spread", device="cpu,cpu", spread=Spread())
    finally:
        over.set()
        asker.join()
    events = [json.loads(line) for line in Path("spread/events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(asked) == 3
    assert made[0]._crew.died == 0
    assert sum("was asked to end, and leaves" in str(event) for event in events) >= 2  # the last one may have had nothing left to answer
    assert len(answers) == len(set(answers))
    assert content(Path("spread")) == content(Path("serial"))
    assert not Path("spread/outbox").exists()
