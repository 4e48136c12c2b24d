"""The model of a finished run, for analyses that compute with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError

if TYPE_CHECKING:
    from codi_engine.core.model import ModelAdapter
    from codi_engine.core.results import Run


def reload_model(run: Run) -> ModelAdapter:
    """Load the model that a run was computed with; its files must be the same to the bit.

    Raises
    ------
    UserError: the run names no model (it was imported), the model cannot be loaded, or its files are others now
    """
    from codi_engine.core.plugins import plugin_manager

    mapping = run.experiment.get("model")
    if not isinstance(mapping, dict) or "plugin" not in mapping:
        raise UserError(f"{run.path}: the run names no model that could be loaded; analyses that compute need a run of codi-engine")
    adapter = plugin_manager().build("model", mapping, where="model", source=str(run.path)).load()
    then = run.provenance.get("model_digest")
    if then is not None and then != adapter.digest:
        raise UserError(
            f"{run.path}: was computed with other model files (sha256 {str(then)[:12]} then, {adapter.digest[:12]} now).\n"
            "Put the files back that the run was made with, or run the experiment again."
        )
    return adapter  # type: ignore[no-any-return]
