"""Sweeps over tables of features: what a table may be, how a run grows along it, and what the analyses read of it."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_engine import Experiment, analyze, open_run
from codi_engine.cli.main import main
from codi_engine.core.errors import UserError
from codi_engine.core.experiment import CodeSpec
from codi_engine.core.model import ModelInfo
from codi_engine.core.planning.plan import build_plan
from codi_engine.core.plugin import Data, Example, Prompt
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.testing import tiny
from tests.support import saes
from tests.support.lines import write_lines

WIDTH, LAYERS, FEATURES = 32, 3, 40
TABLE = "feature,more,less,note\nL0-3,6.0,-2.0,bold\nL2-17,5.0,0.5,\nL1-8,4.0,-1.0,x\nL0-9,3.5,0.25,y\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal LM, an autoencoder per layer, two prompts."""
    folder = tmp_path_factory.mktemp("features")
    (folder / "model").mkdir()
    tiny.tiny_causal_lm(folder / "model", "gpt2")
    saes.write_saes(folder, LAYERS, WIDTH, FEATURES)
    texts = ["there are 5 apples and 7 pears . how many ?", "how many apples and pears are there ?"]
    write_lines(folder / "prompts.jsonl", [{"id": f"p{i}", "text": t, "group": ["a", "b"][i]} for i, t in enumerate(texts)])
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "features.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def experiment(place: Path, table: Any, limit: int | None = None, trials: int = 1, **keys: Any) -> Experiment:
    sae = str(place / "sae_{layer}")
    intervention = {"plugin": "sae", "sae": sae, "site": "resid_post", "tokens": "last"}
    axis = {"from": str(table), **({} if limit is None else {"limit": limit})} if isinstance(table, Path) else table
    value: dict[str, Any] = {
        "name": "features",
        "model": {"plugin": "causal_lm", "path": str(place / "model"), "device": "cpu"},
        "data": {"plugin": "prompts", "path": str(place / "prompts.jsonl")},
        "conditions": {name: {"intervention": {**intervention, "value": name}} for name in ("more", "less")},
        "sweep": {"feature": axis},
        "trials": trials,
        "capture": [{"sae": sae, "reduce": "mean"}],
        "generate": {"max_new_tokens": 4, "do_sample": trials > 1},
    }
    return Experiment.from_dict({**value, **keys})


def test_a_pilot_grows_into_the_full_run(place: Path, table: Path, tmp_path: Path) -> None:
    pilot = run_experiment(experiment(place, table, 2), tmp_path / "grown")
    assert pilot.new_cells == 2 + 2 * 2 * 2
    assert set(pilot.open().cells["feature"].dropna()) == {"L0-3", "L2-17"}
    full = run_experiment(experiment(place, table), tmp_path / "grown")
    assert full.new_cells == 2 * 2 * 2
    whole = run_experiment(experiment(place, table), tmp_path / "whole").open()
    grown = open_run(tmp_path / "grown")
    pd.testing.assert_frame_equal(whole.cells, grown.cells, check_exact=True)
    for edited in (False, True):
        np.testing.assert_array_equal(whole.activations("sae", edited=edited).values, grown.activations("sae", edited=edited).values)
    cells = whole.cells[whole.cells["condition"] != "baseline"]
    assert (cells["layer"].astype(str) == cells["feature"].str[1]).all()


def test_features_named_by_the_intervention_grow_too(place: Path, table: Path, tmp_path: Path) -> None:
    def made(feature: Any) -> Experiment:
        intervention = {"plugin": "sae", "sae": str(place / "sae_{layer}"), "site": "resid_post", "tokens": "last", "value": 3.0, "feature": feature}
        return experiment(place, table, conditions={}, intervention=intervention, sweep={}, capture=[])

    assert run_experiment(made({"from": str(table), "limit": 1}), tmp_path / "run").new_cells == 2 + 2
    assert run_experiment(made({"from": str(table), "limit": 3}), tmp_path / "run").new_cells == 2 * 2
    assert run_experiment(made(["L0-3", "L1-5"]), tmp_path / "run").new_cells == 2


def test_another_value_in_the_table_makes_other_cells(place: Path, table: Path, tmp_path: Path) -> None:
    run_experiment(experiment(place, table), tmp_path / "run")
    table.write_text(TABLE.replace("L1-8,4.0", "L1-8,4.5"), encoding="utf-8")
    again = run_experiment(experiment(place, table), tmp_path / "run")
    assert again.new_cells == 2  # more × L1-8 × two prompts


@pytest.mark.slow
def test_codes_are_sparse_and_the_analyses_read_them(place: Path, table: Path, tmp_path: Path) -> None:
    run = run_experiment(experiment(place, table, trials=6), tmp_path / "run").open()
    assert run.store.is_sparse("activations/sae")
    codes = run.activations("sae", edited=True)
    assert codes.dims == ("cell", "feature")
    assert list(codes["feature"].values[:2]) == ["L0-0", "L0-1"]
    cells = run.cells
    assert len(cells) == 2 * 6 + 2 * 2 * 4 * 6
    done = analyze(run.path, "pathways", q=0.999, correction="none", unit="trial", test="welch", pairs=[["more", "less"]], draw=1, chains=0)[0]
    assert done.result is not None
    found = done.result.tables["pathways"]
    assert len(found) > 20
    assert set(found["target"]) <= {"L0-3", "L2-17", "L1-8", "L0-9"}
    edited = cells[cells["condition"] != "baseline"].reset_index(drop=True)
    for _, row in found.head(25).iterrows():
        sides = [codes.values[edited.index[(edited["condition"] == c) & (edited["feature"] == row["target"])]] for c in ("more", "less")]
        column = list(codes["feature"].values).index(row["feature"])
        a, b = (s[:, column].astype(float) for s in sides)
        assert row["effect"] == pytest.approx(a.mean() - b.mean(), rel=1e-4, abs=1e-6)
        assert row["p"] == pytest.approx(stats.ttest_ind(a, b, equal_var=False).pvalue, rel=1e-3)
    words = analyze(run.path, "words", least=2, correction="none", q=0.99, draw=0)[0]
    assert words.result is not None
    assert len(words.result.tables["words"]) > 0


BAD: list[tuple[str, str]] = [
    ("feature,less\nL0-3,1.0\n", "the table has no numbers in a column 'more'; known: less"),
    ("feature,more,less\nL0-3,nan,1.0\n", "column 'more' of feature L0-3 is nan"),
    ("feature,more,less\nL0-3,inf,1.0\n", "column 'more' of feature L0-3 is inf"),
    ("feature,more,less\nL0-3,,1.0\n", "the table has no numbers in a column 'more'"),
    ("feature,more,less\nL0-3,1,1\nL1-2,1,1\nL0-3,2,2\n", "feature L0-3 stands twice"),
    ("feature,more,less\nL3-1,1.0,1.0\n", "feature L3-1: the model has layers 0 to 2"),
    ("layer,id,more,less\n-1,4,1.0,1.0\n", "features.csv:2: layer and id must be whole numbers from 0 on; got '-1' and '4'"),
    ("layer,id,more,less\n1,-4,1.0,1.0\n", "features.csv:2: layer and id must be whole numbers from 0 on"),
    ("layer,id,more,less\n1.5,4,1.0,1.0\n", "features.csv:2: layer and id must be whole numbers"),
    ("feature,more,less\nL0_3,1.0,1.0\n", "features.csv:2: 'L0_3' is no feature; write L<layer>-<feature>"),
    ("name,more,less\nL0-3,1.0,1.0\n", "has no column feature (L26-1069), nor layer and id; it has name, more, less"),
    ("feature,more,less\n", "has no rows"),
    ("", "has no rows"),
    ("feature,more,less\nL0-3,1.0,2.0\nL1-40,1.0,2.0\n", "feature L1-40: "),
]


@pytest.mark.parametrize(("text", "said"), BAD)
def test_bad_tables_are_said_in_two_lines_and_exit_2(place: Path, tmp_path: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "features.csv"
    path.write_text(text, encoding="utf-8")
    made = experiment(place, path)
    (tmp_path / "e.yaml").write_text(made.to_yaml(), encoding="utf-8")
    assert main(["run", str(tmp_path / "e.yaml"), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    message = error[error.index("error:") :]
    assert said in " ".join(message.split())
    assert "Traceback" not in error
    assert not (tmp_path / "run" / "data.zarr" / "cells" / "answer").exists()  # nothing was computed


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ({"from": "nowhere.csv"}, "experiment: sweep.feature: no file 'nowhere.csv'"),
        ({"from": "nowhere.csv", "first": 3}, "write {from: features.csv}, with limit: n for the first n"),
        ({"limit": 3}, "write {from: features.csv}"),
        (["L0-3", "L0-3"], "a feature stands twice"),
        ({"from": ".", "limit": 1}, "no file '.'"),
    ],
)
def test_bad_axes(place: Path, axis: Any, said: str) -> None:
    intervention = {"plugin": "sae", "sae": str(place / "sae_{layer}"), "site": "resid_post", "tokens": "last", "value": 1.0}
    with pytest.raises(UserError) as caught:
        plan_experiment(experiment(place, axis, conditions={"more": {"intervention": intervention}}))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("limit", [0, -1, True, 1.5, "all"])
def test_limits_are_counts(place: Path, table: Path, limit: Any) -> None:
    with pytest.raises(UserError, match=r"sweep\.feature\.limit: must be a whole number from 1 on"):
        plan_experiment(experiment(place, {"from": str(table), "limit": limit}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"feature": -1}, "feature: -1 is no feature; they count from 0"),
        ({"value": float("nan")}, "value: nan is no number that can be computed with"),
        ({"value": None}, "mode: set needs feature and value"),
        ({"mode": "reconstruct"}, "mode: reconstruct edits no feature; remove feature and value"),
        ({"value": "more"}, "value: 'more' is one of a table's"),
        ({"feature": "one"}, "feature: 'one' is no feature; write a number or L26-1069"),
    ],
)
def test_what_is_no_edit_of_a_feature_is_said(place: Path, change: dict[str, Any], said: str) -> None:
    intervention = {"plugin": "sae", "sae": str(place / "sae_{layer}"), "site": "resid_post.1", "tokens": "last", "feature": 1, "value": 2.0, **change}
    with pytest.raises(UserError) as caught:
        plan_experiment(experiment(place, [], conditions={}, sweep={}, intervention={k: v for k, v in intervention.items() if v is not None}))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_a_byte_order_mark_is_no_part_of_a_name(place: Path, table: Path) -> None:
    table.write_text(TABLE, encoding="utf-8-sig")
    assert len(plan_experiment(experiment(place, table)).prepared.plan.cells) == 2 * 2 * 4


def test_layers_are_the_features_own(place: Path, table: Path) -> None:
    made = experiment(place, table)
    with pytest.raises(UserError, match="each feature names its own layer; remove the layer"):
        plan_experiment(made.with_overrides(["conditions.more.intervention.layer=1"]))


CAPTURES: list[tuple[dict[str, Any], str]] = [
    ({"features": ["L1-40"]}, "capture[0].features: L1-40: "),
    ({"features": ["L3-1"]}, "capture[0].features: L3-1: the model has layers 0 to 2"),
    ({"features": []}, "capture[0].features: "),
    ({"features": "most"}, "capture[0].features: 'most': write all, a list of labels"),
    ({"features": ["one"]}, "capture[0].features: 'one' is no feature"),
    ({"site": "latent_in"}, "capture[0].site: name a component that every layer has"),
    ({"site": "resid_post.1"}, "capture[0].site: name a component that every layer has"),
    ({"layers": [3]}, "(experiment: capture[0].layers[0])"),
    ({"sae": "nowhere_{layer}"}, "sae: no such file or directory: 'nowhere_0'"),
    ({"name": "resid_post"}, "capture[0].name: 'resid_post' is a site's name"),
]


@pytest.mark.parametrize(("change", "said"), CAPTURES)
def test_bad_captures_of_codes(place: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    capture = [{"sae": str(place / "sae_{layer}"), **change}]
    with pytest.raises(UserError) as caught:
        run_experiment(experiment(place, ["L0-3"], conditions={}, sweep={}, capture=capture), tmp_path / "run")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_two_entries_of_one_name_are_named(place: Path, tmp_path: Path) -> None:
    sae = str(place / "sae_{layer}")
    capture = [{"sae": sae, "name": "first"}, {"sae": sae, "name": "twice"}, {"sae": sae, "name": "twice"}]
    with pytest.raises(UserError, match="'twice' stands twice; name each site once"):
        run_experiment(experiment(place, ["L0-3"], conditions={}, sweep={}, capture=capture), tmp_path / "run")


def test_metrics_of_captured_sites_do_not_read_codes(place: Path) -> None:
    with pytest.raises(UserError, match="'norm' compares captures; add capture"):
        plan_experiment(experiment(place, ["L0-3"], conditions={}, sweep={}, metrics=["norm"]))


def test_means_of_a_run_are_values(place: Path, table: Path, tmp_path: Path) -> None:
    """``value: {run: …, where: …}`` sets each feature to its mean code over that run's unedited cells of a group."""
    first = run_experiment(experiment(place, table, trials=3), tmp_path / "first").open()
    base = first.baseline.reset_index(drop=True)
    codes = first.activations("sae")
    sae = str(place / "sae_{layer}")
    value = {"run": str(tmp_path / "first"), "where": {"group": "b"}}
    made = experiment(place, table, conditions={"b": {"intervention": {"plugin": "sae", "sae": sae, "site": "resid_post", "tokens": "last", "value": value}}})
    rows = base.index[base["group"] == "b"]
    found = {c.values["feature"]: c.values["value"] for c in plan_experiment(made).prepared.plan.cells}
    for label, number in found.items():
        column = list(codes["feature"].values).index(label)
        assert number == pytest.approx(float(codes.values[rows][:, column].mean()), rel=1e-6)
    wrong = {"run": str(tmp_path / "first"), "where": {"group": "c"}}
    with pytest.raises(UserError, match=r"no unedited cell of .* has {'group': 'c'}"):
        plan_experiment(made.with_overrides([f"conditions.b.intervention.value={wrong}"]))


def test_a_large_plan_is_quick_and_small(tmp_path: Path) -> None:
    """2 prompts × 300 features × 2 conditions × 30 trials, without a model."""
    rows = "".join(f"L{i % 30}-{i * 7},{1 + i / 10},{-i / 20 - 0.1}\n" for i in range(300))
    path = tmp_path / "features.csv"
    path.write_text(f"feature,more,less\n{rows}", encoding="utf-8")
    made = experiment(tmp_path, path, trials=30)
    info = ModelInfo("gpt2", 32, 64, 4, 4, 16, 256, 1000, 0, 1024, 10**6, "float32", "cpu")
    examples = [Example(str(i), {"main": Prompt(f"text {i}")}) for i in range(2)]
    tracemalloc.start()
    begun = time.perf_counter()
    plan = build_plan(made, plugin_manager(load=False), Data("prompts", examples, examples), info)
    seconds = time.perf_counter() - begun
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(plan.cells) == 36_000
    assert len({c.key for c in plan.cells}) == 36_000
    assert most < 500e6
    assert seconds < 10  # traced memory doubles it and more; about 1 s without


def test_defaults_of_a_capture() -> None:
    spec = CodeSpec(sae="demo")
    assert (spec.features, spec.layers, spec.site, spec.at, spec.reduce, spec.name) == ("all", "all", "resid_post", "last", "last", "sae")
