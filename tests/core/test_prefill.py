"""Prompts that begin alike: computed once, and to the bits of each computed alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from codi_engine.core.rollout import prefill, wavefront
from codi_engine.core.rollout.batchrun import BatchRun
from codi_engine.core.rollout.prefill import Beginnings, Due, Entry, Ids, Prefill, Prefilled, alike, common, waves
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.rollout.state import Batch
from codi_engine.testing import tiny
from tests.core.test_rollout import taken_apart


def family(seed: int = 5) -> list[Ids]:
    """Return prompts of many lengths with common beginnings, pairs that differ in the middle, and repetitions."""
    draw = random.Random(seed)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(1, 100) for _ in range(count)]

    preamble = tokens(60)
    out = [preamble[: draw.choice([3, 20, 35, 48, 60])] + tokens(draw.choice([1, 4, 7, 20, 33])) for _ in range(16)]
    for _ in range(4):
        clean = tokens(40)
        out += [clean, [*clean[:20], *tokens(4), *clean[24:]]]
    return [tuple(p) for p in [*out, out[0], [5], preamble]]


def same(a: Entry, b: Entry, length: int) -> bool:
    own = all(torch.equal(x[:, -length:], y[:, -length:]) for x, y in zip([*a.keys, *a.values], [*b.keys, *b.values], strict=True))
    return own and torch.equal(a.last, b.last)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@torch.inference_mode()
def test_common_beginnings_are_computed_once_to_the_bits_of_each_prompt_alone(kind: str) -> None:
    net = taken_apart(tiny.network(kind))
    prompts = family()
    alone = [Prefill(net, 0, 4096).entries([p])[0] for p in prompts]
    little = alone[-1].size
    together, few, piecewise = Prefill(net, 1 << 29, 4096), Prefill(net, 0, 100), Prefill(net, little, 4096)
    for made in (together.entries(prompts), few.entries(prompts), [e for i in range(0, len(prompts), 4) for e in piecewise.entries(prompts[i : i + 4])]):
        assert all(same(a, b, len(p)) for a, b, p in zip(alone, made, prompts, strict=True))
    distinct = sum(map(len, set(prompts)))
    assert together.fed == few.fed < 0.8 * distinct
    assert together.fed < piecewise.fed < distinct  # a small memory forgets some of what others begin with
    assert 0 < piecewise.kept.size <= little
    before = together.fed
    together.entries(prompts[::-1])
    assert together.fed == before


@torch.inference_mode()
def test_a_pair_shares_what_comes_before_its_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    net = taken_apart(tiny.network("gpt2"))
    fed: list[tuple[int, int]] = []
    real: Any = wavefront.run_stage

    def counted(net: Any, batch: Any, state: Any, inputs: torch.Tensor, *rest: Any, **named: Any) -> Any:
        fed.append((len(named["spans"].first), inputs.shape[0] // len(named["spans"].first)))
        return real(net, batch, state, inputs, *rest, **named)

    monkeypatch.setattr(prefill, "run_stage", counted)
    clean = [tuple(range(10 * i + 1, 10 * i + 51)) for i in range(3)]
    corrupted = [(*c[:20], 99, *c[21:]) for c in clean]
    Prefill(net, 0, 4096).entries([*clean, *corrupted])
    assert fed == [(3, 50), (3, 30)]  # rows × tokens


def test_waves_follow_the_trie_and_stay_within_a_length_modulo_the_block() -> None:
    stem = tuple(range(100, 140))
    prompts = [(*stem, i, 1, 2) for i in range(5)] + [(*stem, 9, *range(18))] + [(*stem, 7)]
    first, second = waves(prompts, Beginnings(16))
    assert [d.ids for d in first] == [prompts[0], prompts[6]]  # lengths 43 and 59 agree modulo 16, 41 goes alone
    assert {(d.source, d.shared) for d in second} == {(prompts[0], 40)}
    assert len(second) == 5
    known = Beginnings(16)
    known.add(prompts[0])
    assert all(d.source == prompts[0] for d in waves(prompts[1:5], known)[0])
    known.drop(prompts[0])
    assert known.closest(prompts[1]) == (None, 0)
    assert [len(wave) for wave in waves(prompts, Beginnings(1))] == [1, 6]  # with a grain of one all of them share


def test_common_and_alike() -> None:
    assert common((1, 2, 3), (1, 2, 3)) == 2  # the last token's state is always computed
    assert common((1, 2, 3, 4), (1, 2, 9, 4)) == 2
    assert common((1,), (1, 2)) == 0
    assert common((4, 2, 3), (1, 2, 3)) == 0
    dues = [Due(tuple(range(n)), None, 0) for n in (10, 100, 90, 12, 95)]
    assert [[d.tokens for d in g] for g in alike(dues, 1000)] == [[100, 95, 90], [12, 10]]
    assert [[d.tokens for d in g] for g in alike(dues, 200)] == [[100, 95], [90], [12, 10]]


def test_rows_after_shared_beginnings_keep_their_bits_in_the_rollout() -> None:
    net = taken_apart(tiny.network("llama"))
    prompts = family(7)[:12]
    want = Want(read=False, first=True, max_new_tokens=3)
    alone = [Rollout(net, cache_bytes=0).run([p], [Task(0)], want) for p in prompts]
    together = Rollout(net).run(prompts, [Task(i) for i in range(len(prompts))], want)
    assert all(torch.equal(together.first_logits[i], one.first_logits[0]) and together.tokens[i] == one.tokens[0] for i, one in enumerate(alone))


def test_the_first_prompts_stay_in_memory_for_the_next_pass() -> None:
    def entry() -> Entry:
        return Entry([torch.zeros(1, 16, 2)], [torch.zeros(1, 16, 2)], torch.zeros(2))

    kept = Prefilled(8 * entry().size, 16)
    names = [(i,) for i in range(20)]
    for ids in names:
        kept.put(ids, entry())
    assert [ids for ids in names if kept.get(ids) is not None] == [*names[:6], *names[-2:]]
    assert kept.size == kept.budget
    assert kept.known.closest((3, 1))[0] is None  # one token: nothing before its last one is shared


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("tail", [1, 5, 30])
def test_captures_that_come_along_have_the_bits_of_those_taken_later(kind: str, tail: int) -> None:
    """While prompts are prefilled, where all of them have as many tokens to feed; else, and of known prompts, in a stage of their own."""
    net = taken_apart(tiny.network(kind))
    prompts = [tuple(range(1, 15)), (*range(1, 11), *range(50, 57)), tuple(range(20, 60)), tuple(range(5, 12))]
    places = (-tail, -1) if tail > 1 else (-1,)
    captures: Any = {("resid_post", "prompt"): ((0, net.info.layers - 1), places), ("v", "prompt"): ((1,), places), ("final_norm", "prompt"): ((None,), (-1,))}
    want = Want(captures, generate=False, read=False, first=False)
    fresh, known = Rollout(net), Rollout(net)
    known.load_prompts(prompts)
    runs = [BatchRun(rollout, prompts, [Task(i) for i in (*range(len(prompts)), 0)], want, prefill._no_apply) for rollout in (fresh, known)]
    assert [run.came_along for run in runs] == [tail <= 5, False]
    with torch.inference_mode():
        first, second = (run.run().captures for run in runs)
    assert set(first) == set(second)
    for site, values in first.items():
        assert torch.equal(values.nan_to_num(7.0), second[site].nan_to_num(7.0))
    assert float(first["resid_post", 0, "prompt"].nan_to_num().abs().max()) > 0


def test_room_is_what_a_row_needs_and_in_grains_nothing_else() -> None:
    batch = Batch(None, np.zeros(0), 0, most=50)
    assert [batch.room(needed, 1) for needed in (1, 32, 33, 60)] == [32, 32, 50, 60]
    assert [batch.room(needed, 16) for needed in (1, 32, 33, 60)] == [16, 32, 48, 64]
