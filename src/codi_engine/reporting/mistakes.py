"""Error analysis: wrong unedited answers, answers that edits break or mend, answers that are missing, undefined values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from codi_engine.core.errors import CodiEngineError
from codi_engine.core.planning.controls import is_control
from codi_engine.core.runs.results import BASELINE
from codi_engine.core.solutions.answers import equal
from codi_engine.reporting.text import texts_of

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

#: examples listed of each kind
LISTED = 5
_SAME = ("example", "variant", "trial")
_METRIC = "accuracy"


@dataclass(frozen=True)
class Case:
    """One cell: where it is, its unedited and edited text (one of them alone for unedited answers)."""

    where: str
    baseline: str
    edited: str = ""
    gold: float = float("nan")


@dataclass
class Changes:
    """What a condition does to answers: cells that can be compared, right → wrong and wrong → right, with a few of each."""

    condition: str
    compared: int
    broken: int
    mended: int
    missing: int
    cells: int
    broke: list[Case] = field(default_factory=list)
    mend: list[Case] = field(default_factory=list)


@dataclass
class Mistakes:
    """``known``: how right and wrong were told apart, empty where they cannot be; ``untold``: unedited answers of which it is not known."""

    known: str
    unedited: int = 0
    wrong: int = 0
    missing: int = 0
    untold: int = 0
    cases: list[Case] = field(default_factory=list)
    changes: list[Changes] = field(default_factory=list)
    undefined: dict[str, dict[str, int]] = field(default_factory=dict)


def mistakes(run: Run) -> Mistakes:
    """Count and collect; controls are left out."""
    right, gold, known = _right(run)
    names = [str(c) for c in run.store.labels("condition")] if "condition" in run.axes else []
    condition = run.store.codes("condition") if names else np.zeros(0, np.int64)
    answer = run.store.column("cells/answer") if len(condition) else np.zeros(0)
    base = condition == (names.index(BASELINE) if BASELINE in names else -2)
    found = Mistakes(known, int(base.sum()), int((right[base] == 0).sum()), int(np.isnan(answer[base]).sum()), int(np.isnan(right[base]).sum()))
    listed = np.flatnonzero(base & (right == 0))[:LISTED]
    texts = texts_of(run, run.store.slots[listed])
    found.cases = [Case(_where(run, i), texts.get(int(run.store.slots[i]), ""), gold=float(gold[i])) for i in listed]
    partner = _partners(run, base)
    for code, name in enumerate(names):
        rows = np.flatnonzero(condition == code)
        if name != BASELINE and not is_control(name) and len(rows):
            found.changes.append(_changes(run, name, rows, partner[rows], right, answer, gold))
    found.undefined = _undefined(run, names, condition)
    return found


def _right(run: Run) -> tuple[np.ndarray, np.ndarray, str]:
    """Return per cell 1, 0 or NaN (not known), the gold answers (NaN where unknown), and how it is known."""
    gold = _gold(run)
    if _METRIC in run.metrics:
        return run.store.column(f"cells/metrics/{_METRIC}"), gold, "by the metric accuracy"
    if np.isnan(gold).all():
        return np.full(len(gold), np.nan), gold, ""
    right = equal(run.store.column("cells/answer"), gold).astype(float)
    right[np.isnan(gold)] = np.nan
    return right, gold, "by the data's answers"


def _gold(run: Run) -> np.ndarray:
    from codi_engine.core.runs.reload import gold_answers, reload_data

    cells = len(run.store.slots)
    try:
        known: Mapping[tuple[str, str], float] = gold_answers(reload_data(run))
    except (CodiEngineError, OSError):
        known = {}
    if not known or "example" not in run.axes:
        return np.full(cells, np.nan)
    examples = [str(v) for v in run.store.labels("example")]
    variants = [str(v) for v in run.store.labels("variant")] if "variant" in run.axes else ["main"]
    grid = np.array([[known.get((e, v), np.nan) for v in (*variants, "main")] for e in (*examples, "")])
    variant = run.store.codes("variant") if "variant" in run.axes else np.zeros(cells, np.int64)
    values: np.ndarray = grid[run.store.codes("example"), np.where(variant < 0, len(variants), variant)]
    return values


def _partners(run: Run, base: np.ndarray) -> np.ndarray:
    """Return per cell the row of its unedited cell (same prompt and trial, same target where the baseline has one); −1 for none."""
    axes = [a for a in (*_SAME, "target") if a in run.axes and (run.store.codes(a)[base] >= 0).any()]
    if not axes or not base.any():
        return np.full(len(base), -1)
    codes = np.stack([run.store.codes(a) for a in axes], 1)
    _, key = np.unique(codes, axis=0, return_inverse=True)
    place = np.full(int(key.max()) + 1, -1)
    rows = np.flatnonzero(base)[::-1]
    place[key.ravel()[rows]] = rows
    partner: np.ndarray = place[key.ravel()]
    return partner


def _changes(run: Run, name: str, rows: np.ndarray, partner: np.ndarray, right: np.ndarray, answer: np.ndarray, gold: np.ndarray) -> Changes:
    before = np.where(partner >= 0, right[partner], np.nan)
    after = right[rows]
    broke, mend = (before == 1) & (after == 0), (before == 0) & (after == 1)
    compared = int((~np.isnan(before) & ~np.isnan(after)).sum())
    made = Changes(name, compared, int(broke.sum()), int(mend.sum()), int(np.isnan(answer[rows]).sum()), len(rows))
    for chosen, cases in ((broke, made.broke), (mend, made.mend)):
        some = _spread(run, rows, chosen)
        texts = texts_of(run, [int(run.store.slots[i]) for at in some for i in (rows[at], partner[at])])
        slots = run.store.slots
        cases += [Case(_where(run, rows[i]), texts.get(int(slots[partner[i]]), ""), texts.get(int(slots[rows[i]]), ""), float(gold[rows[i]])) for i in some]
    return made


def _spread(run: Run, rows: np.ndarray, chosen: np.ndarray) -> list[int]:
    """Return a few of the chosen, of different examples where there are."""
    at = np.flatnonzero(chosen)
    if "example" not in run.axes or not len(at):
        return [int(i) for i in at[:LISTED]]
    _, first = np.unique(run.store.codes("example")[rows[at]], return_index=True)
    order = [*np.sort(first).tolist(), *np.setdiff1d(np.arange(len(at)), first).tolist()]
    return [int(i) for i in at[order[:LISTED]]]


def _where(run: Run, row: int) -> str:
    """Return a cell's axes in words."""
    parts = []
    for axis in run.axes:
        code = int(run.store.codes(axis)[row])
        if code >= 0 and axis != "condition" and not (axis == "variant" and run.store.labels(axis)[code] == "main"):
            parts.append(f"{axis} {run.store.labels(axis)[code]}")
    return ", ".join(parts)


def _undefined(run: Run, names: list[str], condition: np.ndarray) -> dict[str, dict[str, int]]:
    """Return metric → condition → NaN values, where there are any."""
    found: dict[str, dict[str, int]] = {}
    for metric in run.metrics:
        nan = np.isnan(run.store.column(f"cells/metrics/{metric}"))
        counts = {name: int(nan[condition == code].sum()) for code, name in enumerate(names) if not is_control(name)}
        if any(counts.values()):
            found[metric] = {n: c for n, c in counts.items() if c}
    return found
