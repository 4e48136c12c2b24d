"""Dated notes beside a run: ``notes.md`` is only ever appended to, belongs to no checksum, and needs no lock."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from codi_engine.core.errors import UserError
from codi_engine.core.runs.places import no_run
from codi_engine.store.contained import check_contained
from codi_engine.store.errors import unwritten
from codi_engine.store.layout import EXPERIMENT, LEDGER

FILE = "notes.md"
#: most bytes of one note
LARGEST = 1 << 20
_HEAD = re.compile(r"## (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)\Z")
#: a line of a note that would be read as the head of another one, or as such a line made harmless
_LIKE_HEAD = re.compile(r"^(\\*## \d{4}-)", re.MULTILINE)
_ESCAPED = re.compile(r"^\\(\\*## \d{4}-)", re.MULTILINE)


class Note(NamedTuple):
    """When a note was made (UTC) and what it says, as it was written."""

    time: str
    text: str


def add_note(run: str | Path, text: str) -> Note:
    """Append a note; another process may be writing the run, or another note.

    Raises
    ------
    UserError: no run there, a note without words, a note above 1 MB, or a file that cannot be written
    """
    path = folder_of(run) / FILE
    body = text.replace("\r\n", "\n").strip("\n")
    if not body.strip():
        raise UserError(f'note: it has no words; write codi-engine note {run} "what you think"')
    note = Note(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), body)
    safe = _LIKE_HEAD.sub(r"\\\1", body)
    data = f"## {note.time}\n\n{safe}\n\n".encode("utf-8", "backslashreplace")
    if len(data) > LARGEST:
        raise UserError(f"note: {len(data) / 1e6:.1f} MB is more than a note holds (1 MB); keep the file elsewhere and note where")
    check_contained(path.parent, path)
    try:
        _append(path, data)
    except OSError as error:
        raise UserError(unwritten(path, error)) from None
    return note


def _append(path: Path, data: bytes) -> None:
    """Write at the end of the file in one call, so that two notes at once do not mix, and make it durable; where it does not fit nothing of it stays."""
    new = not path.exists()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o644)
    try:
        before = os.fstat(descriptor).st_size
        try:
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, before)
            if new:
                path.unlink(missing_ok=True)
            raise
    finally:
        os.close(descriptor)


def notes_of(run: str | Path) -> list[Note]:
    """Return the notes of a run, oldest first; none where there is no file.

    What was written into the file by hand above the first note is a note without a time.

    Raises
    ------
    UserError: the file cannot be read
    """
    path = Path(run) / FILE
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: is no regular file; remove it")
    try:
        text = path.read_bytes().decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in text.split("\n"):
        head = _HEAD.match(line)
        if head:
            found.append((head[1], []))
        else:
            found[-1][1].append(line)
    notes = [Note(time, _ESCAPED.sub(r"\1", "\n".join(lines).strip("\n"))) for time, lines in found]
    return [n for n in notes if n.time or n.text.strip()]


def folder_of(run: str | Path) -> Path:
    """Return the directory of a run, or of an experiment with checkpoints.

    Raises
    ------
    UserError: no run there
    """
    path = Path(run)
    if not (path / LEDGER).is_file() and not (path / EXPERIMENT).is_file():
        raise no_run(path)
    return path


def stated(run: str | Path) -> tuple[str, str]:
    """Return the experiment's own hypothesis and notes; empty where it has none."""
    from codi_engine.core.yamlfile import read_yaml

    path = Path(run) / EXPERIMENT
    value = read_yaml(path)[0] if path.is_file() else None
    known = value if isinstance(value, dict) else {}
    return str(known.get("hypothesis") or ""), str(known.get("notes") or "")
