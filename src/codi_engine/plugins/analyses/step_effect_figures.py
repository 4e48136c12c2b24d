"""The pictures of ``step_effects``: matrices of edited step × state on one colour scale, with the metric beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses import step_figures as pieces
from codi_engine.plugins.analyses.figures import INK, QUIET
from codi_engine.plugins.analyses.stepping import n_text

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.step_effects import StepEffectsOptions


def draw(tables: Mapping[str, pd.DataFrame], site: str, metric: str | None, options: StepEffectsOptions) -> dict[str, Figure]:
    """Return name → figure: each kind of effect, both side by side, and the mediated share."""
    effects = tables["effects"]
    kinds = list(dict.fromkeys(effects["effect"]))
    figures = {kind: _matrices([kind], tables, site, metric) for kind in kinds}
    if len(kinds) == 2:
        figures = {"matrix": _matrices(kinds, tables, site, metric), **figures}
        if len(tables["mediated"]):
            figures["mediated_share"] = _mediated(tables["mediated"], site, options)
    return figures


def _grid(part: pd.DataFrame, value: str) -> tuple[np.ndarray, list[int], list[str]]:
    edited, states = list(dict.fromkeys(part["edited"])), sorted(set(part["state"]))
    grid = part.pivot(index="edited", columns="state", values=value).reindex(index=edited, columns=states)
    return grid.to_numpy(float), edited, ["bot" if s < 0 else str(s) for s in states]


def _matrices(kinds: list[str], tables: Mapping[str, pd.DataFrame], site: str, metric: str | None) -> Figure:
    effects = tables["effects"]
    shown = {kind: _grid(effects[effects["effect"] == kind], "mean") for kind in kinds}
    # one scale for all, over what can be moved
    scale = pieces.scale_of(np.concatenate([grid.ravel() for grid, _, _ in shown.values()]))
    rows, columns = shown[kinds[0]][0].shape
    extra = 1.35 if metric else 0.0
    width, height = (0.58 * columns + extra + 0.75) * len(kinds) + 1.3, 0.52 * rows + 1.75
    note = f"‖edited − unedited‖ / ‖unedited‖, mean of {n_text(effects['n'])} examples; blank: exactly 0"
    figure = pieces.titled(max(width, 5.6), height, f"{' and '.join(kinds).capitalize()} effect of a step on later states ({site})", note)
    every = 2 if metric else 1
    ratios = [0.58 * columns, extra] * len(kinds) if metric else [1] * len(kinds)
    axes = pieces.panels(figure, 1, every * len(kinds), right=1.05, width_ratios=ratios, wspace=0.16)
    image: Any = None
    for number, kind in enumerate(kinds):
        grid, edited, names = shown[kind]
        ax = axes[number * every]
        image = pieces.matrix(ax, np.where(grid == 0, np.nan, grid), edited, names, scale)
        pieces.plain(ax, "state out of step", "edited step" if number == 0 else "", kind, grid=False)
        ax.spines["bottom"].set_visible(False)
        if metric:
            _metric_column(axes[number * every + 1], tables["metric"], kind, edited, metric, number)
    box = axes[(len(kinds) - 1) * every + every - 1].get_position()
    bar = figure.colorbar(image, cax=figure.add_axes((1 - 0.85 / figure.get_figwidth(), box.y0, 0.13 / figure.get_figwidth(), box.height)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, colors=QUIET)
    bar.set_label("relative distance", fontsize=7.5, color=QUIET)
    return figure


def _metric_column(ax: Any, table: pd.DataFrame, kind: str, edited: list[int], metric: str, number: int) -> None:
    """Draw the effect on the metric as horizontal bars with intervals, rows as in the matrix, one scale for all kinds."""
    part = table[table["effect"] == kind].set_index("edited").loc[edited]
    y = np.arange(len(part)) + 0.5
    ax.barh(y, part["mean"], height=0.6, color=pieces.RUST, alpha=0.85, zorder=2)
    for at, (_, row) in zip(y, part.iterrows(), strict=True):
        if np.isfinite(row["ci_low"]):
            ax.plot([row["ci_low"], row["ci_high"]], [at, at], color=INK, linewidth=1.0, zorder=3)
    limits = table[["mean", "ci_low", "ci_high"]].to_numpy(float)
    low, high = min(float(np.nanmin(limits)), 0.0), max(float(np.nanmax(limits)), 0.0)
    margin = 0.06 * (high - low) or 1.0
    ax.set_xlim(low - margin, high + margin)
    ax.set_ylim(len(part), 0)
    pieces.plain(ax, "KL (nats)" if metric == "kl" else metric.replace("_", " "), grid=False)
    ax.set_yticks([])
    ax.locator_params(axis="x", nbins=3)
    ax.axvline(0, color=QUIET, linewidth=0.8)


def _mediated(table: pd.DataFrame, site: str, options: StepEffectsOptions) -> Figure:
    grid, edited, names = _grid(table, "share")
    marks, _, _ = _grid(table.assign(mark=(~table["significant"]).astype(float)), "mark")
    note = f"1 − direct / total · dots: q ≥ {options.q:g} (BH) · {n_text(table['n'])} examples"
    figure = pieces.titled(max(0.62 * grid.shape[1] + 2.4, 5.4), 0.52 * grid.shape[0] + 1.75, f"Share mediated by later latents ({site})", note)
    (ax,) = pieces.panels(figure, 1, 1, right=0.5)
    image = pieces.matrix(ax, grid, edited, names, pieces.scale_of(grid), marks == 1)
    pieces.plain(ax, "state out of step", "edited step", grid=False)
    ax.spines["bottom"].set_visible(False)
    pieces.colourbar(figure, image, ax, "mediated share")
    return figure
