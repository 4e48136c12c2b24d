"""The picture of an effect beside its controls: maps on one colour scale, or lines where there is one axis."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from codi_engine.core.planning.controls import in_words
from codi_engine.plugins.analyses.effects import count_text
from codi_engine.plugins.analyses.figures import GRID, INK, PAPER, QUIET, WORDS, annotate, colour_scale, few_ticks, order_of, tick
from codi_engine.plugins.analyses.options import ImportanceOptions
from codi_engine.plugins.analyses.place_figures import named

COLOURS = {"random": "#9aa3af", "wrong_step": "#d8795b", "shuffled": "#c9a227"}


def draw(table: pd.DataFrame, axes: Sequence[str], metric: str, options: ImportanceOptions, name: str) -> Figure:
    """Draw one row per condition: its effect, and beside it each control, over the same examples."""
    parts = [(str(c), p, _varying(p, axes)) for c, p in table.groupby("condition", sort=False)]
    widest = max(_columns(p, v) for _, p, v in parts)
    heights = [max(len(order_of(p, v[0])) * 0.42, 1.2) if len(v) > 1 else 1.9 if v else 0.9 for _, p, v in parts]
    size = (min(1.75 + widest, 14.0), sum(heights) + 1.0 * len(parts) + 0.75)
    figure = Figure(figsize=size, facecolor=PAPER)
    left, right = 0.75 / size[0], 1 - 0.95 / size[0]
    figure.text(left, 1 - 0.28 / size[1], f"{name}: effects beside their controls" if name else "effects beside their controls", **_bold())
    note = f"{count_text(table)} examples · dots: the effect does not exceed this control (q ≥ {options.q:g}, {options.correction.upper()}, own family)"
    figure.text(left, 1 - 0.52 / size[1], note, fontsize=8, color=QUIET, va="center")
    rows = figure.add_gridspec(
        len(parts), 1, height_ratios=heights, hspace=1.0 * len(parts) / sum(heights), left=left, right=right, top=1 - 1.05 / size[1], bottom=0.55 / size[1]
    )
    for number, (condition, part, varying) in enumerate(parts):
        if len(varying) > 1:
            _maps(figure, rows[number], condition, part, varying, metric)
        elif varying:
            _lines(figure.add_subplot(rows[number]), condition, part, varying[0], metric)
        else:
            _bars(figure.add_subplot(rows[number]), condition, part, metric)
    return figure


def _label(metric: str) -> str:
    """Return a metric in words, in lines as short as a panel is high."""
    return "\n".join(wrap(WORDS.get(metric, metric), 26))


def _bold() -> dict[str, Any]:
    return {"fontsize": 12.5, "fontweight": "bold", "color": INK, "va": "center"}


def _varying(part: pd.DataFrame, axes: Sequence[str]) -> list[str]:
    """Return the axis down and the axis across (means over others), one axis, or none."""
    found = [a for a in axes if part[a].notna().any() and part[a].nunique() > 1]
    across = next((a for a in ("step", "position") if a in found), found[-1] if found else None)
    down = next((a for a in found if a != across), None)
    return [a for a in (down, across) if a is not None]


def _columns(part: pd.DataFrame, varying: Sequence[str]) -> float:
    """Width in inches that a condition's panels want."""
    if len(varying) < 2:
        return 5.0
    across = len(order_of(part, varying[1]))
    return float((part["control"].nunique() + 1) * max(across * (0.44 if across <= 8 else 0.2), 1.6))


def _maps(figure: Figure, spec: Any, condition: str, part: pd.DataFrame, varying: Sequence[str], metric: str) -> None:
    ys, xs = order_of(part, varying[0]), order_of(part, varying[1])
    controls = list(dict.fromkeys(part["control"]))
    panels: list[tuple[str, np.ndarray, np.ndarray | None]] = [(condition, _grid(part[part["control"] == controls[0]], "effect", varying, ys, xs), None)]
    for control in controls:
        mine = part[part["control"] == control]
        panels.append((in_words(control), _grid(mine, "mean", varying, ys, xs), _grid(mine, "exceeds", varying, ys, xs) < 0.5))
    colours, norm = colour_scale(np.concatenate([v for _, v, _ in panels]), True)
    grid = spec.subgridspec(1, len(panels) + 1, width_ratios=[*([1] * len(panels)), 0.05], wspace=0.1)
    for number, (title, values, dots) in enumerate(panels):
        ax = figure.add_subplot(grid[0, number])
        edges = [np.arange(n + 1) - 0.5 for n in (len(xs), len(ys))]
        ax.pcolormesh(*edges, np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1.0)
        annotate(ax, values, np.zeros(values.shape, bool) if dots is None else dots, colours, norm, 6.5 if len(xs) <= 8 else 0)
        ax.set_title(title, loc="left", fontsize=10, color=INK, pad=4, fontweight="bold" if number == 0 else "normal")
        every = max(len(xs) // 8, 1)
        ax.set_xticks(range(len(xs)), [tick(x) if i % every == 0 else "" for i, x in enumerate(xs)])
        ax.set_yticks(range(len(ys)), [str(y) for y in ys] if number == 0 else [""] * len(ys))
        ax.set_xlabel(named(varying[1]), fontsize=8.5, color=QUIET, labelpad=2)
        ax.set_ylabel(varying[0] if number == 0 else "", fontsize=8.5, color=QUIET)
        _plain(ax)
    _bar(figure, figure.add_subplot(grid[0, -1]), colours, norm, metric)


def _bar(figure: Figure, ax: Any, colours: Colormap, norm: Normalize, metric: str) -> None:
    bar = figure.colorbar(ScalarMappable(norm, colours), cax=ax)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, colors=QUIET)
    bar.locator = few_ticks()
    bar.update_ticks()
    bar.set_label(_label(metric), fontsize=7.5, color=QUIET)


def _plain(ax: Any) -> None:
    ax.tick_params(length=0, labelsize=8, colors=INK)
    for side in ax.spines.values():
        side.set_visible(False)


def _grid(part: pd.DataFrame, column: str, varying: Sequence[str], ys: Sequence[Any], xs: Sequence[Any]) -> np.ndarray:
    """Return a column as down × across, the mean over other axes."""
    out = np.full((len(ys), len(xs)), np.nan)
    for (y, x), group in part.groupby(list(varying), sort=False, observed=True):
        out[ys.index(y), xs.index(x)] = group[column].astype(float).mean()
    return out


def _lines(ax: Any, condition: str, part: pd.DataFrame, axis: str, metric: str) -> None:
    """Draw the effect and its controls over the one axis that varies."""
    xs = order_of(part, axis)
    at = np.arange(len(xs))
    controls = list(dict.fromkeys(part["control"]))
    style: dict[str, Any] = {"marker": "o", "markersize": 4.5}

    def values(control: str, column: str) -> np.ndarray:
        mine = part[part["control"] == control]
        return np.array([mine[mine[axis] == x][column].astype(float).mean() for x in xs])

    ax.plot(at, values(controls[0], "effect"), color="#1d4f8c", label=condition, linewidth=1.8, **style)
    for control in controls:
        colour, exceeded = COLOURS.get(control, QUIET), values(control, "exceeds") > 0.5
        ax.plot(at, values(control, "mean"), color=colour, label=in_words(control), linewidth=1.2, linestyle=(0, (4, 2)), **style)
        ax.plot(at[~exceeded], values(control, "mean")[~exceeded], ".", color=INK, markersize=2.6, zorder=4)
    ax.axhline(0, color=QUIET, linewidth=0.7)
    ax.set_xticks(at, [tick(x) for x in xs])
    ax.set_xlabel(named(axis), fontsize=8.5, color=QUIET, labelpad=2)
    ax.set_ylabel(_label(metric), fontsize=7.5, color=QUIET)
    ax.set_title(condition, loc="left", fontsize=10, color=INK, pad=4, fontweight="bold")
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    ax.legend(frameon=False, fontsize=8, loc="best")
    _plain(ax)


def _bars(ax: Any, condition: str, part: pd.DataFrame, metric: str) -> None:
    """Draw the effect and its controls at the only place; a dot marks a control that is not exceeded."""
    names = ["effect", *(in_words(str(c)) for c in part["control"])]
    values = [float(part["effect"].iloc[0]), *part["mean"].astype(float)]
    ax.barh(names[::-1], values[::-1], color=["#1d4f8c", *(COLOURS.get(str(c), QUIET) for c in part["control"])][::-1], height=0.62, zorder=2)
    for row, exceeds in enumerate(part["exceeds"], 1):
        if not exceeds:
            ax.plot(values[row], len(names) - 1 - row, ".", color=INK, markersize=4, zorder=3)
    ax.axvline(0, color=QUIET, linewidth=0.8)
    ax.set_xlabel(WORDS.get(metric, metric), fontsize=8.5, color=QUIET, labelpad=2)
    ax.set_title(condition, loc="left", fontsize=10, color=INK, pad=4, fontweight="bold")
    ax.grid(axis="x", color=GRID)
    ax.set_axisbelow(True)
    _plain(ax)
