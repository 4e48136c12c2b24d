"""The pictures of ``resampling``: impacts, the most affected problems, and how impacts are spread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses import step_figures as pieces
from codi_engine.plugins.analyses.figures import INK, tick
from codi_engine.plugins.analyses.resampling import ALL, RIGHT
from codi_engine.plugins.analyses.stepping import n_text

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.resampling import ResamplingOptions


def draw(tables: Mapping[str, pd.DataFrame], facts: Mapping[str, Any], options: ResamplingOptions) -> dict[str, Figure]:
    """Return name → figure."""
    steps, problems = tables["steps"], tables["problems"]
    return {
        "impact": _bars(steps, facts, options),
        "most_affected": _heatmap(problems, facts, options),
        "spread": _histograms(problems, facts),
    }


def _bars(steps: pd.DataFrame, facts: Mapping[str, Any], options: ResamplingOptions) -> Figure:
    whole, right = steps[steps["subset"] == ALL], steps[steps["subset"] == RIGHT]
    both = len(right) > 0
    note = f"{n_text(whole['n'])} problems, up to {facts['donors']} donors · whiskers: {options.confidence:.0%} intervals · pale: q ≥ {options.q:g} (BH)"
    figure = pieces.titled(max(0.85 * len(whole) + 2.0, 6.6), 3.9, f"{facts['condition']}: {facts['metric']} lost per step", note)
    (ax,) = pieces.panels(figure, 1, 1)
    names = [str(s) for s in whole["step"]]
    width = 0.38 if both else 0.68
    pieces.bars(ax, names, whole, pieces.BLUE, -0.2 if both else 0.0, width, f"all problems ({n_text(whole['n'])})")
    if both:
        pieces.bars(ax, names, right, pieces.RUST, 0.2, width, f"answered right unedited ({n_text(right['n'])})")
        pieces.key(ax, loc="best")
    if options.go is not None:
        ax.axhline(options.go.impact, color=INK, linewidth=0.9, linestyle="--")
    pieces.plain(ax, "latent step", f"impact ({facts['metric']})")
    return figure


def _heatmap(problems: pd.DataFrame, facts: Mapping[str, Any], options: ResamplingOptions) -> Figure:
    order = list(dict.fromkeys(problems["step"]))
    wide = problems.pivot(index="example", columns="step", values="impact")[order]
    top = wide.abs().mean(axis=1).sort_values(ascending=False, kind="stable").index[: options.top]
    grid = wide.loc[top]
    note = f"mean over donors; {len(grid)} of {len(wide)} problems, by mean |impact| over steps"
    figure = pieces.titled(max(0.6 * len(order) + 3.2, 5.6), 0.3 * len(grid) + 1.9, "Most affected problems", note)
    (ax,) = pieces.panels(figure, 1, 1, left=1.35, right=0.75)
    image = pieces.matrix(ax, grid.to_numpy(float), list(grid.index), order, pieces.scale_of(grid.to_numpy(float)))
    pieces.plain(ax, "latent step", "", grid=False)
    ax.tick_params(axis="y", labelsize=7.5)
    ax.spines["bottom"].set_visible(False)
    pieces.colourbar(figure, image, ax, f"impact ({facts['metric']})")
    return figure


def _histograms(problems: pd.DataFrame, facts: Mapping[str, Any]) -> Figure:
    order = list(dict.fromkeys(problems["step"]))
    columns = min(len(order), 3)
    rows = -(-len(order) // columns)
    note = "per problem, mean over donors; line: mean over problems"
    figure = pieces.titled(2.75 * columns + 1.0, 1.95 * rows + 1.3, f"Impact per problem and step ({facts['metric']})", note)
    axes = pieces.panels(figure, rows, columns, hspace=0.62, wspace=0.26)
    values = problems["impact"].to_numpy(float)
    low, high = float(min(values.min(), 0.0)), float(max(values.max(), 0.0))
    edges = np.linspace(low, high if high > low else low + 1.0, 21)
    for number, step in enumerate(order):
        part = problems.loc[problems["step"] == step, "impact"].to_numpy(float)
        axes[number].hist(part, bins=edges, color=pieces.BLUE, zorder=2)
        axes[number].axvline(part.mean(), color=pieces.RUST, linewidth=1.4, zorder=3)
        pieces.plain(axes[number], "impact" if number >= len(order) - columns else "", "problems" if number % columns == 0 else "", f"step {tick(step)}")
        axes[number].locator_params(axis="y", integer=True, nbins=4)
    for spare in axes[len(order) :]:
        spare.set_visible(False)
    return figure
