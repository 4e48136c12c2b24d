"""Shapes of trajectories: arrays in, arrays out."""

from __future__ import annotations

import numpy as np


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine along the last axis in double precision; NaN where either is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    out: np.ndarray = np.divide((a * b).sum(-1), size, out=np.full(size.shape, np.nan), where=size > 0)
    clipped: np.ndarray = np.clip(out, -1.0, 1.0)
    return clipped


def step_change(states: np.ndarray) -> np.ndarray:
    """Cells × states × width → cells × (states − 1): ‖c_{k+1} − c_k‖ / ‖c_k‖; NaN where c_k is zero."""
    states = states.astype(np.float64)
    moved, size = np.linalg.norm(np.diff(states, axis=1), axis=-1), np.linalg.norm(states[:, :-1], axis=-1)
    out: np.ndarray = np.divide(moved, size, out=np.full(size.shape, np.nan), where=size > 0)
    return out


def direction(states: np.ndarray) -> np.ndarray:
    """Cells × states × width → cells × (states − 2): cosine of each move with the one before it."""
    moves = np.diff(states.astype(np.float64), axis=1)
    return cosine(moves[:, 1:], moves[:, :-1])


def effective_dimension(states: np.ndarray) -> float:
    """Cells × width → participation ratio (Σλ)² / Σλ² of the covariance's eigenvalues, at most cells − 1; NaN without spread."""
    centred = states.astype(np.float64) - states.mean(0, dtype=np.float64)
    gram = centred @ centred.T if len(centred) < centred.shape[1] else centred.T @ centred
    squares = float((gram**2).sum())
    return float(np.trace(gram)) ** 2 / squares if squares > 0 else float("nan")


def jackknife(states: np.ndarray, blocks: int = 100) -> float:
    """Return the standard error of the effective dimension, leaving out one block of cells at a time; NaN for fewer than three cells."""
    count = min(len(states), blocks)
    if count < 3:
        return float("nan")
    parts = np.array_split(np.arange(len(states)), count)
    left = np.array([effective_dimension(np.delete(states, part, axis=0)) for part in parts])
    return float(np.sqrt((count - 1) / count * ((left - left.mean()) ** 2).sum()))


def at_equal_size(states: np.ndarray, size: int, draws: int, seed: int) -> float:
    """Return the mean effective dimension of ``draws`` random subsets of ``size`` cells: it grows with the number of cells."""
    rng = np.random.default_rng(seed)
    found = [effective_dimension(states[rng.choice(len(states), size, replace=False)]) for _ in range(draws)]
    return float(np.mean(found))
