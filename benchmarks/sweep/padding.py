"""Prompts of several lengths in one batch of transformers' own forward: padded on the left, with masks and positions."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def padded(prompts: Sequence[Sequence[int]], device: torch.device) -> dict[str, torch.Tensor]:
    """Return ``input_ids``, and where lengths differ ``attention_mask`` and ``position_ids`` too."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], device=device)
    if all(len(p) == longest for p in prompts):
        return {"input_ids": ids}
    lengths = torch.tensor([len(p) for p in prompts], device=device)[:, None]
    mask = torch.arange(longest, device=device)[None] >= longest - lengths
    positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}


def grown(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the mask and positions of one token more; nothing where there was no padding."""
    if "attention_mask" not in inputs:
        return {}
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    return {"attention_mask": mask, "position_ids": inputs["position_ids"][:, -1:] + 1}
