"""Conformance of trackers."""

from __future__ import annotations

from codi_engine.testing.suite import Suite


class TrackerSuite(Suite):
    """Conformance of a plugin of kind tracker."""

    kind = "tracker"
