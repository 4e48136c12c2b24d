"""The pictures of ``tuned_lens``: held-out KL and rank of the answer, plain beside tuned."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from codi_engine.plugins.analyses.figures import SEQUENTIAL
from codi_engine.plugins.analyses.place_figures import Map, maps

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TITLES = {"plain": "plain logit lens", "tuned": "tuned lens"}


def draw(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return ``fit`` and, where there are gold answers, ``rank``."""
    fit, lens = tables["fit"], tables["lens"]
    norm = Normalize(0.0, max(float(np.nanmax(fit[["plain", "tuned"]].to_numpy(float))), 1e-9))
    note = f"n = {int(fit['n'].max())} held out, {int(fit['n_train'].max())} trained on · KL from the target (nats)"
    panels = [_map(_TITLES["plain"], fit, "plain", "KL (nats)", norm)]
    panels.append(_map(f"{_TITLES['tuned']} (dots: no significant difference)", fit, "tuned", "KL (nats)", norm, marks=_grid(fit, "significant") < 0.5))
    out = {"fit": maps("Tuned lens: how far from the target", note, panels)}
    if lens["rank"].notna().any():
        ranks = LogNorm(1.0, max(float(lens["rank"].max()), 2.0))
        parts = [(name, lens[lens["lens"] == name]) for name in _TITLES]
        panels = [_map(_TITLES[n], p, "rank", "median rank", ranks, colours=SEQUENTIAL.reversed(), text=_rank) for n, p in parts]
        out["rank"] = maps("Tuned lens: rank of the answer", f"n = {int(lens['n_answer'].max())} held-out examples · median", panels)
    return out


def _grid(table: pd.DataFrame, column: str) -> np.ndarray:
    grid: np.ndarray = table.pivot(index="layer", columns="step", values=column).to_numpy(float)
    return grid


def _map(title: str, table: pd.DataFrame, column: str, label: str, norm: Normalize, **more: Any) -> Map:
    layers, steps = sorted(set(table["layer"])), sorted(set(table["step"]))
    return Map(title, _grid(table, column), layers, steps, label, norm, **more)


def _rank(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
