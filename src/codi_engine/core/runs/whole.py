"""Files for the user that are either whole or not there."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from codi_engine.core.errors import UserError
from codi_engine.store.errors import is_full, unwritten


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
        _remove_dead(path)
        yield part
        _sync(part)
        os.replace(part, path)
    except OSError as error:
        raise UserError(unwritten(path, error)) from None
    except RuntimeError as error:  # torch's, when it cannot write
        if not is_full(path):
            raise
        raise UserError(unwritten(path, OSError(errno.ENOSPC, str(error)))) from None
    finally:
        with suppress(OSError):  # what is said of the failure matters more; the next writer removes it
            part.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _remove_dead(path: Path) -> None:
    """Remove what writers of the same file left that were killed."""
    for leftover in path.parent.glob(f".{glob.escape(path.stem)}.*.partial{glob.escape(path.suffix)}"):
        number = leftover.name.removesuffix(f".partial{path.suffix}").rpartition(".")[2]
        if number.isdigit() and not _alive(int(number)):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # asking would end it there
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True
