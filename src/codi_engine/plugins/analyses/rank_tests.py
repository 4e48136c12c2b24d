"""Rank and permutation tests behind one face: p from ranks or rearrangements, effect and its standard error from the values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from codi_engine.kernels.moments import Moments, add_differences, pooled_sd
from codi_engine.kernels.permutation import difference_p, weights
from codi_engine.kernels.ranks import mann_whitney_pairs, wilcoxon
from codi_engine.kernels.ttest import CONSTANT, MISSING, TESTED, TINY, Tested, paired, two_sample


@dataclass
class RankTested(Tested):
    """``t`` is the rank test's z (NaN for permutations), ``df`` infinite.

    ``n_a``, ``n_b``: values; ``sd``: what effects are divided by for g.
    """

    n_a: np.ndarray
    n_b: np.ndarray
    sd: np.ndarray


def rank_test(rows: np.ndarray, pairs: np.ndarray, test: str, permutations: int, seed: int, stream: int, by_example: bool) -> RankTested:
    """Test conditions × units × features.

    Parameters
    ----------
    test: ``mann_whitney``, ``wilcoxon`` or ``permutation``
    stream: of the random numbers: the target
    by_example: units are examples, the same in all conditions; a permutation then exchanges conditions within them
    """
    out = _described(rows, pairs, test == "wilcoxon" or (test == "permutation" and by_example))
    if test == "mann_whitney":
        found = mann_whitney_pairs(rows, pairs)
        out.t, out.p = found.z, found.p
    elif test == "wilcoxon":
        for k, (a, b) in enumerate(pairs):
            signed = wilcoxon(np.asarray(rows[a], np.float64) - rows[b])
            out.t[k], out.p[k] = signed.z, signed.p
    else:
        for k, (a, b) in enumerate(pairs):
            out.p[k] = _permuted(rows[a], rows[b], by_example, permutations, seed, stream * 4096 + k)
    out.p[(out.status == MISSING) | (out.status == TINY)] = np.nan
    return out


def _described(rows: np.ndarray, pairs: np.ndarray, differences: bool) -> RankTested:
    """Return effects, their errors and what there is to test; statistic and p are to be filled in."""
    pairs = np.asarray(pairs, np.int64).reshape(-1, 2)
    shape = (len(pairs), rows.shape[2])
    if differences:
        moments = Moments.empty(*shape)
        add_differences(rows, pairs, moments)
        tested = paired(moments, np.inf)
        n_a = n_b = moments.n
        with np.errstate(invalid="ignore", divide="ignore"):
            sd = np.sqrt(moments.spread / (moments.n - 1.0))
    else:
        moments = Moments.empty(rows.shape[0], rows.shape[2])
        moments.add(np.ascontiguousarray(rows))
        tested = two_sample(moments, pairs, "welch", np.inf)
        n_a, n_b = moments.n[pairs[:, 0]], moments.n[pairs[:, 1]]
        feature = np.arange(shape[1])
        sd = np.stack([pooled_sd(moments, np.full(shape[1], a), np.full(shape[1], b), feature) for a, b in pairs])
    status = np.where((tested.status == CONSTANT) | (tested.status == MISSING) | (tested.status == TINY), tested.status, TESTED)
    z = np.full(shape, np.nan)
    return RankTested(tested.effect, tested.se, z, np.full(shape, np.inf), np.full(shape, np.nan), status, n_a, n_b, sd)


def _permuted(a: np.ndarray, b: np.ndarray, by_example: bool, permutations: int, seed: int, stream: int) -> np.ndarray:
    """Return permutation p-values of the difference of means; features with missing values are tested on the rows they have."""
    x = np.concatenate([a, b]).astype(np.float64)
    first = np.arange(len(x)) < len(a)
    strata = np.r_[np.arange(len(a)), np.arange(len(b))] if by_example else np.zeros(len(x), np.int64)
    out = np.full(x.shape[1], np.nan)
    lacking = np.isnan(x)
    if by_example:  # an example that lacks one condition says nothing
        either = lacking[: len(a)] | lacking[len(a) :]
        lacking = np.concatenate([either, either])
    patterns, number = np.unique(lacking, axis=1, return_inverse=True)
    for i in range(patterns.shape[1]):
        keep = ~patterns[:, i]
        mine = np.flatnonzero(number.reshape(-1) == i)
        if first[keep].any() and (~first[keep]).any():
            w, complete = weights(first[keep], strata[keep], permutations, seed, stream)
            out[mine] = difference_p(w, complete, x[np.ix_(keep, mine)])[1]
    return out
