"""What can go wrong with a run on disk."""

from __future__ import annotations

from collections.abc import Sequence


class StoreError(Exception):
    """Data on disk are missing, damaged, foreign, or cannot be written; one or two lines."""


class IdentityMismatch(StoreError):
    """The directory holds a run of another experiment. ``differences``: ``dotted.key: old → new``."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__("; ".join(differences))
        self.differences = list(differences)
