"""Captured vectors of a run, read part by part in the arrangement of a comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.runs.arrange import Arrangement, arrange, layer_of
from codi_engine.store.sparse import to_dense

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

#: replicates added up at once; larger groups are merged from such blocks, in order, whatever the memory
BLOCK_ROWS = 256


@dataclass(frozen=True)
class VectorPart:
    """Some targets, and some of their examples."""

    first: int
    last: int
    begin: int
    end: int
    bytes: int

    @property
    def key(self) -> str:
        return f"{self.first}-{self.last}-{self.begin}-{self.end}"


@dataclass
class Codes:
    """Sparse rows: ``ptr`` (rows + 1), ``index``, ``value``; which of the rows there are (any shape)."""

    ptr: np.ndarray
    index: np.ndarray
    value: np.ndarray
    present: np.ndarray


def captured(run: Run, site: str | None, where: str) -> str:
    """Return the name of a captured array below ``activations/``: the one asked for, or the only one.

    Raises
    ------
    UserError: there is none, several without a choice, or not this one
    """
    known = sorted({a.split("/")[1] for a in run.store.arrays if a.startswith("activations/")})
    if not known:
        raise UserError(f"{where}: {run.path} holds no activations; add `capture:` to the experiment and run it again")
    if site is None:
        if len(known) > 1:
            raise UserError(f"{where}: say which activations with `site`: {', '.join(known)}")
        return known[0]
    if site not in known:
        raise UserError(f"{where}: site '{site}' was not captured; {nearest(site, known)}")
    return site


class Vectors:
    """What was captured at one site, flattened to features.

    Attributes
    ----------
    name: the array below ``activations/``
    sparse: whether it is stored as sparse codes
    labels: names of the features

    ``asked``: conditions asked for by name (controls are left out otherwise)
    """

    def __init__(self, run: Run, site: str | None, where: str, at: Mapping[str, Any] | None = None, asked: Collection[str] = ()) -> None:
        self.run, self.where, self.asked = run, where, asked
        self.name = captured(run, site, where)
        self.sparse = run.store.is_sparse(f"activations/{self.name}")
        self.array = f"activations/{self.name}/{'ptr' if self.sparse else 'value'}"
        spec = run.store.spec(self.array)
        self.shape: tuple[int, ...] = (int(spec.attrs["width"]),) if self.sparse else spec.shape
        self.dims = ("width",) if self.sparse else spec.dims[1:]
        self._coords = {d: list(v) for d, v in spec.attrs.get("coords", {}).items()}
        if self.sparse and self._coords:
            self.dims = (next(iter(self._coords)),)
        self.dtype = np.dtype(run.store.spec(f"activations/{self.name}/value").dtype)
        self.columns = self._chosen(at or {})

    def _names(self, dim: int) -> list[Any]:
        names = self._coords.get(self.dims[dim])
        return names if names else list(range(self.shape[dim]))

    def _chosen(self, at: Mapping[str, Any]) -> np.ndarray | None:
        """Return the flat columns that ``at`` leaves; None for all."""
        mask = np.ones(self.shape, bool)
        for dim, wanted in at.items():
            if dim not in self.dims:
                raise UserError(f"{self.where}: at: '{dim}' is no dimension of {self.name}; it has {', '.join(self.dims)}")
            names = self._names(self.dims.index(dim))
            values = wanted if isinstance(wanted, (list, tuple)) else [wanted]
            for value in values:
                if value not in names:
                    raise UserError(f"{self.where}: at: {dim} {value} was not captured; {nearest(str(value), [str(n) for n in names])}")
            keep = np.isin(np.arange(len(names)), [names.index(v) for v in values])
            mask &= keep.reshape([-1 if i == self.dims.index(dim) else 1 for i in range(len(self.shape))])
        return None if mask.all() else np.flatnonzero(mask)

    @property
    def stored(self) -> int:
        """Return how many features a cell has on disk."""
        return int(np.prod(self.shape))

    @property
    def width(self) -> int:
        """Return how many features are looked at."""
        return self.stored if self.columns is None else len(self.columns)

    @cached_property
    def labels(self) -> list[str]:
        """Names of the features: their labels, or ``step=3/17``."""
        if len(self.shape) == 1:
            names = [str(n) for n in self._names(0)]
        else:
            names = [""]
            for i, dim in enumerate(self.dims):
                tail = i == len(self.dims) - 1
                names = [f"{n}{'/' if n else ''}{v if tail else f'{dim}={v}'}" for n in names for v in self._names(i)]
        return names if self.columns is None else [names[c] for c in self.columns]

    @cached_property
    def layers(self) -> np.ndarray:
        """Layer of each feature from its label (``L9-456``), its ``layer`` dimension or the site; −1 where unknown."""
        found = [layer_of(label) for label in self.labels] if len(self.labels) else []
        if any(v is not None for v in found):
            return np.array([-1 if v is None else v for v in found])
        from codi_engine.core.sites import parse_site

        try:
            layer = parse_site(self.name).layer
        except UserError:
            layer = None
        return np.full(self.width, -1 if layer is None else layer)

    @cached_property
    def arrangement(self) -> Arrangement:
        """How the cells that have these vectors are arranged."""
        return arrange(self.run, self.where, self.array, self.asked)

    # ----------------------------------------------------------------------------------------------- parts

    @property
    def block(self) -> int:
        """Return how many examples are added up at once."""
        return max(BLOCK_ROWS // self.arrangement.replicates, 1)

    def parts(self, piece: int) -> list[VectorPart]:
        """Cut the targets into parts of at most ``piece`` bytes; one that is larger is cut by blocks of examples."""
        targets, conditions, examples, replicates = self.arrangement.slots.shape
        per_example = (conditions + len(self.arrangement.shared)) * replicates * self.stored * self.dtype.itemsize
        weight = self._per_cell / (self.stored * self.dtype.itemsize) * conditions / max(conditions + len(self.arrangement.shared), 1)
        one = per_example * examples
        if one <= piece:
            step = max(int(piece // max(one, 1)), 1)
            bounds = [(t, min(t + step, targets)) for t in range(0, targets, step)]
            return [VectorPart(a, b, 0, examples, int(one * weight) * (b - a)) for a, b in bounds]
        step = max(int(piece // (per_example * self.block)), 1) * self.block
        cuts = [(e, min(e + step, examples)) for e in range(0, examples, step)]
        return [VectorPart(t, t + 1, a, b, int(per_example * weight) * (b - a)) for t in range(targets) for a, b in cuts]

    @cached_property
    def _per_cell(self) -> float:
        """Bytes on disk of one cell, about."""
        names = ["ptr", "index", "value"] if self.sparse else ["value"]
        committed = self.run.store.committed
        size = 0
        for unit, record in committed.items():
            size += sum(record["files"].get(self.run.store.spec(f"activations/{self.name}/{n}").shard(unit), {"size": 0})["size"] for n in names)
        return size / max(len(self.run.store.read_slots(self.array)), 1)

    def read_own(self, part: VectorPart, used: Any = None) -> Any:
        """Read the own conditions of a part: targets × conditions × examples × replicates × features, NaN where there is no cell.

        Sparse codes come as :class:`Codes`. ``used`` is an earlier part's result whose memory may be taken.
        """
        slots = self.arrangement.slots[part.first : part.last, :, part.begin : part.end]
        return self.read(slots, used)

    def read_common(self, begin: int, end: int) -> Any:
        """Read the shared conditions of some examples: conditions × examples × replicates × features, or Codes."""
        return self.read(self.arrangement.common[:, begin:end])

    def read(self, slots: np.ndarray, used: Any = None) -> Any:
        """Read the vectors of a grid of slots (−1: none)."""
        return self._read_codes(slots) if self.sparse else self._read_dense(slots, used)

    def _by_unit(self, slots: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Return (unit, rows of the unit ascending, their flat places in ``slots``)."""
        flat = slots.reshape(-1)
        places = np.flatnonzero(flat >= 0)
        places = places[np.argsort(flat[places], kind="stable")]
        unit, row = np.divmod(flat[places], self.run.store.unit_cells)
        starts = np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]]) if len(unit) else np.zeros(0, int)
        return [(int(unit[a]), row[a:b], places[a:b]) for a, b in zip(starts, [*starts[1:], len(unit)], strict=True)]

    def _read_dense(self, slots: np.ndarray, used: np.ndarray | None) -> np.ndarray:
        kind = self.dtype if self.dtype in (np.float32, np.float64) else np.dtype(np.float32 if self.dtype.itemsize <= 2 else np.float64)
        count = slots.size * self.stored
        memory = used if used is not None and used.dtype == kind and used.size >= count else np.empty(count, kind)
        memory = memory.reshape(-1)
        out = memory[:count].reshape(slots.size, *self.shape)
        if (slots < 0).any():
            out[slots.reshape(-1) < 0] = np.nan
        wanted = self._by_unit(slots)
        following = [unit for unit, _, _ in wanted[1:]] + [unit + 1 for unit, _, _ in wanted[-1:]]
        for (unit, rows, places), then in zip(wanted, following, strict=True):
            self.run.store.read_into(self.array, unit, rows, out, places, then)
        return out.reshape(*slots.shape, self.stored)

    def _read_codes(self, slots: np.ndarray) -> Codes:
        total = slots.size
        begin, length = np.zeros(total, np.int64), np.zeros(total, np.int64)
        pieces: list[tuple[np.ndarray, np.ndarray]] = []
        offset = 0
        for unit, rows, places in self._by_unit(slots):
            ptr, index, value = self.run.store.codes_of(f"activations/{self.name}", unit)
            begin[places] = ptr[rows, 0] + offset
            length[places] = ptr[rows, 1] - ptr[rows, 0]
            pieces.append((index, value))
            offset += len(index)
        ptr = np.concatenate([[0], np.cumsum(length)])
        take = np.repeat(begin - ptr[:-1], length) + np.arange(ptr[-1])
        index = np.concatenate([p[0] for p in pieces]) if pieces else np.zeros(0, np.uint16)
        value = np.concatenate([p[1] for p in pieces]) if pieces else np.zeros(0, self.dtype)
        return Codes(ptr, index[take], value[take], slots >= 0)


def dense_rows(codes: Codes, width: int) -> np.ndarray:
    """Return the rows of codes as an array: shape of ``present`` × features, NaN where there is no cell."""
    out = to_dense(np.stack([codes.ptr[:-1], codes.ptr[1:]], 1), codes.index, codes.value, width)
    out[~codes.present.reshape(-1)] = np.nan
    return out.reshape(*codes.present.shape, width)
