"""An intervention that breaks one clause fails the test of that clause and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from codi_engine.core.plugin import Intervention, NoOptions, Rows
from codi_engine.testing import InterventionSuite
from tests.support.clauses import failures, suite

COUNT = iter(range(1, 10**9))


class Halve(Intervention[NoOptions]):
    """Half of every value."""

    name = "halve"
    Options = NoOptions

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values * 0.5


class InPlace(Halve):
    """Changes its input."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values.mul_(0.5)


class Neighbours(Halve):
    """Takes the batch's mean."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values - rows.values.mean(0, keepdim=True)


class Narrow(Halve):
    """Returns another width."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values[:, 1:]


class Moody(Halve):
    """Another value in every call."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values.add(1e-3 * next(COUNT))


class Secret(Halve):
    """Takes draws without saying so."""

    def apply(self, rows: Rows) -> torch.Tensor:
        draws: torch.Tensor = rows.draws()
        return rows.values + draws


class Divides(Halve):
    """NaN for a zero vector."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values / (rows.values * rows.values).sum(-1, keepdim=True)


class Upcasts(Halve):
    """Another precision."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values.float() * 0.5


class NoIdentity(Halve):
    """Says that it is an identity."""

    def identity(self) -> bool:
        return True


class Undeclared(Halve):
    """Takes a scale that it does not declare."""

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.scale is not None
        return rows.values * rows.scale[:, None]


class NotNeutral(Halve):
    """Its neutral form is none."""

    def neutral(self) -> NotNeutral:
        return self


BITS, ANY_BATCH, ONE = "many_rows_at_once_are_the_rows_one_by_one", "a_row_does_not_depend_on_its_neighbours_or_its_place", "batches_of_one_give_the_same_cells"
SWEEP = "a_tiny_sweep_runs_and_the_gate_lets_it_pass"
SAME = "the_same_rows_twice_give_the_same_values"
#: clauses that call apply() and ask something else of it
APPLIES = {
    BITS, ANY_BATCH, ONE, SWEEP, SAME, "a_zero_vector_gives_no_nan", "finite_values_stay_finite", "it_gives_one_new_value_per_value",
    "it_keeps_lower_precision", "it_never_changes_its_input_in_place", "random_is_declared_iff_draws_are_used",
}  # fmt: skip
#: class → what the clause meant for it says, and the clauses that fail
WRONG: dict[type[Halve], tuple[str, set[str]]] = {
    InPlace: ("in place", {"it_never_changes_its_input_in_place", SWEEP, ONE}),
    Neighbours: ("must be what it is alone", {BITS, ANY_BATCH, ONE}),
    Narrow: ("keep shape", {"it_gives_one_new_value_per_value", SWEEP, ONE}),
    Moody: ("deterministic", {SAME, BITS, ANY_BATCH, ONE}),
    Secret: ("`random` is False", {"random_is_declared_iff_draws_are_used"}),
    Divides: ("zero", {"a_zero_vector_gives_no_nan"}),
    Upcasts: ("bfloat16", {"it_keeps_lower_precision"}),
    NoIdentity: ("bit for bit", {"options_that_say_identity_leave_every_value", SWEEP, ONE}),
    Undeclared: ("what it declares", {"it_takes_only_the_source_and_scale_that_it_declares", *APPLIES}),
    NotNeutral: ("neutral() must leave every value", {"its_neutral_options_leave_every_value", SWEEP, ONE}),
}


#: every third one in every run of the tests, all of them by `make slow`
MARKED: list[Any] = [c if number % 3 == 0 else pytest.param(c, marks=pytest.mark.slow) for number, c in enumerate(WRONG)]


@pytest.mark.parametrize("cls", MARKED, ids=lambda c: c.__name__)
def test_a_wrong_intervention_fails_its_clauses_and_no_other(cls: type[Any], tmp_path: Path) -> None:
    words, clauses = WRONG[cls]
    failed = failures(suite(InterventionSuite, cls), tmp_path)
    assert set(failed) == clauses, failed
    assert any(words in said for said in failed.values()), failed


class TestHalve(InterventionSuite):
    plugin = Halve
