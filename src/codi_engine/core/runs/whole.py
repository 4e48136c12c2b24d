"""Files for the user that are either whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codi_engine.core.errors import UserError


@contextmanager
def whole_file(path: Path, force: bool = False) -> Iterator[Path]:
    """Give a temporary name beside ``path`` to write to; rename it at the end, remove it after a failure.

    Raises
    ------
    UserError: the file exists and ``force`` is not given, or it cannot be written
    """
    if path.exists() and (path.is_dir() or not force):
        raise UserError(f"{path}: {'is a folder; name a file' if path.is_dir() else 'exists; name another one with -o, or overwrite it with --force'}")
    part = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}; choose another place with -o") from None
    finally:
        with suppress(OSError):  # where its folder is none, there is nothing to remove
            part.unlink()
