"""Values of games over few players: sets of players are bit masks, a game is one number per mask.

References
----------
Shapley 1953 (the value); Banzhaf 1965; Grabisch & Roubens 1999 (the interaction index of two players).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np


def mask_of(players: Sequence[int], members: Sequence[int]) -> int:
    """Return the bit mask of some members; bit i is the i-th player."""
    return sum(1 << players.index(m) for m in members)


def members_of(players: Sequence[int], mask: int) -> tuple[int, ...]:
    """Return the players of a bit mask."""
    return tuple(p for i, p in enumerate(players) if mask >> i & 1)


def shapley_weights(count: int) -> np.ndarray:
    """Return players × masks: the weights whose product with a game is each player's Shapley value.

    φ_i = Σ_{S ∌ i} |S|! (K − |S| − 1)! / K! · (v(S ∪ i) − v(S)).
    """
    out = np.zeros((count, 2**count))
    for i, mask in itertools.product(range(count), range(2**count)):
        size = mask.bit_count()
        inside = mask >> i & 1
        rest = size - 1 if inside else size
        weight = math.factorial(rest) * math.factorial(count - rest - 1) / math.factorial(count)
        out[i, mask] = weight if inside else -weight
    return out


def banzhaf_weights(count: int) -> np.ndarray:
    """Return players × masks: the mean marginal contribution over all sets of the others, each weighed the same."""
    masks = np.arange(2**count)
    inside = (masks[None] >> np.arange(count)[:, None]) & 1
    weights: np.ndarray = (2.0 * inside - 1.0) / 2 ** (count - 1)
    return weights


def interaction_weights(count: int) -> np.ndarray:
    """Return pairs (i < j) × masks: the weights of the Shapley interaction index.

    I_ij = Σ_{S ∌ i, j} |S|! (K − |S| − 2)! / (K − 1)! · (v(S ∪ ij) − v(S ∪ i) − v(S ∪ j) + v(S)).
    """
    pairs = list(itertools.combinations(range(count), 2))
    out = np.zeros((len(pairs), 2**count))
    for row, (i, j) in enumerate(pairs):
        for mask in range(2**count):
            with_i, with_j = mask >> i & 1, mask >> j & 1
            rest = mask.bit_count() - with_i - with_j
            weight = math.factorial(rest) * math.factorial(count - rest - 2) / math.factorial(count - 1)
            out[row, mask] = weight if with_i == with_j else -weight
    return out


def minimal(reaching: Sequence[int]) -> set[int]:
    """Return the masks of which no proper subset is among them."""
    found = set(reaching)
    return {m for m in found if not any(other != m and other & m == other for other in found)}
