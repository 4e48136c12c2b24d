"""Long runs in small: many units of very few cells on a tiny model, watched from within.

``python -m tests.support.soaking FOLDER UNITS`` runs it and prints what it saw as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from codi_engine import Experiment, hookimpl
from codi_engine.core import plugins as plugin_module
from codi_engine.core.plugin import NoOptions, Tracker
from codi_engine.core.plugins import Plugins, plugin_manager
from codi_engine.core.progress import Progress
from codi_engine.core.running import generations
from codi_engine.core.running.run import run_experiment
from codi_engine.testing.tiny import tiny_causal_lm

#: cells per unit; edited cells per unedited one (2 layers × 2 positions)
CELLS, EDITED = 2, 4


class Counting(Tracker[NoOptions]):
    """Appends what it is told to a file."""

    name = "counting"
    Options = NoOptions

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        self._file = run.parent / "counted.txt"

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        with self._file.open("a", encoding="utf-8") as file:
            file.write(f"{unit} {aggregates['cells']:.0f}\n")


@hookimpl
def trackers() -> list[type[Tracker[Any]]]:
    return [Counting]


def manager(load: bool = True) -> Plugins:
    """Return the built-in plugins and the tracker."""
    made = plugin_manager(load=False)
    made.register(SimpleNamespace(trackers=trackers), "soaking", "1.0")
    return made


def experiment(folder: Path, units: int) -> Experiment:
    """Return an experiment of so many units (unedited and edited ones), with captures and texts."""
    model = folder / "model"
    if not model.exists():
        tiny_causal_lm(model)
    examples = units * CELLS // (1 + EDITED)
    lines = [{"id": f"q{i}", "question": f"there are {i % 100} apples and {i // 100} pears how many ?", "answer": i % 100 + i // 100} for i in range(examples)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    value = {
        "name": "soak",
        "model": {"plugin": "causal_lm", "path": str(model), "device": "cpu"},
        "data": {"plugin": "problems", "path": str(folder / "questions.jsonl")},
        "intervention": {"plugin": "zero", "site": "resid_post@prompt"},
        "sweep": {"layer": [0, 1], "position": [-1, -2]},
        "metrics": ["accuracy", "kl"],
        "capture": ["resid_post.0"],
        "generate": {"max_new_tokens": 1},
        "controls": "none",
        "trackers": ["counting"],
    }
    return Experiment.from_dict(value)


class Soak(Progress):
    """Looks at this process every so many units; ``samples`` holds a mapping for each look."""

    def __init__(self, every: int) -> None:
        self.every, self.samples = every, list[dict[str, float]]()
        self._units, self._cpu = 0, time.process_time()
        self._temporary = _temporary()

    def advance(self, count: int) -> None:
        self._units += 1
        if self._units % self.every:
            return
        spent = time.process_time() - self._cpu
        gc.collect()
        at = {"units": self._units, "cpu": spent / self.every, "handles": _handles(), "threads": threading.active_count()}
        self.samples.append({**at, "rss": _rollup("Rss:"), "pss": _rollup("Pss:"), "temporary": len(_temporary() - self._temporary)})
        self._cpu = time.process_time()


def _handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def _rollup(key: str) -> int:
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def _temporary() -> set[str]:
    """Return what lies in the temporary directory under a name of ours."""
    return {name for name in os.listdir(tempfile.gettempdir()) if name.startswith("codi-engine-")}


@contextmanager
def small_units() -> Iterator[None]:
    """Make units of :data:`CELLS` cells, and know the tracker."""
    generations.UNIT_CELLS, before = CELLS, generations.UNIT_CELLS
    plugin_module.plugin_manager, known = manager, plugin_module.plugin_manager
    try:
        yield
    finally:
        generations.UNIT_CELLS = before
        plugin_module.plugin_manager = known


def content(run: Path) -> dict[str, bytes]:
    """Return every file of a run but its provenance and its log, which hold times."""
    files = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if name not in ("provenance.json", "copies/provenance.copy", "lock", "events.jsonl")}


def soak(folder: Path, units: int, every: int) -> list[dict[str, float]]:
    """Run so many units in ``folder / run`` and return the looks."""
    watched = Soak(every)
    with small_units():
        run_experiment(experiment(folder, units), folder / "run", progress=watched)
    return watched.samples


if __name__ == "__main__":
    sys.stdout.write(json.dumps(soak(Path(sys.argv[1]), int(sys.argv[2]), 100)) + "\n")
