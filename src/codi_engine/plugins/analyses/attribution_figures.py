"""The pictures of ``attribution``: estimates beside exact effects on one scale, and one against the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses import figures as style

_CELL = 0.52
_TITLES = {"estimate": "estimated", "gradient": "estimated by plain gradients", "exact": "exact, by the run"}


@dataclass(frozen=True)
class Shown:
    """What was estimated of one condition: the axes of its places, those that were swept, and how many examples."""

    condition: str
    metric: str
    method: str
    columns: Sequence[str]
    varying: Sequence[str]
    examples: int


def draw(all_found: Sequence[Shown], tables: Mapping[str, pd.DataFrame], name: str) -> dict[str, Figure]:
    """Return name → figure; ``heatmap`` and ``scatter`` are the first condition's."""
    drawn: dict[str, Figure] = {}
    for number, f in enumerate(all_found):
        table = tables["attribution"]
        mine = table[table["condition"] == f.condition]
        ending = "" if number == 0 else "_" + "".join(c if c.isalnum() or c in "-_." else "_" for c in f.condition)
        drawn["heatmap" + ending] = heatmap(f, mine, name)
        if mine["exact"].notna().sum() > 1:
            drawn["scatter" + ending] = scatter(f, mine, tables["agreement"], name)
    return drawn


def _axes(f: Shown, table: pd.DataFrame) -> tuple[str | None, str | None]:
    """Return the axes down and across: layers down, steps or positions across where they vary."""
    varying = [c for c in f.columns if table[c].nunique() > 1]
    across = next((a for a in ("step", "position") if a in varying), varying[-1] if varying else None)
    return next((a for a in varying if a != across), None), across


def _map(table: pd.DataFrame, column: str, down: str | None, across: str | None) -> tuple[np.ndarray, list[Any], list[Any]]:
    """Return a column's map, further axes averaged, with the labels down and across."""
    xs = list(dict.fromkeys(table[across])) if across else [""]
    ys = list(dict.fromkeys(table[down])) if down else [""]
    values = np.full((len(ys), len(xs)), np.nan)
    keys = [k for k in (down, across) if k]
    known = table[table[column].notna()]
    for key, group in known.groupby(keys, sort=False) if keys else [((), known)]:
        where = dict(zip(keys, key, strict=True))
        values[ys.index(where[down]) if down else 0, xs.index(where[across]) if across else 0] = group[column].astype(float).mean()
    return values, ys, xs


def heatmap(f: Shown, table: pd.DataFrame, name: str) -> Figure:
    """Draw the estimates beside the exact effects, one colour scale for all; places without an exact cell stay empty."""
    down, across = _axes(f, table)
    columns = [c for c in ("estimate", "gradient", "exact") if c in table and table[c].notna().any()]
    maps = {c: _map(table, c, down, across) for c in columns}
    _, ys, xs = maps["estimate"]
    cell = min(_CELL, 5.2 / len(xs)) if len(xs) > 12 else _CELL
    wide, high = max(len(xs) * cell, 2.2), max(len(ys) * min(cell, 0.42), 0.5)
    stacked = wide * len(columns) > 7.0 or len(ys) == 1
    rows, across_panels = (len(columns), 1) if stacked else (1, len(columns))
    aside, below = 0.45, 0.6  # between panels, whose ticks have labels on the outside alone
    size = (wide * across_panels + aside * (across_panels - 1) + 1.95, high * rows + below * (rows - 1) + 1.75)
    size = (max(size[0], 6.2), size[1])
    figure = Figure(figsize=size, facecolor=style.PAPER)
    grid = figure.add_gridspec(
        rows, across_panels, left=0.75 / size[0], right=1 - 1.2 / size[0], top=1 - 1.0 / size[1], bottom=0.65 / size[1],
        wspace=aside / wide, hspace=below / high,
    )  # fmt: skip
    colours, norm = style.colour_scale(np.concatenate([m.ravel() for m, _, _ in maps.values()]), True)
    title = f"{name}: estimated and exact effects of {f.condition}" if name else f.condition
    figure.text(0.75 / size[0], 1 - 0.28 / size[1], title, fontsize=13, fontweight="bold", color=style.INK, va="center")
    averaged = [c for c in f.columns if c not in (down, across) and table[c].nunique() > 1]
    note = f"mean over {f.examples} examples" + (f" and {', '.join(averaged)}" if averaged else "") + f"; change of {_words(f.metric)}"
    figure.text(0.75 / size[0], 1 - 0.53 / size[1], note, fontsize=8.5, color=style.QUIET, va="center")
    for number, column in enumerate(columns):
        ax = figure.add_subplot(grid[number, 0] if stacked else grid[0, number])
        values = maps[column][0]
        image = ax.pcolormesh(
            np.arange(len(xs) + 1) - 0.5, np.arange(len(ys) + 1) - 0.5, np.ma.masked_invalid(values), cmap=colours, norm=norm,
            edgecolors=style.PAPER, linewidth=1.4 if cell > 0.3 else 0.4,
        )  # fmt: skip
        if cell > 0.4:
            style.annotate(ax, values, np.zeros_like(values, bool), colours, norm)
        words = f"estimated by {f.method.replace('gradient', 'gradients').replace('integrated', 'integrated gradients')}" if column == "estimate" else ""
        ax.set_title(words or _TITLES[column], loc="left", fontsize=10, color=style.INK, pad=5)
        last = number == len(columns) - 1
        _label(ax, xs, ys, across if last or not stacked else None, down if number == 0 or stacked else None)
        ax.tick_params(labelbottom=last or not stacked)  # panels on top of each other have them below the last
    bar = figure.colorbar(image, cax=figure.add_axes((1 - 1.0 / size[0], 0.65 / size[1], 0.16 / size[0], 1 - 1.65 / size[1])))
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, colors=style.QUIET)
    bar.locator = style.few_ticks()
    bar.update_ticks()
    return figure


def _words(metric: str) -> str:
    return {"logit_diff": "the logit difference", "cross_entropy": "cross-entropy (nats)"}[metric]


def _label(ax: Any, xs: Sequence[Any], ys: Sequence[Any], across: str | None, down: str | None) -> None:
    every = max(len(xs) // 12, 1)
    ax.set_xticks(range(len(xs)), [str(x) if i % every == 0 else "" for i, x in enumerate(xs)])
    ax.set_yticks(range(len(ys)), [str(y) for y in ys])
    ax.set_xlabel({"step": "latent step"}.get(across or "", across or ""), fontsize=9, color=style.QUIET, labelpad=3)
    ax.set_ylabel(down or "", fontsize=9, color=style.QUIET)
    ax.tick_params(length=0, labelsize=9, colors=style.INK)
    for side in ax.spines.values():
        side.set_visible(False)


def scatter(f: Shown, table: pd.DataFrame, agreement: pd.DataFrame, name: str) -> Figure:
    """Draw exact against estimated effects with intervals over examples, and the line on which both are equal."""
    known = table[table["exact"].notna() & table["estimate"].notna()]
    x, y = known["estimate"].to_numpy(float), known["exact"].to_numpy(float)
    figure = Figure(figsize=(5.4, 5.2), facecolor=style.PAPER, layout="constrained")
    ax = figure.add_subplot()
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    margin = 0.06 * (high - low or 1.0)
    line = np.array([low - margin, high + margin])
    ax.plot(line, line, color=style.QUIET, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for column, values, draw_line in (("", x, ax.hlines), ("exact_", y, ax.vlines)):
        a, b = known[f"{column}ci_low"].to_numpy(float), known[f"{column}ci_high"].to_numpy(float)
        draw_line(y if values is x else x, np.where(np.isfinite(a), a, values), np.where(np.isfinite(b), b, values), color="#c5dceb", linewidth=0.9, zorder=2)
    ax.scatter(x, y, s=22, color="#1d4f8c", edgecolor=style.PAPER, linewidth=0.5, zorder=3)
    _name_strongest(ax, f, known, x, y)
    ax.set_xlabel(f"estimated change of {_words(f.metric)}", fontsize=9, color=style.QUIET)
    ax.set_ylabel("exact change", fontsize=9, color=style.QUIET)
    ax.set_title(f"{name}: {f.condition}" if name else f.condition, loc="left", fontsize=12, fontweight="bold", color=style.INK, y=1.09, pad=0)
    ax.text(0, 1.02, _said(f, agreement, len(known)), transform=ax.transAxes, fontsize=8.5, color=style.QUIET, va="bottom")
    ax.axhline(0, color=style.GRID, linewidth=0.8, zorder=0)
    ax.axvline(0, color=style.GRID, linewidth=0.8, zorder=0)
    ax.tick_params(length=0, labelsize=8.5, colors=style.INK)
    for side in ax.spines.values():
        side.set_visible(False)
    return figure


def _name_strongest(ax: Any, f: Shown, known: pd.DataFrame, x: np.ndarray, y: np.ndarray) -> None:
    """Name the five places of largest exact effect where there is room beside their points."""
    from matplotlib.patheffects import withStroke

    from codi_engine.plugins.analyses.compare_figures import place_labels

    size = (4.4 * 72, 4.0 * 72)  # of the plot within its figure, about
    corners = [np.array(limits) for limits in (ax.get_xlim(), ax.get_ylim())]
    points = np.stack([(v - low) / (high - low) * s for v, (low, high), s in zip((x, y), corners, size, strict=True)], 1)
    texts = [style.short_sets(", ".join(f"{c} {row[c]}" for c in f.varying)) for _, row in known.iterrows()]
    order = [int(i) for i in np.argsort(-np.abs(y), kind="stable")[:5]]
    for number, (dx, dy, across, up) in place_labels(points, texts, size, order).items():
        ax.annotate(
            texts[number], (x[number], y[number]), xytext=(dx, dy), textcoords="offset points", ha=across, va=up, fontsize=8, color=style.INK,
            zorder=4, path_effects=[withStroke(linewidth=1.8, foreground=style.PAPER)],
        )  # fmt: skip


def _said(f: Shown, agreement: pd.DataFrame, places: int) -> str:
    mine = agreement[(agreement["condition"] == f.condition) & (agreement["method"] == f.method)].set_index("measure")["value"]
    if mine.empty or not np.isfinite(mine["spearman"]):
        return f"{places} places; dashed: estimate = exact"
    return f"{places} places, Spearman {mine['spearman']:.2f}, Pearson {mine['pearson']:.2f}; dashed: estimate = exact"
