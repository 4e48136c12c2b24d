"""What ``logit_lens`` says in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from codi_engine.plugins.analyses.console import place_grid
from codi_engine.plugins.analyses.sought import called

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.plugins.analyses.logit_lens import LogitLensOptions
    from codi_engine.plugins.analyses.sought import Sought
    from codi_engine.plugins.analyses.states import States


def summary(tables: Mapping[str, pd.DataFrame], states: States, sought: Sought, options: LogitLensOptions) -> str:
    """Return grids of the answer's median rank, where it is read best, and where each intermediate value is."""
    lens, values = tables["lens"], tables["intermediate"]
    n, cells = states.frame["example"].nunique(), len(states.frame)
    lines = [f"{states.site or states.name} through the last norm and unembedding: {n:,} examples" + (f", {cells:,} cells" if cells != n else "")]
    for condition, part in lens.groupby("condition", sort=False):
        lines += ["", *_of_condition(str(condition), part, values[values["condition"] == condition], tables["tokens"], states, options)]
    tested = int(values["p"].notna().sum())
    rule = f"q < {options.q:g}, {options.correction.upper()} over {tested} tests"
    lines += ["", f"chance: numbers that other examples have in the same place of their solution; *: more often than by chance ({rule})"]
    if not any(name.isdigit() for name in sought.names):
        lines.append(f"no intermediate results: the data has no field '{options.steps}' with annotations such as <<6*2=12>>")
    lines += sought.notes
    lines.append("the lens is the model's own last layer: a low rank says that a value can be read there, a high one not that it is absent")
    return "\n".join(lines)


def _of_condition(
    condition: str, part: pd.DataFrame, values: pd.DataFrame, tokens: pd.DataFrame, states: States, options: LogitLensOptions
) -> list[str]:  # fmt: skip
    lines = []
    if part["rank"].notna().any():
        lines += [f"{condition}: median rank of the answer", *place_grid(part, "rank", "layer", states.axis)]
        best = part.sort_values(["rank", "first"], ascending=[True, False], kind="stable").iloc[0]
        interval = "" if np.isnan(best["rank_low"]) else f" [{best['rank_low']:.3g}, {best['rank_high']:.3g}]"
        lines.append(
            f"best: {place(best, states)}: median rank {best['rank']:.3g}{interval}, mean {best['rank_mean']:.3g}; first in {best['first']:.0%}, "
            f"agrees with the answer given in {best['agreement']:.0%}, entropy {best['entropy']:.2g} nats (n = {best['n_answer']})"
        )
        known = tokens[
            (tokens["condition"] == condition) & (tokens["layer"].eq(best["layer"]) | states_flat(states)) & tokens[states.axis].eq(best[states.axis])
        ]
        if len(known):
            lines.append("  tokens there: " + ", ".join(f"'{str(t).strip()}' {s:.0%}" for t, s in zip(known["token"], known["share"], strict=True)))
    else:
        lines += [f"{condition}: entropy in nats (the data has no gold answers)", *place_grid(part, "entropy", "layer", states.axis)]
    for name in dict.fromkeys(values["value"]):
        mine = values[values["value"] == name]
        if not mine["above"].notna().any():
            continue
        best = mine.loc[mine["above"].idxmax()]
        star = "*" if best["significant"] else ""
        lines.append(
            f"{called(name)}: most often at {place(best, states)}: rank ≤ {options.top} in {best['hit']:.0%}{star} "
            f"[{best['hit_low']:.0%}, {best['hit_high']:.0%}], by chance {best['chance']:.0%}; median rank {best['rank']:.3g} (n = {best['n']})"
        )
    return lines


def states_flat(states: States) -> bool:
    """Say whether the site has no layers."""
    return states.layers == [None]


def place(row: pd.Series, states: States) -> str:
    """Return a place in words."""
    layer = "" if states_flat(states) or row["layer"] is None else f"layer {row['layer']} "
    label = "bot" if states.axis == "step" and row[states.axis] == -1 else f"{states.axis} {row[states.axis]}"
    return f"{layer}{label}"
