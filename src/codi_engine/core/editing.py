"""Cells become tasks of the rollout, and the rollout's calls become calls of interventions.

The rollout knows rows and sites; interventions know values. Between them this module resolves places against prompt
lengths, fetches what each row takes from the baseline, and keeps the record of what fired.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from codi_engine.core.errors import GateError, UserError
from codi_engine.core.network import Network
from codi_engine.core.plan import PLACES, Cell, Condition
from codi_engine.core.plugin import Intervention, Rows
from codi_engine.core.rollout import Task
from codi_engine.core.sampling import generator
from codi_engine.core.sites import Phase, Site
from codi_engine.core.sources import Sources
from codi_engine.core.wavefront import Edit

#: the group that pins values to the unedited run (``downstream: freeze``, and the gate's self-patch)
OWN = 0


@dataclass
class Fired:
    """What happened at one site of one condition: rows edited, rows changed, norms before and after, first values."""

    rows: int = 0
    changed: int = 0
    before: float = 0.0
    after: float = 0.0
    first: list[float] = field(default_factory=list)
    places: set[int] = field(default_factory=set)

    def add(self, place: int, old: torch.Tensor, new: torch.Tensor) -> None:
        self.rows += len(old)
        self.places.add(place)
        self.changed += int((old != new).any(-1).sum())
        self.before += float(old.float().norm(dim=-1).sum())
        self.after += float(new.float().norm(dim=-1).sum())
        if not self.first:
            self.first = [round(float(v), 4) for v in new[0, :4]]


@dataclass(frozen=True)
class _Group:
    intervention: Intervention[Any] | None
    heads: tuple[int, ...] | None
    condition: Condition


@dataclass(frozen=True)
class Placed:
    """A cell with its prompts found: indices into the run's prompt table."""

    cell: Cell
    prompt: int
    partner: int
    donor: int | None


class Editor:
    """Builds tasks for a list of placed cells and applies their edits.

    Parameters
    ----------
    net: for widths and heads
    conditions: the plan's
    build: (condition, options) → intervention, validated and prepared
    sources: baseline values
    lengths: tokens of each prompt of the run's prompt table
    seed: the run's
    common: leave the condition out of random keys
    record: keep what fired (the gate and ``check``)
    """

    def __init__(
        self,
        net: Network,
        conditions: Sequence[Condition],
        build: Callable[[Condition, Mapping[str, Any]], Intervention[Any]],
        sources: Sources,
        lengths: Sequence[int],
        seed: int,
        common: bool = False,
        record: bool = False,
    ) -> None:
        self.net, self.conditions, self.build, self.sources = net, conditions, build, sources
        self.lengths, self.seed, self.common, self.record = lengths, seed, common, record
        self.groups: list[_Group] = []
        self._group_ids: dict[str, int] = {}
        self.fired: dict[tuple[str, str], Fired] = {}
        self.placed: Sequence[Placed] = ()
        if conditions:
            self.groups.append(_Group(None, None, conditions[0]))

    # --------------------------------------------------------------------------------------------- tasks

    def tasks(self, placed: Sequence[Placed], local: Mapping[int, int], own: bool = False) -> list[Task]:
        """Return one task per cell. ``own`` replaces every intervention by the row's own value: the identity."""
        self.placed = placed
        return [self._task(p, local, own) for p in placed]

    def _task(self, placed: Placed, local: Mapping[int, int], own: bool) -> Task:
        condition = self.conditions[placed.cell.condition]
        values = placed.cell.values
        group = OWN if own else self._group(condition, values)
        places = self._places(condition, values, placed.prompt)
        layers: Sequence[int | None] = values["layer"] if "layer" in values else (None,)
        signature = self._signature(group, placed)
        edits: dict[Phase, list[Edit]] = {condition.phase: []}
        for place in places:
            for layer in layers:
                edits[condition.phase].append(Edit(condition.site.at(layer), place, group, signature))
        if condition.downstream == "freeze" and self.net.info.latents:
            edits.setdefault("latent", []).extend(self._frozen(condition, places))
        for phase in edits:
            edits[phase].sort(key=lambda e: (e.place, e.site.entry(self.net.info.layers)))
        cell = placed.cell
        name = "" if self.common else condition.name
        axes = {} if self.common else dict(values)
        key = int.from_bytes(generator("trial", self.seed, cell.example, name, axes, cell.trial).bytes(16), "little")
        return Task(local[placed.prompt], edits, key=key)

    def _frozen(self, condition: Condition, places: Sequence[int]) -> list[Edit]:
        """Pin the latents after the first edit to the unedited run; steps edited at ``latent_in`` keep their edit."""
        first = min(places) + 1 if condition.phase == "latent" else 0
        edited = set(places) if condition.site.component == "latent_in" else set()
        steps = range(first, self.net.info.latents) if condition.phase != "answer" else ()
        return [Edit(Site("latent_in"), step, OWN, "frozen") for step in steps if step not in edited]

    def _group(self, condition: Condition, values: Mapping[str, Any]) -> int:
        options = {**condition.options, **{k: v for k, v in values.items() if k not in PLACES}}
        heads = tuple(values["head"]) if "head" in values else None
        name = json.dumps([condition.name, condition.content(), options, heads], sort_keys=True, default=str)
        if name not in self._group_ids:
            self._group_ids[name] = len(self.groups)
            self.groups.append(_Group(self.build(condition, options), heads, condition))
        return self._group_ids[name]

    def _signature(self, group: int, placed: Placed) -> tuple[Any, ...]:
        intervention = self.groups[group].intervention
        if intervention is not None and intervention.random:
            return (group, placed.cell.key)
        return (group, placed.donor if intervention is not None and intervention.source == "donor" else None)

    def _places(self, condition: Condition, values: Mapping[str, Any], prompt: int) -> list[int]:
        if condition.phase == "latent":
            return list(values["step"])
        places = values["position"]
        if condition.phase == "answer":
            return list(places)
        return [self._from_end(p, prompt) for p in places]

    def _from_end(self, place: int, prompt: int) -> int:
        """Count a prompt position from the prompt's end (−1 is ``bot`` or the last token)."""
        length = self.lengths[prompt]
        relative = place if place < 0 else place - length
        if not -length <= relative < 0:
            raise UserError(f"position {place} lies outside a prompt of {length} tokens (prompt {prompt}); count from the end: −1, −2 …")
        return relative

    # --------------------------------------------------------------------------------------------- edits

    def apply(self, number: int, site: Site, place: int, cells: Sequence[int], values: torch.Tensor) -> torch.Tensor:
        """Return the new values of the rows whose representative cells are given."""
        group = self.groups[number]
        columns = self._columns(group, site)
        old = values if columns is None else values[:, columns]
        placed = [self.placed[c] for c in cells]
        rows = self._rows(group, site, place, placed, old, columns)
        if group.intervention is None:
            assert rows.source is not None
            new = rows.source.to(old.dtype)
        else:
            new = group.intervention.apply(rows)
        if new.shape != old.shape or new.dtype != old.dtype:
            name = group.intervention.name if group.intervention else "own"
            raise GateError(f"intervention '{name}' returned {list(new.shape)} {new.dtype} for {list(old.shape)} {old.dtype} at {site}")
        if self.record:
            kind = self.conditions[placed[0].cell.condition].name if number != OWN else "own"
            self.fired.setdefault((kind, str(site)), Fired()).add(place, old, new)
        if columns is None:
            return new
        out = values.clone()
        out[:, columns] = new
        return out

    def _columns(self, group: _Group, site: Site) -> torch.Tensor | None:
        if group.heads is None:
            return None
        size = self.net.info.head_dim
        return torch.tensor([h * size + i for h in group.heads for i in range(size)], device=self.net.device)

    def _rows(self, group: _Group, site: Site, place: int, placed: Sequence[Placed], old: torch.Tensor, columns: torch.Tensor | None) -> Rows:
        condition = self.conditions[placed[0].cell.condition]
        phase: Phase = condition.phase if group.intervention is not None or site.component == condition.site.component else "latent"
        labels = {
            "example": np.array([p.cell.example for p in placed], object),
            "layer": np.full(len(placed), -1 if site.layer is None else site.layer),
            "position" if phase != "latent" else "step": np.full(len(placed), place),
            "donor": np.array([p.cell.values.get("donor", -1) for p in placed]),
        }
        source = self._source(group, condition, phase, site, place, placed)
        if source is not None:
            source = source.to(old.device)
            source = source if columns is None else source[:, columns]
        scale = None
        if group.intervention is not None and group.intervention.needs_scale:
            value = self.sources.scale(site.component, site.layer, phase, condition.variant, place)
            scale = torch.full((len(placed),), value, device=old.device)
        self.sources.phase, self.sources.variant = phase, condition.variant
        return Rows(old, labels, site.component, site.layer, place, source, scale, lambda: self._draws(placed, site, place, old))

    def _source(self, group: _Group, condition: Condition, phase: Phase, site: Site, place: int, placed: Sequence[Placed]) -> torch.Tensor | None:
        kind = "own" if group.intervention is None else group.intervention.source
        if kind is None:
            return None
        if kind in ("mean", "mean_over_steps"):
            places = [place] if kind == "mean" else self._all_places(condition, phase, place)
            mean = self.sources.mean(site.component, site.layer, phase, condition.variant, places)
            return torch.from_numpy(np.repeat(mean[None].astype(np.float32), len(placed), 0))
        prompts = [{"own": p.prompt, "partner": p.partner, "donor": p.donor}[kind] for p in placed]
        assert all(p is not None for p in prompts)
        places = [self._source_place(condition, place, p.prompt, q) for p, q in zip(placed, prompts, strict=True)]  # type: ignore[arg-type]
        if phase != "prompt" or kind == "own":
            places = [place] * len(placed)
        values = self.sources.values(site.component, site.layer, phase, prompts, places)  # type: ignore[arg-type]
        return torch.from_numpy(values)

    def _all_places(self, condition: Condition, phase: Phase, place: int) -> list[int]:
        if phase == "latent":
            return list(range(self.net.info.latents))
        values = condition.axes.get("position") or (condition.fixed.get("position", (place,)),)
        return sorted({p for v in values for p in v})

    def _source_place(self, condition: Condition, place: int, prompt: int, source: int) -> int:
        """Positions written from the prompt's start address the same token of the source, those from the end the same distance."""
        values = condition.axes.get("position") or (condition.fixed.get("position", ()),)
        absolute = any(p >= 0 for v in values for p in v)
        return place + self.lengths[prompt] - self.lengths[source] if absolute else place

    def _draws(self, placed: Sequence[Placed], site: Site, place: int, like: torch.Tensor) -> torch.Tensor:
        """Standard normal values, rows × width: one counter-based generator per cell, site and place."""
        out = np.empty(like.shape, np.float32)
        for row, p in enumerate(placed):
            name = "" if self.common else self.conditions[p.cell.condition].name
            point = {k: v for k, v in p.cell.values.items() if k in ("donor",)} if self.common else dict(p.cell.values)
            out[row] = generator("draw", self.seed, p.cell.example, name, point, p.cell.trial, str(site), place).standard_normal(like.shape[1])
        return torch.from_numpy(out).to(like)
