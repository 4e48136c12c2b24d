"""``early_late``: do late latent steps matter more than early ones, when each is edited by itself?"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Analysis, AnalysisResult
from codi_engine.plugins.analyses import stepping
from codi_engine.plugins.analyses.selection import metric_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work

WHOLE = "all"


class EarlyLateOptions(stepping.StepOptions):
    """``by``: a field of the data to split by, such as reasoning_steps. ``split``: the first late step (default: half of them
    are early); or ``early`` and ``late``: lists of steps.

    ``correct: true`` takes only examples answered right unedited. ``condition``, ``metric``, ``at``, ``q``, ``confidence``: as
    everywhere.
    """

    by: str | None = None
    split: int | None = Field(default=None, ge=1)
    early: list[int] | None = Field(default=None, min_length=1)
    late: list[int] | None = Field(default=None, min_length=1)
    correct: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> EarlyLateOptions:
        if (self.early is None) != (self.late is None):
            raise ValueError("give `early` and `late` together, or `split`")
        if self.early is not None and self.late is not None:
            if self.split is not None:
                raise ValueError("give either `split` or `early` and `late`")
            both = sorted(set(self.early) & set(self.late))
            if both:
                raise ValueError(f"step {both[0]} is in `early` and in `late`")
        return self


@dataclass(frozen=True)
class Losses:
    """Losses of one condition, examples × sets of steps in their order (positive is worse), and each example's stratum."""

    condition: str
    metric: str
    table: pd.DataFrame
    strata: pd.Series | None


class EarlyLate(Analysis[EarlyLateOptions]):
    """Mean loss from editing a late step minus mean loss from editing an early one, each step edited by itself.

    The contrast is formed within examples and tested over them, by strata of a field, one correction over all. A cumulative
    condition cannot answer this: its later sets hold the early steps. Its curve and increments are given, the contrast is not.
    """

    name = "early_late"
    Options = EarlyLateOptions

    def check(self, facts: Foreseen) -> None:
        facts.need_steps(self.options.at)
        facts.need_metric(self.options.metric)
        facts.need_condition(self.options.condition)
        facts.need_field(self.options.by, "by")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import early_late_tables

        run, options = runs[0], self.options
        metric = metric_of(run, options.metric, self.name)
        sets = stepping.step_conditions(run, self.name)
        single, cumulative = self._conditions(sets)
        tables: dict[str, pd.DataFrame] = {}
        halves: tuple[list[int], list[int]] | None = None
        if single is not None:
            halves = self._halves([s[0] for s in sets[single]])
            losses = self._losses(run, single, metric)
            tables["contrast"], tables["examples"] = early_late_tables.contrast_tables(losses, halves, options)
            tables["steps"] = early_late_tables.curve_table([losses], options)
        if cumulative:
            tables["cumulative"] = early_late_tables.curve_table([self._losses(run, c, metric) for c in cumulative], options)
        refused = None if single is not None else cumulative[0]
        facts = {"single": single, "halves": halves, "metric": metric}
        return AnalysisResult(tables, summary=early_late_tables.summary(tables, single, halves, refused, metric, options), facts=facts)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import early_late_figures

        facts = about["facts"]
        return early_late_figures.draw(tables, facts["single"], facts["halves"], facts["metric"], self.options)

    # ---------------------------------------------------------------------------------------- conditions

    def _conditions(self, sets: Mapping[str, Sequence[stepping.Steps]]) -> tuple[str | None, list[str]]:
        """Return the single-step condition (None where only cumulative ones are left to show) and the cumulative ones."""
        chains = [c for c, steps in sets.items() if is_cumulative(steps)]
        fits = {c: _unfit(steps) for c, steps in sets.items()}
        wanted = self.options.condition
        if wanted in chains:
            return None, [str(wanted)]
        if wanted is None and chains and all(fits.values()):
            return None, chains
        return stepping.chosen(wanted, fits, self.name, "edit one step at a time: sweep: {step: all}"), chains

    def _halves(self, steps: Sequence[int]) -> tuple[list[int], list[int]]:
        """Return the early and the late steps.

        Raises
        ------
        UserError: a step that was not swept, or an empty half
        """
        options, known = self.options, sorted(steps)
        if options.early is not None and options.late is not None:
            for name, half in (("early", options.early), ("late", options.late)):
                for step in half:
                    if step not in known:
                        raise UserError(f"{self.name}: {name}: step {step} was not swept; there are {', '.join(map(str, known))}")
            return sorted(set(options.early)), sorted(set(options.late))
        split = known[len(known) // 2] if options.split is None else options.split
        early, late = [s for s in known if s < split], [s for s in known if s >= split]
        if not early or not late:
            raise UserError(f"{self.name}: split: {split} leaves no {'early' if not early else 'late'} step; it lies in {known[1]}..{known[-1]}")
        return early, late

    def _losses(self, run: Run, condition: str, metric: str) -> Losses:
        cells = stepping.condition_cells(run, condition, self.options.at, self.name)
        table = stepping.loss(stepping.effects_by_steps(run, cells, metric, self.name), metric)
        order: list[stepping.Steps] = sorted(stepping.sets_of(table), key=lambda s: (len(s), s))
        table = table[order]
        if self.options.correct:
            right = stepping.answered_right(run, cells, self.name)
            if right is None:
                raise UserError(f"{self.name}: correct: the run has no accuracy; add metrics: [accuracy] to the experiment")
            table = table[right.reindex(table.index).to_numpy(bool)]
            if table.empty:
                raise UserError(f"{self.name}: correct: no example is answered right unedited")
        return Losses(condition, metric, table, self._strata(run, cells, table.index))

    def _strata(self, run: Run, cells: pd.DataFrame, examples: pd.Index) -> pd.Series | None:
        by = self.options.by
        if by is None:
            return None
        if by not in cells:
            fields = [str(c) for c in cells if c not in (*run.axes, *run.metrics, "key", "text", "answer", "answer_rule", "steps")]
            raise UserError(f"{self.name}: by: the data has no field '{by}'; {nearest(by, fields)}")
        values = cells.drop_duplicates("example").set_index("example")[by].reindex(examples)
        return values.where(values.notna(), "missing").astype(str)


def is_cumulative(steps: Sequence[stepping.Steps]) -> bool:
    """Say whether sets of steps grow by one step at a time, each holding the one before."""
    ordered = sorted(steps, key=len)
    nested = all(set(a) < set(b) and len(b) == len(a) + 1 for a, b in itertools.pairwise(ordered))
    return len(ordered) > 1 and len(ordered[0]) == 1 and nested


def _unfit(steps: Sequence[stepping.Steps]) -> str:
    if is_cumulative(steps):
        return "is cumulative: its later sets hold the early steps"
    if any(len(s) != 1 for s in steps):
        return "edits several steps at once"
    return "edits one step only" if len(steps) < 2 else ""
