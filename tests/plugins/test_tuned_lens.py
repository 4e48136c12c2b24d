"""Translators against a naive optimiser and a known truth; held-out numbers against the model's own modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

import codi_engine
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.runs.reload import reload_data, reload_model
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.work import Work
from codi_engine.plugins.analyses.tuned_lens import TunedLens, TunedLensOptions, divide
from codi_engine.plugins.analyses.tuning import Fitted, Place, Translator
from tests.support.captured import captured_run

FAST: dict[str, Any] = {"penalties": [0.1, 0.01], "epochs": 6}


def head(width: int, vocabulary: int, seed: int) -> torch.Tensor:
    return torch.randn(width, vocabulary, generator=torch.Generator().manual_seed(seed))


def place(states: np.ndarray, targets: np.ndarray, unembed: torch.Tensor, norm: bool = False, batch: int = 64) -> Place:
    def reads(h: torch.Tensor) -> torch.Tensor:
        return (torch.nn.functional.layer_norm(h, h.shape[-1:]) if norm else h) @ unembed

    logs = torch.from_numpy(targets).float()
    return Place(states, lambda rows: logs[torch.from_numpy(rows)], reads, batch)


def test_the_optimum_is_the_one_of_a_naive_optimiser() -> None:
    """Mean KL + penalty · ‖W‖² in standardised units, with loops and scipy, in double precision."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(0)
    states, unembed, penalty = rng.normal(2.0, 3.0, (12, 2)), head(2, 3, 1), 0.05
    targets = np.log(rng.dirichlet(np.ones(3), 12))
    rows, u = np.arange(12), unembed.double().numpy()
    mean, spread = states.mean(0), states.std(0)
    size = float(np.sqrt((spread**2).mean()))

    def objective(values: np.ndarray) -> float:
        weight, bias = values[:4].reshape(2, 2), values[4:]
        total = 0.0
        for h, want in zip(states, targets, strict=True):
            logits = (h + size * ((h - mean) / spread @ weight + bias)) @ u
            read = logits - np.log(np.exp(logits).sum())
            total += sum(np.exp(w) * (w - r) for w, r in zip(want, read, strict=True)) / len(states)
        return float(total + penalty * (weight**2).sum())

    best = minimize(objective, np.zeros(6), method="BFGS")
    made = place(states, targets, unembed, batch=5)
    fitted = made.fit(rows, rows, [penalty], 200)  # what is chosen on is what is trained on: rows twice, the same mean
    own = fitted.translator.weight.astype(float) * spread[:, None] / size
    bias = (fitted.translator.bias + mean @ fitted.translator.weight) / size
    assert objective(np.concatenate([own.ravel(), bias])) == pytest.approx(best.fun, rel=1e-4)
    np.testing.assert_allclose(own.ravel(), best.x[:4], atol=5e-3)
    assert fitted.penalty == penalty


def test_a_truth_that_is_affine_is_recovered() -> None:
    rng = np.random.default_rng(3)
    states, unembed = rng.normal(size=(600, 6)).astype(np.float32), head(6, 11, 4)
    truth = Translator(rng.normal(0, 0.7, (6, 6)).astype(np.float32), rng.normal(size=6).astype(np.float32))
    moved = torch.nn.functional.layer_norm(torch.from_numpy(truth(states)), (6,))
    targets = torch.log_softmax(moved @ unembed, 1).numpy()
    made = place(states, targets, unembed, norm=True)
    held = np.arange(500, 600)
    fitted = made.fit(np.arange(400), np.arange(400, 500), [1e-2, 1e-4, 1e-6], 60)
    plain, tuned = made.divergence(None, held).mean(), made.divergence(fitted.translator, held).mean()
    assert plain > 0.5
    assert tuned < 0.005 * plain
    assert fitted.penalty < 1e-3
    assert made.constant(np.arange(400), held).mean() > 100 * tuned


def test_where_nothing_can_be_learned_the_plain_lens_is_kept() -> None:
    rng = np.random.default_rng(5)
    states, unembed = rng.normal(size=(60, 8)).astype(np.float32), head(8, 7, 6)
    exact = torch.log_softmax(torch.from_numpy(states) @ unembed, 1).numpy()
    same = place(states, exact, unembed).fit(np.arange(40), np.arange(40, 60), [0.1], 10)
    assert same.penalty == float("inf")
    assert not same.translator.weight.any()
    # a target near the plain readout, plus noise that no state knows: few rows can only be learned by heart
    noisy = torch.log_softmax(torch.from_numpy(states) @ unembed + torch.from_numpy(rng.normal(0, 0.5, (60, 7))).float(), 1).numpy()
    few = place(states, noisy, unembed).fit(np.arange(6), np.arange(6, 60), [1e-6], 100)
    assert few.path[1] > few.path[0]
    assert few.penalty == float("inf")


def test_constant_is_the_divergence_from_the_mean_target() -> None:
    rng = np.random.default_rng(7)
    p = rng.dirichlet(np.ones(4), 9)
    made = place(rng.normal(size=(9, 3)), np.log(p), head(3, 4, 0), batch=2)
    mean = p[:6].mean(0)
    naive = [sum(a * np.log(a / b) for a, b in zip(row, mean, strict=True)) for row in p[6:]]
    np.testing.assert_allclose(made.constant(np.arange(6), np.arange(6, 9)), naive, rtol=1e-5)


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 40), st.integers(1, 4), st.floats(0.05, 0.85), st.integers(0, 99))
def test_no_group_is_on_two_sides(count: int, each: int, holdout: float, seed: int) -> None:
    groups = np.repeat(np.arange(count), each)
    parts = divide(groups, holdout, seed)
    sides = [set(groups[p].tolist()) for p in (parts.train, parts.check, parts.held)]
    assert sorted(np.concatenate([parts.train, parts.check, parts.held]).tolist()) == list(range(len(groups)))
    assert sum(len(s) for s in sides) == count
    assert sides[2]
    assert [p.tolist() for p in (divide(groups, holdout, seed).held, divide(groups, holdout, seed).train)] == [parts.held.tolist(), parts.train.tolist()]


# ---------------------------------------------------------------------------------------------- on the demo


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return captured_run(tmp_path_factory.mktemp("tuned"), ["resid_post@latent", "latent_out"], 40)


def tuned(run: Run, **options: object) -> AnalysisResult:
    return TunedLens(TunedLensOptions(**{"site": "resid_post.1@latent", **FAST, **options})).analyze([run], Work())


@pytest.fixture(scope="module")
def result(run: Run) -> AnalysisResult:
    return tuned(run)


def test_held_out_numbers_are_what_the_saved_translators_give(run: Run, result: AnalysisResult, tmp_path: Path) -> None:
    """Plain torch: states, translators from the file, the model's own norm and head, KL, mean over held-out examples."""
    network = reload_model(run).network.double()
    content = result.files["translators.safetensors"]
    assert isinstance(content, bytes)
    (tmp_path / "t.safetensors").write_bytes(content)
    saved = load_file(tmp_path / "t.safetensors")
    assert len(saved) == 12
    held = divide(np.arange(40), 0.25, 0).held
    fit = result.tables["fit"]
    assert set(fit["n"]) == {len(held)} == {10}
    assert set(fit["n_train"]) == {30}

    def read(h: np.ndarray, normed: bool) -> torch.Tensor:
        x = torch.from_numpy(h).double()
        with torch.inference_mode():
            out: torch.Tensor = torch.log_softmax(network.lm_head(x if normed else network.transformer.ln_f(x)), 1)
        return out

    for step in (0, 3):
        h = run.activations(f"resid_post.1@latent[{step}]").values.reshape(40, -1)[held]
        c = run.activations("latent_out").sel(step=step).values[held]
        weight, bias = (saved[f"resid_post.1@latent[{step}].{n}"].astype(float) for n in ("weight", "bias"))
        want = read(c, True)
        row = fit[fit["step"] == step].iloc[0]
        for name, states in (("plain", h.astype(float)), ("tuned", h + h @ weight + bias)):
            kl = (want.exp() * (want - read(states, False))).sum(1)
            assert row[name] == pytest.approx(float(kl.mean()), rel=2e-3)
        assert row["gain"] == pytest.approx(row["plain"] - row["tuned"])


def test_it_helps_in_the_middle_and_not_at_the_end(run: Run, result: AnalysisResult) -> None:
    fit = result.tables["fit"]
    assert (fit["tuned"] < fit["plain"]).all()
    assert (fit["tuned_train"] < fit["tuned"]).mean() > 0.5  # learned by heart in part
    assert "30 training states are fewer than the width (128)" in result.summary
    last = tuned(run, site="resid_post.3@latent", save=False)
    assert not last.files
    assert np.isinf(last.tables["fit"]["penalty"]).all()
    assert (last.tables["fit"]["plain"] < 1e-4).all()
    assert not last.tables["fit"]["significant"].any()


def test_tables_of_both_lenses_are_of_the_same_held_out_examples(result: AnalysisResult) -> None:
    lens = result.tables["lens"]
    assert set(lens["lens"]) == {"plain", "tuned"}
    assert set(lens["n"]) == {10}
    assert lens["rank"].notna().all()
    assert set(result.tables["tokens"]["lens"]) == {"plain", "tuned"}
    assert set(result.figures) == {"fit", "rank"}


def test_target_answer_is_the_engines_own_distribution(run: Run) -> None:
    """The prompts are run again; the first token of the distribution is the number that the run has written."""
    from codi_engine.core.rollout.network import Network
    from codi_engine.core.running.reading import Answers
    from codi_engine.plugins.analyses.readout import Readout
    from codi_engine.plugins.analyses.states import States
    from codi_engine.plugins.analyses.tuned_targets import goal

    net = Network(reload_model(run))
    states = States(run, "resid_post@latent", False, "test")
    found = goal("answer", run, states, reload_data(run), net, Readout(net, False, 5, 1 << 28), None, "test").first(0)
    answers = Answers(net.adapter, None)
    wanted = [answers.tokens(float(a))[0] for a in states.frame["answer"]]
    assert np.mean(np.array(wanted) == found) > 0.9
    fit = tuned(run, target="answer").tables["fit"]
    assert (fit["tuned"] < 0.6 * fit["plain"]).sum() >= 4  # at some places too few states say it


def test_the_last_layer_stands_in_for_latents_that_were_not_captured(result: AnalysisResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare = captured_run(tmp_path, ["resid_post@latent"], 40)
    monkeypatch.setattr(Place, "fit", lambda *_: Fitted(Translator(np.zeros((128, 128), np.float32), np.zeros(128, np.float32)), 1.0, ()))
    again = TunedLens(TunedLensOptions()).analyze([bare], Work()).tables["fit"]
    mine = again[again["layer"] == 1].reset_index(drop=True)
    np.testing.assert_allclose(mine["plain"], result.tables["fit"]["plain"], rtol=1e-3)
    np.testing.assert_allclose(mine["tuned"], mine["plain"])
    monkeypatch.undo()
    with pytest.raises(UserError, match="target: latent needs the latents themselves"):
        tuned(bare, site="resid_post.1@latent")


def test_the_command_gives_the_same_again_and_figures_from_its_tables(run: Run, result: AnalysisResult) -> None:
    done = codi_engine.analyze(run, "tuned_lens", site="resid_post.1@latent", **FAST)[0]
    assert done.result is not None
    for name in ("fit", "lens"):
        pd.testing.assert_frame_equal(done.result.tables[name], result.tables[name])
    assert done.files["translators.safetensors"].read_bytes() == result.files["translators.safetensors"]
    stored = codi_engine.open_run(run.path).results["tuned_lens"]
    tables = {name: stored.table(name) for name in stored.tables}
    assert set(TunedLens(TunedLensOptions()).draw(tables, stored.about)) == {"fit", "rank"}


def test_refusals_are_one_line(run: Run, tmp_path: Path) -> None:
    for options, said in (
        ({"site": "latent_out"}, "residual stream at latent steps"),
        ({"penalties": [0.0]}, "penalties: must be greater than 0"),
        ({"groups": "reasoning_steps"}, "groups \\(reasoning_steps\\) are too few"),
        ({"groups": "nothing"}, "has no field 'nothing'"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            tuned(run, **options)
        assert "\n" not in str(raised.value)


@given(st.integers(12, 40), st.floats(0.01, 0.899), st.integers(0, 9))
def test_every_part_of_a_division_has_a_group(groups: int, holdout: float, seed: int) -> None:
    labels = np.repeat(np.arange(groups), 2)
    parts = divide(labels, holdout, seed)
    found = [set(labels[rows]) for rows in (parts.train, parts.check, parts.held)]
    assert all(found)
    assert sum(map(len, found)) == groups
