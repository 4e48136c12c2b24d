"""Permutation tests of a difference of means: labels are exchanged within strata (examples) only.

References
----------
Phipson & Smyth 2010 (p = (1 + #{|s*| ≥ |s|}) / (1 + B), never 0); all arrangements are listed where there are no more than B.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

#: ties of statistics that differ by rounding only
_SAME = 1e-9
_ROUNDING = 1e-13


def weights(first: np.ndarray, strata: np.ndarray, permutations: int, seed: int, stream: int = 0) -> tuple[np.ndarray, bool]:
    """Return the weights whose product with values is the difference of means: arrangements × rows, the observed one first.

    Parameters
    ----------
    first: bool, rows of the first group; the others are the second
    strata: stratum of each row, any integers
    permutations: how many random arrangements; fewer where there are only so many, then all of them
    seed, stream: of the random numbers (Philox), so that a test's result does not depend on what is tested beside it

    Returns
    -------
    (weights, complete): ``complete`` says that all arrangements are there
    """
    first = np.asarray(first, bool)
    _, stratum = np.unique(strata, return_inverse=True)
    groups = [np.flatnonzero(stratum == s) for s in range(stratum.max(initial=-1) + 1)]
    ways = math.prod(math.comb(len(g), int(first[g].sum())) for g in groups)
    if ways <= permutations:
        labels = _all(first, groups)
    else:
        labels = _random(first, groups, permutations, seed, stream)
    count = int(first.sum())
    return np.where(labels, 1.0 / max(count, 1), -1.0 / max(len(first) - count, 1)), ways <= permutations


def _all(first: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    choices = [list(itertools.combinations(g.tolist(), int(first[g].sum()))) for g in groups]
    rows = [np.flatnonzero(first).tolist(), *([i for part in chosen for i in part] for chosen in itertools.product(*choices))]
    out = np.zeros((len(rows), len(first)), bool)
    for row, members in zip(out, rows, strict=True):
        row[members] = True
    return out  # the observed arrangement stands twice: first, and among all


def _random(first: np.ndarray, groups: list[np.ndarray], permutations: int, seed: int, stream: int) -> np.ndarray:
    rng = np.random.Generator(np.random.Philox(key=[seed, stream]))
    out = np.empty((permutations + 1, len(first)), bool)
    out[0] = first
    for g in groups:
        order = np.argsort(rng.random((permutations, len(g))), axis=1, kind="stable")
        out[1:, g] = first[g][order]
    return out


def difference_p(weights: np.ndarray, complete: bool, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (difference of means, two-sided p) of each column of values, rows × columns, without NaN.

    A column without any spread has difference 0 and p 1.
    """
    found = weights @ np.asarray(values, np.float64)
    observed = np.abs(found[0])
    scale = np.abs(values).max(0, initial=0.0)
    extreme = (np.abs(found[1:]) >= observed - (_SAME * observed + _ROUNDING * scale)).sum(0)
    p = extreme / len(found[1:]) if complete else (1.0 + extreme) / len(found)
    return found[0], p


def range_p(values: np.ndarray, permutations: int, seed: int) -> tuple[float, float]:
    """Return (range of the columns' means, its p) of examples × places without NaN: are the places alike?

    Places are exchanged within each example. Where no exchange changes the range (one example, constant rows) p is 1.
    """
    values = np.asarray(values, np.float64)
    observed = float(np.ptp(values.mean(0))) if values.size else 0.0
    rng = np.random.Generator(np.random.Philox(key=[seed, 0]))
    limit = observed - (_SAME * observed + _ROUNDING * float(np.abs(values).max(initial=0.0)))
    extreme = sum(float(np.ptp(rng.permuted(values, axis=1).mean(0))) >= limit for _ in range(permutations)) if values.size else permutations
    return observed, (1.0 + extreme) / (1.0 + permutations)
