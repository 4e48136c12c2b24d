"""`pathways` on synthetic runs: equal to a naive loop, independent of memory, threads, storage and interruption."""

import json
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_engine import analyze, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.runs.analyzing import Analysed
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.core.runs.vectors import Vectors
from codi_engine.core.runs.work import Work
from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses.pathway_graph import chains, graph
from codi_engine.store.errors import StoreError

SMALL = {"targets": 12, "features": 90, "conditions": 3, "trials": 12, "words": 0, "density": 0.1, "layers": 6, "effect": 3.0}


def synthetic(path: Path, **keys: Any) -> Path:
    return write_synthetic(Synthetic(**{**SMALL, **keys}), path)


def one(run: Path, **options: Any) -> Analysed:
    return analyze(run, "pathways", **options)[0]


def table(done: Analysed, name: str = "pathways") -> pd.DataFrame:
    assert done.result is not None
    return done.result.tables[name]


def naive(run: Path, options: dict[str, Any]) -> pd.DataFrame:
    """Every test by scipy, one after the other, from the values as they were made."""
    settings = open_run(run).experiment["synthetic"]
    what = Synthetic(**settings)
    values = what.values(0, what.cells).astype(float).reshape(what.targets, what.conditions, what.examples, what.trials, what.features)
    layer = 1 + np.arange(what.features) * what.layers // what.features
    rows = []
    for t, target in enumerate(what.target_features):
        for c in range(1, what.conditions):
            for f in np.flatnonzero(layer > layer[target]):
                a, b = values[t, c, :, :, f], values[t, 0, :, :, f]
                if what.examples > 1:
                    a, b = a.mean(1), b.mean(1)
                a, b = a.ravel(), b.ravel()
                if np.ptp(np.r_[a, b]) == 0:
                    continue
                kind = options["test"]
                p = stats.ttest_rel(a, b).pvalue if kind == "paired" else stats.ttest_ind(a, b, equal_var=kind == "pooled").pvalue
                rows.append((what.feature_names[target], what.feature_names[f], what.condition_names[c], a.mean() - b.mean(), p))
    frame = pd.DataFrame(rows, columns=["target", "feature", "condition", "effect", "p"])
    frame["q"] = adjust(frame["p"].to_numpy(), "bh")
    return frame


@pytest.mark.filterwarnings("ignore:Precision loss")
@pytest.mark.parametrize(("examples", "test"), [(1, "welch"), (1, "pooled"), (5, "paired"), (5, "welch")])
@pytest.mark.parametrize("sparse", [True, False])
def test_equals_a_naive_loop(tmp_path: Path, examples: int, test: str, sparse: bool) -> None:
    run = synthetic(tmp_path / "run", examples=examples, sparse=sparse)
    got = table(one(run, test=test)).set_index(["target", "feature", "condition"])
    want = naive(run, {"test": test})
    want = want[want["q"] <= 0.05].set_index(["target", "feature", "condition"])
    assert set(got.index) == set(want.index)
    assert len(got) > 5
    for column in ("effect", "p", "q"):
        np.testing.assert_allclose(got[column], want.loc[got.index, column], rtol=1e-6)  # float32 values are exact, their order is not


@pytest.mark.parametrize("keys", [{}, {"sparse": False}, {"examples": 4}, {"examples": 70, "trials": 6, "targets": 3, "sparse": False}])
def test_memory_and_threads_do_not_matter(tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = synthetic(tmp_path / "run", **keys)
    whole = table(one(run, memory=2, threads=1))
    monkeypatch.setattr(Work, "piece", property(lambda self: 14_000))
    assert len(Vectors(open_run(run), None, "x").parts(14_000)) > 2
    for threads in (1, 3):
        pd.testing.assert_frame_equal(table(one(run, threads=threads)), whole, check_exact=True)
    assert len(whole) > 0


def test_an_interrupted_analysis_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = synthetic(tmp_path / "run", sparse=False)
    whole = table(one(run))
    monkeypatch.setattr(Work, "piece", property(lambda self: 14_000))
    reads: list[int] = []
    original = Vectors.read_own

    def failing(self: Vectors, part: Any, used: Any = None) -> Any:
        reads.append(part.first)
        if len(reads) == 5:
            raise KeyboardInterrupt
        return original(self, part, used)

    monkeypatch.setattr(Vectors, "read_own", failing)
    with pytest.raises(KeyboardInterrupt):
        one(run, threads=1)
    partial = run / "results" / "pathways" / ".partial"
    kept = len(list(partial.glob("tests-*.npz")))
    assert kept >= 1
    reads.clear()
    reads.extend([0] * 5)
    pd.testing.assert_frame_equal(table(one(run, threads=1)), whole, check_exact=True)
    parts = len(Vectors(open_run(run), None, "x").parts(14_000))
    assert len(reads) - 5 == parts - kept
    assert not partial.exists()


def test_what_is_written(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run", effect=4.0)
    done = one(run)
    folder = run / "results" / "pathways"
    found = pd.read_parquet(folder / "pathways.parquet")
    read = nx.read_graphml(folder / "graph.graphml")
    data = json.loads((folder / "graph.json").read_text())
    assert set(read.nodes) == set(found["target"]) | set(found["feature"])
    assert len(data["nodes"]) == len(read.nodes)
    assert all(read.nodes[a]["layer"] < read.nodes[b]["layer"] for a, b in read.edges)
    assert {p.name for p in folder.iterdir()} >= {"graph.png", "graph.svg", "layers.png", "chains.parquet", "pairs.parquet", "summary.txt"}
    assert "sampling from these prompts and nothing wider" in done.summary
    truth = pd.read_parquet(run / "results" / "synth" / "pathways.parquet")
    hit = found.merge(truth, on=["target", "feature", "condition"])
    assert len(hit) > 0.9 * len(found)


def test_the_thresholds_of_the_originals(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run")
    done = one(run, test="pooled", correction="none", min_effect=0.1, direction="upstream")
    assert "not corrected" in done.summary
    found = table(done)
    assert (found["p"] < 0.05).all()
    assert (found["effect"].abs() >= 0.1).all()
    assert (found["feature_layer"] < found["target_layer"]).all()


def test_trials_are_not_examples(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run", examples=6, gaussian=True, sparse=False, icc=0.5, effect=0.0)
    honest, naive_ = one(run), one(run, unit="trial")
    assert len(table(honest)) <= 2
    assert len(table(naive_)) > 20
    assert "p-values are too small" in naive_.summary


def test_a_feature_that_is_nan_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Synthetic.values

    def holed(self: Synthetic, begin: int, end: int) -> np.ndarray:
        values = original(self, begin, end)
        if begin == 0:
            values[3, 5:9] = np.nan
        return values

    monkeypatch.setattr(Synthetic, "values", holed)
    for sparse in (True, False):
        run = synthetic(tmp_path / f"run-{sparse}", sparse=sparse)
        assert "4 values are NaN and were left out" in one(run).summary


# ---------------------------------------------------------------------------------------------- bad input


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    run = synthetic(tmp_path / "run", sparse=False)
    shard = next((run / "data.zarr/activations/sae/value").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[1000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(StoreError, match=f"{shard.name}.*damaged"):
        one(run)
    shard.unlink()
    with pytest.raises(StoreError, match="missing"):
        one(run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": "resid_post"}, "site 'resid_post' was not captured; did you mean|there is|known"),
        ({"pairs": [["patch_9", "baseline"]]}, "condition 'patch_9'"),
        ({"test": "paired"}, "one example"),
        ({"at": {"step": 3}}, "'step' is no dimension"),
        ({"unit": "example"}, "at least two examples"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    run = synthetic(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        one(run, **options)
    assert not (run / "results" / "pathways" / "summary.txt").exists()


def test_a_run_without_activations(demo: Any, tmp_path: Path) -> None:
    run = demo(intervention={"plugin": "zero", "site": "resid_post"}, sweep={"layer": [1], "step": [0]}).run(output=tmp_path / "r").path
    with pytest.raises(UserError, match="needs captured activations; add capture:"):
        one(run)


def test_a_real_run_with_a_shared_baseline(demo: Any, tmp_path: Path) -> None:
    run = demo(
        data={"plugin": "demo-problems", "limit": 6}, intervention={"plugin": "zero", "site": "resid_post"},
        sweep={"layer": [1, 2], "step": [0, 3]}, metrics=["kl"], capture=["latent_out"],
    ).run(output=tmp_path / "r").path  # fmt: skip
    done = one(run, at={"step": 5}, direction="all", correction="none", q=0.4)
    assert "baseline: one sample, shared by all targets" in done.summary
    found = table(done)
    values = open_run(run)
    frame = values.cells
    captured = values.activations("latent_out", edited=True)
    base = values.activations("latent_out", edited=False)
    row = found.iloc[0]
    layer, step = (int(v) for v in (row["target"].split()[1], row["target"].split()[3]))
    feature = int(row["feature"].split("/")[1])
    edited = captured[(captured["layer"].values == layer) & (captured["edited_step"].values == step)].sel(step=5)
    a = dict(zip(edited["example"].values, edited.values[:, feature], strict=True))
    b = dict(zip(base["example"].values, base.sel(step=5).values[:, feature], strict=True))
    want = stats.ttest_rel([float(a[e]) for e in sorted(a)], [float(b[e]) for e in sorted(a)])
    assert row["p"] == pytest.approx(want.pvalue, rel=1e-9)
    assert len(frame)


# -------------------------------------------------------------------------------------------------- graph


def edges(*rows: tuple[str, str, float]) -> pd.DataFrame:
    frame = pd.DataFrame([(a, b, g, 1.0, 0.01, "x", int(a[1]), int(b[1])) for a, b, g in rows])
    frame.columns = pd.Index(["target", "feature", "hedges_g", "effect", "q", "condition", "target_layer", "feature_layer"])
    return frame


def test_chains() -> None:
    built = graph(edges(("L1-a", "L2-b", 3), ("L2-b", "L5-c", -2), ("L1-a", "L2-d", 9), ("L2-d", "L5-c", 1), ("L5-c", "L7-e", 0.5)))
    found = chains(built, 10)
    assert found["chain"].tolist() == ["L1-a → L2-b → L5-c → L7-e"] or found["weakest_g"].iloc[0] == 0.5
    assert found["chain"].iloc[0] == "L1-a → L2-b → L5-c → L7-e"
    assert found["length"].iloc[0] == 3
    assert len(chains(built, 0)) == 0


@pytest.mark.parametrize(("test", "examples"), [("mann_whitney", 1), ("mann_whitney", 8), ("wilcoxon", 8), ("permutation", 1), ("permutation", 8)])
def test_rank_and_permutation_tests(tmp_path: Path, test: str, examples: int) -> None:
    run = synthetic(tmp_path / "run", examples=examples, effect=4.0, gaussian=True, sparse=False, trials=10, targets=4, features=40)
    found = table(one(run, test=test, permutations=1999, correction="none"))
    what = Synthetic(**open_run(run).experiment["synthetic"])
    values = what.values(0, what.cells).astype(float).reshape(what.targets, what.conditions, what.examples, what.trials, what.features)
    names = [what.feature_names[t] for t in what.target_features]
    assert len(found) > 10
    for _, row in found.iterrows():
        t, c, f = names.index(row["target"]), what.condition_names.index(row["condition"]), what.feature_names.index(row["feature"])
        a, b = ((values[t, i, :, :, f].mean(1) if examples > 1 else values[t, i, :, :, f].ravel()) for i in (c, 0))
        if test == "mann_whitney":
            want = stats.mannwhitneyu(a, b, method="asymptotic").pvalue
        elif test == "wilcoxon":
            want = stats.wilcoxon(a - b, method="exact").pvalue
        else:
            kind = "samples" if examples > 1 else "independent"
            want = stats.permutation_test(
                (a, b), lambda u, v, axis: u.mean(axis) - v.mean(axis), permutation_type=kind, n_resamples=1999, vectorized=True, rng=0
            ).pvalue
        assert row["p"] == pytest.approx(want, rel=1e-9, abs=0.02 if test == "permutation" else 0)
        assert row["effect"] == pytest.approx(a.mean() - b.mean(), rel=1e-5)
