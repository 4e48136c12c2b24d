"""Computing damaged units of a finished or unfinished run once more, from what the run says of how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.progress import Progress
from codi_engine.core.running.marks import committable
from codi_engine.core.yamlfile import parse_yaml
from codi_engine.store.layout import EXPERIMENT, RESULTS
from codi_engine.store.repairing import Recompute, Repaired, repair
from codi_engine.store.unitfiles import Content

if TYPE_CHECKING:
    from codi_engine.core.model import ModelAdapter
    from codi_engine.core.running.computing import Computer
    from codi_engine.store.verifying import Finding
    from codi_engine.store.writer import RunWriter


def repair_run(path: str | Path, progress: Progress | None = None, *, device: str | None = None, replace: bool = False) -> Repaired:
    """Mend a damaged run: restore what has copies, and compute exactly the damaged units again.

    Relative paths of the experiment count from the current directory, as they did when it was run.

    Parameters
    ----------
    device: where the model is loaded; default: as the experiment says
    replace: accept units whose bytes differ from before (another machine, other versions)

    Raises
    ------
    UserError: model, data or files that the run was made of are not here or are others now
    StoreError: no run, being written, not writable, or a unit gives other bytes than before
    """
    root, progress = Path(path), progress or Progress()
    by = _By(root, progress, device)

    def found(damage: Sequence[Finding]) -> None:
        units = len({f.unit for f in damage if f.unit is not None})
        progress.start("repair", units, "units")

    done = repair(root, by, found, replace)
    progress.finish()
    _results(done, progress)
    return done


def _results(done: Repaired, progress: Progress) -> None:
    """Make damaged results again, with the options that they were made with; those of several runs, and checks, are left to the user."""
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.runs.analyzing import analyze_one
    from codi_engine.core.runs.results import open_run
    from codi_engine.core.runs.stored import ABOUT, CHECKS, damaged_results, stored_results

    root = done.path
    damage = [f for f in damaged_results(root) if f.damage]
    for name in dict.fromkeys(f.file.split("/")[1] for f in damage):
        if name == CHECKS:
            done.todo.append(f"{RESULTS}/{name} is damaged; the run's own command makes it again")
            continue
        lost = any(f.file == f"{RESULTS}/{name}/{ABOUT}" for f in damage)  # nobody can say any more how it was made: with the default options then
        about = {} if lost else stored_results(root)[name].about
        if len(about.get("runs", [])) > 1:
            done.todo.append(f"{RESULTS}/{name} is damaged and was made of several runs; analyse these again: codi-engine analyze RUN... {name}")
            continue
        analysis = plugin_manager().build("analysis", {"plugin": name, **about.get("options", {})}, where="analyses", source=str(root))
        analyze_one([open_run(root)], analysis, progress)
        done.results.append(name)


class _By:
    """Recomputes units: one model for all of them, one plan for each plan of the run."""

    def __init__(self, path: Path, progress: Progress, device: str | None) -> None:
        self.path, self.progress, self.device = path, progress, device
        self._loaded: tuple[ModelAdapter, Any] | None = None
        self._made: dict[str, Recompute] = {}

    def __call__(self, writer: RunWriter, unit: int) -> Content:
        text = experiment_of(writer, unit)
        if text not in self._made:
            self._made[text] = self._make(writer, text)
        content = self._made[text](writer, unit)
        self.progress.advance(1)
        return content

    def _make(self, writer: RunWriter, text: str) -> Recompute:
        source = str(self.path / EXPERIMENT)
        value = parse_yaml(text, source)[0]
        if isinstance(value, dict) and "imported" in value:
            from codi_engine.core.imports.importing import reimport

            return reimport(value["imported"], writer, self.progress)
        if isinstance(value, dict) and "synthetic" in value:
            from codi_engine.core.runs.synthetic import resynthesize

            return resynthesize(value["synthetic"])
        return self._swept(writer, value, source)

    def _swept(self, writer: RunWriter, value: Any, source: str) -> Recompute:
        """Plan the experiment again, load its model, and see that both, and the data, are what they were."""
        from codi_engine.core.experiment import Experiment
        from codi_engine.core.planning.preparing import prepare
        from codi_engine.core.plugins import plugin_manager
        from codi_engine.core.running.computing import Computer
        from codi_engine.core.running.runner import Runner

        changes = ["analyses=[]", "trackers=[]", "checks={}"] + ([] if self.device is None else [f"model.device={self.device}"])
        runner = Runner(prepare(Experiment.from_dict(value, changes, source=source), plugin_manager()), self.path, self.progress)
        self._loaded = self._loaded or runner.load()
        job = runner.same_job(*self._loaded, writer)
        computer = Computer(job, runner.known_units(job))
        return lambda _, unit: _computed(computer, unit, self.path)


def _computed(computer: Computer, number: int, path: Path) -> Content:
    unit = next(u for u in computer.units if u.number == number)
    known = computer.job.cells if unit.stage == "sweep" else computer.job.prompts
    if any(key not in known for key in unit.keys):
        raise UserError(f"{path}: unit {number} cannot be computed again: the data of its experiment are not those of the run any more; put those back")
    made = computer.compute(unit)
    return committable(unit, made.arrays, made.texts)


def experiment_of(writer: RunWriter, unit: int) -> str:
    """Return the text of the experiment whose plan added a unit."""
    first = 0
    for count, text in writer.generations:
        if first <= unit < first + count:
            return text
        first += count
    raise UserError(f"{writer.path}: unit {unit} belongs to no plan")
