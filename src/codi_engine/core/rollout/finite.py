"""Which rows of a batch are numbers: one reduction over what a batch produced, read back once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from codi_engine.core.sites import Phase


def all_finite(values: torch.Tensor) -> torch.Tensor:
    """Return … for … × n values: True where all n are finite. A NaN is both largest and smallest; half the time of looking at each value."""
    return torch.isfinite(values.amax(-1)) & torch.isfinite(values.amin(-1))


def broken_cells(
    logits: Sequence[torch.Tensor],
    captures: Mapping[tuple[str, int | None, Phase], torch.Tensor],
    wanted: Mapping[tuple[str, Phase], tuple[tuple[int | None, ...], tuple[int, ...]]],
    lengths: np.ndarray,
    latents: np.ndarray,
) -> np.ndarray:
    """Return which cells have logits or captured values that are not finite.

    A state that is not finite spoils every later one of its row, so that the logits tell of all states before them.

    Parameters
    ----------
    logits: cells × vocabulary each; those without rows were not asked for
    captures: cells × places × width; places that a cell does not reach are NaN and no fault
    wanted: (component, phase) → (layers, places) of the captures
    lengths, latents: tokens of each cell's prompt, and latents that it consumes
    """
    cells = len(lengths)
    bad = [~all_finite(one) for one in logits if len(one) == cells and one.ndim == 2 and one.shape[1]]
    there: dict[tuple[Phase, tuple[int, ...]], torch.Tensor] = {}
    for (component, _, phase), values in captures.items():
        places = wanted[component, phase][1]
        if (phase, places) not in there:
            there[phase, places] = torch.from_numpy(_reached(phase, places, lengths, latents)).to(values.device)
        bad.append((~all_finite(values) & there[phase, places]).any(-1))
    if not bad:
        return np.zeros(cells, bool)
    return torch.stack(bad).any(0).cpu().numpy()


def _reached(phase: Phase, places: Sequence[int], lengths: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """Return cells × places: True where a cell has a token there."""
    at = np.asarray(places)[None]
    if phase == "prompt":
        return at >= -lengths[:, None]
    if phase == "latent":
        return at < latents[:, None]
    return np.ones((len(lengths), len(places)), bool)


__all__ = ["all_finite", "broken_cells"]
