"""Classes of answers, perplexity, and what patterns read in texts."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.patterns import explosive
from codi_engine.core.planning.preparing import metric_names
from codi_engine.core.plugin import Outcome, Readings
from codi_engine.core.running.run import run_experiment
from codi_engine.plugins.metrics.outcome import ANSWER_CLASSES
from codi_engine.store.layout import ArraySpec
from tests.plugins.test_metrics import metric, outcome, readings

NAN = float("nan")
BETS = r"final decision:\s*(?P<action>\w+)(?:\s*\$?(?P<bet>[\d,.]+))?"


def answered(answer: list[float], **changes: Any) -> Readings:
    rows = len(answer)
    edited = Outcome(**{**outcome(rows, 1).__dict__, "answer": np.array(answer)})
    return readings(rows, edited=edited, **changes)


def classes(read: Readings) -> list[str]:
    got = metric("answer_class").measure(read)
    assert tuple(got) == ANSWER_CLASSES
    table = np.stack(list(got.values()))
    np.testing.assert_array_equal(table.sum(0), 1.0)
    return [ANSWER_CLASSES[i] for i in table.argmax(0)]


def test_answers_are_sorted_by_side_whichever_prompt_runs() -> None:
    gold, other = np.array([18.0, 18.0, 18.0, 18.0]), np.array([20.0, 20.0, 20.0, 20.0])
    for side, (first, second) in ((True, ("clean_answer", "corrupted_answer")), (False, ("corrupted_answer", "clean_answer"))):
        read = answered([18.0, 20.0, 7.0, NAN], gold=gold, other=other, clean_is_gold=np.full(4, side))
        assert classes(read) == [first, second, "other_answer", "unintelligible"]


def test_donors_count_as_the_corrupted_side() -> None:
    read = answered([18.0, 20.0, 5.0, 5.0], gold=np.array([18.0, 18.0, 5.0, 1.0]), other=np.array([20.0, 20.0, 5.0, NAN]), clean_is_gold=None)
    assert classes(read) == ["clean_answer", "corrupted_answer", "clean_answer", "other_answer"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0.0, 1.0, 2.5, NAN])] * 3, st.booleans()), min_size=1, max_size=30))
def test_every_answer_has_one_class(rows: list[tuple[float, float, float, bool]]) -> None:
    answer, gold, other, side = (np.array(c) for c in zip(*rows, strict=True))
    for clean_is_gold in (side, None):
        found = classes(answered(list(answer), gold=gold, other=other, clean_is_gold=clean_is_gold))
        assert [c == "unintelligible" for c in found] == np.isnan(answer).tolist()
        accurate = metric("accuracy").measure(answered(list(answer), gold=gold))["accuracy"]
        if clean_is_gold is None:
            assert [c == "clean_answer" for c in found] == (accurate == 1).tolist()


def test_perplexity_is_per_token() -> None:
    read = readings(4)
    read.edited.gold_logprob[0, 1] = NAN  # an answer of one token
    read.edited.gold_logprob[1] = NAN  # no answer
    got = metric("perplexity").measure(read)["perplexity"]
    assert got[0] == pytest.approx(np.exp(-read.edited.gold_logprob[0, 0]))
    assert np.isnan(got[1])
    assert got[2] == pytest.approx(1 / np.prod(np.exp(read.edited.gold_logprob[2])) ** (1 / 2))
    np.testing.assert_allclose(np.log(got), metric("cross_entropy", reduce="mean").measure(read)["cross_entropy"])


def read_texts(texts: list[str], **options: Any) -> dict[str, list[float]]:
    read = readings(len(texts), edited=Outcome(**{**outcome(len(texts), 1).__dict__, "text": texts}))
    made = metric("outcome", **{"pattern": BETS, "categories": {"action": ["stop", "bet"]}, "numbers": ["bet"], **options})
    got = made.measure(read)
    assert list(got) == list(made.columns())
    return {name: values.tolist() for name, values in got.items()}


def test_a_pattern_reads_decisions_and_numbers() -> None:
    texts = ["Hm. Final Decision: BET $2,000.50!", "final decision: stop", "Final decision: Fold", "I cannot say", "final decision: bet a lot"]
    got = read_texts(texts)
    assert list(got) == ["action=stop", "action=bet", "action=other", "action=unparsable", "bet"]
    assert got["action=bet"] == [1, 0, 0, 0, 1]
    assert got["action=stop"] == [0, 1, 0, 0, 0]
    assert got["action=other"] == [0, 0, 1, 0, 0]
    assert got["action=unparsable"] == [0, 0, 0, 1, 0]
    np.testing.assert_array_equal(got["bet"], [2000.5, NAN, NAN, NAN, NAN])


def test_the_last_match_counts_unless_the_first_is_asked_for() -> None:
    text = "final decision: bet 5. No, wait. final decision: stop"
    assert read_texts([text])["action=stop"] == [1]
    got = read_texts([text], match="first")
    assert (got["action=bet"], got["bet"]) == ([1], [5])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="final decs:otpb 5$,", max_size=60) | st.sampled_from(["final decision: stop", "FINAL DECISION: x"]), min_size=1, max_size=6))
def test_categories_of_any_text_sum_to_one(texts: list[str]) -> None:
    got = read_texts(texts)
    np.testing.assert_array_equal(np.sum([v for k, v in got.items() if "=" in k], axis=0), 1.0)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"pattern": "(?P<action>"}, "no regular expression"),
        ({"pattern": r"(?P<action>(a+)+)b"}, "forever"),
        ({"pattern": r"(?P<action>x(?:\w+\s*)*)"}, "forever"),
        ({"pattern": r"(?P<action>x(\w{1,20}\s?)+)"}, "forever"),
        ({"pattern": r"(\w+)"}, "no group 'action'"),
        ({"categories": {"action": ["stop"], "bet": ["유지"]}}, "no legal name"),
        ({"categories": {"action": ["stop", "STOP"]}}, "taken"),
        ({"categories": {"action": ["other"]}}, "taken"),
        ({"categories": {}, "numbers": []}, "name groups"),
        ({"numbers": ["sum"]}, "no group 'sum'"),
        ({"match": "second"}, "match"),
    ],
)
def test_wrong_options_are_refused_in_words(options: dict[str, Any], word: str) -> None:
    with pytest.raises(UserError, match=word) as caught:
        metric("outcome", **{"pattern": BETS, "categories": {"action": ["stop"]}, **options})
    assert str(caught.value).count("\n") <= 1


@pytest.mark.parametrize("pattern", [r"(\d++,)+", r"[a-z]+\s+\d+", r"(?>a+)+b", r"(foo|bar)*x?", r"[\x18-\x19]*", BETS])
def test_harmless_patterns_are_let_through(pattern: str) -> None:
    assert not explosive(pattern)


def test_long_texts_are_cut() -> None:
    begun = time.perf_counter()
    got = read_texts(
        ["a" * 5_000_000 + " final decision: stop", "final decision: stop" + "a" * 5_000_000], pattern=r"final decision: (?P<action>stop)(?P<bet>)"
    )
    assert got["action=stop"] == [0, 1]
    assert time.perf_counter() - begun < 5


def test_two_outcomes_of_one_run_have_legal_names() -> None:
    both = [metric("outcome", pattern=BETS, categories={"action": ["a b", "c"]}, match=m) for m in ("last", "first")]
    names = metric_names([*both, metric("answer_class")])
    assert len(set(names.values())) == len(names) == 4 + 4 + 4
    for name in names.values():
        ArraySpec(f"cells/metrics/{name}", ("cell",), (), "float64", NAN)


def test_a_run_on_pairs_keeps_the_classes(demo: Callable[..., Experiment]) -> None:
    texts = {"plugin": "outcome", "pattern": r"answer is:? *(?P<number>-?[\d,.]+)", "numbers": ["number"], "categories": {"number": ["7"]}}
    run = run_experiment(
        demo(
            intervention={"plugin": "patch", "site": "latent_in", "direction": "denoise"},
            sweep={"step": [0, 3]},
            metrics=["answer_class", "accuracy", "perplexity", texts],
        )
    ).open()
    cells = run.cells
    assert set(cells["condition"]) == {"baseline", "intervention"} or len(set(cells["condition"])) == 2
    np.testing.assert_array_equal(cells[list(ANSWER_CLASSES)].sum(axis=1), 1.0)
    own = np.where(cells["variant"] == "clean", cells["clean_answer"], cells["corrupted_answer"])
    np.testing.assert_array_equal(own, cells["accuracy"])
    assert (cells["perplexity"] >= 1).all()
    assert {"number=7", "number=other", "number=unparsable", "number"} <= set(cells)
    stated = cells["text"].str.contains("answer is")
    np.testing.assert_array_equal(cells.loc[stated, "number"], cells.loc[stated, "answer"])


def test_a_run_with_donors_keeps_the_classes(demo: Callable[..., Experiment]) -> None:
    run = run_experiment(
        demo(
            data={"plugin": "demo-problems", "limit": 4},
            intervention={"plugin": "resample", "site": "latent_in"},
            sweep={"step": [0], "donor": 3},
            metrics=["answer_class", "accuracy", "equals_other"],
        )
    ).open()
    cells = run.cells
    np.testing.assert_array_equal(cells["clean_answer"], cells["accuracy"])
    base, edited = cells["condition"] == "baseline", cells["condition"] != "baseline"
    assert (cells.loc[base, "corrupted_answer"] == 0).all()
    donors = cells.loc[edited & (cells["clean_answer"] == 0)]
    np.testing.assert_array_equal(donors["corrupted_answer"], donors["equals_other"])
