"""Stored tables with place axes as heatmaps: what the page draws as real tables, from the numbers and not from pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import numpy as np

from codi_engine.reporting.words import METRICS, number, short, tick

if TYPE_CHECKING:
    import pandas as pd

#: columns that may lie across and down, the first there is
_ACROSS = ("step", "position", "state", "steps", "token", "depth")
_DOWN = ("layer", "head", "edited", "feature_layer")
#: columns that make panels
_PANELS = ("condition", "control", "by", "stratum", "effect", "variant", "metric", "against", "site", "target")
#: columns whose values say by themselves what they are
_NAMES = ("condition", "control", "effect")
#: place axes of tables that cells know by another name
_CELLS = {"edited": "step", "steps": "step"}
#: axes in words; others go by their name
_AXES = {"step": "latent step", "state": "state out of step", "edited": "edited step", "by": "stratum"}
#: what the tables of analyses hold that have no metric of the run
_MEASURES = {
    ("step_effects", "effects"): "‖edited − unedited‖ / ‖unedited‖ of a later state",
    ("step_effects", "mediated"): "total minus direct effect on a later state",
}
#: what is drawn: the first there is, the interval belongs to it
_VALUES = ("difference", "mean")
#: colours of a scale, odd so that a two-sided one has a middle
LEVELS = 41
_PANEL_LIMIT, _CELL_LIMIT, _WIDE = 24, 2400, 20
#: own scales where the conditions' largest effects differ by more than this
_ORDERS = 10.0


@dataclass(frozen=True)
class Cell:
    """One place. ``level`` is its colour; ``facts`` are the lines that hovering shows."""

    text: str
    level: str
    faint: bool
    value: float
    facts: Sequence[tuple[str, str]]
    go: str


@dataclass(frozen=True)
class Panel:
    title: str
    down: str
    across: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    scale: int


@dataclass(frozen=True)
class Scale:
    """Colours of one or more panels: ``kind`` is ``s`` (one-sided), ``r`` (reversed) or ``d`` (two-sided around 0)."""

    kind: str
    low: float
    high: float
    ticks: Sequence[str]


@dataclass(frozen=True)
class Heatmap:
    title: str
    value: str
    note: str
    panels: Sequence[Panel]
    scales: Sequence[Scale]
    numbers: bool
    dots: str
    size: str


def heatmap_of(table: pd.DataFrame, name: str, options: Mapping[str, Any], metric: str | None = None, analysis: str = "") -> Heatmap | None:
    """Return a table (of a metric, of an analysis) as a heatmap; None where it has no places, no values, more than one row a place, or too many cells."""
    value = next((v for v in _VALUES if v in table.columns), None)
    if value is None or "n" not in table or not len(table) or not {"ci_low", "q", "significant", "p"} & set(table.columns):
        return None
    axes = _axes(table)
    if axes is None:
        return None
    down, across, keys = axes
    if down is None and keys:  # strips of one row each are one map
        down = keys.pop()
    parts = _parts(table, keys, options)
    if len(parts) > _PANEL_LIMIT or len(table) > _CELL_LIMIT:
        return None
    drawn = [(title, part, *_own(part, down, across)) for title, part in parts]
    drawn = [d for d in drawn if d[2] or d[3]]
    if not drawn or any(part.duplicated([a for a in (d, x) if a]).any() for _, part, d, x in drawn):
        return None
    scales, which, said = _scales(drawn, value, keys)
    wide = max(part[x].nunique() if x else 1 for _, part, _, x in drawn)
    if wide < 2:  # single columns side by side are no map
        return None
    panels = [_panel(title, part, d, x, value, scales[i], i, _called(d or "", options)) for (title, part, d, x), i in zip(drawn, which, strict=True)]
    panels.sort(key=lambda p: len(p.rows) == 1)
    return Heatmap(
        name,
        _named(value, _MEASURES.get((analysis, name), metric), "control" in table),
        said,
        panels,
        scales,
        wide <= _WIDE,
        _dots(table, options),
        _size(table),
    )


def _axes(table: pd.DataFrame) -> tuple[str | None, str | None, list[str]] | None:
    """Return (down, across, panel keys); None where the table has no places or more varying axes than a plane has."""

    def varies(name: str) -> bool:
        return name in table.columns and table[name].nunique() > 1

    across = next((a for a in _ACROSS if varies(a)), None)
    down = next((a for a in _DOWN if varies(a)), None)
    first = list(table.columns).index("n")
    others = [str(c) for c in table.columns[:first] if c not in (across, down, "missing") and varies(str(c))]
    if across is None and down is not None:
        across, down = down, next((a for a in _DOWN if a != down and varies(a)), None)
        others = [o for o in others if o != down]
    if across is not None:  # the number of steps of a set, for instance, says nothing more than the set
        others = [o for o in others if o in _PANELS or (table.groupby(across, dropna=False, observed=True)[o].nunique() > 1).any()]
        others = _distinct(table, others)
    if across is None or _wordy(table[across]) or any(o not in _PANELS and table[o].nunique() > 8 for o in others):
        return None
    return down, across, others


def _distinct(table: pd.DataFrame, names: list[str]) -> list[str]:
    """Return the columns without those that another one before them determines: one condition for each effect, for instance."""
    kept: list[str] = []
    for name in names:
        if not any((table.groupby(k, dropna=False, observed=True)[name].nunique() <= 1).all() for k in kept):
            kept.append(name)
    return kept


def _wordy(labels: pd.Series) -> bool:
    """True for many labels that are no numbers: they have no room under columns."""
    known = labels.dropna().unique()
    return len(known) > _WIDE and any(isinstance(v, str) for v in known)


def _called(axis: str, options: Mapping[str, Any]) -> str:
    """Return an axis' name: strata are called as what they are strata of."""
    return str(options.get("by") or axis) if axis in ("by", "stratum") else axis


def _parts(table: pd.DataFrame, keys: list[str], options: Mapping[str, Any]) -> list[tuple[str, pd.DataFrame]]:
    if not keys:
        title = str(table["condition"].iloc[0]) if "condition" in table and table["condition"].nunique() == 1 else ""
        return [(title, table)]
    out = []
    for key, part in table.groupby(keys, sort=False, dropna=False, observed=True):
        out.append(
            (
                " · ".join(
                    (str(k).replace("_", " ") if n == "control" else str(k)) if n in _NAMES else f"{_called(n, options)} {tick(k)}"
                    for n, k in zip(keys, key, strict=True)
                ),
                part,
            )
        )
    return out


def _own(part: pd.DataFrame, down: str | None, across: str | None) -> tuple[str | None, str | None]:
    """Return which of the axes a panel has."""
    return (down if down and part[down].nunique() > 0 and part[down].notna().all() else None, across if across and part[across].notna().any() else None)


def _named(value: str, metric: str | None, control: bool) -> str:
    """Say what is drawn; the metric where it is known."""
    named = f"{METRICS.get(metric, metric)}: " if metric else ""
    return f"{named}{'difference from the control' if control else 'difference'}" if value == "difference" else f"{named}mean over examples"


def _dots(table: pd.DataFrame, options: Mapping[str, Any]) -> str:
    column = _sign(table)
    if column is None:
        return ""
    limit = options.get("q", 0.05)
    return (
        "does not exceed the control" if column == "exceeds" else f"not significant (q ≥ {limit:g})" if isinstance(limit, (int, float)) else "not significant"
    )


def _size(table: pd.DataFrame) -> str:
    """Return the examples of a place, as a range where places differ."""
    known = table["n"].dropna()
    if not len(known):
        return ""
    low, high = int(known.min()), int(known.max())
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


def _sign(table: pd.DataFrame) -> str | None:
    return next((c for c in ("significant", "exceeds") if c in table.columns), None)


# ------------------------------------------------------------------------------------------------- colours


def _scales(drawn: Sequence[Any], value: str, keys: Sequence[str]) -> tuple[list[Scale], list[int], str]:
    """Return scales, each panel's scale, and which it is in words: common, unless conditions differ by orders of magnitude."""
    groups = [str(part[keys[0]].iloc[0]) if keys and keys[0] in _PANELS else "" for _, part, _, _ in drawn]
    sizes: dict[str, float] = {}
    for group, (_, part, _, _) in zip(groups, drawn, strict=True):
        known = part[value].to_numpy(float)
        known = np.abs(known[np.isfinite(known)])
        sizes[group] = max(sizes.get(group, 0.0), float(known.max()) if len(known) else 0.0)
    names = list(sizes)
    present = [s for s in sizes.values() if s > 0]
    if len(names) > 1 and present and max(present) > _ORDERS * min(present):
        values = {g: np.concatenate([p[value].to_numpy(float) for h, (_, p, _, _) in zip(groups, drawn, strict=True) if h == g]) for g in names}
        return (
            [_scale(values[g]) for g in names],
            [names.index(g) for g in groups],
            f"each {keys[0]} has a colour scale of its own: their effects differ by orders of magnitude",
        )
    everything = np.concatenate([part[value].to_numpy(float) for _, part, _, _ in drawn])
    return [_scale(everything)], [0] * len(drawn), "one colour scale for all panels" if len(drawn) > 1 else ""


def _scale(values: np.ndarray) -> Scale:
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if low < -0.15 * max(high, 1e-9) and high > 0.15 * -low:
        bound = max(-low, high)
        return Scale("d", -bound, bound, [short(-bound), "0", short(bound)])
    if -low > high:
        return Scale("r", low, 0.0, [short(low), short(low / 2), "0"])
    return Scale("s", min(low, 0.0), high if high > 0 else 1.0, [short(min(low, 0.0)), short((min(low, 0.0) + max(high, 0.0)) / 2), short(high)])


def level(value: float, scale: Scale) -> int:
    """Return a value's colour, 0 … LEVELS − 1."""
    share = (value - scale.low) / (scale.high - scale.low) if scale.high > scale.low else 0.0
    share = 1 - share if scale.kind == "r" else share
    return round(min(max(share, 0.0), 1.0) * (LEVELS - 1))


# -------------------------------------------------------------------------------------------------- panels


def _panel(title: str, part: pd.DataFrame, down: str | None, across: str | None, value: str, scale: Scale, index: int, called: str) -> Panel:
    xs = _order(part, across) if across else [""]
    ys = _order(part, down) if down else [""]
    grid: dict[tuple[Any, Any], Cell] = {}
    sign = _sign(part)
    for row in part.to_dict("records"):
        grid[row[down] if down else "", row[across] if across else ""] = _cell(row, value, scale, sign, down, across, called)
    if down == "layer":
        ys.reverse()  # as in a drawing of the network: what comes later stands above
    rows = [(tick(y), [grid.get((y, x)) for x in xs]) for y in ys]
    return Panel(
        title,
        _AXES.get(called, called.replace("_", " ")),
        _AXES.get(across or "", (across or "").replace("_", " ")),
        [_column(across, x) for x in xs],
        rows,
        index,
    )


def _column(axis: str | None, label: Any) -> str:
    return "bot" if axis == "state" and label == -1 else tick(label)


def _order(part: pd.DataFrame, axis: str) -> list[Any]:
    found = list(dict.fromkeys(part[axis].dropna()))
    return sorted(found) if all(isinstance(v, (int, float)) for v in found) else found


def _cell(row: Mapping[Any, Any], value: str, scale: Scale, sign: str | None, down: str | None, across: str | None, called: str) -> Cell:
    mean = float(row[value]) if row[value] is not None else math.nan
    place = [(a, tick(row[a])) for a in (down, across) if a]
    facts = [*place, ("value" if value == "mean" else value, number(mean, 4)), ("n", tick(row["n"]))]
    low, high = (row.get(k, math.nan) for k in ("ci_low", "ci_high"))
    if low == low and low is not None:
        facts.append(("interval", f"{number(float(low), 3)} … {number(float(high), 3)}"))
    facts += [(name, number(float(row[k]), 3)) for k, name in (("q", "q"), ("hedges_g", "Hedges' g")) if row.get(k) is not None and row[k] == row[k]]
    facts += [("edited", number(float(row["effect"]), 3))] if "control" in row and isinstance(row.get("effect"), float) else []
    facts += [("control", number(float(row["mean"]), 3))] if value != "mean" and "control" in row and isinstance(row.get("mean"), float) else []
    if row.get("note"):
        facts.append(("note", str(row["note"])))
    if not math.isfinite(mean):
        return Cell("", "none", False, mean, facts, "")
    at = level(mean, scale)
    faint = sign is not None and row[sign] is not None and row[sign] == row[sign] and not bool(row[sign])
    colour = f"{'d' if scale.kind == 'd' else 's'}{at}"
    there = [(a, _CELLS.get(a, called if a == down else a)) for a in ("condition", down, across) if a]
    go = urlencode({name: tick(row[a]) for a, name in there if row.get(a) is not None and row[a] == row[a]})
    return Cell(short(mean), colour, faint, mean, facts, go)
