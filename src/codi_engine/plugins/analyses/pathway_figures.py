"""The pictures of ``pathways``: the graph in columns of layers, and how many pathways lead from layer to layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from codi_engine.plugins.analyses.figures import DIVERGING, INK, PAPER, QUIET, SEQUENTIAL

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes

POSITIVE, NEGATIVE = DIVERGING(0.95), DIVERGING(0.08)


def draw(table: pd.DataFrame, graph: nx.DiGraph, most: int) -> dict[str, Figure]:
    """Return name → figure; none where nothing is significant."""
    if graph.number_of_edges() == 0:
        return {}
    figures = {"graph": graph_figure(graph, most)}
    if table["target_layer"].notna().any() and table["feature_layer"].notna().any():
        figures["layers"] = layer_figure(table)
    return figures


def graph_figure(graph: nx.DiGraph, most: int) -> Figure:
    """Draw the strongest pathways; features stand in columns by layer, ordered so that few lines cross."""
    edges = sorted(graph.edges(data=True), key=lambda e: (-abs(e[2].get("hedges_g", 0.0)), e[0], e[1]))[:most]
    shown = list(dict.fromkeys(n for a, b, _ in edges for n in (a, b)))
    columns = _columns(graph, shown)
    places = _places(columns, edges)
    tallest = max(len(c) for _, c in columns)
    pitch = min(max(0.075 * max(len(n) for n in shown) + 0.55, 0.9), 2.2)
    across = min(max(pitch * len(columns) + 0.4, 6.5), 16)
    figure = Figure(figsize=(across, min(max(0.42 * tallest + 1.6, 0.4 * across, 3.6), 24)), facecolor=PAPER)
    axes = figure.add_axes((0.02, 0.03, 0.96, 0.97 - 1.15 / figure.get_figheight()))
    strongest = max(abs(e[2].get("hedges_g", 0.0)) for e in edges) or 1.0
    for a, b, facts in reversed(edges):
        _arrow(axes, places[a], places[b], facts.get("hedges_g", 0.0), strongest)
    for name, (x, y) in places.items():
        axes.text(
            x, y, name, ha="center", va="center", fontsize=7.5, color=INK, zorder=3,
            bbox={"boxstyle": "round,pad=0.28", "facecolor": "#f6f8fa", "edgecolor": "#9aa4b2", "linewidth": 0.7},
        )  # fmt: skip
    head = max(1.02, _highest(edges, places, 0.27 * across / len(columns) / (0.97 * figure.get_figheight() - 1.15)) + 0.03)
    for x, (layer, _) in enumerate(columns):
        axes.text(x, head, "no layer" if layer is None else f"layer {layer}", ha="center", va="bottom", fontsize=9, color=QUIET)
    axes.set_xlim(-0.55, len(columns) - 0.45)
    axes.set_ylim(-0.03, head + 0.04)
    axes.axis("off")
    rest = graph.number_of_edges() - len(edges)
    title = f"{len(edges):,} strongest pathways" if rest else f"{len(edges):,} pathways"
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.3 / height, title, fontsize=13, fontweight="bold", color=INK, va="center")
    note = "from what was changed to what changed; width is |g|" + (f"; {rest:,} weaker ones are in the table" if rest else "")
    figure.text(0.02, 1 - 0.58 / height, note, fontsize=8.5, color=QUIET, va="center")
    figure.text(0.98, 1 - 0.3 / height, "increases", fontsize=9, color=POSITIVE, ha="right", va="center")
    figure.text(0.98, 1 - 0.58 / height, "decreases", fontsize=9, color=NEGATIVE, ha="right", va="center")
    return figure


def _columns(graph: nx.DiGraph, shown: list[str]) -> list[tuple[int | None, list[str]]]:
    """Return (layer, its features) from first to last layer; without layers, sources then the rest."""
    layers = {n: graph.nodes[n].get("layer") for n in shown}
    known = sorted({v for v in layers.values() if v is not None})
    columns: list[tuple[int | None, list[str]]] = [(layer, sorted(n for n in shown if layers[n] == layer)) for layer in known]
    rest = sorted(n for n in shown if layers[n] is None)
    sources = [n for n in rest if graph.out_degree(n)]
    others = [n for n in rest if not graph.out_degree(n)]
    if known:
        return [*columns, *([(None, rest)] if rest else [])]
    return [(None, c) for c in (sources, others) if c]


def _places(columns: list[tuple[int | None, list[str]]], edges: list[tuple[str, str, dict[str, float]]]) -> dict[str, tuple[float, float]]:
    """Return node → (x, y); each column is sorted by the mean height of its neighbours, to and fro."""
    y = {n: (i + 0.5) / len(c) for _, c in columns for i, n in enumerate(c)}
    near: dict[str, list[str]] = {n: [] for n in y}
    for a, b, _ in edges:
        near[a].append(b)
        near[b].append(a)
    for _ in range(6):
        for _, names in columns:
            names.sort(key=lambda n: (float(np.mean([y[m] for m in near[n]])) if near[n] else y[n], n))
            y.update({n: (i + 0.5) / len(names) for i, n in enumerate(names)})
    return {n: (float(x), y[n]) for x, (_, c) in enumerate(columns) for n in c}


def _highest(edges: list[tuple[str, str, dict[str, float]]], places: dict[str, tuple[float, float]], bulge: float) -> float:
    """Return the height that arrows and features reach: a level arrow over several columns bends upwards by ``bulge``."""
    tops = [y for _, y in places.values()]
    tops += [places[a][1] + bulge for a, b, _ in edges if abs(places[a][0] - places[b][0]) > 1 and abs(places[a][1] - places[b][1]) < 0.03]
    return max(tops)


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], g: float, strongest: float) -> None:
    share = abs(g) / strongest
    columns, level = abs(end[0] - start[0]), abs(end[1] - start[1]) < 0.03
    # a level one that passes other columns goes round what stands there; within a column it must leave it
    bend = 0.4 if columns == 0 else -0.5 / columns if level and columns > 1 else 0.0
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            arrowstyle="-|>",
            mutation_scale=9,
            shrinkA=22,
            shrinkB=22,
            linewidth=0.5 + 2.0 * share,
            color=POSITIVE if g >= 0 else NEGATIVE,
            alpha=0.35 + 0.5 * share,
            connectionstyle=f"arc3,rad={bend}",
            zorder=1,
        )
    )


def layer_figure(table: pd.DataFrame) -> Figure:
    """Draw how many significant pathways lead from each layer to each other one."""
    known = table.dropna(subset=["target_layer", "feature_layer"])
    table_ = pd.crosstab(known["target_layer"].astype(int), known["feature_layer"].astype(int))
    counts: np.ndarray = table_.to_numpy()
    rows, columns = counts.shape
    figure = Figure(figsize=(max(0.5 * columns + 2.2, 5.2), max(0.42 * rows + 1.7, 2.8)), facecolor=PAPER)
    width, height = figure.get_size_inches()
    axes = figure.add_axes((1.0 / width, 0.62 / height, 1 - 1.3 / width, 1 - 1.35 / height))
    axes.imshow(counts, cmap=SEQUENTIAL, aspect="auto", vmin=0)
    for i in range(rows):
        for j in range(columns):
            value = int(counts[i, j])
            if value and rows * columns <= 400:
                dark = value > 0.55 * counts.max()
                axes.text(j, i, f"{value:,}", ha="center", va="center", fontsize=7.5, color="white" if dark else INK)
    axes.set_xticks(range(columns), [str(c) for c in table_.columns], fontsize=8, color=QUIET)
    axes.set_yticks(range(rows), [str(r) for r in table_.index], fontsize=8, color=QUIET)
    axes.set_xlabel("layer of the feature that changed", fontsize=9, color=INK)
    axes.set_ylabel("layer of the target", fontsize=9, color=INK)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.text(1.0 / width, 1 - 0.32 / height, "Significant pathways from layer to layer", fontsize=13, fontweight="bold", color=INK, va="center")
    return figure
