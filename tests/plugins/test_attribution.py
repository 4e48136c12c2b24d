"""Attribution patching against naive twins: gradients by hand, hit rates by sets, exact effects where the metric is linear."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import codi_engine
from codi_engine import Experiment, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.rollout.gradients import Target, Tracer
from codi_engine.core.running.reading import Answers
from codi_engine.core.runs.reload import reload_model
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.work import Work
from codi_engine.plugins.analyses import attribution_estimates, attribution_setting, attribution_tables
from codi_engine.plugins.analyses.attribution import Attribution, AttributionOptions
from codi_engine.testing import tiny
from tests.support.lines import write_lines

DEMO = {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}
EVERYWHERE = {"layer": "all", "step": "all"}


def analyzed(run: Run, work: Work | None = None, **options: Any) -> AnalysisResult:
    return Attribution(AttributionOptions(**options)).analyze([run], work or Work())


def by_place(result: AnalysisResult, condition: str, column: str = "estimate", axes: tuple[str, ...] = ("layer", "step")) -> dict[tuple[int, ...], float]:
    table = result.tables["attribution"]
    mine = table[table["condition"] == condition]
    return {tuple(int(row[a]) for a in axes): float(row[column]) for _, row in mine.iterrows()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run of several edits of the demo model, six of twelve pairs."""
    folder = tmp_path_factory.mktemp("attribution")
    packaged = files("codi_engine.plugins").joinpath("demo") / "pairs.jsonl"
    records = [json.loads(line) for line in packaged.read_text(encoding="utf-8").splitlines()]
    data = write_lines(folder / "pairs.jsonl", [r for r in records if r["both_correct"]][:12])
    patch = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
    value = {
        "name": "demo", "model": DEMO, "data": {"plugin": "pairs", "path": str(data), "limit": 6},
        "conditions": {
            "patch": {"intervention": patch, "sweep": EVERYWHERE},
            "frozen": {"intervention": {**patch, "downstream": "freeze"}, "sweep": {"layer": [1, [0, 2]], "step": [0, 3]}},
            "zero": {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}, "sweep": {"step": "all"}},
            "mean": {"intervention": {"plugin": "mean", "site": "attn_z.1", "on": "clean"}, "sweep": {"step": [0, 2]}},
            "heads": {"intervention": {"plugin": "patch", "site": "v.0", "direction": "noise"}, "sweep": {"step": [1], "head": "all"}},
            "resample": {"intervention": {"plugin": "resample", "site": "resid_mid.2", "on": "clean"}, "sweep": {"step": [0], "donor": 2}},
            "noise": {"intervention": {"plugin": "noise", "site": "latent_in", "on": "clean"}, "sweep": {"step": [0]}},
            "together": {"intervention": {"plugin": "zero", "site": "resid_post", "on": "clean"}, "sweep": {"layer": [1]}},
        },
        "metrics": ["kl", "logit_diff", "cross_entropy"], "generate": {"max_new_tokens": 2},
    }  # fmt: skip
    return Experiment.from_dict(value).run(folder / "run").open()


@pytest.fixture(scope="module")
def result(run: Run) -> AnalysisResult:
    return analyzed(run)


@pytest.fixture(scope="module")
def session() -> Any:
    return codi_engine.load("demo")


@pytest.fixture(scope="module")
def examples(run: Run) -> list[Any]:
    return attribution_setting.Setting(run).examples


def gradient(session: Any, text: str, gold: float, other: float, component: str, layer: int | None, metric: Any = "logit_diff", down: Any = "propagate") -> Any:
    answers = Answers(session.adapter, None)
    target = Target(metric, answers.tokens(gold), answers.tokens(other))
    return Tracer(session.net, answers.prefix).trace(session.adapter.encode_prompt(text), target, component, (layer,), "latent", down).gradients[layer].numpy()


def sides(example: Any, variant: str) -> tuple[str, str, float, float]:
    run, other = example.prompts[variant], example.prompts["clean" if variant == "corrupted" else "corrupted"]
    return run.text, other.text, run.answer, other.answer


# ------------------------------------------------------------------------------------------------ estimates


def test_estimates_are_source_minus_own_times_gradient(examples: list[Any], result: AnalysisResult, session: Any) -> None:
    for condition, layer, down in (("patch", 2, "propagate"), ("frozen", 1, "freeze")):
        totals = []
        for example in examples:
            own, source, gold, other = sides(example, "corrupted")
            site = f"resid_post.{layer}@latent"
            change = session.capture(source, [site])[site].to_numpy() - session.capture(own, [site])[site].to_numpy()
            totals.append((change * gradient(session, own, gold, other, "resid_post", layer, down=down)).sum(-1))
        found = by_place(result, condition)
        np.testing.assert_allclose([found[layer, step] for step in range(6)], np.mean(totals, 0), rtol=2e-4, atol=1e-5)


def test_ablations_take_their_own_values(run: Run, result: AnalysisResult, session: Any) -> None:
    zero, mean = [], []
    setting = attribution_setting.Setting(run)
    pool = np.mean([session.capture(e.prompts["clean"].text, ["attn_z.1@latent"])["attn_z.1@latent"].to_numpy() for e in setting.pool.values()], 0)
    for example in setting.examples:
        own, _, gold, other = sides(example, "clean")
        values = session.capture(own, ["latent_in", "attn_z.1@latent"])
        zero.append((-values["latent_in"].to_numpy() * gradient(session, own, gold, other, "latent_in", None)).sum(-1))
        mean.append(((pool - values["attn_z.1@latent"].to_numpy()) * gradient(session, own, gold, other, "attn_z", 1)).sum(-1))
    found = by_place(result, "zero", axes=("step",))
    np.testing.assert_allclose([found[(step,)] for step in range(6)], np.mean(zero, 0), rtol=2e-4, atol=1e-5)
    found = by_place(result, "mean", axes=("step",))
    np.testing.assert_allclose([found[(step,)] for step in range(6)], np.mean(mean, 0), rtol=2e-4, atol=1e-5)


def test_donors_are_the_runs_own_and_are_averaged(run: Run, result: AnalysisResult, session: Any) -> None:
    setting = attribution_setting.Setting(run)
    condition = next(c for c in setting.conditions(AttributionOptions()) if c.name == "resample")
    expected = []
    for example in setting.examples:
        own, _, gold, other = sides(example, "clean")
        at = "resid_mid.2@latent[0]"
        names = [setting.donors.of(example.id, condition, {"step": (0,), "donor": d}) for d in (0, 1)]
        donors = [session.capture(setting.pool[n].prompts["clean"].text, [at])[at].to_numpy()[0] for n in names]
        slope = gradient(session, own, gold, other, "resid_mid", 2, "cross_entropy")[0]
        expected.append(((np.mean(donors, 0) - session.capture(own, [at])[at].to_numpy()[0]) * slope).sum())
    assert by_place(result, "resample", axes=("step",))[(0,)] == pytest.approx(np.mean(expected), rel=2e-4)


def test_heads_add_up_to_the_whole_site(run: Run, result: AnalysisResult) -> None:
    heads = result.tables["heads"]
    sums = heads[heads["condition"] == "mean"].groupby("step")["estimate"].sum()
    whole = by_place(result, "mean", axes=("step",))
    np.testing.assert_allclose(sums.to_numpy(), [whole[(s,)] for s in sums.index], rtol=1e-9)
    swept = by_place(result, "heads", axes=("step", "head"))
    again = analyzed(run, site="v", direction="noise")
    every = again.tables["heads"].query("layer == 0 and step == 1").set_index("head")["estimate"]
    assert {h for _, h in swept} == set(every.index)
    for (step, head), value in swept.items():
        if step == 1:
            assert value == pytest.approx(every[head], rel=1e-9)


def test_every_layer_and_step_is_estimated_and_the_runs_cells_are_matched(run: Run, result: AnalysisResult) -> None:
    table = result.tables["attribution"].query("condition == 'frozen'")
    assert len(table) == 4 * 6
    known = table[table["exact"].notna()]
    assert set(zip(known["layer"], known["step"], strict=True)) == {(1, 0), (1, 3)}  # the set 0+2 is no single place
    cells = run.cells
    edited = cells[(cells["condition"] == "frozen") & (cells["layer"].astype(str) == "1") & (cells["step"].astype(str) == "3")].set_index("example")[
        "logit_diff"
    ]
    base = cells[(cells["condition"] == "baseline") & (cells["variant"] == "corrupted")].set_index("example")["logit_diff"]
    assert known[known["step"] == 3]["exact"].item() == pytest.approx((edited - base).mean(), rel=1e-12)
    assert "'together' was left out" in result.summary
    assert "'noise' was left out" in result.summary
    assert table["rank"].tolist() == stats.rankdata(-table["estimate"].abs(), method="min").tolist()


# ------------------------------------------------------------------------------------------------- hit rate


def test_hit_rate_is_that_of_a_naive_count(run: Run, result: AnalysisResult) -> None:
    estimate, exact = by_place(result, "patch"), by_place(result, "patch", "exact")
    ours = sorted(estimate, key=lambda p: -abs(estimate[p]))
    theirs = sorted(exact, key=lambda p: -abs(exact[p]))
    hits = result.tables["hits"].query("condition == 'patch'")
    assert hits["top"].tolist() == ["1", "3", "5", "10", "10%", "20%"]
    for _, row in hits.iterrows():
        k = int(row["k"])
        assert row["hits"] == len(set(ours[:k]) & set(theirs[:k]))
        assert row["rate"] == pytest.approx(row["hits"] / k)
        assert row["needed"] == next(m for m in range(k, 25) if set(theirs[:k]) <= set(ours[:m]))
        assert row["ci_low"] <= row["ci_high"]
    agreement = result.tables["agreement"].query("condition == 'patch'").set_index("measure")["value"]
    a, b = (np.array([v[p] for p in estimate]) for v in (estimate, exact))
    assert agreement["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic)
    assert agreement["pearson"] == pytest.approx(stats.pearsonr(a, b).statistic)
    assert agreement["sign"] == pytest.approx(np.mean([np.sign(x) == np.sign(y) for x, y in zip(a, b, strict=True) if y != 0]))
    assert agreement["slope"] == pytest.approx(np.linalg.lstsq(a[:, None], b, rcond=None)[0][0])


def test_per_example_agreement(run: Run, result: AnalysisResult) -> None:
    table = result.tables["examples"].query("condition == 'patch'")
    assert len(table) == 6
    assert (table["logits_difference"] < 2e-5).all()
    base = run.cells.query("condition == 'baseline' and variant == 'corrupted'").set_index("example")["logit_diff"]
    np.testing.assert_allclose(table["unedited"], base[table["example"]], rtol=1e-4)
    assert table["sign"].between(0, 1).all()
    assert (table["places"] == 24).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 30), st.integers(0, 10_000), st.integers(1, 6))
def test_equal_maps_have_every_hit_and_scale_and_sign_do_not_matter(places: int, seed: int, k: int) -> None:
    values = np.random.default_rng(seed).normal(size=places)
    assert attribution_tables.hit_rate(values, values, k) == 1.0
    assert attribution_tables.hit_rate(-3 * values, values, k) == 1.0
    other = np.random.default_rng(seed + 1).normal(size=places)
    rate = attribution_tables.hit_rate(values, other, k)
    assert rate == attribution_tables.hit_rate(other, values, k)
    assert rate >= max(2 * min(k, places) - places, 0) / min(k, places)


def test_poor_estimates_are_said_to_be_poor(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "(poor:" not in analyzed(run, condition="patch").summary
    monkeypatch.setattr(Tracer, "_metric", lambda self, logits, *_: logits[5] - logits[9])
    assert "try method=integrated" in analyzed(run, condition="patch").summary


def test_constant_effects_are_stated() -> None:
    assert np.isnan(attribution_tables.correlation(np.zeros(4), np.arange(4.0), True))
    assert attribution_tables.rank(np.array([0.0, -2.0, np.nan, 2.0])).tolist() == [3, 1, 0, 1]


# ------------------------------------------------------------------------------------- what a run is used for


def test_the_best_places_are_a_sweep(run: Run, tmp_path: Path) -> None:
    done = codi_engine.analyze(run, "attribution", condition="patch", keep=4)[0]
    best = pd.read_csv(done.files["top.csv"])
    assert list(best.columns) == ["layer", "step"]
    table = pd.read_parquet(done.tables["attribution"]).sort_values("rank")
    assert best.to_numpy().tolist() == table[["layer", "step"]].head(4).to_numpy(int).tolist()
    assert {"heatmap", "scatter"} <= set(done.figures)
    assert done.summary.count("\n") == 2
    cost = pd.read_parquet(done.tables["cost"]).iloc[0]
    assert (cost["forwards"], cost["backwards"], cost["exact_cells"]) == (12, 6, 144)


def test_integrated_gradients_mend_saturation(run: Run) -> None:
    result = analyzed(run, condition="patch", method="integrated")
    exact = by_place(result, "patch", "exact")
    errors = {c: np.mean([abs(v - exact[p]) for p, v in by_place(result, "patch", c).items()]) for c in ("estimate", "gradient")}
    assert errors["estimate"] < 0.6 * errors["gradient"]
    assert set(result.tables["hits"]["method"]) == {"integrated", "gradient"}
    assert result.tables["cost"]["backwards"].item() == 6 * (1 + 5)
    with pytest.raises(UserError, match="only a patch has one"):
        analyzed(run, condition="zero", method="integrated")


def test_an_unswept_patch_of_an_unedited_run(tmp_path: Path) -> None:
    value = {"name": "base", "model": DEMO, "data": {"plugin": "demo-pairs", "limit": 2}, "metrics": ["logit_diff"], "generate": {"max_new_tokens": 2}}
    run = Experiment.from_dict(value).run(tmp_path / "run").open()
    result = analyzed(run, site="resid_post@prompt", direction="noise", limit=1)
    table = result.tables["attribution"]
    assert table["position"].max() == -1
    assert table["exact"].isna().all()
    assert result.tables["hits"].empty
    assert "no exact effects to compare with" in result.summary
    with pytest.raises(UserError, match="say what to estimate"):
        analyzed(run)
    with pytest.raises(UserError, match="direction: state denoise"):
        analyzed(run, site="resid_post")


def test_options_that_do_not_fit(run: Run) -> None:
    with pytest.raises(UserError, match="did you mean 'patch'"):
        analyzed(run, condition="pacth")
    with pytest.raises(UserError, match="belongs to site"):
        analyzed(run, direction="noise")
    with pytest.raises(UserError, match="either site or condition"):
        analyzed(run, site="resid_post", condition="patch", direction="noise")
    with pytest.raises(UserError, match="metric=cross_entropy"):
        analyzed(run, condition="resample", metric="logit_diff")
    with pytest.raises(UserError, match="unknown site"):
        analyzed(run, site="resid_pots", direction="noise")


# ------------------------------------------------------------------------------------------------- guards


def test_other_weights_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(_: Run) -> Any:
        adapter = reload_model(run)
        adapter.network.get_output_embeddings().weight.data.mul_(1.001)
        return adapter

    monkeypatch.setattr(attribution_setting, "reload_model", changed)
    with pytest.raises(UserError, match=r"differs from the run in example 0: logits by 0\.001 relative"):
        analyzed(run, condition="patch")


def test_other_files_are_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    provenance = run.provenance
    monkeypatch.setattr(Run, "provenance", property(lambda self: {**provenance, "model_digest": "0" * 64}))
    with pytest.raises(UserError, match="was computed with other model files"):
        analyzed(run)
    monkeypatch.setattr(Run, "provenance", property(lambda self: {**provenance, "data_digest": "0" * 64}))
    with pytest.raises(UserError, match="the data are not those of the run any more"):
        analyzed(run)


def test_what_was_estimated_is_not_estimated_again(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = analyzed(run, Work(folder=tmp_path / "partial"), condition="zero")
    monkeypatch.setattr(attribution_estimates.Estimator, "estimate", None)
    again = analyzed(run, Work(folder=tmp_path / "partial"), condition="zero")
    pd.testing.assert_frame_equal(first.tables["attribution"], again.tables["attribution"], check_exact=True)
    pd.testing.assert_frame_equal(first.tables["cost"], again.tables["cost"], check_exact=True)


# ------------------------------------------------------------------------------------------------ plain models


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a patching run over prompt positions of a plain causal LM; a clean prompt is longer than its corrupted one."""
    folder = tmp_path_factory.mktemp("plain")
    model = tiny.tiny_causal_lm(folder / "model", "llama")
    texts = [
        ("there are 7 apples and 5 pears", 12, "there are 8 apples and 3 pears", 11),
        ("how many 9 apples are there and 4", 13, "how many 2 pears and 4", 6),
    ]
    records = [{"clean": {"question": a, "answer": b}, "corrupted": {"question": c, "answer": d}} for a, b, c, d in texts]
    value = {
        "name": "plain", "model": {"plugin": "causal_lm", "path": str(model), "device": "cpu"},
        "data": {"plugin": "pairs", "path": str(write_lines(folder / "pairs.jsonl", records))},
        "conditions": {
            "blocks": {"intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": "all", "position": [-4, -2, -1]}},
            "first": {"intervention": {"plugin": "patch", "site": "resid_pre", "direction": "denoise"}, "sweep": {"layer": [1], "position": [0, 3]}},
            "normed": {"intervention": {"plugin": "patch", "site": "final_norm@prompt[-1]", "direction": "noise"}, "sweep": {}},
        },
        "metrics": ["logit_diff"], "generate": {"max_new_tokens": 2},
    }  # fmt: skip
    return Experiment.from_dict(value).run(folder / "run").open()


def test_where_the_metric_is_linear_the_estimate_is_exact(plain: Run) -> None:
    row = analyzed(plain, condition="normed").tables["attribution"].iloc[0]
    assert row["estimate"] == pytest.approx(row["exact"], rel=1e-4)
    assert abs(row["exact"]) > 0.1


def test_prompt_positions_of_a_plain_model(plain: Run) -> None:
    """The naive twin: transformers' own forward, its blocks' outputs kept by hooks, autograd on them."""
    model = reload_model(plain)
    network, found = model.network, analyzed(plain).tables["attribution"]

    def traced(text: str, gold: int, other: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        kept: list[torch.Tensor] = []
        handles = [b.register_forward_hook(lambda _, __, out: kept.append(out)) for b in network.model.layers]
        embeds = network.get_input_embeddings()(torch.tensor([model.encode_prompt(text)])).detach().requires_grad_()
        logits = network(inputs_embeds=embeds).logits[0, -1]
        for handle in handles:
            handle.remove()
        return kept, list(torch.autograd.grad(logits[gold] - logits[other], kept))

    expected: dict[str, list[float]] = {"last": [], "third": []}
    answers = Answers(model, None)
    for example in attribution_setting.Setting(plain).examples:
        own, source, gold, other = sides(example, "corrupted")
        tokens = answers.tokens(gold)[0], answers.tokens(other)[0]
        kept, slopes = traced(own, *tokens)
        theirs, _ = traced(source, *tokens)
        expected["last"].append(((theirs[1][0, -2] - kept[1][0, -2]) * slopes[1][0, -2]).sum().item())
        expected["third"].append(((theirs[0][0, 3] - kept[0][0, 3]) * slopes[0][0, 3]).sum().item())  # resid_pre of layer 1
    blocks = found.query("condition == 'blocks' and layer == 1 and position == -2")
    assert blocks["estimate"].item() == pytest.approx(np.mean(expected["last"]), rel=1e-4)
    first = found.query("condition == 'first' and layer == 1 and position == 3")
    assert first["estimate"].item() == pytest.approx(np.mean(expected["third"]), rel=1e-4)
    assert found.query("condition == 'blocks'")["exact"].notna().all()


def test_a_path_needs_prompts_of_one_length(plain: Run) -> None:
    result = analyzed(plain, condition="blocks", method="integrated")
    examples = result.tables["examples"]
    assert examples["note"].tolist() == ["", "prompts of different lengths: no path between their inputs"]
    assert (result.tables["attribution"]["n"] == 1).all()


def test_an_opened_run_is_read_only(plain: Run) -> None:
    before = plain.digest
    analyzed(plain, condition="normed")
    assert open_run(plain.path).digest == before
