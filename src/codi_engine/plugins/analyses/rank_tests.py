"""Rank and permutation tests behind one face."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class RankTested:
    """As :class:`codi_engine.kernels.ttest.Tested`, with the sizes and the standard deviation that effects are divided by."""

    effect: np.ndarray
    se: np.ndarray
    t: np.ndarray
    df: np.ndarray
    p: np.ndarray
    status: np.ndarray
    n_a: np.ndarray
    n_b: np.ndarray
    sd: np.ndarray
