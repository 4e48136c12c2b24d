"""The pictures of ``logit_lens``: rank and entropy by layer × step, and which step says which intermediate value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize

from codi_engine.plugins.analyses.figures import SEQUENTIAL
from codi_engine.plugins.analyses.place_figures import Map, Places, maps, named
from codi_engine.plugins.analyses.sought import called

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.plugins.analyses.logit_lens import LogitLensOptions
    from codi_engine.plugins.analyses.states import States

#: conditions that one figure shows
_CONDITIONS = 6


def draw(tables: Mapping[str, pd.DataFrame], states: Places, options: LogitLensOptions, name: str) -> dict[str, Figure]:
    """Return ``rank``, ``entropy`` and ``values``; what is nowhere defined is not drawn."""
    lens, values = tables["lens"], tables["intermediate"]
    head = f"{name}: " if name else ""
    out: dict[str, Figure] = {}
    if lens["rank"].notna().any():
        top = max(float(lens["rank"].max()), 2.0)
        panels = _panels(lens, states, "rank", "median rank", LogNorm(1.0, top), SEQUENTIAL.reversed(), _rank)
        out["rank"] = maps(f"{head}rank of the answer", _note(lens["n_answer"], states), panels)
    if lens["entropy"].notna().any():
        panels = _panels(lens, states, "entropy", "entropy (nats)", Normalize(0.0, float(lens["entropy"].max()) or 1.0), SEQUENTIAL, None)
        out["entropy"] = maps(f"{head}entropy of the lens", _note(lens["n"], states), panels)
    if values["hit"].notna().any():
        out["values"] = maps(f"{head}which {states.axis} says which value", _note(values["n"], states), _value_panels(values, states, options))
    return out


def _note(counts: Any, states: Places) -> str:
    known = counts[counts > 0]
    n = f"n = {known.min()}" if known.min() == known.max() else f"n = {known.min()}–{known.max()}"
    return f"{n} examples · {states.site} through the last norm and unembedding"


def _rank(value: float) -> str:
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def layer_labels(states: Places | States) -> list[str]:
    """Return the layers' names; an empty one where the site has none."""
    return ["" if layer is None else str(layer) for layer in states.layers]


def place_labels(states: Places | States) -> list[str]:
    """Return the places' names; ``latent_out`` before step 0 is the state at bot."""
    return ["bot" if place == -1 and states.axis == "step" else "" if place is None else str(place) for place in states.places]


def _panels(table: pd.DataFrame, states: Places, column: str, label: str, norm: Normalize, colours: Any, text: Any) -> list[Map]:
    panels = []
    for condition, part in list(table.groupby("condition", sort=False))[:_CONDITIONS]:
        values = part[column].to_numpy(float).reshape(states.shape)
        extra = {} if text is None else {"text": text}
        panels.append(Map(str(condition), values, layer_labels(states), place_labels(states), label, norm, colours, across_name=named(states.axis), **extra))
    return panels


def best_layer(part: pd.DataFrame, states: Places | States) -> int:
    """Return the number of the layer in which the values are read best: mean over values of the best step's hits above chance."""
    above = part["above"].fillna(-np.inf).to_numpy(float).reshape(-1, *states.shape)
    best = above.max(2)
    best[~np.isfinite(best)] = 0.0
    return int(best.mean(0).argmax())


def _value_panels(table: pd.DataFrame, states: Places, options: LogitLensOptions) -> list[Map]:
    panels = []
    for condition, part in list(table.groupby("condition", sort=False))[:_CONDITIONS]:
        names = list(dict.fromkeys(part["value"]))
        layer = best_layer(part, states)
        hits, marks = (part[c].to_numpy().reshape(len(names), *states.shape)[:, layer] for c in ("hit", "significant"))
        where = f", layer {states.layers[layer]}" if states.layers[layer] is not None else ""
        rows = [called(n) for n in names]
        label = f"share with rank ≤ {options.top}"
        panels.append(
            Map(
                f"{condition}{where} · dots: not above other examples' values", hits.astype(float), rows, place_labels(states), label, Normalize(0.0, 1.0),
                marks=~marks.astype(bool), down_name="", across_name=named(states.axis),
            )
        )  # fmt: skip
    return panels
