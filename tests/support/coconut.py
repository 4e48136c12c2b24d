"""Coconut written down once more, one question at a time; its tiny checkpoints are ``codi_engine.testing``'s."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass
class Answered:
    thoughts: torch.Tensor  # K × width: what the latent positions consume
    last: torch.Tensor  # the state after the last thought
    logits: torch.Tensor  # at <|end-latent|>
    tokens: list[int]


Change = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def answer(
    network: Any, blocks: Any, ids: Sequence[int], end: int, latents: int, new: int, allowed: int, eos: int,
    thought: dict[int, Change] | None = None, block: dict[tuple[int, int], Change] | None = None,
) -> Answered:  # fmt: skip
    """Run the method on one prompt, which ends in <|start-latent|>: everything is computed again for every latent and token.

    ``thought`` changes what latent k consumes, ``block`` the output of block l at latent k (key (l, k)).
    """
    embed = network.get_input_embeddings()
    rows = embed(torch.tensor([list(ids)]))
    start = len(ids)
    handles = []
    for (layer, step), change in (block or {}).items():

        def hook(_: Any, __: Any, out: torch.Tensor, place: int = start + step, change: Change = change) -> torch.Tensor:
            if out.shape[1] <= place:
                return out
            out = out.clone()
            out[0, place] = change(out[0, place])
            return out

        handles.append(blocks[layer].register_forward_hook(hook))
    try:
        for step in range(latents):
            z = network(inputs_embeds=rows, output_hidden_states=True, use_cache=False).hidden_states[-1][:, -1:]
            if thought and step in thought:
                z = thought[step](z)
            rows = torch.cat([rows, z], 1)
        last = network(inputs_embeds=rows, output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]
        thoughts, tokens, feed = rows[0, start:], [], end
        first = torch.empty(0)
        for _ in range(new):
            rows = torch.cat([rows, embed(torch.tensor([[feed]]))], 1)
            logits = network(inputs_embeds=rows, use_cache=False).logits[0, -1]
            first = logits if not len(first) else first
            feed = int(logits[:allowed].argmax())
            tokens.append(feed)
            if feed == eos:
                break
    finally:
        for handle in handles:
            handle.remove()
    return Answered(thoughts, last, first, tokens)
