"""Whether the file system of a run has room: looked at now and then while units are committed, and before every unit."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from codi_engine.core.errors import Paused
from codi_engine.core.planning.costs import size_text
from codi_engine.core.plugin import Event
from codi_engine.store.remote import remote_at

#: share of a file system that is in use when it is worth a word
FULL = 0.8
#: seconds between two looks
EVERY = 5.0
#: what is kept free where the experiment does not say it: bytes, and at most this share of the file system
KEEP, SHARE = 1e9, 0.05
#: bytes of a block where the system does not say
_BLOCK = 4096


def free_bytes(path: Path) -> int | None:
    """Return what is free on the file system that a path lies on, or will lie on; None where nobody knows, and for an object store."""
    if remote_at(path) is not None:
        return None
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError:
        return None


def free_text(path: Path, needed: int) -> str:
    """Say beside an estimate what is free: ``; 57 GB are free there``; empty where nobody knows."""
    free = free_bytes(path)
    return "" if free is None else f"; {size_text(free)} are free there{', which is too little' if free < needed else ''}"


class Room:
    """Stops a run between two units before its file system is full.

    Parameters
    ----------
    path: the run
    keep: bytes that stay free; None: 1 GB, and at most 5 % of the file system; 0: everything may be filled
    """

    def __init__(self, path: Path, keep: float | None) -> None:
        self.path, self._keep = path, keep
        self._largest = 0

    def wrote(self, files: Mapping[str, Mapping[str, Any]]) -> None:
        """Take in a committed unit's files: the next unit may need as much."""
        if remote_at(self.path) is not None:
            return  # nothing of it lies on this disk
        self._largest = max(self._largest, sum(-(-int(f["size"]) // _BLOCK) * _BLOCK for f in files.values()))

    def check(self, done: int, of: int) -> None:
        """Stop here when the next unit would leave less free than is to be kept; ``done`` of ``of`` units are committed.

        Raises
        ------
        Paused: there is no room
        """
        if self._keep == 0:
            return
        try:
            usage = shutil.disk_usage(self.path)
        except OSError:
            return  # whoever writes will say so
        keep = min(KEEP, SHARE * usage.total) if self._keep is None else self._keep
        if usage.free - self._largest >= keep:
            return
        takes = f" and a unit takes up to {size_text(self._largest)}" if usage.free >= keep else ""
        raise Paused(
            f"only {size_text(usage.free)} are free on the disk of {self.path}{takes} (keep_free {size_text(keep)}): "
            f"paused after unit {done} of {of}; free space and repeat the command"
        )


class DiskWatch:
    """Says once when the file system is nearly full, and once when what remains to be written does not fit.

    Parameters
    ----------
    path: the run, or any directory of its file system
    remaining: bytes that are still to be written, as far as they are estimated
    """

    def __init__(self, path: Path, remaining: Callable[[], int] = lambda: 0) -> None:
        self.path, self.remaining = path, remaining
        self._said: set[str] = set()
        self._looked = -EVERY

    def look(self) -> list[Event]:
        """Return what is new; cheap, and nothing at all most of the time."""
        at = time.monotonic()
        if at - self._looked < EVERY or len(self._said) == 2:
            return []
        self._looked = at
        try:
            usage = shutil.disk_usage(self.path)
        except OSError:
            return []
        needed = self.remaining() if remote_at(self.path) is None else 0
        share = usage.used / max(usage.used + usage.free, 1)  # as df says it: what only root may use is not counted
        facts = {"path": str(self.path), "free_bytes": usage.free, "used_share": round(share, 4), "remaining_bytes": needed}
        found = []
        if share > FULL and self._new("full"):
            found.append(Event("disk", f"the disk of {self.path} is {share:.0%} full; {usage.free / 1e9:.1f} GB are free", facts))
        if usage.free < needed and self._new("room"):
            text = f"the disk of {self.path} has {usage.free / 1e9:.2f} GB free; about {needed / 1e9:.2f} GB of this run are still to be written"
            found.append(Event("disk", text, facts))
        return found

    def _new(self, what: str) -> bool:
        new = what not in self._said
        self._said.add(what)
        return new
