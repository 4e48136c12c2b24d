"""What the features' own codes are in unedited cells: the values that a later run patches in."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.runs.vectors import Codes, Vectors

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run
    from codi_engine.plugins.analyses.contrasts import Grids

#: cells that are read at once
_CELLS = 512
MEAN = "mean_code"
_TAKEN = ("feature", "layer", "id", "metric", "condition", "effect", "low", "high", "p", "q", "n")


def mean_codes(found: Grids, features: pd.DataFrame, by: str | None, site: str | None, where: str) -> pd.DataFrame:
    """Return a column per group of unedited cells: each feature's mean code there, averaged over its places; NaN if not captured.

    Without captures, or where they hold none of the features, there are no columns.

    Raises
    ------
    UserError: ``by`` or ``site`` is asked for and not there
    """
    run = found.run
    known = sorted({a.split("/")[1] for a in run.store.arrays if a.startswith("activations/")})
    if site is not None and site not in known:
        raise UserError(f"{where}: site: '{site}' was not captured; {nearest(site, known)}")
    if by is not None and not known:
        raise UserError(f"{where}: value_by: the run holds no captured codes; add capture: to the experiment")
    slots = _unedited(found)
    names, group = _groups(run, slots, by, where)
    total, count = np.zeros((len(names), len(features))), np.zeros((len(names), len(features)))
    for name in [site] if site is not None else known:
        vectors = Vectors(run, name, where)
        _add(vectors, _places(vectors, features, site is not None), slots, group, total, count)
    with np.errstate(invalid="ignore"):
        means = total / count
    seen = (count > 0).any() and len(slots) > 0
    if by is not None and not seen and len(features):
        raise UserError(f"{where}: value_by: none of the captures ({', '.join(known)}) holds codes of the selected features")
    return pd.DataFrame(dict(zip(names, means, strict=True)) if seen else {}, index=features.index)


def _unedited(found: Grids) -> np.ndarray:
    a = found.arrangement
    if "baseline" not in a.conditions:
        return np.zeros(0, np.int64)
    slots = np.unique(found.slots(a.conditions.index("baseline")))
    return slots[slots >= 0]


def _groups(run: Run, slots: np.ndarray, by: str | None, where: str) -> tuple[list[str], np.ndarray]:
    """Return names of the groups and each slot's group; −1 where the field is missing."""
    if by is None:
        return [MEAN], np.zeros(len(slots), np.int64)
    if by in run.axes:
        codes = np.full(run.store.units * run.store.unit_cells, -1)
        codes[run.store.slots] = run.store.codes(by)
        labels = run.store.labels(by)
        of = [None if c < 0 else str(labels[c]) for c in codes[slots]]
    else:
        texts = run.store.texts()
        if by not in texts.column_names or by in ("slot", "key", "text"):
            fields = [n for n in texts.column_names if n not in ("slot", "key", "text", "answer_rule")]
            raise UserError(f"{where}: value_by: the data has no field '{by}'; {nearest(by, [*fields, *run.axes])}")
        value = dict(zip(texts.column("slot").to_pylist(), texts.column(by).to_pylist(), strict=True))
        of = [None if value.get(int(s)) is None else str(value[int(s)]) for s in slots]
    names = sorted({v for v in of if v is not None})
    taken = next((n for n in names if n in _TAKEN), None)
    if taken is not None:
        raise UserError(f"{where}: value_by: a value of '{by}' is '{taken}', which is a column of the file; use another field")
    return names, np.array([-1 if v is None else names.index(v) for v in of], np.int64)


def _add(vectors: Vectors, place: np.ndarray, slots: np.ndarray, group: np.ndarray, total: np.ndarray, count: np.ndarray) -> None:
    """Add a capture's codes of the features (and how many there are) to groups × features; ``place``: column → feature."""
    columns = np.flatnonzero(place >= 0)
    there = np.isin(slots, vectors.run.store.read_slots(vectors.array)) & (group >= 0)
    slots, group = slots[there], group[there]
    if not len(columns) or not len(slots):
        return
    for begin in range(0, len(slots), _CELLS):
        some, mine = slots[begin : begin + _CELLS], group[begin : begin + _CELLS]
        data = vectors.read(some)
        if isinstance(data, Codes):
            row = np.repeat(np.arange(len(some)), np.diff(data.ptr))
            keep = place[data.index] >= 0
            np.add.at(total, (mine[row[keep]], place[data.index[keep]]), data.value[keep])
            cells = np.bincount(mine, minlength=len(total)).astype(np.float64)
            for column in columns:
                count[:, place[column]] += cells
        else:
            values = data.reshape(len(some), -1)[:, columns].astype(np.float64)
            for i, column in enumerate(columns):
                known = ~np.isnan(values[:, i])
                np.add.at(total[:, place[column]], mine[known], values[known, i])
                np.add.at(count[:, place[column]], mine[known], 1.0)


def _places(vectors: Vectors, features: pd.DataFrame, asked: bool) -> np.ndarray:
    """Return per column of a capture the row of ``features`` that it is a code of; −1 for others.

    A column belongs to a feature by its label (``L2-17``); in sparse codes, and where the capture was asked for by name, also by
    number and layer (``step=3/17`` of a site in layer 2): column 17 of a residual stream is no feature 17.
    """
    by_label = {str(f): i for i, f in enumerate(features["feature"])}
    numbered = [(i, int(f), int(layer)) for i, (f, layer) in enumerate(zip(features["id"], features["layer"], strict=True)) if pd.notna(f) and pd.notna(layer)]
    by_number = {(layer, f): i for i, f, layer in numbered}
    layers = _layers(vectors)
    out = np.full(vectors.width, -1)
    for column, label in enumerate(vectors.labels):
        last = label.rsplit("/", 1)[-1]
        if last in by_label:
            out[column] = by_label[last]
        elif last.isdecimal() and (asked or vectors.sparse):
            out[column] = by_number.get((int(layers[column]), int(last)), -1)
    return out


def _layers(vectors: Vectors) -> np.ndarray:
    """Return the layer of every column; where neither labels nor site say, the number after the dot of the capture's name."""
    layers = vectors.layers
    named = re.search(r"\.(\d+)", vectors.name)
    return np.where(layers < 0, int(named[1]), layers) if named else layers
