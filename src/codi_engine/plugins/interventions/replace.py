"""Interventions that put another prompt's value in place: patch (the pair's partner) and resample (another example)."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field, model_validator

from codi_engine.core.plugin import Intervention, Options, Rows


class PatchOptions(Options):
    """``direction`` (an address key) says which prompt is run and which one is the source.

    ``chain``: of a set of steps only the first takes the partner's value; each further step takes the patched run's own
    next state. (That is what a latent loop does by itself: the plan says so.)
    """

    chain: bool = False


class Patch(Intervention[PatchOptions]):
    """Activation patching: the value of the pair's other prompt at the same site, layer and step.

    ``direction: denoise`` runs the corrupted prompt and puts clean values in (sufficiency); ``noise`` runs the clean one
    and puts corrupted values in (necessity). Prompt positions count from the prompt's end where lengths differ
    (Heimersheim & Nanda 2024, 2404.15255).
    """

    name = "patch"
    Options = PatchOptions
    source = "partner"

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.source is not None
        return rows.source.to(rows.values.dtype)


class ResampleOptions(Options):
    """``donors``: the same for all steps of an example (``shared``), or drawn anew for each set of steps (``per_place``).

    ``match``: donors by meaning, ``{answer: different, length: same}``: the same or a different ``answer``, ``length`` (prompt
    tokens), ``value`` (the intermediate value that ``carries`` names) or field of the data. ``carries``: which result of the
    written solution the swapped state is taken to carry (the first is 1); with it the metric ``equals_predicted`` knows which
    answer the algebra predicts. ``self_donor`` takes the example itself: an identity, for checks.
    """

    donors: Literal["shared", "per_place"] = "shared"
    match: dict[str, Literal["same", "different"]] = Field(default_factory=dict)
    carries: int | None = Field(default=None, ge=1)
    self_donor: bool = False

    @model_validator(mode="after")
    def _value_is_named(self) -> ResampleOptions:
        if "value" in self.match and self.carries is None:
            raise ValueError("match: value needs carries: which result of the solution is meant")
        return self


class Resample(Intervention[ResampleOptions]):
    """Resample ablation: the value that another example has at the same site, layer and step (Chan et al. 2022).

    Donors are drawn without replacement from the whole data set by a generator keyed with the run's seed and the
    example, so that more donors extend the same sequence. Sweep ``donor: 10`` for ten donors per cell.
    """

    name = "resample"
    Options = ResampleOptions
    source = "donor"

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.source is not None
        return rows.source.to(rows.values.dtype)

    def identity(self) -> bool:
        return self.options.self_donor
