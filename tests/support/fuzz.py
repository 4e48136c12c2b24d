"""Runs hostile inputs through the loaders in child processes that may neither grow, hang nor die.

``python -m tests.support.fuzz all`` runs every loader; ``python -m tests.support.fuzz LOADER SEED`` repeats one input and shows
what happens to it. An input is a function of its loader's name and its seed.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tests.support.fuzz_loaders import Loader, Tree, loaders

#: seconds of CPU that one input may take; of the clock, where a process waits for something that never comes
HANG, STUCK = 5, 60
MEMORY = 1 << 30
BATCH = 1000
#: characters of a message; longer ones are the input's own content
LONGEST = 4000
_STATE = struct.Struct("<qqdd")  # inputs read, refusals, start of the current one, slowest


class Hang(BaseException):
    """An input took longer than it may."""


def _late(*_: Any) -> None:
    raise Hang


class Workplace:
    """A folder that holds one tree; only what changes is written."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "input"
        self._tree: Tree | None = None

    def put(self, tree: Tree, changed: Tree) -> Path:
        """Bring the folder to the tree with these files changed."""
        if self.folder.exists():
            shutil.rmtree(self.folder)
        for name, content in {**tree, **changed}.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return self.folder


@contextmanager
def bounded(memory: int = MEMORY) -> Iterator[None]:
    """Let this process grow by so much and no more."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def attempt(loader: Loader, folder: Path) -> tuple[str, str]:
    """Read a folder; returns ("read" | "refused" | "failure", what was said)."""
    from codi_engine.core.errors import UserError
    from codi_engine.store.errors import StoreError

    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, HANG)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loader.load(folder)
        return "read", ""
    except (UserError, StoreError) as error:
        signal.setitimer(signal.ITIMER_PROF, 0)
        said = str(error)
        hidden = _memory(error)
        if hidden:
            return "failure", f"refused only after it had asked for memory: {hidden}"
        if not said.strip() or len(said) > LONGEST:
            return "failure", f"a message of {len(said)} characters: {said[:200]}"
        return "refused", said
    except Hang:
        return "failure", f"took more than {HANG} s: {''.join(traceback.format_exc(limit=-6))}"
    except BaseException:
        return "failure", "".join(traceback.format_exc(limit=-6))
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _memory(error: BaseException | None) -> str:
    """Return what says that memory ran out, anywhere before an error."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error) or "Cannot allocate" in str(error):
            return f"{type(error).__name__}: {str(error)[:200]}"
        error = error.__context__
    return ""


def _child(loader: Loader, trees: Sequence[Tree], seeds: range, root: Path, state: mmap.mmap, report: Path) -> None:
    """Read a batch of inputs; every failure is a line of the report."""
    os.chdir(root)
    place, slowest = Workplace(root), 0.0
    read = refused = 0
    with bounded(), report.open("a", encoding="utf-8") as out:
        for number, seed in enumerate(seeds):
            tree, changed = loader.hostile(seed, trees)
            folder = place.put(tree, changed)
            begun = time.monotonic()
            state[:] = _STATE.pack(number, refused, begun, slowest)
            what, said = attempt(loader, folder)
            slowest = max(slowest, time.monotonic() - begun)
            read, refused = read + (what == "read"), refused + (what == "refused")
            if what == "failure":
                _tell(out, seed=seed, said=said)
        state[:] = _STATE.pack(len(seeds), refused, time.monotonic(), slowest)
        _tell(out, done=len(seeds), peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)


def _tell(out: IO[str], **facts: Any) -> None:
    out.write(json.dumps(facts) + "\n")
    out.flush()


class Batch:
    """A child process with its inputs."""

    def __init__(self, loader: Loader, trees: Sequence[Tree], seeds: range, home: Path) -> None:
        self.loader, self.trees, self.seeds, self.home = loader, trees, seeds, home
        self.root = Path(tempfile.mkdtemp(dir=home))
        self.report = self.root / "report"
        self.state = mmap.mmap(-1, _STATE.size)
        self.state[:] = _STATE.pack(0, 0, time.monotonic(), 0.0)
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                _child(loader, trees, seeds, self.root, self.state, self.report)
                status = 0
            except BaseException:
                at = seeds[min(_STATE.unpack(self.state[:])[0], len(seeds) - 1)]
                with self.report.open("a", encoding="utf-8") as out:
                    _tell(out, seed=at, said=f"the campaign itself failed: {traceback.format_exc(limit=-4)}")
            finally:
                os._exit(status)

    def poll(self) -> list[dict[str, Any]] | None:
        """Return what happened once the child has ended; one that is stuck is killed."""
        done, status = os.waitpid(self.pid, os.WNOHANG)
        if not done:
            if time.monotonic() - _STATE.unpack(self.state[:])[2] > STUCK:
                os.kill(self.pid, signal.SIGKILL)
            return None
        lines = self.report.read_text(encoding="utf-8").splitlines() if self.report.exists() else []
        found = [json.loads(line) for line in lines]
        at, refused, _, slowest = _STATE.unpack(self.state[:])
        if status:
            how = f"signal {status}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"
            found += [{"seed": self.seeds[min(at, len(self.seeds) - 1)], "said": f"the process died or was stuck ({how})"}, {"done": at + 1, "peak": 0}]
        found.append({"refused": refused, "slowest": slowest})
        shutil.rmtree(self.root)
        return found

    def rest(self) -> range:
        """Return the seeds after the one at which the child died."""
        return self.seeds[_STATE.unpack(self.state[:])[0] + 1 :]


def campaign(counts: Mapping[str, int], jobs: int, first: int = 0) -> dict[str, Any]:
    """Run so many inputs of each loader and return counts, the slowest and failures, by loader."""
    home = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    out: dict[str, Any] = {}
    try:
        traces = home.rglob("canary")
        for loader in loaders():
            inputs = counts.get(loader.name, 0)
            if not inputs:
                continue
            begun = time.monotonic()
            made = home / loader.name
            made.mkdir()
            trees = loader.seeds(made)
            valid = [_valid(loader, tree, made) for tree in trees]
            found = _spread(loader, trees, range(first, first + inputs), home, jobs)
            failures = [f for f in found if "seed" in f]
            out[loader.name] = {
                "valid": sum(w == "read" for w, _ in valid), "trees": len(trees) - loader.unread,
                "inputs": sum(f.get("done", 0) for f in found), "refused": sum(f.get("refused", 0) for f in found),
                "slowest": round(max(f.get("slowest", 0.0) for f in found), 2), "peak_mb": max(f.get("peak", 0) for f in found) >> 20,
                "seconds": round(time.monotonic() - begun, 1), "failures": failures,
            }  # fmt: skip
            shown = {k: v for k, v in out[loader.name].items() if k != "failures"}
            sys.stderr.write(f"{loader.name}: {shown}, {len(failures)} failures\n")
        assert not list(traces), "a pickle was run"
    finally:
        shutil.rmtree(home, ignore_errors=True)
    return out


def _valid(loader: Loader, tree: Tree, home: Path) -> tuple[str, str]:
    """Say what becomes of a tree that nobody changed."""
    os.chdir(home)
    return attempt(loader, Workplace(home / "valid").put(tree, {}))


def _spread(loader: Loader, trees: Sequence[Tree], seeds: range, home: Path, jobs: int) -> list[dict[str, Any]]:
    waiting = [seeds[at : at + BATCH] for at in range(0, len(seeds), BATCH)]
    running: list[Batch] = []
    found: list[dict[str, Any]] = []
    while waiting or running:
        while waiting and len(running) < jobs:
            running.append(Batch(loader, trees, waiting.pop(0), home))
        for batch in list(running):
            said = batch.poll()
            if said is not None:
                running.remove(batch)
                found += said
                if any("died" in f.get("said", "") for f in said) and len(batch.rest()):
                    waiting.append(batch.rest())
        time.sleep(0.01)
    return found


def repeat(name: str, seed: int) -> tuple[str, str]:
    """Read one input in this process."""
    loader = next(one for one in loaders() if one.name == name)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "made"
        home.mkdir()
        tree, changed = loader.hostile(seed, loader.seeds(home))
        kept = Path(tempfile.gettempdir()) / f"fuzz-{name}-{seed}"
        place = Workplace(kept).put(tree, changed)
        sys.stdout.write(f"{place}: changed {', '.join(changed)}\n")
        os.chdir(folder)
        with bounded():
            return attempt(loader, place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loader")
    parser.add_argument("seed", type=int, nargs="?")
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--first", type=int, default=0)
    given = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    if given.seed is not None:
        sys.stdout.write(" ".join(repeat(given.loader, given.seed)) + "\n")
        return
    wanted = given.loader.split(",")
    counts = {one.name: max(1, round(one.inputs * given.share)) for one in loaders() if given.loader == "all" or one.name in wanted}
    counts.update((n, int(c)) for n, _, c in (w.partition("=") for w in wanted) if c)
    sys.stdout.write(json.dumps(campaign(counts, given.jobs, given.first)) + "\n")


if __name__ == "__main__":
    main()
