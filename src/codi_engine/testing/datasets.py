"""Conformance of datasets."""

from __future__ import annotations

from codi_engine.testing.suite import Suite


class DatasetSuite(Suite):
    """Conformance of a plugin of kind dataset."""

    kind = "dataset"
