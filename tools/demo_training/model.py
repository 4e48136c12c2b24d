"""A small GPT-2 with CODI's latent loop, written for fast training on one core."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Cache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ModelSize:
    """The sizes of the model; ``vocab`` counts the tokenizer's tokens without pad, bot and eot."""

    vocab: int
    width: int = 128
    layers: int = 4
    heads: int = 4
    positions: int = 512
    latents: int = 6

    @property
    def pad(self) -> int:
        """The id of the padding token."""
        return self.vocab

    @property
    def bot(self) -> int:
        """The id of the token that begins the latent thought."""
        return self.vocab + 1

    @property
    def eot(self) -> int:
        """The id of the token that ends the latent thought."""
        return self.vocab + 2


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is stored as inputs by outputs."""

    def __init__(self, inputs: int, outputs: int, std: float) -> None:
        """Draw the weight with standard deviation ``std``; the bias is zero."""
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * std)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.view(*x.shape[:-1], -1)


class Attention(nn.Module):
    """GPT-2's causal attention with a cache of earlier keys and values."""

    def __init__(self, size: ModelSize) -> None:
        """Create the layers."""
        super().__init__()
        self.heads = size.heads
        std = 1 / math.sqrt(size.width)
        self.c_attn = Conv1D(size.width, 3 * size.width, std)
        self.c_proj = Conv1D(size.width, size.width, std / math.sqrt(2 * size.layers))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the output and the keys and values, earlier ones included."""
        batch, length, width = x.shape
        qkv = self.c_attn(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if past is not None:
            key = torch.cat((past[0], key), 2)
            value = torch.cat((past[1], value), 2)
        scores = (query * (width // self.heads) ** -0.5) @ key.transpose(2, 3)
        if mask is not None:
            scores = scores + mask
        mixed = scores.softmax(-1).to(value.dtype) @ value
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        return self.c_proj(mixed), (key, value)


class Mlp(nn.Module):
    """GPT-2's feed-forward layer."""

    def __init__(self, size: ModelSize) -> None:
        """Create the layers."""
        super().__init__()
        std = 1 / math.sqrt(size.width)
        self.c_fc = Conv1D(size.width, 4 * size.width, std)
        self.c_proj = Conv1D(4 * size.width, size.width, std / 2 / math.sqrt(2 * size.layers))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """One block of GPT-2."""

    def __init__(self, size: ModelSize) -> None:
        """Create the layers."""
        super().__init__()
        self.ln_1 = nn.LayerNorm(size.width)
        self.attn = Attention(size)
        self.ln_2 = nn.LayerNorm(size.width)
        self.mlp = Mlp(size)

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the output and the keys and values."""
        mixed, cache = self.attn(self.ln_1(x), past, mask)
        x = x + mixed
        return x + self.mlp(self.ln_2(x)), cache


class Projection(nn.Module):
    """CODI's map from a final hidden state to the next latent input."""

    def __init__(self, width: int) -> None:
        """Create the layers."""
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)
        self.ln = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers."""
        out: Tensor = self.ln(self.second(F.gelu(self.first(x))))
        return out


class CodiModel(nn.Module):
    """GPT-2, tied output layer, and the projection of the latent loop."""

    def __init__(self, size: ModelSize) -> None:
        """Draw the weights from torch's current random state."""
        super().__init__()
        self.size = size
        self.wte = nn.Parameter(torch.randn(size.vocab + 3, size.width) * 0.05)
        self.wpe = nn.Parameter(torch.randn(size.positions, size.width) * 0.02)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size.layers))
        self.ln_f = nn.LayerNorm(size.width)
        self.prj = Projection(size.width)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings of token ids."""
        return F.embedding(ids, self.wte)

    def run(
        self,
        x: Tensor,
        positions: Tensor,
        past: Cache | None = None,
        mask: Tensor | None = None,
    ) -> tuple[list[Tensor], Cache]:
        """Return the hidden states (inputs first, the last after the final norm) and the cache."""
        x = x + F.embedding(positions, self.wpe)
        states, cache = [x], []
        for index, block in enumerate(self.blocks):
            x, entry = block(x, None if past is None else past[index], mask)
            states.append(x)
            cache.append(entry)
        states[-1] = self.ln_f(x)
        return states, cache

    def logits(self, state: Tensor) -> Tensor:
        """Return the logits of all tokens."""
        return state @ self.wte.t()

    def think(self, state: Tensor, cache: Cache, start: int, *, zero: bool = False) -> Cache:
        """Run the latent loop from the state at bot; ``zero`` feeds zeros in place of the latents."""
        for step in range(self.size.latents):
            latent = self.prj(state)
            if zero:
                latent = torch.zeros_like(latent)
            position = torch.tensor([start + step])
            states, cache = self.run(latent[:, None], position, cache)
            state = states[-1][:, 0]
        return cache


def block_mask(length: int, past: int) -> Tensor:
    """Return what to add to the scores so that each new position sees no later one."""
    return torch.full((length, past + length), -1e9).triu(past + 1)
