"""The built-ins, registered through the same hooks as anyone's."""

from __future__ import annotations

from typing import Any

from codi_engine.core.hookspecs import hookimpl
from codi_engine.core.plugin import Analysis, Dataset, Intervention, Metric, Model, SaeFormat, Tracker


@hookimpl
def models() -> list[type[Model[Any]]]:
    from codi_engine.plugins.models import MODELS

    return MODELS


@hookimpl
def datasets() -> list[type[Dataset[Any]]]:
    from codi_engine.plugins.datasets import DATASETS

    return DATASETS


@hookimpl
def interventions() -> list[type[Intervention[Any]]]:
    from codi_engine.plugins.interventions import INTERVENTIONS

    return INTERVENTIONS


@hookimpl
def metrics() -> list[type[Metric[Any]]]:
    from codi_engine.plugins.metrics import METRICS

    return METRICS


@hookimpl
def analyses() -> list[type[Analysis[Any]]]:
    from codi_engine.plugins.analyses import ANALYSES

    return ANALYSES


@hookimpl
def trackers() -> list[type[Tracker[Any]]]:
    from codi_engine.plugins.trackers import TRACKERS

    return TRACKERS


@hookimpl
def sae_formats() -> list[type[SaeFormat]]:
    from codi_engine.plugins.saes import SAE_FORMATS

    return SAE_FORMATS
