"""Shapes against loops and known truths, the analysis on the demo, and the package as users meet it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from codi_engine_geometry import shapes, tables
from codi_engine_geometry.geometry import Geometry, GeometryOptions
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import plan_experiment
from codi_engine.core.runs.work import Work
from codi_engine.testing import AnalysisSuite, tiny_run

ROOT = Path(__file__).parents[1]


class TestConformance(AnalysisSuite):
    plugin = Geometry
    options = ({}, {"site": "resid_post.1@latent", "draws": 3})
    experiment = {"capture": ["latent_out", "resid_post@latent"], "metrics": ["accuracy"]}


def test_measures_are_those_of_loops() -> None:
    states = np.random.default_rng(0).normal(size=(5, 4, 6))
    change, turned = shapes.step_change(states), shapes.direction(states)
    for c in range(5):
        for k in range(3):
            move = states[c, k + 1] - states[c, k]
            assert change[c, k] == pytest.approx(sum(move**2) ** 0.5 / sum(states[c, k] ** 2) ** 0.5)
            if k:
                last = states[c, k] - states[c, k - 1]
                assert turned[c, k - 1] == pytest.approx(sum(move * last) / (sum(move**2) * sum(last**2)) ** 0.5)
    assert np.isnan(shapes.step_change(np.zeros((1, 3, 2)))).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5))
def test_dimension_is_that_of_the_eigenvalues_and_no_larger_than_the_subspace(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(12, rank)) @ rng.normal(size=(rank, 9)) + rng.normal(size=9)
    values = np.linalg.eigvalsh(np.cov(states.T))
    found = shapes.effective_dimension(states)
    assert found == pytest.approx(values.sum() ** 2 / (values**2).sum())
    assert 1 - 1e-9 <= found <= rank + 1e-9
    turned = states @ np.linalg.qr(rng.normal(size=(9, 9)))[0] * 3
    assert shapes.effective_dimension(turned) == pytest.approx(found)


def test_the_jackknife_leaves_one_out() -> None:
    states = np.random.default_rng(1).normal(size=(7, 3))
    left = [shapes.effective_dimension(np.delete(states, i, 0)) for i in range(7)]
    assert shapes.jackknife(states) == pytest.approx((6 / 7 * sum((v - np.mean(left)) ** 2 for v in left)) ** 0.5)
    assert np.isnan(shapes.jackknife(states[:2]))
    assert np.isnan(shapes.effective_dimension(np.ones((4, 3))))


def test_a_planted_difference_is_found_and_nothing_else() -> None:
    rng = np.random.default_rng(2)
    states = np.cumsum(rng.normal(size=(60, 5, 8)), 1) + 20
    correct = np.repeat([1.0, 0.0], 30)
    states[30:, 3:] += 60  # the wrong ones jump on their way to state 3
    options = GeometryOptions()
    table = tables.contrast_table(states, [-1, 0, 1, 2, 3], np.arange(60).astype(str), correct, options)
    change = table[table["measure"] == "change"].set_index("step")
    assert list(change.index[change["q"] < 0.01]) == [2, 3]  # the jump, and the moves from a larger state
    assert change.loc[2, "difference"] < 0
    few = np.r_[np.ones(56), np.zeros(4)]
    assert tables.groups(few) == {}
    assert tables.contrast_table(states, [-1, 0, 1, 2, 3], np.arange(60).astype(str), few, options).empty


def test_cells_of_an_example_count_once() -> None:
    values = np.array([1.0, 3.0, 10.0, np.nan])
    assert tables.by_example(values, np.array(["a", "a", "b", "b"])).tolist() == [2.0, 10.0]
    assert tables.mean_interval(np.array([2.0, np.nan]), 0.95)[:2] == (1, 2.0)


def test_it_reads_the_states_that_were_captured(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, capture=["latent_out"], metrics=["accuracy"], data={"plugin": "demo-problems", "limit": 6}, intervention=None)
    result: Any = Geometry(GeometryOptions()).analyze([run], Work())
    states = run.activations("latent_out").values
    row = result.tables["steps"].query("measure == 'change' and step == 0").iloc[0]
    gaps = np.linalg.norm(states[:, 1] - states[:, 0], axis=1) / np.linalg.norm(states[:, 0], axis=1)
    assert (row["n"], row["mean"]) == (6, pytest.approx(gaps.mean(), rel=1e-6))
    assert len(result.tables["pairs"]) == 21
    assert isinstance(result.tables["contrast"], pd.DataFrame)
    with pytest.raises(UserError, match="were not captured"):
        Geometry(GeometryOptions(site="resid_post@latent")).analyze([run], Work())


def test_it_is_discovered_documented_and_its_experiment_plans() -> None:
    mine = [r for r in plugin_manager().registered if r.package == "codi-engine-geometry"]
    assert [(r.kind, r.name) for r in mine] == [("analysis", "geometry")]
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [o for o in GeometryOptions.model_fields if not re.search(rf"`{o}\b", text)] == []
    assert plan_experiment(Experiment.from_file(ROOT / "examples" / "geometry.yaml"), limit=3).cells == 0
    sources = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "src").rglob("*.py"))
    assert "codi_engine.plugins" not in sources
