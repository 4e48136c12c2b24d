"""Coconut checkpoints: loaded from every layout, equal to the method run naively, refused by name."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import codi_engine
from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Produced, Rollout, Task, Want
from codi_engine.core.rollout.tasks import Edit
from codi_engine.core.running.reading import Answers
from codi_engine.core.sites import Site
from codi_engine.plugins.models.coconut import Coconut, CoconutOptions
from codi_engine.testing.coconut import FAMILIES, tiny_coconut, write_base
from tests.support import coconut
from tests.support.lines import write_lines

QUESTIONS = ["there are 3 apples", "there are 12 pears and 40 apples and 7 pears\nand more", "apples 9", "there are 55 apples and 6 pears"]
K, NEW = 6, 5


def plugin(checkpoint: Path, base: Path, **options: Any) -> Coconut:
    return Coconut(CoconutOptions(checkpoint=str(checkpoint), base=str(base), **options))


class Case:
    """A checkpoint on disk, the network it was saved from, and the engine on it."""

    def __init__(self, folder: Path, family: str) -> None:
        self.checkpoint, self.base, self.network = tiny_coconut(folder, family)
        self.network.set_attn_implementation("eager")
        self.adapter = plugin(self.checkpoint, self.base).load()
        self.net = Network(self.adapter)
        self.prompts = [self.adapter.encode_prompt(q) for q in QUESTIONS]
        self.blocks = self.network.transformer.h if family == "gpt2" else self.network.model.layers
        assert self.adapter.banned_ids_from is not None
        self.size = self.adapter.banned_ids_from

    def naive(self, prompt: int, **changes: Any) -> coconut.Answered:
        return coconut.answer(self.network, self.blocks, self.prompts[prompt], self.size + 1, K, NEW, self.size, 0, **changes)

    def run(self, prompts: list[int], tasks: list[Task], apply: Any = None) -> Produced:
        steps = tuple(range(K))
        captures: Any = {("latent_in", "latent"): ((None,), steps), ("latent_out", "latent"): ((None,), steps), ("latent_out", "prompt"): ((None,), (-1,))}
        want = Want(captures, read=False, max_new_tokens=NEW)
        return Rollout(self.net).run([self.prompts[p] for p in prompts], tasks, want, *([apply] if apply else []))


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(tmp_path_factory.mktemp("coconut"), request.param)


def agrees(out: Produced, row: int, expected: coconut.Answered) -> None:
    c = torch.cat([out.captures["latent_out", None, "prompt"][row], out.captures["latent_out", None, "latent"][row]])
    torch.testing.assert_close(out.captures["latent_in", None, "latent"][row], expected.thoughts, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(c[-1], expected.last, atol=2e-4, rtol=2e-4)
    torch.testing.assert_close(out.first_logits[row], expected.logits, atol=2e-4, rtol=2e-4)
    assert out.tokens[row] == expected.tokens


def test_latents_logits_and_answers_are_the_methods(case: Case) -> None:
    out = case.run([0, 1, 2, 3], [Task(i) for i in range(4)])
    for row in range(4):
        agrees(out, row, case.naive(row))
        z, c = out.captures["latent_in", None, "latent"][row], out.captures["latent_out", None, "latent"][row]
        assert torch.equal(z[0], out.captures["latent_out", None, "prompt"][row, 0])
        assert torch.equal(z[1:], c[:-1])  # fed back as it is
        alone = case.run([row], [Task(0)])
        assert torch.equal(alone.first_logits[0], out.first_logits[row])
        assert alone.tokens[0] == out.tokens[row]
    assert len({tuple(t) for t in out.tokens}) > 1


@pytest.mark.parametrize("step", [0, 2, 5])
def test_edits_are_plain_hooks(case: Case, step: int) -> None:
    donor = case.naive(3).thoughts
    changes: list[tuple[Site, Callable[[torch.Tensor], torch.Tensor], dict[str, Any]]] = []

    def add(site: Site, change: Callable[[torch.Tensor], torch.Tensor], **expected: Any) -> None:
        changes.append((site, change, expected))

    add(Site("latent_in"), lambda x: donor[step].expand_as(x), thought={step: lambda _: donor[None, step : step + 1]})
    add(Site("latent_in"), lambda x: x * 0, thought={step: lambda x: x * 0})
    for layer in range(3):
        # halved and reversed: a final norm forgets a mere scale
        add(Site("resid_post", layer), lambda x: x.flip(-1) * 0.5, block={(layer, step): lambda x: x.flip(-1) * 0.5})
    if step < K - 1:  # what comes out of step k is what step k + 1 consumes
        add(Site("latent_out"), lambda x: x * -1, thought={step + 1: lambda x: x * -1})
    tasks = [Task(p, {"latent": (Edit(site, step, n, n),)}) for n, (site, _, _) in enumerate(changes) for p in range(2)]
    out = case.run([0, 1], tasks, lambda group, site, place, cells, old: changes[group][1](old))
    base = case.run([0, 1], [Task(0), Task(1)])
    for row, task in enumerate(tasks):
        site, _, expected = changes[row // 2]
        found = case.naive(task.prompt, **expected)
        if site.component != "latent_out":
            agrees(out, row, found)
        torch.testing.assert_close(out.first_logits[row], found.logits, atol=2e-4, rtol=2e-4)
        assert out.tokens[row] == found.tokens
        if not (site.layer == 2 and step == K - 1):  # nothing reads the last block's output at the last step
            assert not torch.allclose(out.first_logits[row], base.first_logits[task.prompt], atol=1e-3)


def test_the_prompt_is_question_newline_and_marker(case: Case) -> None:
    from transformers import AutoTokenizer

    tokenizer, adapter = AutoTokenizer.from_pretrained(case.base), case.adapter
    ids = adapter.encode_prompt("there are 3 apples ")
    assert ids == [*tokenizer("there are 3 apples \n")["input_ids"], len(tokenizer)]
    assert ids[0] == (1 if case.adapter.info.family == "llama" else ids[0])
    assert list(adapter.answer_start) == [len(tokenizer) + 1]
    assert list(adapter.stop_ids) == [0]
    assert adapter.info.vocab_size == len(tokenizer) + 3
    assert adapter.decode([*tokenizer("### 18", add_special_tokens=False)["input_ids"], len(tokenizer) + 2, 0]) == "### 18"
    assert plugin(case.checkpoint, case.base).describe() == adapter.info


def test_answers_are_tokenised_as_in_training(case: Case) -> None:
    answers = Answers(case.adapter, None)
    lengths = set()
    for value in (7.0, 18.0, 42.0, 2000.0, 123456.0):
        text = f"### {value:.0f}"
        assert [*answers.prefix, *answers.tokens(value)] == case.adapter.encode(text)
        assert case.adapter.decode(case.adapter.encode(text)) == text
        lengths.add(len(answers.tokens(value)))
    assert len(lengths) > 1
    assert case.adapter.decode(answers.prefix).startswith("###")


def layouts(folder: Path, family: str) -> dict[str, Path]:
    """The same weights in every layout there is."""
    saved, _, _ = tiny_coconut(folder, family)
    state: dict[str, torch.Tensor] = torch.load(saved, weights_only=True)
    tied = [k for k in state if k.endswith("lm_head.weight")] if FAMILIES[family] else []
    plain = {k.removeprefix("base_causallm."): v for k, v in state.items() if k != "embedding.weight"}
    once = {k: v.clone() for k, v in state.items() if k not in ("embedding.weight", *tied)}
    files = {}
    for name, tensors in (("ddp.pt", {f"module.{k}": v for k, v in state.items()}), ("fsdp.pt", {f"_fsdp_wrapped_module.{k}": v for k, v in state.items()}),
                          ("plain.bin", plain), ("nested.pt", {"state_dict": state})):  # fmt: skip
        torch.save(tensors, folder / name)
        files[name] = folder / name
    save_file(once, folder / "model.safetensors")
    only_copy = {k: v for k, v in once.items() if not k.endswith(("wte.weight", "embed_tokens.weight"))} | {
        "embedding.weight": state["embedding.weight"].clone()
    }
    save_file(only_copy, folder / "copy.safetensors")
    return {"saved": saved, "safetensors": folder, "copy": folder / "copy.safetensors", **files}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_layout_gives_the_same_model(tmp_path: Path, family: str) -> None:
    first: torch.Tensor | None = None
    for name, path in layouts(tmp_path / "x", family).items():
        adapter = plugin(path, tmp_path / "x" / "base").load()
        out = Rollout(Network(adapter)).run([adapter.encode_prompt(QUESTIONS[0])], [Task(0)], Want(read=False, generate=False)).first_logits[0]
        first = out if first is None else first
        assert torch.equal(out, first), name


@pytest.mark.parametrize("padding", [3, 29])
def test_the_vocabulary_is_the_tokenizers_and_not_the_padded_bases(tmp_path: Path, padding: int) -> None:
    checkpoint, base, _ = tiny_coconut(tmp_path, "llama", padding)
    adapter = plugin(checkpoint, base).load()
    assert adapter.banned_ids_from is not None
    assert adapter.info.vocab_size == adapter.banned_ids_from + 3 == adapter.network.config.vocab_size
    assert plugin(checkpoint, base).describe() == adapter.info


def language_only(folder: Path) -> tuple[Path, Path, Any]:
    base, network, _ = write_base(folder, "gpt2")
    torch.save(network.state_dict(), folder / "checkpoint_22")
    return folder / "checkpoint_22", base, network


def test_the_language_only_stage_runs_without_markers(tmp_path: Path) -> None:
    checkpoint, base, network = language_only(tmp_path)
    with pytest.raises(UserError, match=r"<\|start-latent\|>.*language-only stage.\nSet model.latents: 0"):
        plugin(checkpoint, base).load()
    adapter = plugin(checkpoint, base, latents=0).load()
    ids = adapter.encode_prompt("there are 3 apples")
    assert ids == adapter.encode("there are 3 apples\n")
    out = Rollout(Network(adapter)).run([ids], [Task(0)], Want(read=False, max_new_tokens=NEW))
    expected = ids.copy()
    with torch.inference_mode():
        for _ in range(NEW):
            expected.append(int(network(torch.tensor([expected])).logits[0, -1].argmax()))
    assert out.tokens[0] == expected[len(ids) :][: len(out.tokens[0])]
    assert "no markers" in adapter.report[-1]


def test_no_latents_between_the_markers(tmp_path: Path) -> None:
    checkpoint, base, network = tiny_coconut(tmp_path, "gpt2")
    adapter = plugin(checkpoint, base, latents=0).load()
    ids = adapter.encode_prompt("there are 3 apples")
    out = Rollout(Network(adapter)).run([ids], [Task(0)], Want(read=False, max_new_tokens=NEW))
    expected = coconut.answer(network, network.transformer.h, ids, adapter.answer_start[0], 0, NEW, ids[-1], 0)
    torch.testing.assert_close(out.first_logits[0], expected.logits, atol=2e-4, rtol=2e-4)
    assert out.tokens[0] == expected.tokens


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def damaged(folder: Path, change: str) -> tuple[Path, Path]:
    """A GPT-2 checkpoint with one thing wrong."""
    checkpoint, base, _ = tiny_coconut(folder, "gpt2")
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)
    block = "base_causallm.transformer.h.1.mlp.c_fc.weight"
    if change == "missing":
        del state[block]
    elif change == "no embedding":
        for name in ("embedding.weight", "base_causallm.lm_head.weight", "base_causallm.transformer.wte.weight"):
            del state[name]
    elif change == "unexpected":
        state["base_causallm.prj.weight"] = torch.zeros(2)
    elif change == "outside":
        state["transformer.h.0.ln_1.bias"] = torch.zeros(32)
    elif change == "copy":
        state["embedding.weight"] = state["embedding.weight"] + 1
    elif change == "head":
        state["base_causallm.lm_head.weight"] = state["base_causallm.lm_head.weight"] + 1
    elif change == "shape":
        state[block] = torch.zeros(5, 32)
    elif change == "rows":
        for name in ("embedding.weight", "base_causallm.lm_head.weight", "base_causallm.transformer.wte.weight"):
            state[name] = state[name][:-1]
    torch.save(state, checkpoint)
    if change == "truncated":
        checkpoint.write_bytes(checkpoint.read_bytes()[:-500])
    elif change == "pickle":
        checkpoint.write_bytes(pickle.dumps({"w": Harmful(folder / "made")}))
    elif change == "many":
        (folder / "checkpoint_4").write_bytes(b"")
        checkpoint = folder
    elif change == "none":
        checkpoint = base
    return checkpoint, base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing keys: transformer\.h\.1\.mlp\.c_fc\.weight$"),
        ("no embedding", r"1 missing keys: transformer\.wte\.weight$"),
        ("unexpected", r"1 unexpected keys: prj\.weight$"),
        ("outside", r"1 unexpected keys: transformer\.h\.0\.ln_1\.bias \(outside base_causallm\.\)$"),
        ("copy", r"embedding\.weight must equal transformer\.wte\.weight"),
        ("head", r"lm_head\.weight must equal transformer\.wte\.weight"),
        ("shape", r"wrong shapes; check model\.base\.\ntransformer.h.1.mlp.c_fc.weight is 5×32, needed 32×128"),
        ("rows", r"model\.base: tokenizer mismatch: it has 3\d\d tokens with Coconut's three, '.*' 3\d\d embeddings"),
        ("truncated", "damaged or no checkpoint"),
        ("pickle", "cannot be read"),
        ("many", r"holds 2 checkpoints; name one of them, such as '.*checkpoint_33'"),
        ("none", "holds none of"),
    ],
)
def test_bad_checkpoints_are_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        plugin(*damaged(tmp_path, change)).load()
    assert len(str(caught.value).splitlines()) <= 2
    assert not (tmp_path / "made").exists()


def test_a_directory_with_one_checkpoint_is_enough(tmp_path: Path) -> None:
    checkpoint, base, _ = tiny_coconut(tmp_path, "gpt2")
    assert plugin(tmp_path, base).load().digest == plugin(checkpoint, base).load().digest


def test_half_precision_feeds_back_what_it_computes(case: Case) -> None:
    adapter = plugin(case.checkpoint, case.base, dtype="bfloat16").load()
    assert {p.dtype for p in adapter.network.parameters()} == {torch.bfloat16}
    steps = tuple(range(K))
    want = Want({(c, "latent"): ((None,), steps) for c in ("latent_in", "latent_out")}, read=False, max_new_tokens=3)
    out = Rollout(Network(adapter)).run([adapter.encode_prompt(QUESTIONS[0])], [Task(0)], want)
    assert torch.equal(out.captures["latent_in", None, "latent"][0][1:], out.captures["latent_out", None, "latent"][0][:-1])


def test_one_question_by_hand(tmp_path: Path) -> None:
    checkpoint, base, _ = tiny_coconut(tmp_path, "gpt2")
    session = codi_engine.load(checkpoint, plugin="coconut", base=str(base), device="cpu")
    c, z = (session.capture(QUESTIONS[0], [site])[site] for site in ("latent_out", "latent_in"))
    assert np.array_equal(z.sel(step=[1, 2, 3]), c.sel(step=[0, 1, 2]))


def experiment(folder: Path, **parts: Any) -> Experiment:
    checkpoint, base, _ = tiny_coconut(folder, "llama")
    records = [
        {"pair_id": str(n), "variant": variant, "question": f"there are {a} apples and {n} pears", "answer": a + n}
        for n, clean in enumerate((3, 17, 28, 40))
        for variant, a in (("clean", clean), ("corrupted", clean + 9))
    ]
    path = write_lines(folder / "pairs.jsonl", records)
    return Experiment.from_dict(
        {"name": "coconut", "model": {"plugin": "coconut", "checkpoint": str(checkpoint), "base": str(base), "device": "cpu"},
         "data": {"plugin": "pairs", "path": str(path)}, "generate": {"max_new_tokens": 4}, "controls": "none", **parts}
    )  # fmt: skip


def test_an_experiment_with_its_gate(tmp_path: Path) -> None:
    patch = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
    finished = experiment(
        tmp_path,
        conditions={
            "patch": {"intervention": patch, "sweep": {"layer": "all", "step": "all"}},
            "zero": {"intervention": {"plugin": "zero", "site": "latent_in"}, "sweep": {"step": ["cumulative"]}},
            "direct": {"intervention": {**patch, "downstream": "freeze"}, "sweep": {"layer": [1], "step": "all"}},
            "whole": {"intervention": {"plugin": "patch", "site": "latent_in", "direction": "denoise"}, "sweep": {"step": ["all_at_once"]}},
        },
        metrics=["logit_diff", "kl", "normalized_effect", "flip"],
        capture=["latent_in", "latent_out"],
    ).run(tmp_path / "run")
    run = finished.open()
    assert run.store.verify() == []
    cells = run.cells
    counts = cells["condition"].value_counts().to_dict()
    assert counts == {"baseline": 8, "patch": 4 * 3 * 6, "zero": 4 * 6, "direct": 4 * 6, "whole": 4}
    assert np.isfinite(cells["kl"]).all()
    kl = {name: cells[cells["condition"] == name].set_index(["example", "layer", "step"])["kl"].unstack("step") for name in ("patch", "direct")}
    patched, direct = (frame.rename(columns=int) for frame in kl.values())
    at = patched.index.get_level_values("layer")
    assert (patched.loc[at == 2, 5] == 0).all()  # the last block's output at the last step is read by nothing
    assert (patched.loc[at < 2] > 0).all(axis=None)
    middle = patched.loc[at == 1]
    assert (middle[5].to_numpy() == direct[5].to_numpy()).all()
    assert (middle[range(5)].to_numpy() != direct[range(5)].to_numpy()).all()
