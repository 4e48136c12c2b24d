"""The ledger: an append-only file of JSON lines, each chained to the one before by a hash.

What has no ledger line does not exist. A torn last line (the process died while writing it) is dropped; damage anywhere
else is an error that names the line.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from codi_engine.store.errors import StoreError

_START = "codi-engine ledger 1"


def _chain(previous: str, body: str) -> str:
    return hashlib.sha256(f"{previous}\n{body}".encode()).hexdigest()[:32]


def canonical(record: Any) -> str:
    return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def read_ledger(path: Path) -> tuple[list[dict[str, Any]], str, int]:
    """Return (records, last hash, bytes of whole lines); a torn tail is left out.

    Raises
    ------
    StoreError: a line other than the last is damaged
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return [], _START, 0
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    records: list[dict[str, Any]] = []
    last, good = _START, 0
    lines = raw.split(b"\n")
    for number, line in enumerate(lines[:-1], 1):
        try:
            text = line.decode("ascii")
            stated, body = text[:32], text[33:]
            record = json.loads(body)
            if _chain(last, body) != stated or text[32] != " ":
                raise ValueError
        except (ValueError, IndexError):
            raise StoreError(f"{path}: line {number} is damaged") from None
        records.append(record)
        last, good = stated, good + len(line) + 1
    return records, last, good


class Ledger:
    """The ledger opened for appending."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records, self._last, good = read_ledger(path)
        if path.exists() and path.stat().st_size > good:
            with path.open("r+b") as file:
                file.truncate(good)
                os.fsync(file.fileno())

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and make it durable."""
        body = canonical(record)
        stated = _chain(self._last, body)
        line = f"{stated} {body}\n".encode()
        before = self.path.stat().st_size if self.path.exists() else 0
        try:
            with self.path.open("ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            if self.path.exists():
                os.truncate(self.path, before)
            raise
        if before == 0:
            sync_directory(self.path.parent)
        self._last = stated
        self.records.append(json.loads(body))


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
