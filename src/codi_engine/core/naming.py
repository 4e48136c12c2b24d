"""Names that become names of files and directories, and templates of paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from codi_engine.core.errors import UserError
from codi_engine.store.connecting import is_url

#: what no file can be called on Windows, whatever comes after a dot
RESERVED = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))})
#: bytes of a file's name, and of a path to a run, beyond which its files' names find no room
LONGEST_PART, LONGEST_PATH = 255, 3_800
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_FIELD = re.compile(r"\{\{|\}\}|\{([a-z]*)\}|[{}]")


def unfit_name(name: str, longest: int = 101) -> str:
    """Say why a name cannot be a file's on every system; empty where it can."""
    if not _NAME.match(name) or len(name) > longest:
        return f"must be a plain file name: letters, digits, dot, dash, underscore; at most {longest} of them, a letter or digit first"
    if name.endswith(".") or name.split(".")[0].upper() in RESERVED:
        return f"'{name}' is no file name on Windows; choose another"
    return ""


def filled_path(template: str, values: Mapping[str, object], where: str) -> Path:
    """Return a path with ``{name}`` and the like filled in; nothing else of Python's format language is read.

    Raises
    ------
    UserError: another field, no path at all, or one longer than systems take
    StoreError: a URL that names no place at an object store
    """

    def fill(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in values:
            *others, last = [f"{{{v}}}" for v in values if len(v) > 1]
            raise UserError(f"{where}: '{template}' may use {', '.join(others)} and {last} only")
        return str(values[match[1]])

    text = _FIELD.sub(fill, template)
    if "\0" in text:
        raise UserError(f"{where}: holds a NUL character, which no path has; remove it")
    if is_url(text):
        from codi_engine.store.remote import folder_of

        return folder_of(text)
    path = Path(text)
    longest = max((len(part.encode("utf-8", "surrogatepass")) for part in path.parts), default=0)
    if longest > LONGEST_PART:
        raise UserError(f"{where}: a name of {longest:,} bytes; a file system takes at most {LONGEST_PART}: write a shorter one")
    if len(text.encode("utf-8", "surrogatepass")) > LONGEST_PATH:
        raise UserError(f"{where}: a path of {len(text):,} characters; a system takes at most {LONGEST_PATH:,} bytes: write a shorter one")
    return path
