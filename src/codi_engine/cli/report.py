"""``codi-engine report``: a run as one HTML file."""

from __future__ import annotations

import click

from codi_engine.cli.options import DEBUG, JSON, QUIET
from codi_engine.cli.places import RUN


@click.command()
@click.argument("directory", metavar="RUN", type=RUN)
@click.option("-o", "--output", metavar="FILE", help="Where to write it. Default: report.html in the run's directory.")
@click.option("--md", "as_markdown", is_flag=True, help="Write Markdown for a research journal instead: report.md in the run's directory.")
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@JSON
@QUIET
@DEBUG
def report(directory: str, output: str | None, as_markdown: bool, show: bool, as_json: bool, quiet: bool, debug: bool) -> None:
    """Write the report of a RUN: one HTML file with its findings, figures, tables and single cells.

    The file needs no network and can be sent as it is.
    """
    from codi_engine.cli.show import table
    from codi_engine.core.planning.costs import size_text
    from codi_engine.core.text import json_shown
    from codi_engine.reporting import report as write

    if as_markdown:
        from codi_engine.reporting.markdown import write_markdown
        from codi_engine.reporting.page import open_one

        path = write_markdown(open_one(directory), output)
    else:
        path = write(directory, output)
    size = path.stat().st_size
    if as_json:
        click.echo(json_shown({"report": str(path), "bytes": size}, None))
    elif not quiet:
        table([("report", str(path)), ("size", size_text(size))])
    if show:
        click.launch(str(path))
