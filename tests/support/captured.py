"""One small run of the demo model with captures, shared by the tests of a module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codi_engine import Experiment
from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs.results import Run


def captured_run(folder: Path, capture: list[str], limit: int, **keys: Any) -> Run:
    """Run the demo model unedited on its problems (or as ``keys`` say) and capture."""
    value = {
        "name": "captured",
        "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
        "data": {"plugin": "demo-problems", "sample": {"by": "reasoning_steps", "per_stratum": limit // 4}, "limit": limit},
        "metrics": ["accuracy"],
        "capture": capture,
        "generate": {"max_new_tokens": 8},
        **keys,
    }
    return run_experiment(Experiment.from_dict(value), folder / "run").open()
