"""Small finished runs of the packaged demo model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codi_engine.core.results import Run


def tiny_run(path: str | Path, **keys: Any) -> Run:
    """Return a small real finished run of the packaged demo model, written below ``path``.

    Parameters
    ----------
    path: the run directory; a finished run that lies there is opened and not computed again
    keys: of the experiment, in place of these
    """
    from codi_engine import Experiment
    from codi_engine.core.run import run_experiment

    value = {
        "name": "tiny",
        "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
        "data": {"plugin": "demo-pairs", "limit": 4},
        "intervention": {"plugin": "patch", "site": "resid_post@latent", "layer": [0, 2], "step": [0, 2, 5], "direction": "denoise"},
        "metrics": [{"plugin": "kl"}, "flip", "accuracy"],
        "capture": ["latent_out"],
        "generate": {"max_new_tokens": 8},
        "controls": "none",
        "analyses": [],
        **keys,
    }
    return run_experiment(Experiment.from_dict({k: v for k, v in value.items() if v is not None}), path).open()
