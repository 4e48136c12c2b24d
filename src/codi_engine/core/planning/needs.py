"""Which baseline values a plan's edits take: the source arrays, as places of sites."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from codi_engine.core.model import ModelInfo
from codi_engine.core.planning.conditions import Condition, build_intervention, layers_of
from codi_engine.core.planning.plan import Plan
from codi_engine.core.planning.vacuity import goes_elsewhere
from codi_engine.core.plugin import Intervention
from codi_engine.core.plugins import Plugins
from codi_engine.core.returned import edited_places
from codi_engine.core.rollout.sources import array_name, read_from
from codi_engine.core.running.captures import position_block
from codi_engine.core.sites import Phase, Site

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
        takes, elsewhere = _taking(condition, plugins) is not None, goes_elsewhere(condition)
        if takes and elsewhere:
            _chosen_places(needs, condition, plan, plugins, lengths, answer_places)
        if (takes and not elsewhere) or (plan.natural and not condition.plugin.ends_latents):
            for layer in layers_of(condition):
                for places in _blocks(condition, plan, lengths, answer_places):
                    name, _ = array_name(condition.site.component, layer, condition.phase, places[0])
                    needs[name] = (condition.site.component, layer, condition.phase, tuple(places))
        if condition.downstream == "freeze" and plan.info.latents and condition.phase != "answer":
            name, _ = array_name("latent_in", None, "latent", 0)
            needs[name] = ("latent_in", None, "latent", tuple(range(plan.info.latents)))
    return dict(sorted(needs.items()))


def _chosen_places(needs: dict[str, Need], condition: Condition, plan: Plan, plugins: Plugins, lengths: Sequence[int], answer_places: int) -> None:
    """Add what an intervention reads that chooses its own places: every place of every phase that it edits, for every point."""
    latents, seen = plan.info.latents, set()
    for point in condition.points():
        options = condition.options_at(point)
        for addressed in _addressed(condition, point, lengths):
            key = repr((sorted(options.items()), addressed, point.get("layer")))
            if key in seen:
                continue
            seen.add(key)
            intervention = build_intervention(plugins, condition.plugin, options, condition.name, "")
            edits = edited_places(intervention, condition.phase, addressed, latents)
            for phase, places in edits.items():
                for layer, place in itertools.product(point.get("layer", (None,)), places):
                    site = Site(condition.site.component, layer, phase)
                    for read, at in _read_at(intervention, condition, site, place, plan.info):
                        assert read.phase is not None
                        held = {"latent": range(latents), "answer": range(answer_places)}.get(read.phase) or position_block(at)
                        needs[array_name(read.component, read.layer, read.phase, at)[0]] = (read.component, read.layer, read.phase, tuple(held))


def _read_at(intervention: Intervention[Any], condition: Condition, site: Site, place: int, info: ModelInfo) -> list[tuple[Site, int]]:
    """Return where an edit's source is read, and the edited place itself where its scale or a difference of means is needed."""
    here = intervention.needs_scale or bool(condition.differences)
    there = intervention.source is not None
    return [*([read_from(intervention, site, place, info)] if there else []), *([(site, place)] if here else [])]


def _addressed(condition: Condition, point: Mapping[str, Any], lengths: Sequence[int]) -> list[list[int]]:
    """Return the places that a point addresses, prompt positions counted from the end: one list per prompt length that differs."""
    places = list(point["step"] if condition.phase == "latent" else point["position"])
    if condition.phase != "prompt":
        return [places]
    relative = {tuple(p if p < 0 else p - length for p in places) for length in lengths}
    return [list(r) for r in sorted(relative) if all(p < 0 for p in r)]


def _taking(condition: Condition, plugins: Plugins) -> Intervention[Any] | None:
    """Return the condition's intervention when it takes values of the unedited run."""
    probe = build_intervention(plugins, condition.plugin, condition.first_options, "", "")
    takes = probe.source is not None or probe.needs_scale or bool(condition.differences)
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
