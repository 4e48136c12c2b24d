"""``importance``: the effect of each place of each condition, with n, interval, effect size and correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Analysis, AnalysisResult
from codi_engine.plugins.analyses.options import ImportanceOptions
from codi_engine.plugins.analyses.selection import metric_of, place_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work


class Importance(Analysis[ImportanceOptions]):
    """Which layer, step or position matters: effects with intervals, one test per place, corrected over all of them.

    The unit of inference is the example: its trials and donors are averaged first. Tests are one-sample t-tests of the
    per-example effects against no effect. Controls (``patch~random`` …) are no conditions of interest: they stand in a table and
    a figure of their own, paired with the effect on the same examples.
    """

    name = "importance"
    usual_seconds = (3.2, 1.5e-4)
    Options = ImportanceOptions

    def check(self, facts: Foreseen) -> None:
        if facts.conditions:  # a baseline alone has its accuracy
            facts.need_metric(self.options.metric)
            facts.need_field(self.options.by, "by")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        import numpy as np

        from codi_engine.plugins.analyses import controls, effects

        run = runs[0]
        cells, has_controls = controls.split(run.cells)
        edited = cells[cells["condition"] != "baseline"]
        if edited.empty:
            return AnalysisResult({"baseline": effects.baseline_table(cells, self.options)}, summary=_baseline_only(cells, self.options))
        metric = metric_of(run, self.options.metric, self.name)
        self._check_by(cells, run)
        axes = place_axes(run)
        per_example = effects.per_example(cells, metric, axes, self.options.by)
        if not np.isfinite(per_example["effect"].to_numpy(float)).any():
            raise UserError(f"importance: the effect on '{metric}' is undefined (NaN) or infinite in every cell; choose another with metric:")
        table = effects.effect_table(per_example, axes, self.options)
        tables = {
            "effects": table,
            "top": effects.top(table, self.options.top),
            "examples": effects.example_table(per_example, axes),
            "by_example": effects.by_example(per_example, axes),
            "baseline": effects.baseline_table(cells, self.options),
        }
        if has_controls:
            tables["controls"] = controls.control_table(run.cells, metric, axes, self.options)
        facts = {"metric": metric, "axes": list(axes)}
        return AnalysisResult(tables, summary=_summary(tables, axes, metric, run.cells, self.options), facts=facts)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import control_figures, figures

        if "effects" not in tables:
            return {}
        axes, metric, title = about["facts"]["axes"], about["facts"]["metric"], about["title"]
        drawn = figures.draw(tables, axes, metric, self.options, title)
        if "controls" in tables:
            drawn["beside_controls"] = control_figures.draw(tables["controls"], axes, metric, self.options, title)
        return drawn

    def _check_by(self, cells: pd.DataFrame, run: Run) -> None:
        by = self.options.by
        if by is not None and by not in cells:
            fields = [c for c in cells if c not in (*run.axes, *run.metrics, "key", "text", "answer", "answer_rule")]
            raise UserError(f"importance: by: the data has no field '{by}'; {nearest(by, map(str, fields))}")


def _baseline_only(cells: pd.DataFrame, options: ImportanceOptions) -> str:
    from codi_engine.plugins.analyses import effects

    return "No intervention: baseline only.\n" + effects.baseline_line(effects.baseline_table(cells, options))


def _summary(tables: dict[str, Any], axes: Sequence[str], metric: str, cells: pd.DataFrame, options: ImportanceOptions) -> str:
    from codi_engine.plugins.analyses import controls, effects
    from codi_engine.plugins.analyses.console import condition_grids

    table = tables["effects"]
    lines = [*condition_grids(table, axes, metric), ""]
    best = tables["top"].iloc[:3]
    names = [f"{_place(row, axes, options)} {row['mean']:+.3g}{effects.interval_text(row)}" for _, row in best.iterrows()]
    lines.append("strongest: " + ";  ".join(names))
    tested = int(table["p"].notna().sum())
    found = f"{int(table['significant'].sum())} of {tested} places differ from no effect"
    lines.append(f"{found} (q < {options.q:g}, {options.correction.upper()}; {effects.count_text(table)} examples)")
    if "controls" in tables:
        lines += controls.lines(tables["controls"], table, axes, options)
    if unusual := controls.unusual_line(cells):
        lines.append(unusual)
    line = effects.baseline_line(tables["baseline"])
    if line:
        lines.append(line)
    least = best["detectable"].dropna()
    if table["n"].median() < 20 and (least > 0).any():
        lines.append(f"few examples: at the strongest places effects below about {least[least > 0].iloc[0]:.2g} cannot be told from none (80 % power)")
    return "\n".join(lines)


def _place(row: pd.Series, axes: Sequence[str], options: ImportanceOptions) -> str:
    from codi_engine.plugins.analyses.effects import place_name

    return place_name(row, axes) + (f", {options.by} {row['by']}," if "by" in row else "")
