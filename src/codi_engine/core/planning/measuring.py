"""``plan --measure``: the stages of a plan, timed on a few of its own examples in a directory that is removed again."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.costs import Costs, StageCost
from codi_engine.core.planning.estimate import FIRST_COMMIT, spread
from codi_engine.core.planning.machine import python_speed
from codi_engine.core.progress import Progress
from codi_engine.core.running.gate import EXAMPLES, run_gate
from codi_engine.core.running.generations import UNIT_CELLS, Unit, slots_of

if TYPE_CHECKING:
    from codi_engine.core.planning.plan import Plan
    from codi_engine.core.planning.preparing import Prepared
    from codi_engine.core.running.job import Job
    from codi_engine.core.running.runner import Runner
    from codi_engine.store.writer import RunWriter

#: most units of a stage that are timed, and estimated seconds that timing a stage may take
UNITS, SECONDS = 3, 15.0


@dataclass(frozen=True)
class _Timed:
    """What was timed of a stage: ``once`` in a run (seconds, and the gate's ``rows``), and ``each`` cell."""

    cost: StageCost
    once: float
    each: float
    rows: int = 0

    def scaled(self, cells: int) -> StageCost:
        """Return the cost of so many cells."""
        part = self.cost.scaled(cells / max(self.cost.cells or 1, 1))
        return replace(part, seconds=self.once + cells * self.each, rows=self.rows + (part.rows or 0), cells=cells)


def measured(prepared: Prepared, estimated: Costs, prepared_in: float, progress: Progress) -> Costs:
    """Load the model, run a few units of each stage, and scale them to the plan; nothing of the run is written.

    Disk and analyses keep their estimate.
    """
    from codi_engine.core.running.run import open_writer
    from codi_engine.core.running.runner import Runner

    few = _few(prepared, estimated)
    with tempfile.TemporaryDirectory(prefix="codi-engine-measure-") as folder:
        runner = Runner(few, Path(folder) / "run", progress)
        with open_writer(few, runner.path) as writer:
            begun = time.perf_counter()
            adapter, net = runner.load()
            job = runner.job(adapter, net, writer)
            loaded = time.perf_counter() - begun
            _trim(runner.plan, few, estimated)
            job.cells = {c.key: c for c in runner.plan.cells}
            units = runner.add_generation(job)
            runner.cost.rows = lambda: job.forwarded + job.rollout.fed
            baseline, sweep = _timed(runner, job, writer, units)
            memory = {name: stage["memory"] for name, stage in runner.cost.record()["stages"].items()}
    plan = prepared.plan
    unedited = sum(1 if p.pool else plan.trials for p in plan.prompts)
    stages = [replace(estimated["load"], seconds=prepared_in + loaded, memory=memory["load"], device_seconds=None)]
    stages.append(replace(baseline.scaled(unedited), disk=estimated["baseline"].disk, cells=estimated["baseline"].cells))
    if sweep is not None:
        stages.append(replace(sweep.scaled(len(plan.cells)), disk=estimated["sweep"].disk))
    stages = spread(stages, prepared.devices, slots_of(prepared.experiment.unit_cells, plan.trials))
    stages += [s for s in estimated.stages if s.stage.startswith("analysis")]
    counts = [baseline.cost.cells or 0, sweep.cost.cells or 0 if sweep is not None else 0]
    basis = f"timed on {counts[0]} unedited and {counts[1]} edited cells, scaled to the plan; disk and analyses are estimated"
    return replace(estimated, stages=stages, basis=basis, timed_cells=sum(counts))


def _budget(stage: StageCost) -> int:
    """Return how many of a stage's cells can be timed."""
    if not stage.cells or not stage.seconds:
        return UNITS * UNIT_CELLS
    return int(min(max(SECONDS * stage.cells / stage.seconds, 32), UNITS * UNIT_CELLS))


def _few(prepared: Prepared, estimated: Costs) -> Prepared:
    """Return the experiment on a few of its examples."""
    from codi_engine.core.planning.preparing import prepare

    plan = prepared.plan
    examples = len(plan.data.examples)
    per_example = len(plan.cells) / examples or len([p for p in plan.prompts if not p.pool]) * plan.trials / examples
    stage = estimated["sweep"] if plan.cells else estimated["baseline"]
    wanted = min(max(math.ceil(_budget(stage) / per_example), EXAMPLES), examples)
    return prepare(prepared.experiment.with_overrides([f"data.limit={wanted}", "trackers=[]", "checks={}"]), prepared.plugins)


def _trim(plan: Plan, prepared: Prepared, estimated: Costs) -> None:
    """Drop cells, and prompts of the pool that no edit needs one by one, beyond what can be timed."""
    plan.cells[:] = plan.cells[:: math.ceil(len(plan.cells) / _budget(estimated["sweep"])) or 1]
    if not any(c.plugin.source == "donor" or c.differences for c in plan.conditions):
        pool = [p for p in plan.prompts if p.pool][: _budget(estimated["baseline"])]
        plan.prompts[:] = [*(p for p in plan.prompts if not p.pool), *pool]


def _timed(runner: Runner, job: Job, writer: RunWriter, units: Sequence[Unit]) -> tuple[_Timed, _Timed | None]:
    from codi_engine.core.running.bank import Bank
    from codi_engine.core.running.sweeping import editor_for, run_sweep
    from codi_engine.core.running.unedited import run_unedited
    from codi_engine.store.unitfiles import Content

    def commit(unit: Unit, made: Any) -> None:
        arrays, texts = made
        writer.commit(unit.number, unit.stage, Content(arrays, texts))

    runner.cost.begin("baseline")
    runner.progress.start("timing the baseline", 0, "")
    baseline = _time(runner, [u for u in units if u.stage != "sweep"], lambda unit: commit(unit, run_unedited(job, unit)), FIRST_COMMIT * python_speed())
    todo = [u for u in units if u.stage == "sweep"]
    if not todo:
        return baseline, None
    runner.cost.begin("sweep")
    runner.progress.start("timing the sweep", 0, "")
    begun, rows = time.perf_counter(), runner.cost.rows()
    bank = Bank(job, units)
    run_gate(job, bank, runner.reproducible)
    editor = editor_for(job, bank, natural=job.plan.natural)
    gate = time.perf_counter() - begun, runner.cost.rows() - rows
    sweep = _time(runner, todo, lambda unit: commit(unit, run_sweep(job, unit, bank, editor)), 0.0)
    return baseline, replace(sweep, once=sweep.once + gate[0], rows=gate[1])


def _time(runner: Runner, units: Sequence[Unit], run: Callable[[Unit], None], first: float) -> _Timed:
    """Run units; ``first`` of their seconds are paid once in a run."""
    seconds, cells, rows = 0.0, 0, runner.cost.rows()
    for unit in units:
        begun = time.perf_counter()
        run(unit)
        seconds += time.perf_counter() - begun
        cells += len(unit.keys) * unit.trials
        runner.cost.committed(len(unit.keys) * unit.trials, 0)
    once = min(first, seconds / 2)
    name = "sweep" if units[-1].stage == "sweep" else "baseline"
    memory = runner.cost.record()["stages"][name]["memory"]
    return _Timed(StageCost(name, seconds, runner.cost.rows() - rows, memory, 0, cells), once, (seconds - once) / cells)
