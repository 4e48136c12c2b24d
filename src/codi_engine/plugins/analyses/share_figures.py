"""The pictures of ``proportions``: outcomes as stacked bars along layers and steps, and the strongest differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses.figures import GRID, INK, PAPER, QUIET, short_sets, tick
from codi_engine.plugins.metrics.outcome import OTHER, UNPARSABLE

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.proportions import ProportionsOptions

#: labels that an axis may have and still be drawn one bar each; beyond, the targets that differ most
BARS, STRONGEST = 40, 24
_NO_AXIS: list[Any] = [None]
_COLOURS = ("#3b7fb6", "#d8795b", "#5aa17f", "#b58cc4", "#d9b44a", "#6bb3c4", "#a86a57", "#8a8fd0")
_FIXED = {
    "clean_answer": "#3b7fb6", "corrupted_answer": "#d8795b", "other_answer": "#d3d8df", "unintelligible": "#6b7280",
    OTHER: "#d3d8df", UNPARSABLE: "#6b7280",
}  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What was compared: conditions with targets of their own, those that all targets share (unedited), the targets' axes and number."""

    own: Sequence[str]
    shared: Sequence[str]
    axes: Sequence[str]
    targets: int


def draw(a: Layout, tables: Mapping[str, pd.DataFrame], classes: Mapping[str, Sequence[str]], options: ProportionsOptions) -> dict[str, Figure]:
    """Return name → figure: one of bars per set of classes, ``strongest`` and, for numbers, ``numbers``."""
    figures = {}
    for name, columns in classes.items():
        drawn = bars(a, tables["shares"], tables["proportions"], name, columns)
        if drawn is not None:
            figures[name] = drawn
    tests = tables["proportions"][tables["proportions"]["tested"]]
    for name, size in (("strongest", "cohens_h"), ("numbers", "hedges_g")):
        part = tests[tests["size"] == size]
        if len(part):
            figures[name] = forest(part, options, len(tests))
    return figures


# -------------------------------------------------------------------------------------------------- bars


def _panels(a: Layout, shares: pd.DataFrame, tests: pd.DataFrame, columns: Sequence[str]) -> list[tuple[str, str, list[str], np.ndarray]]:
    """Return (title, axis, labels of the bars, bars × columns) of every panel; unedited bars come first."""
    table = shares[shares["metric"].isin(columns)]
    axes = [x for x in a.axes if 1 < table[x].nunique() <= BARS]
    first = [(name, _means(table[table["condition"] == name], None, columns)[1][0]) for name in a.shared]
    panels = []
    for condition in a.own:
        part = table[table["condition"] == condition]
        for axis in axes or _NO_AXIS:
            if axis is None and a.targets > 1:
                strongest = tests[tests["metric"].isin(columns)].assign(size_=lambda t: t["difference"].abs()).groupby("target")["size_"].max()
                part = part[part["target"].isin(strongest.nlargest(STRONGEST).index)]
            labels, values = _means(part, axis or ("target" if a.targets > 1 else None), columns)
            if axis is None and a.targets == 1:
                labels = [condition]
            others = [x for x in axes if x != axis]
            title = condition if axis is None or not others else f"{condition} by {axis}, mean over {' and '.join(others)}"
            panels.append((title, axis or "", [n for n, _ in first] + labels, np.concatenate([np.stack([v for _, v in first]), values]) if first else values))
    if a.targets == 1 and panels:  # one bar per condition: side by side
        return [("", "", [n for p in panels for n in p[2][len(first) :]], np.concatenate([p[3][len(first) :] for p in panels]))]
    return panels


def _means(part: pd.DataFrame, key: str | None, columns: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return labels and bars × columns: means over targets that share a label."""
    frame = part.assign(key_="all" if key is None else part[key])
    table = frame.pivot_table(index="key_", columns="metric", values="mean", aggfunc="mean", sort=False).reindex(columns=list(columns))
    order = [k for k in dict.fromkeys(frame["key_"].dropna()) if k in table.index]
    return [str(k) for k in order], table.loc[order].to_numpy(float)


def bars(a: Layout, shares: pd.DataFrame, tests: pd.DataFrame, name: str, columns: Sequence[str]) -> Figure | None:
    """Draw the shares of a set of classes as stacked bars, a panel per condition and axis."""
    panels = [p for p in _panels(a, shares, tests, columns) if p[2]]
    if not panels:
        return None
    most = max(len(p[2]) for p in panels)
    crowded = max(len(label) for p in panels for label in p[2]) * most > 95
    size = (min(max(0.42 * most + 1.4, 6.4), 16), (2.5 if crowded else 1.95) * len(panels) + 1.15)
    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.78 / size[1]))  # type: ignore[union-attr, call-arg]
    colours = _palette(columns)
    for number, (title, axis, labels, values) in enumerate(panels):
        ax = figure.add_subplot(len(panels), 1, number + 1)
        _stack(ax, labels, values, colours)
        ax.set_title(title, loc="left", fontsize=10, color=INK)
        ax.set_xlim(-0.6, max(most, 6) - 0.4)
        ax.set_xticks(range(len(labels)), [tick(label) for label in labels], fontsize=8, rotation=90 if crowded else 0)
        ax.set_xlabel({"step": "latent step"}.get(axis, axis), fontsize=9, color=QUIET)
    figure.text(0.12 / size[0], 1 - 0.26 / size[1], f"{name}: share of each outcome", fontsize=13, fontweight="bold", color=INK, va="center")
    handles = [_swatch(colour) for colour in colours]
    names = [c.partition("=")[2] or c.replace("_", " ") for c in columns]
    figure.legend(
        handles, names, loc="upper left", bbox_to_anchor=(0.06 / size[0], 1 - 0.4 / size[1]), ncols=len(columns), frameon=False, fontsize=8.5,
        handlelength=1.0, handleheight=1.0, columnspacing=1.4,
    )  # fmt: skip
    return figure


def _palette(columns: Sequence[str]) -> list[str]:
    free = iter(_COLOURS * (1 + len(columns) // len(_COLOURS)))
    return [_FIXED.get(c.partition("=")[2] or c) or next(free) for c in columns]


def _swatch(colour: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour)


def _stack(ax: Any, labels: Sequence[str], values: np.ndarray, colours: Sequence[str]) -> None:
    below = np.zeros(len(labels))
    for column, colour in enumerate(colours):
        height = np.nan_to_num(values[:, column])
        ax.bar(range(len(labels)), height, bottom=below, width=0.74, color=colour, zorder=2)
        for x, (y, h) in enumerate(zip(below, height, strict=True)):
            if h >= 0.12 and len(labels) <= 20:
                ax.text(x, y + h / 2, f"{h:.0%}".removesuffix("%"), ha="center", va="center", fontsize=7, color=_ink(colour), zorder=3)
        below = below + height
    ax.set_ylim(0, 1)
    ax.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    ax.grid(axis="y", color=GRID, zorder=0)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)


def _ink(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#ffffff" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.62 else INK


# ------------------------------------------------------------------------------------------------ forest


def forest(tests: pd.DataFrame, options: Any, family: int, title: str = "Strongest differences") -> Figure:
    """Draw the strongest differences with their intervals; filled points are significant."""
    order = tests.assign(size_=-tests["difference"].abs()).sort_values(["p", "size_"], kind="stable").index[: options.top or 20]
    rows = [tests.loc[i] for i in order]
    several = tests["condition"].nunique() > 1 or tests["against"].nunique() > 1
    names = [f"{r['target']} · {r['metric']}" + (f" · {r['condition']} − {r['against']}" if several else "") for r in rows]
    names = [short_sets(n) for n in names]
    names = [n if len(n) <= 64 else f"{n[:63]}…" for n in names]
    left = 0.075 * max(map(len, names)) + 0.25
    size = (left + 5.0, 0.27 * len(rows) + 1.75)
    figure = Figure(figsize=size, facecolor=PAPER)
    ax = figure.add_axes((left / size[0], 0.72 / size[1], 4.6 / size[0], 1 - 1.62 / size[1]))
    for y, row in enumerate(rows):
        colour = _COLOURS[0] if row["difference"] >= 0 else _COLOURS[1]
        if np.isfinite([row["ci_low"], row["ci_high"]]).all():
            ax.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, linewidth=1.4, zorder=2)
        ax.plot(row["difference"], y, "o", markersize=5.5, color=colour, markerfacecolor=colour if row["significant"] else PAPER, zorder=3)
    ax.axvline(0, color=QUIET, linewidth=0.8, zorder=1)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_yticks(range(len(rows)), names, fontsize=8)
    ax.grid(axis="x", color=GRID, zorder=0)
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    shares = rows[0]["size"] == "cohens_h"
    pair = "" if several else f"{rows[0]['condition']} − {rows[0]['against']}: "
    ax.set_xlabel(f"{pair}difference of {'shares' if shares else 'means'}, {options.confidence:.0%} interval", fontsize=9, color=QUIET)
    x = 0.12 / size[0]
    figure.text(x, 1 - 0.3 / size[1], title + ("" if shares else " of numbers"), fontsize=13, fontweight="bold", color=INK, va="center")
    note = f"filled: q < {options.q:g} ({options.correction.upper()} over {family:,} tests) · {rows[0]['test']} tests · {_n(rows)}"
    figure.text(x, 1 - 0.57 / size[1], note, fontsize=8.5, color=QUIET, va="center")
    return figure


def _n(rows: Sequence[pd.Series]) -> str:
    """Say how many observations a condition has; of all rows and both sides the least and the most."""
    counts = [int(row[side]) for row in rows for side in ("n", "n_against")]
    return f"n = {min(counts):,}" if min(counts) == max(counts) else f"n = {min(counts):,}–{max(counts):,}"


# ---------------------------------------------------------------------------------------------- features


def features(tests: pd.DataFrame, chosen: pd.DataFrame, options: Any) -> dict[str, Figure]:
    """Return ``volcano``, all tests by effect and p with the selected features named, and ``selected``, their forest plot."""
    known = tests[tests["tested"]]
    if known.empty:
        return {}
    figures = {"volcano": _volcano(known, chosen)}
    shares = chosen[chosen["size"] == "cohens_h"]
    if len(shares):
        shown = shares.assign(target=shares["feature"])
        figures["selected"] = forest(shown, options, len(known), "Selected features")
    return figures


def _volcano(tests: pd.DataFrame, chosen: pd.DataFrame) -> Figure:
    """Draw effects against −log10 p, a panel per metric that changes anything."""
    metrics = list(dict.fromkeys([*chosen["metric"], *tests["metric"]]))[:6]
    columns = min(len(metrics), 3)
    rows = -(-len(metrics) // columns)
    size = (max(3.2 * columns + 0.4, 5.2), 3.0 * rows + 0.8)
    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    figure.get_layout_engine().set(rect=(0, 0, 1, 1 - 0.75 / size[1]))  # type: ignore[union-attr, call-arg]
    for number, metric in enumerate(metrics):
        ax = figure.add_subplot(rows, columns, number + 1)
        part = tests[tests["metric"] == metric]
        height = -np.log10(np.maximum(part["p"].to_numpy(float), 1e-300))
        picked = part["significant"].to_numpy(bool)
        ax.scatter(part["difference"][~picked], height[~picked], s=14, color="#c9ced6", linewidths=0, zorder=2)
        ax.scatter(part["difference"][picked], height[picked], s=24, color=_COLOURS[0], linewidths=0, zorder=3)
        for _, row in chosen[chosen["metric"] == metric].head(8).iterrows():
            at = (row["difference"], -np.log10(max(row["p"], 1e-300)))
            ax.annotate(row["feature"], at, xytext=(4, 3), textcoords="offset points", fontsize=9, color=INK)
        ax.axvline(0, color=QUIET, linewidth=0.8, zorder=1)
        ax.margins(x=0.14, y=0.1)
        ax.set_ylim(bottom=-0.02 * max(float(height.max(initial=1.0)), 1.0))
        ax.set_title(metric, loc="left", fontsize=11, color=INK)
        ax.set_xlabel("difference of shares" if part["size"].iloc[0] == "cohens_h" else "difference of means", fontsize=10, color=QUIET)
        if number % columns == 0:
            ax.set_ylabel("−log10 p", fontsize=10, color=QUIET)
        ax.locator_params(axis="x", nbins=5)
        ax.grid(color=GRID, zorder=0)
        ax.tick_params(length=0, labelsize=9.5, colors=INK)
        for side in ax.spines.values():
            side.set_visible(False)
    title = f"{len(chosen):,} of {tests['feature'].nunique():,} features change an outcome"
    figure.text(0.12 / size[0], 1 - 0.28 / size[1], title, fontsize=13, fontweight="bold", color=INK, va="center")
    figure.text(0.12 / size[0], 1 - 0.55 / size[1], "blue: significant after correction; the most certain are named", fontsize=8.5, color=QUIET, va="center")
    return figure
