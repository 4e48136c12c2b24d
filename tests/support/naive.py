"""The naive twin of the rollout: one question at a time, the model's own attention, plain hooks, nothing shared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

Change = Callable[[int, int, torch.Tensor], torch.Tensor]  # (step, layer, block output 1 × width) → new


@dataclass
class Answered:
    c: torch.Tensor  # K + 1 × width
    z: torch.Tensor  # K + 1 × width
    blocks: torch.Tensor  # K × layers × width
    first_logits: torch.Tensor
    tokens: list[int]


@contextmanager
def _hooks(blocks: Any, hook: Callable[[int, torch.Tensor], torch.Tensor]) -> Any:
    handles = [b.register_forward_hook(lambda _, __, out, i=i: hook(i, out)) for i, b in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def answer(
    net: Any, blocks: Any, prj: Callable[[torch.Tensor], torch.Tensor], ids: Sequence[int], start: Sequence[int], steps: int = 6,
    new: int = 6, allowed: int | None = None, change: Change | None = None, swap: dict[int, torch.Tensor] | None = None,
) -> Answered:  # fmt: skip
    """Run contract §2 at batch size 1. ``net`` must use an attention implementation of transformers' own."""
    from transformers import DynamicCache

    cache = DynamicCache(config=net.config)
    decoder = net.base_model
    state = decoder(input_ids=torch.tensor([list(ids)]), past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
    c, z, outs = [state], [], torch.zeros(steps, len(blocks), state.shape[-1])
    for step in range(steps):
        latent = prj(c[-1])
        if swap and step in swap:
            latent = swap[step][None]
        z.append(latent)

        def hook(layer: int, out: torch.Tensor, step: int = step) -> torch.Tensor:
            if change is not None:
                out = out.clone()
                out[0, -1] = change(step, layer, out[0, -1:])[0]
            outs[step, layer] = out[0, -1]
            return out

        with _hooks(blocks, hook):
            out = decoder(inputs_embeds=latent[:, None], past_key_values=cache, use_cache=True)
        c.append(out.last_hidden_state[:, -1])
    z.append(prj(c[-1]))
    feed, tokens, first = list(start), [], torch.empty(0)
    for number in range(new):
        out = decoder(input_ids=torch.tensor([feed]), past_key_values=cache, use_cache=True)
        logits = net.get_output_embeddings()(out.last_hidden_state[:, -1])[0]
        first = logits if number == 0 else first
        tokens.append(int(logits[:allowed].argmax()))
        feed = tokens[-1:]
    return Answered(torch.cat(c), torch.cat(z), outs, first, tokens)
