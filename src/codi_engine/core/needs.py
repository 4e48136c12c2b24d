"""Which baseline values a plan's edits take: the source arrays, as places of sites."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from codi_engine.core.captures import position_block
from codi_engine.core.conditions import Condition, build_intervention, layers_of
from codi_engine.core.model import ModelInfo
from codi_engine.core.plan import Plan
from codi_engine.core.plugin import Intervention
from codi_engine.core.plugins import Plugins
from codi_engine.core.sites import Phase, Site
from codi_engine.core.sources import array_name, read_from

#: (component, layer, phase) of a source array and the places it holds
Need = tuple[str, int | None, Phase, tuple[int, ...]]


def source_arrays(plan: Plan, plugins: Plugins, lengths: Sequence[int], answer_places: int) -> dict[str, Need]:
    """Return store name → what it holds, for every value that an edit of the plan may take or is compared with.

    Parameters
    ----------
    lengths: tokens of every prompt of the plan (positions written from the start are counted from the end by them)
    answer_places: how many answer places the forced reading has
    """
    needs: dict[str, Need] = {}
    for condition in plan.conditions:
        if (intervention := _taking(condition, plugins)) is not None:
            for layer in layers_of(condition):
                for places in _blocks(condition, plan, lengths, answer_places):
                    _add(needs, intervention, condition, layer, places, plan.info)
        if plan.natural and not condition.plugin.ends_latents:
            for layer in layers_of(condition):
                for places in _blocks(condition, plan, lengths, answer_places):
                    name, _ = array_name(condition.site.component, layer, condition.phase, places[0])
                    needs[name] = (condition.site.component, layer, condition.phase, tuple(places))
        if condition.downstream == "freeze" and plan.info.latents and condition.phase != "answer":
            name, _ = array_name("latent_in", None, "latent", 0)
            needs[name] = ("latent_in", None, "latent", tuple(range(plan.info.latents)))
    return dict(sorted(needs.items()))


def _add(needs: dict[str, Need], intervention: Intervention[Any], condition: Condition, layer: int | None, places: Sequence[int], info: ModelInfo) -> None:
    """Add the array that a block of places is read from: the edited site's, or another that the intervention reads."""
    own = Site(condition.site.component, layer, condition.phase)
    at = places[0]
    if condition.phase == "latent":  # a step that is swept, so that what is said of it is true
        at = min(s for v in condition.axes.get("step") or (condition.fixed["step"],) for s in v)
    site, first = read_from(intervention, own, at, info)
    assert site.phase is not None
    if site.phase == condition.phase:
        first = places[0]
    name, _ = array_name(site.component, site.layer, site.phase, first)
    held = tuple(places) if site.phase == condition.phase else tuple(position_block(first)) if site.phase == "prompt" else tuple(places)
    needs[name] = (site.component, site.layer, site.phase, held)


def _taking(condition: Condition, plugins: Plugins) -> Intervention[Any] | None:
    """Return the condition's intervention when it takes values of the unedited run."""
    probe = build_intervention(plugins, condition.plugin, condition.first_options, "", "")
    takes = probe.source is not None or probe.needs_scale or condition.options.get("difference") is not None
    return probe if takes else None


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
