"""What a large run costs beside its arithmetic: constants measured here, a model made of them, and the model's check.

`constants`: seconds, bytes and memory of what grows with a run, through the real code: a unit written and committed (by the one
writer, and through the outbox where workers write), lines of the ledger, a ledger read, a run opened, `status`, a plan built.

`check`: 1,000 simulated workers with stragglers, deaths and preemptions draw units in virtual time; every commit is real, on disk, and
its measured time is what the virtual driver is busy for. Beside it: the same events with a constant for the driver, and the
formula that `plan` uses. They were made apart: the formula knows no events, and the events no formula.

`plan`: the formula, for 501,660 trials on an 8B model and for 100 times that: GPU-hours, wall time, storage, what saturates.

    python benchmarks/scale.py constants --dir /mnt/data        # minutes; on that disk
    python benchmarks/scale.py check --workers 1000 --units 6000
    python benchmarks/scale.py plan
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from scale_model import CELLS, FEATURES, RATES, TOKENS, Events, Scenario, card_hours, formula, scenario

Arrays = dict[str, np.ndarray]
#: draws of events beside the one whose commits are real
DRAWN = 20
#: what times units: on a busy machine, a file system in memory and the process' own seconds say more
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
#: which share of the features is not zero
DENSITY = 0.02
SCALARS = {"example": "int32", "condition": "int32", "variant": "int32", "feature": "int32", "trial": "int32", "status": "uint8", "nonfinite": "uint8",
           "answer": "float64", "metrics/given": "float64", "metrics/parsed": "float64"}  # fmt: skip


# ------------------------------------------------------------------------------------------------- a run as large as wanted


def specs(kind: str) -> list[Any]:
    """Return the arrays of a run that keeps codes of every token, ``sparse`` or ``dense``."""
    from codi_engine.store.layout import ArraySpec
    from codi_engine.store.sparse import sparse_specs

    made = [ArraySpec(f"cells/{name}", ("cell",), (), dtype, 0, attrs={"labels": []} if dtype == "int32" else {}) for name, dtype in SCALARS.items()]
    if kind == "dense":
        return [*made, ArraySpec("activations/codes/value", ("cell", "token", "feature"), (TOKENS, FEATURES), "float32", float("nan"))]
    return made + sparse_specs("activations/codes", TOKENS * FEATURES)


class Content:
    """What units give: the same values in each, at the unit's own place."""

    def __init__(self, kind: str, cells: int) -> None:
        self.kind, self.cells = kind, cells
        rng = np.random.default_rng(0)
        self.arrays: Arrays = {f"cells/{name}": rng.integers(0, 2, cells).astype(dtype) for name, dtype in SCALARS.items()}
        each = int(TOKENS * FEATURES * DENSITY)
        if kind == "dense":
            self.arrays["activations/codes/value"] = rng.standard_normal((cells, TOKENS, FEATURES), np.float32)
        else:
            index = np.sort(rng.integers(0, TOKENS * FEATURES, (cells, each)), axis=1).ravel()
            self.arrays["activations/codes/index"] = index.astype(np.uint32)
            self.arrays["activations/codes/value"] = np.exp(rng.standard_normal(len(index), np.float32))
            at = np.arange(cells + 1) * each
            self._bounds = np.stack([at[:-1], at[1:]], 1)
        words = np.array(["the", "balance", "is", "140", "so", "I", "will", "bet", "20", "and", "stop", "because", "of", "risk"])
        text = [" ".join(rng.choice(words, 80)) for _ in range(cells)]
        self.texts = {"key": [sha256(str(i).encode()).hexdigest()[:16] for i in range(cells)], "text": text, "answer_rule": ["none"] * cells}

    def of(self, unit: int) -> Arrays:
        """Return a unit's arrays."""
        if self.kind == "dense":
            return self.arrays
        return {**self.arrays, "activations/codes/ptr": self._bounds + unit * self.cells * TOKENS * FEATURES}


@contextmanager
def planned(folder: Path, units: int, kind: str, cells: int = CELLS) -> Iterator[Any]:
    """Open a run of so many planned units, and remove it at the end."""
    from codi_engine.core.running.generations import generation
    from codi_engine.store.writer import RunWriter

    keys = [sha256(str(i).encode()).hexdigest()[:16] for i in range(cells)]
    run = Path(tempfile.mkdtemp(prefix="scale-", dir=folder)) / "run"
    try:
        with RunWriter.open(run, identity={}, unit_cells=cells, experiment="name: scale\n", provenance={}) as writer:
            writer.add_plan({"units": generation(0, [], [], [], [], keys * units, cells)}, units, specs(kind), {})
            yield writer
    finally:
        shutil.rmtree(run.parent)


class Commits:
    """Commits units of a run for real, and says how long each takes the one who writes the ledger.

    Attributes
    ----------
    workers: seconds that workers spent on writing their units (nothing where the driver writes them)
    """

    def __init__(self, writer: Any, content: Content, through: str, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.writer, self.content, self.workers = writer, content, list[float]()
        self.box = None
        if through == "outbox":
            from codi_engine.store.outbox import Outbox

            self.box = Outbox(writer.path)
        self._receipts: dict[int, Any] = {}

    def _given(self, unit: int) -> Any:
        from codi_engine.store.unitfiles import Content

        return Content(self.content.of(unit), self.content.texts)

    def put(self, unit: int) -> float:
        """Have a worker write a unit; return its seconds."""
        if self.box is None:
            return 0.0
        begin = self.clock()
        self._receipts[unit] = self.box.put(unit, "sweep", self._given(unit))
        self.workers.append(self.clock() - begin)
        return self.workers[-1]

    def commit(self, unit: int) -> float:
        """Commit a unit; return the driver's seconds."""
        begin = self.clock()
        if self.box is None:
            self.writer.commit(unit, "sweep", self._given(unit))
        else:
            self.writer.adopt(self._receipts.pop(unit))
        return self.clock() - begin

    def close(self) -> None:
        if self.box is not None:
            self.box.close()


def ways() -> list[str]:
    """Return how a unit can come into a run."""
    from codi_engine.store.writer import RunWriter

    return ["writer", *(["outbox"] if hasattr(RunWriter, "adopt") else [])]


# ------------------------------------------------------------------------------------------------------------ constants


def usual(seconds: Sequence[float]) -> float:
    """Return the lower quartile: other processes of this machine only add to times."""
    return float(np.quantile(seconds, 0.25))


def measured_units(folder: Path, kind: str, through: str, units: int, cells: int, clock: Callable[[], float] = time.perf_counter) -> dict[str, float]:
    """Return what a unit takes: seconds of the driver and of a worker, bytes, files, bytes in the ledger, file system operations."""
    with planned(folder, units + 1, kind, cells) as writer:
        commits, seconds = Commits(writer, Content(kind, cells), through, clock), []
        ledger = writer.path / "ledger"
        commits.put(0)  # the first one makes folders, and imports
        commits.commit(0)
        before, count = ledger.stat().st_size, operations()
        for unit in range(1, units + 1):
            commits.put(unit)
            seconds.append(commits.commit(unit))
        asked = count()
        commits.close()
        files = writer.committed[units]["files"]
        return {
            "driver_s": usual(seconds), "slowest_s": max(seconds), "worker_s": usual(commits.workers[1:] or [0.0]),
            "bytes": sum(int(f["size"]) for f in files.values()), "files": len(files),
            "ledger_bytes": (ledger.stat().st_size - before) / units, "operations": asked / units,
        }  # fmt: skip


_COUNTED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir")
_seen, _hooked = [0], list[bool]()


def operations() -> Callable[[], int]:
    """Begin to count what a file system's metadata server is asked for: files opened, folders made, names changed and removed."""

    def hook(event: str, _: Any) -> None:
        _seen[0] += event in _COUNTED

    if not _hooked:  # such a hook stays for ever
        sys.addaudithook(hook)
        _hooked.append(True)
    before = _seen[0]
    return lambda: _seen[0] - before


@contextmanager
def grown(says: dict[str, float], name: str) -> Iterator[None]:
    """Measure CPU seconds, most memory meanwhile and memory that stays, in bytes."""
    from codi_engine.core.planning.machine import peak_bytes, reset_peak, resident_bytes

    gc.collect()
    reset_peak()
    before, begin = resident_bytes() or 0, time.process_time()
    yield
    says[f"{name}_s"] = time.process_time() - begin
    says[f"{name}_peak"], says[f"{name}_kept"] = (peak_bytes() or 0) - before, (resident_bytes() or 0) - before


def measured_ledger(folder: Path, units: int) -> dict[str, float]:
    """Return what a run of so many units takes to be opened; its shards are not written, since opening looks at none."""
    from codi_engine.core.running.generations import units_of
    from codi_engine.core.watching.status import status_of
    from codi_engine.store.layout import text_file
    from codi_engine.store.reader import RunReader
    from codi_engine.store.writer import RunWriter

    says: dict[str, float] = {"units": units}
    with mock.patch("os.fsync"), planned(folder, units, "sparse") as writer:
        names = [spec.shard for spec in writer.specs.values()] + [text_file]
        for unit in range(units):
            files = {name(unit): {"size": 2080, "sha256": sha256(b"%d" % unit).hexdigest()} for name in names}
            writer._ledger.append({"kind": "unit", "unit": unit, "stage": "sweep", "rows": CELLS, "files": files})
        says["bytes"] = (writer.path / "ledger").stat().st_size
        writer.close()
        with grown(says, "reader"):
            reader = RunReader(writer.path)
        del reader
        with grown(says, "writer"):
            again = RunWriter.open(writer.path, identity={}, unit_cells=CELLS, experiment="", provenance={})
        with grown(says, "units_of"):
            found = units_of(again.plans)
        assert len(found) == len(again.committed) == units
        again.close()
        with grown(says, "status"):
            assert status_of(writer.path).stages[0].units == units
    return says


def measured_plan(folder: Path, cells: int) -> dict[str, float]:
    """Return what a plan of about so many cells takes (prompts × 2 values × features × 30 trials), without imports."""
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.planning.plan import build_plan
    from codi_engine.core.planning.preparing import prepare
    from codi_engine.core.plugins import plugin_manager

    prompts = max(cells // (2 * FEATURES * 30), 1)
    features = max(cells // (2 * 30 * prompts), 1)
    data, table = folder / "prompts.jsonl", folder / "features.csv"
    data.write_text("".join(json.dumps({"id": f"p{i}", "text": f"Gambler {i} has $140. " + "word " * 60}) + "\n" for i in range(prompts)), encoding="utf-8")
    table.write_text("feature,safe,risky\n" + "".join(f"L{1 + i % 2}-{i},{i / 7},{i / 3}\n" for i in range(features)), encoding="utf-8")
    sae = {"plugin": "sae", "sae": "demo", "site": "resid_post", "tokens": "last"}
    experiment = Experiment.from_dict({
        "name": "scale", "model": {"plugin": "causal_lm", "path": "demo"}, "data": {"plugin": "prompts", "path": str(data)},
        "conditions": {name: {"intervention": {**sae, "value": name}} for name in ("safe", "risky")},
        "sweep": {"feature": {"from": str(table)}}, "trials": 30, "generate": {"max_new_tokens": 100, "do_sample": True},
    })  # fmt: skip
    plugins = plugin_manager()
    prepared = prepare(experiment, plugins)
    says: dict[str, float] = {}
    count = len(prepared.plan.cells)
    with grown(says, "plan"):
        plan = build_plan(experiment, plugins, prepared.plan.data, prepared.plan.info)
    assert len(plan.cells) == count
    return {"cells": count, **says}


def constants(folder: Path, size: str, clock: Callable[[], float] = time.perf_counter) -> None:
    cells, units, ledgers, plans = {
        "tiny": (8, 4, [20], [600]), "small": (CELLS, 40, [1_000, 10_000], [10_000, 100_000]),
        "full": (CELLS, 200, [1_000, 10_000, 100_000], [10_000, 100_000, 1_000_000]),
    }[size]  # fmt: skip
    print(f"a unit of {cells} cells        driver ms  slowest  worker ms       MB  files  ledger B  operations")
    for kind in ("sparse", "dense"):
        for through in ways():
            u = measured_units(folder, kind, through, units if kind == "sparse" else max(units // 10, 2), cells, clock)
            print(f"  {kind:7} {through:16} {1e3 * u['driver_s']:12.2f} {1e3 * u['slowest_s']:8.1f} {1e3 * u['worker_s']:10.2f} {u['bytes'] / 1e6:8.3f} "
                  f"{u['files']:6} {u['ledger_bytes']:9.0f} {u['operations']:11.1f}")  # fmt: skip
    print("a run of           ledger MB   read s  peak MB    open s  peak MB  kept MB  units_of s  kept MB  status s")
    for count in ledgers:
        r = measured_ledger(folder, count)
        mb = {name: value / 1e6 for name, value in r.items()}
        print(f"  {count:9,} units {mb['bytes']:10.1f} {r['reader_s']:8.2f} {mb['reader_peak']:8.0f} {r['writer_s']:9.2f} {mb['writer_peak']:8.0f} "
              f"{mb['writer_kept']:8.0f} {r['units_of_s']:11.2f} {mb['units_of_kept']:8.0f} {r['status_s']:9.2f}")  # fmt: skip
    print("a plan of          CPU s   µs a cell   kept MB   B a cell")
    for count in plans:
        p = measured_plan(folder, count)
        each = 1e6 * p["plan_s"] / p["cells"]
        print(f"  {int(p['cells']):9,} cells {p['plan_s']:7.2f} {each:11.2f} {p['plan_kept'] / 1e6:9.0f} {p['plan_kept'] / p['cells']:10.0f}")


# ------------------------------------------------------------------------------------------------------- check and plan


def check(folder: Path, s: Scenario, cells: int, through: str, clock: Callable[[], float] = time.perf_counter) -> dict[str, dict[str, Any]]:
    """Return what the formula, the events and the events with real commits say of a scenario; constants come from a run before it."""
    before = measured_units(folder, "sparse", through, min(sum(s.units), 100), cells, clock)
    s = replace(s, driver=before["driver_s"], put=before["worker_s"])
    drawn = [Events(s, lambda _: s.driver, lambda _: s.put, seed).run() for seed in range(1, DRAWN + 1)]
    found: dict[str, dict[str, Any]] = {"formula": formula(s)}
    found["least"], found["median"], found["most"] = ({key: float(np.quantile([d[key] for d in drawn], at)) for key in drawn[0]} for at in (0.0, 0.5, 1.0))
    with planned(folder, sum(s.units), "sparse", cells) as writer:
        ledger = writer.path / "ledger"
        before_size, commits = ledger.stat().st_size, Commits(writer, Content("sparse", cells), through, clock)
        found["real commits"] = Events(s, commits.commit, commits.put, seed=0).run()
        commits.close()
        assert len(writer.committed) == sum(s.units)
        found["real commits"]["ledger"] = ledger.stat().st_size - before_size
    for name in ("formula", "least", "median", "most"):
        found[name]["ledger"] = before["ledger_bytes"] * sum(s.units)
    return found


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    print(f"(least, median and most of {DRAWN} draws of events, column by column)")
    print("                  wall s   driver s   recomputed   ends   efficiency   ledger MB")
    for name, f in found.items():
        print(f"  {name:13} {f['wall']:8.1f} {f['driver']:10.1f} {f['recomputed']:12.1f} {f.get('deaths', math.nan):6.0f} {f['efficiency']:12.2f} "
              f"{f['ledger'] / 1e6:11.2f}")  # fmt: skip


def plans(folder: Path, cells: int, clock: Callable[[], float]) -> None:
    rates = ", ".join(f"{rate / 1e12:g}" for rate in RATES.values())
    print(f"GPU-hours at{'':36} " + "".join(f"{name:>9}" for name in RATES) + f"   (TFLOP/s: {rates})")
    for how, hours in card_hours():
        print(f"  {how:46} " + "".join(f"{hours[n]:9.1f}" for n in RATES))
    plan = measured_plan(folder, 100_000)
    found = {
        (kind, through): measured_units(folder, kind, through, 100 if kind == "sparse" else 8, cells, clock)
        for kind in ("sparse", "dense")
        for through in ways()
    }
    for (kind, through), u in found.items():
        u["cell_s"] = plan["plan_s"] / plan["cells"]
        who = "workers, taken in by the driver" if through == "outbox" else "driver"
        took = f"{1e3 * u['driver_s']:.1f} ms each for the driver, {1e3 * u['worker_s']:.1f} ms for a worker"
        print(f"\nunits of {cells} cells, {took}; codes {kind}, written by the {who}")
        one = scenario(1, 1, u, through == "outbox", cells)[0]
        print(f"  GPUs that keep the driver busy: {one.unit / one.driver:,.0f}; the file system: {one.unit / one.store:,.0f}")
        print("   times   GPUs     wall h   GPU-h held   efficiency   units again   busiest       driver h   store h        GB     files   runs")
        for times in (1, 100):
            for workers in (1, 8, 64, 1000):
                runs = scenario(times, workers, u, through == "outbox", cells)
                each = [formula(s) for s in runs]
                hours = {n: sum(f[n] for f in each) / 3600 for n in ("wall", "driver", "store")}
                units = sum(sum(s.units) for s in runs)
                print(f"  {times:6} {workers:6} {hours['wall']:10.2f} {hours['wall'] * workers:12.1f} {each[0]['efficiency']:12.2f} "
                      f"{sum(f['recomputed'] for f in each):13.1f}   {each[0]['busiest']:12} {hours['driver']:9.3f} {hours['store']:9.3f} "
                      f"{units * u['bytes'] / 1e9:9.1f} {units * u['files']:9,.0f} {len(runs):6}")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("constants", "check", "plan"))
    parser.add_argument("--dir", type=Path, default=None, help="where runs are written (default: the temporary directory)")
    parser.add_argument("--size", choices=("tiny", "small", "full"), default="small", help="of constants")
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--units", type=int, default=6000)
    parser.add_argument("--cells", type=int, default=None, help="of a unit (default: 32 for check, 256 for plan)")
    parser.add_argument("--seconds", type=float, default=10.0, help="of a unit of check")
    parser.add_argument("--mtbf", type=float, default=2.0, help="hours between two ends of one worker of check")
    parser.add_argument("--through", choices=("writer", "outbox"), default=None)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--window", type=int, default=None, help="units handed out before those that are committed, of check")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="scale-", dir=given.dir) as folder:
        if given.what == "constants":
            constants(Path(folder), given.size, CLOCKS[given.clock])
        elif given.what == "plan":
            plans(Path(folder), given.cells or CELLS, CLOCKS[given.clock])
        else:
            few = max(given.units // 50, 1)
            s = Scenario(given.workers, (few, given.units - few), given.seconds, mtbf=given.mtbf * 3600, window=given.window)
            show(check(Path(folder), s, given.cells or 32, given.through or ways()[-1], CLOCKS[given.clock]))


if __name__ == "__main__":
    main()
