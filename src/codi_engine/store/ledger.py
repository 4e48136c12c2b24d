"""The ledger: an append-only file of JSON lines, each chained to the one before by a hash.

What has no ledger line does not exist. A torn last line (the process or the machine died while writing it) is left out,
and cut off by the next writer; damage anywhere else is an error that names the line.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codi_engine.store.errors import StoreError

_START = hashlib.sha256(b"codi-engine ledger").hexdigest()
_BEFORE, _AFTER = ',"chain":"', '"}'
_SUFFIX = len(_BEFORE) + 64 + len(_AFTER)


def canonical(value: Any) -> str:
    """Return the one JSON text of a value: keys sorted, no blanks, ASCII, no NaN.

    Raises
    ------
    StoreError: the value has no JSON text
    """
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise StoreError(f"cannot be recorded: {error}") from None


def _chain(previous: str, body: str) -> str:
    return hashlib.sha256(f"{previous}\n{body}".encode("ascii")).hexdigest()


def _line(previous: str, body: str) -> tuple[bytes, str]:
    """Return a record's line, with the chain as its last key, and the chain."""
    chain = _chain(previous, body)
    return (body[:-1] + _BEFORE + chain + _AFTER + "\n").encode("ascii"), chain


def _parse(line: bytes, previous: str) -> tuple[dict[str, Any], str] | None:
    """Return (record, chain), or None when the line is not what was written."""
    try:
        text = line.decode("ascii")
        body = text[:-_SUFFIX] + "}"
        whole, chain = _line(previous, body)
        record = json.loads(body) if whole == line + b"\n" else None
    except ValueError:
        return None
    return (record, chain) if isinstance(record, dict) else None


@dataclass
class Content:
    """What a ledger file holds: its records, the last hash, the bytes of whole lines, and whether a torn line follows."""

    records: list[dict[str, Any]]
    chain: str
    size: int
    torn: bool


def read_ledger(path: Path) -> Content:
    """Read a ledger; a missing file is an empty one.

    Raises
    ------
    StoreError: a line before the last is damaged, or the file cannot be read
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return Content([], _START, 0, False)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    found = Content([], _START, 0, False)
    while found.size < len(raw):
        end = raw.find(b"\n", found.size)
        parsed = _parse(raw[found.size : end], found.chain) if end >= 0 else None
        if parsed is None:
            if 0 <= end < len(raw) - 1:
                raise StoreError(f"{path}: line {len(found.records) + 1} of the ledger is damaged; restore the file from a copy")
            found.torn = True
            return found
        record, found.chain = parsed
        found.records.append(record)
        found.size = end + 1
    return found


class Ledger:
    """The ledger opened for appending; the file is made with its first record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_ledger(path)
        self.records, self._chain, self._size = content.records, content.chain, content.size
        if content.torn:
            with path.open("r+b") as file:
                file.truncate(self._size)
                os.fsync(file.fileno())

    def append(self, record: dict[str, Any]) -> None:
        """Write one record and make it durable.

        A failed write leaves the file as it was, or with a tail that the next append or open cuts off.
        """
        line, chain = _line(self._chain, canonical(record))
        new = not self.path.exists()
        with self.path.open("w+b" if new else "r+b") as file:
            try:
                file.truncate(self._size)
                file.seek(self._size)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.ftruncate(file.fileno(), self._size)
                raise
        if new:
            sync_directory(self.path.parent)
        self._chain, self._size = chain, self._size + len(line)
        self.records.append(json.loads(canonical(record)))


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable (where the system can)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
