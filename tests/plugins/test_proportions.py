"""``proportions``: every number against a loop over scipy, the unit of inference, stated results, real runs of the demo."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_engine import Experiment, analyze, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.imports.importing import import_files
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs.drawing import drawn
from codi_engine.core.runs.work import Work
from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses import contrasts
from codi_engine.plugins.analyses.proportions import Proportions, ProportionsOptions
from codi_engine.plugins.metrics.outcome import OutcomeOptions

BETS: dict[str, Any] = {"pattern": r"final decision:\s*(?P<action>\w+)(?:\s*\$?(?P<bet>\d+))?", "categories": {"action": ["stop", "bet"]}, "numbers": ["bet"]}
PLUGINS = plugin_manager(load=False)
MAPS = [f"{t}={t}" for t in ("feature", "condition", "example", "trial")]


def cells(examples: int, trials: int, shifts: dict[str, float], seed: int = 0, features: int = 3, spread: float = 0.0) -> pd.DataFrame:
    """Answers right with a probability of each example's own, moved by the condition at the first feature; a number beside it."""
    draw = np.random.default_rng(seed)
    rows = []
    own = np.clip(0.5 + spread * draw.normal(size=examples), 0.05, 0.95)
    for f in range(features):
        for condition, shift in shifts.items():
            for e in range(examples):
                for t in range(trials):
                    p = own[e] + (shift if f == 0 else 0.0)
                    right, number = float(draw.random() < p), float(np.round(draw.normal() * 3 + 10 * e + 4 * shift * (f == 0)))
                    at = {"feature": f"L{f}-{10 + f}", "condition": condition, "example": f"e{e}", "trial": t}
                    rows.append({**at, "right": right, "number": number})
    return pd.DataFrame(rows)


def written(frame: pd.DataFrame, path: Path, *more: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".jsonl").write_text("".join(json.dumps(r) + "\n" for r in frame.to_dict("records")), encoding="utf-8")
    return import_files([path.with_suffix(".jsonl")], [*MAPS, *more], output=path).path


def one(run: Path, **options: Any) -> AnalysisResult:
    """Analyse without writing figures to disk, which takes longer than everything else."""
    made: AnalysisResult = PLUGINS.build("analysis", {"plugin": "proportions", **options}, "analyses", "e.yaml").analyze([open_run(run)], Work())
    return made


def table(done: AnalysisResult, name: str = "proportions") -> pd.DataFrame:
    return done.tables[name]


METRICS = ("metrics/right=right", "metrics/number=number")


@pytest.mark.parametrize("trials", [1, 4])
def test_examples_are_the_unit_where_there_are_enough(tmp_path: Path, trials: int) -> None:
    frame = cells(20, trials, {"baseline": 0.0, "patch": 0.4}, spread=0.2)
    done = one(written(frame, tmp_path / "run", *METRICS), metrics=["right", "number"])
    got = table(done)
    assert len(got) == 6
    for _, row in got.iterrows():
        part = frame[frame["feature"] == row["feature"]]
        a, b = (part[part["condition"] == c].groupby("example")[row["metric"]].mean() for c in ("patch", "baseline"))
        assert (row["mean"], row["mean_against"], row["difference"]) == pytest.approx((a.mean(), b.mean(), (a - b).mean()))
        assert row["n"] == 20
        if trials == 1 and row["metric"] == "right":
            discordant = [int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())]
            assert row["test"] == "McNemar"
            assert row["p"] == pytest.approx(stats.binomtest(discordant[0], sum(discordant)).pvalue)
        else:
            expected = stats.ttest_rel(a, b)
            interval = expected.confidence_interval(0.95)
            assert row["test"] == "paired t" or trials == 1
            assert row["p"] == pytest.approx(expected.pvalue)
            assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
        assert row["ci_low"] <= row["difference"] <= row["ci_high"]
    np.testing.assert_allclose(got["q"], adjust(got["p"].to_numpy(), "bh"))
    assert "these prompts only" not in done.summary
    assert f"20 examples{', their 4 trials averaged' if trials > 1 else ''}" in done.summary


def test_draws_of_one_prompt_are_fishers_and_mann_whitneys(tmp_path: Path) -> None:
    frame = cells(1, 30, {"baseline": 0.0, "patch": 0.4, "other": -0.3})
    got = table(done := one(written(frame, tmp_path / "run", *METRICS), metrics=["right", "number"]))
    assert len(got) == 3 * 2 * 2
    for _, row in got.iterrows():
        part = frame[frame["feature"] == row["feature"]]
        a, b = (part[part["condition"] == c][row["metric"]].to_numpy() for c in (row["condition"], "baseline"))
        if row["metric"] == "right":
            expected = stats.fisher_exact([[a.sum(), 30 - a.sum()], [b.sum(), 30 - b.sum()]])
            assert row["p"] == pytest.approx(expected.pvalue)
            assert row["odds_ratio"] == pytest.approx(expected.statistic)
            assert row["effect_size"] == pytest.approx(2 * np.arcsin(np.sqrt(a.mean())) - 2 * np.arcsin(np.sqrt(b.mean())))
        else:
            assert row["p"] == pytest.approx(stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=False).pvalue)
            interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
            assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert "speaks about these prompts only" in done.summary


def test_draws_of_several_prompts_are_compared_within_them(tmp_path: Path) -> None:
    """Prompts as different as can be: pooled they would hide the effect, within them it is seen."""
    frame = cells(2, 30, {"baseline": 0.0, "patch": 0.3})
    frame["number"] = frame["number"] + 100 * (frame["example"] == "e1")
    got = table(one(written(frame, tmp_path / "run", *METRICS), metrics=["right", "number"])).set_index(["feature", "metric"])
    shares = got.xs("right", level="metric")
    for feature, row in shares.iterrows():
        part = frame[frame["feature"] == feature]
        counts = part.groupby(["condition", "example"])["right"].sum()
        difference = np.mean([(counts["patch", e] - counts["baseline", e]) / 30 for e in ("e0", "e1")])
        assert row["difference"] == pytest.approx(difference)
        assert (row["n"], row["n_against"], row["test"]) == (60, 60, "exact Cochran–Mantel–Haenszel")
    numbers = frame[frame["feature"] == "L0-10"]
    apart = [numbers[(numbers["condition"] == c)]["number"] for c in ("patch", "baseline")]
    assert got.loc[("L0-10", "number"), "p"] < stats.mannwhitneyu(*apart).pvalue


def test_false_discoveries_stay_at_the_stated_rate() -> None:
    """No effect, but conditions that move each example its own way: trials of an example are no independent observations."""
    draw = np.random.default_rng(0)
    targets, examples, trials = 3000, 10, 8
    rates = np.clip(0.5 + 0.3 * draw.normal(size=(2, targets, examples, 1)), 0.02, 0.98)
    a, b = (draw.random((2, targets, examples, trials)) < rates).astype(float)
    by_example, by_draw = contrasts._by_example(a, b, False, 0.95), contrasts._shares_by_draw(a, b, 0.95)
    assert abs(np.mean(by_example.p < 0.05) - 0.05) < 3 * np.sqrt(0.05 * 0.95 / targets)
    covered = (by_example.low <= 0) & (by_example.high >= 0)
    assert abs(np.mean(covered) - 0.95) < 3 * np.sqrt(0.05 * 0.95 / targets)
    assert np.mean(by_draw.p < 0.05) > 0.15  # why trials are the unit only where it is said of what they speak


def test_exact_tests_never_exceed_their_level() -> None:
    draw = np.random.default_rng(1)
    a, b = (draw.random((2, 1500, 2, 30)) < np.array([0.2, 0.7])[:, None]).astype(float)
    found = contrasts._shares_by_draw(a, b, 0.95)
    assert np.mean(found.p < 0.05) < 0.05 + 2 * np.sqrt(0.05 * 0.95 / 1500)
    assert np.mean((found.low <= 0) & (found.high >= 0)) > 0.95 - 2 * np.sqrt(0.05 * 0.95 / 1500)


def test_shares_are_counted_with_wilsons_interval(tmp_path: Path) -> None:
    frame = cells(9, 1, {"baseline": 0.0, "patch": 0.2})
    got = table(one(written(frame, tmp_path / "run", METRICS[0])), "shares")
    for _, row in got.iterrows():
        values = frame[(frame["feature"] == row["feature"]) & (frame["condition"] == row["condition"])]["right"]
        expected = stats.binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
        assert (row["count"], row["cells"], row["n"]) == (values.sum(), 9, 9)
        assert (row["mean"], row["ci_low"], row["ci_high"]) == pytest.approx((values.mean(), expected.low, expected.high))


def test_what_never_varies_is_no_test(tmp_path: Path) -> None:
    frame = cells(8, 1, {"baseline": 0.0, "patch": 0.2}, features=2)
    frame.loc[frame["feature"] == "L1-11", "right"] = 1.0
    done = one(written(frame, tmp_path / "run", METRICS[0]))
    got = table(done).set_index("feature").to_dict("index")
    assert [got["L1-11"][name] for name in ("p", "q", "tested", "note")] == [1.0, 1.0, False, "constant: no test"]
    assert got["L0-10"]["p"] == got["L0-10"]["q"]  # the only one of its family
    assert "1 without any spread" in done.summary


def test_a_design_that_can_find_nothing_says_so(tmp_path: Path) -> None:
    done = one(written(cells(6, 1, {"baseline": 0.0, "patch": 0.3}, features=12), tmp_path / "run", METRICS[0]))
    assert "no test can have p below 0.031" in done.summary


def test_stored_texts_are_read_by_a_pattern(tmp_path: Path) -> None:
    frame = cells(2, 12, {"baseline": 0.0, "patch": 0.3}).drop(columns="number")
    frame["text"] = np.where(frame["right"] == 1, "Final decision: BET $10", "final decision: stop")
    frame.loc[frame["trial"] == 3, "text"] = "well"
    run = written(frame, tmp_path / "run", "text=text")
    done = one(run, outcome=BETS)
    shares = table(done, "shares")
    sums = shares[shares["metric"].str.startswith("action=")].groupby(["feature", "condition"])["mean"].sum()
    np.testing.assert_allclose(sums, 1.0)
    bet = shares[(shares["metric"] == "action=bet") & (shares["condition"] == "patch")].set_index("feature")["count"]
    known = frame[(frame["condition"] == "patch") & (frame["trial"] != 3)].groupby("feature")["right"].sum()
    assert bet.to_dict() == known.to_dict()
    assert set(drawn(Proportions(ProportionsOptions(outcome=OutcomeOptions.model_validate(BETS))), done)) == {
        "action",
        "strongest",
    }  # every bet is 10: no number to draw
    with pytest.raises(UserError, match="no group"):
        one(run, outcome={**BETS, "numbers": ["sum"]})


def test_wrong_questions_are_answered_in_words(tmp_path: Path) -> None:
    run = written(cells(2, 3, {"baseline": 0.0, "patch": 0.0}), tmp_path / "run", *METRICS)
    for options, word in (
        ({"metrics": ["rihgt"]}, "did you mean 'right'"),
        ({"metrics": ["answer_class"]}, "clean_answer"),
        ({"pairs": [["patch", "safe"]]}, "condition 'safe'"),
        ({"keep": "correct"}, "accuracy"),
        ({"classes": {"a": ["b"]}}, "not among the columns"),
        ({"outcome": BETS}, "no texts"),
    ):
        with pytest.raises(UserError, match=word) as caught:
            one(run, **options)
        assert str(caught.value).count("\n") <= 1
    single = written(cells(1, 1, {"baseline": 0.0, "patch": 0.0}), tmp_path / "single", *METRICS)
    with pytest.raises(UserError, match="one of each"):
        one(single)
    with pytest.raises(UserError, match="at least two examples"):
        one(written(cells(1, 5, {"baseline": 0.0, "patch": 0.0}), tmp_path / "prompt", *METRICS), unit="example")


def test_pairs_of_the_demo(demo: Callable[..., Experiment]) -> None:
    run = run_experiment(
        demo(
            data={"plugin": "demo-pairs", "limit": 10},
            intervention={"plugin": "patch", "site": "resid_post", "direction": "denoise"},
            sweep={"layer": [1, 3], "step": [0, 5]},
            metrics=["accuracy", "answer_class", "kl"],
        )
    ).open()
    written = analyze(run.path, "proportions")[0]
    done = written.result
    assert done is not None
    assert all(path.stat().st_size > 5000 for path in written.figures.values())
    frame = run.cells
    base, edited = frame[frame["condition"] == "baseline"], frame[frame["condition"] != "baseline"]
    right = base.groupby("example")["accuracy"].min()
    valid = right[right == 1].index
    recovery = table(done, "recovery")
    for _, row in recovery.iterrows():
        part = edited[(edited["layer"] == row["layer"]) & (edited["step"] == row["step"]) & edited["example"].isin(valid)]
        assert (row["toward"], row["valid"], row["count"]) == ("clean_answer", len(valid), part["clean_answer"].sum())
        assert row["share"] == pytest.approx(part["clean_answer"].mean())
    assert f"of {len(valid)} valid pairs" in done.summary
    assert "accuracy is the same as corrupted_answer" in done.summary  # the corrupted prompt runs
    tests = table(done)
    assert "accuracy" not in set(tests["metric"])
    row = tests[(tests["layer"] == 1) & (tests["step"] == 0) & (tests["metric"] == "clean_answer")].iloc[0]
    first = edited[(edited["layer"] == 1) & (edited["step"] == 0)].set_index("example")["clean_answer"]
    own = base[base["variant"] == "corrupted"].set_index("example")["clean_answer"].reindex(first.index)
    counts = int(((first == 1) & (own == 0)).sum()), int(((first == 0) & (own == 1)).sum())
    assert row["p"] == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)
    assert set(written.figures) == {"answer_class", "strongest"}
    kept = table(one(run.path, keep="correct"), "shares")
    assert set(kept["n"]) == {len(valid)}
    unedited = kept[kept["condition"] == "baseline"].set_index("metric")["mean"]
    assert unedited["corrupted_answer"] == 1.0  # the prompts that were run, all right


def test_donors_are_averaged_and_compared_with_an_ablation(demo: Callable[..., Experiment]) -> None:
    """A resampling run and an ablation of the same steps: proportions of one, importance profiles of both by ``compare_runs``."""
    keys: dict[str, Any] = {"data": {"plugin": "demo-problems", "limit": 6}, "metrics": ["accuracy", "flip", "kl"]}
    resampled = demo(**keys, name="r", intervention={"plugin": "resample", "site": "latent_in"}, sweep={"step": [0, 1, 5], "donor": 3})
    zeroed = demo(**keys, name="z", intervention={"plugin": "zero", "site": "latent_in"}, sweep={"step": [0, 1, 5]})
    runs = [run_experiment(e).path for e in (resampled, zeroed)]
    assert "6 examples, their 3 trials averaged" in one(runs[0]).summary
    compared = analyze(runs, "compare_runs")[0]
    assert compared.result is not None
    places = compared.result.tables["places"].set_index("step")
    for side, path in zip("ab", runs, strict=True):
        edited = open_run(path).cells
        edited = edited[edited["condition"] != "baseline"]
        means = edited.groupby(["step", "example"])["kl"].mean().groupby("step").mean()
        np.testing.assert_allclose(places.loc[means.index, f"effect_{side}"], means)
