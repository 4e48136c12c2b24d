"""A run's model and data come back, and only the same ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import codi_engine
from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs.reload import gold_answers, reload_data, reload_model
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.testing import tiny
from tests.support.lines import write_lines


def small_run(demo: Callable[..., Experiment], **keys: Any) -> Run:
    return run_experiment(demo(metrics=["accuracy"], **keys)).open()


def test_the_models_weights_are_those_of_the_run(demo: Callable[..., Experiment]) -> None:
    run = small_run(demo, data={"plugin": "demo-problems", "limit": 2})
    again = codi_engine.load("demo", device="cpu").adapter
    adapter = reload_model(run)
    assert adapter.digest == again.digest == run.provenance["model_digest"]
    ours, theirs = adapter.network.state_dict(), again.network.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [{"question": "there are 3 apples", "answer": 3}, {"question": "there are 4 pears", "answer": 4}]
    data = {"plugin": "problems", "path": str(write_lines(tmp_path / "p.jsonl", lines))}
    shutil.copytree(tiny_gpt2, "model")
    model = {"plugin": "causal_lm", "path": "model", "device": "cpu"}
    value = {"name": "t", "model": model, "data": data, "metrics": ["accuracy"], "generate": {"max_new_tokens": 2}}
    run = run_experiment(Experiment.from_dict(value)).open()
    assert reload_model(run).digest == run.provenance["model_digest"]
    stated = json.loads((run.path / "provenance.json").read_text())
    shutil.rmtree("model")
    (tmp_path / "other").mkdir()
    tiny.tiny_causal_lm(tmp_path / "other", "gpt2", seed=5).rename("model")
    with pytest.raises(UserError, match=rf"other model files \(sha256 {stated['model_digest'][:12]} then"):
        reload_model(run)
    write_lines(tmp_path / "p.jsonl", [{**lines[0], "answer": 5}, lines[1]])
    with pytest.raises(UserError, match="other data files") as raised:
        reload_data(run)
    assert "\n" not in str(raised.value)


def test_gold_answers_of_both_sides_of_a_pair(demo: Callable[..., Experiment]) -> None:
    run = small_run(demo, data={"plugin": "demo-pairs", "limit": 2})
    gold = gold_answers(reload_data(run))
    assert len(gold) == 600  # all that the data have, whatever the limit
    cells = run.baseline
    right = [gold[e, v] == a for e, v, a in zip(cells["example"], cells["variant"], cells["answer"], strict=True)]
    assert right == (cells["accuracy"] == 1).tolist()


def test_a_run_of_no_model_says_so(tmp_path: Path) -> None:
    write_synthetic(Synthetic(targets=2, trials=2, features=20, words=0), tmp_path / "s")
    with pytest.raises(UserError, match="does not say which model"):
        reload_model(codi_engine.open_run(tmp_path / "s"))
