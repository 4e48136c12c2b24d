"""Batch top-k autoencoders (arXiv 2412.06410) of the demo's states, turned into JumpReLU ones with one threshold."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SaeRecipe:
    """Everything that decides the result beside the states."""

    seed: int = 20250221
    features: int = 512
    k: int = 20
    updates: int = 2500
    batch: int = 1024
    rate: float = 2e-3
    warmup: int = 100
    decay_from: float = 0.6
    revive_after: int = 150
    revive_weight: float = 1 / 16


@dataclass(frozen=True)
class Autoencoder:
    """f = JumpReLU(h·encoder + encoder_bias), h ≈ f·decoder + decoder_bias, in the units of the model."""

    encoder: Tensor
    encoder_bias: Tensor
    decoder: Tensor
    decoder_bias: Tensor
    threshold: Tensor


def train(states: Tensor, recipe: SaeRecipe, layer: int) -> Autoencoder:
    """Return an autoencoder of tokens × width states; rows of its decoder have length 1."""
    generator = torch.Generator().manual_seed(recipe.seed + layer)
    width = states.shape[1]
    scale = float(width**0.5 / states.norm(dim=1).mean())
    decoder = torch.nn.functional.normalize(torch.randn(recipe.features, width, generator=generator), dim=1)
    center = states.mean(0) * scale
    parts = [decoder.T.clone(), -center @ decoder.T, decoder.clone(), center.clone()]
    for part in parts:
        part.requires_grad_(True)
    optimizer = torch.optim.Adam(parts, lr=recipe.rate, betas=(0.9, 0.99))
    idle = torch.zeros(recipe.features)
    cut = torch.zeros(())
    for update in range(recipe.updates):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * _schedule(update, recipe)
        x = states[torch.randint(states.shape[0], (recipe.batch,), generator=generator)] * scale
        loss, codes, lowest = _loss(x, parts, idle, recipe)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            parts[2] /= parts[2].norm(dim=1, keepdim=True)
            idle = torch.where((codes > 0).any(0), 0.0, idle + 1)
            cut = lowest if update == 0 else 0.99 * cut + 0.01 * lowest
    encoder, encoder_bias, decoder, decoder_bias = (part.detach() for part in parts)
    return Autoencoder(encoder, encoder_bias / scale, decoder, decoder_bias / scale, cut.expand(recipe.features) / scale)


def _loss(x: Tensor, parts: list[Tensor], idle: Tensor, recipe: SaeRecipe) -> tuple[Tensor, Tensor, Tensor]:
    """Return loss, codes and the smallest code kept; features that have long been idle explain what is left over."""
    encoder, encoder_bias, decoder, decoder_bias = parts
    pre = torch.relu(x @ encoder + encoder_bias)
    lowest = pre.detach().flatten().topk(recipe.k * x.shape[0], sorted=False).values.min()
    codes = torch.where(pre >= lowest, pre, torch.zeros_like(pre))
    left = x - codes @ decoder - decoder_bias
    loss = left.square().sum(1).mean()
    dead = idle >= recipe.revive_after
    if dead.any():
        count = min(int(dead.sum()), recipe.k)
        among = pre[:, dead]
        kept = among.topk(count, dim=1)
        revived = torch.zeros_like(among).scatter(1, kept.indices, kept.values)
        loss = loss + recipe.revive_weight * (left.detach() - revived @ decoder[dead]).square().sum(1).mean()
    return loss, codes, lowest


def _schedule(update: int, recipe: SaeRecipe) -> float:
    """Warm up, stay, and fall to zero."""
    part = update / recipe.updates
    fall = 1.0 if part < recipe.decay_from else (1 - part) / (1 - recipe.decay_from)
    return min(1.0, (update + 1) / recipe.warmup, fall)
