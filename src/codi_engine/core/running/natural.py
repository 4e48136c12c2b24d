"""How far edited states lie among natural ones: what the metric ``unusual`` reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Intervention

if TYPE_CHECKING:
    from codi_engine.core.planning.conditions import Condition
    from codi_engine.core.plugin import Data, Example
    from codi_engine.core.rollout.editing import Placed
    from codi_engine.core.rollout.sources import Sources
    from codi_engine.core.rollout.tasks import Edit
    from codi_engine.core.sites import Site

#: natural states come from the first so many examples of the pool: whatever the limit is, they are the same
STATES = 128
#: with fewer there is no saying what is ordinary
FEWEST = 8


def natural_examples(data: Data) -> Sequence[Example]:
    """Return the examples whose unedited states are the natural ones."""
    return data.pool[:STATES]


def check_natural(conditions: Sequence[Condition], data: Data, source: str) -> list[str]:
    """Return what is to be said of unusualness before anything runs.

    Raises
    ------
    UserError: a condition edits at no place of its own: in every forward, in the answer, or elsewhere than it addresses
    """
    for condition in conditions:
        where = "in every forward" if condition.tokens is not None else "in the answer" if condition.phase == "answer" else ""
        where = where or ("elsewhere than it addresses" if condition.plugin.edits is not Intervention.edits else "")
        if where:
            raise UserError(f"{source}: metrics: 'unusual' is not defined for edits {where} (condition '{condition.name}'); remove the metric or the condition")
    if len(data.pool) < FEWEST:
        return [f"unusual: {len(data.pool)} natural states in the data; at least {FEWEST} say what is ordinary, so the metric is undefined (NaN)"]
    return []


@dataclass(frozen=True)
class Population:
    """Natural states at one place, and how extreme each of them is.

    The extremeness of a state x is d(x) = √(mean over dimensions i of ((x_i − μ_i) / σ_i)²): its distance to the natural mean in
    units of each dimension's natural standard deviation. A dimension that hardly varies (σ_i below 10⁻⁶ of the states' RMS)
    counts with that bound for σ_i.
    """

    mean: np.ndarray
    sd: np.ndarray
    distances: np.ndarray

    @classmethod
    def of(cls, states: np.ndarray) -> Population:
        """``states``: n × width."""
        states = np.ascontiguousarray(states, np.float64)
        mean, sd = states.mean(0), states.std(0)
        bound = 1e-6 * float(np.sqrt(np.mean(states**2)))
        made = cls(mean, np.maximum(sd, bound if bound > 0 else 1e-12), np.empty(0))
        return cls(made.mean, made.sd, np.sort(made.extremeness(states)))

    def extremeness(self, states: np.ndarray) -> np.ndarray:
        """Return d of each row of ``states`` (n × width)."""
        rows = np.ascontiguousarray(states, np.float64)  # one order of summation, so that equal states are equally extreme
        return np.asarray(np.sqrt(np.mean(((rows - self.mean) / self.sd) ** 2, axis=-1)))

    def share(self, states: np.ndarray) -> np.ndarray:
        """Return per row the share of natural states that are less extreme."""
        return np.searchsorted(self.distances, self.extremeness(states), side="left") / len(self.distances)


class Naturals:
    """Keeps, for each cell, how far its new values lie among the natural ones at the same places.

    Cells whose edits are the same so far share a row, and one of them stands for all; what was found is therefore kept under
    the edits made so far, and each cell looks up its own.

    Parameters
    ----------
    sources: the run's unedited values
    prompts: of a condition, the natural prompts (indices of the run's prompt table)
    lengths: tokens of each prompt of the run's prompt table
    """

    def __init__(self, sources: Sources, prompts: Mapping[str, Sequence[int]], lengths: Sequence[int]) -> None:
        self.sources, self.prompts, self.lengths = sources, prompts, lengths
        self._histories: dict[tuple[int, object], int] = {}
        self._at: dict[str, dict[tuple[Site, int | None], int]] = {}
        self._own: dict[str, list[int]] = {}
        self._shares: dict[int, float] = {}
        self._populations: dict[tuple[object, ...], Population | None] = {}

    def begin(self) -> None:
        """Forget the cells of the batch before."""
        for kept in (self._histories, self._at, self._own, self._shares):
            kept.clear()

    def follow(self, placed: Placed, edits: Sequence[Edit], others: Sequence[int]) -> None:
        """Note a cell's edits, in the order in which they are reached; those of the groups ``others`` are none of its own."""
        history = -1 - placed.prompt
        key, at, own = placed.cell.key, {}, []
        for edit in edits:
            history = self._histories.setdefault((history, edit), len(self._histories))
            at[edit.site, edit.place] = history
            if edit.group not in others:
                own.append(history)
        self._at[key], self._own[key] = at, own

    def see(self, condition: Condition, placed: Sequence[Placed], site: Site, place: int, columns: np.ndarray | None, new: np.ndarray) -> None:
        """Note the new values (rows × width) of rows at a place; ``columns`` of the site they are, None for all."""
        groups: dict[int, list[int]] = {}
        for row, p in enumerate(placed):
            groups.setdefault(written(site, place, p, self.lengths), []).append(row)
        for at, rows in groups.items():
            population = self._population(condition, site, at, columns)
            shares = np.full(len(rows), np.nan) if population is None else population.share(new[rows])
            for row, share in zip(rows, shares, strict=True):
                self._shares[self._at[placed[row].cell.key][site, place]] = float(share)

    def of(self, placed: Sequence[Placed]) -> np.ndarray:
        """Return per cell the largest share over its edited places; NaN where it is edited nowhere, or nothing is known."""
        out = np.full(len(placed), np.nan)
        for row, p in enumerate(placed):
            own = self._own[p.cell.key]
            if own:
                out[row] = np.max([self._shares[h] for h in own])
        return out

    def _population(self, condition: Condition, site: Site, place: int, columns: np.ndarray | None) -> Population | None:
        """Return the natural states at a place of a site, as the file counts it; None where they are too few."""
        key = (condition.variant, condition.template, site, place, None if columns is None else columns.tobytes())
        if key not in self._populations:
            self._populations[key] = self._made(condition.name, site, place, columns)
        return self._populations[key]

    def _made(self, name: str, site: Site, place: int, columns: np.ndarray | None) -> Population | None:
        prompts, places = list(self.prompts[name]), [place] * len(self.prompts[name])
        if site.phase == "prompt":
            at = [place - self.lengths[p] if place >= 0 else place for p in prompts]
            inside = [i for i, p in enumerate(prompts) if -self.lengths[p] <= at[i] < 0]
            prompts, places = [prompts[i] for i in inside], [at[i] for i in inside]
        if len(prompts) < FEWEST:
            return None
        assert site.phase is not None
        states = self.sources.values(site.component, site.layer, site.phase, prompts, places)
        return Population.of(states if columns is None else states[:, columns])


def written(site: Site, place: int, placed: Placed, lengths: Sequence[int]) -> int:
    """Return a place as the file counts it: a prompt position from the start (≥ 0) where the cell names it so."""
    said = placed.cell.values.get("position", ())
    if site.phase != "prompt" or place in said or all(p < 0 for p in said):
        return place
    return place + lengths[placed.prompt]
