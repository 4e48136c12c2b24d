"""What a probe is to read from states: one label per cell, from the data, the answers, or annotated solutions."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.solutions.answers import equal
from codi_engine.plugins.analyses.chain import results

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.runs.results import Run

_VALUE = re.compile(r"value:(-?[1-9]\d*)\Z")
#: a class needs so many rows on average
_ROWS_PER_CLASS = 4


@dataclass(frozen=True)
class Labels:
    """One label per kept cell: ``numbers`` for regression, or ``classes`` with their ``names``.

    ``cells``: which rows of the frame are kept; ``missing``: how many have no label.
    """

    cells: np.ndarray
    missing: int
    numbers: np.ndarray | None = None
    classes: np.ndarray | None = None
    names: tuple[str, ...] = ()


def values_of(run: Run, frame: pd.DataFrame, target: str, steps: str, who: str) -> tuple[list[Any], bool]:
    """Return (one value or None per cell, whether they are yes or no or text).

    Parameters
    ----------
    target: ``answer`` (gold), ``given`` (the model's), ``correct``, ``value:J`` (the J-th intermediate result; −1 is the last), or a field
    steps: the field with annotated solutions
    """
    if match := _VALUE.match(target):
        return _results(frame, int(match[1]), steps, who), False
    if target in ("answer", "correct"):
        gold = _gold(run, frame)
        if target == "answer":
            return [None if np.isnan(v) else float(v) for v in gold], False
        right = equal(frame["answer"].to_numpy(float), gold)
        return [None if np.isnan(g) else bool(r) for g, r in zip(gold, right, strict=True)], True
    column = "answer" if target == "given" else target
    known = [str(c) for c in frame if c not in (*run.axes, *run.metrics, "key", "text", "answer", "answer_rule")]
    if column not in frame or (target != "given" and target not in [*known, *run.metrics, *run.axes]):
        raise UserError(f"{who}: target: the data has no field '{target}'; {nearest(target, [*known, 'answer', 'given', 'correct', 'value:1'])}")
    values = [None if _missing(v) else v for v in frame[column]]
    return values, any(isinstance(v, (str, bool, np.bool_)) for v in values)


def _missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.isna(value))


def _results(frame: pd.DataFrame, number: int, steps: str, who: str) -> list[Any]:
    if steps not in frame:
        raise UserError(f"{who}: target: value:{number} needs annotations such as <<6*2=12>> in the data's field '{steps}' (option steps)")
    chains = [results(text) for text in frame[steps]]
    at = number - 1 if number > 0 else number
    return [c[at] if -len(c) <= at < len(c) else None for c in chains]


def _gold(run: Run, frame: pd.DataFrame) -> np.ndarray:
    from codi_engine.core.runs.reload import gold_answers, reload_data

    gold = gold_answers(reload_data(run))
    variants = frame["variant"].astype(str) if "variant" in frame else ["main"] * len(frame)
    return np.array([gold.get((str(e), v), np.nan) for e, v in zip(frame["example"], variants, strict=True)], np.float64)


def labels(values: list[Any], words: bool, task: str, log: bool, where: str) -> Labels:
    """Make labels of values: numbers unless they are words, yes or no, or ``task`` says otherwise.

    Raises
    ------
    UserError: no values, only one, words to be regressed on, or about as many classes as rows
    """
    cells = np.array([i for i, v in enumerate(values) if v is not None], np.int64)
    kept = [values[i] for i in cells]
    missing = len(values) - len(kept)
    if len(set(kept)) < 2:
        raise UserError(f"{where} is {'nowhere known' if not kept else f'{kept[0]} everywhere'}: there is nothing to tell apart")
    if task == "classification" or (task == "auto" and words):
        names = sorted(set(kept), key=lambda v: (str(type(v)), v))
        if len(kept) < _ROWS_PER_CLASS * len(names):
            remedy = "choose a field with fewer values" if words else "a number can be read with task=regression"
            raise UserError(f"{where} has {len(names)} classes in {len(kept)} cells; {remedy}")
        where_of = {n: i for i, n in enumerate(names)}
        return Labels(cells, missing, classes=np.array([where_of[v] for v in kept]), names=tuple(map(str, names)))
    if any(isinstance(v, str) for v in kept):
        raise UserError(f"{where} holds words such as '{next(v for v in kept if isinstance(v, str))}': use task=classification")
    numbers = np.array(kept, np.float64)
    return Labels(cells, missing, numbers=np.sign(numbers) * np.log1p(np.abs(numbers)) if log else numbers)


def groups_of(frame: pd.DataFrame, field: str | None, where: str) -> np.ndarray:
    """Return the number of each cell's group: its example, or a field's value; cells without the field stand alone by example.

    Raises
    ------
    UserError: no such field
    """
    import pandas as pd

    column = field or "example"
    if column not in frame:
        raise UserError(f"{where}: the data has no field '{column}'; {nearest(column, map(str, frame))}")
    names = frame[column].astype(object).where(frame[column].notna(), "\0" + frame["example"].astype(str))
    return pd.factorize(names.astype(str))[0]
