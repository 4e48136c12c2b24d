"""Cells whose edits lie at unlike tokens run as one stage: every cell's numbers are those that it has alone, to the bit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from codi_engine.core.libraries import quiet
from codi_engine.core.model import ModelAdapter
from codi_engine.core.rollout import rectangles, tokenwise
from codi_engine.core.rollout.attention import Standing
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.rollout.spans import Spans
from codi_engine.core.rollout.tasks import Edit
from codi_engine.core.sites import Site
from codi_engine.plugins.models.hf import describe
from codi_engine.testing import tiny

LENGTHS = (5, 18, 33, 47)
SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "k", "v")


def taken_apart(model: Any) -> Network:
    nothing: Any = None
    return Network(ModelAdapter(describe(model.config, 0, "float32", "cpu"), model, nothing, nothing, nothing, stop_ids=(0,)))


def wide() -> Any:
    """A model wide enough that its weights are packed."""
    torch.manual_seed(0)
    with quiet():
        config = GPT2Config(n_layer=3, n_embd=64, n_head=4, vocab_size=128, n_positions=64, bos_token_id=None, eos_token_id=None, initializer_range=0.2)
        return GPT2LMHeadModel(config).eval().requires_grad_(False)


@pytest.fixture(scope="module", params=[*((family, tokenwise) for family in (*tiny.FAMILIES, "wide")), ("llama", rectangles), ("wide", rectangles)], ids=str)
def net(request: pytest.FixtureRequest) -> Network:
    family, way = request.param
    made = taken_apart(wide() if family == "wide" else tiny.network(family))
    made.attention = way
    return made


def cells(net: Network, number: int) -> list[Task]:
    """Cells with one to three edits at places of their own, and some with none."""
    rng = np.random.default_rng(3)
    sites = [s for s in SITES if s in net.components]
    out = []
    for cell in range(number):
        prompt = int(rng.integers(len(LENGTHS)))
        edits = [
            Edit(Site(str(rng.choice(sites)), int(rng.integers(net.info.layers))), -1 - int(rng.integers(LENGTHS[prompt])), 0, cell // 2)
            for _ in range(rng.integers(4))
        ]
        unique = {(e.site, e.place): e for e in edits}.values()
        out.append(Task(prompt, {"prompt": sorted(unique, key=lambda e: (e.place or 0, e.site.entry(net.info.layers)))} if unique else {}))
    return out


def apply(_: int, site: Site, place: int, which: Sequence[int], values: torch.Tensor) -> torch.Tensor:
    return values * 0.5 + 0.01 * place


@pytest.mark.parametrize("after", ["first logits alone", "generated", "captured"])
def test_cells_together_are_cells_alone(net: Network, after: str) -> None:
    generator = torch.Generator().manual_seed(1)
    texts = [torch.randint(1, 120, (n,), generator=generator).tolist() for n in LENGTHS]
    captures: Any = {("resid_post", "prompt"): (tuple(range(net.info.layers)), (-4, -1)), ("final_norm", "prompt"): ((None,), (-2,))}
    want = Want(captures if after == "captured" else {}, generate=after == "generated", read=False, max_new_tokens=3)
    tasks = cells(net, 16)
    together = Rollout(net).run(texts, tasks, want, apply)
    for cell, task in enumerate(tasks):
        alone = Rollout(net).run([texts[task.prompt]], [Task(0, task.edits)], want, apply)
        assert torch.equal(alone.first_logits[0], together.first_logits[cell])
        assert alone.tokens[0] == together.tokens[cell]
        for site, values in alone.captures.items():
            assert torch.equal(values[0], together.captures[site][cell])
    assert together.forwarded < sum(len(texts[t.prompt]) for t in tasks)


def test_rows_feed_what_differs_alone(net: Network) -> None:
    """Of a cell edited at the last token, that token is computed; the others' are the prompt's."""
    text = torch.randint(1, 120, (33,), generator=torch.Generator().manual_seed(1)).tolist()
    tasks = [Task(0, {"prompt": (Edit(Site("resid_post", 0), -place, 0, place),)}) for place in (1, 2, 5)]
    out = Rollout(net).run([text], tasks, Want(generate=False, read=False), apply)
    assert out.forwarded == 1 + 2 + 5


def test_a_token_that_is_not_the_rows_own_is_refused() -> None:
    with pytest.raises(RuntimeError, match="offset 1 is not among"):
        Spans(np.array([0, 2]), 4).at(np.array([0, 1]), 1)


def test_queries_of_unlike_rows_find_their_tokens_again() -> None:
    spans = Spans(np.array([0, 59, 40, 58, 12]), 60)
    nothing = np.zeros(5, np.int64)
    layout = rectangles.lay_out(Standing(spans, 3, 64, 0, 0, nothing, nothing), 1, torch.device("cpu"))
    assert len(layout.queries) > 1
    tokens = torch.arange(spans.total)
    squares = torch.cat([tokens[q.take] for q in layout.queries if q.take is not None])
    assert layout.back is not None
    assert torch.equal(squares[layout.back], tokens)
    assert layout.slot is not None
    assert layout.slot.max() == 62
