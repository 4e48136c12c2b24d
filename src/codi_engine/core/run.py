"""What the command line and Python call: plan, check, run."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.progress import Progress

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.analyzing import Analysed
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.lifecycle import Lifecycle
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.results import Run
    from codi_engine.core.runner import Prepared
    from codi_engine.store.writer import RunWriter


@dataclass
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
    parts: dict[str, Finished] = field(default_factory=dict)  # of an experiment with checkpoints: label → its run

    def take(self, analysed: Analysed, life: Lifecycle) -> None:
        """Add what an analysis gave, and tell observers."""
        assert analysed.result is not None
        life.analysed(analysed.name, analysed.result)
        self.summaries[analysed.name] = analysed.summary
        self.console += ("\n" if self.console else "") + analysed.summary
        self.figures.update(analysed.figures)
        self.tables.update(analysed.tables)

    def open(self) -> Run:
        """Open the run."""
        from codi_engine.core.results import open_run

        return open_run(self.path)


@dataclass(frozen=True)
class PlanSummary:
    """What a run would compute, known without loading any weight."""

    prepared: Prepared
    output: Path
    cells: int
    prompts: int
    units: int
    forwards: int
    bytes: int
    seconds: float

    def lines(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for a table."""
        plan = self.prepared.plan
        rows = [
            ("experiment", self.prepared.experiment.name),
            ("model", f"{plan.info.family}, {plan.info.layers} layers × {plan.info.width}, {plan.info.latents} latent steps"),
            ("data", f"{len(plan.data.examples):,} {plan.data.kind} ({len(plan.data.pool):,} in the pool)"),
        ]
        for condition in plan.conditions:
            axes = " × ".join(f"{name} {len(values)}" for name, values in condition.axes.items()) or "one point"
            rows.append((f"  {condition.name}", f"{condition.plugin.name} at {condition.site}, {condition.phase}: {axes}"))
        rows += [
            ("cells", f"{self.cells:,} edited + {self.prompts * plan.trials:,} unedited"),
            ("units", f"{self.units:,}"),
            ("forwards", f"about {self.forwards:,} token rows through the model"),
            ("disk", f"about {_bytes(self.bytes)}"),
            (
                "time",
                f"about {_seconds(self.seconds)} on this machine's CPU"
                if plan.info.device == "cpu"
                else f"about {_seconds(self.seconds)} at CPU speed; {plan.info.device} is faster",
            ),
            ("output", str(self.output)),
        ]
        return rows + [("note", n) for n in [*plan.data.report, *plan.notes]]


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _seconds(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


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
    try:
        text = template.format(date=date.today().isoformat(), name=experiment.name, seed=experiment.seed, s=experiment.seed)
    except (KeyError, IndexError, ValueError):
        raise UserError(f"--output: '{template}' may use {{date}}, {{name}} and {{seed}} only") from None
    return Path(text)


def _prepared(experiment: Experiment, limit: int | None, device: str | None) -> tuple[Prepared, Plugins]:
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.runner import prepare

    plugins = plugin_manager()
    return prepare(_adjusted(experiment, limit, device), plugins), plugins


def plan_experiment(experiment: Experiment, output: str | Path | None = None, *, limit: int | None = None, device: str | None = None) -> PlanSummary:
    """Return what the experiment would compute, without loading weights; ``plan_checkpoints`` does so where there are several models."""
    if experiment.checkpoints is not None:
        raise UserError(f"{experiment.source}: has checkpoints; codi_engine.core.checkpoints.plan_checkpoints plans each of them")
    from codi_engine.core.estimate import estimate

    prepared, _ = _prepared(experiment, limit, device)
    forwards, size, seconds = estimate(prepared)
    plan = prepared.plan
    from codi_engine.core.generations import UNIT_CELLS

    units = -(-len(plan.prompts) * plan.trials // UNIT_CELLS) + -(-len(plan.cells) // UNIT_CELLS)
    return PlanSummary(prepared, output_of(experiment, output), len(plan.cells), len(plan.prompts), units, forwards, size, seconds)


def run_experiment(
    experiment: Experiment,
    output: str | Path | None = None,
    *,
    limit: int | None = None,
    device: str | None = None,
    progress: Progress | None = None,
) -> Finished:
    """Run an experiment, or go on with it: what is committed is never computed again.

    Parameters
    ----------
    output: the run directory; default ``runs/<name>``
    limit: sweep the first so many examples only
    device: overrides ``model.device``
    progress: told of stages and cells

    Raises
    ------
    UserError: bad input, and DifferentRun when the directory holds another experiment
    GateError: an edit does not do what the plan says
    """
    from codi_engine.core.analyzing import analyze_one
    from codi_engine.core.results import open_run
    from codi_engine.core.runner import Runner

    if experiment.checkpoints is not None:
        from codi_engine.core.checkpoints import run_checkpoints

        return run_checkpoints(experiment, output_of(experiment, output), limit=limit, device=device, progress=progress or Progress())
    begun = time.perf_counter()
    progress = progress or Progress()
    prepared, plugins = _prepared(experiment, limit, device)
    path = output_of(experiment, output)
    runner = Runner(prepared, path, progress)
    runner.run(lambda: _open_writer(prepared, path))
    plan = prepared.plan
    count = len(plan.cells) + sum(not p.pool for p in plan.prompts) * plan.trials
    finished = Finished(path, count, runner.new_cells, 0.0, notes=[*plan.data.report, *plan.notes], experiment=prepared.experiment)
    for mapping in prepared.experiment.analyses:
        analysis = plugins.build("analysis", mapping, where="analyses", source=str(path))
        progress.note(f"analysis {analysis.name}")
        finished.take(analyze_one([open_run(path)], analysis, progress), runner.life)
    runner.life.finished(finished.tables, finished.figures)
    finished.seconds = time.perf_counter() - begun
    return finished


def _open_writer(prepared: Prepared, path: Path) -> RunWriter:
    from codi_engine.core.generations import UNIT_CELLS
    from codi_engine.store.errors import IdentityMismatch
    from codi_engine.store.writer import RunWriter

    experiment = prepared.experiment
    size = max(UNIT_CELLS, 2 * prepared.plan.trials)
    try:
        return RunWriter.open(path, identity=experiment.identity(), unit_cells=size, experiment=experiment.to_yaml(), provenance={})
    except IdentityMismatch as mismatch:
        raise DifferentRun(
            f"{path}: holds another experiment ({'; '.join(mismatch.differences[:3])}).\n"
            'Choose a new output, for example --output "runs/{date}_{name}_s{seed}".'
        ) from None


def check_experiment(experiment: Experiment, *, limit: int | None = None, device: str | None = None, progress: Progress | None = None) -> pd.DataFrame:
    """Run the gate alone, in a temporary directory, and return one row per condition and site.

    Columns: condition, site, places, rows, changed, norm_before, norm_after, first_values, self_patch.
    """
    if experiment.checkpoints is not None:
        from codi_engine.core.checkpoints import check_checkpoints

        return check_checkpoints(experiment, limit=limit, device=device, progress=progress)
    import pandas as pd

    from codi_engine.core.bank import Bank
    from codi_engine.core.gate import EXAMPLES, run_gate
    from codi_engine.core.runner import Runner
    from codi_engine.core.unedited import run_unedited

    prepared, _ = _prepared(experiment, EXAMPLES if limit is None else min(limit, EXAMPLES), device)
    if not prepared.plan.conditions:
        raise UserError(f"{experiment.source}: there is no intervention to check")
    with tempfile.TemporaryDirectory(prefix="codi-engine-check-") as folder:
        runner = Runner(prepared, Path(folder) / "run", progress or Progress())
        with _open_writer(prepared, runner.path) as writer:
            adapter, net = runner.load()
            job = runner.job(adapter, net, writer)
            units = runner.add_generation(job)
            for unit in units:
                if unit.stage != "sweep":
                    arrays, texts = run_unedited(job, unit)
                    writer.commit(unit.number, unit.stage, arrays, texts or None, None)
            return pd.DataFrame(run_gate(job, Bank(job, units), runner.reproducible))
