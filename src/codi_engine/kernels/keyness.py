"""Which words set two collections of texts apart: log-odds with a prior, G², and exact tests on documents.

References
----------
Monroe, Colaresi & Quinn 2008, eqs. 16, 19–22 (log-odds-ratio with an informative Dirichlet prior); Dunning 1993 (G²);
Fisher 1922 (exact test, two-sided: all tables that are no more probable).
"""

from __future__ import annotations

import numpy as np

from codi_engine.kernels.accelerate import jit


def log_odds(
    a: np.ndarray, b: np.ndarray, total_a: np.ndarray, total_b: np.ndarray, prior: np.ndarray, prior_total: float
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return (log-odds-ratio, z) of words: eq. 16, and eqs. 20 and 22.

    Parameters
    ----------
    a, b: counts of the words in each collection
    total_a, total_b: tokens of each (broadcast)
    prior: pseudo-counts of the same words, all above 0; ``prior_total`` is their sum over the whole vocabulary
    """
    a, b, prior = (np.asarray(v, np.float64) for v in (a, b, prior))
    x, y = a + prior, b + prior
    ratio = np.log(x) - np.log(total_a + prior_total - x) - np.log(y) + np.log(total_b + prior_total - y)
    return ratio, ratio / np.sqrt(1.0 / x + 1.0 / y)


def log_ratio(a: np.ndarray, b: np.ndarray, total_a: np.ndarray, total_b: np.ndarray, vocabulary: int) -> np.ndarray:
    """Return ln of the ratio of relative frequencies, each count raised by one (Laplace)."""
    x, y = np.asarray(a, np.float64) + 1.0, np.asarray(b, np.float64) + 1.0
    ratio: np.ndarray = np.log(x / (total_a + vocabulary)) - np.log(y / (total_b + vocabulary))
    return ratio


def g2(a: np.ndarray, b: np.ndarray, total_a: np.ndarray, total_b: np.ndarray) -> np.ndarray:
    """Return Dunning's G² of counts, with the sign of the difference of relative frequencies; it is χ² with one degree of freedom."""
    from scipy import special

    a, b, total_a, total_b = (np.asarray(v, np.float64) for v in (a, b, total_a, total_b))
    with np.errstate(invalid="ignore", divide="ignore"):
        share = (a + b) / (total_a + total_b)
        cells = ((a, total_a * share), (b, total_b * share), (total_a - a, total_a * (1 - share)), (total_b - b, total_b * (1 - share)))
        value = 2.0 * sum(special.xlogy(o, np.where(e > 0, o / e, 1.0)) for o, e in cells)
        signed: np.ndarray = np.sign(a * total_b - b * total_a) * np.maximum(value, 0.0)
    return signed


def chi2_p(x: np.ndarray) -> np.ndarray:
    """Return the p-value of χ² with one degree of freedom (the sign is ignored)."""
    from scipy import special

    p: np.ndarray = special.erfc(np.sqrt(np.abs(x) / 2.0))
    return p


def documents_p(a: np.ndarray, b: np.ndarray, size_a: np.ndarray, size_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Test whether a word is in more documents of one collection: (p, exact) two-sided.

    Pearson's χ² where every expected count is at least 5, Fisher's exact test elsewhere (``exact``).

    Parameters
    ----------
    a, b: documents with the word
    size_a, size_b: documents (broadcast)
    """
    a, b, size_a, size_b = np.broadcast_arrays(*(np.asarray(v, np.int64) for v in (a, b, size_a, size_b)))
    with np.errstate(invalid="ignore", divide="ignore"):
        total = (size_a + size_b).astype(np.float64)
        with_word = (a + b).astype(np.float64)
        smallest = np.minimum(size_a, size_b) * np.minimum(with_word, total - with_word) / total
        determinant = a * (size_b - b).astype(np.float64) - b * (size_a - a).astype(np.float64)
        x = determinant**2 * total / (size_a * size_b * with_word * (total - with_word))
    p = chi2_p(x)
    exact = ~(smallest >= 5.0)
    p[exact] = fisher_p(a[exact], b[exact], size_a[exact], size_b[exact])
    return p, exact


def fisher_p(a: np.ndarray, b: np.ndarray, size_a: np.ndarray, size_b: np.ndarray) -> np.ndarray:
    """Return the two-sided p of Fisher's exact test of a/size_a against b/size_b (one dimension, alike)."""
    from scipy import special

    a, b, size_a, size_b = (np.ascontiguousarray(v, np.int64) for v in (a, b, size_a, size_b))
    most = int((size_a + size_b).max(initial=0))
    out = np.empty(len(a))
    fill_fisher(a, b, size_a, size_b, special.gammaln(np.arange(most + 2) + 1.0), out)
    return out


@jit
def fill_fisher(a, b, size_a, size_b, log_factorial, out):
    """Write Fisher's p: tables are walked outwards from the observed one, relative to its probability."""
    for i in range(a.size):
        x, n1, n2 = a[i], size_a[i], size_b[i]
        k = x + b[i]
        low, high = max(0, k - n2), min(k, n1)
        if low == high:
            out[i] = 1.0
            continue
        lf = log_factorial
        at = lf[n1] - lf[x] - lf[n1 - x] + lf[n2] - lf[k - x] - lf[n2 - k + x] - lf[n1 + n2] + lf[k] + lf[n1 + n2 - k]
        total = 1.0
        rest = 0.0
        r = 1.0
        for j in range(x, low, -1):
            r *= j * (n2 - k + j) / ((n1 - j + 1.0) * (k - j + 1.0))
            if r <= 1.0 + 1e-7:
                total += r
            else:
                rest += r
        r = 1.0
        for j in range(x, high):
            r *= (n1 - j) * (k - j) / ((j + 1.0) * (n2 - k + j + 1.0))
            if r <= 1.0 + 1e-7:
                total += r
            else:
                rest += r
        # where few tables are left out, what they weigh is known better than what all others do
        out[i] = min(total * np.exp(at), 1.0) if rest > 0.0 else 1.0
