"""The picture of ``latent_film``: how often the first token of each state changed, by edited place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import Normalize

from codi_engine.plugins.analyses.film_tables import edit_columns
from codi_engine.plugins.analyses.place_figures import Map, maps

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: conditions, and rows of one of them, that the figure shows
_CONDITIONS, _PLACES = 6, 48


def draw(tables: Mapping[str, pd.DataFrame]) -> dict[str, Figure]:
    """Return ``changes``, one map per condition; nothing where no cell was edited."""
    table = tables.get("changes")
    if table is None or not table["changed"].notna().any():
        return {}
    panels = [_panel(str(c), p) for c, p in list(table.groupby("condition", sort=False))[:_CONDITIONS]]
    n = f"n = {table['n'].min()}" if table["n"].nunique() == 1 else f"n = {table['n'].min()}–{table['n'].max()}"
    return {"changes": maps("Latent film: what the latents say after the edit", f"{n} examples · first token of each state, edited against unedited", panels)}


def _panel(condition: str, part: pd.DataFrame) -> Map:
    varying = [c for c in edit_columns(part) if part[c].notna().any() and part[c].nunique() > 1]
    steps = list(dict.fromkeys(part["step"]))
    places = [part] if not varying else [p for _, p in part.groupby(varying, sort=False, dropna=False)]
    values = np.stack([p.set_index("step")["changed"].reindex(steps).to_numpy(float) for p in places[:_PLACES]])
    labels = [" · ".join(_label(c, p[c].iloc[0], len(varying) > 1) for c in varying) for p in places[:_PLACES]]
    title = condition + (f" (first {_PLACES} of {len(places)} places)" if len(places) > _PLACES else "")
    down = varying[0].replace("_", " ") if len(varying) == 1 else "edited"
    across = ["bot" if s < 0 else str(s) for s in steps]
    return Map(title, values, labels, across, "share that changed", Normalize(0.0, 1.0), down_name=down, across_name="state out of step")


def _label(column: str, value: object, named: bool) -> str:
    axis = column.removeprefix("edited_")
    return f"{axis[0]}{value}" if named else str(value)
