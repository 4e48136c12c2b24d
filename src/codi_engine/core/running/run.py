"""What the command line and Python call: plan, check, run."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from codi_engine.core.errors import DifferentRun, PluginError, Stopped, UserError
from codi_engine.core.naming import filled_path
from codi_engine.core.planning.costs import Costs, time_text
from codi_engine.core.planning.machine import Preparing
from codi_engine.core.planning.summary import PlanSummary
from codi_engine.core.progress import Progress
from codi_engine.core.running.reuse import expected
from codi_engine.core.running.stopping import Stopping, listening
from codi_engine.core.runs.places import refuse_remote
from codi_engine.store.mirror import published
from codi_engine.store.shown import named

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.experiment import Experiment
    from codi_engine.core.planning.preparing import Prepared
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.running.runner import Runner
    from codi_engine.core.running.shares import Share
    from codi_engine.core.runs.analyzing import Analysed
    from codi_engine.core.runs.results import Run
    from codi_engine.core.spreading.cluster import Spread
    from codi_engine.core.watching.lifecycle import Lifecycle
    from codi_engine.store.writer import RunWriter


#: examples of ``run --test``
TRIED = 5


@dataclass(repr=False)
class Finished:
    """A finished run: where it is, what was computed, and what its analyses say."""

    path: Path
    cells: int
    new_cells: int
    seconds: float
    notes: list[str] = field(default_factory=list)
    summaries: dict[str, str] = field(default_factory=dict)
    figures: dict[str, Path] = field(default_factory=dict)
    tables: dict[str, Path] = field(default_factory=dict)
    console: str = ""
    experiment: Experiment | None = None
    estimate: Costs | None = None
    checks: pd.DataFrame | None = None
    failures: list[PluginError] = field(default_factory=list)  # analyses that failed; everything else is on disk
    left: str = ""  # of a shard: what it has done and what others still have to do; nothing is analysed then
    parts: dict[str, Finished] = field(default_factory=dict)  # of an experiment with checkpoints: label → its run

    def __repr__(self) -> str:
        said = "" if self.passed else ", a check failed"
        return f"<finished '{named(str(self.path))}': {self.cells:,} cells ({self.new_cells:,} new), analyses {', '.join(self.summaries) or 'none'}{said}>"

    def _repr_html_(self) -> str:
        from codi_engine.core.runs.notebook import finished_html

        return finished_html(self)

    @property
    def passed(self) -> bool:
        """False when a check of the experiment failed."""
        mine = self.checks is None or not (self.checks["passed"] == False).any()  # noqa: E712 - None is neither
        return mine and all(part.passed for part in self.parts.values())

    @property
    def took(self) -> str:
        """Say what it took beside what was estimated."""
        if self.estimate is None:
            return f"took {time_text(self.seconds)}"
        without = f" without {', '.join(self.estimate.unknown)}" if self.estimate.unknown else ""
        return f"took {time_text(self.seconds)}, estimated {time_text(self.estimate.seconds)}{without}"

    def take(self, analysed: Analysed, life: Lifecycle) -> None:
        """Add what an analysis gave, and tell observers."""
        assert analysed.result is not None
        life.analysed(analysed.name, analysed.result, analysed.folder)
        self.summaries[analysed.name] = analysed.summary
        self.console += ("\n" if self.console else "") + analysed.summary
        self.figures.update(analysed.figures)
        self.tables.update(analysed.tables)

    def open(self) -> Run:
        """Open the run."""
        from codi_engine.core.runs.results import open_run

        return open_run(self.path)


def _adjusted(experiment: Experiment, limit: int | None, device: str | None) -> Experiment:
    changes = []
    if limit is not None:
        changes.append(f"data.limit={limit}")
    if device is not None:
        changes.append(f"model.device={device}")
    return experiment.with_overrides(changes) if changes else experiment


def output_of(experiment: Experiment, output: str | Path | None) -> Path:
    """Return the run directory: given, or the file's ``output:``, or ``runs/<name>``; {date}, {name}, {seed} are filled in."""
    template = str(output or experiment.output or "runs/{name}")
    values = {"date": date.today().isoformat(), "name": experiment.name, "seed": experiment.seed, "s": experiment.seed}
    return filled_path(template, values, "--output" if output else f"{experiment.source}: output")


def _prepared(experiment: Experiment, limit: int | None, device: str | None) -> tuple[Prepared, Plugins]:
    from codi_engine.core.planning.preparing import prepare
    from codi_engine.core.plugins import plugin_manager

    plugins = plugin_manager()
    return prepare(_adjusted(experiment, limit, device), plugins), plugins


def plan_experiment(
    experiment: Experiment,
    output: str | Path | None = None,
    *,
    limit: int | None = None,
    device: str | None = None,
    measure: bool = False,
    price: float | None = None,
    progress: Progress | None = None,
) -> PlanSummary:
    """Return what the experiment would compute and cost, without loading weights.

    Parameters
    ----------
    measure: load the model and time a few cells of each stage in a temporary directory
    price: per GPU-hour, or per hour of this machine on a CPU; default: the experiment's
    """
    from codi_engine.core.planning.estimate import estimate, units_in
    from codi_engine.core.running.generations import slots_of

    if experiment.checkpoints is not None:
        raise UserError(f"{experiment.source}: has checkpoints; codi_engine.core.planning.checkpoints.plan_checkpoints plans each of them")
    begun = Preparing()
    prepared, _ = _prepared(experiment, limit, device)
    prepared_in, slowed = begun.taken()
    costs = estimate(prepared, prepared_in, slowed, price)
    if measure:
        from codi_engine.core.planning.measuring import measured

        costs = measured(prepared, costs, prepared_in, progress or Progress())
    plan = prepared.plan
    prompts = sum(not p.pool for p in plan.prompts)
    units = units_in([prompts * plan.trials, len(plan.prompts) - prompts, len(plan.cells)], slots_of(prepared.experiment.unit_cells, plan.trials))
    reused = expected(prepared.experiment, plan) if prepared.experiment.reuse else ""
    return PlanSummary(prepared, output_of(experiment, output), len(plan.cells), prompts, units, costs, reused)


def run_experiment(
    experiment: Experiment,
    output: str | Path | None = None,
    *,
    limit: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    shard: str | None = None,
    spread: Spread | None = None,
) -> Finished:
    """Run an experiment, or go on with it: what is committed is never computed again.

    Parameters
    ----------
    output: the run directory; default ``runs/<name>``
    limit: sweep the first so many examples only
    device: overrides ``model.device``; ``cuda:0,cuda:1`` or ``all`` computes units side by side, one process for each device
    progress: told of stages and cells
    shard: this process' share of the units, ``0/2``: another process computes ``1/2`` of the same run at the same time
    spread: the cluster whose workers compute units and analyses (``spread_of("dask", address)``): of this machine, or of a scheduler

    Raises
    ------
    UserError: bad input, and DifferentRun when the directory holds another experiment
    GateError: an edit does not do what the plan says
    Paused: the disk is nearly full (``keep_free``)
    Stopped: a KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP; once, the unit that is computed was finished (``core/running/stopping.py``)
    """
    from codi_engine.core.running.shares import parse_share

    progress, path = progress or Progress(), output_of(experiment, output)
    if shard is not None and spread is not None:
        raise UserError("--shard and --executor: choose one; the workers of a cluster share the units among themselves")
    share = None if shard is None else parse_share(shard)
    if share is not None and experiment.checkpoints is not None:
        raise UserError(f"{experiment.source}: has checkpoints, each a run of its own: give each an experiment file of its own to compute it in shards")
    with listening(progress.note) as stopping:
        if experiment.checkpoints is None:
            if share is not None or spread is not None:
                refuse_remote(path, "what --shard and --executor leave in the outbox of a run")
            with published(path):
                return _run(experiment, path, limit, device, progress, stopping, share, spread)
        refuse_remote(path, "an experiment with checkpoints, which makes several runs")
        from codi_engine.core.planning.checkpoints import run_checkpoints

        return run_checkpoints(experiment, path, limit=limit, device=device, progress=progress, spread=spread)


def _run(
    experiment: Experiment,
    path: Path,
    limit: int | None,
    device: str | None,
    progress: Progress,
    stopping: Stopping,
    share: Share | None,
    spread: Spread | None,
) -> Finished:
    """Run an experiment of one model, or this process' share of it."""
    from codi_engine.core.running.finishing import analyse
    from codi_engine.core.running.runner import Runner
    from codi_engine.core.running.sharding import Shard

    begun = Preparing()
    prepared, plugins = _prepared(experiment, limit, device)
    runner = Runner(prepared, path, progress, begun, stopping, spread)
    with Shard(runner, share, lambda: open_writer(prepared, path)) if share is not None else nullcontext() as shard:
        try:
            if shard is None:
                runner.run(lambda: open_writer(prepared, path))
            left = "" if shard is None else shard.run()
            finished = _finished(runner)
            finished.left = left
            if left:
                runner.life.leaves(left)
                return finished
            analyse(runner, plugins, finished)
            if shard is not None:
                shard.finished()
        except BaseException as error:
            if isinstance(error, Stopped):
                error.kept = runner.kept() or error.kept
            runner.life.stopped(error)
            raise
        finally:
            runner.cost.save(path)
        runner.life.finished(finished.tables, finished.figures)
    finished.seconds = begun.taken()[0]
    return finished


def try_experiment(
    experiment: Experiment,
    output: str | Path | None = None,
    *,
    limit: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> Finished:
    """Run an experiment on a few examples, analyses and checks included; trackers are not told.

    Parameters
    ----------
    output: kept there; default: a temporary directory, removed at the end
    limit: how many examples; default :data:`TRIED`
    """
    experiment = experiment.with_overrides(["trackers=[]"])
    if output is not None:
        return run_experiment(experiment, output, limit=limit or TRIED, device=device, progress=progress, spread=spread)
    note = progress.note if progress is not None else Progress().note
    with tempfile.TemporaryDirectory(prefix="codi-engine-test-") as folder, listening(note, at_once=True):
        try:
            finished = run_experiment(experiment, Path(folder) / experiment.name, limit=limit or TRIED, device=device, progress=progress, spread=spread)
        except Stopped as stopped:
            stopped.kept, stopped.again = "nothing is kept of a run that is tried out", False
            raise
    finished.figures, finished.tables = {}, {}
    return finished


def _finished(runner: Runner) -> Finished:
    plan = runner.prepared.plan
    count = len(plan.cells) + sum(not p.pool for p in plan.prompts) * plan.trials
    notes = [*plan.data.report, *plan.notes]
    return Finished(runner.path, count, runner.new_cells, 0.0, notes=notes, experiment=runner.experiment, estimate=runner.cost.estimate)


def open_writer(prepared: Prepared, path: Path) -> RunWriter:
    """Make the run, or go on with it."""
    from codi_engine.core.running.generations import slots_of
    from codi_engine.store.errors import IdentityMismatch
    from codi_engine.store.writer import RunWriter

    experiment = prepared.experiment
    size = slots_of(experiment.unit_cells, prepared.plan.trials)
    try:
        return RunWriter.open(path, identity=experiment.identity(), unit_cells=size, experiment=experiment.to_yaml(), provenance={})
    except IdentityMismatch as mismatch:
        shown = "; ".join(mismatch.differences[:3]) + ("; …" if len(mismatch.differences) > 3 else "")
        raise DifferentRun(
            f'{path}: holds another experiment ({shown}).\nChoose a new output, for example --output "runs/{{date}}_{{name}}_s{{seed}}".'
        ) from None


def check_experiment(experiment: Experiment, *, limit: int | None = None, device: str | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """Run the gate alone, in a temporary directory, and return one row per condition and site.

    Columns: condition, site, places, rows, changed, norm_before, norm_after, first_values, self_patch.
    """
    if experiment.checkpoints is not None:
        from codi_engine.core.planning.checkpoints import check_checkpoints

        return check_checkpoints(experiment, limit=limit, device=device, progress=progress)
    import pandas as pd

    from codi_engine.core.running.bank import Bank
    from codi_engine.core.running.gate import EXAMPLES, run_gate
    from codi_engine.core.running.runner import Runner
    from codi_engine.core.running.unedited import run_unedited
    from codi_engine.store.unitfiles import Content

    if experiment.controls == "auto":
        experiment = experiment.with_overrides(["controls=none"])  # they edit at the same places through the same calls
    prepared, _ = _prepared(experiment, EXAMPLES if limit is None else min(limit, EXAMPLES), device)
    if not prepared.plan.conditions:
        raise UserError(f"{experiment.source}: there is no intervention to check")
    with tempfile.TemporaryDirectory(prefix="codi-engine-check-") as folder:
        runner = Runner(prepared, Path(folder) / "run", progress or Progress())
        with open_writer(prepared, runner.path) as writer:
            adapter, net = runner.load()
            job = runner.job(adapter, net, writer)
            units = runner.add_generation(job)
            runner.progress.start("gate", 0, "")
            for unit in units:
                if unit.stage != "sweep":
                    writer.commit(unit.number, unit.stage, Content(*run_unedited(job, unit)))
            return pd.DataFrame(run_gate(job, Bank(job, units), runner.reproducible))
