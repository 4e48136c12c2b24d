"""The rollout against plain hooks run one at a time, and against itself in other batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from codi_engine.core.model import ModelAdapter
from codi_engine.core.rollout import answering
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.rollout.sampling import Sampler
from codi_engine.core.rollout.selftest import self_test
from codi_engine.core.rollout.tasks import Edit
from codi_engine.core.sites import Site
from codi_engine.plugins.models.codi import Codi, CodiOptions
from codi_engine.plugins.models.hf import describe
from codi_engine.testing import tiny
from tests.support import naive

PATCHED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn_z", "mlp_act", "q", "k", "v")


def taken_apart(model: Any) -> Network:
    info = describe(model.config, 0, "float32", "cpu")
    nothing: Any = None
    return Network(ModelAdapter(info, model, nothing, nothing, nothing, stop_ids=(0,)))


def prompts(lengths: tuple[int, ...] = (5, 9, 17, 23, 31, 33)) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 120, (n,), generator=generator).tolist() for n in lengths]


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def net(request: pytest.FixtureRequest) -> Network:
    return taken_apart(tiny.network(request.param))


def own_logits(net: Network, ids: list[int]) -> torch.Tensor:
    net.model.set_attn_implementation("eager")
    with torch.inference_mode():
        out: torch.Tensor = net.model(torch.tensor([ids])).logits[0, -1]
    net.model.set_attn_implementation("codi_engine_packed")
    return out


def test_self_test_agrees(net: Network) -> None:
    result = self_test(net)
    assert result.difference < 2e-4
    assert result.reproducible


def test_batched_equals_own_forward_and_alone_to_the_bit(net: Network) -> None:
    texts = prompts()
    out = Rollout(net).run(texts, [Task(i) for i in range(len(texts))], Want(max_new_tokens=5))
    for i, ids in enumerate(texts):
        assert torch.allclose(out.first_logits[i], own_logits(net, ids), atol=1e-5, rtol=1e-5)
        alone = Rollout(net).run([ids], [Task(0)], Want(max_new_tokens=5))
        assert torch.equal(alone.first_logits[0], out.first_logits[i])
        assert alone.tokens[0] == out.tokens[i]


def test_first_logits_in_blocks_are_those_of_one_cell_alone(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = prompts()
    each = [torch.full((net.info.width,), 0.1 * i) for i in range(10)]
    tasks = [Task(i % len(ids), {"prompt": [Edit(Site("resid_post", 0), -1, 0, i)]}) for i in range(10)] + [Task(0), Task(0)]

    def first(chosen: list[int]) -> torch.Tensor:
        def apply(_: int, __: Site, ___: int, cells: Any, old: torch.Tensor) -> torch.Tensor:
            return old + torch.stack([each[chosen[c]] for c in cells])

        return Rollout(net).run(ids, [tasks[i] for i in chosen], Want(generate=False, read=False), apply).first_logits

    whole = first(list(range(12)))
    assert len({tuple(row.tolist()) for row in whole}) == 10  # the first and the last two are the unedited first prompt
    monkeypatch.setattr(answering, "_AT_ONCE", 3)
    assert torch.equal(first(list(range(12))), whole)
    for i in (0, 4, 11):
        assert torch.equal(first([i])[0], whole[i])


@pytest.mark.parametrize("pads", [1, 3, 8])
def test_left_padding_changes_nothing(net: Network, pads: int) -> None:
    short = prompts((13,))[0]
    longer = prompts((13 + pads,))[0]
    alone = Rollout(net).run([short], [Task(0)], Want(max_new_tokens=4))
    beside = Rollout(net).run([short, longer], [Task(0), Task(1)], Want(max_new_tokens=4))
    assert torch.allclose(alone.first_logits[0], beside.first_logits[0], atol=1e-5)
    assert alone.tokens[0] == beside.tokens[0]


def test_greedy_generation_is_transformers_own(net: Network) -> None:
    ids = prompts((11,))[0]
    out = Rollout(net).run([ids], [Task(0)], Want(max_new_tokens=6))
    net.model.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = ids.copy()
        for _ in range(6):
            expected.append(int(net.model(torch.tensor([expected])).logits[0, -1].argmax()))
            if expected[-1] == 0:
                break
    net.model.set_attn_implementation("codi_engine_packed")
    assert out.tokens[0] == expected[len(ids) :]


def plain_hook(net: Network, component: str, layer: int, place: int, value: torch.Tensor, ids: list[int], head: int | None) -> torch.Tensor:
    """Patch one position of one site with an ordinary hook in an ordinary forward."""
    width = net.width_of(component)
    size = net.info.head_dim

    def put(x: torch.Tensor) -> torch.Tensor:
        out = x.clone()
        columns = slice(0, width) if head is None else slice(head * size, (head + 1) * size)
        out[0, place, columns] = value[:width][columns]
        return out

    block = net.blocks[layer]
    point = None if component in ("resid_pre", "resid_post") else net._point(component, layer)
    if component == "resid_post":
        handle = block.register_forward_hook(lambda _, __, o: put(o))
    elif component == "resid_pre":
        handle = block.register_forward_pre_hook(lambda _, a: (put(a[0]), *a[1:]))
    elif point is not None and point.side == "stream":
        handle = point.module.register_forward_pre_hook(lambda _, a: _in_place(a[0], put))
    elif point is not None and point.side == "input":
        handle = point.module.register_forward_pre_hook(lambda _, a: (put(a[0]),))
    else:
        assert point is not None
        handle = point.module.register_forward_hook(lambda _, __, o: _output(net, point, o, place, value, head))
    try:
        return own_logits(net, ids)
    finally:
        handle.remove()


def _in_place(x: torch.Tensor, put: Any) -> None:
    x.copy_(put(x))


def _output(net: Network, point: Any, output: Any, place: int, value: torch.Tensor, head: int | None) -> Any:
    tensor = output if isinstance(output, torch.Tensor) else next(iter(output))
    changed = tensor.clone()
    view = net._columns(changed[0], point)
    flat = value[: view[place].numel()].view(view[place].shape)
    if head is None:
        view[place] = flat
    elif view.ndim == 3:
        view[place, head] = flat[head]
    else:
        columns = slice(head * net.info.head_dim, (head + 1) * net.info.head_dim)
        view[place, columns] = flat[columns]
    return changed if isinstance(output, torch.Tensor) else (changed, *list(output)[1:])


def test_patching_equals_plain_hooks_one_at_a_time(net: Network) -> None:
    texts = prompts()
    value = torch.randn(256, generator=torch.Generator().manual_seed(3))
    tasks, meta = [], []
    for component in [c for c in PATCHED if c in net.components]:
        for layer in range(net.info.layers):
            for place in (-4, -2, -1):
                for head in (None, 1) if component in ("attn_z", "q", "k", "v") else (None,):
                    prompt = 2 + (layer + place) % 3
                    tasks.append(Task(prompt, {"prompt": (Edit(Site(component, layer), place, 0 if head is None else 1, head),)}))
                    meta.append((component, layer, place, prompt, head))

    def apply(group: int, site: Site, place: int, cells: Any, old: torch.Tensor) -> torch.Tensor:
        new = old.clone()
        size = net.info.head_dim
        columns = slice(0, old.shape[1]) if group == 0 else slice(size, 2 * size)
        new[:, columns] = value[: old.shape[1]][columns]
        return new

    out = Rollout(net).run(texts, tasks, Want(generate=False, read=True), apply)
    for (component, layer, place, prompt, head), logits in zip(meta, out.first_logits, strict=True):
        expected = plain_hook(net, component, layer, place, value, texts[prompt], head)
        scale = max(float(expected.std()), 1.0)
        assert float((logits - expected).abs().max()) <= 1e-5 * scale, (component, layer, place, head)


def test_self_patch_in_the_prompt_is_exact(net: Network) -> None:
    texts = prompts((21, 35))
    places = (-7, -3, -1)
    layers = tuple(range(net.info.layers))
    captures = {(c, "prompt"): (layers, places) for c in PATCHED if c in net.components}
    plain = Rollout(net).run(texts, [Task(0), Task(1)], Want(max_new_tokens=3))
    base = Rollout(net).run(texts, [Task(0), Task(1)], Want(captures, max_new_tokens=3))  # type: ignore[arg-type]
    assert torch.equal(plain.first_logits, base.first_logits)
    tasks = [Task(p, {"prompt": (Edit(Site(c, layer), place, 0, 0),)}) for (c, _) in captures for p in (0, 1) for layer in layers for place in places]

    def apply(group: int, site: Site, place: int, cells: Any, old: torch.Tensor) -> torch.Tensor:
        kept = base.captures[site.component, site.layer, "prompt"][:, places.index(place)]
        return kept[[tasks[c].prompt for c in cells]]

    out = Rollout(net).run(texts, tasks, Want(max_new_tokens=3), apply)
    for task, logits in zip(tasks, out.first_logits, strict=True):
        assert torch.equal(logits, base.first_logits[task.prompt])


def test_trials_do_not_depend_on_the_batch(net: Network) -> None:
    ids = prompts((9, 14))
    sampler = Sampler(temperature=1.3, top_p=0.95)
    want = Want(max_new_tokens=8, read=False, sampler=sampler)
    keys = list(range(100, 130))
    together = Rollout(net).run(ids, [Task(i % 2, key=k) for i, k in enumerate(keys)], want)
    assert len({tuple(t) for t in together.tokens}) > 5
    for i in (0, 7, 29):
        alone = Rollout(net).run([ids[i % 2]], [Task(0, key=keys[i])], want)
        assert alone.tokens[0] == together.tokens[i]


# ------------------------------------------------------------------------------------------------- latents


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def latent(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Network:
    checkpoint, base = tiny.tiny_codi(tmp_path_factory.mktemp(request.param), request.param)
    return Network(Codi(CodiOptions(checkpoint=str(checkpoint), base=str(base), lora_r=4)).load())


def twin(net: Network, ids: list[int], **kwargs: Any) -> naive.Answered:
    net.model.set_attn_implementation("eager")
    try:
        return naive.answer(net.model, net.blocks, net.adapter.projection, ids, net.adapter.answer_start, allowed=net.adapter.banned_ids_from, **kwargs)  # type: ignore[arg-type]
    finally:
        net.model.set_attn_implementation("codi_engine_packed")


STEPS = tuple(range(6))


def everything(net: Network) -> Want:
    layers = tuple(range(net.info.layers))
    captures = {
        ("latent_out", "prompt"): ((None,), (-1,)), ("latent_out", "latent"): ((None,), STEPS),
        ("latent_in", "latent"): ((None,), STEPS), ("resid_post", "latent"): (layers, STEPS),
    }  # fmt: skip
    return Want(captures, read=False, max_new_tokens=6)  # type: ignore[arg-type]


def test_latent_loop_equals_its_naive_twin(latent: Network) -> None:
    texts = [[*p, net_bot(latent)] for p in prompts((4, 12, 26))]
    out = Rollout(latent).run(texts, [Task(i) for i in range(3)], everything(latent))
    for i, ids in enumerate(texts):
        expected = twin(latent, ids)
        c = torch.cat([out.captures["latent_out", None, "prompt"][i], out.captures["latent_out", None, "latent"][i]])
        assert torch.allclose(c, expected.c, atol=2e-4, rtol=1e-3)
        assert torch.allclose(out.captures["latent_in", None, "latent"][i], expected.z[:6], atol=2e-4, rtol=1e-3)
        for layer in range(latent.info.layers):
            assert torch.allclose(out.captures["resid_post", layer, "latent"][i], expected.blocks[:, layer], atol=2e-4, rtol=1e-3)
        assert torch.allclose(out.first_logits[i], expected.first_logits, atol=2e-4, rtol=1e-3)
        stop = expected.tokens.index(0) + 1 if 0 in expected.tokens else len(expected.tokens)
        assert out.tokens[i] == expected.tokens[:stop]


def net_bot(net: Network) -> int:
    return int(net.info.vocab_size) - 2


def test_latent_edits_equal_their_naive_twin_and_splits_share(latent: Network) -> None:
    ids = [*prompts((15,))[0], net_bot(latent)]
    places = [(k, layer) for k in STEPS for layer in range(latent.info.layers)]
    tasks = [Task(0, {"latent": (Edit(Site("resid_post", layer), k, 0, (k, layer)),)}) for k, layer in places]
    rollout = Rollout(latent)
    out = rollout.run([ids], tasks, Want(read=False, max_new_tokens=4), lambda g, s, p, c, old: old * 0.5)
    for (k, layer), logits in zip(places, out.first_logits, strict=True):
        expected = twin(latent, ids, change=lambda step, at, x, k=k, layer=layer: x * 0.5 if (step, at) == (k, layer) else x)
        assert torch.allclose(logits, expected.first_logits, atol=2e-4, rtol=1e-3)
    whole = len(tasks) * (6 + len(latent.adapter.answer_start))
    assert out.forwarded < 0.85 * (whole + len(tasks) * 4)


def test_last_step_matters_below_the_last_block_only(latent: Network) -> None:
    ids = [*prompts((15,))[0], net_bot(latent)]
    last = latent.info.layers - 1
    tasks = [Task(0)] + [Task(0, {"latent": (Edit(Site("resid_post", layer), 5, 0, layer),)}) for layer in (0, last)]
    out = Rollout(latent).run([ids], tasks, Want(read=False, max_new_tokens=2), lambda g, s, p, c, old: old * 0)
    assert not torch.equal(out.first_logits[0], out.first_logits[1])
    assert torch.equal(out.first_logits[0], out.first_logits[2])


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_set_of_edits_is_the_same_alone_and_among_others(latent: Network, data: st.DataObject) -> None:
    texts = [[*p, net_bot(latent)] for p in prompts((6, 19))]
    places = st.tuples(st.sampled_from(["resid_pre", "resid_post", "mlp_out"]), st.integers(0, latent.info.layers - 1), st.integers(0, 5))
    cells = data.draw(st.lists(st.tuples(st.integers(0, 1), st.lists(places, max_size=3, unique=True)), min_size=1, max_size=6))

    def task(prompt: int, edits: list[tuple[str, int, int]]) -> Task:
        return Task(prompt, {"latent": tuple(Edit(Site(c, layer), k, 0, "half") for c, layer, k in edits)})

    def halve(group: int, site: Site, place: int, chosen: Any, old: torch.Tensor) -> torch.Tensor:
        return old * 0.5

    want = Want(read=False, max_new_tokens=3)
    together = Rollout(latent).run(texts, [task(p, e) for p, e in cells], want, halve)
    for i, (p, e) in enumerate(cells):
        alone = Rollout(latent).run([texts[p]], [task(0, e)], want, halve)
        assert torch.equal(alone.first_logits[0], together.first_logits[i])
        assert alone.tokens[0] == together.tokens[i]


def test_an_edit_that_cannot_be_reached_is_an_error(latent: Network) -> None:
    ids = [*prompts((15,))[0], net_bot(latent)]
    task = Task(0, {"latent": (Edit(Site("resid_post", 0), 17, 0, 0),)})
    with pytest.raises(RuntimeError, match="never reached"):
        Rollout(latent).run([ids], [task], Want(read=False, max_new_tokens=2), lambda g, s, p, c, old: old)


def oracle() -> Path:
    return Path(__file__).parents[1] / "fixtures" / "oracle_gpt2"


def test_the_rollout_gives_what_the_reference_gives() -> None:
    import json

    folder = oracle()
    facts, arrays = json.loads((folder / "oracle.json").read_text()), np.load(folder / "oracle.npz")
    adapter = Codi(CodiOptions(checkpoint=str(folder / "ckpt"), base=str(folder / "tiny-gpt2"))).load()
    net = Network(adapter)
    texts = [adapter.encode_prompt(q) for q in facts["questions"]]
    want = everything(net)
    want = Want(want.captures, read=False, max_new_tokens=12, reference_slice=True)
    base = Rollout(net).run(texts, [Task(i) for i in range(8)], want)
    for i, ids in enumerate(texts):
        assert ids == arrays[f"input_ids_{i}"].ravel().tolist()
        c = torch.cat([base.captures["latent_out", None, "prompt"][i], base.captures["latent_out", None, "latent"][i]])
        np.testing.assert_allclose(c, arrays[f"c_{i}"].reshape(7, -1), atol=2e-4, rtol=1e-3)
        np.testing.assert_allclose(base.first_logits[i], arrays[f"logits_first_{i}"].ravel(), atol=2e-4, rtol=1e-3)
        for layer in range(net.info.layers):
            np.testing.assert_allclose(base.captures["resid_post", layer, "latent"][i], arrays[f"resid_{i}"][:, layer], atol=2e-4, rtol=1e-3)
        assert base.tokens[i] == arrays[f"tokens_{i}"].ravel().tolist()
    direction = torch.from_numpy(arrays["steer_direction"]).float()
    kept = facts["interventions"]
    sites = [Site("latent_in") if e["kind"] == "swap" else Site("resid_post", e["layer"]) for e in kept]
    tasks = [Task(2, {"latent": (Edit(s, e["step"], n, n),)}) for n, (s, e) in enumerate(zip(sites, kept, strict=True))]

    def apply(group: int, site: Site, place: int, cells: Any, old: torch.Tensor) -> torch.Tensor:
        kind = kept[group]["kind"]
        if kind == "zero":
            return old * 0
        if kind == "swap":
            return base.captures["latent_in", None, "latent"][kept[group]["donor"], place].expand_as(old)
        return old + 2 * direction if kind == "steer2" else base.captures["resid_post", site.layer, "latent"][1, place].expand_as(old)

    out = Rollout(net).run(texts, tasks, want, apply)
    for n, e in enumerate(kept):
        np.testing.assert_allclose(out.first_logits[n], arrays[f"logits_{e['key']}"].ravel(), atol=2e-4, rtol=1e-3)
        length = len(e["tokens"])
        assert out.tokens[n][:length] == e["tokens"]
        if e["kind"] == "swap" and e["donor"] == 2:
            assert torch.equal(out.first_logits[n], base.first_logits[2])
        after = arrays[f"c_{e['key']}"].reshape(7, -1)[e["step"] + 1 :]
        np.testing.assert_allclose(out.captures["latent_out", None, "latent"][n][e["step"] :], after, atol=2e-4, rtol=1e-3)


def test_answers_of_several_tokens_are_teacher_forced(net: Network) -> None:
    texts = prompts((9, 21))
    gold, other, prefix = (5, 7, 9), (11, 3), (2, 4)
    tasks = [Task(0, gold=gold, other=other), Task(1, gold=other, other=gold), Task(0)]
    out = Rollout(net).run(texts, tasks, Want(prefix=prefix, max_new_tokens=4))
    net.model.set_attn_implementation("eager")
    for row, (prompt, ids) in enumerate([(0, gold), (1, other)]):
        with torch.inference_mode():
            logits = net.model(torch.tensor([[*texts[prompt], *prefix, *ids]])).logits[0].double()
        start = len(texts[prompt]) + len(prefix) - 1
        for i, token in enumerate(ids):
            assert out.gold_logit[row, i] == pytest.approx(float(logits[start + i, token]), abs=1e-4)
            assert out.gold_logprob[row, i] == pytest.approx(float(torch.log_softmax(logits[start + i], -1)[token]), abs=1e-4)
        assert np.isnan(out.gold_logprob[row, len(ids) :]).all()
        assert torch.allclose(out.number_logits[row].double(), logits[start], atol=1e-4)
    net.model.set_attn_implementation("codi_engine_packed")
    assert np.isnan(out.gold_logprob[2]).all()
    plain = Rollout(net).run(texts, [Task(0), Task(1)], Want(read=False, max_new_tokens=4))
    assert [out.tokens[0], out.tokens[1]] == plain.tokens
