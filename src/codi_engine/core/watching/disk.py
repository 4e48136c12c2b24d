"""Whether the file system of a run has room: looked at now and then while units are committed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from codi_engine.core.plugin import Event

#: share of a file system that is in use when it is worth a word
FULL = 0.8
#: seconds between two looks
EVERY = 5.0


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
        needed = self.remaining()
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
