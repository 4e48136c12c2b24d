"""The pictures of ``importance``: heatmaps with a shared step axis, bars with intervals, examples × steps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize, TwoSlopeNorm
from matplotlib.figure import Figure

from codi_engine.plugins.analyses.console import two_digits
from codi_engine.plugins.analyses.effects import count_text

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.options import ImportanceOptions

INK, QUIET, PAPER, GRID = "#1f2430", "#6b7280", "#ffffff", "#e5e7eb"
SEQUENTIAL = LinearSegmentedColormap.from_list("sea", ["#f6f8fa", "#c5dceb", "#7fb2d5", "#3b7fb6", "#1d4f8c", "#112a54"])
DIVERGING = LinearSegmentedColormap.from_list("balance", ["#8c2d19", "#d8795b", "#f3c9b6", "#f7f7f5", "#bcd7e8", "#5b9bc6", "#1d4f8c"])
WORDS = {
    "normalized_effect": "normalised effect, change from unedited",
    "kl": "KL divergence from the unedited run (nats)",
    "logit_diff": "change of the logit difference",
    "flip": "share of answers that changed",
    "accuracy": "change of accuracy",
    "cross_entropy": "change of cross-entropy (nats)",
    "unusual": "share of less extreme natural states, minus 0.5",
}
#: effects that are none
FLAT = 1e-12
#: own scales where the conditions' largest effects differ by more than this
ORDERS = 10.0
NUMBERS = 220  # cells that still get their value printed


def draw(tables: Mapping[str, pd.DataFrame], axes: Sequence[str], metric: str, options: ImportanceOptions, name: str) -> dict[str, Figure]:
    """Return name → figure; ``heatmap`` is the first one to look at."""
    figures = {"heatmap": heatmap(tables["effects"], axes, metric, options, name)}
    figures["bars"] = bars(tables["effects"], axes, metric, options)
    examples = example_map(tables["by_example"], axes, metric)
    if examples is not None:
        figures["examples"] = examples
    return figures


@dataclass(frozen=True)
class _Panel:
    """One map: its rows, the axis down and the axis across (None: does not vary), and the scale that a condition's panels share."""

    title: str
    rows: pd.DataFrame
    down: str | None
    across: str | None
    scale: tuple[Colormap, Normalize]


def _panels(table: pd.DataFrame, axes: Sequence[str]) -> list[_Panel]:
    """Return a panel per condition; one for each stratum where there are layers, else strata are its rows. Wide maps come first."""
    panels = []
    scales = condition_scales(table)
    for condition, whole in table.groupby("condition", sort=False):
        varying = [a for a in axes if whole[a].notna().any() and whole[a].nunique() > 1]
        across = next((a for a in ("step", "position") if a in varying), varying[-1] if varying else None)
        down = next((a for a in varying if a != across), None)
        scale = scales[str(condition)]
        if "by" in table and down is not None:
            panels += [_Panel(f"{condition} · {by}", part, down, across, scale) for by, part in whole.groupby("by", sort=False)]
        else:
            panels.append(_Panel(str(condition), whole, "by" if "by" in table else down, across, scale))
    return sorted(panels, key=lambda p: p.down is None)


def condition_scales(table: pd.DataFrame) -> dict[str, tuple[Colormap, Normalize]]:
    """Return each condition's colours: one scale for all, so that equal colours are equal effects, unless they differ by orders of magnitude."""
    groups = {str(name): part["mean"].to_numpy(float) for name, part in table.groupby("condition", sort=False)}
    sizes = [float(np.nanmax(np.abs(v))) for v in groups.values() if np.isfinite(v).any()]
    sizes = [s for s in sizes if s > FLAT]
    if sizes and max(sizes) > ORDERS * min(sizes):
        return {name: colour_scale(values, True) for name, values in groups.items()}
    common = colour_scale(table["mean"].to_numpy(float), True)
    return dict.fromkeys(groups, common)


def colour_scale(values: np.ndarray, symmetric: bool) -> tuple[Colormap, Normalize]:
    """Return colours and range for values: two-sided where they go both ways (and ``symmetric``)."""
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if max(abs(low), abs(high)) <= FLAT:
        return SEQUENTIAL, Normalize(0.0, 1.0)
    if low < -0.15 * max(high, 1e-9) and symmetric:
        bound = max(abs(low), abs(high), 1e-9)
        return DIVERGING, TwoSlopeNorm(0.0, -bound, bound)
    if high <= 0 and low < 0:
        return SEQUENTIAL.reversed(), Normalize(low, 0.0)
    return SEQUENTIAL, Normalize(min(low, 0.0), max(high, 1e-9))


def heatmap(table: pd.DataFrame, axes: Sequence[str], metric: str, options: ImportanceOptions, name: str) -> Figure:
    """Draw one panel per condition; conditions without layers are strips under the map, on the same steps."""
    panels = _panels(table, axes)
    rows = [len(order_of(p.rows, p.down)) if p.down else 1 for p in panels]
    columns = max(len(order_of(p.rows, p.across)) if p.across else 1 for p in panels)
    cell = 0.62 if columns <= 12 else max(7.5 / columns, 0.16)
    heights = [max(r * min(cell, 0.52 if r > 1 else 0.62), 0.5) for r in rows]
    size = (max(columns * cell + 2.9, 5.6), sum(heights) + 0.72 * len(panels) + 1.3)
    figure = Figure(figsize=size, facecolor=PAPER)
    top = 1.0 - 1.0 / size[1]
    grid = figure.add_gridspec(
        len(panels), 2, height_ratios=heights, width_ratios=[1, 0.028], wspace=0.06, hspace=0.72 * len(panels) / max(sum(heights), 1e-9),
        left=0.98 / size[0], right=1 - 1.05 / size[0], top=top, bottom=0.55 / size[1],
    )  # fmt: skip
    figure.text(0.98 / size[0], 1 - 0.3 / size[1], _title(metric, name), fontsize=13, fontweight="bold", color=INK, va="center")
    note = f"{count_text(table)} examples · dots: q ≥ {options.q:g} ({options.correction.upper()} over {int(table['p'].notna().sum())} tests)"
    figure.text(0.98 / size[0], 1 - 0.55 / size[1], note, fontsize=8.5, color=QUIET, va="center")
    for number, panel in enumerate(panels):
        ax, bar = figure.add_subplot(grid[number, 0]), figure.add_subplot(grid[number, 1])
        _panel(figure, ax, bar, panel, columns, metric, options.by or "")
    return figure


def _title(metric: str, name: str) -> str:
    return f"{name}: where the answer is carried" if metric == "normalized_effect" and name else f"{name}: effect of each edit" if name else metric


def order_of(part: pd.DataFrame, axis: str) -> list[Any]:
    """Return an axis' labels in the order of the table."""
    return list(dict.fromkeys(part[axis].dropna()))


def _panel(figure: Figure, ax: Any, bar: Any, panel: _Panel, columns: int, metric: str, by: str) -> None:
    part, down, across = panel.rows, panel.down, panel.across
    xs, ys = order_of(part, across) if across else [""], order_of(part, down) if down else [""]
    values, dots = np.full((len(ys), len(xs)), np.nan), np.zeros((len(ys), len(xs)), bool)
    for _, row in part.iterrows():
        y = ys.index(row[down]) if down else 0
        x = xs.index(row[across]) if across else 0
        values[y, x], dots[y, x] = row["mean"], not row["significant"]
    colours, norm = panel.scale
    flat = not (np.abs(part["mean"].to_numpy(float)) > FLAT).any()
    image = ax.pcolormesh(
        np.arange(len(xs) + 1) - 0.5, np.arange(len(ys) + 1) - 0.5, np.ma.masked_invalid(values), cmap=colours, norm=norm, edgecolors=PAPER, linewidth=1.4
    )
    ax.set_xlim(-0.5, max(columns, len(xs)) - 0.5)
    annotate(ax, values, dots, colours, norm)
    ax.set_title(panel.title + (" · no effect anywhere" if flat else ""), loc="left", fontsize=10, color=INK, pad=5)
    ax.set_xticks(range(len(xs)), [tick(x) for x in xs] if len(xs) <= 24 else [tick(x) if i % (len(xs) // 12) == 0 else "" for i, x in enumerate(xs)])
    ax.set_yticks(range(len(ys)), [tick(y) for y in ys])
    ax.set_xlabel({"step": "latent step"}.get(across or "", across or ""), fontsize=9, color=QUIET, labelpad=3)
    ax.set_ylabel(by.replace("_", " ") if down == "by" else down or "", fontsize=9, color=QUIET)
    ax.tick_params(length=0, labelsize=9, colors=INK)
    for side in ax.spines.values():
        side.set_visible(False)
    if down == "by":
        ax.invert_yaxis()
    if flat:  # a scale of nothing says nothing
        bar.set_visible(False)
        return
    colourbar = figure.colorbar(image, cax=bar)
    colourbar.outline.set_visible(False)
    colourbar.ax.tick_params(length=0, labelsize=7.5, colors=QUIET)
    colourbar.locator = few_ticks()
    colourbar.update_ticks()
    if down or columns == 1:
        colourbar.set_label("\n".join(wrap(WORDS.get(metric, metric), 26)), fontsize=7.5, color=QUIET)


def tick(label: Any) -> str:
    """Return an axis label as it fits under a column: the set 0+1+2+3 is 0–3."""
    parts = str(label).split("+")
    whole = len(parts) > 2 and all(p.isdigit() for p in parts) and int(parts[-1]) - int(parts[0]) == len(parts) - 1
    return f"{parts[0]}–{parts[-1]}" if whole else str(label)


def short_sets(text: str) -> str:
    """Return a text with its sets of steps as they fit into a title: layer 3 step 0–5 for layer 3 step 0+1+2+3+4+5."""
    return re.sub(r"\d+(?:\+\d+)+", lambda m: tick(m[0]), text)


def few_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(4)


def annotate(ax: Any, values: np.ndarray, dots: np.ndarray, colours: Colormap, norm: Normalize, size: float = 8.0) -> None:
    """Write each value (where there is room for numbers of this size) and put a dot where ``dots`` says so."""
    numbers = values.size <= NUMBERS and size > 0
    for y, x in np.argwhere(np.isfinite(values)):
        red, green, blue, _ = colours(norm(values[y, x]))
        ink = "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else INK
        if numbers:
            ax.text(x, y, two_digits(values[y, x]).replace("-", "−"), ha="center", va="center", fontsize=size, color=ink, gid="value")
        if dots[y, x]:
            ax.plot(x + (0.36 if numbers else 0), y + (0.32 if numbers else 0), ".", markersize=2.6, color=ink, alpha=0.6)


def bars(table: pd.DataFrame, axes: Sequence[str], metric: str, options: ImportanceOptions) -> Figure:
    """Draw the mean effect along each axis that varies, per condition; whiskers are intervals over examples where one place is one bar."""
    panels = [(c, a, p) for c, p in table.groupby("condition", sort=False) for a in axes if p[a].notna().any() and p[a].nunique() > 1]
    panels = panels or [(c, None, p) for c, p in table.groupby("condition", sort=False)]  # type: ignore[misc]
    figure = Figure(figsize=(6.4, 2.15 * len(panels) + 0.5), facecolor=PAPER, layout="constrained")
    for number, (condition, axis, part) in enumerate(panels):
        ax = figure.add_subplot(len(panels), 1, number + 1)
        groups = list(part.groupby(axis, sort=False)) if axis else [(condition, part)]
        for x, (_, group) in enumerate(groups):
            mean = float(group["mean"].mean())
            low, high = float(group["ci_low"].mean()), float(group["ci_high"].mean())
            ax.bar(x, mean, width=0.72, color="#3b7fb6", zorder=2)
            if np.isfinite(low) and np.isfinite(high):
                ax.plot([x, x], [low, high], color=INK, linewidth=1.1, zorder=3)
        ax.axhline(0, color=QUIET, linewidth=0.8)
        ax.set_xticks(range(len(groups)), [tick(g[0]) for g in groups], fontsize=8.5)
        ax.set_title(f"{condition} by {axis}" if axis else str(condition), loc="left", fontsize=10, color=INK)
        ax.set_ylabel(metric.replace("_", " "), fontsize=8.5, color=QUIET)
        ax.tick_params(length=0, labelsize=8.5, colors=INK)
        ax.grid(axis="y", color=GRID, zorder=0)
        for side in ("top", "right", "left"):
            ax.spines[side].set_visible(False)
    figure.supxlabel(f"mean over the other axes; whiskers: mean of the places' {options.confidence:.0%} intervals over examples", fontsize=8, color=QUIET)
    return figure


def example_map(per: pd.DataFrame, axes: Sequence[str], metric: str) -> Figure | None:
    """Draw examples × steps of the first condition that has steps or positions, examples ordered by their total effect."""
    across = next((a for a in ("step", "position") if a in axes), None)
    if across is None:
        return None
    known = per[per[across].notna()]
    if known.empty:
        return None
    part = known[known["condition"] == known["condition"].iloc[0]]
    grid = part.pivot_table(index="example", columns=across, values="effect", aggfunc="mean", sort=False)
    grid = grid.loc[grid.abs().sum(axis=1).sort_values(kind="stable").index[-60:]]
    figure = Figure(figsize=(max(0.5 * grid.shape[1] + 2.8, 4.6), 0.15 * len(grid) + 1.5), facecolor=PAPER, layout="constrained")
    ax = figure.add_subplot()
    colours, norm = colour_scale(grid.to_numpy(float), True)
    image = ax.pcolormesh(np.ma.masked_invalid(grid.to_numpy(float)), cmap=colours, norm=norm, edgecolors=PAPER, linewidth=0.4)
    ax.set_xticks(np.arange(grid.shape[1]) + 0.5, [tick(c) for c in grid.columns], fontsize=8.5)
    ax.set_yticks(np.arange(len(grid)) + 0.5, [str(e) for e in grid.index], fontsize=6)
    ax.set_xlabel("latent step" if across == "step" else across, fontsize=9, color=QUIET)
    ax.set_ylabel("example (strongest on top)", fontsize=9, color=QUIET)
    ax.set_title(f"{part['condition'].iloc[0]}: {metric.replace('_', ' ')} per example", loc="left", fontsize=10, color=INK)
    ax.tick_params(length=0, colors=INK)
    for side in ax.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=ax, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=7.5, colors=QUIET)
    return figure
