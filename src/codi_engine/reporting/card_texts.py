"""What cards say in words: descriptions from the feature table, and example texts, unedited and edited side by side."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.planning.controls import is_control
from codi_engine.core.planning.features import table_path
from codi_engine.core.runs.results import BASELINE
from codi_engine.reporting.text import texts_of, visible
from codi_engine.reporting.words import number

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run
    from codi_engine.reporting.cards import Card

#: pairs of texts on a card per condition, and cells looked at to find some that differ
_PAIRS, _LOOKED_AT = 2, 8
#: a number with decimals, as a table of features holds it
_DECIMAL = re.compile(r"[+-]?\d+\.\d+([eE][+-]?\d+)?", re.ASCII)
#: what tells cells of the same prompt and draw
_SAME = ("example", "variant", "trial")


@dataclass(frozen=True)
class Pair:
    """One draw of one example: its unedited text and the edited one (``differs``: they are not the same)."""

    example: str
    condition: str
    baseline: str
    edited: str
    differs: bool


# --------------------------------------------------------------------------------------------- descriptions


def describe(run: Run, cards: Sequence[Card]) -> list[str]:
    """Put the feature table's columns on the cards; returns what is to be said where it cannot be read."""
    wanted, said = {c.feature: c for c in cards}, []
    for name in dict.fromkeys(_tables(run.experiment)):
        try:
            _read(name, wanted)
        except (OSError, UnicodeDecodeError, csv.Error, UserError):
            said.append(f"The feature table {name} cannot be read here, so its columns are not on the cards.")
    return said


def _tables(value: Any) -> Iterator[str]:
    """Yield every ``{from: FILE}`` of features in an experiment."""
    if isinstance(value, Mapping):
        for key, one in value.items():
            if key in ("feature", "features") and isinstance(one, Mapping) and isinstance(one.get("from"), str):
                yield one["from"]
            yield from _tables(one)
    elif isinstance(value, list):
        for one in value:
            yield from _tables(one)


def _read(name: str, wanted: Mapping[str, Card]) -> None:
    with table_path(name).open(encoding="utf-8-sig", newline="") as file:
        for row in csv.DictReader(file):
            label = (row.get("feature") or f"L{row.get('layer')}-{row.get('id')}").strip()
            if label in wanted:
                known = {k: v.strip() for k, v in row.items() if k and k not in ("feature", "layer", "id") and isinstance(v, str) and v.strip()}
                wanted[label].about.update({visible(k, 60): visible(_rounded(v), 300) for k, v in known.items()})


def _rounded(text: str) -> str:
    """Return a number with many decimals as the page writes numbers; other text as it is."""
    return number(float(text)) if len(text) > 6 and _DECIMAL.fullmatch(text) else text


# --------------------------------------------------------------------------------------------------- texts


def add_pairs(run: Run, axis: str, cards: Sequence[Card]) -> None:
    """Put example texts on the cards: of every edited condition the first draws whose text changed, else the first one."""
    if not run.store.text_units() or BASELINE not in run.store.labels("condition"):
        return
    table = _Cells(run, axis)
    chosen = [(card, condition, table.candidates(card.feature, condition)) for card in cards for condition in table.conditions]
    texts = texts_of(run, (slot for _, _, some in chosen for edited, base, _ in some for slot in (edited, base)))
    for card, condition, some in chosen:
        found = [(example, texts[base], texts[edited]) for edited, base, example in some if base in texts and edited in texts]
        pairs = [Pair(visible(e, 80), condition, visible(b), visible(t), b != t) for e, b, t in found]
        card.pairs += sorted(pairs, key=lambda p: not p.differs)[:_PAIRS]


class _Cells:
    """Slots of the cells of a run by feature and condition, and the unedited cell of each."""

    def __init__(self, run: Run, axis: str) -> None:
        self.labels = {str(v): code for code, v in enumerate(run.store.labels(axis))}
        names = [str(v) for v in run.store.labels("condition")]
        self.codes = {name: code for code, name in enumerate(names)}
        self.feature, self.condition, self.slots = run.store.codes(axis), run.store.codes("condition"), run.store.slots
        self.examples = run.store.labels("example") if "example" in run.axes else []
        self.same = np.stack([run.store.codes(a) if a in run.axes else np.zeros(len(self.slots), np.int64) for a in _SAME], 1)
        there = set(np.unique(self.condition).tolist())
        self.conditions = [n for n in names if n != BASELINE and not is_control(n) and self.codes[n] in there]
        self._unedited: dict[int, dict[tuple[int, ...], int]] = {}

    def candidates(self, feature: str, condition: str) -> list[tuple[int, int, str]]:
        """Return (edited slot, unedited slot, example) of a few cells, of different examples first."""
        code = self.labels[feature]
        rows = np.flatnonzero((self.feature == code) & (self.condition == self.codes[condition]))
        _, number = np.unique(self.same[rows, 0], return_index=True)
        order = [*np.sort(number).tolist(), *np.setdiff1d(np.arange(len(rows)), number).tolist()]
        own, shared = self._of(code), self._of(-1)
        keys = [tuple(self.same[rows[i]].tolist()) for i in order[:_LOOKED_AT]]
        found = [(int(self.slots[rows[i]]), own.get(k, shared.get(k)), self._example(rows[i])) for i, k in zip(order, keys, strict=False)]
        return [(edited, unedited, example) for edited, unedited, example in found if unedited is not None]

    def _of(self, code: int) -> dict[tuple[int, ...], int]:
        """Return (example, variant, trial) → slot of unedited cells of a feature; −1: those that all features share."""
        if code not in self._unedited:
            rows = np.flatnonzero((self.condition == self.codes[BASELINE]) & (self.feature == code))
            self._unedited[code] = dict(zip(map(tuple, self.same[rows].tolist()), self.slots[rows].tolist(), strict=True))
        return self._unedited[code]

    def _example(self, row: int) -> str:
        code = int(self.same[row, 0])
        return str(self.examples[code]) if 0 <= code < len(self.examples) else "–"
