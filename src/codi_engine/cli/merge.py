"""``codi-engine merge``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from codi_engine.cli.completion import runs
from codi_engine.cli.options import DEBUG

if TYPE_CHECKING:
    from codi_engine.core.running.merging import Merged


@click.command()
@click.argument("directories", nargs=-1, required=True, metavar="RUN [OTHER]...", shell_complete=runs)
@DEBUG
def merge(directories: tuple[str, ...], debug: bool) -> None:
    """Take into RUN what waits in its outbox, and the units of OTHER directories that shards of the same run wrote.

    OTHER directories are only read: shards on machines without a common disk, each with an --output of its own.
    """
    from codi_engine.cli import show
    from codi_engine.core.running.merging import merge_runs
    from codi_engine.core.text import neutral

    done = merge_runs(directories[0], directories[1:], lambda text: click.echo(neutral(text), err=True))
    rows = [("run", str(done.path)), *(("copied", f"{count:,} units from {path}") for path, count in done.copied.items())]
    rows += [("taken in", f"{done.taken:,} units"), ("committed", done.committed)]
    if done.waiting:
        rows.append(("waiting", f"{done.waiting:,} units, for {done.missing:,} that nobody has computed"))
    show.table([*rows, ("next", f"{done.next}: {_doing(done)}" if done.next else "nothing is left to do")])


def _doing(done: Merged) -> str:
    """Say what the next command does."""
    todo = [f"computes {done.missing:,} units"] if done.missing else []
    analyses = [name for name in done.analyses if name != "checks"]
    todo += [f"runs {', '.join(analyses)}"] if analyses else []
    todo += ["evaluates the checks"] if len(done.analyses) > len(analyses) else []
    return f"{'' if done.missing else 'everything is committed; it '}{', then '.join(todo)}"
