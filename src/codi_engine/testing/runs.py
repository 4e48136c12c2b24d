"""Small finished runs of the packaged demo model."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from codi_engine.core.runs.results import Run


def tiny_run(path: str | Path, **keys: Any) -> Run:
    """Return a small real finished run of the packaged demo model, written below ``path``.

    Parameters
    ----------
    path: the run directory; a finished run that lies there is opened and not computed again
    keys: of the experiment, in place of these
    """
    from codi_engine import Experiment
    from codi_engine.core.running.run import run_experiment

    value = {
        "name": "tiny",
        "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
        "data": {**small_data("pairs"), "limit": 4},
        "intervention": {"plugin": "patch", "site": "resid_post@latent", "direction": "denoise"},
        "sweep": {"layer": [0, 2], "step": [0, 2, 5]},
        "metrics": [{"plugin": "kl"}, "flip", "accuracy"],
        "capture": ["latent_out"],
        "generate": {"max_new_tokens": 8},
        "controls": "none",
        "analyses": [],
        **keys,
    }
    if value["intervention"] is None and "sweep" not in keys:
        value["sweep"] = None
    return run_experiment(Experiment.from_dict({k: v for k, v in value.items() if v is not None}), path).open()


_SHARED: dict[str, Run] = {}
_FILES: dict[str, Path] = {}
#: examples of a small data set, which is its own pool: means over it are soon computed
FEW = 8


def small_data(kind: str) -> dict[str, Any]:
    """Return the ``data:`` of a few of the demo model's ``problems`` or ``pairs``, in a file of their own."""
    from codi_engine.core.plugins import plugin_manager

    if kind not in _FILES:
        data = plugin_manager(load=False).build("dataset", {"plugin": f"demo-{kind}", "limit": FEW}, "data", "small data").load()
        path = _folder() / f"{kind}.jsonl"
        records = []
        for example in data.examples:
            sides = {name: {"question": p.text, "answer": p.answer} for name, p in example.prompts.items()}
            records.append({"id": example.id, **(sides["main"] if kind == "problems" else {"pair_id": example.id, **sides})})
        path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
        _FILES[kind] = path
    return {"plugin": kind, "path": str(_FILES[kind]), "limit": 3}


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="codi-engine-testing-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def shared_run(**keys: Any) -> Run:
    """Return a tiny run that is made once per process for each set of keys; do not write into it."""
    name = repr(sorted(keys.items()))
    if name not in _SHARED:
        _SHARED[name] = tiny_run(_folder() / "run", **keys)
    return _SHARED[name]
