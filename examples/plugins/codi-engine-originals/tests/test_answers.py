"""The studies' own ways to read answers, and their formulas."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from codi_engine_originals.answers import RULES
from codi_engine_originals.formulas import ImportanceOptions, OriginalImportance

from codi_engine.core.errors import UserError
from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.runs.results import Run
from codi_engine.core.solutions.answers import extract

Ran = Callable[..., Run]
NONE = float("nan")


@pytest.mark.parametrize(
    ("text", "patching", "resampling", "importance", "engine"),
    [
        ("The answer is: 18", 18, 18, 18, 18),
        ("The answer is: 2,000", 2, 2000, 2, 2000),
        ("The answer is: 12.5", 12, 12, 12.5, 12.5),
        ("The answer is: 18.5", 18, 18, 18.5, 18.5),
        ("3 + 4 = 7 #### 7", 7, 7, 7, 7),
        ("#### 7, so the answer is 8", 7, 8, 8, 7),
        ("18The answer is: 20The answer is: 21", 20, 21, 20, 20),
        ("there are 5 and 6 of them", 6, 6, 6, 6),
        ("total: -3", -3, -3, -3, -3),
        ("it costs $ 40", 40, 40, 40, 40),
        ("nothing", NONE, NONE, NONE, None),
    ],
)
def test_what_each_rule_reads(text: str, patching: float, resampling: float, importance: float, engine: float | None) -> None:
    found = [RULES[name][0](text) for name in ("patching", "resampling", "importance")]
    assert np.array_equal(found, [patching, resampling, importance], equal_nan=True)
    assert extract(text).value == engine


# ------------------------------------------------------------------------------------------------------ formulas


def test_recovery_is_the_studys_formula(run: Ran) -> None:
    patched = run(
        data={"plugin": "demo-pairs", "limit": 20}, intervention={"plugin": "ce-patch", "site": "resid_post@bot", "direction": "denoise"},
        sweep={"layer": [1], "steps": [1, 4]}, metrics=[{"plugin": "original-answer", "rules": "patching"}], capture=[],
        generate={"max_new_tokens": 12},
    )  # fmt: skip
    [done] = analyze_runs([patched.path], ["original-recovery"])
    assert done.result is not None
    table = done.result.tables["recovery"]
    cells = patched.cells
    clean = cells[(cells["condition"] == "baseline") & (cells["variant"] == "clean")]["original_correct"].to_numpy()
    corrupted = cells[(cells["condition"] == "baseline") & (cells["variant"] == "corrupted")]["original_correct"].to_numpy()
    assert 0 < corrupted.mean() < clean.mean()
    for steps in (1, 4):
        hit = cells[(cells["condition"] == "ce-patch") & (cells["steps"] == steps)]["original_other"].to_numpy()
        row = table[table["steps"] == steps].iloc[0]
        assert row["recovery"] == pytest.approx((hit.mean() - corrupted.mean()) / (clean.mean() - corrupted.mean()))
        assert row["recovery_corrected"] == pytest.approx(hit[(clean == 1) & (corrupted == 0)].mean())
    assert table["recovery"].min() < -1  # two targets mixed: it has no bounds


def test_importance_compares_ablation_and_two_eots_with_a_baseline_of_one(run: Ran, tmp_path: Path) -> None:
    keys = {
        "data": {"plugin": "demo-problems", "sample": {"by": "reasoning_steps", "per_stratum": 4}}, "capture": [],
        "intervention": {"plugin": "ce-zero", "site": "resid_post@bot", "layer": 2}, "sweep": {"ablated": [1, 3, 5]},
        "metrics": [{"plugin": "original-answer", "rules": "importance"}], "generate": {"max_new_tokens": 12},
    }  # fmt: skip
    once, twice = (run(**keys, model={"plugin": "ce-codi", "checkpoint": "demo", "device": "cpu", "eot_times": n}) for n in (1, 2))
    assert not np.array_equal(once.cells["text"], twice.cells["text"])
    [done] = analyze_runs([twice.path, once.path], ["original-importance"], ["by=reasoning_steps"])
    assert done.result is not None
    table = done.result.tables["importance"]
    right = once.cells[once.cells["condition"] == "baseline"].set_index("example")["original_correct"]
    edited = twice.cells[twice.cells["condition"] != "baseline"]
    for position in (1, 3, 5):
        part = edited[edited["ablated"] == position].set_index("example")["original_correct"]
        expected = np.mean([right[e] != part[e] for e in part.index])
        row = table[(table["group"] == "all") & (table["position"] == position)].iloc[0]
        assert row["importance"] == pytest.approx(expected)
        assert row["ci_low"] <= expected <= row["ci_high"]
    assert (table[table["position"] == 0]["importance"] == 0).all()
    assert set(table["group"]) == {"all", "1", "2", "3", "4"}
    sides = OriginalImportance(ImportanceOptions())._sides([twice, once])
    assert [side.path for side in sides] == [once.path, twice.path]  # baseline, edited
    [alone] = analyze_runs([once.path], ["original-importance"])
    assert alone.result is not None
    with pytest.raises(UserError, match="give one run, or two of ce-codi"):
        analyze_runs([once.path, once.path, twice.path], ["original-importance"])


def test_a_run_without_the_metric_is_told_which(run: Ran) -> None:
    bare = run()
    for name in ("original-recovery", "original-importance"):
        with pytest.raises(UserError, match=r"has no column 'original_correct'; add the metric \{plugin: original-answer"):
            analyze_runs([bare.path], [name])
