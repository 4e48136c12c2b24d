"""Running analyses on finished runs: what they are given, where their results go, and how an interrupted one goes on."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.calling import calling, wrong
from codi_engine.core.contributed import said
from codi_engine.core.errors import AnalysesFailed, PluginError, UserError, nearest
from codi_engine.core.planning.checkpoints import family_analyses, is_family, runs_below
from codi_engine.core.progress import Progress
from codi_engine.core.returned import analysed, figures_of
from codi_engine.core.running.marks import in_words
from codi_engine.core.runs.clustered import spread_work
from codi_engine.core.runs.drawing import json_safe, save, storable, style
from codi_engine.core.runs.places import refuse_remote
from codi_engine.core.runs.stored import SUMMARY, WRITING, about, write_about, written_files
from codi_engine.core.runs.whole import whole_file
from codi_engine.core.runs.work import Work
from codi_engine.core.spreading.cluster import Spread, spread_of
from codi_engine.core.watching.showing import ending, usual
from codi_engine.store.contained import check_contained
from codi_engine.store.errors import unwritten
from codi_engine.store.files import write_durably
from codi_engine.store.layout import LEDGER, RESULTS
from codi_engine.store.mirror import place, published
from codi_engine.store.shown import named

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.plugin import Analysis, AnalysisResult
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.runs.results import Run

#: partial results of an unfinished analysis, beside its results
_PARTIAL = ".partial"


@dataclass
class Analysed:
    """Where the results of one analysis are, and what it says."""

    name: str
    runs: list[Path]
    folder: Path
    summary: str
    tables: dict[str, Path] = field(default_factory=dict)
    figures: dict[str, Path] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    result: AnalysisResult | None = field(default=None, repr=False)

    def __repr__(self) -> str:
        parts = [f"{kind} {', '.join(found)}" for kind, found in (("tables", self.tables), ("figures", self.figures)) if found]
        return f"<analysis '{self.name}' in '{named(str(self.folder))}'{': ' if parts else ''}{'; '.join(parts)}>"


def analyze(
    runs: str | Path | Run | Sequence[str | Path | Run],
    analysis: str | None = None,
    *,
    progress: Progress | None = None,
    executor: str | None = None,
    scheduler: str | None = None,
    **options: Any,
) -> list[Analysed]:
    """Analyse runs; results are written to ``results/<analysis>`` of each run (of the first, where one takes several).

    Parameters
    ----------
    runs: run directories (patterns such as ``runs/*`` too), URLs (``s3://bucket/name``) or opened runs
    analysis: its name; default: those of each run's experiment
    progress: where it is shown; default: a bar in a terminal or a notebook
    executor: ``dask`` computes parts in the workers of a cluster: of this machine, or of the ``scheduler`` at an address
    options: of the analysis

    Raises
    ------
    UserError: no such run or analysis, bad options, or what the analysis lacks
    """
    given = [runs] if isinstance(runs, (str, Path)) or not isinstance(runs, Sequence) else list(runs)
    paths = [place(r) if isinstance(r, (str, Path)) else r.path for r in given]
    texts = [f"{k}={_as_yaml(v)}" for k, v in options.items()]
    with ending(progress or usual()) as shown, published():
        return analyze_runs(expand([str(p) for p in paths]), [analysis] if analysis else [], texts, shown, spread_of(executor, scheduler))


def _as_yaml(value: Any) -> str:
    return json.dumps(value)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Divide a command's arguments into runs (directories, patterns) and names of analyses.

    Raises
    ------
    UserError: an argument that is neither
    """
    from codi_engine.core.plugins import plugin_manager

    known = plugin_manager().names("analysis")
    runs: list[str] = []
    names: list[str] = []
    for text in arguments:
        if (Path(text) / LEDGER).exists() or (text not in known and glob.has_magic(text)):
            runs.append(text)
        elif text in known:
            names.append(text)
        elif Path(text).exists() or any(c in text for c in "/\\."):
            runs.append(text)  # opening it says what is wrong with it
        elif not runs:
            raise UserError(f"'{text}' is no run directory; runs lie in runs/<name>")
        else:
            raise UserError(f"'{text}' is neither a run directory nor an analysis; {nearest(text, [k for k in known if '/' not in k])}")
    if not runs:
        raise UserError(f"say which run to analyse: codi-engine analyze runs/NAME {' '.join(names)}")
    return runs, names


def expand(patterns: Sequence[str]) -> list[Path]:
    """Return the run directories that patterns name, each once, in order; a directory of runs stands for its runs.

    Raises
    ------
    UserError: a pattern without any run
    """
    found: list[Path] = []
    for pattern in patterns:
        paths = [Path(pattern)] if not glob.has_magic(pattern) or Path(pattern).exists() else [Path(p) for p in sorted(glob.glob(pattern))]
        several = glob.has_magic(pattern) and len(paths) != 1
        runs = [r for p in paths for r in ([p] if (p / LEDGER).exists() else runs_below(p) or ([] if several else [p]))]
        if not runs:
            raise UserError(f"'{pattern}' matches no run")
        found += [p for p in runs if p not in found]
    return found


def analyze_runs(
    paths: Sequence[Path],
    names: Sequence[str] = (),
    options: Sequence[str] = (),
    progress: Progress | None = None,
    spread: Spread | None = None,
) -> list[Analysed]:
    """Run analyses on runs; what is interrupted goes on with the same command.

    Parameters
    ----------
    paths: run directories
    names: analyses; default: those of each run's experiment, else ``importance``
    options: ``option=value`` for all analyses that have it, or ``analysis.option=value``; the value is YAML
    spread: the cluster that computes their parts; None for this process

    Raises
    ------
    AnalysesFailed: some of several failed in their own code; what the others gave is written and in its ``done``
    """
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.runs.results import open_run

    plugins = plugin_manager()
    progress = progress or Progress()
    opened = [open_run(path) for path in paths]
    jobs: list[tuple[list[Run], Analysis[Any]]] = []
    if names:
        built = _with_options(plugins, [{"plugin": n} for n in names], options, str(paths[0]))
        for analysis in built:
            jobs += [(opened, analysis)] if analysis.takes == "many" else [([run], analysis) for run in opened]
    else:
        for run in opened:
            wanted = [{"plugin": w} if isinstance(w, str) else dict(w) for w in run.experiment.get("analyses") or [_default(run)]]
            jobs += [([run], analysis) for analysis in _with_options(plugins, wanted, options, str(run.path))]
        jobs += _of_families(opened, plugins, options)
    done: list[Analysed] = []
    failures: list[PluginError] = []
    for number, (runs, analysis) in enumerate(jobs):
        if len(jobs) > 1:
            progress.note(f"{number + 1} of {len(jobs)}: {analysis.name} of {', '.join(str(r.path) for r in runs)}")
        try:
            done.append(analyze_one(runs, analysis, progress, spread=spread))
        except PluginError as error:
            if len(jobs) == 1:
                raise
            failures.append(error)  # the others do not depend on it
    if failures:
        raise AnalysesFailed(failures, done)
    return done


def _of_families(opened: Sequence[Run], plugins: Plugins, options: Sequence[str]) -> list[tuple[list[Run], Analysis[Any]]]:
    """Return the analyses over all checkpoints of the experiments whose runs are all there."""
    jobs: list[tuple[list[Run], Analysis[Any]]] = []
    for home in dict.fromkeys(run.path.parent for run in opened):
        runs = [run for run in opened if run.path.parent == home]
        if is_family(home) and [r.path for r in runs] == runs_below(home):
            wanted = family_analyses(home, plugins)
            meant = [o for o in options if _option(o)[0] in [w["plugin"] for w in wanted]]
            jobs += [(runs, analysis) for analysis in _with_options(plugins, wanted, meant, str(home))]
    return jobs


def _default(run: Run) -> str:
    return "importance" if run.metrics else "words"


def _with_options(plugins: Plugins, wanted: Sequence[dict[str, Any]], texts: Sequence[str], source: str) -> list[Analysis[Any]]:
    """Build analyses, giving each of them the options that are meant for it."""
    given = [_option(text) for text in texts]
    meant = []
    for mapping in wanted:
        fields = plugins.get("analysis", mapping["plugin"], "analyses").Options.model_fields
        mine = {}
        for scope, name, value in given:
            if scope == mapping["plugin"] or (scope is None and (name in fields or len(wanted) == 1)):
                mine[name] = value
        meant.append({**mapping, **mine})
    for scope, name, _ in given:
        names = [m["plugin"] for m in wanted]
        if scope is not None and scope not in names:
            raise UserError(f"-s {scope}.{name}: {nearest(scope, names)}")
        if scope is None and len(wanted) > 1 and not any(name in m for m in meant):
            raise UserError(f"-s {name}: none of {', '.join(names)} has this option")
    return [plugins.build("analysis", mapping, where="analyses", source=source) for mapping in meant]


def _option(text: str) -> tuple[str | None, str, Any]:
    """Return (analysis or None, option, value) of ``[analysis.]option=value``."""
    from codi_engine.core.yamlfile import parse_yaml

    name, equals, value = text.partition("=")
    if not equals or not name:
        raise UserError(f"-s {text}: write option=value")
    scope, dot, option = name.rpartition(".")
    return (scope if dot else None), option, parse_yaml(value, f"-s {name}")[0]


def analyze_one(
    runs: Sequence[Run], analysis: Analysis[Any], progress: Progress, home: Path | None = None, spread: Spread | None = None
) -> Analysed:  # fmt: skip
    """Run one analysis and write what it returns below ``home`` (default: the first run, or what its checkpoints share)."""
    _check(runs, analysis)
    for run in runs if spread else ():
        refuse_remote(run.path, "what the workers of a cluster read and write")
    folder = (home or _home(runs)) / RESULTS / analysis.name
    check_contained(folder.parent.parent, folder)
    work = Work(folder=folder / _PARTIAL, progress=progress)
    options = analysis.options
    work.memory = int(getattr(options, "memory", 0) * 1e9) or work.memory
    work.threads = getattr(options, "threads", None) or work.threads
    progress.start(f"analysis {analysis.name}", 0, "")
    with spread_work(work, spread, runs, analysis) if spread else nullcontext(work) as work:
        result = _with_marked(analysed(analysis, runs, work), runs)
    written = write_result(folder, result, about(analysis, runs), analysis)
    work.clear()
    progress.finish()
    written.name, written.runs = analysis.name, [r.path for r in runs]
    return written


def _with_marked(result: AnalysisResult, runs: Sequence[Run]) -> AnalysisResult:
    """Say in the summary how many cells of which runs are not finite: no analysis counts them."""
    said = [(run, in_words(run.store.committed)) for run in runs]
    lines = [f"{run.path}: {words}." if len(runs) > 1 else f"{words[:1].upper()}{words[1:]}." for run, words in said if words]
    return replace(result, summary="\n".join([result.summary, *lines])) if lines else result


def _check(runs: Sequence[Run], analysis: Analysis[Any]) -> None:
    """Refuse runs that have no cells yet, and options that cannot work on what the first run has."""
    from codi_engine.core.plugin import Analysis as Base
    from codi_engine.core.runs.foreseen import facts_of

    empty = next((run for run in runs if not len(run.store.slots)), None)
    if empty is not None:
        raise UserError(f"{empty.path}: has no finished cells yet; run it first, or wait for it")
    if type(analysis).check is Base.check:
        return
    try:
        with calling(analysis, "check"):
            analysis.check(facts_of(runs[0], len(runs)))
    except UserError as error:
        raise UserError(f"{analysis.name}: {error}") from None


def _home(runs: Sequence[Run]) -> Path:
    """Return where results go: the directory of an experiment with checkpoints where several of its runs are analysed, else the first run."""
    parent = runs[0].path.parent
    return parent if len(runs) > 1 and is_family(parent) and all(r.path.parent == parent for r in runs) else runs[0].path


def _write_table(table: pd.DataFrame, path: Path, name: str, analysis: Analysis[Any] | None) -> None:
    try:
        table.to_parquet(path)
    except (ValueError, TypeError) as error:  # pyarrow's errors are these
        if analysis is None:
            raise
        raise wrong(analysis, "analyze", f"returned the table '{name}', which cannot be stored: {said(error)[:160]}") from error


def write_result(folder: Path, result: AnalysisResult, made: Mapping[str, Any] | None = None, analysis: Analysis[Any] | None = None) -> Analysed:
    """Write tables as Parquet, further files, the summary as text and how they were ``made``; then draw from what was written.

    ``analysis`` draws its figures (PNG and SVG) from the tables as they can be read back, so that a figure never depends on
    what is not stored. Figures that the result brings along are written too. What an earlier result left there is removed.
    """
    done = Analysed("", [], folder, result.summary, result=result)
    try:
        folder.parent.mkdir(exist_ok=True)  # without its parents: a run that has vanished is not made again
        folder.mkdir(exist_ok=True)
        earlier = written_files(folder)
        write_durably(folder, WRITING, b"")  # until the tables are those of which result.json tells
        _write_tables(done, result, analysis)
        about = {**(made or {}), "facts": json_safe(result.facts), "tables": list(result.tables), "files": list(result.files)}
        write_about(folder, {**about, "figures": []})  # the tables stand, even where drawing fails
        (folder / WRITING).unlink(missing_ok=True)
        try:
            done.result = replace(result, figures=_write_figures(done, result, about, analysis))
        finally:
            mine = {*done.tables.values(), *done.files.values(), *(p.with_suffix(s) for p in done.figures.values() for s in (".png", ".svg"))}
            for path in earlier - mine:
                path.unlink(missing_ok=True)
        write_about(folder, {**about, "figures": list(done.figures)})
    except OSError as error:
        raise UserError(unwritten(folder, error)) from None
    return done


def _write_tables(done: Analysed, result: AnalysisResult, analysis: Analysis[Any] | None) -> None:
    for name, table in result.tables.items():
        done.tables[name] = done.folder / f"{name}.parquet"
        with whole_file(done.tables[name], force=True) as part:
            _write_table(storable(table), part, name, analysis)
    for name, content in result.files.items():
        done.files[name] = done.folder / name
        write_durably(done.folder, name, content if isinstance(content, bytes) else content.encode("utf-8"))
    write_durably(done.folder, SUMMARY, f"{result.summary}\n".encode())


def _write_figures(done: Analysed, result: AnalysisResult, about: Mapping[str, Any], analysis: Analysis[Any] | None) -> dict[str, Figure]:
    import pandas as pd

    figures: dict[str, Figure] = {}
    if analysis is not None:
        with style():
            figures.update(figures_of(analysis, {name: pd.read_parquet(path) for name, path in done.tables.items()}, json_safe(about)))
    figures.update(result.figures)
    for name, figure in figures.items():
        done.figures[name] = done.folder / f"{name}.png"
        for path in (done.figures[name], done.folder / f"{name}.svg"):
            with whole_file(path, force=True) as part:
                save(figure, part)
    return figures
