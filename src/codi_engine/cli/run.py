"""``codi-engine run``, ``plan`` and ``check``: an experiment file computed, foreseen, or only tried at its gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from codi_engine.cli.completion import experiments
from codi_engine.cli.options import DEBUG, DEVICE, EXECUTOR, JSON, LIMIT, QUIET, SCHEDULER, SET
from codi_engine.cli.plugins import problems
from codi_engine.core.text import neutral

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment

#: exit code when a check of the experiment failed
CHECK_FAILED = 3


@click.command()
@click.argument("file", required=False, shell_complete=experiments)
@SET
@LIMIT
@click.option("--output", metavar="DIR", help="Run directory, or s3://BUCKET/NAME; {date}, {name} and {seed} are filled in. Default: runs/{name}.")
@DEVICE
@EXECUTOR
@SCHEDULER
@click.option("--shard", metavar="I/N", help="Compute part I of N, counted from 0, beside other processes; auto: as Slurm or torchrun say.")
@click.option("--dry-run", is_flag=True, help="Show the plan, as `codi-engine plan` does. No weights are loaded.")
@click.option("--test", is_flag=True, help="Try it on 5 examples (or --limit) in a temporary directory (or --output), and evaluate its checks.")
@QUIET
@DEBUG
def run(
    file: str | None,
    overrides: tuple[str, ...],
    limit: int | None,
    output: str | None,
    device: str | None,
    executor: str | None,
    scheduler: str | None,
    shard: str | None,
    dry_run: bool,
    test: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Run an experiment FILE, or go on with it; without FILE, the demo.

    The exit code is 3 when one of its checks fails.
    """
    from codi_engine.cli import show, tables
    from codi_engine.cli.files import read_experiment
    from codi_engine.core.spreading.cluster import spread_of

    if shard is not None and (test or dry_run):
        raise click.UsageError("--shard goes with neither --test nor --dry-run")
    experiment = read_experiment(file, overrides)
    spread = spread_of(executor, scheduler)
    problems(quiet)
    if dry_run:
        return _plan(experiment, output, {"limit": limit, "device": device}, quiet, as_json=False)
    from codi_engine.cli.progress import progress
    from codi_engine.core.running.run import run_experiment, try_experiment

    with progress(quiet) as shown:
        if test:
            finished = try_experiment(experiment, output, limit=limit, device=device, progress=shown, spread=spread)
        else:
            finished = run_experiment(experiment, output, limit=limit, device=device, progress=shown, shard=shard, spread=spread)
    if finished.left:
        click.echo(neutral(finished.left))
        return 0
    show.finished(experiment, finished)
    checked = {label: part.checks for label, part in {"": finished, **finished.parts}.items() if part.checks is not None}
    for label, found in checked.items():
        tables.checks(found, label)
    if test and not checked:
        show.table([("checks", "none in the file")])
    failures = [error for part in (finished, *finished.parts.values()) for error in part.failures]
    if failures:
        from codi_engine.core.errors import AnalysesFailed

        raise AnalysesFailed(failures) from failures[0]
    return 0 if finished.passed else CHECK_FAILED


@click.command()
@click.argument("file", required=False, shell_complete=experiments)
@click.option("--measure", is_flag=True, help="Load the model and time a few cells of each stage; nothing of the run is written.")
@click.option("--price", type=click.FloatRange(min=0.0), help="Of a GPU-hour; of an hour of this machine where the model is on the CPU.")
@SET
@LIMIT
@click.option("--output", metavar="DIR", help="Run directory; {date}, {name} and {seed} are filled in. Default: runs/{name}.")
@DEVICE
@JSON
@QUIET
@DEBUG
def plan(
    file: str | None,
    measure: bool,
    price: float | None,
    overrides: tuple[str, ...],
    limit: int | None,
    output: str | None,
    device: str | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
) -> int:
    """Show what an experiment FILE would compute and cost: forwards, time, GPU-hours, memory, disk and money of each stage."""
    from codi_engine.cli.files import read_experiment

    options = {"limit": limit, "device": device, "measure": measure, "price": price}
    experiment = read_experiment(file, overrides)
    problems(quiet)
    return _plan(experiment, output, options, quiet, as_json)


def _plan(experiment: Experiment, output: str | None, options: dict[str, Any], quiet: bool, as_json: bool) -> int:
    from codi_engine.cli import tables
    from codi_engine.cli.progress import progress
    from codi_engine.core.running.run import plan_experiment

    with progress(quiet) as shown:
        if experiment.checkpoints is None:
            tables.plan(plan_experiment(experiment, output, progress=shown, **options), as_json)
            return 0
        from codi_engine.core.planning.checkpoints import plan_checkpoints

        tables.plans(plan_checkpoints(experiment, output, progress=shown, **options), as_json)
    return 0


@click.command()
@click.argument("file", required=False, shell_complete=experiments)
@SET
@LIMIT
@DEVICE
@QUIET
@DEBUG
def check(file: str | None, overrides: tuple[str, ...], limit: int | None, device: str | None, quiet: bool, debug: bool) -> None:
    """Run the gate alone: where each edit fires, how many rows, norms before and after, first values."""
    from codi_engine.cli import show
    from codi_engine.cli.files import read_experiment
    from codi_engine.cli.progress import progress
    from codi_engine.core.running.run import check_experiment

    experiment = read_experiment(file, overrides)
    problems(quiet)
    with progress(quiet) as shown:
        frame = check_experiment(experiment, limit=limit, device=device, progress=shown)
    show.checks(frame)
