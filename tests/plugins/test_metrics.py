from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine.core.plugin import Metric, Outcome, Readings
from codi_engine.core.plugins import plugin_manager

PLUGINS = plugin_manager(load=False)


def metric(name: str, **options: Any) -> Metric[Any]:
    made: Metric[Any] = PLUGINS.build("metric", {"plugin": name, **options}, "metrics[0]", "e.yaml")
    return made


def outcome(rows: int, seed: int, tokens: int = 2, vocabulary: int = 7) -> Outcome:
    generator = np.random.default_rng(seed)
    logits = torch.from_numpy(generator.normal(size=(2, rows, vocabulary)).astype(np.float32))
    reads = {name: generator.normal(size=(rows, tokens)) for name in ("gold_logprob", "other_logprob", "gold_logit", "other_logit")}
    answers = generator.integers(0, 3, rows).astype(float)
    return Outcome([""] * rows, answers, logits[0], logits[1], **reads, captures={"latent_out": generator.normal(size=(rows, 3, 4))})


def readings(rows: int = 5, **changes: Any) -> Readings:
    base: dict[str, Any] = {
        "labels": {}, "gold": np.arange(rows) % 3.0, "other": (np.arange(rows) + 1) % 3.0,
        "gold_token": np.arange(rows) % 7, "other_token": (np.arange(rows) + 1) % 7,
        "edited": outcome(rows, 1), "baseline": outcome(rows, 2), "clean": outcome(rows, 3), "corrupted": outcome(rows, 4),
        "clean_is_gold": np.arange(rows) % 2 == 0,
    }  # fmt: skip
    return Readings(**{**base, **changes})


@pytest.mark.parametrize("direction", ["baseline_to_edited", "edited_to_baseline"])
@pytest.mark.parametrize("at", ["number", "first"])
def test_kl_is_scipys(direction: str, at: str) -> None:
    from scipy.special import rel_entr, softmax

    read = readings()
    got = metric("kl", direction=direction, at=at).measure(read)["kl"]
    for i in range(5):
        p, q = (softmax(getattr(o, f"{at}_logits")[i].double().numpy()) for o in (read.baseline, read.edited))
        expected = rel_entr(p, q).sum() if direction == "baseline_to_edited" else rel_entr(q, p).sum()
        assert got[i] == pytest.approx(expected, rel=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 90), st.integers(0, 1000))
def test_kl_is_never_negative_and_zero_only_for_equal_logits(rows: int, seed: int) -> None:
    a, b = outcome(rows, seed), outcome(rows, seed + 1)
    apart = metric("kl").measure(readings(rows, edited=a, baseline=b))["kl"]
    assert (apart >= 0).all()
    assert (metric("kl").measure(readings(rows, edited=a, baseline=a))["kl"] == 0).all()
    one = metric("kl").measure(readings(1, edited=_row(a, 0), baseline=_row(b, 0)))["kl"]
    assert one[0] == apart[0]  # a row's value does not depend on its neighbours


def _row(o: Outcome, i: int) -> Outcome:
    from codi_engine.core.running.reading import take

    return take(o, [i])


def test_answer_metrics() -> None:
    nan = np.nan
    edited = outcome(4, 1)
    edited = Outcome(**{**edited.__dict__, "answer": np.array([1.0, 2.0, nan, nan])})
    base = Outcome(**{**edited.__dict__, "answer": np.array([1.0, 1.0, nan, 3.0])})
    read = readings(4, edited=edited, baseline=base, gold=np.array([1.0, 1.0, 1.0, 1.0]), other=np.array([5.0, 2.0, nan, 5.0]))
    assert metric("accuracy").measure(read)["accuracy"].tolist() == [1, 0, 0, 0]
    assert metric("flip").measure(read)["flip"].tolist() == [0, 1, 0, 1]
    np.testing.assert_array_equal(metric("equals_other").measure(read)["equals_other"], [0, 1, nan, 0])


def test_logit_difference_and_normalised_effect() -> None:
    read = readings()
    diff = metric("logit_diff").measure(read)["logit_diff"]
    np.testing.assert_allclose(diff, read.edited.gold_logit.sum(1) - read.edited.other_logit.sum(1))
    assert read.clean is not None
    clean = Readings(**{**read.__dict__, "edited": read.clean, "clean_is_gold": np.ones(5, bool)})
    np.testing.assert_allclose(metric("normalized_effect").measure(clean)["normalized_effect"], 1.0)
    corrupted = Readings(**{**read.__dict__, "edited": read.corrupted, "clean_is_gold": np.zeros(5, bool)})
    np.testing.assert_allclose(metric("normalized_effect").measure(corrupted)["normalized_effect"], 0.0, atol=1e-12)
    flat = Readings(**{**clean.__dict__, "corrupted": _swapped(read.clean)})
    assert np.isnan(metric("normalized_effect").measure(flat)["normalized_effect"]).all()


def _swapped(o: Outcome) -> Outcome:
    """The same answers seen from the corrupted side: no gap between clean and corrupted."""
    return Outcome(**{**o.__dict__, "gold_logit": o.other_logit, "other_logit": o.gold_logit})


def test_probability_rank_and_cross_entropy() -> None:
    read = readings()
    np.testing.assert_allclose(metric("prob").measure(read)["prob"], np.exp(read.edited.gold_logprob.sum(1)))
    np.testing.assert_allclose(metric("cross_entropy", reduce="mean").measure(read)["cross_entropy"], -read.edited.gold_logprob.mean(1))
    rank = metric("rank").measure(read)["rank"]
    for i in range(5):
        row = read.edited.number_logits[i]
        assert rank[i] == 1 + int((row > row[read.gold_token[i]]).sum())


def test_changes_of_logits() -> None:
    read = readings()
    a, b = read.edited.number_logits.double().numpy(), read.baseline.number_logits.double().numpy()
    np.testing.assert_allclose(metric("rms_logit_diff").measure(read)["rms_logit_diff"], np.sqrt(((a - b) ** 2).mean(1)))
    np.testing.assert_array_equal(metric("argmax_changed").measure(read)["argmax_changed"], a.argmax(1) != b.argmax(1))


def test_scores_follow_the_side_not_the_prompt() -> None:
    read = readings()
    clean, corrupted = metric("clean_score").measure(read)["clean_score"], metric("corrupted_score").measure(read)["corrupted_score"]
    gold, other = read.edited.gold_logprob.sum(1), read.edited.other_logprob.sum(1)
    assert read.clean_is_gold is not None
    np.testing.assert_allclose(clean, np.where(read.clean_is_gold, gold, other))
    np.testing.assert_allclose(corrupted, np.where(read.clean_is_gold, other, gold))


def test_capture_metrics_against_loops() -> None:
    read = readings()
    a, b = read.edited.captures["latent_out"], read.baseline.captures["latent_out"]
    for i in range(5):
        cosines = [a[i, k] @ b[i, k] / np.linalg.norm(a[i, k]) / np.linalg.norm(b[i, k]) for k in range(3)]
        assert metric("cosine").measure(read)["cosine"][i] == pytest.approx(np.mean(cosines))
        assert metric("l2").measure(read)["l2"][i] == pytest.approx(np.mean([np.linalg.norm(a[i, k] - b[i, k]) for k in range(3)]))
        assert metric("norm").measure(read)["norm"][i] == pytest.approx(np.mean([np.linalg.norm(a[i, k]) for k in range(3)]))
    same = readings(edited=read.baseline)
    assert (metric("cosine").measure(same)["cosine"] == 1).all()
    assert set(metric("clean_similarity").measure(read)) == {"clean_cosine", "clean_l2"}
