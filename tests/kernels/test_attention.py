"""The attention kernel against a naive twin, and its bits against where a row's own slots begin."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine.core.rollout import rectangles, tokenwise
from codi_engine.core.rollout.attention import Context, PromptKV, Standing
from codi_engine.core.rollout.spans import Spans

KV, HEADS = 2, 3


def scene(seed: int, rows: int, width: int, shared: int, used: int, size: int) -> tuple[Standing, Any, Any, PromptKV, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where tokens stand, rows' and prompts' keys and values, and the new tokens' query, key and value."""
    draw = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    spans = Spans(draw.integers(0, size, rows), size)
    prompt = np.sort(draw.integers(0, 2, rows))
    empty = draw.integers(0, shared + used + 1, 2)  # slots before a prompt's first token
    standing = Standing(spans, used, used + size + 3, shared, 2, prompt, empty[prompt])
    own = [torch.randn(rows, KV, standing.room, width, generator=generator) for _ in range(2)]
    valid = torch.arange(shared)[None] >= torch.from_numpy(empty)[:, None]
    kept = [[torch.randn(2, KV, shared, width, generator=generator)] for _ in range(2)]
    prompts = PromptKV(kept[0], kept[1], valid)
    query = torch.randn(1, KV * HEADS, spans.total, width, generator=generator)
    key, value = (torch.randn(1, KV, spans.total, width, generator=generator) for _ in range(2))
    return standing, own[0], own[1], prompts, query, key, value


def naive(standing: Standing, keys: Any, values: Any, prompts: PromptKV, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """One token and head after the other, in float64."""
    spans = standing.spans
    for token in range(spans.total):
        slot = spans.offsets[token] + standing.used
        keys[spans.rows[token], :, slot], values[spans.rows[token], :, slot] = key[0, :, token], value[0, :, token]
    out = torch.zeros(spans.total, KV * HEADS, query.shape[3], dtype=torch.float64)
    for token in range(spans.total):
        row, slot = spans.rows[token], spans.offsets[token] + standing.used
        begin, prompt = standing.begin[row], standing.prompt[row]
        for head in range(KV * HEADS):
            seen = [
                torch.cat([kept[0][prompt, head // HEADS], own[row, head // HEADS, : slot + 1]])[begin:].double()
                for kept, own in ((prompts.keys, keys), (prompts.values, values))
            ]
            if len(seen[0]):
                out[token, head] = torch.softmax(seen[0] @ query[0, head, token].double() * 0.25, 0) @ seen[1]
    return out


def computed(way: Any, of: Any, layout: Any = None) -> torch.Tensor:
    standing, keys, values, prompts, query, key, value = of
    layout = way.lay_out(standing, HEADS, torch.device("cpu")) if layout is None else layout
    context = Context(layout, keys, values, prompts if standing.shared else None, 0)
    layout.store(context, key, value)
    return layout.attend(query, context, 0.25)  # type: ignore[no-any-return]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([1, 5, 16, 24, 64, 80]), st.integers(0, 21), st.integers(0, 5), st.integers(1, 6))
def test_it_is_what_the_formula_says(seed: int, rows: int, width: int, shared: int, used: int, size: int) -> None:
    of = scene(seed, rows, width, shared, used, size)
    assert torch.allclose(computed(tokenwise, of).double(), naive(*of), atol=2e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([5, 16, 64, 72]), st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_bits_do_not_depend_on_where_a_rows_own_slots_begin(seed: int, rows: int, width: int, shared: int, used: int, size: int) -> None:
    """The last slots of the prompts become rows' own; tokens turn round; every row alone: the same bits."""
    standing, keys, values, prompts, query, key, value = scene(seed, rows, width, shared, used, size)
    want = computed(tokenwise, (standing, keys, values, prompts, query, key, value))
    moved = min(shared, 7)
    longer = [torch.cat([kept[0][standing.prompt, :, shared - moved :], own], 2) for kept, own in ((prompts.keys, keys), (prompts.values, values))]
    spans = standing.spans
    other = Standing(spans, used + moved, standing.room + moved, shared - moved, 2, standing.prompt, standing.begin)
    assert torch.equal(computed(tokenwise, (other, *longer, prompts.head(shared - moved), query, key, value)), want)
    turned = query.transpose(1, 2).contiguous().transpose(1, 2)  # other strides
    assert torch.equal(computed(tokenwise, (standing, keys, values, prompts, turned, key, value)), want)
    for row in range(rows):
        mine = np.flatnonzero(spans.rows == row)
        alone = Standing(Spans(spans.first[[row]], size), used, standing.room, shared, 2, standing.prompt[[row]], standing.begin[[row]])
        got = computed(tokenwise, (alone, keys[[row]], values[[row]], prompts, query[:, :, mine], key[:, :, mine], value[:, :, mine]))
        assert torch.equal(got, want[mine])


@pytest.mark.parametrize("shared", [0, 16, 48])
def test_both_ways_agree(shared: int) -> None:
    for seed in range(6):
        of = scene(seed, 5, 32, shared, 3, 4)
        of[0].begin[:] = np.minimum(of[0].begin, shared + 2)  # rectangles give tokens before a prompt's first one something, too
        first, second = (computed(way, (of[0], of[1].clone(), of[2].clone(), *of[3:])) for way in (tokenwise, rectangles))
        assert torch.allclose(first, second, atol=2e-6)
        assert float(first.abs().max()) > 0.1


def test_threads_share_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    of = scene(3, 5, 64, 21, 3, 4)
    want = computed(tokenwise, of)
    calls: list[Any] = []
    pool = tokenwise._pool
    monkeypatch.setattr(tokenwise, "_ALONE", 1)

    def counted(process: int) -> Any:
        calls.append(process)
        return pool(process)

    monkeypatch.setattr(tokenwise, "_pool", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert torch.equal(computed(tokenwise, of), want)
    assert len(calls) == 1


def test_only_keys_and_values_are_stored() -> None:
    standing, keys, values, _, _, key, value = scene(5, 4, 16, 0, 2, 3)
    spans = standing.spans
    for way in (tokenwise, rectangles):
        own = torch.zeros_like(keys), torch.zeros_like(values)
        layout = way.only_store(spans.rows, spans.offsets + 2, torch.device("cpu"))
        layout.store(Context(layout, *own, None, 0), key, value)
        for token in range(spans.total):
            assert torch.equal(own[0][spans.rows[token], :, spans.offsets[token] + 2], key[0, :, token])
            assert torch.equal(own[1][spans.rows[token], :, spans.offsets[token] + 2], value[0, :, token])
        assert int((own[0] != 0).any(-1).sum()) == spans.total * KV


def test_tokens_outside_of_their_rows_are_refused() -> None:
    standing = scene(5, 4, 16, 8, 2, 3)[0]
    for wrong in (replace(standing, room=4), replace(standing, begin=standing.begin - 20)):
        with pytest.raises(RuntimeError, match="do not stand in"):
            tokenwise.lay_out(wrong, HEADS, torch.device("cpu"))


def test_what_lies_otherwise_in_memory_is_refused() -> None:
    standing, keys, values, prompts, *new = scene(5, 4, 16, 8, 2, 3)
    for first, second in ((keys, values.transpose(2, 3).contiguous().transpose(2, 3)), (torch.cat([keys, keys], 3)[..., :16],) * 2):
        with pytest.raises(RuntimeError, match="lie in memory"):
            computed(tokenwise, (standing, first, second, prompts, *new))
