"""Random numbers that belong to a cell: counter-based, keyed by (run seed, cell labels), whatever batch it falls into."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import torch


#: bins of tokens, and how many there are to one unit of scaled logit; what lies deeper is in the last one
_BINS, _PER_UNIT = 4096, 64
#: rows whose weights are computed at once
_ROWS = 16


def key_of(*parts: Any) -> int:
    """Return a 128-bit key of JSON-able labels."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")


def generator(*parts: Any) -> np.random.Generator:
    """Return a Philox generator keyed by the labels."""
    return np.random.Generator(np.random.Philox(key=key_of(*parts)))


def redrawn(key: int, attempt: int) -> int:
    """Return a cell's key for another attempt at its text; the first attempt has the key itself."""
    return key if attempt == 0 else key_of("attempt", str(key), attempt)


@dataclass(frozen=True)
class Sampler:
    """How tokens are drawn: temperature > 0; ``top_k`` 0 and ``top_p`` 1 keep everything."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def uniform(key: int, index: int) -> float:
    """Return the ``index``-th uniform in [0, 1) of a cell: one Philox block per token, no state."""
    bits = np.random.Philox(key=key, counter=index).random_raw(1)
    return float(bits[0] >> np.uint64(11)) * 2.0**-53


def sample(logits: torch.Tensor, rows: np.ndarray, keys: Sequence[int], at: Sequence[int], sampler: Sampler) -> np.ndarray:
    """Draw one token per cell by inverse CDF, likely tokens first and equal ones in the order of their ids.

    A row is never sorted: its tokens are sorted into bins of like probability, and the one bin that a draw falls into is looked into.

    Parameters
    ----------
    logits: rows × vocabulary
    rows: the row of each cell
    keys, at: the cell's key and the number of tokens it has so far: together they name its uniform

    Returns
    -------
    the token of each cell; −1 where a logit is NaN or +inf: nothing can be drawn there
    """
    out = np.full(len(rows), -1)
    by_row: dict[int, list[int]] = defaultdict(list)
    for cell, row in enumerate(rows.tolist()):
        by_row[row].append(cell)
    wanted = sorted(by_row)
    every = len(wanted) == len(logits)  # a part of all rows is a view
    for start in range(0, len(wanted), _ROWS):
        some = wanted[start : start + _ROWS]
        part = logits[start : start + _ROWS] if every else logits[some]
        for row, ladder in zip(some, _ladders(part, sampler), strict=True):
            if ladder is not None:
                for cell in by_row[row]:
                    out[cell] = ladder.token(uniform(keys[cell], at[cell]))
    return out


class _Ladder:
    """The tokens of one row by falling probability: their bins' cumulated weights; a bin is sorted when it is looked into.

    Parameters
    ----------
    depth: of each token, how far its scaled logit lies below the largest one
    weight: exp(−depth), fp32; sums are taken in float64
    bins: of each token
    top_p: keep the first tokens that reach this share
    """

    def __init__(self, depth: np.ndarray, weight: np.ndarray, bins: np.ndarray, top_p: float) -> None:
        self.depth, self.weight, self.bins = depth, weight, bins
        self.reached = np.cumsum(np.bincount(bins, weights=weight, minlength=_BINS))
        self.total = float(self.reached[-1])
        if top_p < 1.0:
            _, self.total = self._find(top_p * self.total, "left")

    def token(self, share: float) -> int:
        """Return the token in which a share in [0, 1) of what is kept is reached."""
        return self._find(share * self.total, "right")[0]

    def _find(self, target: float, side: Literal["left", "right"]) -> tuple[int, float]:
        """Return the token at which ``target`` is reached, and the weight of all tokens up to it."""
        at = min(int(np.searchsorted(self.reached, target, side=side)), int(np.searchsorted(self.reached, self.reached[-1])))
        ids = np.flatnonzero(self.bins == at)
        ids = ids[np.argsort(self.depth[ids], kind="stable")]
        before = self.reached[at - 1] if at else 0.0
        sums = before + np.cumsum(self.weight[ids], dtype=np.float64)
        place = min(int(np.searchsorted(sums, target, side=side)), len(ids) - 1)
        return int(ids[place]), float(sums[place])


def _ladders(logits: torch.Tensor, sampler: Sampler) -> Iterator[_Ladder | None]:
    """Return the ladder of each row; None where a logit is no number."""
    import torch

    values = logits.float()
    if 0 < sampler.top_k < values.shape[1]:
        values = values.masked_fill(values < values.topk(sampler.top_k, -1).values[:, -1:], float("-inf"))
    largest = values.amax(-1, keepdim=True)
    depth = torch.sub(largest, values).div_(sampler.temperature)
    weight, bins = depth.neg().exp_(), (depth * _PER_UNIT).clamp_(max=_BINS - 1).long()
    finite = torch.isfinite(largest[:, 0]).cpu().tolist()
    for row, good in enumerate(finite):
        yield _Ladder(depth[row].cpu().numpy(), weight[row].cpu().numpy(), bins[row].cpu().numpy(), sampler.top_p) if good else None
