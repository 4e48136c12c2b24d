"""A finished run's model and data, loaded again and checked to be the same: for analyses that need more than the run holds."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.returned import loaded, loaded_model
from codi_engine.store.layout import EXPERIMENT

if TYPE_CHECKING:
    from codi_engine.core.model import ModelAdapter
    from codi_engine.core.plugin import Data
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.runs.results import Run


def reload_model(run: Run) -> ModelAdapter:
    """Load the model that a run was computed with.

    Relative paths of the experiment count from the current directory, as they did when it was run.

    Raises
    ------
    UserError: the run names no model (imported, synthetic), the model cannot be loaded, or its files are not those of the run
    """
    adapter = loaded_model(_built(run, "model"))
    _same(run, "model", run.provenance["model_digest"], adapter.digest)
    return adapter


def reload_data(run: Run) -> Data:
    """Read the data that a run was computed on: a run keeps its examples' fields, but neither questions nor gold answers.

    Raises
    ------
    UserError: the run names no data, they cannot be read, or they have changed since
    """
    data = loaded(_built(run, "data"))
    _same(run, "data", run.provenance["data_digest"], data.digest)
    return data


def gold_answers(data: Data) -> dict[tuple[str, str], float]:
    """Return (example, variant) → gold answer, for prompts that have one."""
    examples = {e.id: e for e in (*data.pool, *data.examples)}
    return {(e.id, variant): float(p.answer) for e in examples.values() for variant, p in e.prompts.items() if p.answer is not None}


def _built(run: Run, part: str) -> Any:
    mapping = run.experiment.get(part)
    if not isinstance(mapping, Mapping) or "plugin" not in mapping or f"{part}_digest" not in run.provenance:
        raise UserError(f"{run.path}: does not say which {part} it was computed with (an imported or synthetic run); this needs a run of codi-engine's own")
    kind = "dataset" if part == "data" else part
    return _plugins(kind, mapping["plugin"]).build(kind, mapping, where=part, source=str(run.path / EXPERIMENT))


def _plugins(kind: str, name: str) -> Plugins:
    """Return plugins that hold the named one: the built-in data sets alone where it is one of them, since models take seconds to import."""
    from codi_engine import __version__
    from codi_engine.core.calling import BUILTIN
    from codi_engine.core.plugins import Plugins, plugin_manager

    if kind == "dataset":
        from codi_engine.plugins import builtin

        alone = ModuleType("datasets_alone")
        alone.datasets = builtin.datasets  # type: ignore[attr-defined]
        plugins = Plugins()
        plugins.register(alone, BUILTIN, __version__)
        if name in plugins.names(kind):
            return plugins
    return plugin_manager()


def _same(run: Run, part: str, then: str, now: str) -> None:
    if then != now:
        raise UserError(f"{run.path}: was computed with other {part} files (sha256 {then[:12]} then, {now[:12]} now); put those back, or run it again")
