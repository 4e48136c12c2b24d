"""Conformance of sae_formats."""

from __future__ import annotations

from codi_engine.testing.suite import Suite


class SaeFormatSuite(Suite):
    """Conformance of a plugin of kind sae_format."""

    kind = "sae_format"
