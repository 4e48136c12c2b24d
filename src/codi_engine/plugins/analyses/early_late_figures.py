"""The pictures of ``early_late``: the contrast by stratum, curves over steps by stratum, cumulative curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses import step_figures as pieces
from codi_engine.plugins.analyses.early_late import WHOLE
from codi_engine.plugins.analyses.figures import QUIET
from codi_engine.plugins.analyses.stepping import n_text

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.early_late import EarlyLateOptions


def draw(
    tables: Mapping[str, pd.DataFrame], single: str | None, halves: Sequence[Sequence[int]] | None, metric: str, options: EarlyLateOptions
) -> dict[str, Figure]:
    """Return name → figure."""
    figures: dict[str, Figure] = {}
    if single is not None and halves is not None:
        figures["contrast_by_stratum"] = _contrast(tables["contrast"], single, halves, metric, options)
        figures["steps_by_stratum"] = _curves(tables["steps"], f"{single}: loss from editing one step", "latent step", metric, options)
    for condition, part in tables["cumulative"].groupby("condition", sort=False) if "cumulative" in tables else []:
        title = f"{condition}: loss from editing more and more steps"
        name = "cumulative" if tables["cumulative"]["condition"].nunique() == 1 else f"cumulative_{condition}"
        figures[f"{name}_curve"] = _curves(part, title, "edited steps", metric, options)
    return figures


def _contrast(table: pd.DataFrame, single: str, halves: Sequence[Sequence[int]], metric: str, options: EarlyLateOptions) -> Figure:
    early, late = (", ".join(map(str, half)) for half in halves)
    note = f"above 0: late steps matter more · {options.confidence:.0%} intervals over examples · pale: q ≥ {options.q:g} (BH)"
    figure = pieces.titled(max(0.95 * len(table) + 2.2, 6.4), 3.9, f"{single}: late ({late}) minus early ({early}) steps", note)
    (ax,) = pieces.panels(figure, 1, 1, bottom=0.75)
    pieces.bars(ax, [f"{row['stratum']}\nn = {row['n']}" for _, row in table.iterrows()], table)
    pieces.plain(ax, options.by or "", f"difference of losses ({metric})")
    return figure


def _curves(table: pd.DataFrame, title: str, x: str, metric: str, options: EarlyLateOptions) -> Figure:
    note = f"{options.confidence:.0%} intervals over examples"
    figure = pieces.titled(6.6, 3.9, title, note)
    (ax,) = pieces.panels(figure, 1, 1, right=1.55 if options.by else 0.3)
    names: list[Any] = list(dict.fromkeys(table["steps"]))
    strata = [s for s in dict.fromkeys(table["stratum"]) if s != WHOLE] or [WHOLE]
    for number, stratum in enumerate(strata[: len(pieces.HUES)]):
        part = table[table["stratum"] == stratum]
        shift = 0.09 * (number - (min(len(strata), len(pieces.HUES)) - 1) / 2)
        pieces.whiskers(ax, [i + shift for i in range(len(part))], part, pieces.HUES[number], f"{stratum} ({n_text(part['n'])})")
    ax.axhline(0, color=QUIET, linewidth=0.8)
    long = max(len(n) for n in names) > 3
    shown = [f"+{n.rpartition('+')[2]}" if long and "+" in n else n for n in names]
    ax.set_xticks(range(len(names)), shown)
    pieces.plain(ax, x, f"loss ({metric})")
    if options.by:
        more = f" (first {len(pieces.HUES)} of {len(strata)})" if len(strata) > len(pieces.HUES) else ""
        ax.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=f"{options.by}{more}", title_fontsize=8)
    return figure
