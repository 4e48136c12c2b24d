"""Conformance of implementations of the run store."""

from __future__ import annotations


class StoreSuite:
    """Conformance of a store."""
