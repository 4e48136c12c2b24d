"""Every built-in goes through the suites that a third party's plugins go through."""

from __future__ import annotations

from typing import Any

import pytest

from codi_engine.core.plugins import plugin_manager
from codi_engine.testing import DatasetSuite, InterventionSuite, MetricSuite, SaeFormatSuite, StoreSuite

BUILTIN = {
    kind: {r.name: r.cls for r in plugin_manager(load=False).registered if r.kind == kind} for kind in ("intervention", "metric", "dataset", "sae_format")
}

#: name → attributes of its suite; a built-in without an entry fails
INTERVENTIONS: dict[str, dict[str, Any]] = {
    "zero": {},
    "mean": {"options": ({}, {"over": "all"})},
    "resample": {"options": ({}, {"self_donor": True})},
    "patch": {},
    "noise": {"options": ({"sigma": 0.5}, {"sigma": 0.0})},
    "steer": {"options": tuple({"difference": "clean", "mode": m} for m in ("add", "norm_matched", "project_out")), "pairs": True},
    "sae": {
        "options": tuple({"sae": "demo", **o} for o in ({"feature": 3, "value": 2.0}, {"feature": 3, "value": 0.0, "mode": "add"}, {"mode": "reconstruct"}))
    },
    "early_decode": {"site": "latent_in@latent[3]"},
    "recorded": {"skip": "needs another run on disk: tests/plugins/test_recorded.py"},
}
METRICS: dict[str, dict[str, Any]] = {
    "accuracy": {}, "flip": {"unedited": 0.0}, "equals_other": {"nan_where": "some"}, "equals_predicted": {"nan_where": "some"},
    "kl": {"unedited": 0.0, "options": ({}, {"at": "first", "direction": "edited_to_baseline"})}, "logit_diff": {"nan_where": "some"},
    "normalized_effect": {"nan_where": "some"}, "prob": {}, "rank": {}, "cross_entropy": {"options": ({}, {"reduce": "mean"})},
    "rms_logit_diff": {"unedited": 0.0}, "argmax_changed": {"unedited": 0.0}, "clean_score": {"nan_where": "some"}, "corrupted_score": {"nan_where": "some"},
    "norm": {}, "cosine": {"unedited": 1.0}, "l2": {"unedited": 0.0}, "clean_similarity": {}, "answer_class": {}, "perplexity": {},
    "outcome": {"options": ({"pattern": r"(?P<n>\d+)", "numbers": ["n"]},), "nan_where": "some"}, "unusual": {"nan_where": "unedited"},
}  # fmt: skip
LINE = '{"question": "What is %d + 1?", "answer": %d}\n'
PAIR = '{"clean": {"question": "What is %d + 1?", "answer": %d}, "corrupted": {"question": "What is %d + 2?", "answer": %d}}\n'
DATASETS: dict[str, dict[str, Any]] = {
    "problems": {
        "options": ({"path": "{path}"},), "records": "".join(LINE % (n, n + 1) for n in range(4)), "changed": "".join(LINE % (n, n + 1) for n in range(1, 5)),
        "broken": {LINE % (1, 2) + "not json\n": "data.jsonl:2", LINE % (1, 2) + '{"answer": 3}\n': "data.jsonl:2"},
    },
    "pairs": {"options": ({"path": "{path}"},), "skip": "its records: tests/plugins/test_datasets.py"},
    "prompts": {
        "options": ({"path": "{path}"},), "records": '{"text": "a b"}\n{"text": "c d"}\n{"text": "e"}\n', "broken": {'{"text": "a"}\n{}\n': "data.jsonl:2"},
    },
    "demo-problems": {}, "demo-pairs": {}, "demo-prompts": {},
}  # fmt: skip


def suites(base: type[Any], kind: str, given: dict[str, dict[str, Any]]) -> dict[str, type[Any]]:
    """Return a test class per built-in of a kind that has an entry."""
    named = {}
    for name, cls in BUILTIN[kind].items():
        if name in given and "skip" not in given[name]:
            title = "Test" + kind.title().replace("_", "") + name.title().replace("_", "").replace("-", "")
            named[title] = type(title, (base,), {"plugin": cls, "__module__": __name__, **given[name]})
    return named


@pytest.mark.parametrize(("kind", "given"), [("intervention", INTERVENTIONS), ("metric", METRICS), ("dataset", DATASETS)])
def test_every_builtin_has_a_suite(kind: str, given: dict[str, Any]) -> None:
    assert sorted(BUILTIN[kind]) == sorted(given), "a new built-in: add options for it above"


globals().update(suites(InterventionSuite, "intervention", INTERVENTIONS))
globals().update(suites(MetricSuite, "metric", METRICS))
globals().update(suites(DatasetSuite, "dataset", DATASETS))
globals().update(suites(SaeFormatSuite, "sae_format", {name: {} for name in BUILTIN["sae_format"]}))


class TestRunStore(StoreSuite):
    """Ours."""
