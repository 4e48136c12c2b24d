"""``compare_runs``: statistics against scipy and naive twins, every shape of table, every bad input, real runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_engine import Experiment, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.explaining import plugin_options
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.rollout.sampling import generator
from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.runs.drawing import drawn
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.work import Work
from codi_engine.plugins.analyses import association
from codi_engine.plugins.analyses.compare import Compare, CompareOptions
from codi_engine.plugins.analyses.compare_figures import place_labels, short
from codi_engine.plugins.analyses.importance import Importance
from codi_engine.plugins.analyses.published import label_text


class Fake:
    """What an analysis reads of a run: cells of one or more conditions, each examples × places."""

    def __init__(self, path: str, effects: dict[str, np.ndarray], axes: Mapping[str, Sequence[Any]], metric: str = "kl", **more: Any) -> None:
        self.path = Path(path)
        self.experiment: dict[str, Any] = {"name": path, "data": {"plugin": "problems", "path": "p.jsonl", "limit": 3}}
        self.provenance = {"data_digest": more.get("data", "d")}
        self.metrics = [metric, *more.get("also", ())]
        self.axes = ["example", "condition", *axes]
        names = more.get("examples")
        points = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
        rows = []
        for condition, values in effects.items():
            for i, example in enumerate(values):
                name = str(i) if names is None else names[i]
                part = points.assign(example=name, condition=condition, **dict.fromkeys(self.metrics, 0.0))
                part[metric] = example
                rows += [pd.DataFrame([{"example": name, "condition": "baseline", **dict.fromkeys(self.metrics, 0.0)}]), part]
        self.cells = pd.concat(rows, ignore_index=True).drop_duplicates(["example", "condition", *axes]).reset_index(drop=True)


def steps(path: str, values: np.ndarray, condition: str = "zero", **more: Any) -> Run:
    return cast(Run, Fake(path, {condition: values}, {"step": list(range(values.shape[1]))}, **more))


def compare(runs: Sequence[Run], **options: Any) -> AnalysisResult:
    return Compare(CompareOptions(**{"bootstrap": 200, **options})).analyze(runs, Work())


def refused(runs: Sequence[Run], **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        compare(runs, **options)
    assert str(caught.value).count("\n") <= 1
    assert str(caught.value).startswith("compare_runs: ")
    return str(caught.value)


def noisy(places: int, n: int, seed: int, slope: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=places)
    return truth + draw.normal(size=(n, places)), slope * truth + draw.normal(size=(n, places))


# ------------------------------------------------------------------------------------------ statistics


@pytest.mark.parametrize(("places", "n"), [(3, 5), (6, 20), (9, 4), (40, 12)])
def test_correlations_are_scipys(places: int, n: int) -> None:
    a, b = noisy(places, n, places)
    table = compare([steps("a", a), steps("b", b)]).tables["correlation"]
    expected = stats.pearsonr(a.mean(0), b.mean(0))
    pearson = table[table["method"] == "pearson"].iloc[0]
    assert (pearson["r"], pearson["p"]) == pytest.approx((expected.statistic, expected.pvalue))
    if places > 3:
        interval = expected.confidence_interval(0.95)
        assert (pearson["ci_low"], pearson["ci_high"]) == pytest.approx((interval.low, interval.high))
    else:
        assert "needs 4 places" in pearson["ci_method"]
    spearman = table[table["method"] == "spearman"].iloc[0]
    rho = stats.spearmanr(a.mean(0), b.mean(0))
    assert spearman["r"] == pytest.approx(rho.statistic)
    if places > 8:
        assert spearman["p"] == pytest.approx(rho.pvalue)


def test_rho_of_few_places_is_enumerated() -> None:
    x, y = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 4, 4, 9])
    p, how = association.p_value("spearman", x, y)
    expected = stats.permutation_test((x,), lambda v: stats.spearmanr(v, y).statistic, permutation_type="pairings", n_resamples=np.inf)
    assert p == pytest.approx(expected.pvalue)
    assert how == "exact: 120 orders"
    assert association.p_value("spearman", np.arange(4.0), np.arange(4.0))[0] == pytest.approx(2 / 24)


def test_the_correlation_needed_has_just_that_p() -> None:
    assert association.needed(6) == pytest.approx(0.811, abs=5e-4)
    for n, alpha in ((3, 0.05), (6, 0.01), (100, 0.05)):
        r = association.needed(n, alpha)
        assert 2 * stats.t.sf(r * np.sqrt((n - 2) / (1 - r * r)), n - 2) == pytest.approx(alpha)
    assert np.isnan(association.needed(2))
    summary = compare([steps("a", noisy(6, 5, 0)[0]), steps("b", noisy(6, 5, 0)[1])]).summary
    assert "with n = 6 places |r| must exceed 0.81 to be told from none (p < .05)" in summary


def naive_bootstrap(a: np.ndarray, b: np.ndarray, groups: Sequence[association.Stratum], count: int, generators: Sequence[np.random.Generator]) -> list[float]:
    """The same draws, one resample and one place at a time."""
    out = []
    for _ in range(count):
        pools: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
        for group, draw in zip(groups, generators, strict=True):
            for i, times in enumerate(draw.multinomial(len(group), np.full(len(group), 1 / len(group)))):
                for side, (values, rows) in enumerate(((a, group.a), (b, group.b))):
                    pools[side].extend([values[rows[i]]] * times if rows is not None else [])
        x, y = (np.array([np.nanmean([row[p] for row in pool]) for p in range(a.shape[1])]) for pool in pools)
        out.append(float(stats.pearsonr(x, y).statistic))
    return out


@pytest.mark.parametrize("names", [(range(7), range(7)), (range(7), range(3, 10)), (range(7), range(20, 27))], ids=["same", "some", "none"])
def test_the_bootstrap_has_a_naive_twin(names: tuple[range, range]) -> None:
    a, b = noisy(5, 7, 3)
    a[2, 1] = np.nan
    groups = association.strata(list(names[0]), list(names[1]), True)
    assert sum(len(g) for g in groups) == len({*names[0], *names[1]})

    def generators() -> list[np.random.Generator]:
        return [generator("twin", i) for i in range(len(groups))]

    fast = association.rows_pearson(*association.resampled_means(a, b, groups, 300, generators()))
    np.testing.assert_allclose(fast, naive_bootstrap(a, b, groups, 300, generators()))


def test_the_bootstrap_is_deterministic_and_seeded() -> None:
    runs = [steps("a", noisy(6, 9, 1)[0]), steps("b", noisy(6, 9, 1)[1])]
    first, again, other = (compare(runs, seed=s).tables["correlation"] for s in (4, 4, 5))
    pd.testing.assert_frame_equal(first, again)
    assert (first["ci_low"] != other["ci_low"]).any()
    none = compare(runs, bootstrap=0).tables["correlation"]
    assert not none["ci_method"].str.startswith("bootstrap").any()


def test_examples_are_drawn_whole_and_for_both_sides() -> None:
    """Three kinds of examples, each with a pattern over places that both sides share: drawn jointly r stays 1, drawn apart it does not."""
    kinds = np.array([[3.0, 0, 0, 1], [0, 3, 0, 2], [0, 0, 3, 4]]).repeat(2, axis=0)

    def width(**more: Any) -> float:
        table = compare([steps("a", kinds), steps("b", kinds * 2, **more)], bootstrap=500).tables["correlation"]
        row = table[(table["method"] == "pearson") & table["ci_method"].str.startswith("bootstrap")].iloc[0]
        assert row["r"] == pytest.approx(1.0)
        return float(row["ci_high"] - row["ci_low"])

    assert width() == pytest.approx(0.0, abs=1e-9)
    assert width(data="other") > 0.5
    assert width(examples=[f"x{i}" for i in range(6)]) > 0.5


def test_an_examples_own_level_is_no_noise_of_the_places() -> None:
    """Examples that differ by a level alone: draws of whole examples leave r as it is, draws place by place would not."""
    pattern = np.array([1.0, 2.0, 4.0, 3.0, 0.0])
    shifted = pattern + np.array([0.0, 50, -50, 10, 90])[:, None]
    other = steps("b", pattern[::-1] + np.random.default_rng(0).normal(size=(1, 5)), data="other")
    table = compare([steps("a", shifted), other]).tables["correlation"]
    row = table[(table["method"] == "pearson") & table["ci_method"].str.startswith("bootstrap")].iloc[0]
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((row["r"], row["r"]))
    apart = np.random.default_rng(1).choice(5, size=(500, 5, 5))
    means = np.take_along_axis(np.broadcast_to(shifted, (500, 5, 5)), apart, axis=1).mean(1)
    assert np.ptp(association.rows_pearson(means, np.broadcast_to(pattern, (500, 5)))) > 1


def test_trials_of_an_example_are_no_examples() -> None:
    a, b = noisy(6, 8, 2)
    once = [steps("a", a), steps("b", b)]
    often = [steps("a", a), steps("b", b)]
    for run in often:
        copies = [run.cells.assign(trial=t) for t in range(5)]
        run.cells, run.axes[2:2] = pd.concat(copies, ignore_index=True), ["trial"]
    one, five = compare(once).tables, compare(often).tables
    pd.testing.assert_frame_equal(one["places"], five["places"])
    pd.testing.assert_frame_equal(one["correlation"], five["correlation"])


def test_reliability_is_the_share_that_is_not_noise() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=400)
    values = truth + draw.normal(size=(10, 400)) * 2 + draw.normal(size=(10, 1)) * 5
    assert association.reliability(values) == pytest.approx(1 / (1 + 4 / 10), abs=0.06)
    assert association.reliability(draw.normal(size=(10, 400))) < 0.2
    assert np.isnan(association.reliability(values[:1]))


# ----------------------------------------------------------------------------------------- the places


def test_effects_are_importances() -> None:
    a, b = noisy(6, 20, 5)
    run = steps("a", a)
    places = compare([run, steps("b", b)]).tables["places"]
    for i, row in places.iterrows():
        expected = stats.ttest_1samp(a[:, int(cast(int, i))], 0.0).confidence_interval(0.95)
        assert (row["effect_a"], row["ci_low_a"], row["ci_high_a"], row["n_a"]) == pytest.approx((a[:, int(cast(int, i))].mean(), *expected, 20))
    slope, level, *_ = stats.linregress(a.mean(0), b.mean(0))
    np.testing.assert_allclose(places["residual"], b.mean(0) - level - slope * a.mean(0), atol=1e-12)


def test_shares_have_wilsons_interval_and_nats_have_not() -> None:
    zero = np.zeros((8, 4))
    for metric, high in (("flip", stats.binomtest(0, 8).proportion_ci(method="wilson").high), ("kl", 0.0)):
        places = compare([steps("a", zero, metric=metric), steps("b", zero + 1, metric=metric)]).tables["places"]
        assert places["ci_low_a"].tolist() == [0.0] * 4
        assert places["ci_high_a"].tolist() == pytest.approx([high] * 4)


def test_places_that_one_side_lacks_are_listed_and_left_out() -> None:
    a, b = noisy(6, 8, 5)
    b[:, 2] = np.nan
    result = compare([steps("a", a), steps("b", b[:, :5])])
    places = result.tables["places"]
    assert places["compared"].tolist() == [True, True, False, True, True, False]
    assert places["note"].tolist() == ["", "", "no value in b", "", "", "no value in b"]
    assert set(result.tables["correlation"]["n"]) == {4}
    assert "left out: 2 places that one side lacks\n  step 2: no value in b\n  step 5: no value in b" in result.summary
    expected = stats.pearsonr(a.mean(0)[[0, 1, 3, 4]], b.mean(0)[[0, 1, 3, 4]])
    assert result.tables["correlation"]["r"].iloc[0] == pytest.approx(expected.statistic)


def test_places_meet_by_value_and_sets_are_places() -> None:
    a, b = noisy(4, 6, 1)
    first = cast(Run, Fake("a", {"zero": a}, {"step": [0, 1, 2, 10]}))
    second = cast(Run, Fake("b", {"zero": b[:, [3, 1, 0, 2]]}, {"step": ["10", "1", "0", "0+1"]}))
    places = compare([first, second]).tables["places"]
    assert places["step"].tolist() == ["0", "1", "2", "10", "0+1"]
    assert places["compared"].tolist() == [True, True, False, True, False]
    assert places["effect_b"].iloc[0] == pytest.approx(b[:, 0].mean())
    assert [label_text(v) for v in (3, 3.0, "3", " 3.0 ", 0.5, "0+1")] == ["3", "3", "3", "3", "0.5", "0+1"]


def test_an_axis_of_one_side_is_averaged_and_a_fixed_one_is_no_place() -> None:
    a = np.random.default_rng(0).normal(size=(5, 8))
    both = cast(Run, Fake("a", {"zero": a}, {"layer": [0, 1], "step": [0, 1, 2, 3]}))
    b = np.random.default_rng(1).normal(size=(5, 4))
    result = compare([both, steps("b", b)])
    assert "a: averaged over layer" in result.summary
    np.testing.assert_allclose(result.tables["places"]["effect_a"], a.reshape(5, 2, 4).mean((0, 1)))
    fixed = [cast(Run, Fake(n, {"zero": v}, {"layer": [layer], "step": [0, 1, 2, 3]})) for n, v, layer in (("a", b, 8), ("b", b + 1, 4))]
    assert compare(fixed).tables["places"]["compared"].all()
    one = cast(Run, Fake("c", {"zero": b}, {"layer": [1], "step": [0, 1, 2, 3]}))
    assert compare([both, one]).tables["places"]["compared"].sum() == 4
    over = compare([both, cast(Run, Fake("d", {"zero": a}, {"layer": [0, 1], "step": [0, 1, 2, 3]}))], axes=["step"]).tables["places"]
    assert list(over["step"]) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "the same 6 examples"),
        ({"data": "other"}, "different examples (6 and 6, other data)"),
        ({"examples": list("456789")}, "6 and 6 examples, 2 of them the same"),
        ({"examples": list("uvwxyz")}, "different examples (6 and 6 of the same data, none shared)"),
    ],
)
def test_the_summary_says_whether_examples_are_the_same(more: dict[str, Any], said: str) -> None:
    a, b = noisy(5, 6, 1)
    assert said in compare([steps("a", a), steps("b", b, **more)]).summary


def test_a_run_without_a_digest_is_known_by_its_data_options() -> None:
    a, b = noisy(5, 6, 1)
    runs = [steps("a", a, data=""), steps("b", b, data="")]
    assert "the same 6 examples" in compare(runs).summary
    runs[1].experiment["data"]["limit"] = 9
    assert "the same 6 examples" in compare(runs).summary
    runs[1].experiment["data"]["path"] = "q.jsonl"
    assert "other data" in compare(runs).summary


def test_constant_sides_and_few_places_have_a_stated_result() -> None:
    a, b = noisy(5, 6, 1)
    flat = np.zeros((6, 5))
    result = compare([steps("a", a), steps("b", flat)])
    assert "no correlation: b (kl) is constant over the 5 places" in result.summary
    table = result.tables["correlation"]
    assert table["r"].isna().all()
    assert (table["note"] == "no correlation: b (kl) is constant over the 5 places").all()
    assert set(drawn(Compare(CompareOptions()), result)) == {"compare"}
    assert "a (kl) and b (kl) are constant" in compare([steps("a", flat + 2), steps("b", flat)]).summary
    assert "no correlation: 2 places in common; it takes 3" in compare([steps("a", a[:, :2]), steps("b", b[:, :2])]).summary
    none = compare([cast(Run, Fake("a", {"z": a}, {"step": range(5)})), cast(Run, Fake("b", {"z": b}, {"step": range(10, 15)}))])
    assert "no correlation: 0 places in common" in none.summary
    assert drawn(Compare(CompareOptions()), none) == {}
    one = compare([steps("a", a[:1]), steps("b", b[:1])])
    assert "bootstrap over examples" not in set(one.tables["correlation"]["ci_method"])


def test_resamples_with_a_constant_side_are_counted() -> None:
    values = np.zeros((4, 5))
    values[0] = [1, 0, 2, 0, 1]
    table = compare([steps("a", values), steps("b", noisy(5, 4, 1)[1])]).tables["correlation"]
    assert table["note"].str.contains("resamples have a constant side").any()


# ------------------------------------------------------------------------------------ what is compared


def test_conditions_and_metrics_are_chosen() -> None:
    a, b = noisy(5, 6, 1)
    axes = {"step": range(5)}
    two = cast(Run, Fake("two", {"zero": a, "mean": b}, axes))
    other = cast(Run, Fake("other", {"zero": b, "mean": a}, axes, also=("flip",)))

    def names(*args: Any, **options: Any) -> list[str]:
        return compare(*args, **options).tables["sides"]["source"].tolist()

    assert names([two]) == ["two: zero", "two: mean"]
    assert names([two], conditions=["mean", "zero"]) == ["two: mean", "two: zero"]
    assert names([two, other], conditions=["zero", "mean"]) == ["two: zero", "other: mean"]
    assert names([two, other], conditions=["1:zero", "0:mean"]) == ["other: zero", "two: mean"]
    sides = compare([other], conditions=["zero", "zero"], metrics=["kl", "flip"]).tables["sides"]
    assert sides["metric"].tolist() == ["kl", "flip"]
    single = cast(Run, Fake("single", {"zero": a}, axes, also=("flip",)))
    assert compare([single], metrics=["kl", "flip"]).tables["sides"]["name"].tolist() == ["zero kl", "zero flip"]
    apart = compare([cast(Run, Fake("x/same", {"zero": a}, axes)), cast(Run, Fake("y/same", {"zero": b}, axes))])
    assert apart.tables["sides"]["name"].tolist() == ["x/same: zero", "y/same: zero"]


def test_the_default_metric_is_one_that_both_have() -> None:
    a, b = noisy(5, 6, 1)
    runs = [steps("a", a, metric="kl", also=("flip",)), steps("b", b, metric="flip")]
    assert compare(runs).tables["sides"]["metric"].tolist() == ["flip", "flip"]
    apart = [steps("a", a, metric="kl"), steps("b", b, metric="flip")]
    assert compare(apart).tables["sides"]["metric"].tolist() == ["kl", "flip"]


def test_what_cannot_be_compared_is_refused() -> None:
    a, b = noisy(5, 6, 1)
    axes = {"step": range(5)}
    run, second = steps("a", a), steps("b", b)
    several = cast(Run, Fake("several", {"zero": a, "mean": b, "patch": b}, axes))
    layers = cast(Run, Fake("layers", {"zero": a}, {"layer": range(5)}))
    bare = steps("bare", a)
    bare.cells = bare.cells[bare.cells["condition"] == "baseline"]
    assert refused([run, second, run]) == "compare_runs: compares two runs; got 3 runs"
    assert refused([run]) == "compare_runs: a is one run; give a second one, table: FILE, or conditions: [a, b] (it has the condition zero)"
    assert "several has the conditions zero, mean, patch; choose with conditions:" in refused([run, several])
    assert "(it has the conditions zero, mean, patch)" in refused([several])
    assert refused([run, layers]).endswith("no axis in common (a: step; layers: layer); sweep the same axis in both")
    assert "axes: 'layer' is not an axis of both sides; these are step" in refused([run, second], axes=["layer"])
    assert "metric 'kk' is not in the run; did you mean 'kl'?" in refused([run, second], metric="kk")
    assert "b: metric 'flop'" in refused([run, second], metrics=["kl", "flop"])
    assert "several has no edited condition 'zeroo'; did you mean 'zero'?" in refused([several], conditions=["zeroo", "mean"])
    assert "b has no edited condition 'patch'; write '0:patch' for that of several" in refused([several, second], conditions=["zero", "patch"])
    assert "b has no edited condition 'nope'" in refused([run, second], conditions=["zero", "1:nope"])
    assert "conditions: name 2; got zero" in refused([several], conditions=["zero"])
    assert "both sides are kl of 'zero' in a" in refused([run, run])
    assert "bare has no edited cells" in refused([run, bare])
    nothing = steps("nothing", a)
    nothing.metrics = []  # type: ignore[misc]
    assert "nothing: the run has no metric; add metrics: [kl]" in refused([nothing, nothing])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "kl", "metrics": ["kl", "flip"]}, "give `metric` for both sides or `metrics` for one each"),
        ({"table": "x.csv", "metrics": ["kl", "flip"]}, "write `metric` for the run and `column` for the table"),
        ({"column": "drop"}, "`column` belongs to a table"),
        ({"metrics": ["kl"]}, "at least 2 items"),
        ({"confidence": 1.0}, "less than 1"),
        ({"metrik": "kl"}, "did you mean 'metric' or 'metrics'"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match="analyses") as caught:
        plugin_options(Compare, options, "analyses", "file.yaml")
    assert said in str(caught.value)


# -------------------------------------------------------------------------------------------- a table

NUMBERS = [18.7, 12.8, 14.6, 15.0, 3.5, 26.0]
SHAPES = {
    "a.csv": "step,drop\n" + "".join(f"{i},{v}\n" for i, v in enumerate(NUMBERS)),
    "b.csv": "\ufeffnote,step, drop,n\n" + "".join(f"x,{i}.0, {v},57\n" for i, v in enumerate(NUMBERS)),
    "c.tsv": "drop\tstep\n" + "".join(f"{v}\t{i}\n" for i, v in reversed(list(enumerate(NUMBERS)))),
    "d.json": json.dumps([{"step": i, "drop": v} for i, v in enumerate(NUMBERS)]),
    "e.json": json.dumps({"step": {str(i): v for i, v in enumerate(NUMBERS)}}),
    "f.json": json.dumps(NUMBERS),
    "g.json": json.dumps({"step": NUMBERS}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_published_numbers_in_every_shape(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(SHAPES[name], encoding="utf-8")
    a = noisy(6, 9, 7)[0]
    result = compare([steps("a", a)], table=str(tmp_path / name))
    assert result.tables["places"]["effect_b"].tolist() == NUMBERS
    assert result.tables["sides"]["metric"].tolist() == ["kl", "value" if name in ("e.json", "f.json", "g.json") else "drop"]
    table = result.tables["correlation"]
    assert table["r"].iloc[0] == pytest.approx(stats.pearsonr(a.mean(0), NUMBERS).statistic)
    assert "bootstrap over examples" in set(table["ci_method"])
    assert "9 examples; the published numbers have none" in result.summary


def test_a_tables_intervals_and_gaps_are_kept(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("step,drop,other,ci_low,ci_high,n\n0,1,9,0.5,1.5,57\n1,,8,,,\n2,3,1,,,\n3,2,2,,,\n9,2,2,,,\n")
    result = compare([steps("a", noisy(5, 6, 0)[0])], table=str(file))
    places = result.tables["places"]
    assert (places["ci_low_b"].iloc[0], places["ci_high_b"].iloc[0], places["n_b"].iloc[0]) == (0.5, 1.5, 57)
    assert places["note"].tolist() == ["", "no value in b", "", "", "no value in b", "no value in a"]
    other = compare([steps("a", noisy(5, 6, 0)[0])], table=str(file), column="other").tables["places"]
    assert other["effect_b"].tolist()[:4] == [9, 8, 1, 2]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("x.csv", None, "cannot be read: no such file or directory"),
        ("x.txt", "a", "give a .csv, .tsv or .json file"),
        ("x.csv", "", "holds no rows"),
        ("x.csv", "layer,drop\n0,1\n", "no column is called like an axis of the run (step); its columns are layer, drop"),
        ("x.csv", "step,word\n0,a\n", "no numeric column beside step; its columns are step, word"),
        ("x.csv", "step,drop\n0,1\n0,2\n", "line 3: step 0 stands twice (first: line 2); keep one row per place"),
        ("x.csv", "step,drop\n0,1,2\n", "line 2 has more fields than the header"),
        ("x.csv", "step,drop\n0\n", "line 2 has fewer fields than the header"),
        ("x.csv", "step,drop\n,1\n", "line 2: step is empty"),
        ("x.csv", "step,drop,ci_low\n0,1,wide\n", "line 2: ci_low is 'wide'; write a number, or leave it empty"),
        ("x.json", "{", "not valid JSON"),
        ("x.json", "[]", "write a list of records"),
        ("x.json", "[[1]]", "write a list of records"),
        ("x.json", '{"step": {"0": [1]}}', "write a list of records"),
        ("x.json", '{"layer": {"0": 1}}', "'layer' is no axis of the run; it has step"),
        ("x.json", "[1, 2, 3]", "has 3 numbers for 5 values of step (0, 1, 2, 3, 4)"),
        ("x.json", '[1, 2, true, 4, "e"]', "no numeric column"),
        ("x.json", "[1, 2, NaN, 4, 5]", "no numeric column"),
    ],
)
def test_tables_that_cannot_be_read_are_refused(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    assert said in refused([steps("a", noisy(5, 6, 0)[0])], table=str(tmp_path / name))


def test_more_ways_to_misname_a_table(tmp_path: Path) -> None:
    a = noisy(4, 6, 0)[0]
    file = tmp_path / "x.csv"
    file.write_text("step,drop,word\n0,1,a\n1,2,b\n")
    run = steps("a", a)
    assert "column: there is no 'dorp'; did you mean 'drop'" in refused([run], table=str(file), column="dorp")
    assert "column: 'step' is an axis" in refused([run], table=str(file), column="step")
    assert "line 2: word is 'a'; write a number" in refused([run], table=str(file), column="word")
    assert "compares one run with a table; got 2 runs" in refused([run, run], table=str(file))
    two = cast(Run, Fake("two", {"zero": a, "mean": a}, {"step": range(4)}))
    assert "two has the conditions zero, mean; choose with conditions: [name]" in refused([two], table=str(file))
    assert "conditions: name 1 beside a table; got zero, mean" in refused([two], table=str(file), conditions=["zero", "mean"])
    assert compare([two], table=str(file), conditions=["mean"]).tables["sides"]["source"].iloc[0] == "two: mean"
    grid = cast(Run, Fake("grid", {"zero": a}, {"layer": [0, 1], "step": [0, 1]}))
    (tmp_path / "y.json").write_text("[1, 2]")
    assert "needs a run in which one axis varies; here layer, step do" in refused([grid], table=str(tmp_path / "y.json"))
    (tmp_path / "z.csv").write_text("layer,step,drop\n0,0,1\n0,1,2\n1,0,3\n")
    assert "several rows per step (it also has layer)" in refused([grid], table=str(tmp_path / "z.csv"), axes=["step"])
    (tmp_path / "w.csv").write_bytes(b"step,drop\n0,\xff\n")
    assert "not UTF-8 text" in refused([run], table=str(tmp_path / "w.csv"))


# ------------------------------------------------------------------------------------------ the figure


def test_labels_cover_nothing_and_stand_by_their_points() -> None:
    draw = np.random.default_rng(0)
    points = np.vstack([draw.uniform(5, 390, size=(40, 2)), np.full((5, 2), 200.0)])
    texts = [f"{i}·0" for i in range(45)]
    found = place_labels(points, texts, (400.0, 400.0), range(45))
    assert not set(range(40, 45)) & set(found)
    assert len(found) > 30
    assert short("x" * 20 + "y" * 20, 11) == "xxxxx…yyyyy"
    assert short("short", 11) == "short"


def test_the_figure_says_what_it_shows() -> None:
    shape = {"layer": range(14), "step": range(6)}
    draw = np.random.default_rng(3)
    long = cast(Run, Fake("a-very-long-name-of-an-experiment-that-goes-on-and-on-and-on", {"zero": draw.normal(size=(4, 84))}, shape))
    result = compare([long, cast(Run, Fake("b", {"zero": draw.normal(size=(4, 84))}, shape))])
    figure = drawn(Compare(CompareOptions()), result)["compare"]
    texts = [t.get_text() for t in figure.findobj() if hasattr(t, "get_text")]
    assert any("84 places, labelled by layer·step" in t for t in texts)
    assert any("over examples" in t and "Pearson r" in t for t in texts)
    assert all(len(line) < 100 for t in texts for line in t.split("\n"))
    assert {"equal effect", "least squares", "layer"} <= set(texts)


# ---------------------------------------------------------------------------------------- real runs


def test_two_real_sweeps(demo: Callable[..., Experiment]) -> None:
    sweep = {"layer": [0, 1, 2], "step": [0, 1, 2]}
    for name in ("zero", "mean"):
        more = {"over": "step"} if name == "mean" else {}
        demo(name=name, intervention={"plugin": name, "site": "resid_post@latent", **more}, sweep=sweep, data={"plugin": "demo-pairs", "limit": 4}).run()
    runs = [open_run("runs/zero"), open_run("runs/mean")]
    result = compare(runs)
    places = result.tables["places"]
    assert len(places) == 9
    assert places["compared"].all()
    ours = Importance(Importance.Options()).analyze(runs[:1], Work()).tables["effects"]
    np.testing.assert_allclose(places["effect_a"], ours["mean"])
    np.testing.assert_allclose(places["ci_high_a"], ours["ci_high"])
    expected = stats.pearsonr(ours["mean"], places["effect_b"])
    assert result.tables["correlation"]["r"].iloc[0] == pytest.approx(expected.statistic)
    assert "9 places by layer × step; the same 4 examples" in result.summary
    assert max(map(len, result.summary.splitlines())) <= 100


def test_a_real_run_of_two_conditions_from_its_experiment(demo: Callable[..., Experiment], tmp_path: Path) -> None:
    conditions = {n: {"intervention": {"plugin": n, "site": "latent_in"}} for n in ("zero", "mean")}
    finished = demo(name="both", conditions=conditions, sweep={"step": "all"}, analyses=[{"plugin": "compare_runs", "metric": "kl", "bootstrap": 100}]).run()
    folder = finished.path / "results" / "compare_runs"
    assert {p.name for p in folder.iterdir()} == {
        "places.parquet",
        "correlation.parquet",
        "sides.parquet",
        "compare.png",
        "compare.svg",
        "summary.txt",
        "result.json",
    }
    assert list(pd.read_parquet(folder / "places.parquet")["step"]) == [0, 1, 2, 3, 4, 5]
    (tmp_path / "published.json").write_text(json.dumps(NUMBERS))
    again = analyze_runs([finished.path], ["compare_runs"], [f"table={tmp_path / 'published.json'}", "conditions=[zero]"])
    assert "b: published.json, value" in again[0].summary


def test_it_takes_many() -> None:
    assert Compare.takes == "many"
    assert Importance.takes == "one"
    assert plugin_manager(load=False).get("analysis", "compare_runs") is Compare
