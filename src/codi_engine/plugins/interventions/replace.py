"""Interventions that put another prompt's value in place: patch (the pair's partner) and resample (another example)."""

from __future__ import annotations

from typing import Literal

import torch

from codi_engine.core.plugin import Intervention, Options, Rows


class PatchOptions(Options):
    """No options beyond the address; ``direction`` says which prompt is run and which one is the source."""


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

    ``self_donor`` takes the example itself: an identity, for checks.
    """

    donors: Literal["shared", "per_place"] = "shared"
    self_donor: bool = False


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
