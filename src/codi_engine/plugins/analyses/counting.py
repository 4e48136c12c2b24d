"""Words counted per group of texts, part by part: what ``words`` streams."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from codi_engine.core.runs.documents import Documents, TextPart
from codi_engine.core.runs.work import Partial, Work
from codi_engine.kernels.counts import Counts, bigrams, count, merge_counts
from codi_engine.kernels.words import Vocabulary, tokenise

#: entries of counts that are held at once, per byte of memory
_ENTRY = 64


@dataclass
class Corpus:
    """Counts of all texts, by part, over one shared vocabulary.

    Attributes
    ----------
    names: the terms (words, and pairs of words) in alphabetical order, after :meth:`settle`
    total, documents: of each term, over all texts
    tokens: words in all texts
    """

    documents_: Documents
    work: Work
    pattern: str
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    total: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    documents: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    tokens: int = 0
    texts: int = 0
    stages: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    _entries: dict[tuple[str, str], tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.parts = self.documents_.parts(max(self.work.piece // 12, 1 << 20))
        self._maps: dict[tuple[str, str], np.ndarray] = {}
        self._kept: set[str] = set()

    def count_words(self) -> None:
        """Read all texts once."""
        self._count("words", self._words)

    def count_pairs(self, least: int) -> None:
        """Read all texts again and count neighbouring pairs of words that at least so many texts have."""
        names = self.vocabulary.tokens
        self._kept = {names[i] for i in np.flatnonzero(self.documents >= least)}
        self._count("pairs", self._pairs)

    def settle(self) -> None:
        """Number the terms alphabetically: what follows must not depend on where a term was seen first."""
        names = self.vocabulary.tokens
        order = sorted(range(len(names)), key=names.__getitem__)
        rank = np.empty(len(names), np.int64)
        rank[order] = np.arange(len(names))
        self.names = [names[i] for i in order]
        self.total, self.documents = self.total[order], self.documents[order]
        self._maps = {key: rank[ids] for key, ids in self._maps.items()}

    def _count(self, stage: str, compute: object) -> None:
        self.stages.append(stage)
        for part, partial in zip(self.parts, self.work.stream(stage, self.parts, self.documents_.read, compute), strict=True):  # type: ignore[arg-type]
            ids = self.vocabulary.add(partial["letters"], partial["bounds"])
            self._maps[stage, part.key] = ids
            grown = len(self.vocabulary) - len(self.total)
            self.total = np.concatenate([self.total, np.zeros(grown, np.int64)])
            self.documents = np.concatenate([self.documents, np.zeros(grown, np.int64)])
            np.add.at(self.total, ids[partial["word"]], partial["count"])
            np.add.at(self.documents, ids[partial["word"]], partial["documents"])
            self._entries[stage, part.key] = (partial["group"], np.diff(partial["ptr"]))
            if stage == "words":
                self.tokens += int(partial["total"].sum())
                self.texts += int(partial["size"].sum())

    def _words(self, part: TextPart, data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Partial:
        groups, text, offsets = data
        vocabulary = Vocabulary()
        ids, ends = tokenise(text, offsets, vocabulary, self.pattern)
        return _partial(groups, ids, ends, vocabulary)

    def _pairs(self, part: TextPart, data: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Partial:
        groups, text, offsets = data
        vocabulary = Vocabulary()
        ids, ends = tokenise(text, offsets, vocabulary, self.pattern)
        names = vocabulary.tokens
        pairs, starts = bigrams(ids, ends, np.array([n in self._kept for n in names], bool))
        unique, numbers = np.unique(pairs, return_inverse=True)
        terms = Vocabulary()
        encoded = [f"{names[int(p >> 32)]} {names[int(p & 0xFFFFFFFF)]}".encode() for p in unique]
        bounds = np.concatenate([[0], np.cumsum([len(e) for e in encoded])]).astype(np.int64)
        terms.add(np.frombuffer(b"".join(encoded), np.uint8), bounds)
        return _partial(groups, numbers.astype(np.int32), starts, terms)

    # ------------------------------------------------------------------------------------------- targets

    def batches(self, keep: np.ndarray) -> Iterator[tuple[list[int], Counts]]:
        """Yield (targets, counts of all groups of the run), a few targets at a time so that their counts fit into memory.

        Shared conditions are in every batch.

        Parameters
        ----------
        keep: terms, bool; others are left out
        """
        a, examples = self.documents_.arrangement, self.documents_.examples
        own = len(a.own) * examples
        weight = np.zeros(len(a.targets) + 1)
        for groups, sizes in self._entries.values():
            np.add.at(weight, np.minimum(groups // own, len(a.targets)) if own else np.full(len(groups), len(a.targets)), sizes)
        most = max(self.work.memory // 4 // _ENTRY - weight[-1], weight[:-1].max(initial=1))
        batch: list[int] = []
        size = 0.0
        for target in range(len(a.targets)):
            if batch and size + weight[target] > most:
                yield batch, self._gather(batch, keep, own)
                batch, size = [], 0.0
            batch.append(target)
            size += weight[target]
        yield batch, self._gather(batch, keep, own)

    def _gather(self, targets: list[int], keep: np.ndarray, own: int) -> Counts:
        """Return the counts of consecutive targets (their groups first, then the shared conditions')."""
        a = self.documents_.arrangement
        first, last, shared = targets[0] * own, (targets[-1] + 1) * own, len(a.targets) * own
        number = last - first + len(a.shared) * self.documents_.examples
        found, maps = [], []
        for stage in self.stages:
            for part in self.parts:
                groups, _ = self._entries[stage, part.key]
                inside = ((groups >= first) & (groups < last)) | (groups >= shared)
                if inside.any():
                    partial = self.work.partial(stage, part)
                    ids = self._maps[stage, part.key]
                    found.append(_chosen(partial, inside, first, last, shared, number, keep[ids], stage == "words"))
                    maps.append(ids)
        if not found:
            none = np.zeros(0, np.int32)
            return Counts(np.zeros(number + 1, np.int64), none, none, none, np.zeros(number, np.int64), np.zeros(number, np.int64))
        return merge_counts(found, maps)


def _partial(groups: np.ndarray, ids: np.ndarray, ends: np.ndarray, vocabulary: Vocabulary) -> Partial:
    there = np.unique(groups[groups >= 0])
    local = np.searchsorted(there, groups)
    counts = count(ids, ends, np.where(groups >= 0, local, -1), len(there), max(len(vocabulary), 1))
    letters, bounds = vocabulary.arrays()
    return {
        "letters": letters, "bounds": bounds, "group": there, "ptr": counts.ptr, "word": counts.word, "count": counts.count,
        "documents": counts.documents, "total": counts.total, "size": counts.size,
    }  # fmt: skip


def _chosen(partial: Partial, inside: np.ndarray, first: int, last: int, shared: int, number: int, keep: np.ndarray, sizes: bool) -> Counts:
    """Return a partial's counts of chosen groups, numbered anew, kept terms only; ``sizes`` says whether to count texts too."""
    group = partial["group"]
    new = np.where(group < last, group - first, group - shared + (last - first))
    row = np.repeat(np.arange(len(group)), np.diff(partial["ptr"]))
    take = inside[row] & keep[partial["word"]]
    target = new[row[take]]
    order = np.argsort(target, kind="stable")
    ptr = np.searchsorted(target[order], np.arange(number + 1))
    total, size = np.zeros(number, np.int64), np.zeros(number, np.int64)
    if sizes:
        total[new[inside]] = partial["total"][inside]
        size[new[inside]] = partial["size"][inside]
    word, times, documents = (partial[n][take][order] for n in ("word", "count", "documents"))
    return Counts(ptr, word, times, documents, total, size)
