"""``subspace``: interchange of the part of a state that lies in a subspace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field, model_validator

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Intervention, Options, Rows

if TYPE_CHECKING:
    from codi_engine.core.rollout.sources import Sources
    from codi_engine.core.saestore import SaeStore
    from codi_engine.core.sites import Site
    from codi_engine_subspace.bases import Bases


class SubspaceOptions(Options):
    """``path``: the file that ``train_subspace`` wrote. ``random``: a seed: take random subspaces of ``dim`` dimensions instead.

    ``seen``: also edit examples that the subspaces were trained on; otherwise they are refused.
    """

    path: str | None = None
    random: int | None = Field(default=None, ge=0)
    dim: int | None = Field(default=None, ge=1)
    seen: bool = False

    @model_validator(mode="after")
    def _one_basis(self) -> SubspaceOptions:
        if (self.path is None) == (self.random is None) or (self.random is None) != (self.dim is None):
            raise ValueError("give path: FILE, or random: SEED with dim: N")
        return self


class Subspace(Intervention[SubspaceOptions]):
    """Interchange inside a subspace: h + R·Rᵀ(source − h), the source being the pair's other prompt (DAS, Geiger et al. 2303.02536).

    What is orthogonal to R stays as it was. The same at ``random`` subspaces of the same dimension is the control.
    """

    name = "subspace"
    Options = SubspaceOptions
    source = "partner"

    def __init__(self, options: SubspaceOptions) -> None:
        super().__init__(options)
        self._bases: Bases | None = None
        self._digest = ""
        self._known: dict[tuple[str, int], torch.Tensor] = {}

    def check(self, saes: SaeStore, site: Site, width: int) -> None:
        """Read the file before anything is computed, and see that it fits the site."""
        if self.options.dim is not None and self.options.dim > width:
            raise UserError(f"{self.name}: dim: {self.options.dim} is more than the site's width, {width}")
        if self.options.path is not None:
            for name, basis in self._file().bases.items():
                if basis.shape[0] != width:
                    raise UserError(f"{self.name}: path: '{self.options.path}': {name} has width {basis.shape[0]}; the site has {width}")

    def prepare(self, sources: Sources) -> None:
        self._digest = sources.model_digest

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.source is not None
        basis = self._basis(rows)
        self._refuse_seen(rows)
        gap = rows.source.float() - rows.values.float()
        # row by row: a product over many rows at once may sum in another order, and a row's bits must not depend on its neighbours
        moved = torch.stack([basis @ (basis.T @ row) for row in gap])
        return (rows.values.float() + moved).to(rows.values.dtype)

    def _basis(self, rows: Rows) -> torch.Tensor:
        from codi_engine_subspace.bases import place_name, random_basis

        if rows.phase != "latent":
            raise UserError(f"{self.name}: subspaces belong to latent steps; got {rows.site}@{rows.phase}")
        place = place_name(rows.site, rows.layer, rows.place)
        key = (place, rows.values.shape[1])
        if key not in self._known:
            if self.options.random is not None:
                assert self.options.dim is not None
                found = random_basis(rows.values.shape[1], self.options.dim, self.options.random, place)
            else:
                assert self.options.path is not None
                found = self._file().of(place, self.options.path)
            self._known[key] = torch.from_numpy(found)
        return self._known[key].to(rows.values.device)

    def _file(self) -> Bases:
        from codi_engine_subspace import bases

        assert self.options.path is not None
        if self._bases is None:
            self._bases = bases.read(self.options.path)
        if self._digest and self._bases.model_digest and self._bases.model_digest != self._digest:
            raise UserError(
                f"{self.name}: path: '{self.options.path}' was trained on another model ({self._bases.model_digest[:12]}; this is {self._digest[:12]})"
            )
        return self._bases

    def _refuse_seen(self, rows: Rows) -> None:
        if self.options.path is None or self.options.seen or "example" not in rows.labels:
            return
        seen = set(self._file().trained_on) & {str(e) for e in rows.labels["example"]}
        if seen:
            raise UserError(f"{self.name}: '{sorted(seen)[0]}' is among the examples that the subspaces were trained on; leave those out, or set seen: true")
