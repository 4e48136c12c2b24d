"""codi-engine: causal analysis of language models that think in continuous vectors."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.hookspecs import hookimpl
    from codi_engine.core.planning.checkpoints import all_cells, open_runs
    from codi_engine.core.runs.analyzing import analyze
    from codi_engine.core.runs.drawing import plot
    from codi_engine.core.runs.results import Run, open_run
    from codi_engine.core.session import At, load
    from codi_engine.reporting.page import report

__version__ = "0.1.0"
__all__ = ["At", "Experiment", "Run", "__version__", "all_cells", "analyze", "hookimpl", "load", "open_run", "open_runs", "plot", "report"]

_HOMES = {
    "all_cells": "codi_engine.core.planning.checkpoints",
    "analyze": "codi_engine.core.runs.analyzing",
    "Experiment": "codi_engine.core.experiment",
    "hookimpl": "codi_engine.core.hookspecs",
    "Run": "codi_engine.core.runs.results",
    "open_run": "codi_engine.core.runs.results",
    "open_runs": "codi_engine.core.planning.checkpoints",
    "At": "codi_engine.core.session",
    "load": "codi_engine.core.session",
    "plot": "codi_engine.core.runs.drawing",
    "report": "codi_engine.reporting.page",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for, so that ``import codi_engine`` and ``--help`` stay fast."""
    if name not in _HOMES:
        raise AttributeError(f"module 'codi_engine' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
