"""The ledger: an append-only file of JSON lines, each chained to the one before by a hash.

What has no ledger line does not exist. A torn last line (the process or the machine died while writing it) is left out,
and cut off by the next writer; damage anywhere else is an error that names the line. Each line is appended to a copy as well,
after it is durable: the copy tells a ledger that was cut from one that was not written further, and restores it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from codi_engine.store.errors import StoreError, repairing
from codi_engine.store.layout import LEDGER_COPY, PARTIAL

#: what the first line's chain goes on from
START = hashlib.sha256(b"codi-engine ledger").hexdigest()
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
    except (ValueError, RecursionError):
        return None
    return (record, chain) if isinstance(record, dict) else None


@dataclass
class Content:
    """What a ledger file holds: its records, the last hash, the bytes of whole lines, and whether a torn line follows."""

    records: list[dict[str, Any]]
    chain: str
    size: int
    torn: bool


def lines_of(raw: bytes) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (start, line without its end, whether it has an end) of every line."""
    at = 0
    while at < len(raw):
        end = raw.find(b"\n", at)
        yield at, raw[at:] if end < 0 else raw[at:end], end >= 0
        at = len(raw) if end < 0 else end + 1


def parse_lines(raw: bytes) -> Content:
    """Read lines up to the first that is not what was written; the content is torn when there is such a line."""
    found = Content([], START, 0, False)
    for start, line, ended in lines_of(raw):
        parsed = _parse(line, found.chain) if ended else None
        if parsed is None:
            found.torn = True
            return found
        record, found.chain = parsed
        found.records.append(record)
        found.size = start + len(line) + 1
    return found


def next_chain(line: bytes, chain: str) -> str:
    """Return the chain after a line with its end; empty where the line does not go on from ``chain``."""
    parsed = _parse(line[:-1], chain) if line.endswith(b"\n") else None
    return "" if parsed is None else parsed[1]


def read_ledger(path: Path) -> Content:
    """Read a ledger; a missing file is an empty one.

    What follows the last whole line is torn: a writer died, or still writes. It is damage instead when a line follows it, or when
    the copy, which is written after the ledger, has more: then the ledger was changed or cut.

    Raises
    ------
    StoreError: the ledger is damaged, cut or missing although its copy is there, or cannot be read
    """
    copied = _bytes(path.parent / LEDGER_COPY)  # read first: a writer that goes on meanwhile only lets the ledger be longer
    raw = _bytes(path)
    if raw is None:
        if copied:
            raise StoreError(f"{path}: is missing; {repairing(path.parent)} restores it from its copy")
        return Content([], START, 0, False)
    found = parse_lines(raw)
    if found.torn and (raw.find(b"\n", found.size) not in (-1, len(raw) - 1) or _goes_on(copied, found)):
        raise StoreError(f"{path}: line {len(found.records) + 1} of the ledger is damaged; {repairing(path.parent)} restores it")
    if not found.torn and _goes_on(copied, found):
        raise StoreError(f"{path}: was cut: line {len(found.records) + 1} of the ledger is missing; {repairing(path.parent)} restores it")
    return found


def _bytes(path: Path) -> bytes | None:
    if path.exists() and not path.is_file():  # a pipe would never end
        raise StoreError(f"{path}: is no regular file; get the run again from where it came from")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None


def _goes_on(copied: bytes | None, found: Content) -> bool:
    """True when the copy has a line after those found that continues their chain."""
    if copied is None or len(copied) <= found.size:
        return False
    end = copied.find(b"\n", found.size)
    return end >= 0 and _parse(copied[found.size : end], found.chain) is not None


@dataclass
class Salvaged:
    """What a ledger and its copy give together, line by line.

    ``raw``: the bytes that the ledger should have; ``kind`` and ``problem``: what is wrong with it, empty when nothing is;
    ``copy``: the copy's bytes; ``lost``: whether either had more than both together give
    """

    content: Content
    raw: bytes
    copy: bytes | None
    kind: Literal["damaged", "missing", "truncated", "interrupted"] = "damaged"
    problem: str = ""
    lost: bool = False


def salvage(path: Path) -> Salvaged:
    """Read a ledger as far as it and its copy allow; nothing is raised for damage, nor for a ledger that is not there."""
    copy = _bytes(path.parent / LEDGER_COPY)
    raw = _bytes(path)
    content = Content([], START, 0, False)
    whole = bytearray()
    while True:
        parsed, line = None, b""
        for source in (raw, copy):
            end = -1 if source is None else source.find(b"\n", content.size)
            if source is not None and end >= 0 and (parsed := _parse(source[content.size : end], content.chain)) is not None:
                line = source[content.size : end + 1]
                break
        if parsed is None:
            break
        content.records.append(parsed[0])
        content.chain = parsed[1]
        content.size += len(line)
        whole += line
    found = Salvaged(content, bytes(whole), copy)
    if raw != found.raw:
        _tell(found, raw)
    return found


def _tell(found: Salvaged, raw: bytes | None) -> None:
    """Say how the ledger differs from what it should be."""
    lines = len(found.content.records)
    more = _more(raw, found)
    found.lost = _more(found.copy, found) > 0 or more > int(raw is not None and raw.startswith(found.raw))
    if found.lost:
        found.problem = f"line {lines + 1} is damaged, and so is its copy; the lines after it are lost, their units are computed again after a repair"
    elif raw is None:
        found.kind, found.problem = "missing", "is missing; repair restores it from its copy"
    elif raw.startswith(found.raw):
        found.content.torn = True
        found.kind, found.problem = "interrupted", "its last line is torn; the next run cuts it off and computes that unit again"
    elif found.raw.startswith(raw):
        found.kind, found.problem = "truncated", f"was cut to {len(raw):,} of {len(found.raw):,} bytes; repair restores it from its copy"
    else:
        at = next((i for i, (a, b) in enumerate(zip(raw, found.raw, strict=False)) if a != b), len(found.raw))
        number = raw.count(b"\n", 0, at) + 1
        found.problem = f"line {number} is damaged; repair restores it from its copy"


def _more(source: bytes | None, found: Salvaged) -> int:
    """Return how many lines a ledger or its copy has beyond those that were found."""
    if source is None or len(source) <= len(found.raw):
        return 0
    return source.count(b"\n", len(found.raw)) if source.startswith(found.raw) else source.count(b"\n") - len(found.content.records)


class Ledger:
    """The ledger opened for appending; the file is made with its first record.

    Attributes
    ----------
    records: what it held when it was opened; take them away with :meth:`taken`, a day-long run would keep them twice
    empty: whether it holds no record yet
    """

    def __init__(self, path: Path) -> None:
        self.path, self.copy = path, path.parent / LEDGER_COPY
        content = read_ledger(path)
        self.records, self._chain, self._size = content.records, content.chain, content.size
        if content.torn:
            with path.open("r+b") as file:
                file.truncate(self._size)
                os.fsync(file.fileno())
        if self._size:
            self._mend_copy()

    @property
    def empty(self) -> bool:
        return self._size == 0

    def taken(self) -> list[dict[str, Any]]:
        """Return the records and let go of them."""
        records, self.records = self.records, []
        return records

    def append(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """Write one record and make it durable; return it as it will be read.

        A failed write leaves the file as it was, or with a tail that the next append or open cuts off.
        """
        body = canonical(record)
        line, chain = _line(self._chain, body)
        self._precede(line)
        new = not self._size  # one that has vanished since is not begun anew: opening it fails
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
        at = self._size
        self._chain, self._size = chain, self._size + len(line)
        self._append_copy(line, at)
        return dict(json.loads(body))

    def _precede(self, line: bytes) -> None:
        """What has to be done before a line is written: nothing, where the file is all there is."""

    def _append_copy(self, line: bytes, at: int) -> None:
        """Let the copy follow; it needs no fsync, since the next writer completes it."""
        try:
            if at == 0:
                self.copy.parent.mkdir(exist_ok=True)
                self.copy.write_bytes(line)
                return
            descriptor = os.open(self.copy, os.O_WRONLY)
            try:
                if os.fstat(descriptor).st_size >= at:  # else an earlier append failed: bytes after a hole would be no copy
                    os.pwrite(descriptor, line, at)
            finally:
                os.close(descriptor)
        except OSError:
            return  # what matters is durable; the next writer completes the copy

    def sync_copy(self) -> None:
        """Make the copy durable too, at the end."""
        with contextlib.suppress(OSError):  # the ledger is
            if self._size:
                with self.copy.open("r+b") as file:
                    os.fsync(file.fileno())

    def _mend_copy(self) -> None:
        """Make the copy what the ledger is, where a dead writer, or somebody else, left it otherwise."""
        raw = self.path.read_bytes()
        try:
            if _bytes(self.copy) == raw:
                return
            self.copy.parent.mkdir(exist_ok=True)
            part = self.copy.with_name(self.copy.name + PARTIAL)
            part.write_bytes(raw)
            os.replace(part, self.copy)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk will be told where it loses something
                raise


def sync_directory(path: Path) -> None:
    """Make a directory's entries durable (where the system can)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
