"""Interventions on the latent loop itself."""

from __future__ import annotations

import torch

from codi_engine.core.plugin import Intervention, Options, Rows


class EarlyDecodeOptions(Options):
    """No options; the step says where the answer begins."""


class EarlyDecode(Intervention[EarlyDecodeOptions]):
    """Answer early: at step k the latent loop ends and the answer begins, so that k latents have been consumed.

    ``step: 0`` answers right after ``bot``; ``step: all`` shows how the answer comes about, latent by latent.
    """

    name = "early_decode"
    Options = EarlyDecodeOptions
    ends_latents = True

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values
