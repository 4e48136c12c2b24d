"""Options that several commands have, said in the same words."""

from __future__ import annotations

import click

SET = click.option("-s", "--set", "overrides", multiple=True, metavar="A.B=C", help="Change a value of the file; the value is YAML.")
LIMIT = click.option("--limit", type=click.IntRange(min=1), help="Sweep the first N examples only; a larger limit later extends the run.")
DEVICE = click.option("--device", help="auto, cpu, cuda, cuda:1 …; several, side by side: cuda:0,cuda:1, or all.")
EXECUTOR = click.option("--executor", metavar="NAME", help="dask: spread the work over processes of this machine, or over a scheduler's workers.")
SCHEDULER = click.option("--scheduler", metavar="ADDRESS", help="Of a Dask scheduler, for --executor dask: tcp://HOST:8786.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
QUIET = click.option("-q", "--quiet", is_flag=True, help="No progress, no notes.")
DEBUG = click.option("--debug", is_flag=True, help="Show tracebacks.")
