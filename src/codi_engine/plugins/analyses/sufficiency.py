"""Sets of latent steps that suffice: those whose keeping (ablations) or patching reaches a share of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.plugins.analyses import coalitions, stepping
from codi_engine.plugins.analyses.options import YES_NO

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.shapley import Game

#: what a share of 1 stands for
UNEDITED, AVOIDED, ALL, OTHER = "the unedited run", "no effect, 0% editing all", "patching all steps", "the other prompt's run"


def sufficient_table(game: Game, threshold: float, confidence: float) -> pd.DataFrame:
    """Return one row per set of kept (patched) steps, small sets first.

    Columns: steps, size, share with interval, n, ``reference`` (what a share of 1 is), ``reaches`` (share ≥ threshold),
    ``certain`` (its interval too), ``minimal`` (reaches, and no part of it does), ``smallest`` (reaches, of the least size).
    """
    count = game.values.shape[1]
    reference = _reference(game)
    rows = []
    for mask in sorted(range(count), key=lambda m: (m.bit_count(), coalitions.members_of(game.players, m))):
        above, below = _terms(game, mask, reference)
        found = stepping.ratio(above, below, confidence)
        found["share"] = found.pop("ratio")
        steps = coalitions.members_of(game.players, mask)
        rows.append({"steps": stepping.set_name(steps), "size": len(steps), "mask": mask, **found, "reference": reference})
    table = pd.DataFrame(rows)
    # a share that is equal to the threshold but for rounding reaches it
    table["reaches"] = table["share"] >= threshold - 1e-12
    table["certain"] = table["ci_low"] >= threshold - 1e-12
    least = coalitions.minimal(table.loc[table["reaches"], "mask"].tolist())
    table["minimal"] = table["mask"].isin(least)
    table["smallest"] = table["reaches"] & (table["size"] == table.loc[table["reaches"], "size"].min())
    order = ["steps", "size", "share", "ci_low", "ci_high", "n", "missing", "reference", "reaches", "certain", "minimal", "smallest", "note"]
    return table[order]


def _reference(game: Game) -> str:
    """Return what a share of 1 stands for, which the metric and the intervention decide."""
    if game.plugin == "patch":
        return OTHER if game.metric.startswith(("normalized_effect", "equals_other")) else ALL
    if game.metric in YES_NO[:2] or (not stepping.rises(game.metric) and game.base.mean() > 0):
        return UNEDITED
    return AVOIDED


def _terms(game: Game, mask: int, reference: str) -> tuple[np.ndarray, Any]:
    """Return per example what the share's numerator and denominator average."""
    whole = game.values[:, -1]
    kept = game.values[:, (game.values.shape[1] - 1) ^ mask]  # the other steps are edited
    ones = np.ones(len(whole))
    if reference == OTHER:
        return game.values[:, mask], ones
    if reference == ALL:
        return game.values[:, mask], whole
    if reference == AVOIDED:
        return whole - kept, whole
    if game.metric in YES_NO:
        return 1.0 - kept, ones
    return game.base + kept, game.base
