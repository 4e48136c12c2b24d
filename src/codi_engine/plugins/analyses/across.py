"""``across``: the same experiment over checkpoints of a model, or over models: effects, their change, their trend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, Options

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work


class AcrossOptions(Options):
    """``metric``: which one (default: the first that all runs have of normalized_effect, kl, logit_diff …).

    ``correction`` and ``q``: of the family of all checkpoints' places, and of the family of all places' changes.
    ``top``: places drawn as lines.
    ``confidence``: of intervals.
    """

    metric: str | None = None
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni"] = "bh"
    top: int = Field(default=6, ge=1, le=8)


class Across(Analysis[AcrossOptions]):
    """How effects change over checkpoints, or between models compared by relative depth.

    The unit of inference is the example: the change from the first to the last checkpoint is tested place by place over the
    examples that both have, corrected over all places. Rho over checkpoints describes the trend of the means.
    """

    name = "across"
    Options = AcrossOptions
    takes = "many"

    def check(self, facts: Foreseen) -> None:
        if facts.runs < 2:
            raise UserError("needs the runs of two or more checkpoints; give runs/<name> of an experiment with checkpoints:, or several runs")
        if self.options.metric is not None:
            facts.need_metric(self.options.metric)

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import across_tables, across_text
        from codi_engine.plugins.analyses.options import ImportanceOptions

        if len(runs) < 2:
            raise UserError(f"{self.name}: needs the runs of two or more checkpoints; give runs/<name> of an experiment with checkpoints:, or several runs")
        given = self.options
        options = ImportanceOptions(metric=given.metric, q=given.q, confidence=given.confidence, correction=given.correction)
        series = across_tables.series_of(runs, options)
        tables = {"checkpoints": across_tables.member_table(series), "baseline": across_tables.baselines(series, options)}
        if series.metric:
            tables["effects"] = across_tables.effects_of(series, options)
            tables["trend"] = across_tables.trend_table(series, options)
            if series.relative and series.per["depth"].notna().any():
                tables["depth"] = across_tables.depth_table(series, options.confidence)
        facts = {
            "labels": series.labels, "metric": series.metric, "axes": series.axes, "layers": series.layers, "relative": series.relative,
            "numbers": series.numbers is not None, "name": str(series.runs[0].experiment.get("name", "")).removesuffix(f"-{series.labels[0]}"),
        }  # fmt: skip
        return AnalysisResult(tables, summary=across_text.summary(series, tables, options), facts=facts)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import across_figures

        return across_figures.draw(across_figures.Shown(**about["facts"]), tables, self.options)
