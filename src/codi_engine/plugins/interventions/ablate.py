"""Ablations that need no other example: zero, mean, noise."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field

from codi_engine.core.plugin import Intervention, Options, Rows


class ZeroOptions(Options):
    """No options."""


class Zero(Intervention[ZeroOptions]):
    """Set the site to zero (zero ablation)."""

    name = "zero"
    Options = ZeroOptions

    def apply(self, rows: Rows) -> torch.Tensor:
        return torch.zeros_like(rows.values)


class MeanOptions(Options):
    """``over``: the mean of each step (or position) apart, or one mean over all of them."""

    over: Literal["step", "all"] = "step"


class Mean(Intervention[MeanOptions]):
    """Set the site to its mean over the data set (mean ablation; Wang et al. 2022, 2211.00593).

    The mean runs over the whole data set before ``limit``, so that a pilot and the full run use the same one.
    """

    name = "mean"
    Options = MeanOptions

    def __init__(self, options: MeanOptions) -> None:
        super().__init__(options)
        self.source = "mean" if options.over == "step" else "mean_over_steps"

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.source is not None
        return rows.source.to(rows.values.dtype)


class NoiseOptions(Options):
    """``sigma``: standard deviation in units of the site's own scale; 0 changes nothing."""

    sigma: float = Field(default=1.0, ge=0.0)


class Noise(Intervention[NoiseOptions]):
    """Add Gaussian noise, σ relative to the site's own scale.

    The scale is the root mean square, over data set and width, of the deviation from the data set's mean at the same
    layer and step. The draws belong to the cell: they do not depend on batch, order or resume.
    """

    name = "noise"
    Options = NoiseOptions
    needs_scale = True
    random = True

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.scale is not None
        if self.options.sigma == 0:
            return rows.values
        noise: torch.Tensor = self.options.sigma * rows.scale[:, None].to(rows.values.dtype) * rows.draws()
        return rows.values + noise

    def identity(self) -> bool:
        return self.options.sigma == 0

    def neutral(self) -> Noise:
        return Noise(self.options.model_copy(update={"sigma": 0.0}))
