"""Which numbers a lens looks for in each cell: the gold answer and the intermediate results, in tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.plugins.analyses.chain import results
from codi_engine.plugins.analyses.readout import Spelling, padded

if TYPE_CHECKING:
    import pandas as pd

ANSWER = "answer"
#: the answer of a pair's other side
OTHER = "other"


def called(name: str) -> str:
    """Return what a value is called in figures and in the terminal."""
    return f"result {name}" if name.isdigit() else f"{name} answer" if name == OTHER else name


@dataclass
class Sought:
    """Numbers and tokens per cell. Values: intermediate results "1", "2" …, for pairs the ``other`` side's answer, and last the gold ``answer``.

    Attributes
    ----------
    names: of the values
    numbers: cells × values, NaN where there is none
    tokens: cells × values × spellings, −1 for none
    candidates: per value, numbers that any example has there: candidates × spellings of tokens
    counts: per value, in how many examples each candidate stands
    own: per value, cells × the candidates that the cell's own example has (−1 for none)
    given: cells × spellings, the model's own answer
    notes: what was left out
    """

    names: list[str]
    numbers: np.ndarray
    tokens: np.ndarray
    candidates: list[np.ndarray]
    counts: list[np.ndarray]
    own: list[np.ndarray]
    given: np.ndarray
    notes: list[str]

    def chance(self, value: int, hits: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Return the share of other examples' numbers that are hits, numbers that the cell's own example has left out.

        Parameters
        ----------
        hits: rows × candidates of ``value``
        cells: the cell of each row

        Returns
        -------
        rows; NaN where no other example has another number
        """
        counts, own = self.counts[value].astype(np.float64), self.own[value][cells]
        mine = np.where(own >= 0, counts[np.maximum(own, 0)], 0.0) if len(counts) else np.zeros(own.shape)
        rest = counts.sum() - mine.sum(1)
        taken = np.take_along_axis(hits, np.maximum(own, 0), 1) if len(counts) else np.zeros(own.shape)
        found = hits @ counts - (mine * taken).sum(1)
        share: np.ndarray = np.divide(found, rest, out=np.full(len(hits), np.nan), where=rest > 0)
        return share


def seek(frame: pd.DataFrame, gold: Mapping[tuple[str, str], float], field: str, spelling: Spelling) -> Sought:
    """Find the numbers of each cell.

    A result that equals the gold answer is no intermediate one. The annotation of a pair belongs to one of its sides: it is
    left out where its last result is not the cell's gold answer.

    Parameters
    ----------
    frame: cells, as in ``run.cells``
    gold: (example, variant) → gold answer
    field: the column with annotations; may be absent
    """
    variants = frame["variant"].astype(str).tolist() if "variant" in frame else ["main"] * len(frame)
    answers = np.array([gold.get((e, v), np.nan) for e, v in zip(frame["example"].astype(str), variants, strict=True)], np.float64)
    chains = [results(text) for text in frame[field]] if field in frame else [[] for _ in range(len(frame))]
    notes, foreign, equal = [], 0, 0
    for i, chain in enumerate(chains):
        if "variant" in frame and chain and chain[-1] != answers[i]:
            foreign, chains[i] = foreign + 1, []
        equal += sum(v == answers[i] for v in chains[i][:-1])
    if foreign:
        notes.append(f"{foreign} annotations do not end in their cell's answer and are left out")
    if equal:
        notes.append(f"{equal} intermediate results equal their answer and are left out")
    depth = max((j + 1 for c, a in zip(chains, answers, strict=True) for j, v in enumerate(c) if v != a), default=0)
    paired = "variant" in frame
    numbers = np.full((len(frame), depth + 1 + paired), np.nan)
    numbers[:, -1] = answers
    if paired:
        numbers[:, -2] = _others(frame["example"].astype(str), variants, gold)
    for i, chain in enumerate(chains):
        for j, value in enumerate(chain):
            if value != answers[i]:
                numbers[i, j] = value
    named = [*(str(j + 1) for j in range(depth)), *([OTHER] if paired else []), ANSWER]
    keep = [*(~np.isnan(numbers[:, :-1])).any(0), True]
    numbers, names = numbers[:, keep], [n for n, kept in zip(named, keep, strict=True) if kept]
    tokens = padded([[spelling.tokens(v) for v in row] for row in numbers])
    numbers[(tokens < 0).all(2)] = np.nan
    given = padded([[spelling.tokens(float(v))] for v in frame["answer"]])[:, 0]
    if spelling.lost:
        notes.append(f"{len(spelling.lost)} numbers have no token that can be read and are left out")
    if spelling.several:
        notes.append(f"{len(spelling.several)} numbers take several tokens: the first one is looked for")
    candidates, counts, own = zip(*(_candidates(frame["example"].to_numpy(), numbers[:, v], spelling) for v in range(len(names))), strict=True)
    return Sought(names, numbers, tokens, list(candidates), list(counts), list(own), given, notes)


def _others(examples: Iterable[str], variants: Sequence[str], gold: Mapping[tuple[str, str], float]) -> list[float]:
    """Return the gold answer of the other side of each cell's pair; NaN where there is no single other one."""
    sides: dict[str, dict[str, float]] = {}
    for (example, variant), value in gold.items():
        sides.setdefault(example, {})[variant] = value
    rest = [[a for v, a in sides.get(e, {}).items() if v != variant] for e, variant in zip(examples, variants, strict=True)]
    return [r[0] if len(r) == 1 else np.nan for r in rest]


def _candidates(example: np.ndarray, numbers: np.ndarray, spelling: Spelling) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (tokens of the distinct numbers, in how many examples each stands, cells × candidates of the cell's example)."""
    distinct = np.unique(numbers[~np.isnan(numbers)])
    mine: dict[Any, dict[int, None]] = {e: {} for e in example}
    for e, value in zip(example, numbers, strict=True):
        if not np.isnan(value):
            mine[e][int(np.searchsorted(distinct, value))] = None
    counts = np.zeros(len(distinct), np.int64)
    for held in mine.values():
        counts[list(held)] += 1
    tokens = padded([[spelling.tokens(float(v))] for v in distinct])[:, 0] if len(distinct) else np.empty((0, 1), np.int64)
    return tokens, counts, _ragged([list(mine[e]) for e in example])


def _ragged(rows: Sequence[Sequence[int]]) -> np.ndarray:
    out = np.full((len(rows), max((len(r) for r in rows), default=0) or 1), -1, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
