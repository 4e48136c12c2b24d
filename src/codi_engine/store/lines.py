"""The ledger of a run at an object store: one object per line, made once, so that two writers cannot both go on.

``ledger.d/000000000012`` is line 12, counted from 0. ``ledger`` is all of them in one object, as a local run has it; it is written now
and then and at the end of a command, and spares the next reader most requests. The folder of this machine holds the same file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import LEDGER, LEDGER_COPY, PARTIAL
from codi_engine.store.ledger import START, Ledger, next_chain, parse_lines
from codi_engine.store.remote import Conflict, Remote, remote_at

LINES = "ledger.d"
#: lines after which all of them are written in one object again
_EVERY = 256
#: lines that are fetched at a time
_THREADS = 16


def line_key(number: int) -> str:
    """Return the key of a line."""
    return f"{LINES}/{number:012d}"


def ledger_at(root: Path) -> Ledger:
    """Open a run's ledger for appending, wherever it is."""
    remote = remote_at(root)
    return Ledger(root / LEDGER) if remote is None else RemoteLedger(remote)


class RemoteLedger(Ledger):
    """The ledger in the folder of this machine, each line of which is an object before it is there."""

    def __init__(self, remote: Remote) -> None:
        super().__init__(remote.root / LEDGER)
        self._remote, self._lines, self._whole = remote, len(self.records), len(self.records)

    def _precede(self, line: bytes) -> None:
        try:
            self._remote.create(line_key(self._lines), line)
        except Conflict:
            raise StoreError(
                f"{self._remote}: line {self._lines + 1} of its ledger was written by another process; this one stops, what is committed stays"
            ) from None
        self._lines += 1
        self._remote.grew = True

    def _append_copy(self, line: bytes, at: int) -> None:
        super()._append_copy(line, at)
        if self._lines - self._whole >= _EVERY:
            with contextlib.suppress(StoreError):  # the lines are there
                put_whole(self._remote)
                self._whole = self._lines

    def sync_copy(self) -> None:
        """Write all lines in one object, and its copy."""
        super().sync_copy()
        with contextlib.suppress(StoreError):  # the lines are there; the end of the command tries again and says what is wrong
            if not self.empty:
                put_whole(self._remote)


def put_whole(remote: Remote) -> None:
    """Write the ledger and its copy as objects, where they are shorter than what this folder has."""
    data = (remote.root / LEDGER).read_bytes()
    for key in (LEDGER, LEDGER_COPY):
        with contextlib.suppress(FileNotFoundError):
            if remote.head(key).size >= len(data):
                continue
        remote.put(key, data)


# ----------------------------------------------------------------------------------------------- reading


def pull_ledger(remote: Remote, fresh: bool = False) -> None:
    """Bring the folder's ledger, and its copy, to what the store has.

    Parameters
    ----------
    fresh: read every line again, also those that the folder has

    Raises
    ------
    StoreError: a line is missing or damaged, and not in the other form either
    """
    path = remote.root / LEDGER
    here = path.read_bytes() if path.is_file() and not fresh else b""
    mine = here[: parse_lines(here).size]
    made = _whole(remote, mine)
    if made != here or not (remote.root / LEDGER_COPY).is_file():
        _write(remote.root, made)
        _date(remote, made.count(b"\n") - 1)


def _whole(remote: Remote, mine: bytes) -> bytes:
    """Return the ledger's bytes, starting from what is known of them if the store's history is the same."""
    count = mine.count(b"\n")
    try:
        if count and remote.get(line_key(count - 1))[0] == mine[mine.rfind(b"\n", 0, -1) + 1 :]:
            return _extended(remote, mine)
    except (FileNotFoundError, _Broken):
        pass  # an older ledger, in one object alone; or this folder's is that of another run; or there is damage
    base = _object(remote)
    try:
        return _extended(remote, base[: parse_lines(base).size])
    except _Broken:
        return _salvaged(remote, base)


def _object(remote: Remote) -> bytes:
    try:
        return remote.get(LEDGER)[0]
    except FileNotFoundError:
        return b""


class _Broken(Exception):
    """Lines are missing, or do not go on."""


def _extended(remote: Remote, known: bytes) -> bytes:
    """Add the lines that follow."""
    count = known.count(b"\n")
    numbers = [n for n in _numbers(remote, count) if n >= count]
    if numbers != list(range(count, count + len(numbers))):
        raise _Broken
    data = known + b"".join(_lines(remote, numbers))
    if parse_lines(data).size != len(data):
        raise _Broken
    return data


def _salvaged(remote: Remote, base: bytes) -> bytes:
    """Take each line from where it is whole: an object of its own, or the one that holds all of them."""
    numbers = _numbers(remote, 0)
    single = dict(zip(numbers, _lines(remote, numbers), strict=True))
    others = dict(enumerate(base.splitlines(keepends=True)))
    whole, chain = bytearray(), START
    for number in range(max([*single, *others], default=-1) + 1):
        for line in (single.get(number, b""), others.get(number, b"")):
            following = next_chain(line, chain)
            if following:
                whole += line
                chain = following
                break
        else:
            what = "damaged" if number in single else "missing"
            raise StoreError(f"{remote}/{line_key(number)}: line {number + 1} of the ledger is {what}; restore the object from a copy")
    return bytes(whole)


def _numbers(remote: Remote, count: int) -> list[int]:
    """Return the numbers of the lines that are objects, from the one before ``count`` on."""
    found = (_number(o.key) for o in remote.listed(LINES, line_key(count - 1) if count else ""))
    return [n for n in found if n is not None]


def _lines(remote: Remote, numbers: Sequence[int]) -> list[bytes]:
    if len(numbers) < 2:
        return [remote.get(line_key(n))[0] for n in numbers]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="ledger") as pool:
        return list(pool.map(lambda n: remote.get(line_key(n))[0], numbers))


def _number(key: str) -> int | None:
    name = key.removeprefix(f"{LINES}/")
    return int(name) if len(name) == 12 and name.isascii() and name.isdigit() else None


def _date(remote: Remote, last: int) -> None:
    """Give the file the time of its last line: it says when a unit was committed."""
    for key in (line_key(last), LEDGER):
        with contextlib.suppress(FileNotFoundError):
            when = remote.head(key).when.timestamp()
            os.utime(remote.root / LEDGER, (when, when))
            return


def _write(root: Path, data: bytes) -> None:
    """Replace the folder's ledger and its copy; the copy goes first, since it may not have more."""
    copy = root / LEDGER_COPY
    copy.unlink(missing_ok=True)
    if not data:
        (root / LEDGER).unlink(missing_ok=True)
        return
    copy.parent.mkdir(parents=True, exist_ok=True)
    for path in (root / LEDGER, copy):
        part = path.with_name(path.name + PARTIAL)
        part.write_bytes(data)
        os.replace(part, path)
