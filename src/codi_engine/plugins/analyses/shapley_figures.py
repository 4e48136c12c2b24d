"""The pictures of ``shapley``: values, interactions, and the effect by number of edited steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses import step_figures as pieces
from codi_engine.plugins.analyses.figures import QUIET, WORDS
from codi_engine.plugins.analyses.stepping import n_text

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.shapley import ShapleyOptions


@dataclass(frozen=True)
class Shown:
    """What the pictures say of the game: which condition and metric, and the steps."""

    condition: str
    metric: str
    players: Sequence[int]


def draw(tables: Mapping[str, pd.DataFrame], game: Shown, options: ShapleyOptions) -> dict[str, Figure]:
    """Return name → figure."""
    figures = {"values": _values(tables["values"], game, options), "sizes": _sizes(tables, game, options)}
    if len(tables["interactions"]):
        figures["interactions"] = _interactions(tables["interactions"], game, options)
    return figures


def _word(game: Shown) -> str:
    return WORDS.get(game.metric, game.metric)


def _values(values: pd.DataFrame, game: Shown, options: ShapleyOptions) -> Figure:
    note = f"{n_text(values['n'])} examples · whiskers: {options.confidence:.0%} intervals · pale: q ≥ {options.q:g} (BH)"
    figure = pieces.titled(max(0.75 * len(values) + 1.6, 5.6), 3.9, f"{game.condition}: Shapley value of each step", note)
    (ax,) = pieces.panels(figure, 1, 1)
    pieces.bars(ax, [str(s) for s in values["step"]], values)
    ax.plot(range(len(values)), values["banzhaf"], "D", color="#ffffff", markeredgecolor=pieces.RUST, markersize=5, zorder=4, label="Banzhaf value")
    pieces.plain(ax, "latent step", _word(game))
    pieces.key(ax, loc="best")
    return figure


def _interactions(links: pd.DataFrame, game: Shown, options: ShapleyOptions) -> Figure:
    count = len(game.players)
    grid, marks = np.full((count, count), np.nan), np.zeros((count, count), bool)
    for _, row in links.iterrows():
        a, b = game.players.index(row["a"]), game.players.index(row["b"])
        grid[a, b] = grid[b, a] = row["mean"]
        marks[a, b] = marks[b, a] = not row["significant"]
    note = f"above 0: more {game.metric} than the two edits add up to · dots: q ≥ {options.q:g} (BH)"
    figure = pieces.titled(max(0.66 * count + 2.2, 5.2), 0.6 * count + 1.9, f"{game.condition}: interactions of steps", note)
    (ax,) = pieces.panels(figure, 1, 1, right=0.75)
    image = pieces.matrix(ax, grid, game.players, game.players, pieces.scale_of(grid), marks, 2 if np.nanmax(np.abs(grid)) >= 0.1 else 3)
    pieces.plain(ax, "latent step", "latent step", grid=False)
    ax.spines["bottom"].set_visible(False)
    pieces.colourbar(figure, image, ax, f"Shapley interaction index, {game.metric}")
    return figure


def _sizes(tables: Mapping[str, pd.DataFrame], game: Shown, options: ShapleyOptions) -> Figure:
    sizes, sets = tables["sizes"], tables["sets"]
    note = f"dots: every set · line: mean over sets of a size, {options.confidence:.0%} interval over {n_text(sizes['n'])} examples"
    figure = pieces.titled(6.2, 3.9, f"{game.condition}: effect by number of edited steps", note)
    (ax,) = pieces.panels(figure, 1, 1)
    ax.plot(sets["size"], sets["mean"], ".", color=pieces.GREY, markersize=5, alpha=0.8, zorder=2)
    pieces.curve(ax, list(sizes["edited_steps"]), sizes, pieces.BLUE, "mean")
    ax.axhline(0, color=QUIET, linewidth=0.8)
    ax.set_xticks(sizes["edited_steps"])
    pieces.plain(ax, "edited steps", _word(game))
    return figure
