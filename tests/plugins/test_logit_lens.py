"""The lens against the model's own modules, its counts against loops, and what it refuses."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import codi_engine
from codi_engine.core.errors import UserError
from codi_engine.core.rollout.network import Network
from codi_engine.core.running.reading import Answers
from codi_engine.core.runs.reload import gold_answers, reload_data, reload_model
from codi_engine.core.runs.results import Run
from codi_engine.plugins.analyses import lens_tables, readout, sought
from codi_engine.plugins.analyses.chain import results
from codi_engine.plugins.analyses.states import States
from tests.support.captured import captured_run
from tests.support.lines import write_lines

CAPTURE = ["resid_post@latent", "latent_out", "resid_post@answer", "logits@answer[0]", "attn_out@latent"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return captured_run(tmp_path_factory.mktemp("lens"), CAPTURE, 24)


@pytest.fixture(scope="module")
def tables(run: Run) -> dict[str, pd.DataFrame]:
    result = codi_engine.analyze(run, "logit_lens")[0].result
    assert result is not None
    assert set(result.figures) == {"rank", "entropy", "values"}
    return dict(result.tables)


def naive(run: Run, layer: int, step: int, cell: int) -> torch.Tensor:
    """Logits of one captured state through the model's modules, in double precision."""
    network = reload_model(run).network.double()
    state = torch.from_numpy(run.activations("resid_post@latent").sel(layer=layer, step=step).values[cell]).double()
    with torch.inference_mode():
        logits: torch.Tensor = network.lm_head(network.transformer.ln_f(state))
    return logits


def test_cells_are_what_plain_torch_gives(run: Run, tables: dict[str, pd.DataFrame]) -> None:
    gold = gold_answers(reload_data(run))
    answers = Answers(reload_model(run), None)
    examples = tables["examples"]
    for layer, step, cell in ((0, 0, 0), (2, 3, 7), (3, 5, 23)):
        logits = naive(run, layer, step, cell)
        name = run.baseline["example"].iloc[cell]
        row = examples[(examples["example"] == name) & (examples["layer"] == layer) & (examples["step"] == step)].iloc[0]
        token = answers.tokens(gold[name, "main"])[0]
        p = torch.softmax(logits, 0)
        assert row["rank"] == 1 + sum(1 for v in logits.tolist() if v > float(logits[token]))
        assert row["prob"] == pytest.approx(float(p[token]), rel=1e-4)
        assert row["entropy"] == pytest.approx(float(-(p * p.log()).sum()), rel=1e-4)
        assert row["token"] == answers.adapter.decode([int(logits.argmax())])


def test_table_is_the_mean_and_median_over_examples(tables: dict[str, pd.DataFrame]) -> None:
    from scipy import stats

    examples, lens = tables["examples"], tables["lens"]
    assert len(lens) == 24
    for _, row in lens.iloc[[0, 11, 23]].iterrows():
        mine = examples[(examples["layer"] == row["layer"]) & (examples["step"] == row["step"])]
        assert row["n"] == len(mine) == 24
        assert row["rank"] == mine["rank"].median()
        assert row["first"] == (mine["rank"] == 1).mean()
        t = stats.ttest_1samp(mine["entropy"], 0.0).confidence_interval(0.95)
        assert (row["entropy"], row["entropy_low"], row["entropy_high"]) == pytest.approx((mine["entropy"].mean(), t.low, t.high))
        assert row["rank_low"] <= row["rank"] <= row["rank_high"]


def test_last_layer_at_the_answer_is_the_models_own_output(run: Run) -> None:
    net = Network(reload_model(run))
    states = States(run, "resid_post.3@answer[0]", False, "test")
    values = states.read(np.arange(24))
    assert values.shape == (1, 24, 128)
    with torch.inference_mode():
        ours = readout.Readout(net, False, 5, 10**8).logits(values[0]).numpy()
    own = run.activations("logits@answer[0]").values[:, 0]
    np.testing.assert_allclose(ours, own, atol=2e-4)
    assert (ours.argmax(1) == own.argmax(1)).all()


def test_states_that_are_normed_are_not_normed_again(run: Run, tables: dict[str, pd.DataFrame]) -> None:
    """latent_out of step k is the final norm of the last layer's residual: both lenses say the same."""
    result = codi_engine.analyze(run, "logit_lens", site="latent_out")[0].result
    assert result is not None
    lens = result.tables["lens"]
    assert lens["step"].tolist() == [-1, 0, 1, 2, 3, 4, 5]
    assert lens["layer"].isna().all()
    last = tables["lens"][tables["lens"]["layer"] == 3]
    for column in ("rank", "prob", "entropy", "agreement"):
        np.testing.assert_allclose(lens[column].to_numpy(float)[1:], last[column].to_numpy(float), rtol=1e-4)
    assert "best: bot" in result.summary or "best: step" in result.summary


def test_the_cuts_change_nothing(run: Run, tables: dict[str, pd.DataFrame], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codi_engine.plugins.analyses.logit_lens._ROWS", 24 * 5)  # parts of five cells
    result = codi_engine.analyze(run, "logit_lens", memory=0.001)[0].result  # batches of a few rows
    assert result is not None
    for name in ("lens", "intermediate", "examples"):
        pd.testing.assert_frame_equal(result.tables[name], tables[name], rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(3, 12))
def test_ranks_and_hits_are_those_of_loops(seed: int, k: int, vocabulary: int) -> None:
    """Few distinct logits, so that ties are everywhere; two spellings, of which one may be missing."""
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.integers(0, 4, (3, vocabulary)).astype(np.float32))
    tokens = rng.integers(0, vocabulary, (5, 2))
    tokens[0, 1] = -1

    def rank(row: int, ids: list[int]) -> float:
        own = max(float(logits[row, i]) for i in ids if i >= 0)
        return 1 + sum(float(v) > own for v in logits[row]) + 0.5 * (sum(float(v) == own for v in logits[row]) - 1)

    first = logits.topk(min(2 * k, vocabulary), 1).values
    hits = readout._within(logits, first, torch.from_numpy(tokens), k)
    for c, ids in enumerate(tokens.tolist()):
        mine = torch.from_numpy(tokens[c : c + 1]).expand(3, 2)
        own = logits.gather(1, mine.clamp_min(0))
        ranks = readout._ranks(logits, own, mine < 0)
        assert ranks.tolist() == [rank(r, ids) for r in range(3)]
        assert hits[:, c].tolist() == [rank(r, ids) <= k for r in range(3)]


def test_chance_is_the_share_among_other_examples_numbers() -> None:
    spelling: Any = type("Spelling", (), {"tokens": lambda _, v: () if np.isnan(v) else (int(v) % 7,), "lost": set(), "several": set()})()
    rng = np.random.default_rng(0)
    example = np.repeat([f"e{i}" for i in range(12)], 2)
    values = rng.integers(0, 9, 24).astype(float)
    values[[3, 8]] = np.nan
    tokens, counts, own = sought._candidates(example, values, spelling)
    found = sought.Sought(["answer"], values[:, None], tokens, [tokens], [counts], [own], tokens, [])
    hits = rng.random((24, len(tokens))) < 0.4
    numbers = np.unique(values[~np.isnan(values)])
    for cell, chance in enumerate(found.chance(0, hits, np.arange(24))):
        mine = set(values[example == example[cell]].tolist())
        others = {(e, v) for e, v in zip(example, values, strict=True) if e != example[cell] and not np.isnan(v) and v not in mine}
        assert chance == pytest.approx(np.mean([hits[cell, int(np.searchsorted(numbers, v))] for _, v in others]))


def test_values_are_tested_against_other_examples(run: Run, tables: dict[str, pd.DataFrame]) -> None:
    table = tables["intermediate"]
    assert list(dict.fromkeys(table["value"])) == ["1", "2", "3", "answer"]
    assert len(table) == 4 * 24
    counts = table.groupby("value", sort=False)["n"].first()
    assert counts["answer"] == 24
    chains = [[v for v in results(t) if v != results(t)[-1]] for t in run.baseline["steps"]]
    assert counts["1"] <= sum(len(c) >= 1 for c in chains) + 1
    assert table["q"].ge(table["p"]).all()
    assert not (table["significant"] & (table["above"] <= 0)).any()


@pytest.mark.parametrize("n", [1, 5, 6, 17, 40])
def test_interval_of_the_median_covers(n: int) -> None:
    """Its ends are order statistics whose coverage, counted with binomial coefficients, is at least what was asked, and no inner pair's is."""
    _, low, high = lens_tables.median(np.arange(n, dtype=float), 0.95)

    def covered(cut: int) -> float:
        return float(sum(comb(n, i) for i in range(cut + 1, n - cut)) / 2**n)

    if np.isnan(low):
        assert covered(0) < 0.95
    else:
        cut = int(low)
        assert high == n - 1 - cut
        assert covered(cut) >= 0.95 > covered(cut + 1)


def test_positions_before_a_prompt_have_no_lens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_gpt2: Path) -> None:
    """A causal LM: places are prompt positions, short prompts lack the first ones, and there are no annotations."""
    monkeypatch.chdir(tmp_path)
    lines = [{"question": "there are " + "apples and " * i + f"{i} pears", "answer": i} for i in range(8)]
    data = {"plugin": "problems", "path": str(write_lines(tmp_path / "p.jsonl", lines))}
    model = {"plugin": "causal_lm", "path": str(tiny_gpt2), "device": "cpu"}
    made = captured_run(tmp_path, ["resid_post@prompt", "final_norm@prompt[-1]"], 8, model=model, data=data, generate={"max_new_tokens": 2})
    result = codi_engine.analyze(made, "logit_lens", memory=0.01)[0].result
    assert result is not None
    lens = result.tables["lens"]
    assert lens[lens["position"] == -1]["n"].tolist() == [8, 8, 8]
    assert lens[lens["position"] == -18]["n"].tolist() == [1, 1, 1]
    assert lens[lens["position"] == -18]["rank_low"].isna().all()
    assert "no intermediate results: the data has no field 'steps'" in result.summary
    examples = result.tables["examples"]
    assert examples[examples["entropy"].isna()]["token"].isna().all()


def test_edited_cells_by_condition(tmp_path: Path) -> None:
    keys = {
        "data": {"plugin": "demo-pairs", "limit": 3},
        "conditions": {
            "patch": {"intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": [1], "step": [2, 3]}},
            "zero": {"intervention": {"plugin": "zero", "site": "latent_in", "on": "clean"}, "sweep": {"step": [1]}},
        },
    }
    made = captured_run(tmp_path, ["resid_post@latent"], 4, **keys)
    result = codi_engine.analyze(made, "logit_lens", edited=True, spelling="both")[0].result
    assert result is not None
    assert list(dict.fromkeys(result.tables["lens"]["condition"])) == ["patch", "zero"]
    assert result.tables["lens"]["n"].eq(3).all()  # examples, not cells
    assert len(result.tables["examples"]) == (3 * 2 + 3) * 24
    assert list(dict.fromkeys(result.tables["intermediate"]["value"])) == ["other", "answer"]


def test_the_other_sides_answer_and_annotations_of_the_wrong_side() -> None:
    spelling: Any = type("Spelling", (), {"tokens": lambda _, v: () if np.isnan(v) else (int(v),), "lost": set(), "several": set()})()
    gold = {("a", "clean"): 17.0, ("a", "corrupted"): 22.0, ("b", "clean"): 5.0}
    frame = pd.DataFrame(
        {"example": ["a", "a", "b"], "variant": ["clean", "corrupted", "clean"], "answer": [17.0, 17.0, np.nan], "steps": ["<<9+8=17>> <<17-0=17>>"] * 3}
    )
    frame.loc[2, "steps"] = "<<1+1=2>> <<2+3=5>>"
    found = sought.seek(frame, gold, "steps", spelling)
    assert found.names == ["1", "other", "answer"]
    np.testing.assert_array_equal(found.numbers, [[np.nan, 22, 17], [np.nan, 17, 22], [2, np.nan, 5]])
    assert found.given.tolist() == [[17], [17], [-1]]
    assert found.notes == ["1 annotations do not end in their cell's answer and are left out", "1 intermediate results equal their answer and are left out"]


def test_refusals_are_one_line(run: Run, tmp_path: Path) -> None:
    for options, said in (
        ({"site": "attn_out@latent"}, "attn_out is not the residual stream"),
        ({"site": "resid_pre@latent"}, "were not captured"),
        ({"edited": True}, "no edited cells"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            codi_engine.analyze(run, "logit_lens", **options)
        assert "\n" not in str(raised.value)
    bare = captured_run(tmp_path, [], 4)
    with pytest.raises(UserError, match="needs captured activations; add capture"):
        codi_engine.analyze(bare, "logit_lens")


def test_results_of_annotations() -> None:
    assert results("<<6*2=12>> <<12+7=19>>") == [12, 19]
    assert results("he has <<1,000*2=2,000>>2000 and <<5-7=-2>> and <<1/2=.5>> <<2*3=$6>>") == [2000, -2, 0.5, 6]
    assert results("6*2=12") == results(None) == results(float("nan")) == results("<<x=>>") == []
