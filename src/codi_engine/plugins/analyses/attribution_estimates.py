"""First-order estimates of a condition's effects: (edited − own value) · ∂metric/∂value at every place, example by example."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from codi_engine.core.errors import UserError
from codi_engine.core.planning.plan import PLACES, Condition, PromptRef, build_intervention, prompt_ref
from codi_engine.core.plugin import Example, Intervention, Rows
from codi_engine.core.rollout.gradients import Target, Trace, Tracer, relative_difference
from codi_engine.core.rollout.sources import Sources
from codi_engine.plugins.analyses.attribution_setting import Setting

if TYPE_CHECKING:
    from codi_engine.core.runs.work import Partial

#: largest relative difference of logits between the forward with gradients and the run's own
AGREEMENT = 2e-4
#: bytes of source prompts' values that are kept for the examples that share them
_KEPT = 1 << 28


class LeftOut(Exception):
    """A condition that has no first-order estimate; the text says why."""


@dataclass(frozen=True)
class Grid:
    """The places of a condition: one row of every table per place, in this order.

    ``layers`` is (None,) where the site has none; ``heads`` is empty where whole vectors are edited. ``options`` are points
    of swept options of the intervention. ``columns`` are the axes' names, ``fixed`` those of one value that were not swept.
    """

    options: Sequence[Mapping[str, Any]]
    layers: Sequence[int | None]
    place: str
    places: Sequence[int]
    heads: Sequence[int]
    fixed: frozenset[str] = field(default_factory=frozenset)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.options), len(self.layers), len(self.places), max(len(self.heads), 1)

    def rows(self) -> list[dict[str, Any]]:
        """Return axis → value of every place."""
        rows = []
        heads: Sequence[int | None] = self.heads or (None,)
        for point, layer, place, head in itertools.product(self.options, self.layers, self.places, heads):
            row: dict[str, Any] = {} if layer is None else {"layer": layer}
            rows.append({**row, self.place: place, **({} if head is None else {"head": head}), **point})
        return rows

    @property
    def columns(self) -> list[str]:
        return list(self.rows()[0])

    @property
    def varying(self) -> list[str]:
        """Axes a sweep of these places must state."""
        return [c for c in self.columns if c not in self.fixed] or self.columns


def grid_of(condition: Condition, setting: Setting) -> Grid:
    """Return all layers and steps (or the swept positions) of a condition's site, one place at a time.

    Raises
    ------
    LeftOut: the condition edits several places at once, of which a sum of single estimates would count paths twice
    """
    info = setting.net.info
    singles: dict[str, list[int]] = {}
    every = {"layer": info.layers, "step": info.latents, "head": setting.net.heads_of(condition.site.component)}
    for name in ("layer", "step", "position", "head"):
        if name in condition.axes:
            one = [v[0] for v in condition.axes[name] if len(v) == 1]
            if not one:
                raise LeftOut(f"edits several values of `{name}` at once, and estimates are of single places")
            singles[name] = list(range(every[name])) if name in every else one
        elif name in condition.fixed:
            if len(condition.fixed[name]) > 1:
                raise LeftOut(f"edits several values of `{name}` at once, and estimates are of single places; sweep {name}: all")
            singles[name] = list(condition.fixed[name])
    names = [n for n in condition.axes if n not in PLACES]
    options = [dict(zip(names, values, strict=True)) for values in itertools.product(*(condition.axes[n] for n in names))]
    place = "step" if condition.phase == "latent" else "position"
    return Grid(options, singles.get("layer") or (None,), place, singles[place], singles.get("head", ()), frozenset(condition.fixed))


@dataclass(frozen=True)
class Estimated:
    """One example's estimates, in the grid's shape, and per head of a headed site whose heads were not swept."""

    gradient: np.ndarray
    integrated: np.ndarray
    heads: np.ndarray
    metric: float
    difference: float

    def partial(self) -> dict[str, np.ndarray]:
        names = ("gradient", "integrated", "heads", "metric", "difference")
        return {n: np.asarray(getattr(self, n), np.float64) for n in names}

    @staticmethod
    def of(partial: Partial) -> Estimated:
        return Estimated(partial["gradient"], partial["integrated"], partial["heads"], float(partial["metric"]), float(partial["difference"]))


class Estimator:
    """Estimates of one condition.

    Parameters
    ----------
    setting: the run with its model
    condition: what was (or would be) swept
    metric, reduce: of the answer
    steps: of the path of ``integrated``; 0 for gradients alone
    """

    def __init__(self, setting: Setting, condition: Condition, metric: Literal["logit_diff", "cross_entropy"], reduce: Any, steps: int) -> None:
        self.setting, self.condition, self.metric, self.reduce, self.steps = setting, condition, metric, reduce, steps
        self.grid = grid_of(condition, setting)
        self.tracer = Tracer(setting.net, setting.answers.prefix)
        self.interventions = [self._intervention(point) for point in self.grid.options]
        self.kind = self.interventions[0].source
        if metric == "logit_diff" and self.kind == "donor":
            raise LeftOut("logit_diff is against the donor's answer when edited and the partner's when not; write metric=cross_entropy")
        if steps and self.kind != "partner":
            raise LeftOut("method=integrated follows a path from one prompt's inputs to its partner's: only a patch has one")
        self._values: OrderedDict[str, Trace] = OrderedDict()

    def _intervention(self, point: Mapping[str, Any]) -> Intervention[Any]:
        condition = self.condition
        made = build_intervention(self.setting.plugins, condition.plugin, {**condition.options, **point}, condition.name, "attribution")
        if made.random or made.needs_scale:
            raise LeftOut("draws its values at random: there is no one value to estimate the effect of")

        def refuse(*_: Any) -> Any:
            raise LeftOut("takes its direction from the run's baseline; attribution reads patch, resample, zero, mean and vectors from files")

        made.prepare(Sources(refuse, refuse))
        return made

    # ------------------------------------------------------------------------------------------ example

    def estimate(self, example: Example) -> Estimated:
        """Return the estimates of one example.

        Raises
        ------
        UserError: the forward with gradients does not give the run's logits, or the example has no other answer
        """
        ref = self._ref(example, self.condition.variant)
        target = self._target(ref)
        own = self._trace(ref, target, gradient=True)
        expected = self.setting.logits(ref)
        difference = relative_difference(own.logits, expected)
        if not difference <= AGREEMENT:
            raise UserError(
                f"attribution: the forward with gradients differs from the run in example {example.id}: logits by {difference:.2g} relative, "
                f"at most {AGREEMENT:g} is rounding.\nThe model or transformers changed since the run; run the experiment again."
            )
        gradient, heads = self._contracted(example, ref, own, own.gradients)
        integrated = np.full_like(gradient, np.nan)
        if self.steps:
            path = self._path(example, ref, own, target)
            if path is not None:
                integrated, heads = self._contracted(example, ref, own, path)
        return Estimated(gradient, integrated, heads, own.metric, difference)

    def _ref(self, example: Example, variant: str) -> PromptRef:
        return prompt_ref(example, variant, self.condition.template)

    def _target(self, ref: PromptRef) -> Target:
        answers = self.setting.answers
        gold, other = answers.tokens(ref.gold), answers.tokens(ref.other)
        if not gold:
            raise UserError(f"attribution: example {ref.example} has no answer whose logits could be read")
        if self.metric == "logit_diff" and not other:
            raise UserError(f"attribution: example {ref.example} has no other answer: only pairs have one; write metric=cross_entropy")
        return Target(self.metric, gold, other if self.metric == "logit_diff" else (), self.reduce)

    def _trace(self, ref: PromptRef, target: Target, gradient: bool, embeds: torch.Tensor | None = None) -> Trace:
        condition = self.condition
        downstream: Any = condition.downstream
        return self.tracer.trace(
            self.setting.ids(ref), target, condition.site.component, self.grid.layers, condition.phase, downstream, gradient, embeds
        )  # fmt: skip

    def _unedited(self, ref: PromptRef) -> Trace:
        """Trace a source prompt without gradients; some are kept, because donors serve several examples."""
        if ref.key not in self._values:
            made = self._values[ref.key] = self._trace(ref, Target("cross_entropy", (0,)), gradient=False)
            size = sum(v.nbytes for v in made.values.values())
            while len(self._values) > max(_KEPT // max(size, 1), 1):
                self._values.popitem(last=False)
        self._values.move_to_end(ref.key)
        return self._values[ref.key]

    def _path(self, example: Example, ref: PromptRef, own: Trace, target: Target) -> dict[int | None, torch.Tensor] | None:
        """Return mean gradients at inputs between the two prompts' (Hanna et al. 2024, 2403.17806), at the middles of ``steps`` equal parts.

        None where the prompts have different lengths, so that their inputs cannot be mixed.
        """
        end = self._unedited(self._ref(example, self.condition.partner)).embeds
        if end.shape != own.embeds.shape:
            return None
        total: dict[int | None, torch.Tensor] = {}
        for number in range(self.steps):
            alpha = (number + 0.5) / self.steps
            found = self._trace(ref, target, True, own.embeds + alpha * (end - own.embeds)).gradients
            for layer, slope in found.items():
                total[layer] = total[layer] + slope / self.steps if layer in total else slope / self.steps
        return total

    # ------------------------------------------------------------------------------------------- values

    def _contracted(self, example: Example, ref: PromptRef, own: Trace, slopes: Mapping[int | None, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Return Σ over the width of (edited − own) · gradient at every place, and the same per head where a site has heads."""
        grid, site = self.grid, self.condition.site
        size = self.setting.net.info.head_dim
        out = np.zeros(grid.shape)
        split = site.headed and not grid.heads
        per_head = np.zeros((*grid.shape[:3], self.setting.net.heads_of(site.component) if split else 0))
        for o, intervention in enumerate(self.interventions):
            for (i, layer), (j, place) in itertools.product(enumerate(grid.layers), enumerate(grid.places)):
                at = self._index(own.values[layer], place, ref)
                old, slope = own.values[layer][at], slopes[layer][at]
                sources: Sequence[torch.Tensor | None] = self._source_values(example, ref, layer, place) or (None,)
                for source in sources:
                    for h, part in enumerate(_columns(grid.heads, size)):
                        rows = self._rows(example, layer, at if self.condition.phase == "prompt" else place, old[part], source, part)
                        change = (intervention.apply(rows)[0].float() - old[part]) * slope[part]
                        share = change.double() / self._repeats
                        out[o, i, j, h] += float(share.sum())
                        if split:
                            per_head[o, i, j] += share.view(-1, size).sum(-1).cpu().numpy()
        return out, per_head

    def _rows(self, example: Example, layer: int | None, place: int, old: torch.Tensor, source: torch.Tensor | None, part: slice) -> Rows:
        labels = {
            "example": np.array([example.id], object), "layer": np.array([-1 if layer is None else layer]),
            self.grid.place: np.array([place]), "donor": np.array([-1]),
        }  # fmt: skip
        return Rows(old[None], labels, self.condition.site.component, layer, place, None if source is None else source[part][None])

    @cached_property
    def _repeats(self) -> int:
        """Donors of one place."""
        return len(self.condition.axes.get("donor", (0,))) if self.kind == "donor" else 1

    def _index(self, values: torch.Tensor, place: int, ref: PromptRef) -> int:
        """Return a place's index: steps and answer places from the front, prompt positions from the end."""
        if self.condition.phase != "prompt":
            return place
        relative = place if place < 0 else place - len(self.setting.ids(ref))
        if not -len(values) <= relative < 0:
            raise UserError(f"attribution: {self.condition.site} has no value at position {place} of example {ref.example}")
        return relative

    def _sources(self, example: Example, place: int) -> list[PromptRef]:
        """Return the prompts that a place's values come from: the partner, or one per donor."""
        if self.kind == "partner":
            return [self._ref(example, self.condition.partner)]
        setting, condition = self.setting, self.condition
        points = [{self.grid.place: (place,), "donor": d} for d in condition.axes["donor"]]
        names = [setting.donors.of(example.id, condition, p) for p in points if setting.donors.has(example.id, condition, p)]
        return [self._ref(setting.pool[name], condition.variant) for name in names]

    def _source_values(self, example: Example, ref: PromptRef, layer: int | None, place: int) -> list[torch.Tensor]:
        """Return the values (width) that an edit puts at a place, one per source; none where it needs none."""
        if self.kind in ("partner", "donor"):
            found = []
            for source in self._sources(example, place):
                values = self._unedited(source).values[layer]
                found.append(values[self._index(values, self._same_token(place, ref, source), source)])
            return found
        if self.kind in ("mean", "mean_over_steps"):
            means = self._means[layer]
            if self.kind == "mean_over_steps":
                return [means.mean(0)]
            return [means[self.grid.places.index(place)]]
        return []

    def _same_token(self, place: int, ref: PromptRef, source: PromptRef) -> int:
        """Positions written from the start address the same token of the source, those from the end the same distance."""
        if self.condition.phase != "prompt" or not any(p >= 0 for p in self.grid.places):
            return place
        return place if place >= 0 else place + len(self.setting.ids(ref)) - len(self.setting.ids(source))

    @cached_property
    def _means(self) -> dict[int | None, torch.Tensor]:
        """Layer → places × width: means over the pool, summed in double precision as the engine does."""
        total: dict[int | None, torch.Tensor] = {}
        pool = [self._ref(e, self.condition.variant) for e in self.setting.pool.values()]
        for ref in pool:
            values = self._unedited(ref).values
            for layer, v in values.items():
                picked = torch.stack([v[self._index(v, p, ref)] for p in self.grid.places]).double()
                total[layer] = total[layer] + picked if layer in total else picked
        return {layer: (t / len(pool)).float() for layer, t in total.items()}


def _columns(heads: Sequence[int], size: int) -> list[slice]:
    """Return the columns of each swept head; all of them where heads are not swept."""
    return [slice(h * size, (h + 1) * size) for h in heads] or [slice(None)]
