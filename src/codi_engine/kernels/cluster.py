"""Means within clusters: the trials of an example are averaged before anything is tested."""

from __future__ import annotations

import numpy as np

from codi_engine.kernels.accelerate import jit


def average(x: np.ndarray) -> np.ndarray:
    """Return the means over replicates of groups × clusters × replicates × features, float64; NaN are left out.

    A cluster without any value is NaN.
    """
    groups, clusters, replicates, features = x.shape
    if replicates == 1:
        return x.reshape(groups, clusters, features).astype(np.float64)
    out = np.empty((groups, clusters, features))
    average_rows(x, out)
    return out


def average_codes(ptr: np.ndarray, index: np.ndarray, value: np.ndarray, present: np.ndarray, features: int) -> tuple[np.ndarray, ...]:
    """Average sparse rows within clusters.

    Parameters
    ----------
    ptr: rows + 1, where each row's entries begin; rows are groups × clusters × replicates
    present: groups × clusters × replicates, which rows there are

    Returns
    -------
    (ptr, index, value, clusters): entries of the clusters' means, group after group (groups + 1; float64), and how many
    clusters of each group have any row
    """
    groups = present.shape[0]
    out_index = np.empty(len(index), index.dtype)
    out_value = np.empty(len(index))
    out_ptr = np.zeros(groups + 1, np.int64)
    found = np.zeros(groups)
    size = average_entries(ptr, index, value, present, np.zeros(features), np.zeros(features), out_ptr, out_index, out_value, found)
    return out_ptr, out_index[:size], out_value[:size], found


@jit
def average_rows(x, out):
    """Write means over the third axis."""
    groups, clusters, replicates, features = x.shape
    count = np.empty(features)
    for g in range(groups):
        for e in range(clusters):
            total = out[g, e]
            for f in range(features):
                total[f] = 0.0
                count[f] = 0.0
            for r in range(replicates):
                row = x[g, e, r]
                for f in range(features):
                    v = np.float64(row[f])
                    there = v == v
                    total[f] += v if there else 0.0
                    count[f] += 1.0 if there else 0.0
            for f in range(features):
                total[f] = total[f] / count[f] if count[f] > 0.0 else np.nan


@jit
def average_entries(ptr, index, value, present, total, lost, out_ptr, out_index, out_value, found):
    """Write the entries of the clusters' means; returns how many there are."""
    groups, clusters, replicates = present.shape
    touched = np.empty(total.size, np.int64)
    size = 0
    row = 0
    for g in range(groups):
        for e in range(clusters):
            n = 0
            rows = 0
            for r in range(replicates):
                if present[g, e, r]:
                    rows += 1
                    for k in range(ptr[row], ptr[row + 1]):
                        f = index[k]
                        v = np.float64(value[k])
                        if total[f] == 0.0 and lost[f] == 0.0:
                            touched[n] = f
                            n += 1
                        if v != v:
                            lost[f] += 1.0
                        else:
                            total[f] += v
                            if total[f] == 0.0:  # cancelled: keep it marked as touched
                                total[f] = 5e-324
                row += 1
            if rows > 0:
                found[g] += 1.0
            for i in range(n):
                f = touched[i]
                out_index[size] = f
                out_value[size] = total[f] / (rows - lost[f]) if rows > lost[f] else np.nan
                size += 1
                total[f] = 0.0
                lost[f] = 0.0
        out_ptr[g + 1] = size
    return size
