"""The two sides of a comparison: a run's condition, or published numbers, as effects per example and place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.core.errors import UserError, nearest
from codi_engine.plugins.analyses import effects
from codi_engine.plugins.analyses.options import PREFERRED, yes_or_no
from codi_engine.plugins.analyses.published import Published, label_text
from codi_engine.plugins.analyses.selection import edited_conditions, metric_of, place_axes

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

WHO = "compare_runs"
Place = tuple[str, ...]


@dataclass(frozen=True)
class Pick:
    """One condition of one run, read by one metric."""

    run: Run
    condition: str
    metric: str

    def axes(self) -> dict[str, list[str]]:
        """Return the axes of the condition's places and their labels, in order."""
        cells = self.run.cells[self.run.cells["condition"] == self.condition]
        out = {a: ordered({label_text(v) for v in cells[a].dropna().unique()}) for a in place_axes(self.run)}
        return {a: labels for a, labels in out.items() if labels}


@dataclass(frozen=True)
class Side:
    """Effects of one side.

    ``places``: one row per place (index: label texts) with effect, ci_low, ci_high, n; ``examples``: effects, examples ×
    places, empty for published numbers; ``data``: which data the examples' names belong to.
    """

    name: str
    metric: str
    source: str
    places: pd.DataFrame
    examples: pd.DataFrame
    data: str
    averaged: Sequence[str]

    @property
    def published(self) -> bool:
        return self.examples.empty

    def values(self, places: Sequence[Place]) -> np.ndarray:
        """Return effects, examples × places; published numbers as the one row there is."""
        table = self.places["effect"].to_frame().T if self.published else self.examples
        return table.reindex(columns=pd.Index(list(places), tupleize_cols=False)).to_numpy(float)


# ------------------------------------------------------------------------------------ what is compared


def pick_sides(runs: Sequence[Run], conditions: Sequence[str] | None, metrics: Sequence[str | None], table: bool) -> list[Pick]:
    """Return what stands on either side: two picks, or one beside a table.

    Parameters
    ----------
    conditions: names, or ``index:name`` with the run's index; None for the only ones there are
    metrics: of the first and of the second side; None for the default

    Raises
    ------
    UserError: too many runs, an unknown or ambiguous condition, an unknown metric, twice the same
    """
    if len(runs) > (1 if table else 2):
        raise UserError(f"{WHO}: compares {'one run with a table' if table else 'two runs'}; got {len(runs)} runs")
    chosen = _conditions(runs, conditions, 1 if table else 2, metrics)
    defaults = _default_metrics([run for run, _ in chosen], metrics)
    picks = [Pick(run, condition, metric) for (run, condition), metric in zip(chosen, defaults, strict=True)]
    if len(picks) == 2 and len({(p.run.path.resolve(), p.condition, p.metric) for p in picks}) == 1:
        raise UserError(f"{WHO}: both sides are {picks[0].metric} of '{picks[0].condition}' in {picks[0].run.path}; name another run, condition or metric")
    return picks


def _conditions(runs: Sequence[Run], names: Sequence[str] | None, count: int, metrics: Sequence[str | None]) -> list[tuple[Run, str]]:
    if names is not None:
        if len(names) != count:
            raise UserError(f"{WHO}: conditions: name {count}{' beside a table' if count == 1 else ''}; got {', '.join(names)}")
        return [_condition(runs, name, min(side, len(runs) - 1)) for side, name in enumerate(names)]
    known = [edited_conditions(run) for run in runs]
    for run, found in zip(runs, known, strict=True):
        if not found:
            raise UserError(f"{WHO}: {run.path} has no edited cells; run an experiment with an intervention and a sweep")
    if len(runs) == count == 2 or count == 1:
        for run, found in zip(runs, known, strict=True):
            if len(found) > 1:
                write = "[name]" if count == 1 else "[of the first run, of the second run]"
                raise UserError(f"{WHO}: {run.path} has the conditions {', '.join(found)}; choose with conditions: {write}")
        return [(run, found[0]) for run, found in zip(runs, known, strict=True)]
    run, found = runs[0], known[0]
    if len(found) == 2:
        return [(run, c) for c in found]
    if len(found) == 1 and len(set(metrics)) == 2:
        return [(run, found[0])] * 2
    has = f"it has the condition{'s' if len(found) > 1 else ''} {', '.join(found)}"
    raise UserError(f"{WHO}: {run.path} is one run; give a second one, table: FILE, or conditions: [a, b] ({has})")


def _condition(runs: Sequence[Run], name: str, side: int) -> tuple[Run, str]:
    if name in edited_conditions(runs[side], controls=True):
        return runs[side], name
    indexed = re.fullmatch(r"(\d+):(.+)", name)
    if indexed and int(indexed[1]) < len(runs):
        side, name = int(indexed[1]), indexed[2]
        if name in edited_conditions(runs[side], controls=True):
            return runs[side], name
    elsewhere = [f"{i}:{name}" for i, run in enumerate(runs) if name in edited_conditions(run, controls=True)]
    other = f"write '{elsewhere[0]}' for that of {runs[int(elsewhere[0].split(':')[0])].path}" if elsewhere else ""
    hint = other or nearest(name, edited_conditions(runs[side], controls=True))
    raise UserError(f"{WHO}: conditions: {runs[side].path} has no edited condition '{name}'; {hint}")


def _default_metrics(runs: Sequence[Run], wanted: Sequence[str | None]) -> list[str]:
    """Return a metric per side: those asked for; else the first preferred one that all have; else each its own."""
    if all(w is None for w in wanted):
        both = set.intersection(*(set(run.metrics) for run in runs))
        first = next((m for m in [*PREFERRED, *runs[0].metrics] if m in both), None)
        return [first or metric_of(run, None, f"{WHO}: {run.path}") for run in runs]
    return [metric_of(run, metric, f"{WHO}: {run.path}") for run, metric in zip(runs, wanted, strict=False)]


def common_axes(first: Mapping[str, Sequence[str]], second: Mapping[str, Sequence[str]], names: Sequence[str]) -> list[str]:
    """Return the axes that make a place: those of both sides that vary in one of them (all of them when none does).

    An axis that stands still on both sides, at whatever value, is a setting, no place.

    Raises
    ------
    UserError: no common axis
    """
    both = [a for a in first if a in second]
    if not both:
        has = "; ".join(f"{name}: {', '.join(axes) or 'none'}" for name, axes in zip(names, (first, second), strict=True))
        raise UserError(f"{WHO}: the two sides have no axis in common ({has}); sweep the same axis in both")
    return [a for a in both if len(first[a]) > 1 or len(second[a]) > 1] or both


# -------------------------------------------------------------------------------------------- effects


def side_of_run(pick: Pick, name: str, axes: Sequence[str], confidence: float) -> Side:
    """Return a run's effects: examples × places, trials, donors and the axes that are no place averaged per example."""
    cells = pick.run.cells
    part = cells[cells["condition"].isin(["baseline", pick.condition])]
    per = effects.per_example(part, pick.metric, axes, None)
    labels = [per[a].map({v: label_text(v) for v in per[a].unique()}) for a in axes]
    places = list(zip(*labels, strict=True))
    per = per.assign(place=pd.Series(places, index=per.index, dtype=object))
    shares = yes_or_no(pick.metric) and effects.are_shares(per["effect"])
    rows = [effects.statistics(group["effect"].to_numpy(float), confidence, shares) for _, group in per.groupby("place", sort=False)]
    order = list(dict.fromkeys(places))
    table = pd.DataFrame(rows, index=pd.Index(order, tupleize_cols=False))[["mean", "ci_low", "ci_high", "n"]].rename(columns={"mean": "effect"})
    wide = [group.set_index("example")["effect"] for _, group in per.groupby("place", sort=False)]  # in the order of `order`
    examples = pd.concat(wide, axis=1)
    examples.columns = pd.Index(order, tupleize_cols=False)
    averaged = [a for a, labels in pick.axes().items() if a not in axes and len(labels) > 1]
    return Side(name, pick.metric, f"{pick.run.path}: {pick.condition}", table, examples, data_of(pick.run), averaged)


def side_of_table(published: Published, axes: Sequence[str]) -> Side:
    """Return published numbers as a side: no examples, intervals where the table gives them."""
    frame = published.frame
    order = [tuple(row) for row in frame[list(axes)].itertuples(index=False)]
    if len(set(order)) < len(order):
        extra = ", ".join(a for a in published.axes if a not in axes)
        raise UserError(f"{WHO}: table '{published.file}': several rows per {' × '.join(axes)} (it also has {extra}); keep one row per place")
    table = frame[["value", "ci_low", "ci_high", "n"]].rename(columns={"value": "effect"})
    table.index = pd.Index(order, tupleize_cols=False)
    return Side(published.file, published.column, published.file, table, pd.DataFrame(), "", [])


def data_of(run: Run) -> str:
    """Return what tells one data file from another: examples of the same name are the same where this is."""
    digest = str(run.provenance.get("data_digest") or "")
    if digest:
        return digest
    spec = {k: v for k, v in dict(run.experiment.get("data") or {}).items() if k not in ("limit", "sample", "on_invalid")}
    return json.dumps(spec, sort_keys=True, default=str)


def side_names(picks: Sequence[Pick], table: str | None) -> list[str]:
    """Return short names that tell the sides apart: the run's folder, its condition where that says more."""
    if table is not None:
        return [_run_name(picks[0]), Path(table).name]
    first, second = picks
    if first.run.path.resolve() == second.run.path.resolve():
        names = [p.condition for p in picks]
    else:
        names = [_run_name(p) for p in picks]
    if names[0] == names[1]:
        names = [f"{p.run.path}: {p.condition}" if first.metric == second.metric else f"{n} {p.metric}" for p, n in zip(picks, names, strict=True)]
    return names


def _run_name(pick: Pick) -> str:
    folder = pick.run.path.resolve().name
    return f"{folder} {pick.condition}" if len(edited_conditions(pick.run)) > 1 else folder


def examples_in_common(a: Side, b: Side) -> tuple[bool, str]:
    """Return whether examples of one name are the same ones, and a sentence on how many both sides have."""
    if a.published or b.published:
        known = b if a.published else a
        return False, f"{len(known.examples)} examples; the published numbers have none that could be drawn again"
    first, second = set(a.examples.index), set(b.examples.index)
    if a.data != b.data:
        return False, f"different examples ({len(first)} and {len(second)}, other data)"
    shared = len(first & second)
    if first == second:
        return True, f"the same {shared} examples"
    if not shared:
        return True, f"different examples ({len(first)} and {len(second)} of the same data, none shared)"
    return True, f"{len(first)} and {len(second)} examples, {shared} of them the same"


# --------------------------------------------------------------------------------------------- places


def ordered(labels: set[str]) -> list[str]:
    """Return labels in order: numbers by value, then sets and words."""
    return sorted(labels, key=_rank)


def _rank(label: str) -> tuple[int, float, int, str]:
    try:
        return 0, float(label), 0, ""
    except ValueError:
        return 1, 0.0, len(label), label


def place_table(a: Side, b: Side, axes: Sequence[str]) -> pd.DataFrame:
    """Return one row per place of either side; ``compared`` where both have a value, ``note`` where one has none."""
    places = sorted({*a.places.index, *b.places.index}, key=lambda p: tuple(_rank(v) for v in p))
    out = pd.DataFrame(list(places), columns=list(axes))
    for axis in axes:
        if all(re.fullmatch(r"-?\d+", v) for v in out[axis]):
            out[axis] = out[axis].astype("Int64")
    for letter, side in (("a", a), ("b", b)):
        found = side.places.reindex(pd.Index(places, tupleize_cols=False))
        for column in ("effect", "ci_low", "ci_high"):
            out[f"{column}_{letter}"] = found[column].to_numpy(float)
        out[f"n_{letter}"] = pd.array([pd.NA if np.isnan(n) else int(n) for n in found["n"].to_numpy(float)], dtype="Int64")
    missing = out[["effect_a", "effect_b"]].isna()
    out["compared"] = ~missing.any(axis=1)
    notes = {(True, False): "no value in a", (False, True): "no value in b", (True, True): "no value in either", (False, False): ""}
    out["note"] = [notes[bool(m), bool(n)] for m, n in missing.itertuples(index=False)]
    return out


def label_of(row: Any, axes: Sequence[str]) -> str:
    """Return a place in words: ``layer 3 step 2``."""
    return " ".join(f"{a} {row[a]}" for a in axes)
