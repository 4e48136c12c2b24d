"""The pictures of ``geometry``, from its tables alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

if TYPE_CHECKING:
    import pandas as pd

INK, QUIET, GRID = "#1f2430", "#6b7280", "#e5e7eb"
COLOURS = {"all": "#6b7280", "correct": "#1d4f8c", "wrong": "#b4532a"}


def draw(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return ``movement``, ``cosines`` and ``dimension``."""
    steps = tables["steps"]
    movement = Figure(figsize=(9.2, 3.5), facecolor="white", layout="constrained")
    for number, (measure, label) in enumerate((("change", "‖c$_{k+1}$ − c$_k$‖ / ‖c$_k$‖"), ("direction", "cosine with the move before"))):
        ax = movement.add_subplot(1, 2, number + 1)
        _lines(ax, steps[steps["measure"] == measure], "mean", label)
        ax.set_title("step change" if number == 0 else "direction", loc="left", fontsize=11, fontweight="bold", color=INK)
    dimension = Figure(figsize=(6.0, 3.5), facecolor="white", layout="constrained")
    ax = dimension.add_subplot()
    _lines(ax, tables["dimension"], "dimension", "participation ratio")
    ax.set_title("effective dimension of the states", loc="left", fontsize=11, fontweight="bold", color=INK)
    return {"movement": movement, "cosines": _cosines(tables["pairs"]), "dimension": dimension}


def _lines(ax: Any, table: pd.DataFrame, column: str, label: str) -> None:
    states = list(dict.fromkeys(table["step"]))
    for group, part in table.groupby("group", sort=False):
        if group == "all" and table["group"].nunique() > 1:
            continue  # the two groups are all of it
        at = [states.index(s) for s in part["step"]]
        ax.plot(at, part[column], marker="o", markersize=4, color=COLOURS[str(group)], label=f"{group} (n = {int(part['n'].max())})")
        ax.fill_between(at, part["low"], part["high"], color=COLOURS[str(group)], alpha=0.16, linewidth=0)
    ax.set_xticks(range(len(states)), ["bot" if s < 0 else str(s) for s in states])
    ax.set_xlabel("state out of step", fontsize=9, color=QUIET)
    ax.set_ylabel(label, fontsize=9, color=QUIET)
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    ax.legend(frameon=False, fontsize=8.5)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _cosines(pairs: pd.DataFrame) -> Figure:
    names = [g for g in dict.fromkeys(pairs["group"]) if g != "all"] or ["all"]
    states = sorted({*pairs["step"], *pairs["other"]})
    labels = ["bot" if s < 0 else str(s) for s in states]
    figure = Figure(figsize=(4.3 * len(names) + 0.8, 3.9), facecolor="white", layout="constrained")
    for number, group in enumerate(names):
        part = pairs[pairs["group"] == group]
        grid = np.eye(len(states))
        for row in part.itertuples():
            i, j = states.index(row.step), states.index(row.other)
            grid[i, j] = grid[j, i] = row.cosine
        ax = figure.add_subplot(1, len(names), number + 1)
        image = ax.imshow(grid, cmap="RdBu", vmin=-1, vmax=1)
        for (y, x), value in np.ndenumerate(grid):
            ax.text(x, y, f"{value:.2f}".replace("-", "−"), ha="center", va="center", fontsize=7.5, color="white" if abs(value) > 0.65 else INK)
        ax.set_xticks(range(len(states)), labels)
        ax.set_yticks(range(len(states)), labels)
        ax.tick_params(length=0, labelsize=8.5, colors=INK)
        ax.set_title(f"cosine between states: {group} (n = {int(part['n'].max())})", loc="left", fontsize=10, fontweight="bold", color=INK)
        for side in ax.spines.values():
            side.set_visible(False)
    figure.colorbar(image, ax=figure.axes, fraction=0.03).outline.set_visible(False)
    return figure
