"""The pictures of ``across``: lines over checkpoints, places × checkpoints, curves over relative depth, accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses.compare_figures import short
from codi_engine.plugins.analyses.figures import GRID, INK, PAPER, QUIET, SEQUENTIAL, WORDS, colour_scale
from codi_engine.plugins.analyses.place_figures import Map, maps
from codi_engine.plugins.analyses.share_figures import _COLOURS as COLOURS

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.across import AcrossOptions

ROWS = 24  # places of a condition in the heatmap
LINES = 8  # checkpoints with a curve of their own over depth


@dataclass(frozen=True)
class Shown:
    """What stands beside each other: the checkpoints in order, their models' layers, the places' axes.

    ``numbers``: the labels differ in one number; ``relative``: layers are compared by depth, for models have different numbers of them.
    """

    labels: Sequence[str]
    metric: str
    axes: Sequence[str]
    layers: Sequence[int | None]
    relative: bool
    numbers: bool
    name: str

    @property
    def shared(self) -> list[str]:
        """Return the axes that places of all checkpoints share."""
        return ["depth" if a == "layer" and self.relative else a for a in self.axes]


def draw(series: Shown, tables: Mapping[str, pd.DataFrame], options: AcrossOptions) -> dict[str, Figure]:
    """Return name → figure."""
    figures = {}
    if "trend" in tables:
        places = placed(series, tables["effects"])
        if len(places):
            figures["lines"] = _lines(series, places, options)
            figures["heatmap"] = _heatmap(series, places, options)
        if "depth" in tables:
            figures["depth"] = _depth(series, tables["depth"], options)
    if len(tables["baseline"]):
        figures["accuracy"] = _accuracy(series, tables["baseline"], options)
    return figures


def placed(series: Shown, table: pd.DataFrame) -> pd.DataFrame:
    """Return effects of the places that checkpoints share, with their names in ``place`` (and ``strongest`` |mean| of all checkpoints)."""
    out = table
    if series.relative:
        out = table[table["match"].notna() | table["layer"].isna()]
        out = out.assign(depth=out["match"]).sort_values("depth", kind="stable")
    names = ["·".join(_value(row[a]) for a in series.shared if not pd.isna(row[a])) or "whole" for _, row in out.iterrows()]
    out = out.assign(place=names)
    return out.assign(strongest=out["mean"].abs().groupby([out["condition"], out["place"]]).transform("max"))


def _value(value: Any) -> str:
    """Return an axis' value; a depth to three digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _metric(series: Shown) -> str:
    return WORDS.get(series.metric, series.metric)


def _n(table: pd.DataFrame) -> str:
    low, high = int(table["n"].min()), int(table["n"].max())
    return f"n = {low}" if low == high else f"n = {low}–{high}"


def _name(series: Shown) -> str:
    return short(series.name, 30)


def _tick(label: str, length: int = 14) -> str:
    """Return a label with a hyphen that no figure takes for a minus."""
    return short(label, length).replace("-", "\u2010")


def _over_checkpoints(series: Shown, title: str, note: str, label: str, found: Sequence[tuple[str, pd.DataFrame]]) -> Figure:
    """Draw one line each (mean, ci_low, ci_high by checkpoint); whiskers stand beside each other."""
    count = len(series.labels)
    figure = Figure(figsize=(min(max(0.75 * count + 3.6, 6.8), 12.0), 3.6), facecolor=PAPER, layout="constrained")
    ax = figure.add_subplot()
    for number, ((name, table), colour) in enumerate(zip(found, COLOURS, strict=False)):
        rows = table.set_index("checkpoint").reindex(list(series.labels))
        xs = np.arange(count) + 0.05 * (number - (len(found) - 1) / 2)
        ax.vlines(xs, rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float), color=colour, linewidth=1.0, alpha=0.6)
        ax.plot(xs, rows["mean"].to_numpy(float), color=colour, marker="o", markersize=4, linewidth=1.6, label=name)
    every = max(count // 12, 1) if count > 16 else 1
    ax.set_xticks(range(count), [_tick(v) if i % every == 0 else "" for i, v in enumerate(series.labels)])
    ax.set_xlim(-0.35, count - 0.65)
    _dress(ax, label, "", "checkpoint")
    ax.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold", color=INK)
    ax.text(0, 1.03, note, transform=ax.transAxes, fontsize=8, color=QUIET)
    ax.legend(frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK)
    return figure


def _lines(series: Shown, places: pd.DataFrame, options: AcrossOptions) -> Figure:
    order = places.drop_duplicates(["condition", "place"]).sort_values("strongest", ascending=False, kind="stable").head(options.top)
    several = places["condition"].nunique() > 1
    found = []
    for _, row in order.iterrows():
        part = places[(places["condition"] == row["condition"]) & (places["place"] == row["place"])]
        words = " ".join(f"{a} {_value(row[a])}" for a in series.shared if not pd.isna(row[a])) or str(row["condition"])
        found.append((short(f"{row['condition']} {words}" if several else words, 30), part))
    note = f"the {len(found)} places that are strongest at any checkpoint; whiskers: {options.confidence:.0%} intervals, {_n(places)} examples"
    return _over_checkpoints(series, f"{_name(series)}: effects over checkpoints", note, _metric(series), found)


def _heatmap(series: Shown, places: pd.DataFrame, options: AcrossOptions) -> Figure:
    colours, norm = colour_scale(places["mean"].to_numpy(float), True)
    panels, cut = [], 0
    for condition, part in places.groupby("condition", sort=False):
        rows = part.drop_duplicates("place")
        kept = set(rows.sort_values("strongest", ascending=False, kind="stable")["place"].head(ROWS))
        cut += len(rows) - len(kept)
        down = [p for p in rows["place"] if p in kept]
        grids = [part.pivot(index="place", columns="checkpoint", values=v).reindex(index=down, columns=list(series.labels)) for v in ("mean", "significant")]
        quiet = grids[1].to_numpy(object) == False  # noqa: E712 - None is no test
        panels.append(
            Map(
                str(condition), grids[0].to_numpy(float), [_tick(p, 12) for p in down], [_tick(v, 9) for v in series.labels], _metric(series), norm,
                colours, quiet, down_name="·".join(series.shared), across_name="checkpoint",
            )
        )  # fmt: skip
    note = f"{_n(places)} examples; dots: q ≥ {options.q:g} ({options.correction.upper()})" + (f"; {cut} weaker places are left out" if cut else "")
    return maps(f"{_name(series)}: places over checkpoints", note, panels)


def _accuracy(series: Shown, table: pd.DataFrame, options: AcrossOptions) -> Figure:
    found = [(str(variant), part.rename(columns={"accuracy": "mean"})) for variant, part in table.groupby("variant", sort=False)]
    note = f"without any edit; whiskers: {options.confidence:.0%} intervals (Wilson), {_n(table)} examples"
    return _over_checkpoints(series, f"{_name(series)}: accuracy", note, "accuracy", found)


# -------------------------------------------------------------------------------------------- depth


def _depth(series: Shown, table: pd.DataFrame, options: AcrossOptions) -> Figure:
    conditions = list(table["condition"].unique())
    some = _some(series.labels)
    figure = Figure(figsize=(6.8, 2.6 * len(conditions) + 0.9), facecolor=PAPER, layout="constrained")
    for number, condition in enumerate(conditions):
        ax = figure.add_subplot(len(conditions), 1, number + 1)
        for at, label in enumerate(some):
            colour = SEQUENTIAL(0.35 + 0.65 * at / max(len(some) - 1, 1)) if series.numbers and len(some) > 3 else COLOURS[at]
            mine = table[(table["condition"] == condition) & (table["checkpoint"] == label)]
            _curve(ax, mine, label, series.layers[series.labels.index(label)], colour)
        _dress(ax, _metric(series), str(condition), "relative depth: layer / (layers − 1)" if number == len(conditions) - 1 else "")
        ax.set_xlim(-0.03, 1.03)
        if number == 0:
            ax.legend(frameon=False, fontsize=8.5, loc="best")
    others = [a for a in series.axes if a != "layer"]
    over = f"mean over {' and '.join(others)}; " if others else ""
    note = f"{over}bands: {options.confidence:.0%} intervals over examples"
    figure.suptitle(f"{_name(series)}: effects over relative depth", x=0.02, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.supxlabel(note, fontsize=8, color=QUIET)
    return figure


def _some(labels: Sequence[str]) -> list[str]:
    """Return at most :data:`LINES` labels, the first and the last among them."""
    return [labels[i] for i in np.unique(np.linspace(0, len(labels) - 1, min(len(labels), LINES)).round().astype(int))]


def _curve(ax: Any, table: pd.DataFrame, label: str, layers: int | None, colour: Any) -> None:
    ax.plot(table["depth"], table["mean"], color=colour, marker="o", markersize=4, linewidth=1.6, label=f"{short(label, 24)} ({layers} layers)")
    ax.fill_between(table["depth"], table["ci_low"].astype(float), table["ci_high"].astype(float), color=colour, alpha=0.16, linewidth=0)


def _dress(ax: Any, metric: str, title: str, below: str) -> None:
    ax.set_title(title, loc="left", fontsize=10, color=INK)
    ax.set_ylabel(short(metric, 44), fontsize=8.5, color=QUIET)
    ax.set_xlabel(below, fontsize=9, color=QUIET)
    ax.tick_params(length=0, labelsize=8.5, colors=INK)
    ax.grid(axis="y", color=GRID)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
