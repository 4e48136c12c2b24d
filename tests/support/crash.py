"""A nursery of runs that are to die: one process has imported the engine and forks a child for each order.

An order names a command line (or the small run of ``tests/store/sample.py``), the directory to do it in, and what is to
happen to it: death after some seconds of processor time, or at its n-th write, rename, fsync … below the run directory, where the disk may also
become read-only or vanish, or a limit of the system be reached. Mounts that the nursery makes are seen by it and its children alone.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.injection import Injection, mount, own_namespace, unmount

ROOT = Path(__file__).parents[2]
#: cells of a unit, and bytes of a chunk, in children: several units and chunks in a second
UNIT_CELLS, CHUNK = 8, 4096
#: seconds after which a child is said to hang
LIMIT = 240.0
_REPLY = 3


# --------------------------------------------------------------------------------------------------- the side of the tests


class Ended:
    """How a child ended: its exit code (−9: killed), what the injection said before it fired, what the child printed, its seconds of processor time."""

    def __init__(self, reply: Mapping[str, Any]) -> None:
        self.code, self.fired, self.said = int(reply["code"]), str(reply["fired"]), str(reply["said"])
        self.seconds, self.hung = float(reply["seconds"]), bool(reply["hung"])
        # CPython's Thread.start waits for ever for a thread that got no memory for its first frame
        unstarted = "Exception ignored in thread started by" in self.said and "MemoryError" in self.said
        assert not self.hung or unstarted, f"hung: {self.said[-2000:]}"

    @property
    def lines(self) -> list[str]:
        """Return what was printed, line by line, without blank lines."""
        return [line for line in self.said.splitlines() if line.strip()]


class Nursery:
    """Starts the process that forks children; a context.

    Parameters
    ----------
    engine: import the whole engine; without, the store alone
    """

    def __init__(self, engine: bool = True) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "src"), *sys.path]), "MPLBACKEND": "agg", "COLUMNS": "200"}
        environment |= dict.fromkeys(("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        read, write = os.pipe()
        command = [sys.executable, "-c", "from tests.support.crash import serve; serve()", str(write), str(int(engine))]
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, pass_fds=(write,))
        os.close(write)
        self._replies = os.fdopen(read, encoding="utf-8")
        self._answer()

    def __enter__(self) -> Nursery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._replies.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self) -> dict[str, Any]:
        line = self._replies.readline()
        assert line, "the nursery ended"
        return dict(json.loads(line))

    def _ask(self, **order: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write((json.dumps(order) + "\n").encode())
        self._process.stdin.flush()
        return self._answer()

    def run(self, folder: Path, arguments: Sequence[str], *, kill_after: float | None = None, inject: Mapping[str, Any] | None = None) -> Ended:
        """Let a child carry out a command line of the engine in a folder."""
        return Ended(self._ask(do="run", folder=str(folder), arguments=list(arguments), kill_after=kill_after, inject=inject))

    def store(self, run: Path, units: int, plans: int, *, kill_after: float | None = None, inject: Mapping[str, Any] | None = None) -> Ended:
        """Let a child write the small run of the store's tests."""
        return Ended(self._ask(do="store", folder=str(run.parent), run=str(run), units=units, plans=plans, kill_after=kill_after, inject=inject))

    def warm(self, folder: Path, arguments: Sequence[str]) -> Ended:
        """Run a command once and import in the nursery what it imported, so that later children need not."""
        return Ended(self._ask(do="warm", folder=str(folder), arguments=list(arguments), kill_after=None, inject=None))

    def mount(self, at: Path, options: str, flags: int = 0) -> str:
        """Mount a tmpfs, or change one (flag 32: remount); returns what is wrong, or nothing."""
        return str(self._ask(do="mount", at=str(at), options=options, flags=flags)["problem"])

    def unmount(self, at: Path) -> None:
        self._ask(do="unmount", at=str(at))

    def seen(self, path: Path) -> Path:
        """Return the path under which a place on the nursery's mounts can be read from here."""
        return Path(f"/proc/{self._process.pid}/root{path}")


def experiment(limit: int = 3, analyses: Sequence[str] = ("importance",)) -> dict[str, Any]:
    """Return a small experiment that stores everything: pairs, a sweep, dense captures, sparse codes, sampled trials and texts."""
    return {
        "name": "kills",
        "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
        "data": {"plugin": "demo-pairs", "limit": limit},
        "conditions": {"patch": {"intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": "all", "step": [0, 2]}}},
        "trials": 2,
        "generate": {"max_new_tokens": 3, "do_sample": True, "temperature": 1.2},
        "metrics": ["kl", "flip"],
        "controls": "none",
        "analyses": list(analyses),
        "capture": ["resid_post@latent", {"sae": "demo", "layers": [1, 2], "name": "codes"}],
    }


#: left out of comparisons: times, and (of the lock) who wrote
APART = ("provenance.json", "copies/provenance.copy", "events.jsonl", "lock")


def content(run: Path) -> dict[str, bytes]:
    """Return every file of a run but those that hold times; of ``result.json`` all but the time it was made."""
    found = {p.relative_to(run).as_posix(): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    for name in [n for n in found if n.endswith("/result.json")]:
        about = json.loads(found[name])
        about.pop("made")
        about.pop("checksum", None)
        found[name] = json.dumps(about).encode()
    return {name: data for name, data in found.items() if name not in APART}


def leftovers(run: Path) -> list[str]:
    """Return what an interrupted writer may leave and a finished one must not."""
    return [p.relative_to(run).as_posix() for p in run.rglob("*") if p.name == "lock" or ".partial" in p.name or ".tmp" in p.name]


def committed(run: Path) -> dict[int, dict[str, Any]]:
    """Return unit → its record as a reader sees them; nothing when there is no run yet."""
    from codi_engine.store.errors import StoreError
    from codi_engine.store.ledger import read_ledger
    from codi_engine.store.reader import RunReader

    if not read_ledger(run / "ledger").records:
        return {}
    try:
        return dict(RunReader(run).committed)
    except StoreError as error:
        if len(read_ledger(run / "ledger").records) == 1:
            return {}  # the head alone: nothing is planned yet
        raise AssertionError(f"the run cannot be opened: {error}") from error


# -------------------------------------------------------------------------------------------------- the side of the nursery


def serve() -> None:
    """Take orders until the standard input ends."""
    reply, engine = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8"), bool(int(sys.argv[2]))

    if engine:
        _import_engine()
    else:
        _import_like(["tests.store.sample", "pyarrow", "numcodecs.zstd", "google_crc32c"])
    own_namespace()

    def answer(**facts: Any) -> None:
        reply.write(json.dumps(facts) + "\n")
        reply.flush()

    answer(ready=True)
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "mount":
            answer(problem=mount("tmpfs", order["at"], "tmpfs", order["flags"], order["options"]))
        elif order["do"] == "unmount":
            answer(problem=unmount(order["at"]))
        else:
            ended = _forked(order)
            answer(**ended)
            if order["do"] == "warm":
                _import_like(ended["modules"])


def _import_engine() -> None:
    _import_like(["pandas", "pyarrow", "torch", "transformers", "codi_engine.cli.main"])
    _import_like([f"codi_engine.core.{name}" for name in ("running.run", "running.runner", "running.computing", "rollout.rollout", "runs.analyzing")])
    import torch

    torch.set_num_threads(1)
    from codi_engine.core.running import generations

    generations.UNIT_CELLS = UNIT_CELLS
    small_chunks()


def small_chunks() -> None:
    """Let chunks be small, so that a small shard has several."""
    from codi_engine.store import layout

    layout.CHUNK_BYTES = CHUNK


def _import_like(names: Sequence[str]) -> None:
    import importlib

    for name in names:
        try:
            importlib.import_module(name)
        except Exception:
            continue


def _forked(order: Mapping[str, Any]) -> dict[str, Any]:
    """Fork a child, end it in time, and say how it ended."""
    with tempfile.TemporaryFile() as words:
        return _ended(order, words)


def _ended(order: Mapping[str, Any], words: Any) -> dict[str, Any]:
    token = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(token[0])
            code = _child(order, token[1], words.fileno())
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 99
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    os.close(token[1])
    handle = os.pidfd_open(pid)
    late = _used_up(pid, handle, order["kill_after"])
    if late:
        os.kill(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    os.close(handle)
    os.set_blocking(token[0], False)
    try:
        fired = os.read(token[0], 1 << 20)
    except BlockingIOError:
        fired = b""
    os.close(token[0])
    words.seek(0)
    said = words.read().decode("utf-8", "replace")
    modules = json.loads(fired) if order["do"] == "warm" and fired else []
    return {
        "code": os.waitstatus_to_exitcode(status), "fired": "" if order["do"] == "warm" else fired.decode(), "said": said,
        "seconds": used.ru_utime + used.ru_stime, "hung": late and order["kill_after"] is None, "modules": modules,
    }  # fmt: skip


def _used_up(pid: int, handle: int, seconds: float | None) -> bool:
    """Wait for a child's end; True when it has had its seconds of processor time (which other load does not stretch), or hangs."""
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        if select.select([handle], [], [], LIMIT if seconds is None else 0.004)[0]:
            return False
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        if seconds is not None and (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") >= seconds:
            time.sleep(random.random() * 0.01)  # the clock ticks every hundredth of a second
            return True
    return True


def _child(order: Mapping[str, Any], token: int, words: int) -> int:
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, words), (2, words)):
        os.dup2(source, target)
    os.chdir(order["folder"])
    if order["inject"]:
        Injection(order["inject"], token).install()
    if order["do"] == "store":
        return _store(Path(order["run"]), order["units"], order["plans"])
    from codi_engine.cli.main import main

    before = set(sys.modules)
    code = main(list(order["arguments"]))
    if order["do"] == "warm":
        os.set_blocking(token, True)
        fresh = json.dumps([m for m in sys.modules if m not in before]).encode()
        import fcntl

        fcntl.fcntl(token, 1031, 1 << 20)  # F_SETPIPE_SZ: nobody reads before this process has ended
        os.write(token, fresh)
    return code


def _store(run: Path, units: int, plans: int) -> int:
    from codi_engine.store.errors import StoreError
    from tests.store.sample import write

    try:
        write(run, units, plans)
    except StoreError as error:
        sys.stdout.write(f"error: {error}\n")
        return 2
    return 0
