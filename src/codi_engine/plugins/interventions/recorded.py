"""Putting in what another run has captured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Intervention, Options, Rows
from codi_engine.core.rollout.sources import Sources
from codi_engine.core.runs.results import BASELINE, Run, open_run
from codi_engine.core.saestore import SaeStore
from codi_engine.core.sites import Site


class RecordedOptions(Options):
    """``run``: the directory of a run of the same model that captured the edited site there (``capture: [resid_post@latent]``).

    ``example``: ``same`` takes the example of the same id, anything else is an id. ``variant`` (clean, corrupted),
    ``condition``, ``where`` (``{step: 2}``): choose the cell where an example has several; unedited cells are taken by default.
    """

    run: str
    example: str = "same"
    variant: str | None = None
    condition: str = BASELINE
    where: dict[str, int | float | str] = Field(default_factory=dict)


class Recorded(Intervention[RecordedOptions]):
    """Patch with the activations that another run recorded, at the same site, layer and step (or position)."""

    name = "recorded"
    Options = RecordedOptions

    def __init__(self, options: RecordedOptions) -> None:
        super().__init__(options)
        self._run: Run | None = None
        self._digest = ""
        self._values: dict[tuple[str, int | None, str], tuple[dict[str, int], list[int], np.ndarray]] = {}

    def files(self) -> list[str]:
        return [self.options.run]

    def check(self, saes: SaeStore, site: Site, width: int) -> None:
        """Open the run and read what it has of the site; a missing run, site or example is named before anything is computed."""
        if site.phase is None:
            return
        index, _, _ = self._recorded(site.component, site.layer, site.phase)
        if self.options.example != "same":
            self._known(self.options.example, index)

    def prepare(self, sources: Sources) -> None:
        self._digest = sources.model_digest

    def apply(self, rows: Rows) -> torch.Tensor:
        index, places, values = self._recorded(rows.site, rows.layer, rows.phase)
        if rows.place not in places:
            raise UserError(f"recorded: {self.options.run} captured {rows.site}@{rows.phase} at {places}, not at {rows.place}")
        wanted = [str(e) if self.options.example == "same" else self.options.example for e in rows.labels["example"]]
        for example in wanted:
            self._known(example, index)
        chosen = values[[index[e] for e in wanted], places.index(rows.place)]
        if np.isnan(chosen).any() or chosen.shape != tuple(rows.values.shape):
            raise UserError(f"recorded: {self.options.run}: no values of width {rows.values.shape[1]} for {rows.site}@{rows.phase}[{rows.place}]")
        return torch.from_numpy(chosen).to(rows.values)

    def _known(self, example: str, index: Mapping[str, int]) -> None:
        if example not in index:
            raise UserError(f"recorded: {self.options.run} has no example '{example}'; {nearest(example, list(index))}")

    def _recorded(self, site: str, layer: int | None, phase: str) -> tuple[dict[str, int], list[int], np.ndarray]:
        """Return example → row, the captured places, and rows × places × width; read once per site and layer."""
        key = (site, layer, phase)
        if key not in self._values:
            address = f"{site if layer is None else f'{site}.{layer}'}@{phase}"
            data = self._opened().activations(address, edited=self.options.condition != BASELINE)
            place = "step" if "step" in data.dims else "position"
            data = data.isel({d: 0 for d in data.dims if d not in (data.dims[0], place, "width")})
            keep = self._chosen(data)
            examples = [str(e) for e in data["example"].values[keep]]
            if len(set(examples)) != len(examples):
                raise UserError(f"recorded: {self.options.run}: several cells of one example; choose with variant, condition or where")
            self._values[key] = ({e: i for i, e in enumerate(examples)}, [int(p) for p in data[place].values], data.values[keep])
        return self._values[key]

    def _opened(self) -> Run:
        if self._run is None:
            try:
                self._run = open_run(self.options.run)
            except UserError as error:
                raise UserError(f"recorded: run: {error}; the run that captured the states comes first") from None
            recorded = self._run.provenance.get("model_digest")
            if self._digest and recorded != self._digest:
                raise UserError(f"recorded: {self.options.run} was computed with another model ({str(recorded)[:12]}; this is {self._digest[:12]})")
        return self._run

    def _chosen(self, data: Any) -> np.ndarray:
        rows = data.sizes[data.dims[0]]
        wanted: Mapping[str, Any] = {"condition": self.options.condition, **self.options.where}
        if self.options.variant is not None:
            wanted = {**wanted, "variant": self.options.variant}
        keep = np.ones(rows, bool)
        for axis, value in wanted.items():
            name = f"edited_{axis}" if f"edited_{axis}" in data.coords else axis
            if name not in data.coords:
                known = [str(c).removeprefix("edited_") for c in data.coords]
                raise UserError(f"recorded: {self.options.run} has no axis '{axis}'; {nearest(axis, known)}")
            keep &= np.array([str(v) == str(value) for v in data[name].values])
        if not keep.any():
            raise UserError(f"recorded: {self.options.run} has no cell with {', '.join(f'{k} {v}' for k, v in wanted.items())}")
        return np.flatnonzero(keep)
