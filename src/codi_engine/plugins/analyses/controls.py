"""Effects beside their controls: the same places and examples, paired, in a family of tests of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from codi_engine.core.planning.controls import control_of, control_rows, in_words, is_control
from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses import effects
from codi_engine.plugins.analyses.options import ImportanceOptions

UNUSUAL = "unusual"


def split(cells: pd.DataFrame) -> tuple[pd.DataFrame, bool]:
    """Return the cells of interest (with the unedited ones), and whether the others hold controls."""
    control = control_rows(cells["condition"])
    return cells[~control], bool(control.any())


def control_table(cells: pd.DataFrame, metric: str, axes: Sequence[str], options: ImportanceOptions) -> pd.DataFrame:
    """Return one row per condition, control and place.

    ``effect`` and ``mean`` are the condition's and the control's mean effects over the ``n`` examples that have both,
    ``difference`` is effect − control, paired, with interval, Hedges' g, p, and q over this table. ``exceeds``: the difference is
    significant, in the effect's direction, and the effect is the larger one. ``unusual`` and ``control_unusual``, where the run has
    that metric: the mean unusualness of the edited states.
    """
    per = effects.per_example(cells, metric, axes, None)
    unusual = _unusual(cells, axes)
    if unusual is not None:
        per = per.merge(unusual, on=["condition", *axes, "example"], how="left")
    rows = []
    for name, condition, control in _named([str(c) for c in per["condition"].unique()]):
        both = per[per["condition"] == condition].merge(per[per["condition"] == name], on=[*axes, "example"], suffixes=("", "_control"))
        for key, group in both.groupby([*axes], dropna=False, sort=False, observed=True) if axes else [((), both)]:
            rows.append({"condition": condition, "control": control, **dict(zip(axes, key, strict=True)), **_row(group, options)})
    table = pd.DataFrame(rows)
    table["q"] = adjust(table["p"].to_numpy(float), options.correction)
    larger = table["effect"].abs() > table["mean"].abs()
    table["exceeds"] = (table["q"] < options.q) & (table["difference"] * np.sign(table["effect"]) > 0) & larger
    return table


def _named(names: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (name, condition, control) of the controls whose condition there is."""
    for name in names:
        found = control_of(name)
        if found is not None and found[0] in names:
            yield name, *found


def _row(group: pd.DataFrame, options: ImportanceOptions) -> dict[str, Any]:
    known = group.dropna(subset=["effect", "effect_control"])
    a, b = known["effect"].to_numpy(float), known["effect_control"].to_numpy(float)
    found = effects.statistics(a - b, options.confidence, False)
    out: dict[str, Any] = {"n": found["n"], "effect": a.mean() if len(a) else np.nan, "mean": b.mean() if len(b) else np.nan}
    out |= {"difference": found["mean"]} | {k: found[k] for k in ("ci_low", "ci_high", "hedges_g", "t", "df", "p", "note")}
    if UNUSUAL in group:
        out |= {UNUSUAL: known[UNUSUAL].mean(), f"control_{UNUSUAL}": known[f"{UNUSUAL}_control"].mean()}
    return out


def _unusual(cells: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame | None:
    if UNUSUAL not in cells:
        return None
    groups = ["condition", *axes, "example"]
    return cells[cells["condition"] != "baseline"].groupby(groups, dropna=False, sort=False, observed=True)[UNUSUAL].mean().reset_index()


# ------------------------------------------------------------------------------------------------- in words


def lines(table: pd.DataFrame, main: pd.DataFrame, axes: Sequence[str], options: ImportanceOptions) -> list[str]:
    """Say per condition what its controls do at its strongest place, and warn where one is as strong.

    Parameters
    ----------
    table: of :func:`control_table`
    main: the effects of interest
    """
    out, several = [], main["condition"].nunique() > 1
    for condition, part in table.groupby("condition", sort=False):
        place, there = strongest(part, main[main["condition"] == condition], axes)
        if there.empty:
            continue
        shown = ", ".join(f"{in_words(r['control'])} {r['mean']:+.2g}" for _, r in there.iterrows())
        places = _by_place(part, axes)["exceeds"].all()
        who, against = f"{condition} " if several else "", f"{there['effect'].iloc[0]:+.2g} at the strongest place"
        out.append(
            f"{who}controls ({effects.count_text(there)}): {shown} against {against} ({place}); "
            f"{int(places.sum())} of {len(places)} places exceed all of them (q < {options.q:g})"
        )
        if not there["exceeds"].all():
            doubts = ", ".join(_doubt(row) for _, row in there[~there["exceeds"]].iterrows())
            out.append(f"warning: {condition} does not exceed there: {doubts}")
    return out


def _doubt(row: pd.Series) -> str:
    """Name a control that the effect does not exceed, with the difference."""
    strong = "as strong, " if abs(row["mean"]) >= abs(row["effect"]) else ""
    return f"{in_words(row['control'])} ({strong}difference {row['difference']:+.2g}{effects.interval_text(row)})"


def strongest(part: pd.DataFrame, main: pd.DataFrame, axes: Sequence[str]) -> tuple[str, pd.DataFrame]:
    """Return a condition's strongest place in words, and the rows of its controls there."""
    known = main.dropna(subset=["mean"])
    if known.empty:
        return "", part.iloc[:0]
    best = known.iloc[int(known["mean"].abs().to_numpy().argmax())]
    there = np.ones(len(part), bool)
    for axis in axes:
        there &= part[axis].isna().to_numpy() if pd.isna(best[axis]) else (part[axis] == best[axis]).fillna(False).to_numpy(bool)
    return effects.place_name(best[list(axes)], axes) or "its one place", part[there]


def _by_place(part: pd.DataFrame, axes: Sequence[str]) -> Any:
    used = [a for a in axes if part[a].notna().any()]
    return part.groupby(used, dropna=False, sort=False, observed=True) if used else part.groupby(np.zeros(len(part)))


def unusual_line(cells: pd.DataFrame) -> str:
    """Say how unusual the edited states are, per condition and (in brackets) its controls; nothing where it was not measured."""
    if UNUSUAL not in cells:
        return ""
    means = cells[cells["condition"] != "baseline"].groupby("condition", sort=False)[UNUSUAL].mean()
    if means.isna().all():
        return "unusualness of the edited states: not defined (too few natural states, or no edit)"
    parts = []
    for name in [str(n) for n in means.index if not is_control(n)]:
        mine = {in_words(str(n).rpartition("~")[2]): v for n, v in means.items() if (control_of(str(n)) or ("",))[0] == name}
        beside = ", ".join(f"{k} {_share(v)}" for k, v in mine.items())
        parts.append(f"{name} {_share(means[name])}" + (f" ({beside})" if beside else ""))
    return f"unusualness of the edited states (0.5 ordinary, 1 beyond all natural ones): {'; '.join(parts)}"


def _share(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.2f}"
