"""Files that users give, opened so that none can hang or flood: regular files only, and never more of them than is asked for."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from codi_engine.core.errors import UserError

_KINDS = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"), (stat.S_ISSOCK, "a socket"), (stat.S_ISDIR, "a directory"))


def opened(path: Path) -> BinaryIO:
    """Open a regular file for reading, links to one too.

    Raises
    ------
    UserError: a pipe, device, socket or directory, or a path that cannot be one
    OSError: it is not there, or may not be read
    """
    try:
        _regular(path, os.stat(path).st_mode)  # before opening: that of a device may do something, that of a pipe waits
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0))
    except ValueError:  # NUL, half a character
        raise UserError(f"{path}: is no path: it holds a character that no file name has") from None
    file = os.fdopen(descriptor, "rb")
    try:
        _regular(path, os.fstat(descriptor).st_mode)  # it may have been exchanged meanwhile
    except UserError:
        file.close()
        raise
    return file


def _regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in _KINDS if test(mode)), "no regular file")
        raise UserError(f"{path}: is {kind}; give a regular file (write what comes out of a pipe to a file first)")


def read_whole(path: Path, largest: int, remedy: str) -> bytes:
    """Return a file's bytes, of which there may be ``largest``.

    Raises
    ------
    UserError: it is larger (``remedy`` says what to do), or no regular file
    OSError: it is not there, or cannot be read
    """
    with opened(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        size = max(len(content), path.stat().st_size)
        raise UserError(f"{path}: has {size:,} bytes; at most {largest:,} are read: {remedy}")
    return content
