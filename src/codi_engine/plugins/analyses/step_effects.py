"""``step_effects``: how far an edit of one latent step moves every later state, in total and directly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult
from codi_engine.plugins.analyses import stepping
from codi_engine.plugins.analyses.selection import metric_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.latent_states import States

Kind = Literal["total", "direct"]
DOWNSTREAM: dict[str, Kind] = {"propagate": "total", "freeze": "direct"}


class StepEffectsOptions(stepping.StepOptions):
    """``total``, ``direct``: the conditions, where several would do (default: those with ``downstream: propagate``,
    ``freeze``); ``condition`` is short for ``total`` or ``direct``, whichever it is.

    ``site``: which captured states (default ``latent_out``). ``metric``, ``at``, ``q``, ``confidence``: as everywhere.
    """

    total: str | None = None
    direct: str | None = None
    site: str | None = None


@dataclass(frozen=True)
class Moves:
    """What one condition's edits do: examples × edited steps × states, and the metric, examples × edited steps (or None)."""

    condition: str
    distance: np.ndarray
    cosine: np.ndarray
    metric: np.ndarray | None


class StepEffects(Analysis[StepEffectsOptions]):
    """Total and direct effects between latent steps: distance of every state to the unedited run's, per edited step.

    The total effect lets later latents follow the edit (downstream: propagate); the direct one pins them (freeze), so that it
    flows through keys and values only. The unit of inference is the example.
    """

    name = "step_effects"
    Options = StepEffectsOptions

    def check(self, facts: Foreseen) -> None:
        options = self.options
        facts.need_steps(options.at)
        if options.metric is not None:
            facts.need_metric(options.metric)
        for option, name in (("condition", options.condition), ("total", options.total), ("direct", options.direct)):
            facts.need_condition(name, option)
        facts.need_capture(options.site, "latent_out")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import effect_matrix
        from codi_engine.plugins.analyses.latent_states import read_states

        run = runs[0]
        conditions = self._conditions(run)
        states = read_states(run, self.options.site, self.name)
        if len(states.layers) > 1:
            raise UserError(f"{self.name}: site: '{states.site}' has {len(states.layers)} layers; name one, such as {_with_layer(states.site)}")
        metric = metric_of(run, self.options.metric, self.name) if run.metrics or self.options.metric else None
        edited, examples = self._steps(run, conditions)
        moves = {kind: self._moves(run, states, name, edited, examples, metric) for kind, name in conditions.items()}
        options = self.options
        tables = {"effects": effect_matrix.effect_table(moves, edited, states.steps, options.confidence)}
        if len(moves) == 2:
            tables["mediated"] = effect_matrix.mediated_table(moves["total"], moves["direct"], edited, states.steps, options)
        if metric is not None:
            tables["metric"] = effect_matrix.metric_table(moves, edited, metric, options)
        tables["causality"] = effect_matrix.causality_table(moves, edited, states.steps)
        return AnalysisResult(tables, summary=effect_matrix.summary(tables, states.site, metric, options), facts={"site": states.site, "metric": metric})

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import step_effect_figures

        return step_effect_figures.draw(tables, about["facts"]["site"], about["facts"]["metric"], self.options)

    # ---------------------------------------------------------------------------------------- conditions

    def _conditions(self, run: Run) -> dict[Kind, str]:
        """Return which condition shows the total effects and which one the direct ones."""
        sets = stepping.step_conditions(run, self.name)
        single = {c: "" if all(len(s) == 1 for s in steps) else "edits several steps at once" for c, steps in sets.items()}
        known = stepping.interventions(run)
        kinds = {c: DOWNSTREAM[str(known.get(c, {}).get("downstream", "propagate"))] for c in sets}
        wanted = self._wanted(kinds)
        found: dict[Kind, str] = {}
        for kind in DOWNSTREAM.values():
            fits = {c: single[c] for c in sets if kinds[c] == kind}
            name = wanted.get(kind)
            if name is not None and kinds.get(name) not in (None, kind):
                raise UserError(f"{self.name}: {kind}: '{name}' has downstream: {'freeze' if kind == 'total' else 'propagate'}; give it as {kinds[name]}")
            if name is not None or any(not reason for reason in fits.values()):
                found[kind] = stepping.chosen(name, fits or dict.fromkeys(sets, ""), f"{self.name}: {kind}", "sweep: {step: all}")
        if not found:
            stepping.chosen(self.options.condition, single, self.name, "edit one step at a time: sweep: {step: all}")
        return found

    def _wanted(self, kinds: Mapping[str, Kind]) -> dict[Kind, str]:
        options = self.options
        wanted: dict[Kind, str] = {}
        if options.condition is not None:
            wanted[kinds.get(options.condition, "total")] = options.condition
        if options.total is not None:
            wanted["total"] = options.total
        if options.direct is not None:
            wanted["direct"] = options.direct
        return wanted

    def _steps(self, run: Run, conditions: Mapping[Kind, str]) -> tuple[list[int], list[str]]:
        """Return the edited steps and the examples that all conditions have."""
        cells = [stepping.condition_cells(run, name, self.options.at, self.name) for name in conditions.values()]
        steps = [{s[0] for s in part["steps"]} for part in cells]
        common = sorted(set.intersection(*steps))
        if not common:
            raise UserError(f"{self.name}: '{conditions['total']}' and '{conditions['direct']}' edit no step in common")
        others = [set(part["example"]) for part in cells[1:]]
        return common, [str(e) for e in dict.fromkeys(cells[0]["example"]) if all(e in o for o in others)]

    def _moves(self, run: Run, states: States, condition: str, edited: Sequence[int], examples: Sequence[str], metric: str | None) -> Moves:
        """Average trials and donors within examples; NaN where an example lacks an edit."""
        import numpy as np

        from codi_engine.plugins.analyses import latent_states

        rows = _rows(states.cells, condition, self.options.at)
        place = {e: i for i, e in enumerate(examples)}
        column = {k: i for i, k in enumerate(edited)}
        sums = np.zeros((2, len(examples), len(edited), len(states.steps)))
        counts = np.zeros((len(examples), len(edited), 1))
        wanted = [r for r in rows if str(states.cells["example"][r]) in place and int(states.cells["step"][r]) in column]
        for some in latent_states.chunks(wanted):
            new, old = states.edited[list(some), 0], states.base(some)[:, 0]
            both = latent_states.distance(new, old), latent_states.cosine(new, old)
            for at, r in enumerate(some):
                e, i = place[str(states.cells["example"][r])], column[int(states.cells["step"][r])]
                sums[0, e, i] += both[0][at]
                sums[1, e, i] += both[1][at]
                counts[e, i] += 1
        with np.errstate(invalid="ignore"):
            distance, cosine = sums / np.where(counts > 0, counts, np.nan)
        values = None
        if metric is not None:
            cells = stepping.condition_cells(run, condition, self.options.at, self.name)
            effects = stepping.effects_by_steps(run, cells, metric, self.name).reindex(list(examples))
            values = np.stack([effects[k,].to_numpy(float) for k in edited], 1)
        return Moves(condition, distance, cosine, values)


def _rows(cells: pd.DataFrame, condition: str, at: Mapping[str, Any]) -> list[int]:
    keep = (cells["condition"] == condition).to_numpy()
    for axis, value in at.items():
        if axis in cells and cells.loc[keep, axis].notna().any():
            keep = keep & (cells[axis].astype(str) == str(value)).to_numpy()
    return [int(i) for i in keep.nonzero()[0]]


def _with_layer(site: str) -> str:
    head, at, rest = site.partition("@")
    return f"{head}.0{at}{rest}"
