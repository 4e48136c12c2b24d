"""Tests of words over examples: shares of texts paired by example, and permutations within examples."""

from __future__ import annotations

import numpy as np

from codi_engine.kernels.counts import Counts
from codi_engine.kernels.moments import Moments
from codi_engine.kernels.permutation import difference_p, weights
from codi_engine.kernels.ttest import CONSTANT, paired


def paired_shares(counts: Counts, groups: list[np.ndarray], terms: np.ndarray) -> np.ndarray:
    """Return p of paired t-tests over examples of the share of texts that have each term.

    Examples without texts in one of the conditions are left out. A term without any spread and difference has p = 1.
    """
    there = (counts.size[groups[0]] > 0) & (counts.size[groups[1]] > 0)
    index, value = [], []
    for rows, sign in ((groups[0][there], 1.0), (groups[1][there], -1.0)):
        example, term, documents = _entries(counts, rows, terms)
        index.append(example * len(terms) + term)
        value.append(sign * documents / counts.size[rows][example])
    keys, number = np.unique(np.concatenate(index), return_inverse=True)
    difference = np.bincount(number, np.concatenate(value), len(keys))
    difference[np.abs(difference) < 1e-12] = 0.0
    moments = Moments.empty(1, len(terms))
    rows_there = float(there.sum())
    moments.add_codes(np.array([0, len(keys)]), keys % max(len(terms), 1), difference, np.array([rows_there]))
    tested = paired(moments)
    p: np.ndarray = tested.p[0]
    p[tested.status[0] == CONSTANT] = 1.0
    return p


def permuted(counts: Counts, groups: list[np.ndarray], terms: np.ndarray, permutations: int, seed: int, stream: int) -> np.ndarray:
    """Return p of permutation tests of the share of texts that have each term; conditions are exchanged within examples.

    Where an example has one text in each condition this is an exchange of the two; a group's texts are known by their counts.
    """
    first, strata, values = [], [], []
    for side, rows in enumerate(groups):
        example, term, documents = _entries(counts, rows, terms)
        for number, row in enumerate(rows):
            size = int(counts.size[row])
            block = np.zeros((size, len(terms)), np.float32)
            mine = example == number
            # which of an example's texts have the term does not matter: they exchange labels among themselves
            block[:] = np.arange(size)[:, None] < np.bincount(term[mine], documents[mine], len(terms))
            first.append(np.full(size, side == 0))
            strata.append(np.full(size, number))
            values.append(block)
    table = np.concatenate(values)
    w, complete = weights(np.concatenate(first), np.concatenate(strata), permutations, seed, stream)
    return difference_p(w, complete, table)[1]


def _entries(counts: Counts, rows: np.ndarray, terms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (number of the row, position in ``terms``, documents) of the entries of chosen rows."""
    begin, end = counts.ptr[rows], counts.ptr[rows + 1]
    which = np.concatenate([np.arange(a, b) for a, b in zip(begin, end, strict=True)]) if len(rows) else np.zeros(0, np.int64)
    number = np.repeat(np.arange(len(rows)), end - begin)
    place = np.searchsorted(terms, counts.word[which])
    known = place < len(terms)
    known[known] = terms[place[known]] == counts.word[which][known]
    return number[known], place[known], counts.documents[which][known].astype(np.float64)
