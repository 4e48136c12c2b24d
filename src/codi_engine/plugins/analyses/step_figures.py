"""Pieces of the pictures of latent steps: axes, bars with intervals, matrices with numbers, curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import Colormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from codi_engine.plugins.analyses.figures import DIVERGING, GRID, INK, PAPER, QUIET, SEQUENTIAL, tick

if TYPE_CHECKING:
    import pandas as pd

BLUE, RUST, GREY = "#3b7fb6", "#b4532f", "#9aa3af"
#: distinct hues for a few curves
HUES = ("#1d4f8c", "#b4532f", "#4d8a5b", "#8a6fb0", "#c0902b", "#5b9bc6", "#7a4b3a", "#6b7280")


def titled(width: float, height: float, title: str, note: str) -> Figure:
    """Return a figure with a title and a quiet line under it; its panels go below ``room(figure)``."""
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    figure.text(0.3 / width, 1 - 0.27 / height, title, fontsize=12.5, fontweight="bold", color=INK, va="center")
    figure.text(0.3 / width, 1 - 0.53 / height, note, fontsize=8.5, color=QUIET, va="center")
    return figure


def panels(figure: Figure, rows: int, columns: int, left: float = 0.75, right: float = 0.3, bottom: float = 0.6, **space: Any) -> list[Any]:
    """Return axes in inches from the figure's edges, row by row."""
    width, height = figure.get_size_inches()
    space = {"wspace": 0.28, "hspace": 0.55, **space}
    grid = figure.add_gridspec(rows, columns, left=left / width, right=1 - right / width, top=1 - 0.98 / height, bottom=bottom / height, **space)
    return [figure.add_subplot(grid[r, c]) for r in range(rows) for c in range(columns)]


def plain(ax: Any, x: str = "", y: str = "", title: str = "", grid: bool = True) -> None:
    """Give axes the house's plain look."""
    ax.set_title(title, loc="left", fontsize=10, color=INK, pad=5)
    ax.set_xlabel(x, fontsize=9, color=QUIET)
    ax.set_ylabel(y, fontsize=9, color=QUIET)
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    if grid:
        ax.grid(axis="y", color=GRID, zorder=0)
        ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(GRID)


def bars(ax: Any, names: Sequence[str], table: pd.DataFrame, colour: str = BLUE, offset: float = 0.0, width: float = 0.68, label: str | None = None) -> None:
    """Draw means as bars with their intervals; bars that are not significant are pale where the table says so."""
    for x, (_, row) in enumerate(table.iterrows()):
        pale = "significant" in table and not row["significant"]
        ax.bar(x + offset, row["mean"], width=width, color=colour, alpha=0.45 if pale else 1.0, zorder=2, label=label if x == 0 else None)
        if np.isfinite(row["ci_low"]) and np.isfinite(row["ci_high"]):
            ax.plot([x + offset] * 2, [row["ci_low"], row["ci_high"]], color=INK, linewidth=1.1, zorder=3)
    ax.axhline(0, color=QUIET, linewidth=0.8)
    ax.set_xticks(range(len(names)), [tick(n) for n in names], fontsize=8.5)


def curve(
    ax: Any,
    x: Sequence[float],
    table: pd.DataFrame,
    colour: Any,
    label: str,
    mean: str = "mean",
    low: str = "ci_low",
    high: str = "ci_high",
    band: float = 0.14,
) -> None:
    """Draw means as a line with its interval as a band."""
    ax.plot(x, table[mean], "-o", color=colour, markersize=3.6, linewidth=1.6, label=label, zorder=3)
    ax.fill_between(x, table[low].to_numpy(float), table[high].to_numpy(float), color=colour, alpha=band, linewidth=0, zorder=2)


def whiskers(ax: Any, x: Sequence[float], table: pd.DataFrame, colour: Any, label: str) -> None:
    """Draw means as a line with their intervals as vertical lines, for curves whose bands would hide each other."""
    ax.plot(x, table["mean"], "-o", color=colour, markersize=3.6, linewidth=1.5, label=label, zorder=3)
    ax.vlines(x, table["ci_low"].to_numpy(float), table["ci_high"].to_numpy(float), color=colour, linewidth=1.0, alpha=0.7, zorder=2)


def scale_of(values: np.ndarray) -> tuple[Colormap, Normalize]:
    """Return colours for values: about zero where both signs are there, else from zero."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if low < -1e-12:
        bound = max(abs(low), abs(high))
        return DIVERGING, TwoSlopeNorm(0.0, -bound, bound)
    return SEQUENTIAL, Normalize(0.0, max(high, 1e-9))


def matrix(
    ax: Any,
    values: np.ndarray,
    rows: Sequence[Any],
    columns: Sequence[Any],
    scale: tuple[Colormap, Normalize],
    marks: np.ndarray | None = None,
    digits: int = 2,
) -> Any:
    """Draw a matrix, first row on top, with its numbers where they fit; NaN cells stay blank, ``marks`` cells get a dot."""
    colours, norm = scale
    image = ax.pcolormesh(np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1.4)
    if values.size <= 220:
        for y, x in np.argwhere(np.isfinite(values)):
            red, green, blue, _ = colours(norm(values[y, x]))
            ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK
            ax.text(x + 0.5, y + 0.5, f"{values[y, x]:.{digits}f}".replace("-", "−"), ha="center", va="center", fontsize=8, color=ink, gid="value")
    if marks is not None:
        for y, x in np.argwhere(marks):
            ax.plot(x + 0.86, y + 0.84, ".", markersize=3, color=QUIET)
    ax.set_xticks(np.arange(len(columns)) + 0.5, [tick(c) for c in columns])
    ax.set_yticks(np.arange(len(rows)) + 0.5, [str(r) for r in rows])
    ax.invert_yaxis()
    for side in ax.spines.values():
        side.set_visible(False)
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    return image


def colourbar(figure: Figure, image: Any, ax: Any, label: str) -> None:
    """Put a slim colour bar beside axes."""
    from matplotlib.ticker import MaxNLocator

    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, colors=QUIET)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.set_label(label, fontsize=7.5, color=QUIET)


def key(ax: Any, **where: Any) -> None:
    """Show the key without a frame."""
    ax.legend(frameon=False, fontsize=8, labelcolor=INK, **where)
