"""Linear probes of one place: held-out groups, regularisation chosen inside the training groups, labels shuffled between groups.

References
----------
Alain & Bengio 2016 (linear probes); Hewitt & Liang 2019 (control tasks, selectivity).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

#: strengths of the L2 penalty to choose from, per training row and standardised feature: the loss is mean error + λ‖β‖²
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
#: of logistic probes, whose every fit is iterated
LOGISTIC_STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
#: folds inside the training groups; logistic probes hold out one of them, ridge regression each in turn
_INNER = 3
_ITERATIONS = 500


@dataclass(frozen=True)
class Probed:
    """One label set at one place.

    Attributes
    ----------
    gain, scale: per group, sums whose ratio of totals is the score: Σ gain / Σ scale (right answers / rows; explained / total squares)
    folds: score of each fold, NaN where its held-out labels cannot be scored
    strengths: chosen λ of each fold
    unfinished: fits that did not converge
    """

    gain: np.ndarray
    scale: np.ndarray
    folds: np.ndarray
    strengths: np.ndarray
    unfinished: int = 0

    @property
    def score(self) -> float:
        """Return the score over all held-out rows."""
        total = float(self.scale.sum())
        return float(self.gain.sum()) / total if total > 0 else float("nan")


def fold_of(groups: np.ndarray, classes: np.ndarray | None, folds: int, seed: int) -> np.ndarray:
    """Return the fold of each row; rows of a group stay together.

    Groups are dealt out in random order, those of one class (their commonest) after each other, each to the smallest fold.

    Parameters
    ----------
    groups: numbers 0 … of the rows' groups
    classes: numbers of the rows' classes; None for numbers to be regressed on
    """
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count)
    common = np.zeros(count, np.int64)
    if classes is not None:
        table = np.zeros((count, int(classes.max()) + 1), np.int64)
        np.add.at(table, (groups, classes), 1)
        common = table.argmax(1)
    order = np.lexsort((np.random.default_rng(seed).random(count), common))
    filled, out = np.zeros(folds, np.int64), np.zeros(count, np.int64)
    for group in order:
        out[group] = int(filled.argmin())
        filled[out[group]] += sizes[group]
    of_row: np.ndarray = out[groups]
    return of_row


def shuffled(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Return labels after whole groups have exchanged theirs.

    Each group gets another's labels (possibly its own) in random order; where the sizes differ they are repeated or cut.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(groups, kind="stable")
    bounds = np.r_[0, np.cumsum(np.bincount(groups))]
    members = [order[a:b] for a, b in itertools.pairwise(bounds)]
    out = np.empty_like(labels)
    for mine, donor in zip(members, rng.permutation(len(members)), strict=True):
        theirs = labels[rng.permutation(members[donor])]
        out[mine] = np.resize(theirs, len(mine))
    return out


def standardised(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return rows × features scaled by the training rows' mean and deviation; a feature that is constant there becomes 0."""
    part = x[train].astype(np.float64)
    mean, sd = part.mean(0), part.std(0)
    constant = sd <= 1e-9 * np.maximum(np.abs(mean), 1e-300)
    return np.where(constant, 0.0, (x - mean) / np.where(constant, 1.0, sd))


def ridge(x: np.ndarray, y: np.ndarray, new: np.ndarray, strengths: Sequence[float]) -> np.ndarray:
    """Return predictions for ``new``: strengths × rows × targets, from min ‖y − Xβ − b‖²/n + λ‖β‖² with a free intercept.

    Solved in whichever of features and rows are fewer.

    Parameters
    ----------
    x: rows × features; y: rows × targets
    """
    from scipy.linalg import cho_factor, cho_solve

    mean, middle, n = x.mean(0), y.mean(0), len(x)
    x, y, new = x - mean, y - middle, new - mean
    few = x.shape[1] <= n
    gram, right, left = (x.T @ x, x.T @ y, new) if few else (x @ x.T, y, new @ x.T)
    out = np.empty((len(strengths), len(new), y.shape[1]))
    diagonal = np.einsum("ii->i", gram)
    kept = diagonal.copy()
    for i, strength in enumerate(strengths):
        diagonal[:] = kept + strength * n
        out[i] = left @ cho_solve(cho_factor(gram, lower=True), right) + middle
    return out


def probe_numbers(x: np.ndarray, targets: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[Probed]:
    """Ridge regression of each target (rows × targets) on held-out groups; the score is R² against the training mean."""
    held = fold_of(groups, None, folds, seed)
    count, width = int(groups.max()) + 1, targets.shape[1]
    gain, scale = np.zeros((count, width)), np.zeros((count, width))
    scores, chosen = np.full((folds, width), np.nan), np.empty((folds, width))
    for fold in range(folds):
        train, test = held != fold, held == fold
        z = standardised(x, train)
        _, local = np.unique(groups[train], return_inverse=True)
        best = _ridge_strength(z[train], targets[train], local, seed + 1 + fold)
        predicted = ridge(z[train], targets[train], z[test], STRENGTHS)[best, :, np.arange(width)].T
        total = (targets[test] - targets[train].mean(0)) ** 2
        explained = total - (targets[test] - predicted) ** 2
        np.add.at(gain, groups[test], explained)
        np.add.at(scale, groups[test], total)
        np.divide(explained.sum(0), total.sum(0), out=scores[fold], where=total.sum(0) > 0)
        chosen[fold] = np.asarray(STRENGTHS)[best]
    return [Probed(gain[:, t], scale[:, t], scores[:, t], chosen[:, t]) for t in range(width)]


def _ridge_strength(x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """Return for each target the number of the strength with the least squared error on held-out training groups."""
    inner = fold_of(groups, None, _inner_folds(groups), seed)
    error = np.zeros((len(STRENGTHS), y.shape[1]))
    for fold in range(int(inner.max()) + 1):
        train, test = inner != fold, inner == fold
        error += ((ridge(x[train], y[train], x[test], STRENGTHS) - y[test]) ** 2).sum(1)
    best: np.ndarray = error.argmin(0)
    return best


def _inner_folds(groups: np.ndarray) -> int:
    return max(min(_INNER, int(groups.max()) + 1), 2)


def probe_classes(x: np.ndarray, classes: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> Probed:
    """Multinomial logistic regression on held-out groups; the score is the share of held-out rows that are right."""
    held = fold_of(groups, classes, folds, seed)
    count = int(groups.max()) + 1
    gain, scores, chosen, unfinished = np.zeros(count), np.full(folds, np.nan), np.full(folds, np.nan), 0
    for fold in range(folds):
        train, test = held != fold, held == fold
        z = standardised(x, train)
        _, local = np.unique(groups[train], return_inverse=True)
        best, lost = _logistic_strength(z[train], classes[train], local, seed + 1 + fold)
        predicted, more = logistic(z[train], classes[train], z[test], [best])
        right = (predicted[0] == classes[test]).astype(float)
        np.add.at(gain, groups[test], right)
        scores[fold], chosen[fold] = right.mean(), best
        unfinished += lost + more
    return Probed(gain, np.bincount(groups, minlength=count).astype(float), scores, chosen, unfinished)


def _logistic_strength(x: np.ndarray, y: np.ndarray, groups: np.ndarray, seed: int) -> tuple[float, int]:
    """Return (the strength that is right most often on held-out training groups, the stronger of equals; unfinished fits)."""
    train = fold_of(groups, y, _inner_folds(groups), seed) != 0
    predicted, unfinished = logistic(x[train], y[train], x[~train], LOGISTIC_STRENGTHS)
    right = (predicted == y[~train]).sum(1)
    return LOGISTIC_STRENGTHS[len(right) - 1 - int(right[::-1].argmax())], unfinished


def logistic(x: np.ndarray, y: np.ndarray, new: np.ndarray, strengths: Sequence[float]) -> tuple[np.ndarray, int]:
    """Return (predicted classes, strengths × rows; fits that did not converge), from min mean loss + λ‖β‖²/2, free intercepts.

    The strongest penalty is fitted first, each next one starts from its predecessor.
    """
    from sklearn.linear_model import LogisticRegression

    out, unfinished = np.empty((len(strengths), len(new)), np.int64), 0
    if (y == y[0]).all():
        out[:] = y[0]
        return out, 0
    model = LogisticRegression(warm_start=True, max_iter=_ITERATIONS, tol=1e-3)
    for i in np.argsort(strengths)[::-1]:
        model.set_params(C=1.0 / (strengths[i] * len(x)))
        model.fit(x, y)
        unfinished += int(model.n_iter_.max() >= _ITERATIONS)
        out[i] = model.predict(new)
    return out, unfinished


def majority(classes: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> float:
    """Return the share of held-out rows of the commonest class of their training rows."""
    held = fold_of(groups, classes, folds, seed)
    right = 0
    for fold in range(folds):
        right += int((classes[held == fold] == np.bincount(classes[held != fold]).argmax()).sum())
    return right / len(classes)


def interval(probed: Probed, confidence: float) -> tuple[float, float]:
    """Return the t-interval of the score over groups (ratio estimator, linearised); NaN where there is no spread to judge by.

    It speaks of other groups put before these probes. What other training groups would change is not in it.
    """
    from scipy import stats

    used = probed.scale > 0
    n, total = int(used.sum()), float(probed.scale.sum())
    if n < 3 or total <= 0:
        return float("nan"), float("nan")
    rest = probed.gain[used] - probed.score * probed.scale[used]
    se = float(rest.std(ddof=1)) * np.sqrt(n) / total
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * se
    return probed.score - half, probed.score + half
