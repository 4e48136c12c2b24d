"""Conformance of analysiss."""

from __future__ import annotations

from codi_engine.testing.suite import Suite


class AnalysisSuite(Suite):
    """Conformance of a plugin of kind analysis."""

    kind = "analysis"
