"""Two-sided p-values of Student's t for real degrees of freedom, many at once.

With s² = ν ln(1 + t²/ν) the p-value is exp(−s²/2) · F(s, 1/ν), and F is smooth: it tends to the scaled complementary error
function as ν → ∞. F is interpolated by Chebyshev polynomials on a fixed grid of pieces (two ranges of s, half octaves of ν),
whose nodes come once from scipy's incomplete beta function; outside the grid (ν < 4, p < 1e-31) a continued fraction is used.
A value depends on its t and ν alone, never on its neighbours.

References
----------
Abramowitz & Stegun 26.5.27 and 26.7.1 (p = I_x(ν/2, 1/2), x = ν/(ν + t²)); DLMF 8.17.22 (the continued fraction).
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np

from codi_engine.kernels.accelerate import inline, jit

#: degrees of the interpolation in s and in 1/ν, plus one
_S, _N = 26, 11
#: bounds of s; p is about 1e-4 and 1e-32 there
_LOW, _HIGH = 4.0, 12.0
#: half octaves of ν from 4 to 512, then one piece to infinity
_FIRST, _PIECES = 4, 15


@cache
def table() -> np.ndarray:
    """Return the polynomial coefficients, piece × power of u × power of v (both run over [−1, 1])."""
    from scipy import special

    out = np.empty((2 * _PIECES, _S, _N))
    k, j = np.arange(_S), np.arange(_N)
    u, v = np.cos(np.pi * (k + 0.5) / _S), np.cos(np.pi * (j + 0.5) / _N)
    for piece in range(2 * _PIECES):
        low, high = (0.0, _LOW) if piece < _PIECES else (_LOW, _HIGH)
        near, far = _inverse_bounds(piece % _PIECES)
        s = (low + (u + 1) / 2 * (high - low))[:, None]
        inverse = far + (v + 1) / 2 * (near - far)
        x, y, a = np.exp(-s * s * inverse), -np.expm1(-s * s * inverse), 0.5 / inverse
        values = np.where(x < 0.5, special.betainc(a, 0.5, x), special.betaincc(0.5, a, y)) * np.exp(s * s / 2)
        in_s = np.linalg.solve(np.polynomial.chebyshev.chebvander(u, _S - 1), values)
        coefficients = np.linalg.solve(np.polynomial.chebyshev.chebvander(v, _N - 1), in_s.T).T
        coefficients[np.abs(coefficients) < 5e-15 * values.min()] = 0.0
        out[piece] = _powers(_S) @ coefficients @ _powers(_N).T
    return out


def _inverse_bounds(piece: int) -> tuple[float, float]:
    """Return the largest and smallest 1/ν of a piece."""
    near = 2.0 ** (-(piece + _FIRST) / 2)
    return near, 0.0 if piece == _PIECES - 1 else near / math.sqrt(2)


def _powers(count: int) -> np.ndarray:
    """Return the matrix from Chebyshev to power coefficients."""
    columns = [np.polynomial.chebyshev.cheb2poly(np.eye(count)[i]) for i in range(count)]
    return np.stack([np.pad(c, (0, count - len(c))) for c in columns], 1)


def p_values(t: np.ndarray, df: np.ndarray | float) -> np.ndarray:
    """Return two-sided p-values, relative accuracy 1e-12 down to the smallest normal number.

    Parameters
    ----------
    t: statistics, any shape; NaN gives NaN, ±inf gives 0
    df: degrees of freedom > 0, of the same shape or one for all; inf is the normal distribution
    """
    t = np.asarray(t, np.float64)
    flat = np.ascontiguousarray(t).ravel()
    degrees = np.ascontiguousarray(np.broadcast_to(np.asarray(df, np.float64), t.shape)).ravel()
    out = np.empty_like(flat)
    fill_p(flat, degrees, table(), out)
    return out.reshape(t.shape)


@inline
def _exp(x):
    """exp for −745 ≤ x ≤ 0, without a call so that loops vectorise; relative error about 2e-16."""
    k = math.floor(x * 1.4426950408889634 + 0.5)
    r = x - k * 0.6931471803691238 - k * 1.9082149292705877e-10
    q = 1 / 6227020800.0
    q = q * r + 1 / 479001600.0
    q = q * r + 1 / 39916800.0
    q = q * r + 1 / 3628800.0
    q = q * r + 1 / 362880.0
    q = q * r + 1 / 40320.0
    q = q * r + 1 / 5040.0
    q = q * r + 1 / 720.0
    q = q * r + 1 / 120.0
    q = q * r + 1 / 24.0
    q = q * r + 1 / 6.0
    q = q * r + 0.5
    q = q * r + 1.0
    q = q * r + 1.0
    half = math.floor(k * 0.5)
    one = (np.int64(half) + np.int64(1023)) << np.int64(52)
    two = (np.int64(k - half) + np.int64(1023)) << np.int64(52)
    return q * np.int64(one).view(np.float64) * np.int64(two).view(np.float64)


@inline
def _log1p(u):
    """log(1 + u) for u ≥ 0, without a call; relative error about 2e-16."""
    z = 1.0 + u
    lost = (u - (z - 1.0)) / z
    bits = np.float64(z).view(np.int64)
    e = (bits >> np.int64(52)) - np.int64(1023)
    m = np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) | np.int64(0x3FF0000000000000)).view(np.float64)
    above = m > 1.4142135623730951
    m = m * 0.5 if above else m
    k = np.float64(e) + (1.0 if above else 0.0)
    s = (m - 1.0) / (m + 1.0)
    q = s * s
    a = 1 / 23.0
    a = a * q + 1 / 21.0
    a = a * q + 1 / 19.0
    a = a * q + 1 / 17.0
    a = a * q + 1 / 15.0
    a = a * q + 1 / 13.0
    a = a * q + 1 / 11.0
    a = a * q + 1 / 9.0
    a = a * q + 1 / 7.0
    a = a * q + 1 / 5.0
    a = a * q + 1 / 3.0
    return k * 0.6931471805599453 + (2.0 * s + 2.0 * s * q * a) + lost


@jit
def exact_p(t, df):
    """One two-sided p-value by continued fraction (series near zero)."""
    t2 = t * t
    if math.isnan(t2) or not df > 0.0:
        return math.nan
    if t2 == math.inf:
        return 0.0
    if df > 1e15:
        return math.erfc(math.sqrt(0.5 * t2))
    a = 0.5 * df
    y = t2 / (df + t2)
    x = df / (df + t2)
    log_x = -math.log1p(t2 / df)
    # B(a, 1/2) through its ratio of gamma functions, shifted upwards for small a
    shift = 1.0
    b = a
    while b < 20.0:
        shift *= (b + 0.5) / b
        b += 1.0
    r = 1.0 / (b * b)
    log_ratio = 0.5 * math.log(b) - (0.125 - r * (1 / 192.0 - r * (1 / 640.0 - r * (17 / 14336.0 - r * 31 / 18432.0)))) / b
    front = math.exp(a * log_x + 0.5 * math.log(y) + log_ratio) / shift * 0.5641895835477563 if y > 0.0 else 0.0
    if y < 0.1 or t2 < 0.5:
        term = 1.0
        total = 1.0
        k = 0
        while term > 1e-18 * total:
            term *= (a + 0.5 + k) * y / (1.5 + k)
            total += term
            k += 1
        inside = 2.0 * front * total
        if inside < 0.9:
            return 1.0 - inside
    # the even part of the fraction, written with y so that nothing cancels when x is near 1
    c = 0.5 + (a + 0.5) * y
    before, p, at = 1.0, 1.0, a + 1.0
    numerator, denominator = 1.0, a * c / (a + 1.0)
    last_n, last_d = 0.0, 1.0
    ratio = numerator / denominator
    for n in range(1, 100000):
        w = n * (0.5 - n) * x
        alpha = p * (p + 0.5 / a) * (a / at) * (a / at) * w * x
        step = (1.0 + n / a) / (1.0 + (2.0 * n + 1.0) / a)
        beta = n + w / at + step * (c + n * (1.0 + y))
        p = 1.0 + n / a
        at += 2.0
        last_n, numerator = numerator, alpha * last_n + beta * numerator
        last_d, denominator = denominator, alpha * last_d + beta * denominator
        before, ratio = ratio, numerator / denominator
        if abs(ratio - before) <= 1e-16 * ratio:
            break
        last_n /= denominator
        last_d /= denominator
        numerator, denominator = ratio, 1.0
    return front * ratio


@jit
def fill_p(t, df, table, out):
    """Write two-sided p-values of ``t`` and ``df`` (one dimension, alike) to ``out``."""
    s = np.empty(512)
    inverse = np.empty(512)
    bucket = np.empty(512, np.int64)
    count = np.empty(32, np.int64)
    order = np.empty(512, np.int64)
    u = np.empty(512)
    v = np.empty(512)
    f = np.empty(512)
    for start in range(0, t.size, 512):
        w = min(512, t.size - start)
        for i in range(w):
            square = t[start + i] * t[start + i]
            inverse[i] = 1.0 / df[start + i]
            s[i] = math.sqrt(df[start + i] * _log1p(square * inverse[i]))
        for i in range(w):
            bits = np.float64(df[start + i]).view(np.int64)
            # twice the octave, plus one in its upper half
            half = 2 * (bits >> np.int64(52)) - np.int64(2050)
            half += np.int64((bits & np.int64(0xFFFFFFFFFFFFF)) >= np.int64(0x6A09E667F3BCD))
            piece = min(half, np.int64(14)) + np.int64(15) * np.int64(s[i] >= 4.0)
            # NaN, infinity and what lies outside the grid fail the comparisons
            inside = (s[i] < 12.0) & (df[start + i] >= 4.0) & (df[start + i] < 1e12)
            bucket[i] = piece if inside else np.int64(30)
        for k in range(32):
            count[k] = 0
        for i in range(w):
            count[bucket[i]] += 1
        n = 0
        for k in range(31):
            size = count[k]
            count[k] = n
            n += size
        for i in range(w):
            order[count[bucket[i]]] = i
            count[bucket[i]] += 1
        first = 0
        for k in range(30):
            last = count[k]
            if last == first:
                continue
            m = last - first
            low = 0.0 if k < 15 else 4.0
            wide = 0.5 if k < 15 else 0.25
            piece = k % 15
            near = 2.0 ** (-(piece + 4) / 2)
            far = 0.0 if piece == 14 else near / math.sqrt(2.0)
            narrow = 2.0 / (near - far)
            for i in range(m):
                j = order[first + i]
                u[i] = (s[j] - low) * wide - 1.0
                v[i] = (inverse[j] - far) * narrow - 1.0
                f[i] = 0.0
            top = 25
            while table[k, top, 0] == 0.0:
                top -= 1
            for power in range(top, -1, -1):
                c = table[k, power]
                c0, c1, c2, c3, c4, c5 = c[0], c[1], c[2], c[3], c[4], c[5]
                c6, c7, c8, c9, c10 = c[6], c[7], c[8], c[9], c[10]
                # high powers of u need few powers of v: the rest is exactly zero in the table
                if c3 == 0.0 and c4 == 0.0 and c5 == 0.0 and c6 == 0.0:
                    for i in range(m):
                        f[i] = f[i] * u[i] + ((c2 * v[i] + c1) * v[i] + c0)
                elif c6 == 0.0 and c7 == 0.0 and c8 == 0.0:
                    for i in range(m):
                        b = ((c5 * v[i] + c4) * v[i] + c3) * v[i] + c2
                        f[i] = f[i] * u[i] + ((b * v[i] + c1) * v[i] + c0)
                else:
                    for i in range(m):
                        b = ((c10 * v[i] + c9) * v[i] + c8) * v[i] + c7
                        b = ((b * v[i] + c6) * v[i] + c5) * v[i] + c4
                        b = ((b * v[i] + c3) * v[i] + c2) * v[i] + c1
                        f[i] = f[i] * u[i] + (b * v[i] + c0)
            for i in range(m):
                value = (u[i] + 1.0) / wide + low
                f[i] = 1.0 if value == 0.0 else min(f[i] * _exp(-0.5 * value * value), 1.0)
            for i in range(m):
                out[start + order[first + i]] = f[i]
            first = last
        for i in range(first, w):
            j = order[i]
            out[start + j] = exact_p(t[start + j], df[start + j])
