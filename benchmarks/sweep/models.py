"""Models of the comparison, from a configuration with random weights, and the rates of the machine they run on."""

from __future__ import annotations

import copy
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from codi_engine.core.libraries import quiet
from codi_engine.core.model import ModelAdapter
from codi_engine.core.rollout import packing
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout
from codi_engine.plugins.models.hf import describe

from .timing import measured

LATENTS = 6


@dataclass(frozen=True)
class Shape:
    """Numbers of a decoder. ``mlp`` is the width inside the MLP; ``gated``: it has a third matrix, as LLaMA's has."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    mlp: int
    vocabulary: int
    gated: bool

    @property
    def keys(self) -> int:
        """Multiply-adds × 2 of one token's keys and values in one layer."""
        return 4 * self.width * self.kv_heads * (self.width // self.heads)

    @property
    def rest(self) -> int:
        """FLOPs of one token's query, attention output and MLP in one layer."""
        return 4 * self.width**2 + (6 if self.gated else 4) * self.width * self.mlp

    @property
    def head(self) -> int:
        """FLOPs of one token's logits."""
        return 2 * self.width * self.vocabulary


SHAPES = {
    "gpt2": {
        "tiny": Shape(3, 64, 4, 4, 256, 199, False),
        "small": Shape(6, 256, 8, 8, 1024, 2000, False),
        "gpt2": Shape(12, 768, 12, 12, 3072, 50257, False),
    },
    "llama": {
        "tiny": Shape(3, 64, 4, 2, 176, 199, True),
        "small": Shape(6, 256, 8, 2, 704, 2000, True),
        "gpt2": Shape(12, 768, 12, 4, 2048, 50257, True),
        "1b": Shape(16, 2048, 32, 8, 8192, 128256, True),
    },
}


class Models:
    """One set of weights; every contender gets a model object of its own over the same tensors.

    Libraries change what they are given: attention, activations, wrappers. None of it reaches another contender.
    """

    def __init__(self, kind: str, size: str, device: str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        self.kind, self.size, self.device, self.dtype = kind, size, torch.device(device), dtype
        self.shape = SHAPES[kind][size]
        torch.manual_seed(0)
        with quiet():
            self._model = _built(kind, self.shape).eval().requires_grad_(False).to(self.device, dtype)
        width = self.shape.width
        layers = [torch.nn.Linear(width, width), torch.nn.GELU(), torch.nn.Linear(width, width), torch.nn.LayerNorm(width)]
        #: the latent loop's map c → z of workload B
        self.projection = torch.nn.Sequential(*layers).requires_grad_(False).to(self.device, dtype)

    @property
    def config(self) -> Any:
        return self._model.config

    def fresh(self, attention: str = "sdpa") -> Any:
        """Return a new model object over the same weights."""
        memo: dict[int, Any] = {id(t): t for t in (*self._model.parameters(), *self._model.buffers())}
        model = copy.deepcopy(self._model, memo)
        model.set_attn_implementation(attention)
        return model

    def rollout(self, latent: bool = False, **options: Any) -> Rollout:
        """Return the engine over a model object of its own; ``latent``: as a CODI model; ``options`` are the rollout's."""
        model, nothing = self.fresh(), None
        info = describe(model.config, LATENTS if latent else 0, str(self.dtype).removeprefix("torch."), str(self.device))
        projection = self.projection if latent else None
        texts: Any = nothing
        adapter = ModelAdapter(info, model, texts, texts, texts, projection=projection, answer_start=(1,) if latent else ())
        return Rollout(Network(adapter), **options)


def _built(kind: str, shape: Shape) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    if kind == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(
                n_layer=shape.layers, n_embd=shape.width, n_head=shape.heads, n_inner=shape.mlp, vocab_size=shape.vocabulary,
                n_positions=256, initializer_range=0.04, bos_token_id=None, eos_token_id=None,
            )
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(
            num_hidden_layers=shape.layers, hidden_size=shape.width, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.mlp, vocab_size=shape.vocabulary, max_position_embeddings=256, initializer_range=0.04,
            tie_word_embeddings=True, bos_token_id=None, eos_token_id=None,
        )
    )  # fmt: skip


def blocks_of(model: Any) -> Any:
    """Return the list of decoder blocks."""
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def matrix_rates(models: Models, tries: int = 20) -> dict[str, float]:
    """Return FLOP/s of a matrix product of 256 × d × 4d (on a GPU 8,192³) in the model's dtype: the median of the tries, on the clock of the comparison.

    ``plain`` is ``a @ b``; ``packed`` is torch's product with a weight that was reordered once, where the engine has it. Shares are taken
    of the larger one.
    """
    width = models.shape.width
    m, k, n = (256, width, 4 * width) if models.device.type == "cpu" else (8192, 8192, 8192)
    a, b = (torch.randn(size, device=models.device, dtype=models.dtype) for size in ((m, k), (k, n)))
    ways = {"plain": lambda: a @ b}
    layer = torch.nn.Linear(k, n, bias=False).requires_grad_(False).to(models.device, models.dtype)
    if packing.available() and packing.packable(layer):
        packing.pack([layer])
        ways["packed"] = lambda: layer(a)
    for way in ways.values():
        way()
    return {name: 2 * m * k * n / statistics.median(measured(models.device, way)[1].judged for _ in range(tries)) for name, way in ways.items()}
