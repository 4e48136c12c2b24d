"""Random numbers that belong to a cell: counter-based, keyed by (run seed, cell labels), whatever batch it falls into."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch


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
    """Draw one token per cell by inverse CDF in float64.

    Parameters
    ----------
    logits: rows × vocabulary
    rows: the row of each cell
    keys, at: the cell's key and the number of tokens it has so far: together they name its uniform

    Returns
    -------
    the token of each cell; −1 where a logit is NaN or +inf: nothing can be drawn there
    """
    import torch

    values = logits.double() / sampler.temperature
    if 0 < sampler.top_k < values.shape[1]:
        threshold = values.topk(sampler.top_k, -1).values[:, -1:]
        values = values.masked_fill(values < threshold, float("-inf"))
    probability, order = torch.sort(torch.softmax(values, -1), dim=-1, descending=True, stable=True)
    if sampler.top_p < 1.0:
        before = probability.cumsum(-1) - probability
        probability = probability.masked_fill(before >= sampler.top_p, 0.0)
    cumulative = probability.cumsum(-1).cpu().numpy()
    ids = order.cpu().numpy()
    out = np.empty(len(rows), np.int64)
    for cell, (row, key, index) in enumerate(zip(rows.tolist(), keys, at, strict=True)):
        if not np.isfinite(cumulative[row, -1]):
            out[cell] = -1
            continue
        target = uniform(key, index) * cumulative[row, -1]
        place = min(int(np.searchsorted(cumulative[row], target, side="right")), ids.shape[1] - 1)
        out[cell] = ids[row, place]
    return out
