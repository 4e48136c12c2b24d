"""Trajectory geometry of latent states, as an analysis of codi-engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codi_engine import hookimpl

if TYPE_CHECKING:
    from codi_engine.core.plugin import Analysis

codi_engine_spec = 1


@hookimpl
def analyses() -> list[type[Analysis[Any]]]:
    from codi_engine_geometry.geometry import Geometry

    return [Geometry]
