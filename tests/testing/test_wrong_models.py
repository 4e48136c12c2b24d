"""A model that breaks one clause fails the test of that clause and no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codi_engine.core.model import ModelAdapter, ModelInfo
from codi_engine.core.session import Session
from codi_engine.plugins.models.causal_lm import CausalLM
from codi_engine.testing import ModelSuite, tiny_causal_lm
from codi_engine.testing.models import DAMAGES
from tests.support.clauses import failures, suite

OPTIONS = {"path": "written by the suite", "device": "cpu"}
#: questions of the suite; none has so many tokens, and the engine feeds nothing of this size when it compares
ROWS = len(ModelSuite.questions)


class OfCausalLM(ModelSuite):
    plugin = CausalLM
    options = (OPTIONS,)

    def written(self, setting: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
        return {**setting, "path": str(tiny_causal_lm(folder, "llama"))}


class Boasts(CausalLM):
    """Describes one layer more than it has."""

    def describe(self) -> ModelInfo:
        info = super().describe()
        return replace(info, layers=info.layers + 1)


class Training(CausalLM):
    """Left in training mode (a llama has no dropout: nothing else shows it)."""

    def load(self) -> ModelAdapter:
        adapter = super().load()
        adapter.network.train()
        return adapter


class Nameless(CausalLM):
    """States no digest."""

    def load(self) -> ModelAdapter:
        return replace(super().load(), digest="")


class Crowded(CausalLM):
    """Its first MLP gives more where all questions are fed a token at once."""

    def load(self) -> ModelAdapter:
        adapter = super().load()

        def more(_module: Any, inputs: Any, out: torch.Tensor) -> torch.Tensor:
            return out * 1.5 if int(inputs[0].any(-1).sum()) == ROWS else out  # what pads a batch is zero

        adapter.network.model.layers[0].mlp.register_forward_hook(more)
        return adapter


class Restless(CausalLM):
    """Another answer in every call."""

    def load(self) -> ModelAdapter:
        adapter, calls = super().load(), iter(range(10**9))

        def drift(_module: Any, _inputs: Any, out: torch.Tensor) -> torch.Tensor:
            return out * (1 + 0.02 * max(0, next(calls) - 8))  # the engine compares the first calls itself

        adapter.network.get_input_embeddings().register_forward_hook(drift)
        return adapter


class Rehearses(CausalLM):
    """Its last MLP is run on something else first: what fires there fires for that too."""

    def load(self) -> ModelAdapter:
        adapter = super().load()
        block = adapter.network.model.layers[-1]
        real = block.forward

        def forward(states: torch.Tensor, *arguments: Any, **keys: Any) -> Any:
            block.mlp(states)
            return real(states, *arguments, **keys)

        block.forward = forward
        return adapter


class Shouts(CausalLM):
    """Decodes in capitals."""

    def load(self) -> ModelAdapter:
        adapter = super().load()
        return replace(adapter, decode=lambda ids: adapter.decode(ids).upper())


class Lenient(CausalLM):
    """Makes up what the checkpoint lacks."""

    def _network(self, device: str) -> Any:
        from transformers import AutoModelForCausalLM

        from codi_engine.core.libraries import quiet

        with quiet():
            return AutoModelForCausalLM.from_pretrained(self.options.path, ignore_mismatched_sizes=True).eval().requires_grad_(False)


AUDITED, BATCH, BACK = "its_weights_are_audited", "a_row_is_the_same_in_any_batch", "a_value_put_back_where_it_stands_changes_nothing"
FIRES, DAMAGED = "an_edit_fires_where_it_is_addressed_and_capture_sees_it_there", "a_damaged_checkpoint_is_refused"
WRONG: dict[type[CausalLM], tuple[str, set[str]]] = {
    Boasts: ("describe() must say what load() gives", {"it_is_described_without_weights_as_it_is"}),
    Training: ("eval mode", {AUDITED}),
    Nameless: ("digest must be stated", {AUDITED}),
    Crowded: ("question", {BATCH}),
    Restless: ("put back must change nothing", {BATCH, BACK, FIRES}),
    Rehearses: ("must be what an edit there sees", {FIRES}),
    Shouts: ("must give the text", {"texts_survive_encoding"}),
    Lenient: ("of another model", {DAMAGED}),
}


@pytest.mark.parametrize("cls", WRONG, ids=lambda c: c.__name__)
def test_a_wrong_model_fails_its_clauses_and_no_other(cls: type[CausalLM], tmp_path: Path) -> None:
    words, clauses = WRONG[cls]
    made = suite(OfCausalLM, cls)
    model = made.build(made.written(OPTIONS, tmp_path / "model"))
    fixtures = {"loaded": lambda _: (model, Session(model.load())), "damage": lambda _: "missing"}
    failed = failures(made, tmp_path / "clauses", fixtures)
    assert set(failed) == clauses, failed
    assert any(words in said for said in failed.values()), failed


@pytest.mark.parametrize("damage", DAMAGES)
def test_every_damage_is_noticed(damage: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="of another model"):
        suite(OfCausalLM, Lenient).test_a_damaged_checkpoint_is_refused(OPTIONS, tmp_path, damage)
