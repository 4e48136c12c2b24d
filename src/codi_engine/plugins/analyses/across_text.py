"""What ``across`` says in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from codi_engine.plugins.analyses import effects
from codi_engine.plugins.analyses.console import condition_grids

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.across_tables import Series
    from codi_engine.plugins.analyses.options import ImportanceOptions

SHOWN = 12  # checkpoints that the console lists


def summary(series: Series, tables: Mapping[str, pd.DataFrame], options: ImportanceOptions) -> str:
    """Return the accuracies, the grid of changes, the largest ones, and how many are significant."""
    first, last = series.labels[0], series.labels[-1]
    lines = [f"{len(series.labels)} checkpoints: {_listed(series.labels)}", *_accuracies(tables["baseline"], series)]
    if "trend" not in tables:
        return "\n".join([*lines, "no intervention: baselines only"])
    trend = tables["trend"]
    if trend.empty:
        return "\n".join([*lines, "no place is in more than one checkpoint", *series.notes])
    tested = trend[trend["p"].notna()]
    shown = trend.rename(columns={"difference": "mean"})
    if series.relative:
        shown = shown.assign(depth=shown["depth"].round(2)).sort_values("depth", ascending=False, kind="stable")
    lines += ["", *condition_grids(shown, series.shared, f"change of {series.metric} from {first} to {last}"), ""]
    lines += _largest(tested, series)
    low, high = (int(tested["n"].min()), int(tested["n"].max())) if len(tested) else (0, 0)
    n = f"n = {low}" if low == high else f"n = {low}–{high}"
    changed = int(trend["significant"].sum())
    lines.append(f"{changed} of {len(tested)} places changed from {first} to {last} (q < {options.q:g}, {options.correction.upper()}; {n} examples)")
    if len(tested) < len(trend):
        lines.append(f"{len(trend) - len(tested)} places could not be compared: {trend.loc[trend['p'].isna(), 'note'].iloc[0]}")
    if len(tested) and tested["n"].median() < 20 and tested["detectable"].notna().any():
        lines.append(f"few examples: changes smaller than about {tested['detectable'].median():.2g} cannot be told from none (80 % power)")
    return "\n".join(lines + series.notes + _about_rho(series))


def _listed(labels: list[str]) -> str:
    return ", ".join(labels) if len(labels) <= SHOWN else f"{', '.join(labels[: SHOWN // 2])}, … {labels[-1]}"


def _accuracies(table: pd.DataFrame, series: Series) -> list[str]:
    """Return the unedited accuracy of each checkpoint, one line each."""
    if table.empty:
        return []
    lines, width = ["unedited accuracy:"], max(map(len, series.labels))
    shown = series.labels if len(series.labels) <= SHOWN else [*series.labels[: SHOWN // 2], series.labels[-1]]
    for label in shown:
        parts = [
            f"{'' if row['variant'] == 'main' else row['variant'] + ' '}{row['accuracy']:.0%} [{row['ci_low']:.0%}, {row['ci_high']:.0%}] (n = {row['n']})"
            for _, row in table[table["checkpoint"] == label].iterrows()
        ]
        lines.append(f"  {label:<{width}}  {', '.join(parts)}")
    return lines


def _largest(tested: pd.DataFrame, series: Series) -> list[str]:
    order = tested["difference"].abs().sort_values(ascending=False, kind="stable").index[:3]
    if not len(order):
        return []
    lines = ["largest changes:"]
    for _, row in tested.loc[order].iterrows():
        rho = "" if np.isnan(row["rho"]) else f", rho {row['rho']:+.2f}".replace("-", "−")
        place = effects.place_name(row.map(lambda v: round(v, 2) if isinstance(v, float) else v), series.shared)
        lines.append(f"  {place}: {row['first']:+.3g} → {row['last']:+.3g}, change {row['difference']:+.3g}{effects.interval_text(row)}{rho}")
    return lines


def _about_rho(series: Series) -> list[str]:
    if len(series.labels) < 3:
        return []
    if series.numbers is None:
        return ["the labels are no numbers: no trend over checkpoints"]
    return [f"rho: Spearman's of the mean effect with the labels' numbers, over {len(series.labels)} checkpoints; it is not tested"]
