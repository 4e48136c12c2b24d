"""The naive twin of feature patching: one text at a time, one token at a time, forward hooks on the model's own blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache

Edit = Callable[[torch.Tensor], torch.Tensor]  # states × width → the same
Choose = Callable[[torch.Tensor, int], int]  # logits, tokens so far → the next token


@dataclass
class Text:
    """Tokens (a stop token included), and per layer the block's outputs: of the prompt, then of each token taken in."""

    tokens: list[int]
    prompt: dict[int, torch.Tensor] = field(default_factory=dict)
    later: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    last_logits: torch.Tensor = field(default_factory=lambda: torch.empty(0))

    def states(self, layer: int, whole: bool) -> torch.Tensor:
        return torch.cat([self.prompt[layer] if whole else self.prompt[layer][-1:], *self.later[layer]])


def greedy(allowed: int) -> Choose:
    return lambda logits, _: int(logits[:allowed].argmax())


def blocks_of(net: Any) -> Any:
    return net.transformer.h if hasattr(net, "transformer") else net.model.layers


@torch.inference_mode()
def write(net: Any, ids: Sequence[int], new: int, stops: set[int], choose: Choose, edits: Mapping[int, Edit] | None = None, tokens: str = "last") -> Text:
    """Generate; ``edits`` maps a layer to what is done to its output in every forward, at the last token or at all."""
    seen: dict[int, torch.Tensor] = {}

    def hook(layer: int) -> Any:
        def change(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
            if edits and layer in edits:
                first = out.shape[1] - 1 if tokens == "last" else 0
                out = torch.cat([out[:, :first], edits[layer](out[0, first:])[None]], 1)
            seen[layer] = out[0].clone()
            return out

        return change

    handles = [block.register_forward_hook(hook(layer)) for layer, block in enumerate(blocks_of(net))]
    try:
        cache = DynamicCache(config=net.config)
        logits = net(input_ids=torch.tensor([list(ids)]), past_key_values=cache, use_cache=True).logits[0, -1]
        text = Text([], dict(seen), {layer: [] for layer in seen})
        while True:
            text.last_logits = logits
            token = choose(logits, len(text.tokens))
            text.tokens.append(token)
            if token in stops:
                return text
            logits = net(input_ids=torch.tensor([[token]]), past_key_values=cache, use_cache=True).logits[0, -1]
            for layer, out in seen.items():
                text.later[layer].append(out)
            if len(text.tokens) >= new:
                return text
    finally:
        for handle in handles:
            handle.remove()
