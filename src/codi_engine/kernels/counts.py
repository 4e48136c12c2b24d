"""Counts of words per group of documents, sparse, and their sums over parts of a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from codi_engine.kernels.accelerate import jit


@dataclass
class Counts:
    """Words of groups, sparse: group g owns entries ``ptr[g]`` to ``ptr[g + 1]``; after :func:`merge_counts` words ascend.

    Attributes
    ----------
    word: ids
    count: how often the group's documents have it
    documents: how many of them have it
    total, size: per group its tokens and its documents
    """

    ptr: np.ndarray
    word: np.ndarray
    count: np.ndarray
    documents: np.ndarray
    total: np.ndarray
    size: np.ndarray


def count(ids: np.ndarray, ends: np.ndarray, groups: np.ndarray, group_count: int, words: int) -> Counts:
    """Count words per group of documents.

    Parameters
    ----------
    ids, ends: what :func:`codi_engine.kernels.words.tokenise` returned
    groups: group of each document, int; −1 leaves it out. Documents of a group need not be neighbours
    words: ids are below it
    """
    groups = np.asarray(groups)
    order = np.arange(len(groups)) if len(groups) == 0 or (groups[1:] >= groups[:-1]).all() else np.argsort(groups, kind="stable")
    order = order[groups[order] >= 0]
    bounds = np.searchsorted(groups[order], np.arange(group_count + 1))
    most = int((ends[order + 1] - ends[order]).sum())
    word, times, documents = np.empty(most + 1, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    ptr = np.zeros(group_count + 1, np.int64)
    seen = np.zeros((words, 4), np.int32)
    count_groups(ids, ends, order, bounds, seen, word, times, documents, ptr)
    kept = ptr[-1]
    tokens = np.bincount(groups[order], (ends[order + 1] - ends[order]).astype(np.float64), group_count).astype(np.int64)
    return Counts(ptr, word[:kept].copy(), times[:kept].copy(), documents[:kept].copy(), tokens, np.diff(bounds))


def merge_counts(parts: Sequence[Counts], maps: Sequence[np.ndarray] | None = None) -> Counts:
    """Return the sum of counts of the same groups, words ascending; ``maps`` gives for each part its ids' common ids."""
    mapped = [np.asarray(p.word if maps is None else maps[i][p.word], np.int32) for i, p in enumerate(parts)]
    word, times, documents = (np.concatenate(v) for v in (mapped, [p.count for p in parts], [p.documents for p in parts]))
    bases = np.concatenate([[0], np.cumsum([len(m) for m in mapped])])[:-1]
    ptrs = np.stack([p.ptr + b for p, b in zip(parts, bases, strict=True)])
    seen = np.zeros((int(word.max(initial=-1)) + 1, 2), np.int64)
    words, sums, sizes = np.empty(len(word), np.int32), np.empty(len(word), np.int64), np.empty(len(word), np.int64)
    ptr = np.zeros(ptrs.shape[1], np.int64)
    merge_groups(word, times, documents, ptrs, seen, words, sums, sizes, ptr)
    kept = int(ptr[-1])
    return Counts(ptr, words[:kept], sums[:kept], sizes[:kept], np.sum([p.total for p in parts], 0), np.sum([p.size for p in parts], 0))


@jit
def merge_groups(word, times, documents, ptrs, seen, out_word, out_times, out_documents, ptr):
    """Add up the entries of each group over parts; ``seen`` (words × 2, zero) is zero again afterwards."""
    parts, groups = ptrs.shape
    n = 0
    for g in range(groups - 1):
        begin = n
        for p in range(parts):
            for k in range(ptrs[p, g], ptrs[p, g + 1]):
                w = word[k]
                row = seen[w]
                out_word[n] = w
                n += row[0] == 0
                row[0] += times[k]
                row[1] += documents[k]
        found = n - begin
        if found * 40 < seen.shape[0]:
            out_word[begin:n] = np.sort(out_word[begin:n])
        else:  # walking through all words is cheaper than sorting those that there are
            at = begin
            for w in range(seen.shape[0]):
                out_word[at] = w
                at += seen[w, 0] != 0
                if at == n:
                    break
        for k in range(begin, n):
            row = seen[out_word[k]]
            out_times[k] = row[0]
            out_documents[k] = row[1]
            row[0] = 0
            row[1] = 0
        ptr[g + 1] = n


def bigrams(ids: np.ndarray, ends: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return neighbouring pairs of kept words within documents, as first << 32 | second, and where each document's begin.

    Parameters
    ----------
    keep: words, bool; a pair with another word is left out, so that their number stays bounded
    """
    pairs = np.empty(max(len(ids), 1), np.int64)
    out = np.zeros(len(ends), np.int64)
    size = pair_up(ids, ends, keep, pairs, out)
    return pairs[:size].copy(), out


@jit
def count_groups(ids, ends, order, bounds, seen, word, times, documents, ptr):
    """Count words of each group's documents; ``seen`` (words × 4, zero) is zero again afterwards."""
    n = 0
    stamp = 0
    for g in range(bounds.size - 1):
        begin = n
        for k in range(bounds[g], bounds[g + 1]):
            d = order[k]
            stamp += 1
            for j in range(ends[d], ends[d + 1]):
                w = ids[j]
                row = seen[w]
                word[n] = w  # stays only if the word is new to the group; no branch that could be guessed wrongly
                n += row[0] == 0
                row[0] += 1
                row[1] += row[2] != stamp
                row[2] = stamp
        for j in range(begin, n):
            w = word[j]
            times[j] = seen[w, 0]
            documents[j] = seen[w, 1]
            seen[w, 0] = 0
            seen[w, 1] = 0
        ptr[g + 1] = n


@jit
def pair_up(ids, ends, keep, pairs, out):
    """Write pairs of neighbours; returns how many."""
    n = 0
    for d in range(ends.size - 1):
        for j in range(ends[d], ends[d + 1] - 1):
            if keep[ids[j]] and keep[ids[j + 1]]:
                pairs[n] = (np.int64(ids[j]) << 32) | np.int64(ids[j + 1])
                n += 1
        out[d + 1] = n
    return n
