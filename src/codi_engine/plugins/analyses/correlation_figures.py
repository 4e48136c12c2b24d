"""The picture of ``correlation``: the strongest features, ordered by hierarchical clustering."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from codi_engine.plugins.analyses.figures import DIVERGING, INK, PAPER, QUIET


def heatmap(r: np.ndarray, labels: list[str], condition: str) -> Figure:
    """Draw correlations (features × features), neighbours being alike (average linkage of 1 − r)."""
    order = _clustered(r)
    r, labels = r[np.ix_(order, order)], [labels[i] for i in order]
    count = len(labels)
    side = max(0.19 * count, 3.2)
    longest = max(len(n) for n in labels)
    margin = min(0.075 * longest + 0.35, 2.2)
    width, height = side + margin + 1.2, side + margin + 0.95
    figure = Figure(figsize=(width, height), facecolor=PAPER)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    image = axes.imshow(r, cmap=DIVERGING, norm=TwoSlopeNorm(0.0, -1.0, 1.0), interpolation="nearest")
    size = 7 if count <= 60 else 5
    axes.set_xticks(range(count), labels, fontsize=size, color=INK, rotation=90)
    axes.set_yticks(range(count), labels, fontsize=size, color=INK)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    bar = figure.colorbar(image, cax=figure.add_axes(((margin + side + 0.2) / width, margin / height, 0.14 / width, side / height)))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, colors=QUIET, length=0)
    title = f"Correlated features, {condition}"
    figure.text(margin / width, 1 - 0.32 / height, title, fontsize=13, fontweight="bold", color=INK, va="center")
    note = f"the {count} features of the strongest pairs, clustered by 1 − r"
    figure.text(margin / width, 1 - 0.6 / height, note, fontsize=8.5, color=QUIET, va="center")
    return figure


def _clustered(r: np.ndarray) -> np.ndarray:
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    if len(r) < 3:
        return np.arange(len(r))
    distance = 1.0 - np.nan_to_num(r)
    np.fill_diagonal(distance, 0.0)
    leaves: np.ndarray = leaves_list(linkage(squareform((distance + distance.T) / 2, checks=False), "average"))
    return leaves
