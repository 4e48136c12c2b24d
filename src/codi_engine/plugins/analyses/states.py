"""Captured states of a run's cells, read in bounded pieces: cells × layers × places × width."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.planning.controls import control_rows
from codi_engine.core.runs.results import BASELINE
from codi_engine.core.sites import Site, parse_site
from codi_engine.store.sparse import to_dense

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

#: bytes of whole rows that are held while the wanted part of them is copied
_PIECE = 1 << 28
_PLACES = ("step", "position")


class States:
    """What one captured site holds of a run's unedited (or edited) cells; controls are left out.

    Attributes
    ----------
    name: the captured array; ``site`` is what was asked for, parsed (None where an import named it otherwise)
    frame: one row per cell that has states, as in ``run.cells``
    layers, places: labels of the second and third dimension; [None] where the site has none
    axis: what the places are: ``step`` or ``position``
    width: of one state
    """

    def __init__(self, run: Run, site: str, edited: bool, who: str) -> None:
        self.run, self.name = run, run.captured(site)
        self.site = _parsed(site)
        self.sparse = run.store.is_sparse(f"activations/{self.name}")
        self._array = f"activations/{self.name}/{'ptr' if self.sparse else 'value'}"
        spec = run.store.spec(self._array)
        dims = ("width",) if self.sparse else spec.dims[1:]
        self._shape: tuple[int, ...] = (int(spec.attrs["width"]),) if self.sparse else spec.shape
        odd = [d for d in dims[:-1] if d != "layer" and d not in _PLACES]
        if odd or len(dims) > 3:
            raise UserError(f"{who}: {self.name} has the dimension '{(odd or dims)[0]}'; layer, step or position and one more can be read")
        self.axis = next((d for d in dims[:-1] if d in _PLACES), "step")
        coords = {d: list(spec.attrs.get("coords", {}).get(d, range(n))) for d, n in zip(dims, self._shape, strict=True)}
        self._stored_places = len(coords.get(self.axis, [None]))
        stored = _parsed(self.name)
        fixed = [None if stored is None else stored.layer]
        self.layers, self._layer_at = self._chosen("layer", coords.get("layer", fixed), who)
        self.places, self._place_at = self._chosen(self.axis, coords.get(self.axis, [None]), who)
        self.width = self._shape[-1]
        self._take_cells(edited, who)

    def _chosen(self, axis: str, labels: list[Any], who: str) -> tuple[list[Any], np.ndarray]:
        """Return the labels that the site asks for, and where they are stored."""
        wanted = None
        if self.site is not None and str(self.site) != self.name:
            wanted = ([self.site.layer] if self.site.layer is not None else None) if axis == "layer" else self.site.index
        if wanted is None or labels == [None]:
            return labels, np.arange(len(labels))
        missing = [w for w in wanted if w not in labels]
        if missing:
            raise UserError(f"{who}: {axis} {missing[0]} of {self.name} was not captured; there are {', '.join(map(str, labels))}")
        return list(wanted), np.array([labels.index(w) for w in wanted])

    def _take_cells(self, edited: bool, who: str) -> None:
        cells, slots = self.run.cells, self.run.slots
        mine = ((cells["condition"] != BASELINE).to_numpy() == edited) | (not (cells["condition"] == BASELINE).any())
        mine &= ~control_rows(cells["condition"])
        mine &= np.isin(slots, self.run.store.read_slots(self._array))
        if not mine.any():
            raise UserError(f"{who}: {self.run.path} has no {'edited' if edited else 'unedited'} cells with {self.name}")
        self.frame, self.slots = cells[mine].reset_index(drop=True), slots[mine]

    @property
    def shape(self) -> tuple[int, int]:
        """Return (layers, places)."""
        return len(self.layers), len(self.places)

    def facts(self) -> dict[str, Any]:
        """Return what figures say of the places: the fields of ``place_figures.Places``."""
        return {"site": str(self.site or self.name), "axis": self.axis, "layers": list(self.layers), "places": list(self.places)}

    @property
    def bytes_per_cell(self) -> int:
        """Return the bytes of one cell's wanted states, in float32."""
        return 4 * self.width * len(self.layers) * len(self.places)

    def read(self, cells: Sequence[int] | np.ndarray, flat: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
        """Return states as float32: chosen (layer, place) pairs × cells × width, NaN where a prompt has no such position.

        Parameters
        ----------
        cells: rows of ``frame``
        flat: numbers of the pairs, layer by layer; None for all
        """
        cells = np.asarray(cells, np.int64)
        pairs = np.arange(self.shape[0] * self.shape[1]) if flat is None else np.asarray(flat, np.int64)
        chosen = self._layer_at[pairs // self.shape[1]] * self._stored_places + self._place_at[pairs % self.shape[1]]
        out = np.empty((len(pairs), len(cells), self.width), np.float32)
        slots = self.slots[cells]
        order = np.argsort(slots, kind="stable")
        unit, row = np.divmod(slots[order], self.run.store.unit_cells)
        bounds = [*np.flatnonzero(np.r_[True, unit[1:] != unit[:-1]]), len(unit)] if len(unit) else [0]
        for a, b in itertools.pairwise(bounds):
            self._read_unit(int(unit[a]), row[a:b], order[a:b], chosen, out)
        return out

    def _read_unit(self, unit: int, rows: np.ndarray, into: np.ndarray, chosen: np.ndarray, out: np.ndarray) -> None:
        store, count = self.run.store, int(np.prod(self._shape[:-1], dtype=np.int64))
        if self.sparse:
            ptr, index, value = store.codes_of(f"activations/{self.name}", unit)
            out[:, into] = to_dense(ptr[rows], index, value, self.width)
            return
        size = max(_PIECE // max(4 * count * self.width, 1), 1)
        for start in range(0, len(rows), size):
            mine = rows[start : start + size]
            part = np.empty((len(mine), *self._shape), np.float32)
            store.read_into(self._array, unit, mine, part, np.arange(len(mine)))
            out[:, into[start : start + size]] = part.reshape(len(mine), count, self.width)[:, chosen].transpose(1, 0, 2)


def _parsed(text: str) -> Site | None:
    try:
        return parse_site(text)
    except UserError:
        return None
