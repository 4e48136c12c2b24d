"""``codi-engine export``: a run's cells, results and activations in the formats of other tools."""

from __future__ import annotations

import click

from codi_engine.cli.options import DEBUG, JSON
from codi_engine.cli.places import RUN


@click.command()
@click.argument("directory", metavar="RUN", type=RUN)
@click.option("--to", required=True, metavar="FORMAT", help="parquet, csv, jsonl, netcdf, npz or pt.")
@click.option("--what", default="cells", show_default=True, help="cells, results, results/ANALYSIS, activations/SITE or all.")
@click.option("-o", "--output", metavar="PATH", help="File, or folder for several. Default: named after the run, here.")
@click.option("--raw", is_flag=True, help="Put no apostrophe before CSV fields that begin like a formula (= + - @).")
@click.option("--force", is_flag=True, help="Overwrite existing files.")
@JSON
@DEBUG
def export(directory: str, to: str, what: str, output: str | None, raw: bool, force: bool, as_json: bool, debug: bool) -> None:
    """Write RUN's cells (one row each, with its text), results or captured activations to files for other tools.

    \b
      codi-engine export runs/demo --to csv
      codi-engine export runs/demo --to parquet --what results -o tables
      codi-engine export runs/demo --to npz --what activations/latent_out
    """
    from codi_engine.cli import show
    from codi_engine.cli.tables import grid
    from codi_engine.core.runs import exporting
    from codi_engine.core.runs.results import open_run
    from codi_engine.core.text import json_shown

    done = exporting.export(open_run(directory), to, output, what, force=force, raw=raw)
    if as_json:
        click.echo(json_shown(exporting.files_of(done)))
    elif len(done) == 1:
        show.table([(done[0].what, f"{done[0].rows:,} rows"), ("written", str(done[0].path))])
    else:
        grid(("written", "file", "rows"), [(one.what, str(one.path), f"{one.rows:,}") for one in done], left=2)
