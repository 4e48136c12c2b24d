"""The pictures of ``trajectories``: one per condition and point of the edit's other axes, curves per set of edited steps."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
from matplotlib.figure import Figure

from codi_engine.plugins.analyses import step_figures as pieces
from codi_engine.plugins.analyses.figures import QUIET, SEQUENTIAL, short_sets, tick
from codi_engine.plugins.analyses.stepping import n_text
from codi_engine.plugins.analyses.trajectories import REFERENCES, UNEDITED, shown_references

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.trajectories import TrajectoriesOptions

_CURVES = 10


@dataclass(frozen=True)
class Shown:
    """What was compared: the axes of the edits, the site of the states and its layers."""

    axes: Sequence[str]
    site: str
    layers: Sequence[int | None]


def draw(table: pd.DataFrame, states: Shown, options: TrajectoriesOptions) -> dict[str, Figure]:
    """Return name → figure, the first ``draw`` of them; of several captured layers the last one is shown."""
    shown = table if len(states.layers) == 1 else table[table["state_layer"] == states.layers[-1]]
    figures: dict[str, Figure] = {}
    for title, curves, part in _pictures(shown, states.axes):
        if len(figures) < options.draw:
            figures[re.sub(r"[^\w.-]+", "_", title)] = _picture(title, curves, part, states, options)
    return figures


def _pictures(table: pd.DataFrame, axes: Sequence[str]) -> Iterator[tuple[str, str | None, pd.DataFrame]]:
    """Yield (title, axis of the curves, rows): curves are sets of steps where there are any."""
    for condition, part in table.groupby("condition", sort=False):
        edited, plain = part[part["edit"] != UNEDITED], part[part["edit"] == UNEDITED]
        varying = [a for a in axes if edited[a].nunique() > 1]
        curves = "step" if "step" in varying else varying[-1] if varying else None
        others = [a for a in varying if a != curves]
        for key, some in edited.groupby(others, sort=False, dropna=False) if others else [((), edited)]:
            name = " ".join([str(condition), *(f"{a} {v}" for a, v in zip(others, key, strict=True))])
            yield name, curves, pd.concat([plain, some])


def _picture(title: str, curves: str | None, part: pd.DataFrame, states: Shown, options: TrajectoriesOptions) -> Figure:
    references = shown_references(part)
    where = states.site if len(states.layers) == 1 else f"{states.site}, layer {states.layers[-1]}"
    edits = [e for e in dict.fromkeys(part["edit"]) if e != UNEDITED]
    more = f" · the first {_CURVES} of {len(edits)} edits" if len(edits) > _CURVES else ""
    note = f"{where} · {options.confidence:.0%} intervals over {n_text(part['n'])} examples{more}"
    figure = pieces.titled(9.6, 2.75 * len(references) + 1.3, title, note)
    axes = pieces.panels(figure, len(references), 2, right=1.75, wspace=0.24, hspace=0.4)
    for number, reference in enumerate(references):
        for at, (what, word) in enumerate((("cosine", "cosine"), ("distance", "relative distance"))):
            ax = axes[2 * number + at]
            _curves(ax, part[part["reference"] == reference], edits[:_CURVES], curves, what)
            pieces.plain(ax, "state out of step" if number == len(references) - 1 else "", word, f"to {REFERENCES[reference]}")
    axes[1].legend(frameon=False, fontsize=7.5, loc="upper left", bbox_to_anchor=(1.0, 1.0), title=f"edited {curves}" if curves else None, title_fontsize=8)
    return figure


def _curves(ax: Any, part: pd.DataFrame, edits: Sequence[str], curves: str | None, what: str) -> None:
    states = list(dict.fromkeys(part["state"]))
    base = part[part["edit"] == UNEDITED]
    if len(base):
        ax.plot(range(len(states)), base[what], "--", color=QUIET, linewidth=1.2, label=UNEDITED, zorder=2)
    for number, edit in enumerate(edits):
        rows = part[part["edit"] == edit]
        name = tick(rows[curves].iloc[0]) if curves else short_sets(edit)
        shade = SEQUENTIAL(0.3 + 0.7 * number / max(len(edits) - 1, 1))
        pieces.curve(ax, list(range(len(states))), rows, shade, name, what, f"{what}_ci_low", f"{what}_ci_high", 0.3 / len(edits))
    ax.set_xticks(range(len(states)), ["bot" if s < 0 else str(s) for s in states])
