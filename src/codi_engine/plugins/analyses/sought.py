"""Which numbers a lens looks for in each cell: the gold answer and the intermediate results, in tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.plugins.analyses.chain import results
from codi_engine.plugins.analyses.readout import Spelling, padded

if TYPE_CHECKING:
    import pandas as pd

ANSWER = "answer"


@dataclass
class Sought:
    """Numbers and tokens per cell. Values are the intermediate results "1", "2" … and last the gold ``answer``.

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
    numbers = np.full((len(frame), depth + 1), np.nan)
    numbers[:, -1] = answers
    for i, chain in enumerate(chains):
        for j, value in enumerate(chain):
            if value != answers[i]:
                numbers[i, j] = value
    keep = [*(~np.isnan(numbers[:, :-1])).any(0), True]
    numbers = numbers[:, keep]
    names = [*(str(j + 1) for j in np.flatnonzero(keep[:-1])), ANSWER]
    tokens = padded([[spelling.tokens(v) for v in row] for row in numbers])
    numbers[(tokens < 0).all(2)] = np.nan
    given = padded([[spelling.tokens(float(v))] for v in frame["answer"]])[:, 0]
    if spelling.lost:
        notes.append(f"{len(spelling.lost)} numbers have no token that can be read and are left out")
    if spelling.several:
        notes.append(f"{len(spelling.several)} numbers take several tokens: the first one is looked for")
    candidates, counts, own = zip(*(_candidates(frame["example"].to_numpy(), numbers[:, v], spelling) for v in range(len(names))), strict=True)
    return Sought(names, numbers, tokens, list(candidates), list(counts), list(own), given, notes)


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
