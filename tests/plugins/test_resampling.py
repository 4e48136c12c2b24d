"""``resampling``: impacts against loops over cells, variance parts against a published example, the decision, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codi_engine.core.rollout.sampling import generator
from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.runs.results import Run
from codi_engine.plugins.analyses.resampling import Resampling, ResamplingOptions, Rule, variance_parts
from codi_engine.plugins.analyses.resampling_tables import bootstrap, decide
from tests.support.steps import analysed, by_steps, demo_run, planted, refused


@pytest.fixture(scope="module")
def resampled(tmp_path_factory: pytest.TempPathFactory) -> Run:
    data = {"plugin": "demo-problems", "sample": {"by": "reasoning_steps", "per_stratum": 6}}
    intervention = {"plugin": "resample", "site": "latent_in"}
    folder = tmp_path_factory.mktemp("resampled")
    return demo_run(folder, data=data, intervention=intervention, sweep={"step": [0, 1, 4], "donor": 3}, metrics=["accuracy", "kl"])


# Shrout & Fleiss 1979, table 2: six targets, four judges; ICC(1, 1) = 0.17
JUDGED = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]


def test_variance_parts_are_those_of_the_published_example() -> None:
    found = variance_parts([np.array(row, float) for row in JUDGED])
    assert found["icc"] == pytest.approx(0.166, abs=5e-4)
    assert found["within"] == pytest.approx(6.26, abs=5e-3)
    assert found["between"] == pytest.approx((11.24 - 6.26) / 4, abs=5e-3)
    assert stats.f_oneway(*JUDGED).statistic == pytest.approx(1 + 4 * found["between"] / found["within"])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.1, 4.0))
def test_unequal_groups_are_unbiased_and_icc_ignores_the_scale(seed: int, scale: float) -> None:
    draw = np.random.default_rng(seed)
    groups = [draw.normal(draw.normal(), 1, int(draw.integers(1, 6))) for _ in range(8)]
    if sum(map(len, groups)) > len(groups):
        found, scaled = variance_parts(groups), variance_parts([scale * g + 7 for g in groups])
        assert scaled["icc"] == pytest.approx(found["icc"], abs=1e-8)
        assert scaled["within"] == pytest.approx(scale**2 * found["within"])
        assert found["icc"] <= 1 + 1e-12


def test_variance_that_is_undefined_says_so() -> None:
    assert variance_parts([np.ones(3), np.ones(3)])["icc_note"] == "constant: no variance at all"
    assert variance_parts([np.ones(1), np.zeros(1)])["icc_note"] == "needs two problems and two donors"
    assert variance_parts([np.zeros(2), np.ones(2)])["icc"] == 1.0


# ---------------------------------------------------------------------------------------------- real run


def test_impacts_are_those_of_a_loop_over_cells(resampled: Run) -> None:
    result = analysed(Resampling, resampled)
    naive = -by_steps(resampled, "resample", "accuracy", [0, 1, 4])
    right = resampled.baseline["accuracy"].to_numpy(float) == 1
    table = result.tables["steps"].set_index(["subset", "step"])
    for number, step in enumerate("014"):
        for subset, values in (("all", naive[:, number]), ("baseline_correct", naive[right, number])):
            row = table.loc[(subset, step)]
            assert (row["mean"], row["n"], row["donors"]) == (pytest.approx(values.mean()), len(values), 3)
            assert row["affected"] == pytest.approx(np.mean([v != 0 for v in values]))
            if values.std() > 0:
                test = stats.ttest_1samp(values, 0)
                assert (row["p"], row["ci_low"]) == pytest.approx((test.pvalue, test.confidence_interval(0.95).low))
    problems = result.tables["problems"]
    assert len(problems) == naive.size
    np.testing.assert_allclose(problems.pivot(index="example", columns="step", values="impact").loc[resampled.baseline["example"]], naive, atol=1e-15)
    known = result.tables["steps"].dropna(subset=["p"])
    np.testing.assert_allclose(known["q"], stats.false_discovery_control(known["p"]))


def test_variance_of_the_run(resampled: Run) -> None:
    row = analysed(Resampling, resampled, metric="kl").tables["steps"].set_index(["subset", "step"]).loc[("all", "0")]
    cells = resampled.cells[resampled.cells["step"].astype(str) == "0"]
    values = np.array([group["kl"].to_numpy(float) for _, group in cells.groupby("example")])
    within = float(values.var(axis=1, ddof=1).mean())
    across = 3 * float(values.mean(1).var(ddof=1))
    assert (row["within"], row["between"]) == pytest.approx((within, (across - within) / 3))
    assert row["icc"] == pytest.approx((across - within) / (across + 2 * within))


def test_it_is_written_and_lines_are_short(resampled: Run) -> None:
    done = analyze_runs([resampled.path], ["resampling"], ["go={step: any, impact: 0.05, n: 10}"])[0]
    assert set(done.figures) == {"impact", "most_affected", "spread"}
    assert set(done.tables) == {"steps", "problems", "decision"}
    assert max(map(len, done.summary.splitlines())) <= 96
    again = analysed(Resampling, resampled).tables["steps"]
    assert again[["bootstrap_low", "bootstrap_high"]].notna().any().all()


# ------------------------------------------------------------------------------------------- statistics


def test_bootstrap_draws_problems_and_is_seeded() -> None:
    values = np.random.default_rng(1).normal(size=(12, 2))
    values[3, 1] = np.nan
    options = ResamplingOptions(bootstrap=450, seed=5)
    low, high = bootstrap(values, "all", options)
    draw, means = generator("resampling", 5, "all"), []
    for size in (200, 200, 50):
        for picks in draw.integers(0, 12, (size, 12)):
            means.append([np.nanmean([values[i, j] for i in picks]) for j in range(2)])
    np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975], axis=0))
    assert np.isnan(bootstrap(values, "all", ResamplingOptions(bootstrap=0))).all()
    many = bootstrap(np.random.default_rng(2).normal(size=(200, 1)), "all", options)
    t = stats.ttest_1samp(np.random.default_rng(2).normal(size=200), 0).confidence_interval(0.95)
    assert (many[0][0], many[1][0]) == pytest.approx((t.low, t.high), abs=0.03)


def impacts(*means: float, n: int = 30, base: float | np.ndarray = 1.0) -> Run:
    """Ten donors; step k breaks a share of the donors' answers in every problem, spread a little."""
    draw = np.random.default_rng(0)
    steps = {k: (draw.random((n, 10)) >= mean).astype(float) for k, mean in enumerate(means)}
    conditions = {"resample": {"intervention": {"plugin": "resample", "site": "latent_in"}}}
    return planted({"resample": steps}, base=base, conditions=conditions)


def decision(result: Any, **rule: Any) -> tuple[str, str]:
    row: Any = decide(result.tables["steps"], result.tables["problems"], Rule(**rule), 0.95).iloc[0]
    return row["decision"], row["reason"]


def mean_and_bound(result: Any, step: str) -> tuple[float, float]:
    row = result.tables["steps"].query("subset == 'all'").set_index("step").loc[step]
    return float(row["mean"]), float(row["ci_low"])


def test_the_decision() -> None:
    result = analysed(Resampling, impacts(0.02, 0.3), bootstrap=0, go={"impact": 0.05})
    verdict, reason = decision(result, impact=0.05)
    assert f"{verdict}: {reason}" == result.summary.splitlines()[-1]
    assert verdict == "GO"
    assert reason.startswith("step 1: lower bound +0.2")
    assert reason.endswith("of the 97.5 % interval ≥ 0.05, n = 30 ≥ 20 (all problems)")
    assert decision(result, step=0, impact=0.05)[0] == "NO-GO"
    verdict, reason = decision(result, step=1, impact=0.05, n=31)
    assert verdict == "NO-GO"
    assert "n = 30 < 31" in reason
    mean, _ = mean_and_bound(result, "1")
    assert decision(result, step=1, impact=mean, by="mean")[0] == "GO"
    assert decision(result, step=1, impact=mean, by="lower")[0] == "NO-GO"


def test_any_step_must_pass_a_wider_interval() -> None:
    """Bonferroni over the steps: a bound that one step alone just passes is not passed as the best of two."""
    result = analysed(Resampling, impacts(0.02, 0.3), bootstrap=0)
    _, just = mean_and_bound(result, "1")
    assert decision(result, step=1, impact=just)[0] == "GO"
    assert decision(result, step="any", impact=just)[0] == "NO-GO"


def test_wrong_answers_are_reported_apart() -> None:
    base = np.array([1.0] * 20 + [0.0] * 10)
    draw = (np.random.default_rng(3).random((30, 4)) < 0.8) * base[:, None]
    run = planted({"resample": {"0": draw, "1": base[:, None] * np.ones((1, 4))}}, base=base)
    table = analysed(Resampling, run, condition="resample", bootstrap=0).tables["steps"].set_index(["subset", "step"])
    assert [table.loc[(s, "0"), "n"] for s in ("all", "baseline_correct", "baseline_wrong")] == [30, 20, 10]
    assert table.loc[("all", "0"), "mean"] == pytest.approx(table.loc[("baseline_correct", "0"), "mean"] * 20 / 30)
    assert table.loc[("baseline_correct", "1"), "note"] == "constant: no effect in any example"
    assert table.loc[("baseline_correct", "1"), "icc_note"] == "constant: no variance at all"


def test_refusals_name_what_is_needed(resampled: Run) -> None:
    bare = planted({"zero": {"0": np.ones(4)}})
    assert "condition 'zero' takes nothing from donors; use the intervention resample" in refused(Resampling, bare)
    assert "go.step: step 7 was not swept; there are 0, 1, 4" in refused(Resampling, resampled, go={"step": 7})
    run = planted({"resample": {"0": np.ones((4, 2))}}, metric="kl", base=0.0, conditions={"resample": {"intervention": {"plugin": "resample"}}})
    assert "or the run has no accuracy" in refused(Resampling, run, go={"of": "baseline_correct"})
    assert "cannot be told apart" in analysed(Resampling, run).summary
    with pytest.raises(ValueError, match="fewer than 100 resamples"):
        ResamplingOptions(bootstrap=50)
