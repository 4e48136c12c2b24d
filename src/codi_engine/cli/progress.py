"""Progress of a command, on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from codi_engine.core.progress import Progress
from codi_engine.core.watching.showing import TerminalProgress, ending


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Yield the progress of a command, and end its bar whatever happens."""
    with ending(Progress() if quiet else TerminalProgress()) as shown:
        yield shown
