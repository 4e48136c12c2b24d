"""Probes against normal equations, planted signals, leaking groups, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import codi_engine
from codi_engine.core.errors import UserError
from codi_engine.core.runs.reload import gold_answers, reload_data
from codi_engine.core.runs.results import Run
from codi_engine.plugins.analyses import linear, probes, targets
from codi_engine.plugins.analyses.states import States
from tests.support.captured import captured_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return captured_run(tmp_path_factory.mktemp("probes"), ["resid_post@latent", "latent_out"], 120)


def one(x: np.ndarray, groups: np.ndarray, numbers: np.ndarray | None = None, classes: np.ndarray | None = None, **options: Any) -> dict[str, Any]:
    """Probe one place and return its row."""
    made = probes.Probes(probes.ProbesOptions(**options))
    count = 0 if classes is None else int(classes.max()) + 1
    known = targets.Labels(np.arange(len(x)), 0, numbers, classes, tuple(map(str, range(count))))
    return probes._row(made._one(x.astype(np.float32), known, groups))


# ---------------------------------------------------------------------------------------------- the fits


@pytest.mark.parametrize("shape", [(30, 5), (12, 40)])
def test_ridge_solves_the_normal_equations(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x, y, new = rng.normal(size=shape), rng.normal(size=(shape[0], 3)), rng.normal(size=(7, shape[1]))
    found = linear.ridge(x, y, new, [0.01, 2.0])
    for strength, predicted in zip([0.01, 2.0], found, strict=True):
        wide = np.c_[x, np.ones(len(x))]  # the intercept is a feature without penalty
        penalty = strength * len(x) * np.diag([1.0] * shape[1] + [0.0])
        beta = np.linalg.solve(wide.T @ wide + penalty, wide.T @ y)
        np.testing.assert_allclose(predicted, np.c_[new, np.ones(7)] @ beta, rtol=1e-6, atol=1e-8)


def test_probe_of_numbers_is_that_of_loops() -> None:
    """Folds, standardisation, choice of the penalty and R², written out with one target and one fit at a time."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(20), 2)
    x = rng.normal(size=(40, 6)) * [1, 10, 0.1, 1, 1, 1] + 5
    y = x[:, 0] + 0.05 * x[:, 1] + rng.normal(size=40)
    found = linear.probe_numbers(x, np.stack([y, -y], 1), groups, 4, 3)
    held, scores, gain, total = linear.fold_of(groups, None, 4, 3), [], 0.0, 0.0
    for fold in range(4):
        a, b = held != fold, held == fold
        z = (x - x[a].mean(0)) / x[a].std(0)
        local = np.unique(groups[a], return_inverse=True)[1]
        inner = linear.fold_of(local, None, 3, 4 + fold)
        errors = []
        for strength in linear.STRENGTHS:
            error = 0.0
            for k in range(3):
                error += ((_fit(z[a][inner != k], y[a][inner != k], z[a][inner == k], strength) - y[a][inner == k]) ** 2).sum()
            errors.append(error)
        best = linear.STRENGTHS[int(np.argmin(errors))]
        residual, around = ((_fit(z[a], y[a], z[b], best) - y[b]) ** 2).sum(), ((y[b] - y[a].mean()) ** 2).sum()
        scores.append(1 - residual / around)
        gain, total = gain + around - residual, total + around
        assert found[0].strengths[fold] == best
    np.testing.assert_allclose(found[0].folds, scores)
    assert found[0].score == pytest.approx(gain / total)
    assert found[1].score == pytest.approx(found[0].score)  # a target and its negative are read equally well


def _fit(x: np.ndarray, y: np.ndarray, new: np.ndarray, strength: float) -> np.ndarray:
    centred = x - x.mean(0)
    beta = np.linalg.solve(centred.T @ centred + strength * len(x) * np.eye(x.shape[1]), centred.T @ (y - y.mean()))
    predicted: np.ndarray = (new - x.mean(0)) @ beta + y.mean()
    return predicted


def test_logistic_minimises_the_stated_loss() -> None:
    from scipy.optimize import minimize

    rng = np.random.default_rng(2)
    x, new = rng.normal(size=(60, 3)), rng.normal(size=(200, 3))
    y = (x @ rng.normal(size=(3, 3)) + rng.gumbel(size=(60, 3))).argmax(1)

    def loss(flat: np.ndarray) -> float:
        beta, free = flat[:9].reshape(3, 3), flat[9:]
        z = x @ beta + free
        return float(np.mean(np.logaddexp.reduce(z, 1) - z[np.arange(60), y]) + 0.1 / 2 * (beta**2).sum())

    best = minimize(loss, np.zeros(12), method="BFGS").x
    expected = (new @ best[:9].reshape(3, 3) + best[9:]).argmax(1)
    predicted, unfinished = linear.logistic(x, y, new, [0.1, 1.0])
    assert (predicted[0] == expected).mean() > 0.985  # but for ties at the border
    assert unfinished == 0
    assert (linear.logistic(x, np.ones(60, int), new, [0.1])[0] == 1).all()


# ------------------------------------------------------------------------------------- folds and shuffles


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 6), st.booleans())
def test_folds_keep_groups_whole_and_are_even(seed: int, folds: int, classed: bool) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(folds, 40))
    groups = rng.permutation(np.repeat(np.arange(count), rng.integers(1, 4, count)))
    of_group = rng.integers(0, 3, count)
    held = linear.fold_of(groups, of_group[groups] if classed else None, folds, seed)
    assert all(len(set(held[groups == g])) == 1 for g in range(count))
    sizes = np.bincount(held, minlength=folds)
    assert sizes.max() - sizes.min() <= 3  # the largest group
    if classed and (np.bincount(groups) == 1).all():
        for c in range(3):
            mine = np.bincount(held[of_group[groups] == c], minlength=folds)
            assert mine.max() - mine.min() <= 1


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31))
def test_shuffles_move_whole_groups(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(9), 3))
    labels = rng.integers(0, 50, 27)
    moved = linear.shuffled(labels, groups, seed)
    blocks = sorted(tuple(sorted(labels[groups == g])) for g in range(9))
    assert sorted(tuple(sorted(moved[groups == g])) for g in range(9)) == blocks
    ragged = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    constant = linear.shuffled(ragged * 10, ragged, seed)  # one label a group stays one label a group
    assert all(len(set(constant[ragged == g])) == 1 for g in range(6))


def test_interval_of_accuracy_is_the_t_interval() -> None:
    from scipy import stats

    right = np.array([1.0] * 30 + [0.0] * 12)
    found = linear.interval(linear.Probed(right, np.ones(42), np.zeros(0), np.zeros(0)), 0.9)
    expected = stats.ttest_1samp(right, 0.0).confidence_interval(0.9)
    assert found == pytest.approx((expected.low, expected.high))


# ------------------------------------------------------------------------------------------- what is found


def test_a_planted_direction_is_found() -> None:
    rng = np.random.default_rng(0)
    x, direction = rng.normal(size=(150, 20)), rng.normal(size=20)
    y = x @ direction + 0.3 * rng.normal(size=150)
    row = one(x, np.arange(150), numbers=y, repeats=99)
    assert row["score"] > 0.95
    assert row["p"] == 0.01
    assert row["low"] < row["score"] < row["high"]
    assert abs(row["control"]) < 0.1
    assert row["rmse"] < 0.25 * row["rmse_baseline"]
    row = one(x, np.arange(150), classes=(y > 1).astype(int), repeats=3)
    assert row["score"] > 0.85 > row["baseline"] + 0.1
    assert row["p"] == 0.25
    assert row["selectivity"] == row["score"] - row["control"]


def test_without_a_signal_scores_are_those_of_the_controls() -> None:
    """p is uniform: 60 data sets without a signal, some of their groups with several rows."""
    found = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        groups = np.repeat(np.arange(16), rng.integers(1, 3, 16))
        found.append(one(rng.normal(size=(len(groups), 4)), groups, numbers=rng.normal(size=len(groups)), repeats=19, folds=4)["p"])
    p = np.array(found)
    assert 0.4 < p.mean() < 0.6
    assert (p <= 0.1).mean() <= 0.1 + 2.5 * np.sqrt(0.09 / 60)
    rng = np.random.default_rng(5)
    row = one(rng.normal(size=(120, 8)), np.arange(120), classes=rng.integers(0, 2, 120), repeats=8)
    assert abs(row["selectivity"]) < 4 * np.sqrt(0.25 / 120)


def test_a_feature_that_tells_groups_apart_says_nothing_of_held_out_ones() -> None:
    """Ten rows a group lie in one spot and share one random label: rows held out singly are read, whole groups are not."""
    rng = np.random.default_rng(4)
    groups = np.repeat(np.arange(24), 10)
    x = rng.normal(size=(24, 30))[groups] + 0.01 * rng.normal(size=(240, 30))
    classes, numbers = np.repeat([0, 1], 12)[rng.permutation(24)][groups], rng.normal(size=24)[groups]
    assert one(x, np.arange(240), classes=classes, repeats=1)["score"] > 0.99
    held = one(x, groups, classes=classes, repeats=5)
    assert held["score"] < 0.75
    assert abs(held["selectivity"]) < 0.3
    assert one(x, np.arange(240), numbers=numbers, repeats=1)["score"] > 0.99
    assert one(x, groups, numbers=numbers, repeats=19)["score"] < 0.3


# ----------------------------------------------------------------------------------------------- on a run


def test_on_the_demo_model(run: Run) -> None:
    done = codi_engine.analyze(run, "probes", site="resid_post@latent", target="reasoning_steps", repeats=49)[0]
    assert done.result is not None
    table = done.result.tables["probes"]
    assert table[["layer", "step"]].apply(tuple, axis=1).tolist() == [(layer, step) for layer in range(4) for step in range(6)]
    assert table["score"].max() > 0.7
    assert table["significant"].all()
    assert "24 of 24 places above their controls" in done.summary
    assert "p cannot fall below 0.02: no place alone" in done.summary
    assert set(done.figures) == {"score", "selectivity", "curve"}
    states = run.activations("resid_post@latent").sel(layer=2, step=4).values
    y = run.baseline["reasoning_steps"].to_numpy(float)
    again = linear.probe_numbers(states, y[:, None], np.arange(120), 5, 0)[0]
    row = table[(table["layer"] == 2) & (table["step"] == 4)].iloc[0]
    assert row["score"] == pytest.approx(again.score)
    assert (row["low"], row["high"]) == pytest.approx(linear.interval(again, 0.95))


def test_memory_and_threads_change_nothing(run: Run) -> None:
    results = []
    for options in ({"threads": 1}, {"threads": 3, "memory": 0.0002}):  # two places a pass
        result = codi_engine.analyze(run, "probes", site="resid_post@latent", target="value:-1", log=True, repeats=3, **options)[0].result
        assert result is not None
        results.append(result.tables["probes"])
    pd.testing.assert_frame_equal(results[0], results[1], check_exact=True)
    assert results[0]["score"].max() > 0.3


def test_a_state_at_bot_and_classes(run: Run) -> None:
    result = codi_engine.analyze(run, "probes", site="latent_out", target="reasoning_steps", task="classification", repeats=1, folds=3)[0].result
    assert result is not None
    table = result.tables["probes"]
    assert table["step"].tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert table["layer"].isna().all()
    assert table["score"].max() > 0.5 > table["baseline"].max()
    assert "4 classes" in result.summary
    assert "no place can be told from chance; repeats=140 would do" in result.summary


def test_targets(run: Run) -> None:
    frame = run.baseline
    gold = gold_answers(reload_data(run))
    answer, _ = targets.values_of(run, frame, "answer", "steps", "probes")
    assert answer == [gold[e, "main"] for e in frame["example"]]
    correct, words = targets.values_of(run, frame, "correct", "steps", "probes")
    assert words
    assert correct == (frame["accuracy"] == 1).tolist()
    assert targets.values_of(run, frame, "given", "steps", "probes")[0] == frame["answer"].tolist()
    second, _ = targets.values_of(run, frame, "value:2", "steps", "probes")
    assert [v is None for v in second] == (frame["reasoning_steps"] == 1).tolist()
    last, _ = targets.values_of(run, frame, "value:-1", "steps", "probes")
    assert last == answer
    known = targets.labels(second, False, "auto", True, "t")
    assert known.missing == 30
    assert known.numbers is not None
    np.testing.assert_allclose(np.sign(known.numbers) * np.expm1(np.abs(known.numbers)), [v for v in second if v is not None])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target": "reasoning_step"}, "did you mean 'reasoning_steps'"),
        ({"target": "value:1", "steps": "chain"}, "the data has no field 'chain'"),
        ({"target": "steps"}, "has 118 classes in 120 cells; choose a field with fewer"),
        ({"target": "steps", "task": "regression"}, "holds words such as"),
        ({"target": "answer", "task": "classification"}, "a number can be read with task=regression"),
        ({"target": "value:9"}, "is nowhere known"),
        ({"target": "answer", "groups": "reasoning_steps"}, "4 groups \\(reasoning_steps\\) cannot be held out in 5 folds"),
        ({"target": "answer", "groups": "template"}, "the data has no field 'template'"),
        ({"target": "answer", "site": None}, "say which activations with `site`"),
        ({"target": "reasoning_steps", "task": "classification", "log": True}, "log is for numbers"),
    ],
)
def test_refusals_are_one_line(run: Run, options: dict[str, Any], said: str) -> None:
    given = {k: v for k, v in {"site": "latent_out", **options}.items() if v is not None}
    with pytest.raises(UserError, match=said) as raised:
        codi_engine.analyze(run, "probes", **given)
    assert "\n" not in str(raised.value)


def test_places_with_too_few_states_say_so() -> None:
    x = np.full((30, 4), np.nan)
    x[:3] = np.eye(4)[:3]
    row = one(x, np.arange(30), numbers=np.arange(30.0), repeats=1)
    assert np.isnan(row["score"])
    assert np.isnan(row["p"])
    assert (row["n"], row["note"]) == (3, "too few groups or labels here")


# ------------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("site", ["resid_post@latent", "resid_post.2@latent", "resid_post@latent[1,4]", "latent_out"])
def test_states_are_the_runs_activations(run: Run, site: str) -> None:
    states = States(run, site, False, "test")
    cells = np.array([7, 3, 119, 0])
    given = run.activations(site)
    expected = given.values[cells].reshape(4, -1, 128).transpose(1, 0, 2)
    np.testing.assert_array_equal(states.read(cells), expected)
    chosen = [expected.shape[0] - 1, 0]
    np.testing.assert_array_equal(states.read(cells, chosen), expected[chosen])
    assert states.frame["example"].tolist() == given["example"].values.tolist()


def test_sparse_codes_are_states_too(tmp_path: Path) -> None:
    from codi_engine.core.runs.synthetic import Synthetic, write_synthetic

    made = codi_engine.open_run(write_synthetic(Synthetic(targets=2, conditions=2, trials=6, features=12, words=0), tmp_path / "s"))
    name = made.store.arrays[0].split("/")[1]
    states = States(made, name, True, "test")
    assert states.shape == (1, 1)
    np.testing.assert_array_equal(states.read(np.arange(len(states.frame)))[0], made.activations(name, edited=True).values)
