"""The built-in analyses through the suite, on one small shared run; those that need another kind of run are named."""

from __future__ import annotations

from typing import Any

from codi_engine.core.plugins import plugin_manager
from codi_engine.testing import AnalysisSuite

BUILTIN = {r.name: r.cls for r in plugin_manager(load=False).registered if r.kind == "analysis"}
ONE_LAYER = {"options": ({"at": {"layer": 0}},)}
#: name → attributes of its suite; a text says why it has none here
ANALYSES: dict[str, dict[str, Any] | str] = {
    "importance": {}, "proportions": {}, "trajectories": {}, "pathways": {}, "logit_lens": {},
    "latent_film": {"options": ({"examples": 3}, {"top": 1})}, "correlation": {"least_memory": 300_000_000},
    "early_late": ONE_LAYER, "step_effects": ONE_LAYER,
    "attribution": "runs the model's gradients: tests/plugins/test_attribution.py",
    "words": "texts of many examples: tests/plugins/test_words_analysis.py",
    "probes": "more examples than a tiny run has: tests/plugins/test_probes.py",
    "tuned_lens": "more examples than a tiny run has: tests/plugins/test_tuned_lens.py",
    "across": "runs of several checkpoints: tests/plugins/test_across.py",
    "compare_runs": "two runs: tests/plugins/test_compare.py",
    "resampling": "donors: tests/plugins/test_resampling.py",
    "select_features": "features: tests/plugins/test_select_features.py",
    "shapley": "all sets of steps: tests/plugins/test_shapley.py",
}  # fmt: skip


def test_every_builtin_analysis_is_listed() -> None:
    assert sorted(BUILTIN) == sorted(ANALYSES), "a new built-in: add options for it above"


for _name, _given in ANALYSES.items():
    if not isinstance(_given, str):
        _title = f"Test{_name.title().replace('_', '')}"
        globals()[_title] = type(_title, (AnalysisSuite,), {"plugin": BUILTIN[_name], "__module__": __name__, **_given})
