"""What can go wrong with a run on disk."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

#: what mends a damaged run, to be filled with its directory
REPAIR = "`codi-engine repair {}`"


class StoreError(Exception):
    """Data on disk are missing, damaged, foreign, or cannot be written; one or two lines that name the file."""


class IdentityMismatch(StoreError):
    """The directory holds a run of another experiment. ``differences``: ``dotted.key: old → new``."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__("; ".join(differences))
        self.differences = list(differences)


def refused(path: Path, error: OSError) -> StoreError:
    """Return what an operating-system error means for the run at ``path``, in one line."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"{path}: the disk is full; what is committed stays: free space and repeat the command")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return StoreError(f"{path}: cannot be written ({error.strerror}); give another output directory")
    return StoreError(f"{path}: {error.strerror or error}")
