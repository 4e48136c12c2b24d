"""``shapley``: every value against a walk through all orders, axioms, sufficient sets, real runs, bad input."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.runs.drawing import drawn
from codi_engine.core.runs.results import Run
from codi_engine.plugins.analyses import coalitions, stepping
from codi_engine.plugins.analyses.shapley import Shapley
from tests.support.steps import ZERO, analysed, by_steps, demo_run, planted, refused


@pytest.fixture(scope="module")
def ablated(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("subsets")
    data = {"plugin": "demo-problems", "sample": {"by": "reasoning_steps", "per_stratum": 2}}
    return demo_run(folder, data=data, intervention=ZERO, sweep={"step": "subsets"}, metrics=["accuracy", "kl", "flip"])


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Run:
    patch = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
    sweep = {"step": [[0], [1], [2], [0, 1], [0, 2], [1, 2], [0, 1, 2]], "layer": [1, 2]}
    folder = tmp_path_factory.mktemp("patched")
    return demo_run(folder, data={"plugin": "demo-pairs", "limit": 8}, intervention=patch, sweep=sweep, metrics=["normalized_effect", "kl"])


# ---------------------------------------------------------------------------------------------- values


def by_orders(game: np.ndarray, count: int) -> np.ndarray:
    """Shapley's value as the mean marginal contribution over all K! orders in which players join."""
    total = np.zeros(count)
    for order in itertools.permutations(range(count)):
        mask = 0
        for player in order:
            total[player] += game[mask | 1 << player] - game[mask]
            mask |= 1 << player
    return total / math.factorial(count)


def reduced(game: np.ndarray, count: int, keep: list[tuple[int, ...]]) -> np.ndarray:
    """The game of some players only, a tuple of several being one player."""
    masks = [sum(1 << p for p in players) for players in keep]
    return np.array([game[sum(m for i, m in enumerate(masks) if chosen >> i & 1)] for chosen in range(2 ** len(keep))])


def interaction(game: np.ndarray, count: int, i: int, j: int) -> float:
    """The recursive axiom of Grabisch & Roubens: φ of the merged player minus φ of each without the other."""
    others = [(p,) for p in range(count) if p not in (i, j)]
    merged = by_orders(reduced(game, count, [(i, j), *others]), count - 1)[0]
    alone = [by_orders(reduced(game, count, [(p,), *others]), count - 1)[0] for p in (i, j)]
    return float(merged - sum(alone))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_values_and_interactions_are_those_of_all_orders(count: int) -> None:
    games = np.random.default_rng(count).normal(size=(3, 2**count))
    values, links = games @ coalitions.shapley_weights(count).T, games @ coalitions.interaction_weights(count).T
    for game, value, link in zip(games, values, links, strict=True):
        np.testing.assert_allclose(value, by_orders(game, count), atol=1e-12)
        expected = [interaction(game, count, i, j) for i, j in itertools.combinations(range(count), 2)]
        np.testing.assert_allclose(link, expected, atol=1e-12)
        for i, banzhaf in enumerate(coalitions.banzhaf_weights(count) @ game):
            assert banzhaf == pytest.approx(np.mean([game[m | 1 << i] - game[m] for m in range(2**count) if not m >> i & 1]))


@settings(max_examples=30, deadline=None)
@given(arrays(np.float64, 16, elements=st.floats(-100, 100, allow_subnormal=False)))
def test_axioms(game: np.ndarray) -> None:
    """Efficiency; a dummy player gets its own worth and interacts with none."""
    weights = coalitions.shapley_weights(4)
    assert (weights @ game).sum() == pytest.approx(game[-1] - game[0], abs=1e-9)
    dummy = np.array([game[m & 7] + (5.0 if m >> 3 else 0.0) for m in range(16)])
    assert (weights @ dummy)[3] == pytest.approx(5.0)
    pairs = list(itertools.combinations(range(4), 2))
    assert [v for v, (_, j) in zip(coalitions.interaction_weights(4) @ dummy, pairs, strict=True) if j == 3] == pytest.approx([0, 0, 0], abs=1e-9)


@given(st.sets(st.integers(0, 31), max_size=12))
def test_minimal_sets_hold_no_other(found: set[int]) -> None:
    least = coalitions.minimal(sorted(found))
    assert all(any(m & f == m for m in least) for f in found)
    assert not any(a != b and a & b == a for a in least for b in least)


# ---------------------------------------------------------------------------------------------- real runs


def games_of(run: Run, condition: str, metric: str, count: int, **at: Any) -> np.ndarray:
    """Examples × masks from the cells, one at a time."""
    sets = [tuple(i for i in range(count) if m >> i & 1) for m in range(1, 2**count)]
    return np.hstack([np.zeros((len(set(run.cells["example"])), 1)), by_steps(run, condition, metric, [stepping.set_name(s) for s in sets])])


def test_values_of_an_ablation(ablated: Run) -> None:
    result = analysed(Shapley, ablated, metric="kl")
    games = games_of(ablated, "zero", "kl", 6)
    expected = np.array([by_orders(g, 6) for g in games])
    values = result.tables["values"]
    np.testing.assert_allclose(values["mean"], expected.mean(0), atol=1e-12)
    np.testing.assert_allclose(result.tables["examples"].filter(like="step_"), expected, atol=1e-12)
    assert values["n"].tolist() == [8] * 6
    for i, row in values.iterrows():
        test = stats.ttest_1samp(expected[:, int(str(i))], 0.0)
        assert (row["p"], row["ci_low"]) == pytest.approx((test.pvalue, test.confidence_interval(0.95).low))
    q = stats.false_discovery_control(np.concatenate([values["p"], result.tables["interactions"]["p"]]))
    np.testing.assert_allclose(np.concatenate([values["q"], result.tables["interactions"]["q"]]), q)
    whole = result.tables["efficiency"].iloc[0]
    assert whole["sum_of_values"] == pytest.approx(games[:, -1].mean())
    assert whole["largest_deviation"] < 1e-12
    sizes = result.tables["sizes"]
    assert sizes["sets"].tolist() == [1, 6, 15, 20, 15, 6, 1]
    assert sizes["mean"].tolist()[3] == pytest.approx(np.mean([games[:, m].mean() for m in range(64) if m.bit_count() == 3]))


def naive_share(run: Run, kept: tuple[int, ...]) -> float:
    edited = [s for s in range(6) if s not in kept]
    base = run.baseline["accuracy"].to_numpy(float)
    if not edited:
        return 1.0
    cells = run.cells[run.cells["step"].astype(str) == stepping.set_name(edited)]
    return float(cells["accuracy"].mean() / base.mean())


def test_sufficient_sets_keep_the_accuracy(ablated: Run) -> None:
    result = analysed(Shapley, ablated, metric="accuracy", threshold=0.75)
    table = result.tables["sufficient"]
    assert len(table) == 64
    for row in table.itertuples():
        kept = () if row.steps == "none" else tuple(map(int, str(row.steps).split("+")))
        assert row.share == pytest.approx(naive_share(ablated, kept))
    reaching = table[table["share"] >= 0.75]
    assert table["reaches"].sum() == len(reaching) > 0
    assert set(table.loc[table["smallest"], "steps"]) == set(reaching.loc[reaching["size"] == reaching["size"].min(), "steps"])
    assert (table.loc[table["certain"], "ci_low"] >= 0.75).all()
    assert set(table["reference"]) == {"the unedited run"}
    everything = table[table["size"] == 6].iloc[0]
    assert (everything["share"], everything["n"]) == (1.0, 8)


def test_flips_and_divergences_have_their_own_references(ablated: Run) -> None:
    flips = analysed(Shapley, ablated, metric="flip").tables["sufficient"].set_index("steps")
    cells: Any = ablated.cells
    assert flips.loc["0+1+2", "share"] == pytest.approx(1 - cells.loc[cells["step"].astype(str) == "3+4+5", "flip"].mean())
    kl = analysed(Shapley, ablated, metric="kl").tables["sufficient"].set_index("steps")
    mean = cells.groupby(cells["step"].astype(str))["kl"].mean()
    assert kl.loc["0+1+2", "share"] == pytest.approx(1 - mean["3+4+5"] / mean["0+1+2+3+4+5"])
    assert (kl.loc["none", "share"], kl.loc["0+1+2+3+4+5", "share"]) == (0.0, 1.0)


def test_patches_reach_the_other_run_and_one_layer_is_chosen(patched: Run) -> None:
    assert "swept over layer too (1, 2); choose one: at={layer: 1}" in refused(Shapley, patched)
    assert "has no layer 3; it has 1, 2" in refused(Shapley, patched, at={"layer": 3})
    assert "is no other axis" in refused(Shapley, patched, at={"layr": 3})
    result = analysed(Shapley, patched, at={"layer": 2})
    cells: Any = patched.cells[patched.cells["layer"] == 2]
    mean = cells.groupby("step")["normalized_effect"].mean()
    table = result.tables["sufficient"].set_index("steps")
    assert table.loc["0+2", "share"] == pytest.approx(mean["0+2"])
    assert set(table["reference"]) == {"the other prompt's run"}
    assert table.loc["none", "share"] == 0.0
    all_of = analysed(Shapley, patched, at={"layer": 2}, metric="kl").tables["sufficient"].set_index("steps")
    assert all_of.loc["0+1+2", "share"] == pytest.approx(1.0)


def test_results_are_written_and_lines_are_short(ablated: Run) -> None:
    done = analyze_runs([ablated.path], ["shapley"], ["metric=kl"])[0]
    assert set(done.figures) == {"values", "interactions", "sizes"}
    assert set(done.tables) >= {"values", "interactions", "sets", "sizes", "sufficient", "efficiency", "examples"}
    assert max(map(len, done.summary.splitlines())) <= 96
    assert "zero: Shapley value of editing each step, kl (n = 8 examples)" in done.summary


# ------------------------------------------------------------------------------------------- planted, refused


def game(values: dict[str, list[float]], **more: Any) -> Any:
    return analysed(Shapley, planted({"zero": {k: np.array(v, float) for k, v in values.items()}}, **more), metric="accuracy")


def test_a_missing_set_is_named() -> None:
    run = planted({"zero": {"0": np.ones(3), "1": np.ones(3)}})
    assert "condition 'zero' has 2 of the 3 sets of steps 0–1 (0+1 is not there); sweep: {step: subsets}" in refused(Shapley, run)
    both = planted({"a": {"0": np.ones(3)}, "b": {"0": np.zeros(3)}})
    assert "several conditions would do: a, b" in refused(Shapley, both)
    assert "did you mean" in refused(Shapley, both, condition="aa")


def test_undefined_examples_are_left_out_and_counted() -> None:
    result = game({"0": [0, 1, np.nan, 0], "1": [1, 1, 1, 1], "0+1": [0, 0, 0, 0]})
    assert result.tables["efficiency"].iloc[0]["left_out"] == 1
    assert result.tables["values"]["n"].tolist() == [3, 3]
    assert "left out: 1 examples" in result.summary


def test_an_edit_without_effect_says_so() -> None:
    result = game({"0": [1, 1, 1], "1": [1, 1, 1], "0+1": [1, 1, 1]})
    assert result.tables["values"]["note"].tolist() == ["constant: no effect in any example"] * 2
    assert "100% is the unedited run): 1 with 0 steps" in result.summary
    flat = analysed(Shapley, planted({"zero": {k: np.zeros(3) for k in ("0", "1", "0+1")}}, metric="kl", base=0.0))
    assert "sufficient sets: the reference is 0: no share can be formed" in flat.summary


def test_one_step_has_no_interactions() -> None:
    result = game({"3": [0, 1, 0, 1]})
    assert result.tables["values"]["mean"].tolist() == [-0.5]
    assert result.tables["interactions"].empty
    assert "interactions" not in drawn(Shapley(Shapley.Options()), result)


# ---------------------------------------------------------------------------------------------- ratios


def test_ratio_of_means() -> None:
    draw = np.random.default_rng(0)
    b = draw.normal(5, 1, 4000)
    a = 0.7 * b + draw.normal(0, 0.5, 4000)
    found = stepping.ratio(a, b, 0.95)
    resampled = [a[i].mean() / b[i].mean() for i in draw.integers(0, 4000, (2000, 4000))]
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=1e-3)
    constant = stepping.ratio(a[:9], np.full(9, 2.0), 0.9)
    expected = stats.ttest_1samp(a[:9] / 2, 0).confidence_interval(0.9)
    assert (constant["ci_low"], constant["ci_high"]) == pytest.approx((expected.low, expected.high))
    shares = stepping.ratio(np.array([1.0, 1, 0, 1]), np.ones(4), 0.95)
    wilson = stats.binomtest(3, 4).proportion_ci(method="wilson")
    assert (shares["ci_low"], shares["ci_high"]) == pytest.approx((wilson.low, wilson.high))


def test_ratios_that_are_undefined_say_so() -> None:
    assert stepping.ratio(np.ones(3), np.zeros(3), 0.95)["note"] == "the reference is 0: no share can be formed"
    assert stepping.ratio(np.array([np.nan]), np.ones(1), 0.95)["note"] == "no example"
    one = stepping.ratio(np.array([2.0, np.nan]), np.array([4.0, 1.0]), 0.95)
    assert (one["ratio"], one["n"], one["missing"], one["note"]) == (0.5, 1, 1, "one example: no interval")
