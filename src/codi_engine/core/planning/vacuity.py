"""Which cells are the same computation, and which cannot change anything: said before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelInfo
from codi_engine.core.planning.conditions import PLACES, Condition, axis_label
from codi_engine.core.plugin import Intervention

#: inside the last block, these act on the token's own output alone: its keys and values are made before
_OWN_OUTPUT = ("resid_mid", "attn_out", "mlp_out", "attn_z", "q", "mlp_act")


def vacuous(conditions: Sequence[Condition], info: ModelInfo, allow: bool, source: str) -> tuple[list[str], list[Condition]]:
    """Name conditions and places that are the same computation or none at all.

    Returns
    -------
    notes: places that nothing reads, and with ``allow`` the comparisons that say nothing
    sound: the conditions that say something of their own

    Raises
    ------
    UserError: a condition without any effect, or conditions or points that are the same computation (unless ``allow``)
    """
    notes: list[str] = []
    found: list[str] = []
    sound: list[Condition] = []
    known: dict[frozenset[str], str] = {}
    cells: dict[str, str] = {}
    for condition in conditions:
        forms = [(point, effective(condition, point, info)) for point in condition.points()]
        alive = [form for _, form in forms if form is not None]
        dead = [point for point, form in forms if form is None]
        if dead and not alive:
            found.append(f"condition '{condition.name}' cannot change anything: no later computation reads {condition.site} there")
        elif dead:
            notes.append(f"condition '{condition.name}': {len(dead)} of {len(forms)} places change nothing, nothing reads them: {_listed(condition, dead)}")
        distinct = frozenset(alive)
        if len(distinct) < len(alive):  # a few, where a last step is read by nothing; most, where the design says nothing
            (found if 2 * len(distinct) <= len(alive) else notes).append(
                f"condition '{condition.name}': its {len(alive)} points are {len(distinct)} different computation{'s' * (len(distinct) > 1)}"
            )
        if distinct and distinct in known:
            found.append(f"conditions '{known[distinct]}' and '{condition.name}' are the same computation")
        elif shared := {cells[form] for form in distinct if form in cells}:
            count = sum(form in cells for form in distinct)
            notes.append(f"{count} of {len(distinct)} computations of '{condition.name}' are also in {', '.join(repr(s) for s in sorted(shared))}")
        if not distinct <= set(cells):
            sound.append(condition)
        known.setdefault(distinct, condition.name)
        for form in distinct:
            cells.setdefault(form, condition.name)
    if found and not allow:
        raise UserError(f"{source}: {'; '.join(found)}: comparing them says nothing.\nChange one, or set allow_vacuous: true to run them anyway.")
    return [*notes, *found], sound


def effective(condition: Condition, point: Mapping[str, Any], info: ModelInfo) -> str | None:
    """Return what a cell computes, in a canonical form; None when it equals the unedited run whatever the values are."""
    options = condition.options_at(point)
    chained = bool(options.pop("chain", False))
    shared: dict[str, Any] = {
        "plugin": condition.plugin.name, "options": options, "component": condition.site.component, "phase": condition.phase,
        "variant": condition.variant, "template": condition.template, "head": point.get("head"), "donor": point.get("donor"),
        "tokens": condition.tokens, "control": condition.control,
    }  # fmt: skip
    layers = list(point.get("layer", (None,)))
    if condition.tokens is not None or goes_elsewhere(condition):
        at = [point.get("step"), point.get("position")]
        return _form({**shared, "layers": layers, "places": at, "downstream": condition.downstream, "chain": chained})
    places: list[int] = list(point["step"] if condition.phase == "latent" else point["position"])
    if condition.plugin.ends_latents:
        return _form({**shared, "ends": min(places)})
    pinned = _pinned(condition, places, info)
    if chained:
        places = places[:1]  # what follows is the run's own next state: no edit, but no pin either
    frozen = condition.downstream == "freeze" and condition.phase != "answer" and bool(info.latents)
    edits = [(layer, place) for layer in layers for place in places if _is_read(condition, layer, place, frozen, info)]
    if not edits:
        return None
    return _form({**shared, "edits": sorted(edits, key=repr), "pinned": pinned if frozen else []})


def _form(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def goes_elsewhere(condition: Condition) -> bool:
    """True for interventions that choose their own places: what they compute is theirs to know."""
    return condition.plugin.edits is not Intervention.edits or condition.plugin.source_at is not Intervention.source_at


def _is_read(condition: Condition, layer: int | None, place: int, frozen: bool, info: ModelInfo) -> bool:
    """False where an edit acts on the token's final state alone, and nothing takes that state up."""
    site = condition.site.at(layer)
    own = site.entry(info.layers) >= info.layers or (layer == info.layers - 1 and site.component in _OWN_OUTPUT)
    if not own:
        return True
    if condition.phase == "latent":
        return not frozen and place < info.latents - 1
    if condition.phase == "prompt":
        return place >= 0 or (place == -1 and not (frozen and info.latents))
    return True


def _pinned(condition: Condition, places: Sequence[int], info: ModelInfo) -> list[int]:
    """Return the latents that ``downstream: freeze`` pins: those after the first edit that are not edited themselves."""
    if condition.phase != "latent":
        return list(range(info.latents))
    edited = set(places) if condition.site.component == "latent_in" else set()
    return [step for step in range(min(places) + 1, info.latents) if step not in edited]


def _listed(condition: Condition, points: Sequence[Mapping[str, Any]], most: int = 3) -> str:
    names = [" ".join(f"{a} {axis_label(a, p[a])}" for a in condition.axes if a in PLACES) or "its one place" for p in points]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
