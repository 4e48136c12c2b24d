"""Attention of packed tokens, one query after the other: keys of a shared prompt first, then the row's own up to the query.

Nothing is gathered, padded or masked: a query visits the keys that it may see, in the order of their slots. So its bits depend on
these keys alone: not on other rows, nor on how many slots are the prompt's and how many the row's own.

Arrays of keys and values are given as flat memory with the steps between their entries, because models hand them over in several layouts.
"""

from __future__ import annotations

import numpy as np

from codi_engine.kernels.accelerate import jit, summing

#: how many numbers further the next entry of each dimension but the last lies
Steps = tuple[int, ...]

#: e^x = 2^n · e^r, r in ±ln 2 / 2: ln 2 in two parts, and the polynomial of Cephes' expf (Moshier 1992), relative error below 2e-7
_LOG2E, _LN2_HIGH, _LN2_LOW = np.float32(1.4426950408889634), np.float32(0.693359375), np.float32(-2.12194440e-4)
_C0, _C1, _C2 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C3, _C4, _C5 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_LEAST = np.float32(-87.0)  # e^−87 is the least that is normal in float32
_ONE, _HALF, _ZERO = np.float32(1), np.float32(0.5), np.float32(0)
_BIAS, _MANTISSA = np.int32(127), np.int32(23)


@summing
def _scores(query: np.ndarray, keys: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """Write query · key × scale of every key."""
    for j in range(keys.shape[0]):
        total = _ZERO
        for i in range(keys.shape[1]):
            total += query[i] * keys[j, i]
        out[j] = total * scale


@summing
def _softmax(scores: np.ndarray, powers: np.ndarray, count: int) -> np.float32:
    """Turn scores into e^(score − largest) in place; returns 1 / their sum."""
    largest = scores[0]
    for j in range(1, count):
        largest = max(largest, scores[j])
    for j in range(count):
        x = max(scores[j] - largest, _LEAST)
        n = np.floor(x * _LOG2E + _HALF)
        r = x - n * _LN2_HIGH - n * _LN2_LOW
        p = ((((_C0 * r + _C1) * r + _C2) * r + _C3) * r + _C4) * r + _C5
        scores[j] = p * r * r + r + _ONE
        powers[j] = (np.int32(n) + _BIAS) << _MANTISSA
    factors = powers.view(np.float32)
    total = _ZERO
    for j in range(count):
        weight = scores[j] * factors[j]
        scores[j] = weight
        total += weight
    return _ONE / total


@jit
def _mix(out: np.ndarray, weights: np.ndarray, values: np.ndarray) -> None:
    """Add weighted values (keys × width) to ``out``, one after the other; four at a time are added in the same order."""
    count, width = values.shape
    j = 0
    while j + 4 <= count:
        a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        for i in range(width):
            out[i] = (((out[i] + a * values[j, i]) + b * values[j + 1, i]) + c * values[j + 2, i]) + d * values[j + 3, i]
        j += 4
    while j < count:
        a = weights[j]
        for i in range(width):
            out[i] += a * values[j, i]
        j += 1


@jit
def store(
    new: np.ndarray, new_steps: Steps, own: np.ndarray, own_steps: Steps, rows: np.ndarray, slots: np.ndarray, width: int, first: int, last: int
) -> None:  # fmt: skip
    """Copy the new tokens' keys or values into their rows' slots, of kv heads ``first`` … ``last``−1.

    Parameters
    ----------
    new, new_steps: flat memory; steps from one token, and from one kv head, to the next
    own, own_steps: flat memory; steps from one row, kv head and slot to the next
    rows, slots: of each token
    """
    for t in range(len(rows)):
        for h in range(first, last):
            source = t * new_steps[0] + h * new_steps[1]
            target = rows[t] * own_steps[0] + h * own_steps[1] + slots[t] * own_steps[2]
            for i in range(width):
                own[target + i] = new[source + i]


@jit
def attend(
    query: np.ndarray, query_steps: Steps, own_keys: np.ndarray, own_values: np.ndarray, own_steps: Steps,
    keys: np.ndarray, values: np.ndarray, steps: Steps, shared: int,
    rows: np.ndarray, slots: np.ndarray, prompts: np.ndarray, begins: np.ndarray,
    heads: int, width: int, scale: np.float32, out: np.ndarray, first: int, last: int,
) -> None:  # fmt: skip
    """Write the attention output of every token, of kv heads ``first`` … ``last``−1.

    Parameters
    ----------
    query, query_steps: flat memory; steps from one token, and from one head, to the next
    own_keys, own_values, own_steps: steps from one row, kv head and slot to the next; both lie alike
    keys, values, steps: of the prompts, steps from one prompt, kv head and slot to the next; both lie alike
    shared: slots of a prompt; a row's own begin after them
    rows, slots: of each token; it sees its row's own slots up to its own
    prompts, begins: of each row, its prompt and the first slot of prompt and own that holds a token
    heads: query heads of a kv head
    width: of a head
    scale: of the scores
    out: flat, tokens × heads × width; a token that sees nothing gets zeros
    """
    most = shared
    for t in range(len(slots)):
        most = max(most, shared + slots[t] + 1)
    weights, powers = np.empty(most, np.float32), np.empty(most, np.int32)
    every = len(out) // max(len(rows), 1)
    for t in range(len(rows)):
        row = rows[t]
        begin = min(begins[row], shared)
        passed = max(begins[row] - shared, 0)
        there, own = shared - begin, max(slots[t] + 1 - passed, 0)
        for kv in range(first, last):
            at = prompts[row] * steps[0] + kv * steps[1] + begin * width
            own_at = row * own_steps[0] + kv * own_steps[1] + passed * width
            for h in range(kv * heads, (kv + 1) * heads):
                mixed = out[t * every + h * width : t * every + (h + 1) * width]
                mixed[:] = _ZERO
                if there + own == 0:
                    continue
                start = t * query_steps[0] + h * query_steps[1]
                one = query[start : start + width]
                _scores(one, keys[at : at + there * width].reshape(there, width), scale, weights[:there])
                _scores(one, own_keys[own_at : own_at + own * width].reshape(own, width), scale, weights[there:])
                share = _softmax(weights, powers, there + own)
                _mix(mixed, weights[:there], values[at : at + there * width].reshape(there, width))
                _mix(mixed, weights[there:], own_values[own_at : own_at + own * width].reshape(own, width))
                for i in range(width):
                    mixed[i] *= share


__all__ = ["attend", "store"]
