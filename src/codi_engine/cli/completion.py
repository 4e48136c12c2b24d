"""``codi-engine completion``: the shell's script, and what it completes beside commands and options."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

import click
from click.shell_completion import CompletionItem, get_completion_class

from codi_engine.cli.options import DEBUG

PROGRAM = "codi-engine"
SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@DEBUG
@click.pass_context
def completion(context: click.Context, shell: str, debug: bool) -> None:
    """Print the script that lets SHELL complete commands, options, runs and experiment files.

    \b
      bash   ~/.bashrc:  eval "$(codi-engine completion bash)"
      zsh    ~/.zshrc:   eval "$(codi-engine completion zsh)"
      fish   codi-engine completion fish > ~/.config/fish/completions/codi-engine.fish
    """
    maker = get_completion_class(shell)
    assert maker is not None
    script = maker(context.find_root().command, {}, PROGRAM, "_CODI_ENGINE_COMPLETE")
    click.echo(script.source_template % script.source_vars())  # source() would start bash to ask for its version


def runs(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete run directories: those below runs/, and those that the beginning of a path leads to."""
    from codi_engine.store.layout import LEDGER

    patterns = [f"{incomplete}*", f"{incomplete}*/*"] if incomplete else ["runs/*", "runs/*/*"]
    found = [p for pattern in patterns for p in glob.glob(pattern) if (Path(p) / LEDGER).is_file()]
    folders = [p + os.sep for p in glob.glob(f"{incomplete}*") if Path(p).is_dir() and p not in found] if incomplete else []
    return [CompletionItem(p) for p in sorted({*found, *folders})]


def experiments(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete YAML files, and directories on the way to them."""
    found = [p for p in sorted(glob.glob(f"{incomplete}*")) if p.endswith((".yaml", ".yml")) or Path(p).is_dir()]
    return [CompletionItem(p + os.sep if Path(p).is_dir() else p) for p in found]


def runs_and_analyses(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete run directories; after the first of them built-in analyses too."""
    given = context.params.get(parameter.name or "") or ()
    names = [n for n in builtin_names("analyses") if n.startswith(incomplete)] if given else []
    return [*runs(context, parameter, incomplete), *map(CompletionItem, names)]


def plugin_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete built-in plugins."""
    return [CompletionItem(n) for n in builtin_names("*") if n.startswith(incomplete)]


def builtin_names(folder: str) -> list[str]:
    """Return the names of built-in plugins as their sources say them: importing them would take over a second, at every Tab."""
    home = Path(__file__).parents[1] / "plugins"
    texts = (p.read_text(encoding="utf-8") for p in home.glob(f"{folder}/*.py"))
    return sorted({name for text in texts for name in re.findall(r'^    name = "([\w-]+)"$', text, re.MULTILINE)})
