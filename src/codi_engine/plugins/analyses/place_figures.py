"""Maps of layers × steps (or positions) and curves over steps, for analyses of captured states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from codi_engine.plugins.analyses.figures import GRID, INK, NUMBERS, PAPER, QUIET, SEQUENTIAL

#: labels that fit side by side
_TICKS = 24


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


@dataclass(frozen=True)
class Places:
    """Where captured states were read: ``layers`` × ``places`` (what ``axis`` says: steps or positions) of ``site``; [None] where there is none."""

    site: str
    axis: str
    layers: Sequence[int | None]
    places: Sequence[int | None]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (layers, places)."""
        return len(self.layers), len(self.places)


@dataclass(frozen=True)
class Map:
    """One panel: ``values`` is down × across; ``marks`` says where a dot stands (what is not significant)."""

    title: str
    values: np.ndarray
    down: Sequence[Any]
    across: Sequence[Any]
    label: str
    norm: Normalize
    colours: Colormap = field(default_factory=lambda: SEQUENTIAL)
    marks: np.ndarray | None = None
    text: Callable[[float], str] = _two_digits
    down_name: str = "layer"
    across_name: str = "latent step"


def named(axis: str) -> str:
    """Return what an axis is called in figures."""
    return {"step": "latent step"}.get(axis, axis)


def maps(title: str, note: str, panels: Sequence[Map]) -> Figure:
    """Draw panels one under the other on one scale of cells; the first row of a panel is at the bottom."""
    columns = max(len(p.across) for p in panels)
    cell = 0.66 if columns <= 12 else max(7.5 / columns, 0.16)
    heights = [max(len(p.down) * min(cell, 0.5 if len(p.down) > 1 else 0.62), 0.5) for p in panels]
    gap = 0.86
    size = (max(columns * cell + 2.3, 5.4), sum(heights) + gap * len(panels) + 0.95)
    figure = Figure(figsize=size, facecolor=PAPER)
    left, right, top = 0.98 / size[0], 1 - 1.1 / size[0], 1 - 1.05 / size[1]
    grid = figure.add_gridspec(
        len(panels), 2, height_ratios=heights, width_ratios=[1, 0.03], wspace=0.06, hspace=gap * len(panels) / sum(heights),
        left=left, right=right, top=top, bottom=0.55 / size[1],
    )  # fmt: skip
    figure.text(left, 1 - 0.28 / size[1], title, fontsize=12.5, fontweight="bold", color=INK, va="center")
    figure.text(left, 1 - 0.53 / size[1], note, fontsize=8, color=QUIET, va="center")
    for number, panel in enumerate(panels):
        _panel(figure, figure.add_subplot(grid[number, 0]), figure.add_subplot(grid[number, 1]), panel, columns)
    return figure


def _panel(figure: Figure, ax: Any, bar: Any, panel: Map, columns: int) -> None:
    values, count = panel.values, (len(panel.down), len(panel.across))
    edges = [np.arange(c + 1) - 0.5 for c in (count[1], count[0])]
    image = ax.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=panel.colours, norm=panel.norm, edgecolors=PAPER, linewidth=1.2)
    ax.set_xlim(-0.5, columns - 0.5)
    _write(ax, panel)
    ax.set_title(panel.title, loc="left", fontsize=10, color=INK, pad=5)
    ax.set_xticks(range(count[1]), _thinned(panel.across))
    ax.set_yticks(range(count[0]), _thinned(panel.down))
    ax.set_xlabel(panel.across_name, fontsize=9, color=QUIET, labelpad=3)
    ax.set_ylabel(panel.down_name if any(str(d) for d in panel.down) else "", fontsize=9, color=QUIET)
    ax.tick_params(length=0, labelsize=9, colors=INK)
    for side in ax.spines.values():
        side.set_visible(False)
    colourbar = figure.colorbar(image, cax=bar)
    colourbar.outline.set_visible(False)
    colourbar.ax.tick_params(length=0, labelsize=7.5, colors=QUIET, which="both")
    if isinstance(panel.norm, LogNorm):
        colourbar.ax.yaxis.set_major_locator(LogLocator(10, (1.0, 2.0, 5.0) if len(panel.down) > 2 else (1.0,)))
        colourbar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        colourbar.ax.minorticks_off()
    colourbar.set_label(panel.label, fontsize=7.5, color=QUIET)


def _thinned(labels: Sequence[Any]) -> list[str]:
    every = max(len(labels) // 12, 1) if len(labels) > _TICKS else 1
    return [str(label).replace("-", "−") if i % every == 0 else "" for i, label in enumerate(labels)]


def _write(ax: Any, panel: Map) -> None:
    numbers = panel.values.size <= NUMBERS
    for y, x in np.argwhere(np.isfinite(panel.values)):
        red, green, blue, _ = panel.colours(panel.norm(panel.values[y, x]))
        ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK
        if numbers:
            ax.text(x, y, panel.text(float(panel.values[y, x])), ha="center", va="center", fontsize=8, color=ink, gid="value")
        if panel.marks is not None and panel.marks[y, x]:
            ax.plot(x + (0.38 if numbers else 0), y + (0.32 if numbers else 0), ".", markersize=2.6, color=ink, alpha=0.6)


@dataclass(frozen=True)
class Curve:
    """One line over places: ``low``/``high`` shade its interval."""

    name: str
    values: np.ndarray
    colour: str
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    dashed: bool = False


def curves(title: str, note: str, across: Sequence[Any], across_name: str, label: str, lines: Sequence[Curve]) -> Figure:
    """Draw lines over steps (or positions)."""
    figure = Figure(figsize=(min(max(0.55 * len(across) + 2.6, 6.4), 12.0), 3.4), facecolor=PAPER, layout="constrained")
    ax = figure.add_subplot()
    xs = np.arange(len(across))
    for line in lines:
        style: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.2} if line.dashed else {"marker": "o", "markersize": 4, "linewidth": 1.6}
        ax.plot(xs, line.values, color=line.colour, label=line.name, **style)
        if line.low is not None and line.high is not None:
            ax.fill_between(xs, line.low, line.high, color=line.colour, alpha=0.16, linewidth=0)
    ax.set_xticks(xs, _thinned(across))
    ax.set_xlabel(across_name, fontsize=9, color=QUIET)
    ax.set_ylabel(label, fontsize=9, color=QUIET)
    ax.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold", color=INK)
    ax.text(0, 1.03, note, transform=ax.transAxes, fontsize=8, color=QUIET)
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=8.5, loc="best")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    return figure
