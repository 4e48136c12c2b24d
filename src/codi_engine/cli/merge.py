"""``codi-engine merge``."""

from __future__ import annotations

import click

from codi_engine.cli.completion import runs
from codi_engine.cli.options import DEBUG


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
    what = f"computes {done.missing:,} units, then runs the analyses" if done.missing else "finds everything committed and runs the analyses"
    show.table([*rows, ("next", f"{done.next}: {what}")])
