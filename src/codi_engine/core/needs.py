"""Which baseline values a plan's edits take: the source arrays, as places of sites."""

from __future__ import annotations

from collections.abc import Sequence

from codi_engine.core.captures import position_block
from codi_engine.core.plan import PLACES, Condition, Plan, build_intervention
from codi_engine.core.plugins import Plugins
from codi_engine.core.sites import Phase
from codi_engine.core.sources import array_name

#: (component, layer, phase) of a source array and the places it holds
Need = tuple[str, int | None, Phase, tuple[int, ...]]


def source_arrays(plan: Plan, plugins: Plugins, lengths: Sequence[int], answer_places: int) -> dict[str, Need]:
    """Return store name → what it holds, for every value that an edit of the plan may take.

    Parameters
    ----------
    lengths: tokens of every prompt of the plan (positions written from the start are counted from the end by them)
    answer_places: how many answer places the forced reading has
    """
    needs: dict[str, Need] = {}
    for condition in plan.conditions:
        if _takes_values(condition, plugins):
            for layer in _layers(condition):
                for places in _blocks(condition, plan, lengths, answer_places):
                    name, _ = array_name(condition.site.component, layer, condition.phase, places[0])
                    needs[name] = (condition.site.component, layer, condition.phase, tuple(places))
        if condition.downstream == "freeze" and plan.info.latents and condition.phase != "answer":
            name, _ = array_name("latent_in", None, "latent", 0)
            needs[name] = ("latent_in", None, "latent", tuple(range(plan.info.latents)))
    return dict(sorted(needs.items()))


def _takes_values(condition: Condition, plugins: Plugins) -> bool:
    first = {n: v[0] for n, v in condition.axes.items() if n not in PLACES}
    probe = build_intervention(plugins, condition.plugin, {**condition.options, **first}, "", "")
    return probe.source is not None or probe.needs_scale or condition.options.get("difference") is not None


def _layers(condition: Condition) -> list[int | None]:
    values = condition.axes.get("layer") or ((condition.fixed["layer"],) if "layer" in condition.fixed else ())
    return sorted({layer for v in values for layer in v}) or [None]


def _blocks(condition: Condition, plan: Plan, lengths: Sequence[int], answer_places: int) -> list[list[int]]:
    if condition.phase == "latent":
        return [list(range(plan.info.latents))]
    if condition.phase == "answer":
        return [list(range(answer_places))]
    values = condition.axes.get("position") or (condition.fixed["position"],)
    places = {p for v in values for p in v}
    relative = {p if p < 0 else p - length for p in places for length in lengths}
    blocks = {position_block(p)[0]: list(position_block(p)) for p in relative if p < 0}
    return [blocks[k] for k in sorted(blocks, reverse=True)]
