"""``attribution``: gradients say in one backward pass which places matter; exact patching says how far they can be trusted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, Options

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.planning.plan import Condition
    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.attribution_setting import Setting
    from codi_engine.plugins.analyses.attribution_tables import Found


class AttributionOptions(Options):
    """``condition``: which one of the run's (default: all that can be estimated). ``limit``: examples (default: all of the run).

    ``site``, ``direction``, ``downstream``: estimate a patch that the run did not make (the last defaults to propagate).
    ``metric``: ``logit_diff`` (pairs) or ``cross_entropy``; default: the first that applies. ``method``: ``gradient``, or
    ``integrated`` over inputs between the two prompts'. ``steps``: how many of these. ``keep``: places written to top.csv.
    ``confidence``: of intervals. ``threads``: with ``--executor dask`` on this machine, how many processes, each of which loads the model
    (default: as many as there are cores).
    """

    condition: str | None = None
    site: str | None = None
    direction: Literal["denoise", "noise"] | None = None
    downstream: Literal["propagate", "freeze"] | None = None
    metric: Literal["logit_diff", "cross_entropy"] | None = None
    method: Literal["gradient", "integrated"] = "gradient"
    steps: int = Field(default=5, ge=1, le=1000)
    keep: int = Field(default=10, ge=1)
    limit: int | None = Field(default=None, ge=1)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    threads: int | None = Field(default=None, ge=1)


class Attribution(Analysis[AttributionOptions]):
    """Attribution patching: first-order estimates of every place's effect, and how many of the exact best they find.

    An estimate is (edited − own value) · ∂metric/∂value (Nanda 2023; Syed et al. 2023, 2310.10348; Kramár et al. 2024,
    2403.00745): a forward and a backward per example, and the source's forward, for all places together. The model is loaded again.
    """

    name = "attribution"
    Options = AttributionOptions

    def check(self, facts: Foreseen) -> None:
        options = self.options
        if facts.kind == "prompts":
            raise UserError("the data are prompts without answers; it needs pairs or problems, whose answers' logits are the metric")
        if options.site is None:
            if not facts.conditions:
                raise UserError("the run has no intervention; say what to estimate, for example: site: resid_post with direction: denoise")
            facts.need_condition(options.condition)
            return
        if options.condition is not None:
            raise UserError("give either site or condition")
        if facts.kind == "problems":
            raise UserError("site: a patch needs clean/corrupted pairs; the data set holds problems")
        if options.direction is None:
            raise UserError("direction: state denoise (clean into corrupted) or noise (corrupted into clean)")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import attribution_tables
        from codi_engine.plugins.analyses.attribution_estimates import LeftOut
        from codi_engine.plugins.analyses.attribution_setting import Setting

        run, options = runs[0], self.options
        work.progress.start("loading the model", 0, "")
        setting = Setting(run)
        conditions = setting.conditions(options)
        work.begin({"analysis": self.name, "run": run.digest, "options": options.model_dump(exclude={"keep", "confidence", "threads"})})
        found: list[Found] = []
        left_out: dict[str, str] = {}
        for number, condition in enumerate(conditions):
            try:
                found.append(self._found(run, setting, condition, number, work))
            except LeftOut as reason:
                left_out[condition.name] = str(reason)
        if not found:
            raise UserError("attribution: nothing to estimate: " + "; ".join(f"'{name}' {why}" for name, why in left_out.items()))
        tables = attribution_tables.tables(found, options.confidence)
        files = attribution_tables.sweeps(found, tables["attribution"], options.keep)
        shown = [
            {
                "condition": f.condition, "metric": f.metric, "method": f.method, "columns": f.grid.columns, "varying": f.grid.varying,
                "examples": len(f.examples),
            }
            for f in found
        ]  # fmt: skip
        return AnalysisResult(tables, summary=attribution_tables.summary(found, tables, left_out), files=files, facts={"conditions": shown})

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import attribution_figures

        shown = [attribution_figures.Shown(**facts) for facts in about["facts"]["conditions"]]
        return attribution_figures.draw(shown, tables, about["title"])

    def _found(self, run: Run, setting: Setting, condition: Condition, number: int, work: Work) -> Found:
        """Estimate one condition on every example; what has been estimated is not estimated again after an interruption."""
        from codi_engine.plugins.analyses.attribution_estimates import Estimator
        from codi_engine.plugins.analyses.attribution_tables import exact_effects, found

        options = self.options
        metric = options.metric or ("logit_diff" if setting.data.kind == "pairs" and condition.plugin.source != "donor" else "cross_entropy")
        estimator = Estimator(setting, condition, metric, _reduce(setting, metric), options.steps if options.method == "integrated" else 0)
        examples = setting.examples[: options.limit]
        if not examples:
            raise UserError("attribution: the run has no finished cells")
        work.threads = 1  # torch computes in parallel by itself
        parts = [_One(index) for index in range(len(examples))]
        estimates = work.stream(f"attribution-{number}", parts, lambda *_: None, lambda part, _: _timed(estimator, examples[part.index]), "examples")
        partials = list(estimates)
        exact = exact_effects(run, condition, estimator.grid, metric, examples)
        return found(condition, estimator.grid, metric, options.method, examples, partials, exact, setting.exact_weights)


@dataclass(frozen=True)
class _One:
    """One example, as a part of the work."""

    index: int
    bytes: int = 1

    @property
    def key(self) -> str:
        return str(self.index)


def _timed(estimator: Any, example: Any) -> dict[str, Any]:
    """Return an example's estimates with what they cost."""
    import numpy as np

    tracer, begun = estimator.tracer, time.perf_counter()
    before = tracer.forwards, tracer.backwards
    partial = estimator.estimate(example).partial()
    cost = [tracer.forwards - before[0], tracer.backwards - before[1], time.perf_counter() - begun]
    return {**partial, "cost": np.array(cost, np.float64)}


def _reduce(setting: Setting, metric: str) -> str:
    """Return how the run's metric puts answers of several tokens together."""
    for ref in setting.experiment.metrics:
        if ref.plugin.rsplit("/", 1)[-1] == metric:
            return str(ref.options.get("reduce", "sum"))
    return "sum"
