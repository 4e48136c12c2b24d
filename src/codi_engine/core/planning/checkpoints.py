"""Checkpoints as an axis: one experiment over several models, each a run of its own below one directory."""

from __future__ import annotations

import gc
import glob
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.calling import calling
from codi_engine.core.errors import CodiEngineError, PluginError, UserError, nearest
from codi_engine.core.planning.labels import FROM, check_labels, in_order, label_of, numbers_of
from codi_engine.core.progress import Progress
from codi_engine.store.layout import EXPERIMENT, LEDGER, RESULTS

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.experiment import Experiment
    from codi_engine.core.planning.summary import PlanSummary
    from codi_engine.core.plugin import Analysis
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.running.run import Finished
    from codi_engine.core.runs.results import Run
    from codi_engine.core.spreading.cluster import Spread

#: the options of models that say where the weights are
_PLACES = ("checkpoint", "path")


# ------------------------------------------------------------------------------- what an experiment means


@dataclass(frozen=True)
class Family:
    """An experiment with checkpoints, taken apart.

    ``members``: label → the experiment of that checkpoint alone; ``analyses``: those that take all runs at once;
    ``resolved``: the experiment with every label and path written out.
    """

    members: Mapping[str, Experiment]
    analyses: list[Analysis[Any]]
    resolved: Experiment


def family_of(experiment: Experiment, plugins: Plugins) -> Family:
    """Take an experiment with ``checkpoints`` apart; every model's options are checked, nothing is loaded.

    Raises
    ------
    UserError: a pattern without any match, a path that does not exist, an option that the model does not have
    """
    source = experiment.source
    changes = _changes(experiment, plugins)
    many, single = [], []
    for number, ref in enumerate(experiment.analyses):
        built = plugins.build("analysis", ref, where=f"analyses[{number}]", source=source)
        if built.takes == "many":
            many.append(built)
        else:
            single.append(ref.model_dump(mode="json"))
    members = {label: _member(experiment, label, change, single, plugins) for label, change in changes.items()}
    models: dict[str, str] = {}
    for label, member in members.items():
        same = models.setdefault(str(sorted(member.model.model_dump().items(), key=str)), label)
        if same != label:
            raise UserError(f"{source}: checkpoints: '{same}' and '{label}' are the same model; leave one out")
    resolved = experiment.model_copy(update={"checkpoints": changes})
    return Family(members, many, resolved)


def _changes(experiment: Experiment, plugins: Plugins) -> dict[str, dict[str, Any]]:
    """Return label → what differs in ``model``."""
    given = experiment.checkpoints
    at = f"{experiment.source}: checkpoints"
    fields = plugins.get("model", experiment.model.plugin, f"{experiment.source}: model.plugin").Options.model_fields
    place = next((p for p in _PLACES if p in fields), None)
    if isinstance(given, dict) and list(given) == [FROM] and isinstance(given[FROM], str):
        given = _matches(given[FROM], at)
    paths = {label_of(p): p for p in given} if isinstance(given, list) else {k: v for k, v in (given or {}).items() if isinstance(v, str)}
    for label, path in paths.items():
        if place is None:
            raise UserError(f"{at}.{label}: the model '{experiment.model.plugin}' takes no path; write {{option: value}} instead of '{path}'")
    named = given if isinstance(given, dict) else paths
    return {label: {place: change} if isinstance(change, str) else dict(change) for label, change in named.items()}  # type: ignore[dict-item]


def _matches(pattern: str, at: str) -> list[str]:
    found = glob.glob(str(Path(pattern).expanduser()))
    if not found:
        raise UserError(f"{at}.{FROM}: '{pattern}' matches nothing")
    paths = {label_of(p): p for p in sorted(found)}
    try:
        check_labels([label_of(p) for p in found])
    except ValueError as error:
        raise UserError(f"{at}.{FROM}: {error}") from None
    return [paths[label] for label in in_order(paths)]


def _member(experiment: Experiment, label: str, change: Mapping[str, Any], analyses: list[Any], plugins: Plugins) -> Experiment:
    """Return the experiment of one checkpoint."""
    from codi_engine.core.experiment import Experiment

    source, where = experiment.source, f"checkpoints.{label}"
    plugin = change.get("plugin", experiment.model.plugin)
    if not isinstance(plugin, str):
        raise UserError(f"{source}: {where}.plugin: write the name of a model plugin; got {plugin!r}")
    known = plugins.get("model", plugin, f"{source}: {where}.plugin").Options.model_fields
    for key in change:
        if key not in (*known, "plugin"):
            raise UserError(f"{source}: {where}: '{key}' is no option of the model '{plugin}'; {nearest(str(key), known)}")
    shared = {k: v for k, v in experiment.model.options.items() if plugin == experiment.model.plugin or k in known}
    model = {**shared, **change, "plugin": plugin}
    for key in _PLACES:
        if isinstance(change.get(key), str):
            _local(change[key], f"{source}: {where}.{key}")
    plugins.build("model", model, where=where, source=source)
    value = {k: v for k, v in experiment.to_dict().items() if k not in ("checkpoints", "output", "analyses")}
    return Experiment.from_dict({**value, "name": f"{experiment.name}-{label}"[:101].rstrip("."), "model": model, "analyses": analyses}, source=source)


def _local(path: str, where: str) -> None:
    """Refuse a path that leads nowhere; ``owner/name`` is taken for a Hub id only where no directory ``owner`` is here."""
    place = Path(path).expanduser()
    if not place.exists() and "/" in path and (path.startswith((".", "/", "~")) or place.parent.is_dir()):
        raise UserError(f"{where}: no such file or directory: '{path}'")


@contextmanager
def _about(label: str) -> Iterator[None]:
    """Say of errors which checkpoint they are about."""
    try:
        yield
    except CodiEngineError as error:
        raise type(error)(f"checkpoint {label}: {error}") from error.__cause__


# ------------------------------------------------------------------------------------------------ running


def run_checkpoints(
    experiment: Experiment, root: Path, *, limit: int | None, device: str | None, progress: Progress, spread: Spread | None = None
) -> Finished:  # fmt: skip
    """Run an experiment for one checkpoint after the other, then the analyses that take all of them."""
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.running.run import Finished, _adjusted, run_experiment
    from codi_engine.core.runs.analyzing import analyze_one
    from codi_engine.core.runs.results import open_run
    from codi_engine.core.watching.lifecycle import Lifecycle

    begun, plugins = time.perf_counter(), plugin_manager()
    family = family_of(experiment, plugins)
    _check_root(root)
    _check_members(family, root, limit, device)
    parts: dict[str, Finished] = {}
    with _directory(root, _adjusted(family.resolved, limit, device)):
        for number, (label, member) in enumerate(family.members.items()):
            progress.note(f"checkpoint {label} ({number + 1} of {len(family.members)})")
            with _about(label):
                parts[label] = part = run_experiment(member, _plain(root / label), limit=limit, device=device, progress=progress, spread=spread)
            progress.note(f"checkpoint {label}: {part.cells:,} cells, {part.new_cells:,} new, {part.seconds:.1f} s")
            _free()
    cells, new = (sum(getattr(p, key) for p in parts.values()) for key in ("cells", "new_cells"))
    analyses = family.analyses if len(parts) > 1 else []
    notes = _notes(parts) + [f"{a.name} needs two checkpoints and is left out" for a in family.analyses if not analyses]
    finished = Finished(root, cells, new, 0.0, notes=notes, experiment=experiment, parts=parts)
    life = Lifecycle(plugins, [], root, progress.note)
    for analysis in analyses:
        progress.note(f"analysis {analysis.name} of {len(parts)} checkpoints")
        try:
            finished.take(analyze_one([open_run(p.path) for p in parts.values()], analysis, progress, root, spread), life)
        except PluginError as error:
            finished.failures.append(error)
    finished.seconds = time.perf_counter() - begun
    return finished


def _notes(parts: Mapping[str, Finished]) -> list[str]:
    """Return what was noted, with the checkpoints that it is about where it is not about all."""
    about: dict[str, list[str]] = {}
    for label, part in parts.items():
        for note in dict.fromkeys(part.notes):
            about.setdefault(note, []).append(label)
    return [note if len(labels) == len(parts) else f"{', '.join(labels)}: {note}" for note, labels in about.items()]


def _check_members(family: Family, root: Path, limit: int | None, device: str | None) -> None:
    """Find what is wrong with any checkpoint before the first one runs: its plan, its files, a run of another experiment in its place."""
    from codi_engine.core.running.run import _prepared, open_writer

    for label, member in family.members.items():
        with _about(label):
            prepared, _ = _prepared(member, limit, device)
            with calling(prepared.model, "locate"):
                prepared.model.locate()
            if (root / label / LEDGER).exists():
                open_writer(prepared, root / label).close()


def _check_root(root: Path) -> None:
    if (root / LEDGER).exists():
        raise UserError(f"{root}: holds a run without checkpoints; choose a new output")
    if root.is_dir() and any(root.iterdir()) and not (root / EXPERIMENT).exists():
        raise UserError(f"{root}: is not empty and holds no checkpoints' runs; give another output directory")
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is a file; give another output directory")


@contextmanager
def _directory(root: Path, resolved: Experiment) -> Iterator[None]:
    """Make the directory of the runs; where none came of it, it is taken away again."""
    made, new = [p for p in (root, *root.parents) if not p.exists()], not (root / EXPERIMENT).exists()
    _write_family(root, resolved)
    try:
        yield
    except BaseException:  # whatever it was, it goes on
        with suppress(OSError):  # somebody uses it
            if new and [p.name for p in root.iterdir()] == [EXPERIMENT]:
                (root / EXPERIMENT).unlink()
                for folder in made:
                    folder.rmdir()
        raise


def _write_family(root: Path, resolved: Experiment) -> None:
    from codi_engine.store.errors import unwritten
    from codi_engine.store.files import write_durably

    try:
        root.mkdir(parents=True, exist_ok=True)
        write_durably(root, EXPERIMENT, resolved.to_yaml().encode("utf-8"))
    except OSError as error:
        raise UserError(unwritten(root, error)) from None


def _plain(path: Path) -> str:
    """Return a path whose braces stand for themselves."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _free() -> None:
    """Give a model's memory back before the next one is loaded."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def plan_checkpoints(
    experiment: Experiment, output: str | Path | None = None, *, limit: int | None = None, device: str | None = None, **more: Any
) -> dict[str, PlanSummary]:  # fmt: skip
    """Return label → what that checkpoint's run would compute, without loading weights."""
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.running.run import output_of, plan_experiment

    root, plans = output_of(experiment, output), {}
    for label, member in family_of(experiment, plugin_manager()).members.items():
        with _about(label):
            plans[label] = plan_experiment(member, _plain(root / label), limit=limit, device=device, **more)
    return plans


def check_checkpoints(experiment: Experiment, *, limit: int | None, device: str | None, progress: Progress | None) -> pd.DataFrame:
    """Run the gate of every checkpoint; the first column says which one."""
    import pandas as pd

    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.running.run import check_experiment

    frames = []
    for label, member in family_of(experiment, plugin_manager()).members.items():
        with _about(label):
            frame = check_experiment(member, limit=limit, device=device, progress=progress)
        frame.insert(0, "checkpoint", label)
        frames.append(frame)
        _free()
    return pd.concat(frames, ignore_index=True)


# ------------------------------------------------------------------------------------------------ reading


def is_family(path: Path) -> bool:
    """Say whether a directory holds the runs of an experiment with checkpoints."""
    return (path / EXPERIMENT).is_file() and not (path / LEDGER).exists()


def runs_below(path: Path) -> list[Path]:
    """Return the runs that lie directly in a directory: checkpoints by their number, else as the experiment names them."""
    if not path.is_dir():
        return []
    found = in_order(p.name for p in path.iterdir() if p.name != RESULTS and (p / LEDGER).exists())
    if is_family(path) and numbers_of(found) is None:
        named = [str(k) for k in _family_experiment(path).get("checkpoints") or {}]
        found.sort(key=lambda label: named.index(label) if label in named else len(named))
    return [path / label for label in found]


def _family_experiment(path: Path) -> dict[str, Any]:
    from codi_engine.core.yamlfile import read_yaml

    value = read_yaml(path / EXPERIMENT)[0]
    return value if isinstance(value, dict) else {}


def family_analyses(path: Path, plugins: Plugins) -> list[dict[str, Any]]:
    """Return the analyses of a family's experiment that take all its runs at once."""
    wanted = [{"plugin": w} if isinstance(w, str) else dict(w) for w in _family_experiment(path).get("analyses") or []]
    return [w for w in wanted if plugins.get("analysis", w["plugin"], "analyses").takes == "many"]


def open_runs(path: str | Path) -> dict[str, Run]:
    """Open all runs in a directory, label → run: those of an experiment with ``checkpoints``, or any others.

    Raises
    ------
    UserError: no run there
    """
    from codi_engine.core.runs.results import open_run

    root = Path(path)
    found = [root] if (root / LEDGER).exists() else runs_below(root)
    if not found:
        raise UserError(f"{root}: {'holds no run' if root.is_dir() else 'no such directory'}; runs of checkpoints lie in runs/<name>/<label>")
    return {p.name: open_run(p) for p in found}


def all_cells(path: str | Path) -> pd.DataFrame:
    """Return the cells of all runs in a directory, one after the other; ``checkpoint`` is the first column."""
    import pandas as pd

    frames = []
    for label, run in open_runs(path).items():
        frame = run.cells.copy()
        frame.insert(0, "checkpoint", label)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
