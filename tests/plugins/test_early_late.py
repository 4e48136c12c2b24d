"""``early_late``: the contrast against a loop, what cumulation implies and the analysis refuses, strata, bad input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.runs.results import Run
from codi_engine.plugins.analyses.early_late import EarlyLate, EarlyLateOptions, is_cumulative
from tests.support.steps import analysed, by_steps, demo_run, planted, refused


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    mean = {"plugin": "mean", "site": "latent_in"}
    conditions = {"single": {"intervention": mean, "sweep": {"step": "all"}}, "grown": {"intervention": mean, "sweep": {"step": "cumulative"}}}
    data = {"plugin": "demo-problems", "sample": {"by": "reasoning_steps", "per_stratum": 4}}
    return demo_run(tmp_path_factory.mktemp("early"), data=data, conditions=conditions, metrics=["accuracy", "kl"])


def singles(early: float, late: float, n: int = 40, seed: int = 0, **more: Any) -> Run:
    """Six steps, each edited alone; early and late ones raise KL by so much."""
    draw = np.random.default_rng(seed)
    values = {k: np.abs((early if k < 3 else late) + 0.3 * draw.normal(size=n)) for k in range(6)}
    return planted({"alone": values}, metric="kl", base=0.0, **more)


def test_the_contrast_is_that_of_a_loop(ablated: Run) -> None:
    result = analysed(EarlyLate, ablated, metric="kl", by="reasoning_steps")
    losses = by_steps(ablated, "single", "kl", range(6))
    contrast = losses[:, 3:].mean(1) - losses[:, :3].mean(1)
    strata = ablated.baseline["reasoning_steps"].to_numpy()
    table = result.tables["contrast"].set_index("stratum")
    assert list(table.index) == ["all", "1", "2", "3", "4"]
    for name, row in table.iterrows():
        values = contrast if name == "all" else contrast[strata == int(str(name))]
        test = stats.ttest_1samp(values, 0)
        assert (row["mean"], row["p"], row["n"]) == (pytest.approx(values.mean()), pytest.approx(test.pvalue), len(values))
        assert row["late"] - row["early"] == pytest.approx(row["mean"])
        n = len(values)
        assert row["hedges_g"] == pytest.approx(values.mean() / values.std(ddof=1) * (1 - 3 / (4 * (n - 1) - 1)))
    np.testing.assert_allclose(table["q"], stats.false_discovery_control(table["p"]))
    np.testing.assert_allclose(result.tables["examples"]["contrast"], contrast)


def test_increments_of_a_cumulative_condition(ablated: Run) -> None:
    table = analysed(EarlyLate, ablated, metric="accuracy").tables["cumulative"]
    labels = ["+".join(map(str, range(i + 1))) for i in range(6)]
    losses = -by_steps(ablated, "grown", "accuracy", labels)
    added = np.diff(losses, axis=1, prepend=0.0)
    assert table["steps"].tolist() == labels
    assert table["added"].tolist() == list(range(6))
    np.testing.assert_allclose(table["mean"], losses.mean(0), atol=1e-15)
    np.testing.assert_allclose(table["increment"], added.mean(0), atol=1e-15)
    assert table["increment"].sum() == pytest.approx(table["mean"].iloc[-1])


def test_it_is_written_and_lines_are_short(ablated: Run) -> None:
    done = analyze_runs([ablated.path], ["early_late"], ["by=reasoning_steps", "metric=kl"])[0]
    assert set(done.figures) == {"contrast_by_stratum", "steps_by_stratum", "cumulative_curve"}
    assert set(done.tables) == {"contrast", "examples", "steps", "cumulative"}
    assert max(map(len, done.summary.splitlines())) <= 110


# ---------------------------------------------------------------------------------------------- planted


def test_planted_contrasts_are_found_and_none_is_not_invented() -> None:
    late = analysed(EarlyLate, singles(0.5, 1.5)).tables["contrast"].iloc[0]
    assert late["significant"]
    assert late["mean"] == pytest.approx(1.0, abs=0.1)
    assert not analysed(EarlyLate, singles(1.0, 1.0)).tables["contrast"].iloc[0]["significant"]


def test_cumulation_implies_a_contrast_and_is_refused() -> None:
    """Every step breaks a fifth of the answers, none more than another: sets that grow look late all the same."""
    breaks = np.random.default_rng(1).random((60, 6)) < 0.2
    grown = {"+".join(map(str, range(k + 1))): (~breaks[:, : k + 1].any(1)).astype(float) for k in range(6)}
    alone = {str(k): (~breaks[:, k]).astype(float) for k in range(6)}
    losses = 1 - np.array(list(grown.values()))
    assert stats.ttest_1samp(losses[3:].mean(0) - losses[:3].mean(0), 0).pvalue < 1e-6
    run = planted({"grown": grown})
    result = analysed(EarlyLate, run)
    assert set(result.tables) == {"cumulative"}
    assert "condition 'grown' is cumulative" in result.summary
    assert "The contrast is refused; edit one step at a time: sweep: {step: all}" in result.summary
    both = planted({"alone": alone, "grown": grown})
    assert not analysed(EarlyLate, both).tables["contrast"].iloc[0]["significant"]
    assert "contrast" not in analysed(EarlyLate, both, condition="grown").tables


def test_halves_are_chosen() -> None:
    run = singles(0.5, 1.5)
    per = by_steps(run, "alone", "kl", range(6))
    found = analysed(EarlyLate, run, early=[0, 5], late=[2]).tables["contrast"].iloc[0]
    assert found["mean"] == pytest.approx((per[:, 2] - per[:, [0, 5]].mean(1)).mean())
    split = analysed(EarlyLate, run, split=5).tables["contrast"].iloc[0]
    assert split["mean"] == pytest.approx((per[:, 5] - per[:, :5].mean(1)).mean())
    assert "split: 6 leaves no late step; it lies in 1..5" in refused(EarlyLate, run, split=6)
    assert "late: step 9 was not swept; there are 0, 1, 2, 3, 4, 5" in refused(EarlyLate, run, early=[0], late=[9])
    for options, message in (({"early": [0]}, "together"), ({"early": [0], "late": [0]}, "step 0 is in"), ({"split": 2, "early": [0], "late": [1]}, "either")):
        with pytest.raises(ValueError, match=message):
            EarlyLateOptions(**options)


def test_only_right_answers() -> None:
    base = np.array([1.0] * 15 + [0.0] * 5)
    values = {str(k): base * (np.arange(20) % (k + 2) > 0) for k in range(4)}
    run = planted({"alone": values}, base=base)
    assert analysed(EarlyLate, run, correct=True).tables["contrast"].iloc[0]["n"] == 15
    assert analysed(EarlyLate, run).tables["contrast"].iloc[0]["n"] == 20
    assert "add metrics: [accuracy]" in refused(EarlyLate, singles(1, 1), correct=True)
    assert "no example is answered right" in refused(EarlyLate, planted({"alone": values}, base=0.0), correct=True)


def test_strata_of_words_missing_values_and_missing_fields() -> None:
    words = ["easy", "hard", None, "hard"] * 10
    table = analysed(EarlyLate, singles(0.5, 1.5, fields={"level": words}), by="level").tables["contrast"].set_index("stratum")
    assert {k: int(v) for k, v in table["n"].items()} == {"all": 40, "easy": 10, "hard": 20, "missing": 10}
    assert "did you mean 'level'" in refused(EarlyLate, singles(1, 1, fields={"level": words}), by="levle")


def test_conditions_that_do_not_fit_are_named() -> None:
    several = planted({"sets": {"0+1": np.ones(4), "2+3": np.ones(4)}})
    assert "condition 'sets' edits several steps at once; edit one step at a time" in refused(EarlyLate, several)
    assert "edits one step only" in refused(EarlyLate, planted({"one": {"3": np.ones(4)}}))
    constant = analysed(EarlyLate, planted({"alone": {"0": np.zeros(5), "1": np.ones(5)}})).tables["contrast"].iloc[0]
    assert (constant["mean"], constant["note"]) == (-1.0, "constant: the same effect in every example; sign test")


@given(st.permutations(range(5)), st.integers(2, 5))
def test_growing_sets_are_cumulative_in_any_order(order: list[int], count: int) -> None:
    chain = [tuple(sorted(order[: k + 1])) for k in range(count)]
    assert is_cumulative(chain)
    assert is_cumulative(chain[::-1])
    assert not is_cumulative([(s,) for s in order])
    assert not is_cumulative(chain[1:])
