"""Tables of ``proportions``: differences with one correction over all of them, shares of every condition, and recovery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from codi_engine.core.runs.results import Run
from codi_engine.kernels import shares
from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses.contrasts import Grids, Unit, compare, correct_examples, mean


def test_table(
    found: Grids, pairs: Sequence[tuple[int, int]], unit: Unit, confidence: float, correction: Any, q: float
) -> tuple[pd.DataFrame, float]:  # fmt: skip
    """Return one row per target × pair × column, corrected over all of them, and the smallest p that a test of it can have.

    Without any spread in either condition p is 1, q is 1, ``tested`` is False, and the row does not count in the family.
    """
    a, parts, least = found.arrangement, [], []
    axes = {axis: pd.Series([t[i] for t in a.targets], dtype=_dtype([t[i] for t in a.targets])) for i, axis in enumerate(a.axes)}
    names = [a.name(t) for t in range(len(a.targets))]
    for first, second in pairs:
        for column in found.distinct:
            c = compare(found, (first, second), column, unit, confidence)
            least.append(c.least)
            size = "hedges_g" if column in found.numeric else "cohens_h"
            parts.append(
                pd.DataFrame(
                    {
                        "target": names,
                        **axes,
                        "condition": a.conditions[first],
                        "against": a.conditions[second],
                        "metric": column,
                        "n": c.n,
                        "n_against": c.n_against,
                        "mean": c.value,
                        "mean_against": c.against,
                        "difference": c.difference,
                        "ci_low": c.low,
                        "ci_high": c.high,
                        "interval": c.interval,
                        "odds_ratio": c.odds_ratio,
                        "effect_size": c.size,
                        "size": size,
                        "test": c.test,
                        "p": c.p,
                        "tested": c.tested & ~np.isnan(c.p),
                    }
                )
            )
    table = pd.concat(parts, ignore_index=True)
    table["q"] = adjust(np.where(table["tested"], table["p"], np.nan), correction)
    table.loc[~table["tested"] & table["p"].notna(), "q"] = 1.0
    table["significant"] = (table["q"] < q).to_numpy()
    table["note"] = np.where(table["p"].isna(), "too few values", np.where(table["tested"], "", "constant: no test"))
    return table, max(least)


def _dtype(labels: Sequence[Any]) -> str:
    known = [v for v in labels if v is not None]
    return "Int64" if known and all(isinstance(v, int) and not isinstance(v, bool) for v in known) else "object"


def share_table(found: Grids, confidence: float, unit: Unit) -> pd.DataFrame:
    """Return count, cells and share with Wilson's interval of every target × condition × yes-or-no column, and means of numbers.

    The interval's n are examples (their trials averaged), or draws.
    """
    a, parts = found.arrangement, []
    for condition, name in enumerate(a.conditions):
        own = condition in a.own
        targets = a.targets if own else [(None,) * len(a.axes)]
        axes = {axis: pd.Series([t[i] for t in targets], dtype=_dtype([t[i] for t in a.targets])) for i, axis in enumerate(a.axes)}
        labels = [a.name(t) for t in range(len(targets))] if own else ["all targets"]
        for column in found.values:
            cells = found.cells(condition, column)
            there = ~np.isnan(cells)
            n = (there.any(-1) if unit == "example" else there).reshape(len(cells), -1).sum(-1)
            share = mean(mean(cells, -1), -1) if unit == "example" else mean(cells.reshape(len(cells), -1), -1)
            part = {"target": labels, **axes, "condition": name, "metric": column, "n": n, "cells": there.sum((1, 2))}
            if column in found.numeric:
                parts.append(pd.DataFrame({**part, "count": np.nan, "mean": share, "ci_low": np.nan, "ci_high": np.nan}))
                continue
            low, high = shares.wilson(share, n, confidence)
            parts.append(pd.DataFrame({**part, "count": np.nansum(cells, (1, 2)), "mean": share, "ci_low": low, "ci_high": high}))
    return pd.concat(parts, ignore_index=True)


def recovery_table(found: Grids, confidence: float, where: str) -> pd.DataFrame | None:
    """Return per target and condition the share of valid pairs whose answer became that of the side the edit takes its values from.

    A pair is valid where both its unedited answers are right. A corrupted prompt recovers the clean answer; a clean one is
    moved to the corrupted answer. None where the run has no pairs, no classes of answers, or prompts of both sides at once.
    """
    run, a = found.run, found.arrangement
    variants = [v for v in run.store.labels("variant") if v in ("clean", "corrupted")] if "variant" in run.axes else []
    if len(variants) < 2 or not {"clean_answer", "corrupted_answer"} <= set(run.metrics):
        return None
    valid = np.full(run.store.units * run.store.unit_cells, False)
    valid[run.store.slots] = np.isin(run.store.codes("example"), correct_examples(run, where))
    rows = []
    for condition in a.own:
        slots = found.slots(condition)
        toward = None if a.conditions[condition] == "baseline" else _toward(run, slots)
        if toward is None:
            continue
        values = np.full(len(valid), np.nan)
        values[run.store.slots] = run.store.column(f"cells/metrics/{toward}")
        cells = np.where((slots >= 0) & valid[slots], values[slots], np.nan)
        per = mean(cells, -1)
        n, share = (~np.isnan(per)).sum(-1), mean(per, -1)
        low, high = shares.wilson(share, n, confidence)
        axes = {axis: pd.Series([t[i] for t in a.targets], dtype=_dtype([t[i] for t in a.targets])) for i, axis in enumerate(a.axes)}
        names = [a.name(t) for t in range(len(a.targets))]
        part = {"target": names, **axes, "condition": a.conditions[condition], "toward": toward, "valid": n, "count": np.nansum(cells, (1, 2))}
        rows.append(pd.DataFrame({**part, "share": share, "ci_low": low, "ci_high": high}))
    return pd.concat(rows, ignore_index=True) if rows else None


def _toward(run: Run, slots: np.ndarray) -> str | None:
    """Return the column of the other side's answer, where a condition's cells all run the same side."""
    codes = np.full(run.store.units * run.store.unit_cells, -1)
    codes[run.store.slots] = run.store.codes("variant")
    found = np.unique(codes[slots[slots >= 0]])
    side = run.store.labels("variant")[int(found[0])] if len(found) == 1 and found[0] >= 0 else None
    return {"corrupted": "clean_answer", "clean": "corrupted_answer"}.get(str(side))
