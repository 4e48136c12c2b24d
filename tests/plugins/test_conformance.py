"""Every built-in goes through the suites that a third party's plugins go through."""

from __future__ import annotations

from codi_engine.plugins.interventions.steer import Steer
from codi_engine.plugins.metrics.logits import KL
from codi_engine.testing import InterventionSuite, MetricSuite


class TestSteer(InterventionSuite):
    plugin = Steer
    options = ({"difference": "correct", "mode": "project_out"}, {"difference": "clean", "mode": "norm_matched"}, {"difference": "clean", "alpha": 0.0})
    data = {"plugin": "demo-pairs", "limit": 3}
    address = {"on": "clean"}


class TestKL(MetricSuite):
    plugin = KL
    unedited = 0.0
