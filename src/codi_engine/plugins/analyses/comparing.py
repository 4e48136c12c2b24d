"""Tests of every feature between conditions, part by part: what ``pathways`` streams."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.runs.vectors import Codes, VectorPart, Vectors, dense_rows
from codi_engine.core.runs.work import Partial, Work
from codi_engine.kernels.cluster import average, average_codes
from codi_engine.kernels.moments import Moments, add_differences, merge, pooled_sd
from codi_engine.kernels.ttest import CONSTANT, MISSING, TINY, Tested, paired, two_sample

TestName = Literal["welch", "pooled", "paired", "mann_whitney", "wilcoxon", "permutation"]
PAIRED = ("paired", "wilcoxon")
MOMENTS = ("welch", "pooled", "paired")


@dataclass(frozen=True)
class Design:
    """What is tested.

    Attributes
    ----------
    pairs: pairs × 2, indices into the arrangement's conditions
    test: which one
    by_example: replicates are averaged within their example first
    paired: examples are the same in both conditions of every pair
    level: p above it is counted but not kept
    allowed: targets × features, which tests belong to the family; None for all
    permutations, seed: of the permutation test
    """

    pairs: np.ndarray
    test: TestName
    by_example: bool
    paired: bool
    level: float
    allowed: np.ndarray | None
    permutations: int
    seed: int


@dataclass
class Read:
    """A part's own conditions (targets × conditions × …) and those that all targets share."""

    own: Any
    common: Any


class Comparison:
    """Tests of all targets × pairs × features of a run, computed in parts of bounded size."""

    def __init__(self, vectors: Vectors, design: Design, work: Work) -> None:
        self.vectors, self.design, self.work = vectors, design, work
        self.arrangement = vectors.arrangement
        self._common: tuple[tuple[int, int] | None, Any] = (None, None)
        self._position = {c: ("own", i) for i, c in enumerate(self.arrangement.own)} | {c: ("shared", i) for i, c in enumerate(self.arrangement.shared)}
        if vectors.sparse and vectors.columns is not None:
            raise UserError(f"{vectors.where}: at: cannot be used with sparse codes")

    def results(self) -> Iterator[Partial]:
        """Yield the kept tests and counts of all targets, in order."""
        parts = self.vectors.parts(self.work.piece)
        whole = all(p.begin == 0 and p.end == len(self.arrangement.examples) for p in parts)
        if not whole and self.design.test not in MOMENTS:
            size = max(p.bytes for p in parts)
            raise UserError(f"{self.vectors.where}: test {self.design.test} needs all rows of a target at once; raise `memory` (a part has {size:,} bytes)")
        waiting: list[Partial] = []
        for part, partial in zip(parts, self.work.stream("tests", parts, self.read, self.compute), strict=True):
            if "moments" not in partial:
                yield partial
                continue
            waiting.append(partial)
            if part.end == len(self.arrangement.examples):
                yield self._finished(part.first, _joined([Moments(*p["moments"]) for p in waiting]), sum(float(p["nan"][0]) for p in waiting))
                waiting = []

    # -------------------------------------------------------------------------------------------- reading

    def read(self, part: VectorPart, used: Read | None) -> Read:
        """Read a part; ``used`` is an earlier one whose memory may be taken."""
        key = (part.begin, part.end)
        if self.arrangement.shared and self._common[0] != key:
            self._common = (key, self.vectors.read_common(*key))
        return Read(self.vectors.read_own(part, None if used is None else used.own), self._common[1])

    # ------------------------------------------------------------------------------------------- computing

    def compute(self, part: VectorPart, data: Read) -> Partial:
        """Test the targets of a part, or return the moments of a piece of one target."""
        whole = part.begin == 0 and part.end == len(self.arrangement.examples)
        out, gone, room = [], 0.0, Tested.empty(len(self.design.pairs), self.vectors.width)
        for number, target in enumerate(range(part.first, part.last)):
            if self.design.test in MOMENTS:
                moments, nan = self._moments(part, data, number)
                if not whole:
                    return {"moments": np.stack([moments.n, moments.shift, moments.s, moments.q]), "nan": np.array([nan])}
                out.append(self._tests(target, moments, room))
            else:
                rows, nan = self._rows(part, data, number)
                out.append(self._ranked(target, rows))
            gone += nan
        return _stacked(out, gone)

    def _moments(self, part: VectorPart, data: Read, number: int) -> tuple[Moments, float]:
        """Return the moments of one target: of each condition, or of each pair's differences; and how many values are NaN."""
        conditions = len(self.arrangement.conditions)
        if self.vectors.sparse and self.design.test != "paired":
            own = _slice(data.own, number)
            found = [(self.arrangement.own, own)] + ([(self.arrangement.shared, data.common)] if self.arrangement.shared else [])
            made = [(places, _code_moments(codes, self.vectors.width, self.design.by_example)) for places, codes in found]
            nan = float(np.isnan(own.value).sum())
            if not self.arrangement.shared:
                return made[0][1], nan
            moments = Moments.empty(conditions, self.vectors.width)
            for places, part_of in made:
                for name in ("n", "shift", "s", "q"):
                    getattr(moments, name)[places] = getattr(part_of, name)
            return moments, nan
        rows, nan = self._rows(part, data, number)
        step = self.vectors.block if self.design.by_example else self.vectors.block * self.arrangement.replicates
        blocks = []
        for at in range(0, rows.shape[1], step):
            block = np.ascontiguousarray(rows[:, at : at + step]) if rows.shape[1] > step else rows
            if self.design.test == "paired":
                moments = Moments.empty(len(self.design.pairs), self.vectors.width)
                add_differences(block, self.design.pairs, moments)
            else:
                moments = Moments.empty(conditions, self.vectors.width)
                moments.add(block)
            blocks.append(moments)
        return _joined(blocks), nan

    def _rows(self, part: VectorPart, data: Read, number: int) -> tuple[np.ndarray, float]:
        """Return conditions × units × features of one target, and how many values of existing cells are NaN."""
        own = self._dense(data.own, number)
        rows = own
        if self.arrangement.shared:
            parts = {"own": own, "shared": data.common if not self.vectors.sparse else dense_rows(data.common, self.vectors.stored)}
            rows = np.stack([parts[kind][i] for kind, i in (self._position[c] for c in range(len(self.arrangement.conditions)))])
        if self.vectors.columns is not None:
            rows = rows[..., self.vectors.columns]
        absent = int((self.arrangement.slots[part.first + number, :, part.begin : part.end] < 0).sum()) * self.vectors.width
        nan = float(np.isnan(own).sum() - absent) if self.vectors.columns is None and np.isnan(own).any() else 0.0
        if self.design.by_example:
            return average(np.ascontiguousarray(rows)), nan
        return np.ascontiguousarray(rows).reshape(rows.shape[0], -1, rows.shape[-1]), nan

    def _dense(self, data: Any, number: int) -> np.ndarray:
        row: np.ndarray = dense_rows(_slice(data, number), self.vectors.stored) if isinstance(data, Codes) else data[number]
        return row

    def _finished(self, target: int, moments: Moments, nan: float) -> Partial:
        return _stacked([self._tests(target, moments, Tested.empty(len(self.design.pairs), self.vectors.width))], nan)

    # --------------------------------------------------------------------------------------------- testing

    def _tests(self, target: int, moments: Moments, room: Tested) -> dict[str, np.ndarray]:
        from scipy import special

        beyond = -special.ndtri(self.design.level / 2) * (1 - 1e-12)  # no Student's t reaches p ≤ level before the normal does
        pairs = self.design.pairs
        if self.design.test == "paired":
            tested = paired(moments, beyond, room)
        else:
            tested = two_sample(moments, pairs, "pooled" if self.design.test == "pooled" else "welch", beyond, room)
        kept, counts = self._kept(target, tested.p, tested.status)
        pair, feature = kept
        a, b = pairs[pair, 0], pairs[pair, 1]
        if self.design.test == "paired":
            n_a = n_b = moments.n[pair, feature]
            with np.errstate(invalid="ignore", divide="ignore"):
                sd = np.sqrt(moments.spread[pair, feature] / (n_a - 1.0))
        else:
            n_a, n_b = moments.n[a, feature], moments.n[b, feature]
            sd = pooled_sd(moments, a, b, feature)
        values = {name: getattr(tested, name)[pair, feature] for name in ("effect", "se", "t", "df", "p")}
        return {"target": np.full(len(pair), target), "pair": pair, "feature": feature, **values, "n_a": n_a, "n_b": n_b, "sd": sd, **counts}

    def _ranked(self, target: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        from codi_engine.plugins.analyses.rank_tests import rank_test

        found = rank_test(rows, self.design.pairs, self.design.test, self.design.permutations, self.design.seed, target, self.design.paired)
        (pair, feature), counts = self._kept(target, found.p, found.status)
        names = ("effect", "se", "t", "df", "p", "n_a", "n_b", "sd")
        return {"target": np.full(len(pair), target), "pair": pair, "feature": feature, **{n: getattr(found, n)[pair, feature] for n in names}, **counts}

    def _kept(self, target: int, p: np.ndarray, status: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
        """Return which tests are kept, and how many of each kind there are per pair."""
        allowed = np.ones(p.shape[1], bool) if self.design.allowed is None else self.design.allowed[target]
        real = (status != CONSTANT) & ~np.isnan(p) & allowed
        counts = [(kind & allowed).sum(1) for kind in (real, status == CONSTANT, (status == MISSING) | (status == TINY))]
        pair, feature = np.nonzero(real & (p <= self.design.level))
        return (pair, feature), {"counts": np.stack(counts, 1)[None]}


def _slice(codes: Codes, number: int) -> Codes:
    """Return the codes of one entry of the first axis."""
    rows = int(np.prod(codes.present.shape[1:]))
    ptr = codes.ptr[number * rows : (number + 1) * rows + 1]
    return Codes(ptr - ptr[0], codes.index[ptr[0] : ptr[-1]], codes.value[ptr[0] : ptr[-1]], codes.present[number])


def _code_moments(codes: Codes, width: int, by_example: bool) -> Moments:
    """Return the moments of codes: conditions × examples × replicates."""
    conditions, examples, replicates = codes.present.shape
    moments = Moments.empty(conditions, width)
    if by_example and replicates > 1:
        moments.add_codes(*average_codes(codes.ptr, codes.index, codes.value, codes.present, width))
    else:
        moments.add_codes(codes.ptr[:: examples * replicates], codes.index, codes.value, codes.present.sum((1, 2)).astype(np.float64))
    return moments


def _joined(blocks: Sequence[Moments]) -> Moments:
    out = blocks[0]
    for block in blocks[1:]:
        out = merge(out, block)
    return out


def _stacked(found: Sequence[dict[str, np.ndarray]], nan: float) -> Partial:
    return {**{name: np.concatenate([f[name] for f in found]) for name in found[0]}, "nan": np.array([nan])}
