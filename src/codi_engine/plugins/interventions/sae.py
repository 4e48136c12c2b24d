"""Editing features of a sparse autoencoder."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import model_validator

from codi_engine.core.errors import UserError
from codi_engine.core.planning.features import is_feature, parse_feature
from codi_engine.core.plugin import Intervention, Options, Rows
from codi_engine.core.rollout.sources import Sources
from codi_engine.core.running.codes import checked
from codi_engine.core.sae import SAE
from codi_engine.core.saestore import SaeStore
from codi_engine.core.sites import Site


class SaeOptions(Options):
    """``sae``: the autoencoder's file, directory or Hub folder, with ``{layer}`` filled in; ``demo`` is the packaged one.

    ``feature``: a number, L26-1069, or ``{from: features.csv}`` to sweep a table. ``value``: a number, a column of that table, or
    ``{run: DIR, where: {field: value}}`` for the mean code over a run's unedited cells. ``mode``: ``set`` the code to the value,
    ``add`` it, ``scale`` by it, or ``reconstruct`` (the control: no feature is edited, the state is decoded from its codes).
    ``error``: ``keep`` what the autoencoder does not explain, h + (f′ − f)·W_dec, or ``drop`` it.
    """

    sae: str
    feature: int | str | None = None
    value: float | str | dict[str, Any] | None = None
    mode: Literal["set", "add", "scale", "reconstruct"] = "set"
    error: Literal["keep", "drop"] = "keep"

    @model_validator(mode="after")
    def _complete(self) -> SaeOptions:
        if self.mode == "reconstruct":
            if self.feature is not None or self.value is not None:
                raise ValueError("mode: reconstruct edits no feature; remove feature and value")
            return self
        if self.feature is None or self.value is None:
            raise ValueError(f"mode: {self.mode} needs feature and value")
        if isinstance(self.value, (str, dict)):
            raise ValueError(f"value: {self.value!r} is one of a table's; write feature: {{from: features.csv}}, or a number")
        if isinstance(self.value, float) and not math.isfinite(self.value):
            raise ValueError(f"value: {self.value} is not a finite number")
        if isinstance(self.feature, int) and self.feature < 0:
            raise ValueError(f"feature: {self.feature} is no feature; they count from 0")
        if isinstance(self.feature, str) and not is_feature(self.feature):
            raise ValueError(f"feature: '{self.feature}' is no feature; write a number or L26-1069")
        return self


class Sae(Intervention[SaeOptions]):
    """Set, add to or scale one feature of a sparse autoencoder (Templeton et al. 2024), keeping what it does not explain.

    With ``tokens: last`` the edit is made at the prompt's last token and every generated one, with ``all`` at every token.
    """

    name = "sae"
    Options = SaeOptions

    def __init__(self, options: SaeOptions) -> None:
        super().__init__(options)
        self._store: SaeStore | None = None
        self._named = parse_feature(options.feature, "sae") if isinstance(options.feature, str) else None

    def prepare(self, sources: Sources) -> None:
        self._store = sources.saes

    def check(self, saes: SaeStore, site: Site, width: int) -> None:
        self._sae(saes, site.component, site.layer, width)

    def _sae(self, saes: SaeStore, component: str, layer: int | None, width: int) -> SAE:
        """Return the layer's autoencoder after checking that it has the feature."""
        if self._named is not None and self._named.layer != layer:
            raise UserError(f"sae: feature {self._named.label} does not belong to layer {layer}")
        sae = checked(saes, self.options.sae, component, layer, width, "sae")
        if self._index >= sae.features:
            name = self._named.label if self._named is not None else self._index
            raise UserError(f"sae: feature {name}: '{self.options.sae}' has features 0 to {sae.features - 1} at layer {layer}; choose among them")
        return sae

    @property
    def _index(self) -> int:
        return self._named.index if self._named is not None else int(self.options.feature or 0)

    def apply(self, rows: Rows) -> torch.Tensor:
        options, h, index = self.options, rows.values, self._index
        assert self._store is not None
        sae = self._sae(self._store, rows.site, rows.layer, h.shape[1])
        if options.mode == "reconstruct":
            return sae.reconstruct(h)
        if options.error == "drop":
            codes = sae.encode(h)
            codes[:, index] = self._edited(codes[:, index])
            return sae.decode(codes, h)
        before = sae.encode(h, (index,))
        return sae.add(h, (index,), self._edited(before) - before)

    def _edited(self, codes: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.options.value, (int, float))
        value = float(self.options.value)
        if self.options.mode == "set":
            return torch.full_like(codes, value)
        return codes + value if self.options.mode == "add" else codes * value

    def identity(self) -> bool:
        nothing = {"add": 0.0, "scale": 1.0}.get(self.options.mode)
        return self.options.error == "keep" and self.options.value == nothing and nothing is not None

    def may_rest(self) -> bool:
        """A feature that does not fire is neither scaled nor set to zero."""
        return self.options.error == "keep" and (self.options.mode == "scale" or (self.options.mode == "set" and self.options.value == 0))

    def neutral(self) -> Sae:
        feature = 0 if self.options.feature is None else self.options.feature
        return Sae(SaeOptions(sae=self.options.sae, feature=feature, value=1.0, mode="scale"))
