"""The picture of ``compare_runs``: one point per place, intervals of both effects as whiskers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses.association import constant, interval, rounded
from codi_engine.plugins.analyses.figures import GRID, INK, PAPER, QUIET, SEQUENTIAL, WORDS

BLUE, LINE = "#3b7fb6", "#8c2d19"
LABELLED = 40  # places up to which every one is tried; beyond, the outermost
CROWD = 250  # places from which whiskers are a haze
_FONT = 7.5
_KEYS = 12  # entries of the colour key
#: where a label may stand from its point: direction of its nearest edge, in the order tried
_AROUND = ((1, 1), (-1, 1), (1, -1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))


@dataclass(frozen=True)
class Shown:
    """One side as the picture names it; ``published``: numbers without examples."""

    name: str
    metric: str
    published: bool


def scatter(places: pd.DataFrame, table: pd.DataFrame, axes: Sequence[str], a: Shown, b: Shown, confidence: float) -> Figure:
    """Draw b against a, with the least-squares line and, where both are the same metric of two runs, the line of equal effect."""
    part = places[places["compared"]].reset_index(drop=True)
    colours, key = _colours(part, axes)
    size = (6.6 + (0.75 if key else 0.0), 6.5)
    figure = Figure(figsize=size, facecolor=PAPER)
    box = (0.85 / size[0], 0.72 / size[1], 5.5 / size[0], 4.65 / size[1])
    ax = figure.add_axes(box)
    _limits(ax, part)
    _lines(ax, part, a.metric == b.metric and not a.published and not b.published)
    _points(ax, part, colours)
    _labels(ax, part, axes, (5.5 * 72, 4.65 * 72))
    _dress(ax, a, b)
    _head(figure, box[0], size[1], table, axes, (a.name, b.name), confidence, len(part))
    if key:
        _key(ax, key, axes[0])
    return figure


def _colours(part: pd.DataFrame, axes: Sequence[str]) -> tuple[list[Any], list[tuple[str, Any]]]:
    """Colour places by their first axis where they have two; return colours and the key's entries."""
    if len(axes) < 2 or part[axes[0]].nunique() < 2:
        return [BLUE] * len(part), []
    values = list(dict.fromkeys(part[axes[0]]))
    shade = {v: SEQUENTIAL(0.4 + 0.6 * i / (len(values) - 1)) for i, v in enumerate(values)}
    shown = values if len(values) <= _KEYS else [values[round(i)] for i in np.linspace(0, len(values) - 1, _KEYS)]
    return [shade[v] for v in part[axes[0]]], [(str(v), shade[v]) for v in shown]


def _spread(part: pd.DataFrame, letter: str) -> tuple[float, float]:
    values = part[[f"effect_{letter}", f"ci_low_{letter}", f"ci_high_{letter}"]].to_numpy(float)
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    margin = 0.07 * (high - low) or 0.5 * max(abs(high), 1e-9)
    return low - margin, high + margin


def _limits(ax: Any, part: pd.DataFrame) -> None:
    ax.set_xlim(*_spread(part, "a"))
    ax.set_ylim(*_spread(part, "b"))


def _lines(ax: Any, part: pd.DataFrame, comparable: bool) -> None:
    ax.axhline(0, color=GRID, linewidth=1.0, zorder=0)
    ax.axvline(0, color=GRID, linewidth=1.0, zorder=0)
    x, y = part["effect_a"].to_numpy(float), part["effect_b"].to_numpy(float)
    ends = np.array(ax.get_xlim())
    drawn = []
    if len(part) >= 3 and not constant(x) and not constant(y):
        slope, level = np.polyfit(x, y, 1)
        drawn += ax.plot(ends, level + slope * ends, color=LINE, linewidth=1.1, zorder=1, label="least squares")
    low, high = max(ends[0], ax.get_ylim()[0]), min(ends[1], ax.get_ylim()[1])
    if comparable and low < high:
        drawn += ax.plot([low, high], [low, high], color=QUIET, linewidth=0.9, linestyle=(0, (2, 2)), zorder=1, label="equal effect")
    if drawn:
        ax.legend(handles=drawn, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=7.5, frameon=False, labelcolor=QUIET, borderaxespad=0.2)


def _points(ax: Any, part: pd.DataFrame, colours: Sequence[Any]) -> None:
    faint, dot = (0.75, 26) if len(part) <= LABELLED else (0.35, 14) if len(part) <= CROWD else (0.1, 7)
    for row, colour in zip(part.to_dict("records"), colours, strict=True):
        ax.plot([row["ci_low_a"], row["ci_high_a"]], [row["effect_b"]] * 2, color=colour, linewidth=0.8, alpha=faint, zorder=2)
        ax.plot([row["effect_a"]] * 2, [row["ci_low_b"], row["ci_high_b"]], color=colour, linewidth=0.8, alpha=faint, zorder=2)
    ax.scatter(part["effect_a"], part["effect_b"], s=dot, c=list(colours), edgecolors=PAPER, linewidths=0.6 if dot > 7 else 0.2, zorder=3)


def _labels(ax: Any, part: pd.DataFrame, axes: Sequence[str], size: tuple[float, float]) -> None:
    """Name places where there is room, the outermost first."""
    from matplotlib.patheffects import withStroke

    texts = ["·".join(str(row[a]) for a in axes) for _, row in part.iterrows()]
    points = _in_points(ax, part, size)
    for number, (dx, dy, across, up) in place_labels(points, texts, size, _order(points)[: None if len(texts) <= LABELLED else LABELLED // 2]).items():
        ax.annotate(
            texts[number], (part["effect_a"].iloc[number], part["effect_b"].iloc[number]), xytext=(dx, dy), textcoords="offset points", ha=across, va=up,
            fontsize=_FONT, color=INK, zorder=4, path_effects=[withStroke(linewidth=1.8, foreground=PAPER)],
        )  # fmt: skip


def _in_points(ax: Any, part: pd.DataFrame, size: tuple[float, float]) -> np.ndarray:
    low, high = np.array([ax.get_xlim()[0], ax.get_ylim()[0]]), np.array([ax.get_xlim()[1], ax.get_ylim()[1]])
    return np.asarray((part[["effect_a", "effect_b"]].to_numpy(float) - low) / (high - low) * np.array(size))


def _order(points: np.ndarray) -> list[int]:
    distance = np.abs(points - np.median(points, axis=0)).sum(axis=1)
    return [int(i) for i in np.argsort(-distance, kind="stable")]


def place_labels(
    points: np.ndarray, texts: Sequence[str], size: tuple[float, float], order: Sequence[int]
) -> dict[int, tuple[float, float, str, str]]:  # fmt: skip
    """Return number → (offset x, offset y, horizontal, vertical alignment) of the labels that find room.

    A label covers no point and no other label, and stands nearer to its own point than to any other; a point in a heap has none.

    Parameters
    ----------
    points: places × 2, in points from the lower left corner
    size: width and height of the plot, in points
    order: who chooses first
    """
    taken = [(x - 3.0, y - 3.0, x + 3.0, y + 3.0) for x, y in points]
    out = {}
    for number in order:
        x, y = points[number]
        width, height = 0.62 * _FONT * len(texts[number]), 1.05 * _FONT
        for right, up in _AROUND:
            gap = 3.2 if right and up else 4.6
            left = x + right * gap - width * (1 - right) / 2
            bottom = y + up * gap - height * (1 - up) / 2
            box = (left, bottom, left + width, bottom + height)
            inside = box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]
            free = inside and not any(_overlap(box, other) for i, other in enumerate(taken) if i != number)
            if free and _nearest(points, box, number):
                taken.append(box)
                out[number] = (right * gap, up * gap, ("right", "center", "left")[right + 1], ("top", "center", "bottom")[up + 1])
                break
    return out


def _nearest(points: np.ndarray, box: tuple[float, ...], own: int) -> bool:
    """Say whether a label's own point is clearly the one nearest to it."""
    distance = np.hypot(
        *(np.maximum(np.maximum(low - points[:, i], points[:, i] - high), 0.0) for i, (low, high) in enumerate(zip(box[:2], box[2:], strict=True)))
    )
    return bool((np.delete(distance, own) > distance[own] + 0.5).all())


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _dress(ax: Any, a: Shown, b: Shown) -> None:
    ax.set_xlabel(_axis_name(a), fontsize=9, color=INK, labelpad=5)
    ax.set_ylabel(_axis_name(b), fontsize=9, color=INK, labelpad=5)
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    ax.locator_params(nbins=6)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(QUIET)
        ax.spines[side].set_linewidth(0.7)


def _axis_name(side: Shown) -> str:
    return f"{short(side.name, 34)}\n{short(side.metric if side.published else WORDS.get(side.metric, side.metric), 58)}"


def short(text: str, length: int) -> str:
    """Return a text of at most ``length`` characters, its middle left out."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"


def _head(figure: Figure, left: float, height: float, table: pd.DataFrame, axes: Sequence[str], names: tuple[str, str], confidence: float, n: int) -> None:
    title = f"{short(names[0], 32)} against {short(names[1], 32)}"
    figure.text(left, 1 - 0.32 / height, title, fontsize=min(13.0, 620 / len(title)), fontweight="bold", color=INK, va="center")
    lines = [_result(table), f"{n} places, labelled by {'·'.join(axes)} where there is room; whiskers: {confidence:.0%} intervals over examples"]
    for number, line in enumerate(lines):
        figure.text(left, 1 - (0.58 + 0.19 * number) / height, line, fontsize=8.5, color=QUIET, va="center")


def _result(table: pd.DataFrame) -> str:
    part = table[table["method"] == "pearson"]
    if part["r"].isna().all():
        return short(str(part["note"].iloc[0]), 92)
    spans = [
        f"{interval(row, '')} over {'examples' if row['ci_method'].startswith('bootstrap') else 'places'}"
        for _, row in part.iterrows()
        if np.isfinite(row["ci_low"])
    ]
    return f"Pearson r = {rounded(part['r'].iloc[0], '')}  {', '.join(spans)}".replace("-", "−")


def _key(ax: Any, entries: Sequence[tuple[str, Any]], axis: str) -> None:
    from matplotlib.lines import Line2D

    dots = [Line2D([], [], marker="o", linestyle="", markersize=5, color=colour, label=short(text, 12)) for text, colour in entries[::-1]]
    first = ax.get_legend()
    ax.legend(handles=dots, title=axis, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, title_fontsize=8.5, frameon=False, labelcolor=INK)
    if first is not None:
        ax.add_artist(first)
