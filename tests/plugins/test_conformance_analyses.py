"""The built-in analyses through the suite, on a few small shared runs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from codi_engine import open_run
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.testing import AnalysisSuite
from codi_engine.testing.runs import shared_run, small_data

BUILTIN = {r.name: r.cls for r in plugin_manager(load=False).registered if r.kind == "analysis"}
#: two conditions, one of them sets of steps
BOTH: dict[str, Any] = {
    "intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": None, "metrics": ["kl", "accuracy"],
    "conditions": {
        "one": {"sweep": {"step": [0, 1], "layer": [1, 2]}},
        "sets": {"intervention": {"plugin": "zero", "site": "latent_in"}, "sweep": {"step": [0, 1, [0, 1]]}},
    },
}  # fmt: skip
DONORS: dict[str, Any] = {
    "data": {**small_data("problems"), "limit": 4}, "intervention": {"plugin": "resample", "site": "latent_in"}, "sweep": {"step": [0, 1], "donor": 2},
    "metrics": ["accuracy", "kl"],
}  # fmt: skip
ONE_LAYER = {"options": ({"at": {"layer": 0}},)}
#: name → attributes of its suite; a text says why it has none here
ANALYSES: dict[str, dict[str, Any] | str] = {
    "importance": {}, "proportions": {}, "trajectories": {}, "pathways": {}, "logit_lens": {},
    "latent_film": {"options": ({"examples": 3}, {"top": 1})}, "correlation": {"least_memory": 300_000_000},
    "early_late": ONE_LAYER, "step_effects": ONE_LAYER,
    "shapley": {"experiment": BOTH}, "compare_runs": {"experiment": BOTH, "options": ({"conditions": ["one", "sets"], "metric": "kl", "bootstrap": 200},)},
    "select_features": {"experiment": BOTH, "options": ({"axis": "step"},)}, "resampling": {"experiment": DONORS},
    "words": {"synthetic": True}, "across": {"checkpoints": True},
    "attribution": "runs the model's gradients, seconds each time: tests/plugins/test_attribution.py",
    "probes": "needs more examples than a tiny run has: tests/plugins/test_probes.py",
    "tuned_lens": "trains on many states, seconds each time: tests/plugins/test_tuned_lens.py",
}  # fmt: skip


@cache
def _synthetic() -> Run:
    folder = Path(tempfile.mkdtemp(prefix="conformance-"))
    return open_run(write_synthetic(Synthetic(targets=4, features=12, conditions=3, trials=12, words=60), folder / "run"))


class OfAnalysis(AnalysisSuite):
    """``synthetic``: a run with texts of many trials; ``checkpoints``: two runs of the same experiment."""

    synthetic = False
    checkpoints = False

    @pytest.fixture
    def runs(self, tmp_path: Path) -> Iterator[Sequence[Run]]:
        if self.synthetic:
            yield [_synthetic()]
        elif self.checkpoints:
            for label in ("1", "2"):
                shutil.copytree(shared_run(**DONORS).path, tmp_path / "runs" / label)
            yield [open_run(tmp_path / "runs" / label) for label in ("1", "2")]
        else:
            yield [shared_run(**self.experiment)]


def test_every_builtin_analysis_is_listed() -> None:
    assert sorted(BUILTIN) == sorted(ANALYSES), "a new built-in: add options for it above"


for _name, _given in ANALYSES.items():
    if not isinstance(_given, str):
        _title = f"Test{_name.title().replace('_', '')}"
        globals()[_title] = type(_title, (OfAnalysis,), {"plugin": BUILTIN[_name], "__module__": __name__, **_given})
