"""What can go wrong with a run on disk."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from codi_engine.store.shown import named


def repairing(run: Path) -> str:
    """Return the command that mends a damaged run, as it can be typed."""
    return f"`codi-engine repair {shlex.quote(str(run))}`"


class StoreError(Exception):
    """Data on disk are missing, damaged, foreign, or cannot be written; one or two lines that name the file."""

    def __init__(self, message: object = "") -> None:
        super().__init__(named(str(message)))


class IdentityMismatch(StoreError):
    """The directory holds a run of another experiment. ``differences``: ``dotted.key: old → new``."""

    def __init__(self, differences: Sequence[str]) -> None:
        super().__init__("; ".join(differences))
        self.differences = list(differences)


class Locked(StoreError):
    """Another process holds a lock. ``owner``: its name, as far as it is known."""

    def __init__(self, message: str, owner: str) -> None:
        super().__init__(message)
        self.owner = owner


#: what the system's errors mean, and what the user can do
_MEANINGS = {
    errno.ENOSPC: ("the disk is full", "free space and repeat the command"),
    errno.EMFILE: ("too many files are open", "raise the limit (ulimit -n) and repeat the command"),
    errno.EFBIG: ("a file would become larger than is allowed (ulimit -f, or the file system's own limit)", "raise the limit and repeat the command"),
    errno.EIO: ("the disk fails (Input/output error)", "look after the disk, then repeat the command"),
    errno.ENOMEM: ("memory is used up", "free some and repeat the command"),
    errno.EROFS: ("cannot be written (Read-only file system)", "make it writable and repeat the command, or give another output directory"),
}
_MEANINGS |= {errno.EDQUOT: _MEANINGS[errno.ENOSPC], errno.ENFILE: _MEANINGS[errno.EMFILE]}
_NO_FILES = ("the disk can hold no more files (its inodes are used up)", "remove files and repeat the command")


def meaning(error: OSError, path: Path | None = None) -> tuple[str, str] | None:
    """Return what an operating-system error means, and the remedy; None for those that are no state of the machine."""
    if error.errno == errno.ENOSPC and path is not None and _without_inodes(path):
        return _NO_FILES
    if error.errno is None and path is not None and is_full(path):  # libraries that write by themselves say no number
        return _MEANINGS[errno.ENOSPC]
    return _MEANINGS.get(error.errno or 0)


def is_full(path: Path) -> bool:
    """True where the file system of a path, or of what there is above it, has next to no room."""
    found = _statistics(path)
    return found is not None and found.f_blocks > 0 and found.f_bavail * found.f_frsize < 1 << 16


def refused(path: Path, error: OSError) -> StoreError:
    """Return what an operating-system error means for the run at ``path``, in one line."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ESTALE) and not path.is_dir():
        return vanished(path)
    known = meaning(error, path)
    if known is not None:
        return StoreError(f"{path}: {known[0]}; what is committed stays: {known[1]}")
    if error.errno in (errno.EACCES, errno.EPERM):
        return StoreError(f"{path}: cannot be written ({error.strerror}); give another output directory")
    return StoreError(f"{path}: {error.strerror or error}")


def vanished(path: Path) -> StoreError:
    """Return the error of a run that is no longer where it was begun to be written."""
    return StoreError(
        f"{path}: has vanished, was moved, or was replaced while it was being written; nothing more is written.\n"
        "Bring it back and repeat the command to go on; without it the command begins anew."
    )


def unwritten(path: Path, error: OSError) -> str:
    """Say in one line why a file or folder that is no part of a run's data could not be written."""
    known = meaning(error, path)
    return f"{path}: cannot be written: {error.strerror or error}" if known is None else f"{path}: {known[0]}; {known[1]}"


def _without_inodes(path: Path) -> bool:
    """True where the file system has room but cannot make another file."""
    found = _statistics(path)
    return found is not None and found.f_files > 0 and found.f_favail == 0 and found.f_bavail > 0


def _statistics(path: Path) -> os.statvfs_result | None:
    for place in (path, *path.parents):
        try:
            return os.statvfs(place)
        except (OSError, AttributeError):  # not there yet, or a system without the call
            continue
    return None
