"""Analysis options that cannot work are refused before anything is computed, and again where a run is analysed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.planning.preparing import prepare
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.runs.foreseen import facts_of, foreseen

PATCH = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
KEYS: dict[str, Any] = {"intervention": PATCH, "sweep": {"step": [0, 1], "layer": [1, 2]}, "metrics": ["kl", "accuracy"]}

REFUSED = [
    ({"plugin": "importance", "metric": "klx"}, "metric 'klx' is not in the run; did you mean 'kl'"),
    ({"plugin": "importance", "by": "reasoning_step"}, "by: the data has no field 'reasoning_step'; did you mean 'reasoning_steps'"),
    ("across", "two or more checkpoints"),
    ({"plugin": "compare_runs"}, "one run has two sides only by conditions"),
    ({"plugin": "compare_runs", "table": "nothing.csv"}, "there is no file 'nothing.csv'"),
    ("correlation", r"add capture: \[resid_post@latent\]"),
    ("pathways", "add capture: "),
    ({"plugin": "logit_lens", "site": "mlp_out@latent"}, "is not the residual stream"),
    ("logit_lens", "add capture: "),
    ({"plugin": "probes", "target": "answer"}, "add capture: "),
    ({"plugin": "words", "pairs": [["patch", "basline"]]}, "did you mean 'baseline'"),
    ({"plugin": "words", "pairs": [["patch"]]}, "a pair is two conditions"),
    ({"plugin": "words", "pattern": "("}, "no regular expression"),
    ({"plugin": "proportions", "metrics": ["acuracy"]}, "did you mean 'accuracy'"),
    ({"plugin": "select_features"}, "no axis 'feature' or 'target'"),
    ({"plugin": "select_features", "axis": "layr"}, "did you mean 'layer'"),
    ({"plugin": "early_late", "at": {"layr": 1}}, "did you mean 'layer'"),
    ({"plugin": "shapley", "condition": "pach"}, "did you mean 'patch'"),
    ({"plugin": "step_effects", "total": "pach"}, "total: the run has no condition 'pach'"),
    ({"plugin": "resampling", "metric": "acc"}, "did you mean 'accuracy'"),
    ({"plugin": "trajectories"}, r"add capture: \[latent_out\]"),
    ({"plugin": "attribution", "condition": "pach"}, "did you mean 'patch'"),
    ({"plugin": "attribution", "site": "resid_post"}, "direction: state denoise"),
]


def prepared(experiment: Experiment) -> Any:
    return prepare(experiment, plugin_manager())


@pytest.mark.parametrize(("analysis", "said"), REFUSED, ids=lambda v: str(v)[:40])
def test_refused_with_file_field_and_remedy(analysis: Any, said: str, demo: Callable[..., Experiment]) -> None:
    with pytest.raises(UserError, match=said) as caught:
        prepared(demo(**KEYS, analyses=["importance", analysis]))
    name = analysis if isinstance(analysis, str) else analysis["plugin"]
    assert str(caught.value).startswith(f"experiment: analyses[1] ({name}): ")
    assert str(caught.value).count("\n") <= 1


def test_what_works_is_not_refused(demo: Callable[..., Experiment]) -> None:
    captures = ["latent_out", "resid_post@latent"]
    fine = [
        {"plugin": "importance", "metric": "kl", "by": "reasoning_steps"}, {"plugin": "importance", "by": "layer"}, "proportions", "words", "attribution",
        {"plugin": "logit_lens", "site": "resid_post.2@latent"}, {"plugin": "probes", "site": "latent_out", "target": "reasoning_steps"},
        {"plugin": "step_effects", "at": {"layer": 1}}, {"plugin": "trajectories", "conditions": ["patch"]}, {"plugin": "pathways", "site": "latent_out"},
        {"plugin": "early_late", "by": "reasoning_steps", "at": {"layer": 1}}, {"plugin": "select_features", "axis": "layer"},
    ]  # fmt: skip
    assert prepared(demo(**KEYS, analyses=fine, capture=captures)).plan.cells
    assert prepared(demo(analyses=["importance"])).plan.conditions == []


def test_nothing_is_computed_before_the_refusal(demo: Callable[..., Experiment]) -> None:
    experiment = demo(**KEYS, analyses=[{"plugin": "importance", "metric": "klx"}])
    with pytest.raises(UserError):
        experiment.run("runs/never")
    from pathlib import Path

    assert not Path("runs/never").exists()


def test_foreseen_and_found_are_the_same_facts(demo: Callable[..., Experiment]) -> None:
    experiment = demo(**KEYS, capture=["latent_out"])
    planned, found = foreseen(prepared(experiment)), facts_of(experiment.run().open())
    for name in ("conditions", "baseline", "captures", "texts", "examples", "trials"):
        assert getattr(planned, name) == getattr(found, name), name
    assert sorted(planned.metrics) == sorted(found.metrics)
    assert {k: set(v) for k, v in planned.axes.items()} == {k: set(v) for k, v in found.axes.items()}
    assert planned.fields is not None
    assert found.fields is not None
    assert set(planned.fields) == set(found.fields)


def test_the_same_refusal_where_a_run_is_analysed(demo: Callable[..., Experiment]) -> None:
    run = demo(**KEYS).run().open()
    with pytest.raises(UserError, match=r"^words: pairs: the run has no condition 'basline'; did you mean 'baseline'"):
        analyze_runs([run.path], ["words"], ["pairs=[[patch, basline]]"])
