"""``codi-engine status`` and ``ls``: runs looked at from outside, while they are written too."""

from __future__ import annotations

import click

from codi_engine.cli.completion import runs
from codi_engine.cli.options import DEBUG, JSON
from codi_engine.cli.places import RUN


@click.command()
@click.argument("directory", metavar="RUN", type=RUN, shell_complete=runs)
@JSON
@DEBUG
def status(directory: str, as_json: bool, debug: bool) -> None:
    """Show how far a RUN is, who writes it, and what it was estimated to take and took; another process may be running it."""
    from codi_engine.cli import tables
    from codi_engine.core.watching.status import status_of

    tables.status(status_of(directory), as_json)


@click.command()
@click.argument("directory", metavar="[DIR]", default="runs")
@click.option("--cost", is_flag=True, help="Add time, GPU-hours, money, and estimate against actual.")
@click.option("--inventory", is_flag=True, help="Show what each run was made of: data, origin, filters, examples, digests, size.")
@JSON
@DEBUG
def ls(directory: str, cost: bool, inventory: bool, as_json: bool, debug: bool) -> None:
    """List the runs in DIR (default: runs) and below."""
    from codi_engine.cli import tables
    from codi_engine.core.watching.status import runs_in

    found = runs_in(directory)
    if not inventory:
        tables.runs(found, cost, as_json)
        return
    from codi_engine.cli.inventory import show
    from codi_engine.core.watching.inventory import inventory as made_of

    show(made_of(found), as_json)
