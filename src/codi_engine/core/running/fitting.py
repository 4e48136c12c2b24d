"""What is asked for must fit: prompts into the model, edited positions into the prompts, interventions' files to their sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from codi_engine.core.calling import calling
from codi_engine.core.errors import UserError
from codi_engine.core.planning.plan import PLACES, build_intervention
from codi_engine.core.plugin import Intervention

if TYPE_CHECKING:
    from codi_engine.core.model import ModelInfo
    from codi_engine.core.planning.conditions import Condition
    from codi_engine.core.planning.plan import Plan, PromptRef
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.saestore import SaeStore


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


def check_interventions(plan: Plan, plugins: Plugins, saes: SaeStore, source: str) -> None:
    """Let every intervention look at its files once per point, layer by layer, before anything is computed."""
    points = [
        (layer, {k: v for k, v in point.items() if k not in PLACES}, condition)
        for condition in plan.conditions
        if condition.plugin.check is not Intervention.check
        for point in condition.points()
        for layer in point.get("layer", (None,))
    ]
    for layer, swept, condition in sorted(points, key=lambda p: -1 if p[0] is None else p[0]):
        at = f"conditions.{condition.name}.intervention"
        made = build_intervention(plugins, condition.plugin, {**condition.options, **swept}, at, source)
        try:
            with calling(made, "check"):
                made.check(saes, replace(condition.site.at(layer), phase=condition.phase), plan.info.width)
        except UserError as error:
            raise UserError(f"{source}: {at}: {error}") from None
