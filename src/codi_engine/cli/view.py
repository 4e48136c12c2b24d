"""``codi-engine view``: the report of a run in the browser, live while the run goes on."""

from __future__ import annotations

import click

from codi_engine.cli.options import DEBUG
from codi_engine.cli.places import RUN


@click.command()
@click.argument("directory", metavar="RUN", type=RUN)
@click.option("--port", type=click.IntRange(0, 65535), default=8731, show_default=True, help="Of this machine (127.0.0.1); 0 takes any free one.")
@click.option("--open", "opened", is_flag=True, help="Open it in the browser.")
@click.option("-q", "--quiet", is_flag=True, help="Print the address alone.")
@DEBUG
def view(directory: str, port: int, opened: bool, quiet: bool, debug: bool) -> None:
    """Serve the report of a RUN on this machine, with live progress while the run goes on.

    The run may still be going, or not have begun: the page waits for it. Nobody but this machine can open the page. Ctrl-C ends it.
    """
    import contextlib

    from codi_engine.reporting.serve import Viewer

    with contextlib.suppress(KeyboardInterrupt), Viewer(directory, port) as viewer:
        click.echo(viewer.url)
        if not quiet:
            click.echo("Ctrl-C ends it", err=True)
        if opened:
            click.launch(viewer.url)
        viewer.serve()
    if not quiet:
        click.echo("ended", err=True)
