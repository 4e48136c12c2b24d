"""Correlations of all pairs of columns, streamed: shifted cross products in tiles of fixed size.

Rows are gathered into panels of a fixed number and multiplied tile by tile, each tile by one single-threaded matrix product, so
the bits depend neither on how rows were cut into blocks nor on the number of threads. The shift is the mean of the first panel.

References
----------
Chan, Golub & LeVeque 1983 (shifted data); Fisher 1921 (the interval of r).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from codi_engine.kernels.accelerate import jit

#: columns of a tile
TILE = 704
_STATE = ("sums", "shift", "low", "high", "nonzero", "missing", "_gram", "_both", "_panel", "_there")


def panel_rows(width: int) -> int:
    """Return how many rows are multiplied at once: more of narrow ones; it follows from the width alone."""
    return max(1024, min(8192, (1 << 25) // width // 1024 * 1024))


class Products:
    """Cross products of the columns of rows that come block by block.

    Parameters
    ----------
    width: columns
    dtype: float32 multiplies in single and adds up panels in double precision (r to about 1e-6); float64 throughout
    coactive: also count the rows in which both columns of a pair are not zero
    threads: for the products; does not change the result
    """

    def __init__(self, width: int, dtype: type[np.floating] | np.dtype = np.float32, coactive: bool = False, threads: int = 1) -> None:
        self.width, self.threads = width, threads
        self.n = 0
        self.sums, self.shift = np.zeros(width), np.zeros(width)
        self.low, self.high = np.full(width, np.inf), np.full(width, -np.inf)
        self.nonzero, self.missing = np.zeros(width, np.int64), np.zeros(width, np.int64)
        self._gram = np.zeros((width, width))
        self._both = np.zeros((width, width)) if coactive else None
        self._rows = panel_rows(width)
        self._panel = np.empty((self._rows, width), dtype)
        self._there = np.empty((self._rows, width), np.float32) if coactive else None
        self._filled, self._begun = 0, False
        bounds = [(a, min(a + TILE, width)) for a in range(0, width, TILE)]
        self._tiles = [(i, j) for k, i in enumerate(bounds) for j in bounds[: k + 1]]

    def add(self, rows: np.ndarray) -> None:
        """Add rows × width (float32 or float64); NaN are counted, and their columns have no correlation."""
        at = 0
        while at < len(rows):
            take = min(self._rows - self._filled, len(rows) - at)
            self._take(rows[at : at + take], self._panel[self._filled : self._filled + take])
            self._filled, at = self._filled + take, at + take
            if self._filled == self._rows:
                self._multiply()

    def _take(self, rows: np.ndarray, into: np.ndarray) -> None:
        """Copy rows into the panel, shifted once the shift is known."""
        if self._there is not None and rows is not into:
            np.not_equal(rows, 0, out=self._there[self._filled : self._filled + len(rows)], casting="unsafe")
        if not self._begun:
            into[:] = rows
            return
        step = -(-self.width // self.threads)
        facts = (self.shift, self.sums, self.low, self.high, self.nonzero, self.missing)

        def some(first: int) -> None:
            mine = slice(first, first + step)
            prepare(rows[:, mine], into[:, mine], *(f[mine] for f in facts))

        if self.threads == 1:
            some(0)
        else:
            with ThreadPoolExecutor(self.threads) as pool:
                list(pool.map(some, range(0, self.width, step)))

    def state(self) -> dict[str, np.ndarray]:
        """Return everything, to be kept and given to :meth:`restore`."""
        arrays = {k: getattr(self, k) for k in _STATE if getattr(self, k) is not None}
        return {**arrays, "counts": np.array([self.n, self._filled, self._begun])}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Go on from a state."""
        for name in _STATE:
            if name in state:
                setattr(self, name, state[name])
        self.n, self._filled, self._begun = int(state["counts"][0]), int(state["counts"][1]), bool(state["counts"][2])

    def _multiply(self) -> None:
        """Take in the panel."""
        rows = self._panel[: self._filled]
        if not self._begun:
            counts = np.maximum((~np.isnan(rows)).sum(0), 1)
            self.shift = (np.nansum(rows, 0, dtype=np.float64) / counts).astype(rows.dtype).astype(np.float64)
            self._begun = True
            self._take(rows, rows)
        both = None if self._there is None else self._there[: self._filled]
        self._each(lambda i, j: _add_product(self._gram, rows, i, j))
        if both is not None:
            self._each(lambda i, j: _add_product(self._both, both, i, j))
        self.n += self._filled
        self._filled = 0

    def _each(self, product: Callable[[tuple[int, int], tuple[int, int]], None]) -> None:
        with _blas().limit(limits=1, user_api="blas"):
            if self.threads == 1 or len(self._tiles) == 1:
                for i, j in self._tiles:
                    product(i, j)
            else:
                with ThreadPoolExecutor(self.threads) as pool:
                    list(pool.map(lambda tile: product(*tile), self._tiles))

    def finish(self) -> None:
        """Take in what is left of the last panel."""
        if self._filled:
            self._multiply()

    @property
    def mean(self) -> np.ndarray:
        """Return the column means."""
        self.finish()
        mean: np.ndarray = self.shift + self.sums / max(self.n, 1)
        return mean

    @property
    def usable(self) -> np.ndarray:
        """Return which columns have a correlation: no NaN, not constant (bool)."""
        self.finish()
        usable: np.ndarray = (self.missing == 0) & (self.high > self.low) & (self.n > 1)
        return usable

    def blocks(self) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray | None]]:
        """Yield (rows, columns, r, co-active counts) of the tiles at and below the diagonal; NaN where there is no correlation."""
        self.finish()
        scale = self._scale()
        for (a, b), (c, d) in self._tiles:
            r = (self._gram[a:b, c:d] - np.outer(self.sums[a:b], self.sums[c:d]) / max(self.n, 1)) * scale[a:b, None] * scale[None, c:d]
            np.clip(r, -1.0, 1.0, out=r)
            yield slice(a, b), slice(c, d), r, None if self._both is None else self._both[a:b, c:d]

    def matrix(self) -> np.ndarray:
        """Return all correlations, width × width in the products' type, ones on the diagonal; NaN where a column has none."""
        self.finish()
        out = np.empty((self.width, self.width), self._panel.dtype)
        fill_matrix(self._gram, self.sums, max(self.n, 1), self._scale(), TILE, out)
        return out

    def among(self, columns: np.ndarray) -> np.ndarray:
        """Return the correlations of some columns with each other."""
        self.finish()
        scale = self._scale()
        first, second = np.maximum.outer(columns, columns), np.minimum.outer(columns, columns)
        r = (self._gram[first, second] - self.sums[first] * self.sums[second] / max(self.n, 1)) * scale[first] * scale[second]
        r[np.diag_indices(len(columns))] = np.where(self.usable[columns], 1.0, np.nan)
        clipped: np.ndarray = np.clip(r, -1.0, 1.0)
        return clipped

    def _scale(self) -> np.ndarray:
        """Return one over the square root of each column's spread; NaN where there is no correlation."""
        scale, ok = np.full(self.width, np.nan), self.usable
        spread = np.diagonal(self._gram) - self.sums**2 / max(self.n, 1)
        with np.errstate(invalid="ignore", divide="ignore"):
            scale[ok] = 1.0 / np.sqrt(spread[ok])
        return scale


@dataclass
class Pairs:
    """Correlated pairs, one entry each: columns ``a`` > ``b``, ``r``, ``p``, and in how many rows both are not zero (−1: not counted)."""

    a: np.ndarray
    b: np.ndarray
    r: np.ndarray
    p: np.ndarray
    coactive: np.ndarray


def pairs(
    products: Products, allowed: np.ndarray | None = None, level: float = 1.0, least: int = 0, expected: float = 0.0
) -> tuple[Pairs, int]:  # fmt: skip
    """Return the pairs whose p is at most ``level``, and how many pairs were tested.

    Parameters
    ----------
    allowed: columns to look at, bool
    least: rows in which both columns must not be zero; pairs with fewer count as tested, but are left out
    expected: rows in which both would not be zero by chance, below which a pair is not tested: r of rarer ones is far from normal.
        It follows from each column by itself, so leaving pairs out by it does not bias the rest
    """
    ok = products.usable if allowed is None else products.usable & allowed
    found: list[tuple[np.ndarray, ...]] = []
    tested = 0
    for rows, columns, r, both in products.blocks():
        valid = ok[rows, None] & ok[None, columns]
        if expected > 0.0:
            valid &= np.outer(products.nonzero[rows], products.nonzero[columns]) >= expected * products.n
        if rows.start == columns.start:
            valid &= np.tri(r.shape[0], r.shape[1], -1, dtype=bool)
        tested += int(valid.sum())
        if both is not None and least:
            valid &= both >= least
        i, j = np.nonzero(valid & (np.abs(r) >= critical_r(products.n, level)))
        value = r[i, j]
        count = np.full(len(i), -1, np.int64) if both is None else both[i, j].astype(np.int64)
        found.append((i + rows.start, j + columns.start, value, correlation_p(value, products.n), count))
    columns_ = [np.concatenate([f[k] for f in found]) for k in range(5)]
    keep = columns_[3] <= level
    return Pairs(*(c[keep] for c in columns_)), tested


def correlation_p(r: np.ndarray, n: int) -> np.ndarray:
    """Return two-sided p-values of correlations of n independent rows (t with n − 2 degrees of freedom); 1 where n < 3."""
    from codi_engine.kernels.student import p_values

    r = np.asarray(r, np.float64)
    if n < 3:
        return np.ones_like(r)
    with np.errstate(divide="ignore"):
        t = r * np.sqrt((n - 2.0) / ((1.0 - r) * (1.0 + r)))
    return p_values(t, n - 2.0)


def critical_r(n: int, level: float) -> float:
    """Return the |r| that n independent rows must reach for p ≤ ``level`` (a little below, for rounding); 0 at level 1."""
    from scipy import stats

    if n < 3 or level >= 1.0:
        return 0.0
    t = float(stats.t.isf(level / 2, n - 2))
    return float(t / np.sqrt(n - 2 + t * t)) * (1 - 1e-9)


def interval(r: np.ndarray, n: int, confidence: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """Return Fisher's interval of correlations; NaN for fewer than four rows."""
    from scipy import special

    r = np.asarray(r, np.float64)
    if n < 4:
        return np.full_like(r, np.nan), np.full_like(r, np.nan)
    with np.errstate(divide="ignore"):
        z = np.arctanh(r)
    half = special.ndtri(0.5 + confidence / 2) / np.sqrt(n - 3.0)
    return np.tanh(z - half), np.tanh(z + half)


def centred_ranks(x: np.ndarray, out: np.ndarray) -> None:
    """Write average ranks less their mean of the columns of rows × width; Pearson of them is Spearman. NaN stay NaN columns."""
    rank_columns(x, out)


@cache
def _blas() -> Any:
    """Return the controller of the threads of matrix products."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


#: room for a product, one for each thread: fresh memory costs as much as the product itself
_ROOM = threading.local()


def _add_product(total: np.ndarray | None, rows: np.ndarray, i: tuple[int, int], j: tuple[int, int]) -> None:
    """Add the product of two column ranges to their tile."""
    assert total is not None
    room = _ROOM.__dict__.setdefault(rows.dtype.str, np.empty(TILE * TILE, rows.dtype))
    product = room[: (i[1] - i[0]) * (j[1] - j[0])].reshape(i[1] - i[0], j[1] - j[0])
    np.matmul(rows[:, i[0] : i[1]].T, rows[:, j[0] : j[1]], out=product)
    total[i[0] : i[1], j[0] : j[1]] += product


@jit
def fill_matrix(gram, sums, n, scale, tile, out):
    """Write correlations from the lower triangle of a Gram matrix, block by block so that both triangles stay in the cache."""
    width = sums.size
    for i0 in range(0, width, tile):
        for j0 in range(0, i0 + 1, tile):
            for i1 in range(i0, min(i0 + tile, width), 32):
                for j1 in range(j0, min(j0 + tile, width), 32):
                    for i in range(i1, min(i1 + 32, width)):
                        for j in range(j1, min(j1 + 32, width, i)):
                            r = (gram[i, j] - sums[i] * sums[j] / n) * scale[i] * scale[j]
                            r = min(max(r, -1.0), 1.0) if r == r else r
                            out[i, j] = r
                            out[j, i] = r
    for i in range(width):
        out[i, i] = 1.0 if scale[i] == scale[i] else np.nan


@jit
def prepare(rows, out, shift, sums, low, high, nonzero, missing):
    """Write shifted rows and take in sums, least and greatest values, non-zeros and NaN of each column."""
    for i in range(rows.shape[0]):
        row = rows[i]
        into = out[i]
        for j in range(row.size):
            v = row[j]
            there = v == v
            low[j] = min(low[j], v) if there else low[j]
            high[j] = max(high[j], v) if there else high[j]
            nonzero[j] += there and v != 0.0
            missing[j] += not there
            d = v - shift[j] if there else 0.0
            into[j] = d
            sums[j] += np.float64(into[j])


@jit
def rank_columns(x, out):
    """Write centred average ranks of each column; zeros are one group, so only other values are sorted."""
    n, width = x.shape
    place = np.empty(n, np.int64)
    for j in range(width):
        some = 0
        below = 0
        bad = False
        for i in range(n):
            v = x[i, j]
            bad = bad or v != v
            below += v < 0.0
            if v != 0.0:
                place[some] = i
                some += 1
        zeros = n - some
        middle = 0.5 * (n + 1)
        for i in range(n):
            out[i, j] = np.nan if bad else below + 0.5 * (zeros + 1) - middle
        if bad:
            continue
        values = np.empty(some, x.dtype)
        for k in range(some):
            values[k] = x[place[k], j]
        order = np.argsort(values)
        k = 0
        while k < some:
            m = k
            while m + 1 < some and values[order[m + 1]] == values[order[k]]:
                m += 1
            rank = 0.5 * (k + m) + 1.0
            if values[order[k]] > 0.0:
                rank += zeros
            for q in range(k, m + 1):
                out[place[order[q]], j] = rank - middle
            k = m + 1
