"""``select_features``: which features change the outcome when they are changed, written down for the next run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Analysis, AnalysisResult, Options
from codi_engine.plugins.metrics.outcome import OutcomeOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.contrasts import Grids

#: axes that may name features, in the order tried
_AXES = ("feature", "target")
FILE = "features.csv"


class SelectFeaturesOptions(Options):
    """``metrics``, ``outcome``, ``pairs``, ``unit``, ``q``, ``correction``, ``confidence``: as of ``proportions``.

    ``axis``: which axis names features (default: ``feature``, else ``target``). ``opposite``: ``[a, b]``, conditions that must
    both be significant with opposite signs. ``min_effect``: least size of the difference. ``top``: at most so many features.
    ``value_by``: a field of the data; the mean of each feature's own captured code in the unedited cells of each of its values
    becomes a column (default: one column ``mean_code``). ``site``: which captured codes (default: all whose labels, or sparse
    numbers and layer, are those of the features).
    """

    metrics: list[str] | None = Field(default=None, min_length=1)
    outcome: OutcomeOptions | None = None
    pairs: list[list[str]] | None = None
    unit: Literal["auto", "example", "trial"] = "auto"
    axis: str | None = None
    opposite: list[str] | None = Field(default=None, min_length=2, max_length=2)
    min_effect: float = Field(default=0.0, ge=0.0)
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni"] = "bh"
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    top: int | None = Field(default=None, ge=1)
    value_by: str | None = None
    site: str | None = None


class SelectFeatures(Analysis[SelectFeaturesOptions]):
    """Causal features: those whose edit changes the outcome, one correction over all of them, as a file for the next run.

    Tests are those of ``proportions``. ``features.csv`` has one row per selected feature, the most certain first: feature,
    layer, id, the metric and condition that change most, effect with interval, p, q, and the mean of its own code in unedited
    cells. With ``opposite`` the p of a feature is the larger of the two, so that both conditions must have an effect.
    """

    name = "select_features"
    Options = SelectFeaturesOptions

    def check(self, facts: Foreseen) -> None:
        options = self.options
        facts.need_pairs(options.pairs)
        known = facts.all_axes
        if options.axis is not None and options.axis not in known:
            raise UserError(f"axis: '{options.axis}' is no axis of the run; {nearest(options.axis, known)}")
        if options.axis is None and not any(a in known for a in _AXES):
            raise UserError(f"the run has no axis 'feature' or 'target'; it has {', '.join(known) or 'none'}. Name one with `axis`")
        for name in options.opposite or ():
            facts.need_condition(name, "opposite")
        if options.site is not None or options.value_by is not None:
            facts.need_capture(options.site, "{sae: …}", exact=True)
        facts.need_field(options.value_by, "value_by")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import contrasts
        from codi_engine.plugins.analyses.contrast_tables import test_table
        from codi_engine.plugins.analyses.feature_values import mean_codes

        run, options = runs[0], self.options
        more = contrasts.stored_outcomes(run, options.outcome, self.name) if options.outcome else None
        found = contrasts.grids(run, options.metrics, False, self.name, more)
        axis = self._axis(found)
        pairs = found.arrangement.pairs(options.pairs, self.name)
        unit = contrasts.unit_of(found, options.unit)
        contrasts.check_unit(found, unit, self.name)
        tests, least = test_table(found, pairs, unit, options.confidence, options.correction, options.q)
        tests = _named(tests[tests[axis].notna() & (tests[axis].astype(str) != "None")], axis, found)
        candidates = self._candidates(tests)
        chosen = _chosen(candidates, options)
        values = mean_codes(found, chosen, options.value_by, options.site, self.name)
        table = _final(chosen, options.opposite).join(values)
        summary = self._summary(found, candidates, table, unit, least, list(values.columns))
        return AnalysisResult({"features": table, "tests": tests}, summary=summary, files={FILE: table.to_csv(index=False)})

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import share_figures

        candidates = self._candidates(tables["tests"])
        return share_figures.features(candidates, _chosen(candidates, self.options), self.options)

    def _candidates(self, tests: pd.DataFrame) -> pd.DataFrame:
        """Return the tests that features are chosen by: all, or one for each two conditions of opposite effects."""
        return tests if self.options.opposite is None else _opposite(tests, self.options.opposite, self.options, self.name)

    def _axis(self, found: Grids) -> str:
        axes, wanted = found.arrangement.axes, self.options.axis
        if wanted is not None and wanted not in axes:
            raise UserError(f"{self.name}: axis: '{wanted}' is no axis of the run; {nearest(wanted, axes)}")
        axis = wanted or next((a for a in _AXES if a in axes), None)
        if axis is None:
            raise UserError(f"{self.name}: the run has no axis 'feature' or 'target'; it has {', '.join(axes) or 'none'}. Name one with `axis`")
        return axis

    def _summary(self, found: Grids, candidates: pd.DataFrame, table: pd.DataFrame, unit: str, least: float, values: list[str]) -> str:
        from codi_engine.plugins.analyses.proportions import power_lines, statement, units

        options = self.options
        family = int(candidates["tested"].sum())
        rule = f"q < {options.q:g}, {options.correction.upper()} over {family:,} tests" + (f", |effect| ≥ {options.min_effect:g}" if options.min_effect else "")
        if options.opposite:
            rule += f", {' and '.join(options.opposite)} both, with opposite signs"
        lines = [f"{len(table):,} of {candidates['feature'].nunique():,} features change an outcome ({rule})"]
        kinds = ", ".join(dict.fromkeys(f"{t} tests" for t in candidates["test"]))
        lines += [f"{kinds} on {units(found, unit)}", *statement(found, unit)]
        for _, row in table.head(5).iterrows():
            span = f"[{row['low']:+.2f}, {row['high']:+.2f}]"
            lines.append(f"  {row['feature']}: {row['metric']} {row['effect']:+.2f} {span}, q = {row['q']:.2g} ({row['condition']})")
        if values:
            lacking = int(table[values].isna().all(axis=1).sum())
            rest = f" (not captured of {lacking:,} of them)" if lacking else ""
            lines.append(f"values of the features' own codes: {', '.join(values)}{rest}")
        elif len(table):
            lines.append("no captured codes of these features: the file has no values for a patch; add capture: or name the site")
        if len(table):
            lines.append(f"for the next run: feature: {{from: {found.run.path}/results/{self.name}/{FILE}}}")
        return "\n".join([*lines, *power_lines(candidates, family, least, options.q, options.confidence)])


def _named(tests: pd.DataFrame, axis: str, found: Grids) -> pd.DataFrame:
    """Add feature, layer and id to every test."""
    import pandas as pd

    from codi_engine.core.runs.arrange import layer_of

    labels = tests[axis].astype(str)
    layers = {label: layer_of(label) for label in labels.unique()}
    layer = labels.map(layers)
    if "layer" in tests and axis != "layer":
        layer = tests["layer"].where(tests["layer"].notna(), layer)
    ids = {label: re.search(r"(\d+)$", label) for label in labels.unique()}
    out = tests.assign(feature=labels, id=pd.array([int(m[1]) if (m := ids[v]) else None for v in labels], dtype="Int64"))
    out["layer"] = pd.array([None if pd.isna(v) else int(v) for v in layer], dtype="Int64")
    return out


def _opposite(tests: pd.DataFrame, names: Sequence[str], options: SelectFeaturesOptions, where: str) -> pd.DataFrame:
    """Return one row per target and metric: both conditions must have an effect, of opposite signs; p is the larger one.

    That both have an effect is refused unless each of its halves is (intersection–union, Berger 1982), so nothing is lost by
    taking the larger p, and the correction runs over targets × metrics.
    """
    import numpy as np
    import pandas as pd

    from codi_engine.kernels.multiple import adjust

    for name in names:
        if name not in set(tests["condition"]):
            raise UserError(f"{where}: opposite: '{name}' is not compared with anything; {nearest(name, set(tests['condition']))}")
    keys = ["target", "metric", "against"]
    first, second = (tests[tests["condition"] == name].set_index(keys) for name in names)
    both = first.index.intersection(second.index, sort=False)
    first, second = first.loc[both], second.loc[both]
    signs = np.sign(first["difference"].to_numpy()) * np.sign(second["difference"].to_numpy())
    weaker = (first["difference"].abs() < second["difference"].abs()).to_numpy()
    out = pd.concat([first, second]).iloc[np.arange(len(both)) + len(both) * weaker].reset_index()
    out["p"] = np.where(signs < 0, np.fmax(first["p"], second["p"]), 1.0)
    out["tested"] = (first["tested"] | second["tested"]).to_numpy()
    out["q"] = adjust(np.where(out["tested"], out["p"], np.nan), options.correction)
    out[f"effect_{names[0]}"], out[f"effect_{names[1]}"] = first["difference"].to_numpy(), second["difference"].to_numpy()
    out["least_effect"] = np.minimum(first["difference"].abs().to_numpy(), second["difference"].abs().to_numpy())
    out["significant"] = (out["q"] < options.q).to_numpy()
    return out


def _chosen(tests: pd.DataFrame, options: SelectFeaturesOptions) -> pd.DataFrame:
    """Return the best test of every selected feature, the most certain first."""
    size = tests["least_effect"] if "least_effect" in tests else tests["difference"].abs()
    part = tests[tests["significant"] & (size >= options.min_effect)].assign(size_=lambda t: -t["effect_size"].abs())
    part = part.sort_values(["q", "p", "size_", "feature"], kind="stable").drop_duplicates("feature")
    return part.head(options.top or len(part)).drop(columns="size_").reset_index(drop=True)


def _final(chosen: pd.DataFrame, opposite: Sequence[str] | None) -> pd.DataFrame:
    names = {"difference": "effect", "ci_low": "low", "ci_high": "high"}
    columns: list[Any] = ["feature", "layer", "id", "metric", "condition", "effect", "low", "high", "p", "q", "n"]
    return chosen.rename(columns=names)[columns + [f"effect_{name}" for name in opposite or ()]]
