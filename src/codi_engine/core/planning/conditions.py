"""Conditions: what an experiment's settings mean for the model and the data at hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from codi_engine.core.axes import label, resolve_axis
from codi_engine.core.calling import calling
from codi_engine.core.errors import UserError, nearest
from codi_engine.core.explaining import plugin_options
from codi_engine.core.model import ModelInfo
from codi_engine.core.planning.controls import is_control
from codi_engine.core.planning.features import Feature, mean_codes, names_features, resolve_features, value_of
from codi_engine.core.plugin import Data, Intervention
from codi_engine.core.sites import GLOBAL, LATENT_ONLY, PHASES, Phase, Site, parse_site

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import Plugins

#: axes that address a place; every other swept name is an option of the intervention
PLACES = ("layer", "step", "position", "head", "donor")
BASELINE = "baseline"
#: cells of a run: their plan is held in memory, about 1 kB each
MOST_CELLS = 10_000_000


@dataclass(frozen=True)
class Condition:
    """A named setting: one intervention at one family of sites, and the axes it is swept over.

    ``axes`` maps an axis to its values; place axes hold tuples of indices, options hold plain values.
    ``phase`` is where the edits are; ``fixed`` places are used where no step or position axis says more.
    ``tokens`` (``last`` or ``all``) edits in every forward instead. ``table`` holds what each label of the ``feature``
    axis stands for. ``control`` names what stands in for the edit in a control condition, ``examples`` limits it to the first
    so many.
    """

    name: str
    plugin: type[Intervention[Any]]
    options: Mapping[str, Any]
    site: Site
    phase: Phase
    variant: str
    partner: str
    downstream: str
    template: str | None
    axes: Mapping[str, tuple[Any, ...]]
    fixed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    tokens: str | None = None
    table: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    control: str | None = None
    examples: int | None = None

    def content(self) -> dict[str, Any]:
        """What makes cells of this condition comparable with those of another run."""
        content = {
            "plugin": self.plugin.name, "options": dict(self.options), "site": str(self.site), "phase": self.phase,
            "variant": self.variant, "downstream": self.downstream, "template": self.template,
        }  # fmt: skip
        more = {"tokens": self.tokens, "control": self.control}
        return content | {k: v for k, v in more.items() if v is not None}

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield axis → value for every cell of one example."""
        names = list(self.axes)
        for values in itertools.product(*self.axes.values()):
            point = {**self.fixed, **dict(zip(names, values, strict=True))}
            yield {**point, **self.table.get(point.get("feature", ""), {})} if self.table else point

    def options_at(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return the intervention's options at a point: those of the file, and the swept ones."""
        return {**self.options, **{k: v for k, v in point.items() if k not in PLACES}}

    @property
    def first_options(self) -> dict[str, Any]:
        """Options of the first point: enough to build the intervention and ask what it needs."""
        return self.options_at(next(self.points()))

    def values_of(self, option: str) -> tuple[Any, ...]:
        """Return every value that an option has, swept or not; none where nothing sets it."""
        return self.axes.get(option) or ((self.options[option],) if option in self.options else ())

    @property
    def differences(self) -> list[str]:
        """What directions are differences of means over the pool (``difference:``)."""
        return [d for d in self.values_of("difference") if d is not None]


def templated(text: str, template: str | None) -> str:
    """Return an example's text as a condition's template asks it."""
    return text if template is None else template.replace("{question}", text)


def axis_label(name: str, value: Any) -> Any:
    """Return how an axis value is called in tables: an index, ``0+1`` for a set, or the option's value."""
    return label(value) if name in PLACES and name != "donor" else value


def build_intervention(plugins: Plugins, plugin: type[Intervention[Any]], options: Mapping[str, Any], at: str, source: str) -> Intervention[Any]:
    """Validate options and build the intervention."""
    from codi_engine.core.experiment import InterventionSpec

    checked = plugin_options(plugin, options, at, source, more=list(InterventionSpec.model_fields))
    with calling(plugin, "__init__"):
        return plugin(checked)


class Conditions:
    """Resolves an experiment's conditions.

    Raises
    ------
    UserError: unknown site or intervention, layer or step out of range, a site without its layer, options that do not fit
    """

    def __init__(self, experiment: Experiment, plugins: Plugins, data: Data, info: ModelInfo, available: frozenset[str] | None) -> None:
        self.experiment, self.plugins, self.data, self.info, self.available = experiment, plugins, data, info, available
        self.source = experiment.source

    def resolve(self) -> list[Condition]:
        """Return the experiment's conditions."""
        return [self._condition(name, spec) for name, spec in self._specs().items()]

    def _specs(self) -> dict[str, tuple[Any, ...]]:
        """Name → (intervention spec, sweep, template, on, where the file has the intervention, where the sweep), the conditions' overrides applied."""
        experiment = self.experiment
        if not experiment.conditions:
            if experiment.intervention is None:
                if experiment.sweep:
                    raise UserError(f"{self.source}: sweep: there is no intervention to sweep; add intervention: or remove sweep:")
                return {}
            name = experiment.intervention.plugin
            return {name: (experiment.intervention, experiment.sweep, None, None, "intervention", "sweep")}
        specs = {}
        for name, condition in experiment.conditions.items():
            if name == BASELINE:
                raise UserError(f"{self.source}: conditions.{BASELINE}: every run has its baseline; choose another name")
            if is_control(name):
                raise UserError(f"{self.source}: conditions.{name}: this is how the control of a condition is called; choose another name")
            intervention = condition.intervention or experiment.intervention
            if intervention is None:
                raise UserError(f"{self.source}: conditions.{name}: needs an intervention (here or at the top level)")
            at = "intervention" if condition.intervention is None else f"conditions.{name}.intervention"
            sweep, swept = (experiment.sweep, "sweep") if condition.sweep is None else (condition.sweep, f"conditions.{name}.sweep")
            specs[name] = (intervention, sweep, condition.prompt, condition.on, at, swept)
        if experiment.sweep and all(c.sweep is not None for c in experiment.conditions.values()):
            raise UserError(f"{self.source}: sweep: every condition has a sweep of its own, so this one says nothing; remove it, or theirs")
        return specs

    def _condition(self, name: str, spec: tuple[Any, ...]) -> Condition:
        intervention, sweep, template, on, at, swept = spec
        plugin = self.plugins.get("intervention", intervention.plugin, where=f"{self.source}: {at}.plugin")
        site = parse_site(intervention.site, f"{self.source}: {at}.site", self.info.layers)
        self._check_site(site, at)
        axes, fixed, options, table = self._axes(plugin, intervention, dict(sweep), site, swept, at)
        if intervention.tokens is None:
            phase = self._phase(site, axes, fixed, at)
        else:
            phase = self._every_forward(intervention, site, axes, fixed, at)
        points = math.prod(map(len, axes.values()))
        if points > MOST_CELLS:
            raise UserError(f"{self.source}: {swept}: {points:,} places for every example; a run has at most {MOST_CELLS:,} cells: sweep fewer values")
        self._check_places(site, phase, axes, fixed, at, table, intervention.tokens)
        variant, partner = self._variant(plugin, intervention, on, at)
        made = Condition(
            name, plugin, options, site, phase, variant, partner, intervention.downstream, template, axes, fixed, intervention.tokens, table
        )  # fmt: skip
        self._check_options(made, at)
        return made

    # ------------------------------------------------------------------------------------------- axes

    def _check_site(self, site: Site, at: str) -> None:
        if site.component == "logits":
            raise UserError(f"{self.source}: {at}.site: logits can be captured but not edited; edit final_norm, which they are computed from")
        if site.component in LATENT_ONLY and not self.info.latents:
            raise UserError(f"{self.source}: {at}.site: '{site.component}' needs a model with latent steps; this one has none")
        if site.phase == "latent" and not self.info.latents:
            raise UserError(f"{self.source}: {at}.site: phase 'latent' needs a model with latent steps; this one has none")
        if self.available is not None and site.component not in self.available:
            raise UserError(f"{self.source}: {at}.site: this model has no '{site.component}'; {nearest(site.component, self.available)}")

    def _axes(self, plugin: type[Intervention[Any]], spec: Any, sweep: dict[str, Any], site: Site, sweep_at: str, at: str) -> tuple[Any, Any, Any, Any]:
        """Split what the file says into swept axes, fixed places, the intervention's options, and the table of features."""
        axes: dict[str, tuple[Any, ...]] = {}
        fixed: dict[str, tuple[int, ...]] = {}
        table: dict[str, dict[str, Any]] = {}
        options = dict(spec.options)
        known = set(PLACES) | set(plugin.Options.model_fields)
        if names_features(options.get("feature")) and "feature" not in sweep:
            sweep["feature"] = options.pop("feature")
        for name, value in sweep.items():
            if name not in known:
                raise UserError(f"{self.source}: {sweep_at}.{name}: unknown axis for '{plugin.name}'; {nearest(name, known)}")
            if name in options or (name in PLACES and getattr(spec, name, None) is not None):
                raise UserError(
                    f"{self.source}: {at}.{name}: is swept too ({sweep_at}.{name}); leave one of them out, or give the condition a sweep of its own"
                )
            if name == "feature" and names_features(value):
                table = self._table(value, options, f"{sweep_at}.{name}", at)
                axes[name] = tuple(table)
            else:
                axes[name] = self._axis(name, value, site, f"{sweep_at}.{name}")
        for name in ("layer", "step", "position", "head"):
            value = getattr(spec, name, None)
            if value is not None and name not in axes:
                values = self._axis(name, value, site, f"{at}.{name}")
                fixed[name] = tuple(sorted({i for v in values for i in v}))
        if site.layer is not None and "layer" not in axes:
            fixed["layer"] = (site.layer,)
        if table and ("layer" in axes or "layer" in fixed):
            raise UserError(f"{self.source}: {at}: each feature names its own layer; remove the layer")
        if "donor" not in axes and plugin.source == "donor":
            axes["donor"] = (0,)
        ordered = {n: axes[n] for n in [*PLACES, *sorted(set(axes) - set(PLACES))] if n in axes}
        return ordered, fixed, options, table

    def _table(self, value: Any, options: Mapping[str, Any], where: str, at: str) -> dict[str, dict[str, Any]]:
        """Label of a feature → its layer, and the value it is set to where the options name a column or a run."""
        features = resolve_features(value, f"{self.source}: {where}")
        wanted, value_at = options.get("value"), f"{self.source}: {at}.value"
        means = mean_codes(wanted, value_at) if isinstance(wanted, Mapping) else None
        table: dict[str, dict[str, Any]] = {}
        for feature in features:
            self._check_layer(feature, f"{self.source}: {where}")
            table[feature.label] = {"layer": (feature.layer,)}
            if means is not None or isinstance(wanted, str):
                table[feature.label]["value"] = value_of(feature, wanted, means, value_at)
        if len(table) != len(features):
            raise UserError(f"{self.source}: {where}: a feature stands twice")
        return table

    def _check_layer(self, feature: Feature, where: str) -> None:
        if feature.layer >= self.info.layers:
            raise UserError(f"{where}: feature {feature.label}: the model has layers 0 to {self.info.layers - 1}")

    def _axis(self, name: str, value: Any, site: Site, where: str) -> tuple[Any, ...]:
        sizes = {"layer": self.info.layers, "step": self.info.latents, "position": None, "head": self._heads(site)}
        if name in ("layer", "step", "position", "head"):
            if name == "step" and not self.info.latents:
                raise UserError(f"{self.source}: {where}: the model has no latent steps; sweep position instead")
            if name == "layer" and site.component in GLOBAL:
                raise UserError(f"{self.source}: {where}: '{site.component}' exists once per token, it has no layer; remove the axis")
            if name == "head" and not site.headed:
                raise UserError(f"{self.source}: {where}: '{site.component}' has no heads; attn_z, q, k and v have")
            return tuple(resolve_axis(name, value, sizes[name], where=where, source=self.source))
        if name == "donor":
            return self._donors(value, where)
        values = value if isinstance(value, list) else [value]
        if any(isinstance(v, (dict, list)) for v in values):
            raise UserError(f"{self.source}: {where}: sweeps numbers, words and true/false; write one condition for each {name}")
        if not values or len({repr(v) for v in values}) != len(values):
            raise UserError(f"{self.source}: {where}: needs distinct values; got {value!r}")
        return tuple(values)

    def _donors(self, value: Any, where: str) -> tuple[int, ...]:
        indices = value if isinstance(value, list) else [value]
        least = 0 if isinstance(value, list) else 1
        if not indices or any(isinstance(i, bool) or not isinstance(i, int) or i < least for i in indices):
            raise UserError(f"{self.source}: {where}: write the number of donors (10) or their indices ([0, 1]); got {value!r}")
        if isinstance(value, int) and value > len(self.data.pool):
            raise UserError(f"{self.source}: {where}: {value:,} donors asked for, but the data has {len(self.data.pool):,} examples; write fewer")
        return tuple(range(value)) if isinstance(value, int) else tuple(value)

    def _heads(self, site: Site) -> int:
        return self.info.kv_heads if site.component in ("k", "v") else self.info.heads

    # ------------------------------------------------------------------------------------------ places

    def _phase(self, site: Site, axes: Mapping[str, Any], fixed: Mapping[str, Any], at: str) -> Phase:
        names = set(axes) | set(fixed)
        if "step" in names and "position" in names:
            raise UserError(f"{self.source}: {at}: an edit is either at latent steps or at positions; remove step or position")
        implied: Phase | None = "latent" if "step" in names else site.phase if site.phase else None
        if "position" in names:
            implied = site.phase or "prompt"
        if implied is None:
            implied = "latent" if self.info.latents else "prompt"
        if site.phase is not None and site.phase != implied:
            raise UserError(f"{self.source}: {at}.site: '{site}' is in the {site.phase}, but step addresses latents; use position")
        if site.component == "latent_in" and implied != "latent":
            raise UserError(f"{self.source}: {at}.site: latent_in exists at latent steps only")
        assert implied in PHASES
        return implied

    def _every_forward(self, spec: Any, site: Site, axes: Mapping[str, Any], fixed: Mapping[str, Any], at: str) -> Phase:
        """Check ``tokens: last|all``: the edit is in every forward, so nothing else may say where."""
        said = [n for n in ("step", "position") if n in axes or n in fixed] + ([f"@{site.phase}"] if site.phase else [])
        if said:
            raise UserError(f"{self.source}: {at}.tokens: edits every forward; remove {said[0]}")
        if spec.downstream == "freeze":
            raise UserError(f"{self.source}: {at}.downstream: freeze pins latents after an edit; tokens: edits every forward")
        if site.component in LATENT_ONLY:
            raise UserError(f"{self.source}: {at}.site: '{site.component}' exists at latent steps only; sweep step instead of tokens")
        return "answer"

    def _check_places(
        self, site: Site, phase: Phase, axes: Mapping[str, Any], fixed: dict[str, Any], at: str, table: Mapping[str, Any], tokens: str | None
    ) -> None:
        if site.layered and "layer" not in axes and "layer" not in fixed and not table:
            raise UserError(f"{self.source}: {at}.site: '{site.component}' needs a layer; write {site.component}.0 or sweep layer: all")
        if tokens is not None:
            return
        name = "step" if phase == "latent" else "position"
        if site.index is not None and name not in axes:
            values = resolve_axis(name, list(site.index), self.info.latents if name == "step" else None, where=f"{at}.site", source=self.source)
            fixed[name] = tuple(sorted({i for v in values for i in v}))
        if name not in axes and name not in fixed:
            fixed[name] = tuple(range(self.info.latents)) if phase == "latent" else (-1,) if phase == "prompt" else (0,)

    def _variant(self, plugin: type[Intervention[Any]], spec: Any, on: str | None, at: str) -> tuple[str, str]:
        """Which prompt of an example is run, and which one is its partner."""
        pairs = self.data.kind == "pairs"
        if not pairs:
            if plugin.source == "partner":
                raise UserError(f"{self.source}: {at}: '{plugin.name}' needs clean/corrupted pairs; the data set holds {self.data.kind}")
            for name, value in (("direction", spec.direction), ("on", spec.on or on)):
                if value is not None:
                    raise UserError(f"{self.source}: {at}.{name}: only pairs have a {name}; the data set holds {self.data.kind}")
            return "main", "main"
        chosen = spec.on or on
        if plugin.source == "partner" and chosen is not None:
            raise UserError(f"{self.source}: {at}: a patch states direction: denoise|noise, not on")
        if spec.direction is not None or plugin.source == "partner":
            if spec.direction is None:
                raise UserError(f"{self.source}: {at}.direction: state denoise (clean into corrupted) or noise (corrupted into clean)")
            chosen = "corrupted" if spec.direction == "denoise" else "clean"
        chosen = chosen or "clean"
        return chosen, "clean" if chosen == "corrupted" else "corrupted"

    def _check_options(self, condition: Condition, at: str) -> None:
        """Build the intervention with every combination of swept options once."""
        seen: set[str] = set()
        for point in condition.points():
            swept = {n: v for n, v in point.items() if n not in PLACES}
            if repr(swept) in seen:
                continue
            seen.add(repr(swept))
            made = build_intervention(self.plugins, condition.plugin, {**condition.options, **swept}, at, self.source)
            takes = made.source is not None or made.needs_scale or bool(condition.differences)
            if condition.tokens is not None and takes:
                raise UserError(f"{self.source}: {at}.tokens: '{condition.plugin.name}' takes values of the unedited run, which has no such tokens")
            if made.ends_latents and (condition.site.component != "latent_in" or condition.downstream == "freeze"):
                raise UserError(f"{self.source}: {at}: '{condition.plugin.name}' ends the latent loop; its site is latent_in, and nothing follows to freeze")


def layers_of(condition: Condition) -> list[int | None]:
    """Return every layer that a condition's edits may be at; [None] for sites without layers."""
    values: Sequence[Any] = condition.axes.get("layer") or ((condition.fixed["layer"],) if "layer" in condition.fixed else ())
    found = {layer for v in values for layer in v} | {layer for row in condition.table.values() for layer in row["layer"]}
    return sorted(found) or [None]
