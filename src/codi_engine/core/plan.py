"""The plan: conditions × axes × examples become cells, before any weight is loaded.

A cell is keyed by its content (the example's texts, the intervention, its place), never by its number; so a larger plan
of the same experiment contains the smaller one's cells, and only the new ones are computed.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from codi_engine.core.axes import label, resolve_axis
from codi_engine.core.errors import UserError, nearest
from codi_engine.core.model import ModelInfo
from codi_engine.core.plugin import Data, Example, Intervention
from codi_engine.core.sites import GLOBAL, LATENT_ONLY, PHASES, Phase, Site, parse_site

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import Plugins

#: axes that address a place; every other swept name is an option of the intervention
PLACES = ("layer", "step", "position", "head", "donor")
BASELINE = "baseline"


def digest(*parts: Any) -> str:
    """Return 16 hex digits of the canonical JSON of some labels."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PromptRef:
    """One text to be run unedited: an example's variant under a condition's template."""

    example: str
    variant: str
    text: str
    gold: float | None
    other: float | None
    pool: bool = False

    @property
    def key(self) -> str:
        return digest("prompt", self.example, self.variant, self.text, self.gold)


@dataclass(frozen=True)
class Condition:
    """A named setting: one intervention at one family of sites, and the axes it is swept over.

    ``axes`` maps an axis to its values; place axes hold tuples of indices, options hold plain values.
    ``phase`` is where the edits are; ``places`` are used where no step or position axis says more.
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

    def content(self) -> dict[str, Any]:
        """What makes cells of this condition comparable with those of another run."""
        return {
            "plugin": self.plugin.name, "options": dict(self.options), "site": str(self.site), "phase": self.phase,
            "variant": self.variant, "downstream": self.downstream, "template": self.template,
        }  # fmt: skip

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield axis → value for every cell of one example."""
        names = list(self.axes)
        for values in itertools.product(*self.axes.values()):
            yield {**self.fixed, **dict(zip(names, values, strict=True))}


@dataclass(frozen=True)
class Cell:
    """One edited computation: example, condition, axis values, trial."""

    example: str
    condition: int
    values: Mapping[str, Any]
    trial: int
    key: str


@dataclass
class Plan:
    """Everything a run will compute. ``prompts`` are the unedited ones, ``cells`` the edited ones, in canonical order."""

    data: Data
    info: ModelInfo
    conditions: list[Condition]
    prompts: list[PromptRef]
    cells: list[Cell]
    trials: int
    notes: list[str]

    def axis_labels(self, name: str) -> list[Any]:
        """Return the labels of an axis over all conditions, in order of first appearance."""
        seen: dict[Any, None] = {}
        for condition in self.conditions:
            for value in condition.axes.get(name, condition.fixed.get(name, ())):
                if name in condition.axes:
                    seen[axis_label(name, value)] = None
            if name in condition.fixed:
                seen[axis_label(name, condition.fixed[name])] = None
        return list(seen)

    @property
    def axes(self) -> list[str]:
        names: dict[str, None] = {}
        for condition in self.conditions:
            names.update(dict.fromkeys([*condition.fixed, *condition.axes]))
        return sorted(names, key=lambda n: (PLACES.index(n) if n in PLACES else len(PLACES), n))


def axis_label(name: str, value: Any) -> Any:
    """Return how an axis value is called in tables: an index, ``0+1`` for a set, or the option's value."""
    if name in PLACES and name != "donor":
        return label(value)
    return value


def build_plan(experiment: Experiment, plugins: Plugins, data: Data, info: ModelInfo, available: frozenset[str] | None = None) -> Plan:
    """Resolve conditions and axes against the model and the data.

    Raises
    ------
    UserError: unknown site or intervention, layer or step out of range, a site without its layer, vacuous conditions
    """
    builder = _Builder(experiment, plugins, data, info, available)
    conditions = [builder.condition(name, spec) for name, spec in builder.specs().items()]
    notes = _vacuous(conditions, experiment)
    prompts = builder.prompts(conditions)
    trials = experiment.trials
    cells = [
        Cell(example.id, number, point, trial, _cell_key(example, condition, point, trial))
        for example in data.examples
        for number, condition in enumerate(conditions)
        for point in condition.points()
        for trial in range(trials)
    ]
    return Plan(data, info, conditions, prompts, cells, trials, notes)


def _cell_key(example: Example, condition: Condition, point: Mapping[str, Any], trial: int) -> str:
    texts = {variant: (p.text, p.answer) for variant, p in example.prompts.items()}
    return digest(example.id, texts, condition.name, condition.content(), point, trial)


def _vacuous(conditions: Sequence[Condition], experiment: Experiment) -> list[str]:
    """Name conditions that are the same computation; refuse them unless the experiment allows it."""
    seen: dict[str, str] = {}
    notes = []
    for condition in conditions:
        effective = condition.content()
        if condition.downstream == "freeze" and not _has_later_steps(condition):
            effective["downstream"] = "propagate"
        key = digest(effective, condition.axes, condition.fixed)
        if key in seen:
            message = f"conditions '{seen[key]}' and '{condition.name}' are the same computation"
            if not experiment.allow_vacuous:
                raise UserError(f"{message}: comparing them says nothing.\nChange one, or set allow_vacuous: true to run them anyway.")
            notes.append(message)
        seen.setdefault(key, condition.name)
    return notes


def _has_later_steps(condition: Condition) -> bool:
    return condition.phase in ("prompt", "latent")


class _Builder:
    def __init__(self, experiment: Experiment, plugins: Plugins, data: Data, info: ModelInfo, available: frozenset[str] | None) -> None:
        self.experiment, self.plugins, self.data, self.info, self.available = experiment, plugins, data, info, available
        self.source = experiment.source

    def specs(self) -> dict[str, Any]:
        """Name → (intervention spec, sweep, template, on) with the conditions' overrides applied."""
        experiment = self.experiment
        if not experiment.conditions:
            if experiment.intervention is None:
                if experiment.sweep:
                    raise UserError(f"{self.source}: sweep: there is no intervention to sweep; add intervention: or remove sweep:")
                return {}
            name = experiment.intervention.plugin
            return {name: (experiment.intervention, experiment.sweep, None, None, "intervention")}
        specs = {}
        for name, condition in experiment.conditions.items():
            if name == BASELINE:
                raise UserError(f"{self.source}: conditions.{BASELINE}: every run has its baseline; choose another name")
            intervention = condition.intervention or experiment.intervention
            if intervention is None:
                raise UserError(f"{self.source}: conditions.{name}: needs an intervention (here or at the top level)")
            sweep = experiment.sweep if condition.sweep is None else condition.sweep
            specs[name] = (intervention, sweep, condition.prompt, condition.on, f"conditions.{name}")
        return specs

    def condition(self, name: str, spec: tuple[Any, ...]) -> Condition:
        intervention, sweep, template, on, where = spec
        at = where if where == "intervention" else f"{where}.intervention"
        plugin = self.plugins.get("intervention", intervention.plugin, where=f"{self.source}: {at}.plugin")
        site = parse_site(intervention.site, f"{self.source}: {at}.site", self.info.layers)
        self._check_site(site, at)
        axes, fixed, options = self._axes(plugin, intervention, dict(sweep), site, where, at)
        phase = self._phase(site, axes, fixed, at)
        self._check_places(site, phase, axes, fixed, at)
        variant, partner = self._variant(plugin, intervention, on, at)
        self._check_options(plugin, options, axes, at)
        return Condition(
            name, plugin, options, site, phase, variant, partner, intervention.downstream, template, axes, fixed
        )  # fmt: skip

    def _check_site(self, site: Site, at: str) -> None:
        if site.component in LATENT_ONLY and not self.info.latents:
            raise UserError(f"{self.source}: {at}.site: '{site.component}' needs a model with latent steps; this one has none")
        if site.phase == "latent" and not self.info.latents:
            raise UserError(f"{self.source}: {at}.site: phase 'latent' needs a model with latent steps; this one has none")
        if self.available is not None and site.component not in self.available:
            raise UserError(f"{self.source}: {at}.site: this model has no '{site.component}'; {nearest(site.component, self.available)}")

    def _axes(self, plugin: type[Intervention[Any]], spec: Any, sweep: dict[str, Any], site: Site, where: str, at: str) -> tuple[Any, Any, Any]:
        """Split what the file says into swept axes, fixed places and the intervention's options."""
        axes: dict[str, tuple[Any, ...]] = {}
        fixed: dict[str, tuple[int, ...]] = {}
        sweep_at = "sweep" if where == "intervention" else f"{where}.sweep"
        known = set(PLACES) | set(plugin.Options.model_fields)
        for name, value in sweep.items():
            if name not in known:
                raise UserError(f"{self.source}: {sweep_at}.{name}: unknown axis for '{plugin.name}'; {nearest(name, known)}")
            axes[name] = self._axis(name, value, site, f"{sweep_at}.{name}")
        for name in ("layer", "step", "position", "head"):
            value = getattr(spec, name, None)
            if value is not None and name not in axes:
                values = self._axis(name, value, site, f"{at}.{name}")
                fixed[name] = tuple(sorted({i for v in values for i in v}))
        if site.layer is not None and "layer" not in axes:
            fixed["layer"] = (site.layer,)
        if "donor" not in axes and plugin.source == "donor":
            axes["donor"] = (0,)
        ordered = {n: axes[n] for n in [*PLACES, *sorted(set(axes) - set(PLACES))] if n in axes}
        return ordered, fixed, dict(spec.options)

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
            if isinstance(value, bool) or not isinstance(value, (int, list)) or (isinstance(value, int) and value < 1):
                raise UserError(f"{self.source}: {where}: write the number of donors (10) or their indices ([0, 1]); got {value!r}")
            return tuple(range(value)) if isinstance(value, int) else tuple(value)
        values = value if isinstance(value, list) else [value]
        if not values or len({repr(v) for v in values}) != len(values):
            raise UserError(f"{self.source}: {where}: needs distinct values; got {value!r}")
        return tuple(values)

    def _heads(self, site: Site) -> int:
        return self.info.kv_heads if site.component in ("k", "v") else self.info.heads

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

    def _check_places(self, site: Site, phase: Phase, axes: Mapping[str, Any], fixed: dict[str, Any], at: str) -> None:
        if site.layered and "layer" not in axes and "layer" not in fixed:
            raise UserError(f"{self.source}: {at}.site: '{site.component}' needs a layer; write {site.component}.0 or sweep layer: all")
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

    def _check_options(self, plugin: type[Intervention[Any]], options: Mapping[str, Any], axes: Mapping[str, Any], at: str) -> None:
        names = [n for n in axes if n not in PLACES]
        for values in itertools.product(*(axes[n] for n in names)):
            build_intervention(self.plugins, plugin, {**options, **dict(zip(names, values, strict=True))}, at, self.source)

    # ------------------------------------------------------------------------------------------ prompts

    def prompts(self, conditions: Sequence[Condition]) -> list[PromptRef]:
        """Return every unedited prompt the plan needs: the examples' own, then those of the pool that edits draw from."""
        templates: dict[str | None, None] = dict.fromkeys([None, *(c.template for c in conditions)])
        found: dict[str, PromptRef] = {}
        for example in self.data.examples:
            for template in templates:
                for variant in example.prompts:
                    ref = self.prompt(example, variant, template)
                    found.setdefault(ref.key, ref)
        for condition in conditions:
            for example in self._drawn_from(condition):
                for variant in self._pool_variants(condition):
                    ref = self.prompt(example, variant, condition.template, pool=True)
                    found.setdefault(ref.key, ref)
        return list(found.values())

    def _pool_variants(self, condition: Condition) -> list[str]:
        if condition.options.get("difference") == "clean":
            return ["clean", "corrupted"]
        return [condition.variant]

    def _drawn_from(self, condition: Condition) -> Sequence[Example]:
        plugin = condition.plugin
        if plugin.needs_scale or condition.options.get("difference") is not None:
            return self.data.pool
        probe = build_intervention(self.plugins, plugin, {**condition.options, **{n: v[0] for n, v in condition.axes.items() if n not in PLACES}}, "", "")
        if probe.source in ("mean", "mean_over_steps"):
            return self.data.pool
        if probe.source != "donor":
            return ()
        from codi_engine.core.donors import donors_of

        pool = {e.id: e for e in self.data.pool}
        wanted: dict[str, None] = {}
        for example in self.data.examples:
            for point in condition.points():
                wanted[donors_of(self.experiment.seed, example.id, list(pool), condition, point)] = None
        return [pool[i] for i in wanted]

    def prompt(self, example: Example, variant: str, template: str | None, pool: bool = False) -> PromptRef:
        """Return the unedited prompt of an example's variant under a template."""
        return prompt_ref(example, variant, template, pool)


def prompt_ref(example: Example, variant: str, template: str | None, pool: bool = False) -> PromptRef:
    prompt = example.prompts[variant]
    text = prompt.text if template is None else template.replace("{question}", prompt.text)
    others = [p.answer for name, p in example.prompts.items() if name != variant]
    return PromptRef(example.id, variant, text, prompt.answer, others[0] if others else None, pool)


def build_intervention(plugins: Plugins, plugin: type[Intervention[Any]], options: Mapping[str, Any], at: str, source: str) -> Intervention[Any]:
    """Validate options and build the intervention."""
    from codi_engine.core.experiment import plugin_options

    return plugin(plugin_options(plugin, options, where=at, source=source))
