"""Conformance of models."""

from __future__ import annotations

from codi_engine.testing.suite import Suite


class ModelSuite(Suite):
    """Conformance of a plugin of kind model."""

    kind = "model"
