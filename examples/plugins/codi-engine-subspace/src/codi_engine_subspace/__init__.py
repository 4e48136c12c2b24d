"""Trained subspace interchange (Geiger et al. 2303.02536) at latent steps, as plugins of codi-engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codi_engine import hookimpl

if TYPE_CHECKING:
    from codi_engine.core.plugin import Analysis, Intervention

codi_engine_spec = 1


@hookimpl
def interventions() -> list[type[Intervention[Any]]]:
    from codi_engine_subspace.edit import Subspace

    return [Subspace]


@hookimpl
def analyses() -> list[type[Analysis[Any]]]:
    from codi_engine_subspace.training import TrainSubspace

    return [TrainSubspace]
