"""``compare_runs``: two sweeps over the same axes, place by place, and how far they agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, Options

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.sides import Side

SHOWN = 12  # places that the console lists


class CompareOptions(Options):
    """``metric`` of both sides, or ``metrics``: of the first and of the second (default: the first both have of
    normalized_effect, kl, logit_diff …). ``conditions``: [a, b], a name or ``run-index:name``; needed where a run has several.

    ``table``: CSV or JSON of published numbers instead of a second run, with columns called like the axes; ``column``: the
    one with the numbers (default: the first numeric one). ``axes``: what makes a place (default: all that both sides have).
    ``bootstrap``: resamples of the examples; 0 for none. ``seed``: of these. ``confidence``: of intervals.
    """

    metric: str | None = None
    metrics: list[str] | None = Field(default=None, min_length=2, max_length=2)
    conditions: list[str] | None = Field(default=None, min_length=1, max_length=2)
    table: str | None = None
    column: str | None = None
    axes: list[str] | None = Field(default=None, min_length=1)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    bootstrap: int = Field(default=2000, ge=0)
    seed: int = 0

    @model_validator(mode="after")
    def _one_way(self) -> CompareOptions:
        if self.metric is not None and self.metrics is not None:
            raise ValueError("give `metric` for both sides or `metrics` for one each, not both")
        if self.table is not None and self.metrics is not None:
            raise ValueError("`metrics` names two; beside a table write `metric` for the run and `column` for the table")
        if self.table is None and self.column is not None:
            raise ValueError("`column` belongs to a table; add `table`")
        return self


class Compare(Analysis[CompareOptions]):
    """How far two sweeps agree on which places matter: effects side by side and their correlation over places.

    Compares two runs, two conditions of one run, or a run with a table of published numbers. The unit of inference of an
    effect is the example; r is given with the places as a sample (Fisher's z, t) and with the examples as one (bootstrap).
    """

    name = "compare_runs"
    Options = CompareOptions
    takes = "many"

    def check(self, facts: Foreseen) -> None:
        options = self.options
        if facts.runs > 1:
            return  # conditions and metrics may be the other run's
        for metric in {options.metric, *(options.metrics or ())}:
            facts.need_metric(metric)
        for name in options.conditions or ():
            facts.need_condition(name.partition(":")[2] or name, "conditions")
        if options.table is not None:
            from pathlib import Path

            if not Path(options.table).is_file():
                raise UserError(f"table: there is no file '{options.table}'")
        elif options.conditions is None and len(facts.conditions) != 2 and not (options.metrics and len(facts.conditions) == 1):
            has = ", ".join(facts.conditions) or "none"
            raise UserError(f"one run has two sides only by conditions: [a, b], table: FILE, or two conditions in all; it has {has}")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import association
        from codi_engine.plugins.analyses.sides import place_table

        a, b, axes = self._sides(runs)
        places = place_table(a, b, axes)
        compared = places[places["compared"]]
        x, y = compared["effect_a"].to_numpy(float), compared["effect_b"].to_numpy(float)
        names = (f"{a.name} ({a.metric})", f"{b.name} ({b.metric})")
        table = association.correlation_table(x, y, names, self.options.confidence, self._draws(a, b, compared, axes))
        places["residual"] = _residuals(places, x, y)
        tables = {"places": places, "correlation": table, "sides": _side_table(a, b, _keys(compared, axes))}
        return AnalysisResult(tables, summary=_summary(tables, axes, a, b, self.options), facts={"axes": list(axes)})

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import compare_figures

        if not tables["places"]["compared"].any():
            return {}
        a, b = (compare_figures.Shown(row["name"], row["metric"], row["examples"] == 0) for _, row in tables["sides"].iterrows())
        picture = compare_figures.scatter(tables["places"], tables["correlation"], about["facts"]["axes"], a, b, self.options.confidence)
        return {"compare": picture}

    def _sides(self, runs: Sequence[Run]) -> tuple[Side, Side, list[str]]:
        from codi_engine.plugins.analyses import sides
        from codi_engine.plugins.analyses.published import read_published

        options = self.options
        wanted: list[str | None] = [*options.metrics] if options.metrics else [options.metric] * 2
        picks = sides.pick_sides(runs, options.conditions, wanted, options.table is not None)
        names = sides.side_names(picks, options.table)
        first = picks[0].axes()
        if options.table is not None:
            published = read_published(options.table, options.column, first, self.name)
            axes = self._axes(first, {a: list(published.frame[a].unique()) for a in published.axes}, names)
            return sides.side_of_run(picks[0], names[0], axes, options.confidence), sides.side_of_table(published, axes), axes
        axes = self._axes(first, picks[1].axes(), names)
        a, b = (sides.side_of_run(pick, name, axes, options.confidence) for pick, name in zip(picks, names, strict=True))
        return a, b, axes

    def _axes(self, first: dict[str, list[str]], second: dict[str, list[str]], names: Sequence[str]) -> list[str]:
        from codi_engine.plugins.analyses.sides import common_axes

        common = common_axes(first, second, names)
        if self.options.axes is None:
            return common
        both = [a for a in first if a in second]
        for axis in self.options.axes:
            if axis not in both:
                raise UserError(f"{self.name}: axes: '{axis}' is not an axis of both sides; these are {', '.join(both)}")
        return list(dict.fromkeys(self.options.axes))

    def _draws(self, a: Side, b: Side, compared: pd.DataFrame, axes: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the places' means in resamples of the examples; None where there is nothing to draw."""
        import numpy as np

        from codi_engine.core.rollout.sampling import generator
        from codi_engine.plugins.analyses.association import resampled_means, strata
        from codi_engine.plugins.analyses.sides import examples_in_common

        keys = _keys(compared, axes)
        first, second = a.values(keys), b.values(keys)
        groups = strata([] if a.published else list(a.examples.index), [] if b.published else list(b.examples.index), examples_in_common(a, b)[0])
        count = self.options.bootstrap
        if not count or len(keys) < 3 or max((len(g) for g in groups), default=0) < 2:
            return None
        drawn = resampled_means(first, second, groups, count, [generator(self.name, self.options.seed, i) for i in range(len(groups))])
        return (
            np.broadcast_to(first, drawn[0].shape) if a.published else drawn[0],
            np.broadcast_to(second, drawn[1].shape) if b.published else drawn[1],
        )


def _residuals(places: pd.DataFrame, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return b minus the least-squares line of b on a; NaN where there is no line."""
    import numpy as np

    from codi_engine.plugins.analyses.association import constant

    out = np.full(len(places), np.nan)
    if len(x) >= 3 and not constant(x):
        slope, level = np.polyfit(x, y, 1)
        out[places["compared"].to_numpy(bool)] = y - level - slope * x
    return out


def _keys(places: pd.DataFrame, axes: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(map(str, row)) for row in places[list(axes)].itertuples(index=False)]


def _side_table(a: Side, b: Side, keys: list[tuple[str, ...]]) -> pd.DataFrame:
    import numpy as np
    import pandas as pd

    from codi_engine.plugins.analyses.association import reliability

    rows = [
        {
            "side": letter, "name": side.name, "source": side.source, "metric": side.metric, "examples": len(side.examples),
            "places": len(side.places), "averaged": ", ".join(side.averaged),
            "reliability": np.nan if side.published or not keys else reliability(side.values(keys)),
        }
        for letter, side in (("a", a), ("b", b))
    ]  # fmt: skip
    return pd.DataFrame(rows)


# --------------------------------------------------------------------------------------------- console


def _summary(tables: dict[str, pd.DataFrame], axes: Sequence[str], a: Side, b: Side, options: CompareOptions) -> str:
    from codi_engine.plugins.analyses.sides import examples_in_common

    places = tables["places"]
    compared = places[places["compared"]]
    lines = [
        f"a: {a.name}, {a.metric}",
        f"b: {b.name}, {b.metric}",
        f"{len(compared)} place{'s' if len(compared) != 1 else ''} by {' × '.join(axes)}; {examples_in_common(a, b)[1]}",
    ]
    lines += [f"{side.name}: averaged over {', '.join(side.averaged)}" for side in (a, b) if side.averaged]
    lines += ["", *_place_lines(compared, axes), "", *_correlation_lines(tables["correlation"], options.confidence)]
    lines += _noise_lines(tables, a, b)
    left = places[~places["compared"]]
    if len(left):
        lines.append(f"left out: {len(left)} place{'s' if len(left) != 1 else ''} that one side lacks")
        lines += [f"  {line}" for line in _left_out(left, axes)]
    return "\n".join(lines)


def _place_lines(compared: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """List all places, or those farthest from the line where there are many."""
    from codi_engine.plugins.analyses.sides import label_of

    shown, head = compared, "effect [interval] of a and b"
    if len(compared) > SHOWN:
        order = compared["residual"].abs().sort_values(ascending=False, kind="stable").index
        shown, head = compared.loc[order[: SHOWN // 2]], "farthest from the line: a and b"
    names = [label_of(row, axes) for _, row in shown.iterrows()]
    width = max([len(n) for n in names], default=0)
    rows = [(_effect(row, "a"), _effect(row, "b")) for _, row in shown.iterrows()]
    first = max([len(left) for left, _ in rows], default=0)
    return [f"{head}:", *(f"  {n:<{width}}  {left:<{first}}  {right}" for n, (left, right) in zip(names, rows, strict=True))] if names else []


def _effect(row: pd.Series, letter: str) -> str:
    low, high = row[f"ci_low_{letter}"], row[f"ci_high_{letter}"]
    return f"{row[f'effect_{letter}']:+.3g}" + (f" [{low:+.2g}, {high:+.2g}]" if low == low and high == high else "")


def _correlation_lines(table: pd.DataFrame, confidence: float) -> list[str]:
    from codi_engine.plugins.analyses.association import interval, needed, rounded

    first, n = table.iloc[0], int(table["n"].iloc[0])
    if first["r"] != first["r"]:
        return [str(first["note"])]
    lines = []
    for method, word in (("pearson", "Pearson r"), ("spearman", "Spearman ρ")):
        part = table[table["method"] == method]
        spans = [f"{interval(row)} {_over(row)}" for _, row in part.iterrows() if row["ci_low"] == row["ci_low"]]
        lines.append(
            f"{word} = {rounded(part['r'].iloc[0])}"
            + "".join(f" {s}," for s in spans)
            + f" p = {part['p'].iloc[0]:.2g} ({part['p_method'].iloc[0].split(':')[0].split(',')[0]})"
        )
    notes = [str(note) for note in table["note"].unique() if note]
    alpha = f"{1 - confidence:.3g}".removeprefix("0")
    lines.append(f"with n = {n} places |r| must exceed {needed(n, 1 - confidence):.2f} to be told from none (p < {alpha})")
    lines.append("p and the interval over places take the places for independent draws")
    return lines + notes


def _noise_lines(tables: dict[str, pd.DataFrame], a: Side, b: Side) -> list[str]:
    """Say what noise does to r, and how much of it there is."""
    from codi_engine.plugins.analyses.sides import examples_in_common

    if tables["correlation"]["r"].isna().all():
        return []
    known = [f"{row['side']} {row['reliability']:.2f}" for _, row in tables["sides"].iterrows() if row["reliability"] == row["reliability"]]
    lines = [f"reliability over examples: {', '.join(known)}; the rest to 1 is noise, which pulls r towards 0"] if known else []
    if len(known) == 2 and examples_in_common(a, b)[0] and set(a.examples.index) & set(b.examples.index):
        lines.append("noise that the same examples bring to both sides can move r either way")
    return lines


def _over(row: pd.Series) -> str:
    return "over examples" if row["ci_method"].startswith("bootstrap") else "over places"


def _left_out(left: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    from codi_engine.plugins.analyses.sides import label_of

    names = [f"{label_of(row, axes)}: {row['note']}" for _, row in left.iterrows()]
    return names[:SHOWN] + ([f"and {len(names) - SHOWN} more, in the table"] if len(names) > SHOWN else [])
