"""Donors matched by meaning, against brute force; what the algebra predicts of an exchange, against the solution by hand."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.planning.preparing import Prepared
from codi_engine.core.plugin import Example
from codi_engine.core.rollout.sampling import generator
from codi_engine.core.running.run import plan_experiment, run_experiment

Maker = Callable[..., Experiment]


def resample(**keys: Any) -> dict[str, Any]:
    return {"plugin": "resample", "site": "latent_in", **keys}


def prepared(demo: Maker, limit: int = 6, donors: int = 3, **keys: Any) -> Prepared:
    made = demo(intervention=resample(**keys), sweep={"step": [1], "donor": donors}, data={"plugin": "demo-problems", "limit": limit}, metrics=["flip"])
    return plan_experiment(made).prepared


def drawn(which: Prepared) -> dict[tuple[str, int], str]:
    """(example, donor number) → the donor."""
    plan = which.plan
    return {(c.example, c.values["donor"]): plan.donors.of(c.example, plan.conditions[c.condition], c.values) for c in plan.cells}


def meaning(example: Example, name: str) -> Any:
    prompt = example.prompts["main"]
    if name == "length":
        return len(prompt.text.split())  # words, as long as there is no tokenizer
    if name == "value":
        found = re.findall(r"=(-?[\d.]+)>>", example.fields["steps"])
        return float(found[0]) if found else None
    return prompt.answer if name == "answer" else example.fields.get(name)


@pytest.mark.parametrize(
    "match",
    [
        {"answer": "different", "length": "same"},
        {"answer": "same"},
        {"length": "different", "reasoning_steps": "same"},
        {"reasoning_steps": "different"},
        {"value": "different", "reasoning_steps": "same", "answer": "different"},
    ],
)
def test_matches_are_those_of_brute_force(demo: Maker, match: dict[str, str]) -> None:
    carries = {"carries": 1} if "value" in match else {}
    which = prepared(demo, match=match, **carries)
    pool = list(which.plan.data.pool)
    by_id = {e.id: e for e in pool}
    found = drawn(which)
    left_out = 0
    for example in which.plan.data.examples:
        others = [e.id for e in pool if e.id != example.id]
        order = generator("donors", 0, example.id, []).permutation(len(others))
        fitting = [others[i] for i in order if all((meaning(example, m) == meaning(by_id[others[i]], m)) == (w == "same") for m, w in match.items())]
        assert [found[example.id, n] for n in range(3) if (example.id, n) in found] == fitting[:3]
        left_out += 3 - min(len(fitting), 3)
    note = f"{left_out:,} cells are left out: no other example fits match"
    assert (note in which.plan.notes) == (left_out > 0)


def test_donors_do_not_change_with_the_limit_or_their_number(demo: Maker) -> None:
    small, large = (drawn(prepared(demo, limit, donors, match={"length": "same"})) for limit, donors in ((2, 2), (7, 5)))
    assert small
    assert all(large[key] == donor for key, donor in small.items())


def test_lengths_are_tokens_in_the_run(demo: Maker, tmp_path: Path) -> None:
    data = {"plugin": "demo-problems", "limit": 4}
    made = demo(intervention=resample(match={"length": "same"}), sweep={"step": [1], "donor": 2}, data=data, metrics=["equals_other"])
    run = run_experiment(made, tmp_path / "run")
    cells = run.open().cells
    assert 0 < len(cells[cells["condition"] != "baseline"]) <= 8


def by_hand(example: Example, value: float) -> float | None:
    """Put ``value`` in place of the first step's result and calculate on; chains of + − * / whose steps take the result before."""
    steps = re.findall(r"<<([^=]+)=(-?[\d.]+)>>", example.fields["steps"])
    result, old = value, float(steps[0][1])
    for text, stated in steps[1:]:
        left, sign, right = re.fullmatch(r"(-?[\d.]+)([-+*/])(-?[\d.]+)", text.replace(" ", "")).groups()  # type: ignore[union-attr]
        numbers = [float(left), float(right)]
        if numbers.count(old) != 1:
            return None
        numbers[numbers.index(old)] = result
        result = {"+": sum(numbers), "-": numbers[0] - numbers[1], "*": numbers[0] * numbers[1], "/": numbers[0] / (numbers[1] or np.nan)}[sign]
        old = float(stated)
    return result


def test_predicted_answers_are_those_of_the_algebra(demo: Maker, tmp_path: Path) -> None:
    data = {"plugin": "demo-problems", "limit": 8}
    match = {"value": "different", "reasoning_steps": "same"}
    keys: dict[str, Any] = {"intervention": resample(carries=1, match=match), "sweep": {"step": [0, 1], "donor": 3}, "data": data}
    made = demo(**keys, metrics=["equals_predicted", "equals_other"])
    plan = plan_experiment(made).prepared.plan
    pool = {e.id: e for e in plan.data.pool}
    cells = run_experiment(made, tmp_path / "run").open().cells.set_index("key")
    agreed = 0
    for cell in plan.cells:
        condition = plan.conditions[0]
        donor = pool[plan.donors.of(cell.example, condition, cell.values)]
        predicted = plan.donors.predicted(cell.example, donor.id, condition, cell.values)
        row = cells.loc[cell.key]
        if predicted is None:
            assert np.isnan(row["equals_predicted"])
            continue
        hand = by_hand(pool[cell.example], float(meaning(donor, "value")))
        if hand is not None:
            assert predicted == pytest.approx(hand)
            agreed += 1
        own = pool[cell.example].prompts["main"].answer
        if own is not None and abs(predicted - own) < 1e-6:
            assert np.isnan(row["equals_predicted"])  # the exchange predicts no change
        else:
            assert row["equals_predicted"] == float(abs(row["answer"] - predicted) < 1e-6)
    assert agreed >= 10
    assert cells["equals_predicted"].dropna().isin([0.0, 1.0]).all()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"match": {"lenght": "same"}}, "match: the data has no field 'lenght'; did you mean 'length'"),
        ({"match": {"value": "same"}}, "match: value needs carries: which result of the solution is meant"),
        ({"match": {"answer": "equal"}}, "match.answer: should be 'same' or 'different'"),
        ({"carries": 0}, "carries: should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_matched_is_said(demo: Maker, keys: Mapping[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        prepared(demo, **keys)
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


def test_nobody_fits(demo: Maker) -> None:
    which = prepared(demo, match={"steps": "same", "answer": "different"})
    assert which.plan.cells == []
    assert "18 cells are left out: no other example fits match" in which.plan.notes


@pytest.mark.parametrize("wrong", [[], [-1], [0.5], [True], [[]], ["a"], 0, -1, 1.5])
def test_donors_are_a_number_or_indices(demo: Maker, wrong: Any) -> None:
    made = demo(intervention=resample(), sweep={"step": [1], "donor": wrong}, data={"plugin": "demo-problems", "limit": 2}, metrics=["flip"])
    with pytest.raises(UserError, match=r"sweep.donor: .*(write the number of donors|finite)"):
        plan_experiment(made)
