"""Edits in every forward (``tokens: last|all``) and codes captured along texts, against one token at a time with plain hooks."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.libraries import quiet
from codi_engine.core.rollout.sampling import Sampler, generator, key_of, sample
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.core.runs.results import Run
from codi_engine.testing import tiny
from tests.support import saes, texts
from tests.support.lines import write_lines

WIDTH, LAYERS, FEATURES, NEW = 32, 3, 40, 5
PROMPTS = [
    "there are 5 apples and 7 pears . how many ?",
    "how many apples ?",
    "The answer is",
    "there are 12 pears and 3 apples and 4 pears and 9 apples . how many pears and apples are there ?",
    "pears",
]


@dataclass
class Place:
    folder: Path
    family: str
    sae: str

    @property
    def model(self) -> dict[str, Any]:
        return {"plugin": "causal_lm", "path": str(self.folder / "model"), "device": "cpu"}

    def data(self, count: int | None = None) -> dict[str, Any]:
        return {"plugin": "prompts", "path": str(self.folder / "prompts.jsonl"), **({} if count is None else {"limit": count})}


@pytest.fixture(scope="module", params=[pytest.param("gpt2", marks=pytest.mark.slow), "llama"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A random model whose first token for one prompt is a stop token, its prompts, and an autoencoder per layer."""
    folder = tmp_path_factory.mktemp(f"everywhere_{request.param}")
    (folder / "model").mkdir()
    tiny.tiny_causal_lm(folder / "model", request.param)
    write_lines(folder / "prompts.jsonl", [{"id": f"p{i}", "text": text} for i, text in enumerate(PROMPTS)])
    here = Place(folder, request.param, saes.write_saes(folder, LAYERS, WIDTH, FEATURES))
    net, tokenizer = loaded(str(folder / "model"))
    first = int(net(input_ids=torch.tensor([tokenizer(PROMPTS[1])["input_ids"]])).logits[0, -1, : len(tokenizer)].argmax())
    for name in ("config.json", "generation_config.json"):
        file = folder / "model" / name
        if file.exists():
            file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": [0, first]}))
    loaded.cache_clear()
    return here


@lru_cache(maxsize=2)
def loaded(path: str) -> tuple[Any, Any]:
    with quiet():
        net = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval().requires_grad_(False)
        return net, AutoTokenizer.from_pretrained(path)


def sae_of(here: Place, layer: int) -> saes.Naive:
    return saes.Naive(here.sae.replace("{layer}", str(layer)))


CAPTURES: dict[str, dict[str, Any]] = {
    "end": {"reduce": "last"},
    "mean": {"reduce": "mean"},
    "most": {"reduce": "max", "layers": [0, 2]},
    "whole_mean": {"reduce": "mean", "at": "all"},
    "whole_max": {"reduce": "max", "at": "all", "features": ["L2-39", "L0-3", "L2-1", "L0-0"]},
    "few": {"reduce": "last", "features": ["L1-7", "L2-5"]},
}


def conditions(sae: str) -> dict[str, Any]:
    found = {}
    for tokens in ("last", "all"):
        for error in ("keep", "drop"):
            base: dict[str, Any] = {"plugin": "sae", "sae": sae, "site": "resid_post", "tokens": tokens, "error": error}
            found[f"reconstruct_{tokens}_{error}"] = {"intervention": {**base, "site": "resid_post.1", "mode": "reconstruct"}, "sweep": {}}
            for mode, value in (("set", 6.0), ("add", -4.0), ("scale", 3.0)):
                intervention: dict[str, Any] = {**base, "mode": mode, "value": value, "feature": ["L0-3", "L2-17"]}
                found[f"{mode}_{tokens}_{error}"] = {"intervention": intervention, "sweep": {}}
    del found["reconstruct_last_keep"], found["reconstruct_all_keep"]  # error plays no part in them
    return found


def experiment(here: Place, count: int | None = None, **keys: Any) -> Experiment:
    value = {
        "name": "everywhere", "model": here.model, "data": here.data(count), "conditions": conditions(here.sae),
        "capture": [{"sae": here.sae, "name": name, **spec} for name, spec in CAPTURES.items()],
        "generate": {"max_new_tokens": NEW}, **keys,
    }  # fmt: skip
    return Experiment.from_dict(value)


def codes_of(here: Place, text: texts.Text, spec: Mapping[str, Any]) -> np.ndarray:
    """Reduce each token's codes by hand."""
    labels = spec.get("features")
    chosen: dict[int, list[int]] = {layer: list(range(FEATURES)) for layer in spec.get("layers", range(LAYERS))}
    if labels:
        pairs = sorted((int(label[1 : label.index("-")]), int(label.split("-")[1])) for label in labels)
        chosen = {layer: [i for at, i in pairs if at == layer] for layer in sorted({at for at, _ in pairs})}
    parts = []
    for layer, indices in chosen.items():
        codes = sae_of(here, layer).encode(text.states(layer, spec.get("at") == "all"))[:, indices]
        parts.append({"last": codes[-1], "mean": codes.mean(0), "max": codes.max(0).values}[spec["reduce"]])
    return torch.cat(parts).numpy()


def edits_of(here: Place, options: Mapping[str, Any]) -> dict[int, texts.Edit]:
    layer = int(options["layer"])
    naive = sae_of(here, layer)
    return {layer: lambda h: naive.edit(h, options["mode"], options["feature"], options["value"], options["error"])}


def compare(here: Place, made: Experiment, run: Run, edited_too: bool = True) -> int:
    """Compare every cell's text and codes with the naive twin's; returns the number of cells whose text the edit changed."""
    net, tokenizer = loaded(here.model["path"])
    stops = set(json.loads((Path(here.model["path"]) / "config.json").read_text())["eos_token_id"])
    sampler = Sampler(made.generate.temperature, made.generate.top_k, made.generate.top_p) if made.generate.do_sample else None
    plan = plan_experiment(made).prepared.plan
    cells = run.cells
    stored = {edited: {name: run.activations(name, edited=edited).values for name in CAPTURES} for edited in (False, True)}
    base = cells[cells["condition"] == "baseline"].reset_index(drop=True)
    rest = cells[cells["condition"] != "baseline"].reset_index(drop=True)
    trials = "trial" in cells
    unedited: dict[tuple[str, int], str] = {}
    changed = 0

    def twin(example: str, name: str, axes: Mapping[str, Any], trial: int, edits: Mapping[int, texts.Edit] | None, tokens: str) -> texts.Text:
        first = int.from_bytes(generator("trial", made.seed, example, name, dict(axes), trial).bytes(16), "little")
        ids = tokenizer(PROMPTS[int(example[1:])])["input_ids"]
        for attempt in range(made.generate.retries + 1):
            key = first if attempt == 0 else key_of("attempt", str(first), attempt)

            def choose(logits: torch.Tensor, index: int, key: int = key) -> int:
                if sampler is None:
                    return int(logits[: len(tokenizer)].argmax())
                return int(sample(logits[None, : len(tokenizer)], np.array([0]), [key], [index], sampler)[0])

            text = texts.write(net, ids, made.generate.max_new_tokens, stops, choose, edits, tokens)
            if made.generate.until is None or re.search(made.generate.until, said_in(text)):
                break
        return text

    def said_in(text: texts.Text) -> str:
        return str(tokenizer.decode([t for t in text.tokens if t not in stops], skip_special_tokens=True))

    def check(row: Any, at: int, edited: bool, want: texts.Text) -> None:
        assert row["text"] == said_in(want), (row["example"], row["condition"])
        for name, spec in CAPTURES.items():
            np.testing.assert_allclose(stored[edited][name][at], codes_of(here, want, spec), rtol=2e-4, atol=2e-4, err_msg=f"{name} {row['condition']}")

    for at, (_, row) in enumerate(base.iterrows()):
        trial = int(row["trial"]) if trials else 0
        want = twin(row["example"], "baseline", {}, trial, None, "last")
        check(row, at, False, want)
        unedited[row["example"], trial] = row["text"]
    place_of = {(r["example"], r["condition"], r.get("feature"), int(r["trial"]) if trials else 0): i for i, (_, r) in enumerate(rest.iterrows())}
    for cell in plan.cells if edited_too else ():
        condition = plan.conditions[cell.condition]
        options = {"feature": None, "value": None, "error": "keep", **condition.options, "layer": cell.values["layer"][0]}
        label = cell.values.get("feature")
        options["feature"] = None if label is None else int(label.split("-")[1])
        at = place_of[cell.example, condition.name, label, cell.trial]
        assert condition.tokens is not None
        check(rest.iloc[at], at, True, twin(cell.example, condition.name, cell.values, cell.trial, edits_of(here, options), condition.tokens))
        changed += rest.iloc[at]["text"] != unedited[cell.example, cell.trial]
    return changed


def test_greedy_texts_and_codes_equal_the_hooked_model(place: Place, tmp_path: Path) -> None:
    made = experiment(place)
    run = run_experiment(made, tmp_path / "run").open()
    lengths = {len(t.split()) for t in run.cells["text"]}
    assert 0 in set(run.baseline["text"].str.split().map(len))  # a text that ends at once
    assert NEW in lengths  # one that is cut
    assert compare(place, made, run) > len(run.cells) / 4


def test_sampled_texts_with_trials(place: Place, tmp_path: Path) -> None:
    generate = {"max_new_tokens": NEW, "do_sample": True, "temperature": 0.9, "top_p": 0.95}
    picked = {name: c for name, c in conditions(place.sae).items() if name in ("set_last_keep", "add_all_drop")}
    made = experiment(place, 2, conditions=picked, generate=generate, trials=3, seed=5)
    run = run_experiment(made, tmp_path / "run").open()
    assert compare(place, made, run) > 0
    assert run.cells.groupby(["condition", "example", "feature"], dropna=False)["text"].nunique().max() > 1


def test_codes_are_those_of_the_last_draw(place: Place, tmp_path: Path) -> None:
    generate = {"max_new_tokens": NEW, "do_sample": True, "temperature": 1.2, "until": r"\b\d*[02468]\b.*\d", "retries": 3}
    picked = {"set_last_keep": conditions(place.sae)["set_last_keep"]}
    made = experiment(place, 2, conditions=picked, generate=generate, trials=3)
    run = run_experiment(made, tmp_path / "run").open()
    assert run.cells["attempts"].nunique() > 1
    compare(place, made, run)


def test_bits_do_not_depend_on_the_batch(place: Place, tmp_path: Path) -> None:
    generate = {"max_new_tokens": NEW, "do_sample": True, "temperature": 1.5}
    picked = {name: c for name, c in conditions(place.sae).items() if name in ("set_last_keep", "scale_all_drop", "reconstruct_last_drop")}
    runs = [
        run_experiment(experiment(place, 4, conditions=picked, generate=generate, trials=2, batch_size=size), tmp_path / str(size)).open() for size in (1, 64)
    ]
    assert runs[0].cells["text"].tolist() == runs[1].cells["text"].tolist()
    for name in CAPTURES:
        for edited in (False, True):
            np.testing.assert_array_equal(runs[0].activations(name, edited=edited).values, runs[1].activations(name, edited=edited).values)


def test_other_interventions_edit_every_forward_too(place: Place, tmp_path: Path) -> None:
    """``zero`` at every token, with the answer's number read after a forced prefix."""
    records = [{"id": f"p{i}", "question": text, "answer": 10 + i} for i, text in enumerate(PROMPTS)]
    write_lines(tmp_path / "problems.jsonl", records)
    intervention = {"plugin": "zero", "site": "mlp_out.1", "tokens": "all"}
    value = {
        "name": "zero", "model": {**place.model, "answer_prefix": "The answer is :"}, "data": {"plugin": "problems", "path": str(tmp_path / "problems.jsonl")},
        "intervention": intervention, "metrics": ["cross_entropy"], "generate": {"max_new_tokens": 4}, "capture": [{"sae": place.sae, "reduce": "mean"}],
    }  # fmt: skip
    run = run_experiment(Experiment.from_dict(value), tmp_path / "run").open()
    net, tokenizer = loaded(place.model["path"])
    stops = set(json.loads((Path(place.model["path"]) / "config.json").read_text())["eos_token_id"])
    cells = run.cells[run.cells["condition"] != "baseline"].reset_index(drop=True)
    codes = run.activations("sae", edited=True).values
    for at, (_, row) in enumerate(cells.iterrows()):
        ids = tokenizer(PROMPTS[int(row["example"][1:])])["input_ids"]
        handle = texts.blocks_of(net)[1].mlp.register_forward_hook(lambda _, __, out: torch.zeros_like(out))
        try:
            text = texts.write(net, ids, 4, stops, texts.greedy(len(tokenizer)))
            forced = [*ids, *tokenizer("The answer is :", add_special_tokens=False)["input_ids"]]
            logits = net(input_ids=torch.tensor([forced])).logits[0, -1].double()
        finally:
            handle.remove()
        assert row["text"] == tokenizer.decode([t for t in text.tokens if t not in stops], skip_special_tokens=True)
        gold = tokenizer(str(10 + int(row["example"][1:])))["input_ids"][0]
        assert row["cross_entropy"] == pytest.approx(float(torch.logsumexp(logits, 0) - logits[gold]), rel=2e-4)
        want = np.concatenate([sae_of(place, layer).encode(text.states(layer, False)).mean(0).numpy() for layer in range(LAYERS)])
        np.testing.assert_allclose(codes[at], want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"position": -1}, "tokens: edits every forward; remove position"),
        ({"site": "resid_post.1@prompt"}, "tokens: edits every forward; remove @prompt"),
        ({"downstream": "freeze"}, "freeze pins latents after an edit"),
        ({"plugin": "mean", "tokens": "all"}, "takes values of the unedited run, which has no such tokens"),
        ({"plugin": "noise", "tokens": "last"}, "takes values of the unedited run, which has no such tokens"),
        ({"site": "logits"}, "logits can be captured but not edited"),
        ({"tokens": "first"}, "intervention.tokens: should be 'last' or 'all'"),
    ],
)
def test_what_edits_every_forward_has_no_other_place(place: Place, change: dict[str, Any], said: str) -> None:
    value = {"plugin": "zero", "site": "resid_post.1", "tokens": "last", **change}
    with pytest.raises(UserError) as caught:
        plan_experiment(experiment(place, conditions={}, intervention=value))
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
