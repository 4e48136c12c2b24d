"""Reads the written files back with transformers and answers the held-out problems from them.

Nothing here uses the training code's model: weights, latent loop and decoding are built anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, DynamicCache, GPT2LMHeadModel

from demo_training.export import ALPHA, PREFIX, RANK
from demo_training.problems import MAX_STEPS, Problem

MODES = ("latents", "zeroed", "skipped", "teacher")
_MAX_NEW_TOKENS = 48
_NUMBER = re.compile(r"-?\d+\.?\d*")


class ExportedDemo:
    """The demo as a user loads it: base config and tokenizer, and one file of weights."""

    def __init__(self, base: Path, checkpoint: Path, latents: int) -> None:
        """Load and merge the weights."""
        self.latents = latents
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        config = AutoConfig.from_pretrained(base)
        self.vocab = config.vocab_size
        config.vocab_size += 3
        self.model = GPT2LMHeadModel(config)
        self.model.train(mode=False)
        state = load_file(checkpoint / "model.safetensors")
        self.model.load_state_dict(merge_adapters(state), strict=True)
        self.model.tie_weights()
        width = config.n_embd
        hidden = state["prj.1.weight"].shape[0]
        self.prj = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.prj.add_module("ln", nn.LayerNorm(width))
        names = {"prj.1.": "0.", "prj.3.": "2.", "prj.ln.": "ln."}
        picked = {new + name.removeprefix(old): value for name, value in state.items() for old, new in names.items() if name.startswith(old)}
        self.prj.load_state_dict(picked, strict=True)

    @torch.no_grad()
    def answer(self, question: str, mode: str = "latents") -> str:
        """Return the text generated greedily for one question.

        Modes: the six latents; zeros in their place; bot followed by eot at once; no latents and no
        bot, so that the model writes its steps as a teacher.
        """
        cache = DynamicCache(config=self.model.config)
        ids = self.tokenizer(question.strip().replace("  ", " "))["input_ids"]
        if mode == "teacher":
            return self._decode(self._forward(cache, ids=ids)[0], cache)
        _, state = self._forward(cache, ids=[*ids, self.vocab + 1])
        for _ in range(0 if mode == "skipped" else self.latents):
            latent = self.prj(state)
            _, state = self._forward(cache, latent=latent * 0 if mode == "zeroed" else latent)
        return self._decode(self._forward(cache, ids=[self.vocab + 2])[0], cache)

    def _forward(self, cache: DynamicCache, *, ids: list[int] | None = None, latent: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Feed tokens or a latent; return logits and final hidden state at the last position."""
        if ids is not None:
            latent = self.model.transformer.wte(torch.tensor(ids))
        assert latent is not None
        output = self.model(
            inputs_embeds=latent.view(1, -1, self.model.config.n_embd),
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        return output.logits[0, -1, : self.vocab], output.hidden_states[-1][0, -1]

    def _decode(self, logits: Tensor, cache: DynamicCache) -> str:
        tokens: list[int] = []
        for _ in range(_MAX_NEW_TOKENS):
            token = int(logits.argmax())
            if token == self.tokenizer.eos_token_id:
                break
            tokens.append(token)
            logits, _ = self._forward(cache, ids=[token])
        text = self.tokenizer.decode(tokens, skip_special_tokens=True)
        assert isinstance(text, str)
        return text


def merge_adapters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of a plain GPT-2 with the LoRA differences added."""
    merged: dict[str, Tensor] = {}
    for name, value in state.items():
        if name.startswith("prj.") or ".lora_" in name:
            continue
        target = name.removeprefix(PREFIX)
        weight = value.float()
        if target.endswith(".base_layer.weight"):
            stem = name.removesuffix("base_layer.weight")
            factor_a = state[stem + "lora_A.default.weight"]
            factor_b = state[stem + "lora_B.default.weight"]
            weight = weight + (ALPHA / RANK) * (factor_b @ factor_a).T
        merged[target.replace(".base_layer.", ".")] = weight
    merged["transformer.wte.weight"] = merged["lm_head.weight"]
    return merged


def final_number(text: str) -> float:
    """Return the last number of a text; infinity if there is none."""
    found = _NUMBER.findall(text.replace(",", ""))
    return float(found[-1]) if found else float("inf")


def is_right(demo: ExportedDemo, problem: Problem, mode: str = "latents") -> bool:
    """Return whether the demo answers a problem rightly."""
    return final_number(demo.answer(problem.question(), mode)) == problem.answer()


def accuracies(demo: ExportedDemo, problems: Iterable[Problem]) -> dict[str, dict[str, float]]:
    """Return the percentage of right answers per mode and number of steps."""
    listed = list(problems)
    table: dict[str, dict[str, float]] = {}
    for mode in MODES:
        table[mode] = {}
        for steps in range(1, MAX_STEPS + 1):
            chosen = [problem for problem in listed if len(problem.steps) == steps]
            right = sum(is_right(demo, problem, mode) for problem in chosen)
            table[mode][str(steps)] = round(100 * right / max(1, len(chosen)), 1)
    return table
