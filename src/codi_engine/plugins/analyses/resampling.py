"""``resampling``: what putting other problems' latents in costs, step by step and problem by problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, Options
from codi_engine.plugins.analyses import stepping
from codi_engine.plugins.analyses.selection import metric_of

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work

ALL, RIGHT, WRONG = "all", "baseline_correct", "baseline_wrong"


class Rule(Options):
    """A decision taken before the data are seen: ``step`` (a number, or ``any``) must have an ``impact`` of at least so
    much, ``by`` its interval's ``lower`` bound or its ``mean``, with at least ``n`` problems ``of`` all or correct ones.
    """

    step: int | Literal["any"] = "any"
    impact: float = 0.05
    by: Literal["lower", "mean"] = "lower"
    n: int = Field(default=20, ge=1)
    of: Literal["all", "baseline_correct"] = "all"


class ResamplingOptions(stepping.StepOptions):
    """``go``: a decision rule, such as ``{step: any, impact: 0.05, by: lower, n: 20}``; default none.

    ``metric``: default ``accuracy``. ``affected``: a problem is affected where its impact exceeds this in size. ``top``:
    problems of the heatmap. ``bootstrap``, ``seed``: resamples of the problems; 0 for none. ``condition``, ``at``, ``q``,
    ``confidence``: as everywhere.
    """

    go: Rule | None = None
    affected: float = Field(default=0.0, ge=0.0)
    top: int = Field(default=20, ge=1)
    bootstrap: int = Field(default=1000, ge=0)
    seed: int = 0

    @field_validator("bootstrap")
    @classmethod
    def _enough(cls, value: int) -> int:
        if 0 < value < 100:
            raise ValueError("fewer than 100 resamples give no interval; write 0 for none")
        return value


@dataclass(frozen=True)
class Impacts:
    """Impacts of one condition: rows problem × steps × donor, positive is worse; ``right``: unedited answers (or None)."""

    condition: str
    metric: str
    cells: pd.DataFrame
    right: pd.Series | None
    donors: int


class Resampling(Analysis[ResamplingOptions]):
    """Impact of resampled latent steps: the unedited metric minus its mean over donors, per problem, then over problems.

    The problem is the unit of inference: intervals are t-intervals and percentile bootstraps of per-problem means. All problems
    and those answered right unedited are reported apart; variance is divided into within and between problems.
    """

    name = "resampling"
    Options = ResamplingOptions

    def check(self, facts: Foreseen) -> None:
        facts.need_steps(self.options.at)
        facts.need_metric(self.options.metric)
        facts.need_condition(self.options.condition)

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import resampling_tables

        impacts = self._impacts(runs[0])
        problems = resampling_tables.problem_table(impacts, self.options.affected)
        tables = {"steps": resampling_tables.step_table(impacts, problems, self.options), "problems": problems}
        if self.options.go is not None:
            tables["decision"] = resampling_tables.decide(tables["steps"], problems, self.options.go, self.options.confidence)
        facts = {"condition": impacts.condition, "metric": impacts.metric, "donors": impacts.donors}
        return AnalysisResult(tables, summary=resampling_tables.summary(tables, impacts, self.options), facts=facts)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import resampling_figures

        return resampling_figures.draw(tables, about["facts"], self.options)

    def _impacts(self, run: Run) -> Impacts:
        sets = stepping.step_conditions(run, self.name)
        known = stepping.interventions(run)
        cells = run.cells
        has_donor = {c: "donor" in cells and bool(cells.loc[cells["condition"] == c, "donor"].notna().any()) for c in sets}
        fits = {c: "" if has_donor[c] or known.get(c, {}).get("plugin") == "resample" else "takes nothing from donors" for c in sets}
        condition = stepping.chosen(self.options.condition, fits, self.name, "use the intervention resample and sweep: {step: all, donor: 10}")
        chosen = stepping.condition_cells(run, condition, self.options.at, self.name)
        metric = self._metric(run)
        effects = donor_effects(run, chosen, metric, self.name)
        right = stepping.answered_right(run, chosen, self.name)
        return Impacts(condition, metric, effects, right, int(effects.groupby(["example", "steps"], sort=False).size().max()))

    def _metric(self, run: Run) -> str:
        wanted = self.options.metric or ("accuracy" if "accuracy" in run.metrics else None)
        return metric_of(run, wanted, self.name)


def donor_effects(run: Run, cells: pd.DataFrame, metric: str, who: str) -> pd.DataFrame:
    """Return one row per problem, set of steps and donor: ``impact``, trials averaged, positive is worse.

    Raises
    ------
    UserError: the metric is undefined everywhere
    """
    import pandas as pd

    from codi_engine.plugins.analyses.effects import per_example

    both = pd.concat([stepping.unedited(run, cells, who), cells])
    axes = ["steps", "donor"] if "donor" in cells else ["steps"]
    per = per_example(both, metric, axes, None)
    per["impact"] = stepping.loss(per[["effect"]], metric)["effect"]
    if per["impact"].isna().all():
        raise UserError(f"{who}: '{metric}' is undefined for every cell; choose another metric")
    return per[["example", *axes, "impact"]]


def variance_parts(groups: Sequence[np.ndarray]) -> dict[str, Any]:
    """Return the variance within and between problems and the intraclass correlation ICC(1) (one-way ANOVA, Donner 1986).

    Parameters
    ----------
    groups: one array of impacts per problem, without NaN

    Within is the pooled variance over donors; between is (MSB − MSW) / n0, which may come out negative. Undefined (NaN,
    ``icc_note`` says why) without two problems, two donors, or any variance.
    """
    import numpy as np

    used = [np.asarray(g, float) for g in groups if len(g)]
    counts = np.array([len(g) for g in used], float)
    total, k = float(counts.sum()), len(used)
    out: dict[str, Any] = {"within": np.nan, "between": np.nan, "icc": np.nan, "icc_note": ""}
    if k < 2 or total <= k:
        return out | {"icc_note": "needs two problems and two donors"}
    means = np.array([g.mean() for g in used])
    grand = float((counts * means).sum() / total)
    within = float(sum(((g - m) ** 2).sum() for g, m in zip(used, means, strict=True)) / (total - k))
    across = float((counts * (means - grand) ** 2).sum() / (k - 1))
    n0 = (total - (counts**2).sum() / total) / (k - 1)
    out |= {"within": within, "between": (across - within) / n0}
    below = across + (n0 - 1) * within
    return out | ({"icc": (across - within) / below} if below > 1e-24 else {"icc_note": "constant: no variance at all"})
