"""A run brought back to life for ``attribution``: its model, plan, prompts and unedited logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from codi_engine.core.errors import UserError
from codi_engine.core.experiment import Experiment
from codi_engine.core.planning.donors import Donors
from codi_engine.core.planning.plan import Condition, PromptRef, build_plan
from codi_engine.core.planning.preparing import prepare
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.rollout.gradients import in_single_precision
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.running.reading import Answers
from codi_engine.core.runs.reload import reload_model
from codi_engine.core.sites import GLOBAL, parse_site

if TYPE_CHECKING:
    import numpy as np

    from codi_engine.core.model import ModelAdapter
    from codi_engine.core.plugin import Example
    from codi_engine.core.runs.results import Run

_LOGITS = "sources/number_logits/value"


class Setting:
    """The run's experiment, data and model.

    ``exact_weights`` is False where the run was computed in reduced precision, which gradients are not.

    Raises
    ------
    UserError: an imported run, other model files, or other data than the run was made with
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        adapter = reload_model(run)
        self.plugins = plugin_manager()
        self.experiment = Experiment.from_dict(run.experiment, source=str(run.path))
        self.data = prepare(self.experiment, self.plugins).plan.data
        then = run.provenance.get("data_digest")
        if then and self.data.digest != then:
            raise UserError(f"{run.path}: the data are not those of the run any more (sha256 {str(then)[:12]} then, {self.data.digest[:12]} now)")
        if self.data.kind == "prompts":
            raise UserError("attribution: the data are prompts without answers; it needs pairs or problems, whose answers' logits are the metric")
        self._bind(adapter)

    def _bind(self, adapter: ModelAdapter) -> None:
        self.net = Network(adapter)
        self.exact_weights = adapter.info.dtype == "float32"
        if not self.exact_weights:
            in_single_precision(self.net)
        self.answers = Answers(adapter, self.experiment.generate.answer_prefix)
        self.pool = {e.id: e for e in self.data.pool}
        self.donors = Donors(self.experiment.seed, self.data, lambda text: len(adapter.encode_prompt(text)))
        self._chat = adapter.chat if self.experiment.data.model_dump().get("chat_template") else None
        self._ids: dict[str, tuple[int, ...]] = {}
        self._unit: tuple[int, Any] = (-1, None)

    # ------------------------------------------------------------------------------------------ prompts

    @cached_property
    def examples(self) -> list[Example]:
        """Return the examples that the run has cells of, in the data's order."""
        known = set(map(str, self.run.cells["example"]))
        return [e for e in self.data.examples if str(e.id) in known]

    def ids(self, ref: PromptRef) -> tuple[int, ...]:
        """Return a prompt in tokens, as the run fed it."""
        if ref.key not in self._ids:
            self._ids[ref.key] = self._encoded(ref.text)
        return self._ids[ref.key]

    def _encoded(self, text: str) -> tuple[int, ...]:
        return tuple(self.net.adapter.encode_prompt(text if self._chat is None else self._chat(text)))

    # ----------------------------------------------------------------------------------------- conditions

    def conditions(self, options: Any) -> list[Condition]:
        """Return the run's conditions (or the one asked for), or the patch that ``site`` and ``direction`` describe."""
        experiment = self.experiment
        if options.site is not None:
            return [self._patch(options)]
        plan = build_plan(experiment, self.plugins, self.data, self.net.info, self.net.components)
        mine = [c for c in plan.conditions if _is_plain(c)]
        if not mine:
            raise UserError("attribution: the run has no intervention; say what to estimate, for example: -s site=resid_post -s direction=denoise")
        for name in ("direction", "downstream"):
            if getattr(options, name) is not None:
                raise UserError(f"attribution: {name}: belongs to site; without it the run's own conditions are estimated")
        if options.condition is None:
            return mine
        found = [c for c in mine if c.name == options.condition]
        if not found:
            from codi_engine.core.errors import nearest

            raise UserError(f"attribution: condition '{options.condition}': {nearest(options.condition, [c.name for c in mine])}")
        return found

    def _patch(self, options: Any) -> Condition:
        """Plan a patch of every place of a site."""
        if options.condition is not None:
            raise UserError("attribution: give either site or condition")
        if self.data.kind != "pairs":
            raise UserError(f"attribution: site: a patch needs clean/corrupted pairs; the data set holds {self.data.kind}")
        if options.direction is None:
            raise UserError("attribution: direction: state denoise (clean into corrupted) or noise (corrupted into clean)")
        info = self.net.info
        site = parse_site(options.site, "attribution: site", info.layers)
        phase = site.phase or ("latent" if info.latents else "prompt")
        sweep: dict[str, Any] = {"layer": "all"} if site.component not in GLOBAL and site.layer is None else {}
        if site.index is None:
            sweep |= {"step": "all"} if phase == "latent" else {"position": self._positions(phase, site.component)}
        value = {k: v for k, v in self.experiment.to_dict().items() if k not in ("conditions", "intervention", "sweep", "trials")}
        value |= {"sweep": sweep, "intervention": {"plugin": "patch", "site": options.site, "direction": options.direction}}
        value["intervention"]["downstream"] = options.downstream or "propagate"
        made = build_plan(Experiment.from_dict(value, source="attribution"), self.plugins, self.data, self.net.info, self.net.components)
        return replace(made.conditions[0], name=f"patch {site} {options.direction}")

    def _positions(self, phase: str, component: str) -> Sequence[int]:
        """Return the positions that every prompt has, from the end; or those of the forced answer."""
        if phase == "answer":
            return list(range(len(self.net.adapter.answer_start) + len(self.answers.prefix)))
        if component == "latent_out":
            return [-1]
        shortest = min(len(self._encoded(p.text)) for e in self.data.examples for p in e.prompts.values())
        return list(range(-shortest, 0))

    # --------------------------------------------------------------------------------------------- logits

    def logits(self, ref: PromptRef) -> torch.Tensor:
        """Return the unedited logits where the number is predicted: the run's stored ones, else the engine's own."""
        slot = self._slots.get(ref.key)
        if slot is not None:
            unit, row = divmod(slot, self.run.store.unit_cells)
            if self._unit[0] != unit:
                self._unit = (unit, self.run.store.read_unit(_LOGITS, unit))
            stored: np.ndarray = self._unit[1][row]
            return torch.from_numpy(stored.copy())
        want = Want(generate=False, first=False, prefix=self.answers.prefix)
        return self._rollout.run([self.ids(ref)], [Task(0)], want).number_logits[0].clone()

    @cached_property
    def _rollout(self) -> Rollout:
        return Rollout(self.net)

    @cached_property
    def _slots(self) -> dict[str, int]:
        """Return prompt key → slot of its unedited cell, where the run keeps logits of the same precision."""
        store = self.run.store
        if _LOGITS not in store.arrays or not self.exact_weights:
            return {}
        texts = store.texts()
        slots, codes = store.read("cells/condition")
        unedited = set(slots[codes == store.labels("condition").index("baseline")].tolist())
        pairs = zip(texts.column("key").to_pylist(), texts.column("slot").to_pylist(), strict=True)
        return {key: slot for key, slot in pairs if slot in unedited}


def _is_plain(condition: Condition) -> bool:
    """False for controls, and for edits that are no single place: in every forward, chained, of the loop's length."""
    special = condition.tokens is not None or condition.plugin.ends_latents or bool(condition.options.get("chain"))
    return condition.control is None and not special
