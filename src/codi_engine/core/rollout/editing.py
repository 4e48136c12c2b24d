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

from codi_engine.core.calling import calling
from codi_engine.core.errors import UserError
from codi_engine.core.planning.plan import Cell, Condition
from codi_engine.core.plugin import Intervention, Rows
from codi_engine.core.returned import Unsettled, applied, edited_places
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Task
from codi_engine.core.rollout.sampling import generator
from codi_engine.core.rollout.sources import Pool, Sources, read_from
from codi_engine.core.rollout.tasks import Edit
from codi_engine.core.running.natural import Naturals, written
from codi_engine.core.sites import PHASES, Phase, Site

#: the group that pins values to the unedited run (``downstream: freeze``, and the gate's self-patch)
OWN = 0
#: the group that puts the row's own current value back: an edit that fires and changes nothing
HOLD = 1


@dataclass
class Fired:
    """What happened at one site of one condition: rows edited, rows changed, norms before and after, first values; whether one must change.

    ``same``: rows whose source holds what stood there already (the tokens before a pair's first difference).
    """

    rows: int = 0
    changed: int = 0
    same: int = 0
    before: float = 0.0
    after: float = 0.0
    first: list[float] = field(default_factory=list)
    places: set[int] = field(default_factory=set)
    must_change: bool = False

    def add(self, place: int, old: torch.Tensor, new: torch.Tensor, source: torch.Tensor | None, by: Intervention[Any] | None) -> None:
        self.rows += len(old)
        self.same += 0 if source is None else int((source.to(old.dtype) == old).all(-1).sum())
        if by is not None:
            with calling(by, "identity"):
                self.must_change |= not (by.identity() or by.may_rest())
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
    """A cell with its prompts found: indices into the run's prompt table. ``source`` is the one that values are taken from."""

    cell: Cell
    prompt: int
    partner: int
    donor: int | None
    source: int


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
    own_source: take every value from the row's own prompt: with it, a replacement must be an identity (the gate)
    naturals: keeps how far new values lie among natural ones
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
        own_source: bool = False,
        naturals: Naturals | None = None,
    ) -> None:
        self.net, self.conditions, self.build, self.sources = net, conditions, build, sources
        self.lengths, self.seed, self.common, self.record, self.own_source = lengths, seed, common, record, own_source
        self.naturals = naturals
        self.unsettled = Unsettled()
        self.groups: list[_Group] = []
        self._group_ids: dict[str, int] = {}
        self.fired: dict[tuple[str, str], Fired] = {}
        self.placed: Sequence[Placed] = ()
        if conditions:
            self.groups += [_Group(None, None, conditions[0])] * 2  # OWN and HOLD

    # --------------------------------------------------------------------------------------------- tasks

    def tasks(self, placed: Sequence[Placed], local: Mapping[int, int], own: bool = False) -> list[Task]:
        """Return one task per cell. ``own`` replaces every intervention by the row's own value: the identity."""
        self.placed = placed
        return [self._task(p, local, own) for p in placed]

    def _task(self, placed: Placed, local: Mapping[int, int], own: bool) -> Task:
        condition = self.conditions[placed.cell.condition]
        values = placed.cell.values
        group = self._group(condition, values)
        cell = placed.cell
        name = "" if self.common else condition.name
        axes = {} if self.common else dict(values)
        key = int.from_bytes(generator("trial", self.seed, cell.example, name, axes, cell.trial).bytes(16), "little")
        if condition.plugin.ends_latents:
            if self.naturals is not None:
                self.naturals.follow(placed, (), ())
            return Task(local[placed.prompt], {}, key=key, latents=None if own else min(values["step"]))
        edits = self._edits(placed, condition, group, own)
        if self.naturals is not None:
            self.naturals.follow(placed, [e for phase in PHASES for e in edits.get(phase, ())], (OWN, HOLD))
        return Task(local[placed.prompt], edits, key=key)

    def _edits(self, placed: Placed, condition: Condition, group: int, own: bool) -> dict[Phase, list[Edit]]:
        """Return a cell's edits by phase, in the order in which they are reached."""
        values = placed.cell.values
        layers: Sequence[int | None] = values["layer"] if "layer" in values else (None,)
        signature = self._signature(OWN if own else group, placed)
        edits: dict[Phase, list[Edit]] = {condition.phase: []}
        for phase, places in self.reach(condition, group, values, placed.prompt).items():
            held = set(places[1:]) if condition.options_at(values).get("chain") else set()
            for place in places:
                number = HOLD if place in held or (own and condition.tokens is not None) else OWN if own else group
                for layer in layers:
                    site = Site(condition.site.component, layer, phase)
                    edits.setdefault(phase, []).append(Edit(site, place, number, "held" if number == HOLD else signature))
        if condition.downstream == "freeze" and self.net.info.latents:
            edits.setdefault("latent", []).extend(self._frozen(condition, self._addressed(condition, values, placed.prompt)))
        for phase in edits:
            edits[phase].sort(key=lambda e: (e.place is None, e.place or 0, e.site.entry(self.net.info.layers)))
        return edits

    def group_of(self, placed: Placed) -> int:
        """Return the number of the intervention that edits a cell."""
        return self._group(self.conditions[placed.cell.condition], placed.cell.values)

    def addressed(self, placed: Placed) -> list[int]:
        """Return the places that a cell addresses."""
        return self._addressed(self.conditions[placed.cell.condition], placed.cell.values, placed.prompt)

    def reach(self, condition: Condition, group: int, values: Mapping[str, Any], prompt: int) -> Mapping[Phase, Sequence[int | None]]:
        """Return where a cell is edited, by phase; None stands for every token from there on."""
        latents = self.net.info.latents
        if condition.tokens is not None:
            first = [-1] if condition.tokens == "last" else list(range(-self.lengths[prompt], 0))
            return {"prompt": first, **({"latent": list(range(latents))} if latents else {}), "answer": [None]}
        addressed = self._addressed(condition, values, prompt)
        intervention = self.groups[group].intervention
        assert intervention is not None
        return edited_places(intervention, condition.phase, addressed, latents)

    def _frozen(self, condition: Condition, places: Sequence[int]) -> list[Edit]:
        """Pin the latents after the first edit to the unedited run; steps edited at ``latent_in`` keep their edit."""
        first = min(places) + 1 if condition.phase == "latent" else 0
        edited = set(places) if condition.site.component == "latent_in" else set()
        steps = range(first, self.net.info.latents) if condition.phase != "answer" else ()
        return [Edit(Site("latent_in", None, "latent"), step, OWN, "frozen") for step in steps if step not in edited]

    def _group(self, condition: Condition, values: Mapping[str, Any]) -> int:
        options = condition.options_at(values)
        heads = tuple(values["head"]) if "head" in values else None
        name = json.dumps([condition.name, condition.content(), options, heads], sort_keys=True, default=str)
        if name not in self._group_ids:
            self._group_ids[name] = len(self.groups)
            self.groups.append(_Group(self.build(condition, options), heads, condition))
        return self._group_ids[name]

    def _signature(self, group: int, placed: Placed) -> tuple[Any, ...]:
        """What two cells must agree in to share a row after an edit; prompts of equal tokens are one row before it, not after it."""
        intervention = self.groups[group].intervention
        if intervention is None:
            return (group, None)
        if intervention.random or self.groups[group].condition.control == "random":
            return (group, placed.cell.key)
        return (group, placed.prompt, placed.source if intervention.source in ("donor", "partner") else None)

    def _addressed(self, condition: Condition, values: Mapping[str, Any], prompt: int) -> list[int]:
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
        source = None
        if number == HOLD:
            new = old.clone()
        else:
            new, source = self._by_place(number, site, place, placed, old, columns)
        if self.record:
            kind = self.conditions[placed[0].cell.condition].name if number != OWN else "own"
            self.fired.setdefault((kind, str(site)), Fired()).add(place, old, new, source, group.intervention)
        if self.naturals is not None and number not in (OWN, HOLD):
            self.naturals.see(group.condition, placed, site, place, None if columns is None else columns.cpu().numpy(), new.float().cpu().numpy())
        if columns is None:
            return new
        out = values.clone()
        out[:, columns] = new
        return out

    def _by_place(
        self, number: int, site: Site, place: int, placed: Sequence[Placed], old: torch.Tensor, columns: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return new values and their sources; rows at one distance from the end are apart where the file counts from the start."""
        group = self.groups[number]
        named = np.array([written(site, place, p, self.lengths) for p in placed])
        parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]] = []
        for at in np.unique(named).tolist():
            mine = np.flatnonzero(named == at)
            index = torch.from_numpy(mine).to(old.device)
            rows = self._rows(number, site, place, at, [placed[i] for i in mine.tolist()], old if len(mine) == len(placed) else old[index], columns)
            parts.append((index, self._new_values(group, rows), rows.source))
        if len(parts) == 1:
            return parts[0][1], parts[0][2]
        order = torch.argsort(torch.cat([p[0] for p in parts]))
        sources = [p[2] for p in parts if p[2] is not None]
        return torch.cat([p[1] for p in parts])[order], torch.cat(sources)[order] if sources else None

    def _new_values(self, group: _Group, rows: Rows) -> torch.Tensor:
        if group.intervention is None:
            assert rows.source is not None
            return rows.source.to(rows.values.dtype)
        new = applied(group.intervention, rows, self.unsettled)
        if group.condition.control != "random":
            return new
        step, direction = (new - rows.values).norm(dim=-1, keepdim=True), rows.draws()
        aside: torch.Tensor = step / direction.norm(dim=-1, keepdim=True) * direction  # as far, but nowhere in particular
        return rows.values + aside

    def _columns(self, group: _Group, site: Site) -> torch.Tensor | None:
        if group.heads is None:
            return None
        size = self.net.info.head_dim
        return torch.tensor([h * size + i for h in group.heads for i in range(size)], device=self.net.device)

    def _rows(self, number: int, site: Site, place: int, named: int, placed: Sequence[Placed], old: torch.Tensor, columns: torch.Tensor | None) -> Rows:
        condition, group = self.conditions[placed[0].cell.condition], self.groups[number]
        phase = site.phase
        assert phase is not None
        labels = {
            "example": np.array([p.cell.example for p in placed], object),
            "layer": np.full(len(placed), -1 if site.layer is None else site.layer),
            "position" if phase != "latent" else "step": np.full(len(placed), place),
            "donor": np.array([p.cell.values.get("donor", -1) for p in placed]),
        }
        source = self._source(group, condition, site, place, placed)
        pool = Pool(condition.variant, condition.template)
        if source is not None:
            source = source.to(old.device)
            source = source if columns is None else source[:, columns]
        scale = None
        if group.intervention is not None and group.intervention.needs_scale:
            value = self.sources.scale(site.component, site.layer, phase, pool, named)
            scale = torch.full((len(placed),), value, device=old.device)
        self.sources.turn_to(phase, pool, named)
        return Rows(old, labels, site.component, site.layer, place, source, scale, lambda: self._draws(placed, site, place, old), phase)

    def _source(self, group: _Group, condition: Condition, site: Site, place: int, placed: Sequence[Placed]) -> torch.Tensor | None:
        kind = "own" if group.intervention is None else group.intervention.source
        phase = site.phase
        assert phase is not None
        if kind is None:
            return None
        read, at = (site, place) if group.intervention is None else read_from(group.intervention, site, place, self.net.info)
        assert read.phase is not None
        if kind in ("mean", "mean_over_steps"):
            places = [written(read, at, placed[0], self.lengths)] if kind == "mean" else self._all_places(condition, read.phase, at)
            pool = Pool(condition.variant, condition.template)
            mean = self.sources.mean(read.component, read.layer, read.phase, pool, places)
            return torch.from_numpy(np.repeat(mean[None].astype(np.float32), len(placed), 0))
        prompts = [p.prompt if kind == "own" or self.own_source else p.source for p in placed]
        if condition.control == "wrong_step" and kind != "own" and not self.own_source:
            at = (at + 1) % self.net.info.latents
        places = [at] * len(placed)
        if read.phase == "prompt":
            places = [written(read, at, p, self.lengths) for p in placed]
        values = self.sources.values(read.component, read.layer, read.phase, prompts, places)
        return torch.from_numpy(values)

    def _all_places(self, condition: Condition, phase: Phase, place: int) -> list[int]:
        if phase == "latent":
            return list(range(self.net.info.latents))
        values = condition.axes.get("position") or (condition.fixed.get("position", (place,)),)
        return sorted({p for v in values for p in v})

    def _draws(self, placed: Sequence[Placed], site: Site, place: int, like: torch.Tensor) -> torch.Tensor:
        """Standard normal values, rows × width: one counter-based generator per cell, site and place."""
        out = np.empty(like.shape, np.float32)
        for row, p in enumerate(placed):
            name = "" if self.common else self.conditions[p.cell.condition].name
            point = {k: v for k, v in p.cell.values.items() if k in ("donor",)} if self.common else dict(p.cell.values)
            out[row] = generator("draw", self.seed, p.cell.example, name, point, p.cell.trial, str(site), place).standard_normal(like.shape[1])
        return torch.from_numpy(out).to(like)
