"""``codi-engine``: thin commands over the core; nothing heavy is imported before a command runs."""

from __future__ import annotations

import contextlib
import errno
import shlex
import signal
import sys
from typing import Any

import click

from codi_engine import __version__
from codi_engine.cli.completion import completion, runs_and_analyses
from codi_engine.cli.export import export
from codi_engine.cli.merge import merge
from codi_engine.cli.new_plugin import new_plugin
from codi_engine.cli.note import note
from codi_engine.cli.options import DEBUG, EXECUTOR, QUIET, SCHEDULER
from codi_engine.cli.pairs import pairs
from codi_engine.cli.places import RUN, sending
from codi_engine.cli.plot import plot
from codi_engine.cli.plugins import plugins, problems
from codi_engine.cli.report import report
from codi_engine.cli.run import check, plan, run
from codi_engine.cli.schema import schema
from codi_engine.cli.status import ls, status
from codi_engine.cli.verify import repair, verify
from codi_engine.cli.view import view
from codi_engine.core.text import neutral, short

#: exit code when a run paused because the disk is nearly full
PAUSED = 4


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(__version__, prog_name="codi-engine")
@click.pass_context
def cli(context: click.Context) -> None:
    """Causal analysis of language models that think in continuous vectors.

    Without a FILE, `codi-engine run` runs the demo: a small trained CODI model on its own data.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@cli.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN... [NAME...]", type=RUN, shell_complete=runs_and_analyses)
@click.option("-s", "--set", "options", multiple=True, metavar="[NAME.]OPTION=VALUE", help="An option of the analysis; the value is YAML.")
@EXECUTOR
@SCHEDULER
@QUIET
@DEBUG
def analyze(runs: tuple[str, ...], options: tuple[str, ...], executor: str | None, scheduler: str | None, quiet: bool, debug: bool) -> None:
    """Analyse RUNs (patterns too) with the analyses NAME (default: those of their experiments).

    What is interrupted goes on with the same command. `codi-engine plugins show NAME` lists an analysis' options.
    """
    from codi_engine.cli import show
    from codi_engine.cli.progress import progress
    from codi_engine.core.errors import AnalysesFailed
    from codi_engine.core.runs.analyzing import Analysed, analyze_runs, expand, split
    from codi_engine.core.spreading.cluster import spread_of

    patterns, names = split(runs)
    spread = spread_of(executor, scheduler)
    problems(quiet)
    try:
        with progress(quiet) as shown:
            done = analyze_runs(expand(patterns), names, options, shown, spread)
    except AnalysesFailed as error:
        show.analysed([one for one in error.done if isinstance(one, Analysed)])
        raise
    show.analysed(done)


@cli.command()
@click.argument("directory", type=RUN)
@click.option("--targets", default=40, show_default=True, help="Patched features.")
@click.option("--conditions", default=3, show_default=True, help="Conditions, one of them `baseline`.")
@click.option("--examples", default=1, show_default=True, help="Prompts per condition.")
@click.option("--trials", default=30, show_default=True, help="Sampled trials per example.")
@click.option("--features", default=400, show_default=True, help="Captured features.")
@click.option("--dense", is_flag=True, help="Store every value, not only those that are not zero.")
@click.option("--gaussian", is_flag=True, help="Residual-stream-like values instead of SAE-like codes (dense).")
@click.option("--density", default=0.02, show_default=True, help="Mean share of features that fire.")
@click.option("--icc", default=0.0, show_default=True, help="Intra-class correlation of an example's trials.")
@click.option("--effect", default=2.0, show_default=True, help="Planted effects, in standard deviations; 0 plants none.")
@click.option("--words", default=60, show_default=True, help="Words per text; 0 for no texts.")
@click.option("--seed", default=0, show_default=True)
@QUIET
@DEBUG
def synth(directory: str, dense: bool, gaussian: bool, quiet: bool, debug: bool, **sizes: Any) -> None:
    """Write a synthetic run to DIRECTORY, with planted pathways, words and correlations (the truth in results/synth)."""
    from codi_engine.cli import show
    from codi_engine.cli.progress import progress
    from codi_engine.core.runs.synthetic import Synthetic, write_synthetic

    what = Synthetic(sparse=not (dense or gaussian), gaussian=gaussian, **sizes)
    with progress(quiet) as shown:
        path = write_synthetic(what, directory, shown)
    show.table([("run", str(path)), ("cells", f"{what.cells:,}"), ("truth", str(path / "results" / "synth")), ("next", f"codi-engine analyze {path} pathways")])


@cli.command("import")
@click.argument("files", nargs=-1, required=True)
@click.option("--map", "mapping", multiple=True, required=True, metavar="TARGET=SOURCE", help="What becomes what; @FILE reads a YAML file of them.")
@click.option("--name", help="Name of the run. Default: the first file's, or its folder's where its name is a label.")
@click.option("--output", metavar="DIR", help="Run directory; {date} and {name} are filled in. Default: runs/{name}.")
@click.option("--baseline", metavar="NAME", help="The condition that is the unedited one, where it is not called 'baseline'.")
@QUIET
@DEBUG
def import_(
    files: tuple[str, ...],
    mapping: tuple[str, ...],
    name: str | None,
    output: str | None,
    baseline: str | None,
    quiet: bool,
    debug: bool,
) -> None:
    """Import FILES that you have (npz, npy, h5, safetensors, pt, JSON, JSON lines, CSV) as a run.

    \b
    Targets: an axis (example, condition, target, trial, layer ...), text, answer,
    metrics/NAME, activations/SITE, fields/NAME. Sources: ARRAY[axes ; value dimensions],
    or a dotted path in records; {placeholders} bind axes to keys and to parts of file names.

    \b
      codi-engine import states.npz --map "activations/latent_out=states[example ; step, width]"
      codi-engine import log.jsonl --map text=response --map condition=prompt --map trial=trial
      codi-engine import "cache/{target}.npz" --map "activations/sae=acts[condition, trial ; feature]"
    """
    from codi_engine.cli import show
    from codi_engine.cli.progress import progress
    from codi_engine.core.imports.importing import import_files

    with progress(quiet) as shown:
        done = import_files(files, mapping, name, output, baseline, shown)
    show.imported(done)


@cli.command()
@click.argument("action", type=click.Choice(["show"]))
@click.argument("path")
@click.option("--layer", type=click.IntRange(min=0), help="Fills in {layer}. Default: every layer there is.")
@DEBUG
def sae(action: str, path: str, layer: int | None, debug: bool) -> None:
    """Say what the sparse autoencoder at PATH is: file, directory, Hub address owner/name/folder, or `demo`."""
    from codi_engine.cli import show
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.saestore import SaeStore

    store = SaeStore(plugin_manager(), "cpu")
    layers = [layer] if layer is not None else store.layers(path)
    show.autoencoders([(store.get(path, one), store.digest(path, one)) for one in layers])


cli.add_command(run)
cli.add_command(plan)
cli.add_command(check)
cli.add_command(status)
cli.add_command(ls)
cli.add_command(pairs)
cli.add_command(plot)
cli.add_command(export)
cli.add_command(note)
cli.add_command(merge)
cli.add_command(verify)
cli.add_command(repair)
cli.add_command(view)
cli.add_command(report)
cli.add_command(plugins)
cli.add_command(new_plugin)
cli.add_command(schema)
cli.add_command(completion)


def _code(error: BaseException) -> int | None:
    """Return the exit code of errors that are messages to the user: 2, 1 where a plugin's own code failed, 4 where a run paused; None for others."""
    from codi_engine.core.errors import CodiEngineError, Paused, PluginError
    from codi_engine.store.errors import StoreError

    if isinstance(error, Paused):
        return PAUSED
    if isinstance(error, PluginError):
        return 1
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # a name that no file can have
        return 2
    return 2 if isinstance(error, (CodiEngineError, StoreError)) else None


def _said(error: BaseException) -> str:
    """Say an error in characters that do nothing but show; a tab of a foreign name would pull words apart."""
    return short(neutral(error).replace("\t", "\\t"))


def _usage(error: click.ClickException) -> str:
    """Say what is wrong with the command line, and which --help tells more."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    said = " ".join(error.format_message().split())  # click lists choices one per line
    said = said.replace("is not a valid integer range", "is no whole number").replace("is not a valid float range", "is no number")
    message = short(neutral(said))
    return message if context is None else f"{message}\n'{context.command_path} --help' lists what there is."


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0; 1 for a defect, of a plugin too; 2 for the user's mistakes; 3 for a failed check; 4 when a run paused because the disk is
    nearly full; 130 when interrupted, 143 by SIGTERM, 129 by SIGHUP.
    """
    from codi_engine.core.errors import of_the_machine

    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    try:
        with sending():
            result = cli.main(args=given, prog_name="codi-engine", standalone_mode=False)
        return int(result or 0)
    except click.ClickException as error:
        _say(f"error: {_usage(error)}")
        return 2
    except (click.Abort, KeyboardInterrupt) as error:
        return _stopped(error, given)
    except Exception as error:  # the user gets one or two lines; --debug shows everything
        if isinstance(error, OSError) and isinstance(error.__context__, KeyboardInterrupt):
            return _stopped(error.__context__, given)  # click could not write to a terminal that is gone
        if debug:
            raise
        error = of_the_machine(error) or error
        code = _code(error)
        if code is not None:
            _say(_said(error) if code == PAUSED else f"error: {_said(error)}")
            return code
        _say(f"error: {type(error).__name__}: {_said(error)}\nThis is a defect of codi-engine; --debug shows where.")
        return 1


def _say(text: str) -> None:
    """Print to standard error; the terminal may be closed, and the exit code still counts."""
    with contextlib.suppress(OSError):
        click.echo(text, err=True)


def _stopped(error: BaseException, given: list[str]) -> int:
    """Say what is kept and how to go on, and return the exit code."""
    from codi_engine.core.errors import Stopped

    stopped = error.__cause__ if isinstance(error.__cause__, Stopped) else error  # click makes an Abort of it
    if not isinstance(stopped, Stopped):
        _say("stopped; what is committed stays, the same command goes on")
        return 130
    again = f"\n{shlex.join(['codi-engine', *given])} goes on" if stopped.again else ""
    _say(neutral(f"stopped; {stopped.kept}{again}"))
    return stopped.code


def entry() -> None:
    """Console script."""
    try:
        code = main()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is left is Python's own end
    except KeyboardInterrupt:  # again, while the first one was answered
        code = 130
    sys.exit(code)
