"""Prompts must fit into the model, and edited positions into the prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError

if TYPE_CHECKING:
    from codi_engine.core.model import ModelInfo
    from codi_engine.core.planning.conditions import Condition
    from codi_engine.core.planning.plan import PromptRef


def check_length(info: ModelInfo, ids: Mapping[str, Sequence[int]], prompts: Mapping[str, PromptRef], answer: int) -> None:
    """Refuse a prompt that leaves no room for the latents and the ``answer`` tokens."""
    most = info.max_positions
    if most is None:
        return
    room = most - info.latents - answer
    for key, tokens in ids.items():
        if len(tokens) > room:
            raise UserError(
                f"data: example {prompts[key].example}: prompt of {len(tokens)} tokens; the model's {most} positions leave {room} "
                "beside latents and answer.\nShorten it, drop it, or lower generate.max_new_tokens."
            )


def check_positions(conditions: Sequence[Condition], ids: Mapping[str, Sequence[int]], prompts: Mapping[str, PromptRef], source: str) -> None:
    """Every swept prompt position must lie inside every prompt that it is applied to."""
    for condition in conditions:
        if condition.phase != "prompt" or condition.tokens is not None:
            continue
        values = condition.axes.get("position") or (condition.fixed["position"],)
        low, high = min(p for v in values for p in v), max(p for v in values for p in v)
        for key, tokens in ids.items():
            if prompts[key].compared:
                continue
            if prompts[key].variant in (condition.variant, condition.partner) and not -len(tokens) <= low <= high < len(tokens):
                bad = low if low < -len(tokens) else high
                raise UserError(
                    f"{source}: {condition.name}: position {bad} lies outside the prompt of example {prompts[key].example} "
                    f"({len(tokens)} tokens).\nPositions count from 0, or from the end: −1 is the last token."
                )
