"""``checks:``: what is refused, and what each kind finds in runs whose numbers are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.planning.checks import Check, GoCheck, SinglesCheck, parse_bound
from codi_engine.core.planning.preparing import prepare
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import try_experiment
from codi_engine.core.runs.checking import check_run
from codi_engine.core.runs.results import Run
from codi_engine.kernels.intervals import mean_interval

Maker = Callable[..., Experiment]
CONDITIONS: dict[str, Any] = {
    "patch": {"intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": [1, 2], "step": "all"}},
    "zero": {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}, "sweep": {"step": "all"}},
    "zero_all": {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}, "sweep": {"step": "all_at_once"}},
}


def one(checks: dict[str, Any], demo: Maker, **keys: Any) -> list[Check]:
    return prepare(
        demo(conditions=CONDITIONS, checks=checks, metrics=["normalized_effect", "kl", "flip", "accuracy"], **keys), plugin_manager(load=False)
    ).checks


# ---------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize(
    ("text", "unit", "good", "bad"),
    [
        (">= 0.7", "", 0.7, 0.69),
        ("> .5", "", 0.51, 0.5),
        ("<= 1e-3", "", 1e-3, 2e-3),
        ("< -2", "", -3, -2),
        ("== 1", "", 1, 0.999),
        ("0.2 .. 0.4", "", 0.2, 0.41),
        ("<= 4 GB", "B", 4e9, 4.1e9),
        ("1 .. 2 MB", "B", 1.5e6, 3e6),
        ("<= 500 ms", "s", 0.5, 0.6),
    ],
)
def test_comparisons(text: str, unit: str, good: float, bad: float) -> None:
    bound = parse_bound(text, "here", unit)
    assert bound.holds(good)
    assert not bound.holds(bad)
    assert not bound.holds(float("nan"))


@pytest.mark.parametrize(
    ("checks", "message"),
    [
        ({"acuracy": ">= 0.7"}, "checks.acuracy: 'acuracy' is neither a metric of the experiment nor a check; did you mean 'accuracy'"),
        ({"zeroo.flip": ">= 0.1"}, "no condition 'zeroo'; did you mean 'zero.flip'"),
        ({"zero.flp": ">= 0.1"}, "'flp' is neither .* did you mean 'flip'"),
        ({"accuracy": 0.7}, "checks.accuracy.*value"),
        ({"accuracy": "0.7"}, "is no comparison; write >="),
        ({"accuracy": ">= 0.7 GB"}, "'0.7 GB': write a number without a unit"),
        ({"accuracy": "0.4 .. 0.2"}, "is empty"),
        ({"accuracy": {"value": ">= 0.7", "by": "lowest"}}, "checks.accuracy.by"),
        ({"accuracy": {"value": ">= 0.7", "bye": "lower"}}, "unknown key 'bye'; did you mean 'by'"),
        ({"peak_memory": "<= 4"}, "needs a unit; write B, kB"),
        ({"peak_memory": 4}, "write a comparison in quotes"),
        ({"no_nan": "yes"}, "checks.no_nan: write true or false"),
        ({"effect_map": {"metric": "kll", "condition": "patch"}}, "checks.effect_map.metric: there is no metric 'kll'; did you mean 'kl'"),
        ({"effect_map": {"metric": "kl", "condition": "pach"}}, "checks.effect_map.condition: there is no condition 'pach'; did you mean 'patch'"),
        ({"effect_map": ">= 1"}, "write a mapping of metric, condition, min_range"),
        ({"singles_vs_all": {"condition_singles": "zero", "condition_all": "zero", "metric": "flip"}}, "are the same condition"),
        ({"sign": {"example": "x9", "condition": "patch", "metric": "kl", "sign": "+"}}, "checks.sign.example: there is no example 'x9'"),
        ({"sign": {"example": "1", "condition": "patch", "metric": "kl", "sign": "up"}}, "checks.sign.sign"),
        ({"sign": {"example": "1", "condition": "patch", "metric": "kl", "sign": "+", "layer": 0}}, "layer: 0 is not swept in condition 'patch'"),
        ({"go": {"metric": "kl", "condition": "zero", "value": ">= 1", "at": {"layer": 0}}}, "condition 'zero' has no axis 'layer'"),
        ({"go": {"metric": "kl", "condition": "zero", "value": ">= 1", "at": {"step": 9}}}, "at.step: 9 is not swept"),
        ({"go": [{"metric": "kl", "condition": "zero", "value": "1"}]}, r"checks.go\[0\].value: '1' is no comparison"),
    ],
)
def test_bad_checks_are_refused_before_anything_is_computed(demo: Maker, checks: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        one(checks, demo)
    assert len(str(caught.value).splitlines()) <= 2
    assert str(caught.value).startswith("experiment: checks.")


# ------------------------------------------------------------------------------------------- evaluating


def fake(tmp_path: Path, cells: pd.DataFrame, cost: dict[str, Any] | None = None) -> Run:
    """A run with given cells; what checks read of it."""
    store = SimpleNamespace(arrays=[], committed={})
    made = SimpleNamespace(
        digest="0",
        path=tmp_path,
        cells=cells,
        axes=[a for a in ("example", "condition", "layer", "step") if a in cells],
        metrics=["flip"],
        provenance=cost or {},
        store=store,
    )
    return cast(Run, made)


def frame(values: dict[tuple[str, str, Any], float]) -> pd.DataFrame:
    return pd.DataFrame([{"example": e, "condition": c, "step": s, "flip": v} for (e, c, s), v in values.items()])


def steps(table: np.ndarray, condition: str = "zero") -> dict[tuple[str, str, Any], float]:
    return {(str(e), condition, str(s)): float(v) for (e, s), v in np.ndenumerate(table)}


def base(examples: int) -> dict[tuple[str, str, Any], float]:
    return {(str(e), "baseline", None): 0.0 for e in range(examples)}


def found(tmp_path: Path, cells: dict[tuple[str, str, Any], float], check: Check) -> pd.Series:
    return check_run(fake(tmp_path, frame(cells)), [check]).iloc[0]


def mean(text: str, **keys: Any) -> Check:
    return Check("zero.flip", "mean", parse_bound(text, ""), metric="flip", condition="zero", **keys)


def test_a_mean_is_one_of_examples(tmp_path: Path) -> None:
    table = np.array([[0.0, 1.0], [1.0, 1.0], [0.2, 0.4]])
    row = found(tmp_path, base(3) | steps(table), mean(">= 0.6"))
    expected = mean_interval(table.mean(1))
    assert (row["value"], row["ci_low"], row["ci_high"]) == pytest.approx(expected)
    assert row["n"] == 3
    assert bool(row["passed"])
    assert row["result"] == "pass"
    assert found(tmp_path, base(3) | steps(table), mean(">= 0.6", by="lower"))["result"] == "FAIL"
    assert found(tmp_path, base(3) | steps(table), mean("<= 0.6", by="upper"))["result"] == "FAIL"


def test_what_is_undefined_fails_and_says_so(tmp_path: Path) -> None:
    row = found(tmp_path, base(2) | steps(np.full((2, 2), np.nan)), mean(">= 0"))
    assert (row["result"], row["n"]) == ("FAIL", 0)
    assert "undefined" in row["note"]
    assert found(tmp_path, base(1) | steps(np.array([[0.3]])), mean(">= 0", by="lower"))["note"] == "one example has no interval"


def go(at: dict[str, Any], value: str = ">= 0.5", n: int = 3, by: Any = "lower") -> Check:
    return Check("go", "go", parse_bound(value, ""), by, "flip", "zero", GoCheck(metric="flip", condition="zero", value=value, at=at, by=by, n=n))


def test_go_looks_at_the_best_place_and_pays_for_the_search(tmp_path: Path) -> None:
    table = np.array([[0.1, 0.80], [0.2, 0.90], [0.1, 0.85], [0.0, 0.95]])
    cells = base(4) | steps(table)
    row = found(tmp_path, cells, go({"step": "any"}))
    assert row["result"] == "GO"
    assert "at step 1" in row["found"]
    assert row["ci_low"] == pytest.approx(mean_interval(table[:, 1], 0.975)[1])
    assert "Bonferroni" in row["note"]
    assert found(tmp_path, cells, go({"step": 1}))["ci_low"] == pytest.approx(mean_interval(table[:, 1])[1])
    assert found(tmp_path, cells, go({"step": 0}))["result"] == "NO-GO"
    few = found(tmp_path, cells, go({"step": "any"}, n=20))
    assert (few["result"], few["note"]) == ("NO-GO", "4 examples; 20 are wanted")


def test_a_place_is_go_only_if_its_corrected_interval_is(tmp_path: Path) -> None:
    table = np.array([[0.0, 0.62], [0.0, 0.70], [0.0, 0.78], [0.0, 0.70]])
    low, corrected = mean_interval(table[:, 1])[1], mean_interval(table[:, 1], 0.975)[1]
    value = f">= {(low + corrected) / 2}"
    assert found(tmp_path, base(4) | steps(table), go({"step": 1}, value))["result"] == "GO"
    assert found(tmp_path, base(4) | steps(table), go({"step": "any"}, value))["result"] == "NO-GO"


def singles(cells: dict[tuple[str, str, Any], float], tmp_path: Path) -> pd.Series:
    options = SinglesCheck(condition_singles="zero", condition_all="all", metric="flip")
    return found(tmp_path, cells, Check("singles_vs_all", "singles_vs_all", metric="flip", options=options))


@pytest.mark.parametrize(("whole", "result"), [(0.5, "pass"), (0.49, "FAIL")])
def test_all_steps_against_the_strongest_single_one(tmp_path: Path, whole: float, result: str) -> None:
    cells = base(2) | steps(np.array([[0.2, 0.4], [0.2, 0.6]])) | {("0", "all", "0+1"): whole, ("1", "all", "0+1"): whole}
    row = singles(cells, tmp_path)
    assert row["result"] == result
    assert "strongest single 0.5 (step 1)" in row["found"]
    assert f"sum to 0.7 ({0.7 / whole:.2f} × all)" in row["note"]


def test_changes_are_taken_against_the_unedited_prompt(tmp_path: Path) -> None:
    cells = {("0", "baseline", None): 1.0, ("1", "baseline", None): 1.0}
    cells |= steps(np.array([[0.9, 0.4], [0.8, 0.5]])) | {("0", "all", "0+1"): 0.1, ("1", "all", "0+1"): 0.1}
    assert "all 0.9, strongest single 0.55 (step 1)" in singles(cells, tmp_path)["found"]


def test_flat_maps_fail(tmp_path: Path) -> None:
    from codi_engine.core.planning.checks import EffectMapCheck

    def result(table: np.ndarray, least: float = 0.0) -> pd.Series:
        options = EffectMapCheck(metric="flip", condition="zero", min_range=least)
        return found(tmp_path, base(len(table)) | steps(table), Check("effect_map", "effect_map", metric="flip", condition="zero", options=options))

    noise = np.random.default_rng(0).normal(0, 1, (12, 6))
    peak = noise * 0.1 + np.array([0, 0, 1, 0, 0, 0])
    assert result(peak, 0.5)["result"] == "pass"
    assert "most at step 2" in result(peak)["note"]
    assert result(peak, 5.0)["result"] == "FAIL"
    assert result(noise)["result"] == "FAIL"
    assert result(np.ones((5, 3)))["result"] == "FAIL"
    assert "needs two places" in result(np.ones((1, 3)))["note"]


def test_nan_where_there_was_a_number_and_infinities_are_found(tmp_path: Path) -> None:
    check = Check("no_nan", "no_nan")
    cells = base(3) | steps(np.zeros((3, 2)))
    assert found(tmp_path, cells, check)["result"] == "pass"
    assert found(tmp_path, cells | {("1", "zero", "0"): np.nan}, check)["found"] == "flip 1"
    assert found(tmp_path, cells | {("1", "baseline", None): np.nan, ("1", "zero", "0"): np.nan}, check)["result"] == "pass"  # undefined for this example
    assert found(tmp_path, cells | {("1", "baseline", None): np.nan, ("1", "zero", "0"): np.inf}, check)["result"] == "FAIL"


def test_resources_come_from_what_was_recorded(tmp_path: Path) -> None:
    stages = {"baseline": {"seconds": 2.0, "memory": 3e9, "cells": 4}, "sweep": {"seconds": 6.0, "memory": 2e9, "cells": 30}}
    run = fake(tmp_path, frame(base(4)), {"cost": {"invocations": [{"stages": stages, "estimate": None}]}})
    texts = {"peak_memory": ("<= 3 GB", "B", "3 GB"), "seconds_per_example": ("<= 1.9", "s", "2 s"), "cells_per_second": (">= 5", "", "5")}
    checks = [Check(n, "resource", parse_bound(t, "", u)) for n, (t, u, _) in texts.items()]
    table = check_run(run, checks)
    assert table["found"].tolist() == [t[2] for t in texts.values()]
    assert table["result"].tolist() == ["pass", "FAIL", "pass"]
    assert check_run(fake(tmp_path, frame(base(4))), checks)["result"].tolist() == ["FAIL"] * 3


# ------------------------------------------------------------------------------------------ on the demo


def test_checks_of_a_real_run(demo: Maker) -> None:
    checks = {
        "accuracy": ">= 0.7",
        "zero_all.flip": "0.5 .. 1",
        "zero.accuracy": "> 1",
        "no_nan": True,
        "effect_map": {"metric": "kl", "condition": "patch", "min_range": 0.05},
        "singles_vs_all": {"condition_singles": "zero", "condition_all": "zero_all", "metric": "accuracy"},
        "sign": [{"example": "1", "condition": "patch", "layer": 1, "step": 0, "metric": "normalized_effect", "sign": "+"}],
        "peak_memory": "<= 4 GB",
    }
    keys = {"conditions": CONDITIONS, "metrics": ["normalized_effect", "kl", "flip", "accuracy"], "capture": ["latent_out", "resid_post.1@prompt[-40,-1]"]}
    finished = demo(checks=checks, data={"plugin": "demo-pairs", "both_correct": True, "limit": 6}, **keys).run()
    assert finished.checks is not None
    results = dict(zip(finished.checks["check"], finished.checks["result"], strict=True))
    assert results["zero.accuracy"] == "FAIL"
    assert results["sign"] in ("pass", "not run")
    assert {v for k, v in results.items() if k not in ("zero.accuracy", "sign")} == {"pass"}
    assert not finished.passed
    run = finished.open()
    assert run.results["checks"]
    stored = pd.read_parquet(run.path / "results/checks/checks.parquet")
    assert stored["check"].tolist() == finished.checks["check"].tolist()
    assert json.loads((run.path / "results/checks/checks.json").read_text())[2]["result"] == "FAIL"
    accuracy = run.baseline.groupby("example")["accuracy"].mean()
    assert stored.set_index("check").loc["accuracy", "value"] == pytest.approx(accuracy.mean())
    assert run.store.verify() == []


def test_damaged_captures_are_found(demo: Maker) -> None:
    run = demo(capture=["latent_out"]).run().open()
    check = [Check("no_nan", "no_nan")]
    assert check_run(run, check)["result"].tolist() == ["pass"]
    right = run.store.read_unit

    def damaged(name: str, unit: int) -> np.ndarray:
        values = right(name, unit).copy()
        values[1, 2, 3] = np.nan
        return values

    run.store.read_unit = damaged  # type: ignore[method-assign]
    assert check_run(run, check)["found"].tolist() == ["latent_out 1"]


def test_trying_an_experiment_keeps_nothing(demo: Maker) -> None:
    finished = try_experiment(demo(conditions=CONDITIONS, checks={"kl": "== 0"}, data={"plugin": "demo-pairs", "limit": 40}))
    assert finished.cells == 5 * (12 + 6 + 1 + 2)
    assert finished.passed
    assert not finished.path.exists()
    assert not Path("runs").exists()
    kept = try_experiment(demo(conditions=CONDITIONS, data={"plugin": "demo-pairs", "limit": 40}), "kept", limit=2)
    assert kept.checks is None
    assert kept.passed
    assert len(kept.open().cells) == 2 * 21
