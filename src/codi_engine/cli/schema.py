"""``codi-engine schema``: the experiment file's schema, for editors."""

from __future__ import annotations

import json
from pathlib import Path

import click

from codi_engine.cli.options import DEBUG


@click.command()
@click.option("-o", "--output", metavar="FILE", help="Write it there. Default: print it.")
@DEBUG
def schema(output: str | None, debug: bool) -> None:
    """Print the JSON Schema of the experiment file, with the options of every installed plugin.

    \b
      codi-engine schema -o experiment.schema.json

    An editor that speaks to yaml-language-server (VS Code with the YAML extension, Neovim …) then completes and checks a file
    whose first line is:

    \b
      # yaml-language-server: $schema=experiment.schema.json
    """
    from codi_engine.cli.plugins import problems
    from codi_engine.core.errors import UserError
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.schema import experiment_schema

    text = json.dumps(experiment_schema(plugin_manager()), indent=1, ensure_ascii=False) + "\n"
    problems()
    if output is None:
        click.echo(text, nl=False)
        return
    path = Path(output).expanduser()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"schema: -o: '{output}' cannot be written: {error.strerror or error}") from None
    click.echo(f"{path}: put this line at the top of an experiment file:\n# yaml-language-server: $schema={path}")
