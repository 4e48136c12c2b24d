"""Runs stay within their directory: links that lead out of one are not written through."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import COPIES, DATA, OUTBOX, TEXTS


def check_contained(root: Path, below: Path | None = None) -> None:
    """Refuse a run in which a file or folder is a link that leads out of it. The run directory itself may be a link.

    Parameters
    ----------
    below: look into this folder of the run only (default: what the store writes; trackers keep folders of their own beside it)

    Raises
    ------
    StoreError: there is one; nothing may be written, since it would be written somewhere else
    """
    real = os.path.realpath(root)
    links = [*_above(root, below), *_links(below)] if below is not None else [*_own(root)]
    for link in links:
        target = os.path.realpath(link)
        if not Path(target).is_relative_to(real):
            raise StoreError(f"{link}: is a link to {target}, which is outside the run; put what it means in its place, nothing is written through it")


def _own(root: Path) -> Iterator[str]:
    """Yield the links in the run itself and in the store's folders."""
    yield from (str(place) for place in sorted(root.glob("*")) if place.is_symlink())
    for folder in (DATA, TEXTS, COPIES, OUTBOX):
        yield from _links(root / folder)


def _above(root: Path, below: Path) -> list[str]:
    """Return a folder of the run and those that hold it, as far as they are links."""
    return [str(place) for place in (below, *below.parents) if root in place.parents and place.is_symlink()]


def _links(folder: Path) -> Iterator[str]:
    """Yield the links in a folder and below, none of them followed."""
    pending = [str(folder)]
    while pending:
        try:
            with os.scandir(pending.pop()) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        yield entry.path
                    elif entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
        except (FileNotFoundError, NotADirectoryError):
            continue  # gone meanwhile, or not there yet
