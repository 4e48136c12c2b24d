"""Conformance suites for authors of plugins, tiny random models, and small finished runs; ``docs/testing.md`` is the guide.

>>> from codi_engine.testing import InterventionSuite             # doctest: +SKIP
>>> class TestScale(InterventionSuite):                           # doctest: +SKIP
...     plugin = Scale
...     options = ({"factor": 0.5}, {"factor": 1.0})
"""

from __future__ import annotations

try:
    import hypothesis as _hypothesis  # noqa: F401 - the suites need both, and only they do
    import pytest as _pytest  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"codi_engine.testing needs pytest and hypothesis: pip install pytest hypothesis ({error.name} is missing)", name=error.name
    ) from None

from codi_engine.testing.analyses import AnalysisSuite
from codi_engine.testing.coconut import tiny_coconut
from codi_engine.testing.datasets import DatasetSuite
from codi_engine.testing.interventions import InterventionSuite
from codi_engine.testing.metrics import MetricSuite
from codi_engine.testing.models import ModelSuite
from codi_engine.testing.runs import tiny_run
from codi_engine.testing.saes import SaeFormatSuite
from codi_engine.testing.stores import StoreSuite
from codi_engine.testing.tiny import tiny_causal_lm, tiny_codi
from codi_engine.testing.trackers import TrackerSuite

__all__ = [
    "AnalysisSuite", "DatasetSuite", "InterventionSuite", "MetricSuite", "ModelSuite", "SaeFormatSuite", "StoreSuite", "TrackerSuite",
    "tiny_causal_lm", "tiny_coconut", "tiny_codi", "tiny_run",
]  # fmt: skip
