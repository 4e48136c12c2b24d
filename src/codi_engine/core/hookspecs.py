"""The hook specification: what a plugin package may contribute, and which moments of a run it is told of.

A package declares ``[project.entry-points.codi_engine]`` with a module whose functions are marked ``@hookimpl``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from codi_engine.core.plugin import Analysis, AnalysisResult, Dataset, Event, Intervention, Metric, Model, SaeFormat, Tracker

PROJECT = "codi_engine"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def models() -> list[type[Model[Any]]]:  # type: ignore[empty-body]
    """Return model classes."""


@hookspec
def datasets() -> list[type[Dataset[Any]]]:  # type: ignore[empty-body]
    """Return data-set classes."""


@hookspec
def interventions() -> list[type[Intervention[Any]]]:  # type: ignore[empty-body]
    """Return intervention classes."""


@hookspec
def metrics() -> list[type[Metric[Any]]]:  # type: ignore[empty-body]
    """Return metric classes."""


@hookspec
def analyses() -> list[type[Analysis[Any]]]:  # type: ignore[empty-body]
    """Return analysis classes."""


@hookspec
def trackers() -> list[type[Tracker[Any]]]:  # type: ignore[empty-body]
    """Return tracker classes."""


@hookspec
def sae_formats() -> list[type[SaeFormat]]:  # type: ignore[empty-body]
    """Return classes that read a file format of sparse autoencoders."""


@hookspec
def run_planned(path: Path, experiment: Mapping[str, Any], cells: int, units: int) -> None:
    """Called when the plan stands, before anything is computed."""


@hookspec
def run_started(path: Path) -> None:
    """Called when the model is loaded and the first unit begins."""


@hookspec
def unit_committed(path: Path, unit: int, units: int, cells: int) -> None:
    """Called when a unit is durable on disk."""


@hookspec
def analysis_finished(path: Path, name: str, result: AnalysisResult) -> None:
    """Called when an analysis has written its tables and figures."""


@hookspec
def run_event(path: Path, event: Event) -> None:
    """Called when something happens that somebody may want to know at once: a warning, a pause, a failure, a full disk."""


@hookspec
def run_finished(path: Path) -> None:
    """Called when everything is committed and analysed."""
