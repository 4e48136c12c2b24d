"""The plan: conditions × axes × examples become cells, before any weight is loaded.

A cell is keyed by its content (the example's texts, the intervention, its place), never by its number; so a larger plan
of the same experiment contains the smaller one's cells, and only the new ones are computed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelInfo
from codi_engine.core.planning.conditions import BASELINE, MOST_CELLS, PLACES, Condition, Conditions, axis_label, build_intervention, templated
from codi_engine.core.planning.controls import controls_of
from codi_engine.core.planning.donors import Donors, Length
from codi_engine.core.planning.vacuity import vacuous
from codi_engine.core.plugin import Data, Example
from codi_engine.core.running.natural import check_natural, natural_examples

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import Plugins


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=str)


def digest(*parts: Any) -> str:
    """Return 16 hex digits of the canonical JSON of some labels."""
    return hashlib.sha256(_CANONICAL.encode(parts).encode()).hexdigest()[:16]


class Digests:
    """:func:`digest` of labels that begin alike: what they share is written and hashed once, for all cells of a sweep."""

    def __init__(self, *shared: Any, begun: Digests | None = None) -> None:
        text = _CANONICAL.encode(shared)[1:-1]
        self._hash: hashlib._Hash = hashlib.sha256(b"[") if begun is None else begun._hash.copy()
        self._hash.update((text if begun is None else f",{text}").encode())

    def then(self, *shared: Any) -> Digests:
        """Return those of labels that share more."""
        return Digests(*shared, begun=self)

    def of(self, last: int) -> str:
        """Return the digest of the shared labels and a last one."""
        whole = self._hash.copy()
        whole.update(b",%d]" % last)
        return whole.hexdigest()[:16]


@dataclass(frozen=True)
class PromptRef:
    """One text to be run unedited: an example's variant under a condition's template.

    ``pool``: for its values only. ``compared``: edits take none of them, so it need not have every swept position.
    """

    example: str
    variant: str
    text: str
    gold: float | None
    other: float | None
    pool: bool = False
    compared: bool = False

    @property
    def key(self) -> str:
        return digest("prompt", self.example, self.variant, self.text, self.gold)


@dataclass(frozen=True, slots=True)
class Cell:
    """One edited computation: example, condition, axis values, trial."""

    example: str
    condition: int
    values: Mapping[str, Any]
    trial: int
    key: str


@dataclass
class Plan:
    """Everything a run will compute. ``prompts`` are the unedited ones, ``cells`` the edited ones, in canonical order.

    ``conditions`` are those of the experiment and, after them, their controls. ``natural``: a metric places edited states among
    natural ones (``core/running/natural.py``).
    """

    data: Data
    info: ModelInfo
    conditions: list[Condition]
    prompts: list[PromptRef]
    cells: list[Cell]
    trials: int
    notes: list[str]
    donors: Donors
    natural: bool = False

    @property
    def control_cells(self) -> int:
        """How many of the cells are controls'."""
        return sum(self.conditions[c.condition].control is not None for c in self.cells)

    def axis_labels(self, name: str) -> list[Any]:
        """Return the labels of an axis over all conditions, in order of first appearance."""
        seen: dict[Any, None] = {}
        for condition in self.conditions:
            values = condition.axes.get(name) or ([condition.fixed[name]] if name in condition.fixed else [])
            rows = condition.table.values() if name == "layer" else ()
            seen.update(dict.fromkeys(axis_label(name, v) for v in [*values, *(row["layer"] for row in rows)]))
        return list(seen)

    @property
    def axes(self) -> list[str]:
        names: dict[str, None] = {}
        for condition in self.conditions:
            names.update(dict.fromkeys([*condition.fixed, *condition.axes, *(["layer"] if condition.table else [])]))
        return sorted(names, key=lambda n: (PLACES.index(n) if n in PLACES else len(PLACES), n))


def build_plan(
    experiment: Experiment,
    plugins: Plugins,
    data: Data,
    info: ModelInfo,
    available: frozenset[str] | None = None,
    length: Length | None = None,
    natural: bool = False,
) -> Plan:
    """Resolve conditions and axes against the model and the data.

    Parameters
    ----------
    available: components that the loaded model has (None: not known yet)
    length: tokens of a text, once there is a tokenizer (words before)
    natural: plan the unedited states among which a metric places the edited ones

    Raises
    ------
    UserError: unknown site or intervention, layer or step out of range, a site without its layer, vacuous conditions
    """
    conditions = Conditions(experiment, plugins, data, info, available).resolve()
    _check_size(experiment, data, conditions)
    notes, sound = vacuous(conditions, info, experiment.allow_vacuous, experiment.source)
    controls = controls_of(sound, experiment, plugins, data, info)
    notes += [f"condition '{c.name}': the gate lets '{c.plugin.name}' pass: {c.plugin.gate_exempt}" for c in conditions if c.plugin.gate_exempt]
    if natural:
        notes += check_natural(conditions, data, experiment.source)
    conditions += controls
    donors = Donors(experiment.seed, data, length)
    cells, left_out = _cells(experiment, data, conditions, donors)
    if left_out:
        notes.append(f"{left_out:,} cells are left out: no other example fits match")
    prompts = _Prompts(plugins, data, donors, natural).of(conditions, cells)
    return Plan(data, info, conditions, prompts, cells, experiment.trials, notes, donors, natural)


def _check_size(experiment: Experiment, data: Data, conditions: Sequence[Condition]) -> None:
    """Refuse what no machine holds in memory, before it is written out."""
    size = experiment.trials * len(data.examples) * sum(math.prod(map(len, c.axes.values())) for c in conditions)
    if size > MOST_CELLS:
        raise UserError(f"{experiment.source}: sweep: this would be {size:,} cells; a run has at most {MOST_CELLS:,}: sweep fewer values, or make several runs")


def _cells(experiment: Experiment, data: Data, conditions: Sequence[Condition], donors: Donors) -> tuple[list[Cell], int]:
    """Return the edited cells in canonical order, and how many have no donor."""
    contents = [(c.name, c.content()) for c in conditions]
    points = [list(c.points()) for c in conditions]
    cells, left_out = [], 0
    for order, example in enumerate(data.examples):
        texts = {variant: (p.text, p.answer) for variant, p in example.prompts.items()}
        for number, condition in enumerate(conditions):
            if condition.examples is not None and order >= condition.examples:
                continue
            keys = Digests(example.id, texts, *contents[number])
            for point in points[number]:
                if not donors.has(example.id, condition, point):
                    left_out += experiment.trials
                    continue
                key = keys.then(point)
                cells += [Cell(example.id, number, point, trial, key.of(trial)) for trial in range(experiment.trials)]
    return cells, left_out


class _Prompts:
    """Finds every unedited prompt that a plan needs."""

    def __init__(self, plugins: Plugins, data: Data, donors: Donors, natural: bool) -> None:
        self.plugins, self.data, self.donors, self.natural = plugins, data, donors, natural

    def of(self, conditions: Sequence[Condition], cells: Sequence[Cell]) -> list[PromptRef]:
        """Return the examples' own prompts, then those of the pool that edits draw from."""
        templates: dict[str | None, None] = dict.fromkeys([None, *(c.template for c in conditions)])
        found: dict[str, PromptRef] = {}
        for example in self.data.examples:
            for template in templates:
                for variant in example.prompts:
                    ref = prompt_ref(example, variant, template)
                    found.setdefault(ref.key, ref)
        for number, condition in enumerate(conditions):
            for example, variant in self._drawn_from(number, condition, cells):
                ref = prompt_ref(example, variant, condition.template, pool=True)
                found.setdefault(ref.key, ref)
        for condition in conditions if self.natural else ():
            for example in () if condition.plugin.ends_latents else natural_examples(self.data):
                ref = replace(prompt_ref(example, condition.variant, condition.template, pool=True), compared=True)
                found.setdefault(ref.key, ref)
        return list(found.values())

    def _drawn_from(self, number: int, condition: Condition, cells: Sequence[Cell]) -> list[tuple[Example, str]]:
        """Return (example, variant) of the pool whose unedited values a condition's edits take."""
        drawn: list[tuple[Example, str]] = []
        probe = build_intervention(self.plugins, condition.plugin, condition.first_options, "", "")
        if condition.plugin.needs_scale or condition.differences or probe.source in ("mean", "mean_over_steps"):
            sides = ["clean", "corrupted"] if "clean" in condition.differences else [condition.variant]
            drawn += [(e, v) for e in self.data.pool for v in sides]
        pool = {e.id: e for e in self.data.pool}
        mine = [c for c in cells if c.condition == number] if probe.source == "donor" or condition.control == "shuffled" else []
        if probe.source == "donor":
            drawn += [(pool[i], condition.variant) for i in dict.fromkeys(self.donors.of(c.example, condition, c.values) for c in mine)]
        elif condition.control == "shuffled":
            names = dict.fromkeys(self.donors.shuffled(c.example, condition) for c in mine)
            drawn += [(pool[i], condition.partner) for i in names if i is not None]
        return drawn


def prompt_ref(example: Example, variant: str, template: str | None, pool: bool = False) -> PromptRef:
    """Return the unedited prompt of an example's variant under a template."""
    prompt = example.prompts[variant]
    text = templated(prompt.text, template)
    others = [p.answer for name, p in example.prompts.items() if name != variant]
    return PromptRef(example.id, variant, text, prompt.answer, others[0] if others else None, pool)


__all__ = [
    "BASELINE", "PLACES", "Cell", "Condition", "Plan", "PromptRef", "axis_label", "build_intervention", "build_plan", "digest", "prompt_ref",
]  # fmt: skip
