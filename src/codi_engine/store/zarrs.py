"""Runs as zarr sees them: a read-only zarr store that gives what the ledger says and nothing else.

zarr takes a shard that is missing, empty or not yet written for one that was never there and gives its fill value in
silence. Here a shard that the ledger names is checked or raises, and what the ledger does not name does not exist,
whatever lies on the disk.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.core.buffer.core import default_buffer_prototype

from codi_engine.store.files import CheckedFiles, Facts, difference
from codi_engine.store.layout import DATA, unit_of
from codi_engine.store.reader import RunReader
from codi_engine.store.state import State


class CheckedStore(Store):
    """A read-only store over files whose sizes and checksums are known.

    Parameters
    ----------
    root: the folder that keys are relative to
    table: key → size and sha256 of the file; other files do not exist
    documents: key → content, for what is not read from the disk
    verify: ``size``: a file read whole is compared with its sha256 the first time, a part of one with its size (chunks have
        checksums of their own); ``full``: before a part is read, the whole file is compared once
    """

    supports_writes: bool = False
    supports_deletes: bool = False
    supports_listing: bool = True
    supports_consolidated_metadata: bool = False

    def __init__(
        self,
        root: Path,
        table: Mapping[str, Facts],
        documents: Mapping[str, bytes] | None = None,
        verify: Literal["size", "full"] = "size",
    ) -> None:
        super().__init__(read_only=True)
        self.root, self.verify = root, verify
        self._table, self._documents = dict(table), dict(documents or {})
        self._files = CheckedFiles(root)
        self._whole: set[str] = set()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, type(self)):
            return False
        return (self.root, self.verify, self._table, self._documents) == (other.root, other.verify, other._table, other._documents)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"checked://{self.root.as_posix()}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}('{self.root}')"

    # -------------------------------------------------------------------------------------------- values

    def get_sync(self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a file's bytes, or a part of them; None for what the table does not name.

        Raises
        ------
        StoreError: the file is missing, truncated or damaged; the message names it
        """
        data = self._read(key, byte_range)
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return what :meth:`get_sync` returns."""
        if not self._is_open:
            await self._open()
        if key in self._documents or key not in self._table:
            return self.get_sync(key, prototype=prototype, byte_range=byte_range)
        return await asyncio.to_thread(self.get_sync, key, prototype=prototype, byte_range=byte_range)

    async def get_partial_values(self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]) -> list[Buffer | None]:
        """Return parts of several files, in their order."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    def _read(self, key: str, part: ByteRequest | None) -> bytes | None:
        if key in self._documents:
            data = self._documents[key]
            return data[_bounds(part, len(data))]
        stated = self._table.get(key)
        if stated is None:
            return None
        bounds = _bounds(part, stated["size"])
        if part is not None and (self.verify == "size" or key in self._whole):
            cut = self._part(key, stated["size"], bounds)
            if cut is not None:
                return cut
        data = self._files.read(key, stated)  # raises what is wrong with the file
        self._whole.add(key)
        return data[bounds]

    def _part(self, key: str, size: int, bounds: slice) -> bytes | None:
        objects = self._files.objects
        if objects is None:
            return _part(self.root / key, size, bounds)
        length = min(bounds.stop, size) - bounds.start
        return bytes(objects.piece(key, size, bounds.start, length)) if length > 0 else b""

    async def exists(self, key: str) -> bool:
        """Say whether the table names the key; its file may be damaged, which reading it says."""
        return key in self._table or key in self._documents

    async def getsize(self, key: str) -> int:
        """Return the size that was written."""
        if key in self._documents:
            return len(self._documents[key])
        if key not in self._table:
            raise FileNotFoundError(key)
        return int(self._table[key]["size"])

    # ------------------------------------------------------------------------------------------- listing

    @cached_property
    def _folders(self) -> dict[str, dict[str, None]]:
        """Folder → names in it."""
        found: dict[str, dict[str, None]] = {}
        for key in (*self._documents, *self._table):
            parts = key.split("/")
            for depth, name in enumerate(parts):
                found.setdefault("/".join(parts[:depth]), {})[name] = None
        return found

    async def list(self) -> AsyncIterator[str]:
        """Yield every key."""
        for key in (*self._documents, *self._table):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with a prefix."""
        for key in (*self._documents, *self._table):
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names in a folder."""
        for name in self._folders.get(prefix.strip("/"), {}):
            yield name

    # ------------------------------------------------------------------------------------------- writing

    async def set(self, key: str, value: Buffer) -> None:
        """Refuse."""
        self._check_writable()

    async def delete(self, key: str) -> None:
        """Refuse."""
        self._check_writable()


class RunStore(CheckedStore):
    """``data.zarr`` of a run as its ledger describes it at this moment; units committed later are not seen.

    The ``zarr.json`` files follow from the ledger. A shard of a committed unit is checked or raises; one of another unit, or of
    an array that the unit did not write, does not exist: zarr gives its fill value (NaN, −1 for codes, 0 for status).

    Parameters
    ----------
    run: the run directory, or a reader of it whose snapshot this store shares
    verify: see :class:`CheckedStore`

    Raises
    ------
    StoreError: no run, another format, a damaged ledger or damaged metadata
    """

    def __init__(self, run: str | Path | RunReader, verify: Literal["size", "full"] = "size") -> None:
        reader = run if isinstance(run, RunReader) else RunReader(run)
        self.digest = reader.digest
        super().__init__((reader.path / DATA).absolute(), _shards(reader.state), _documents(reader), verify)

    def with_read_only(self, read_only: bool = False) -> RunStore:
        """Return this store: it is never written."""
        if not read_only:
            self._check_writable()
        return self


def _shards(state: State) -> dict[str, Facts]:
    """Return key → facts of every shard that a committed unit wrote; names that no array has are left out."""
    found = {}
    for unit, record in sorted(state.committed.items()):
        for file, stated in record["files"].items():
            place = unit_of(file)
            if place and place[1] == unit and place[0] in state.specs and file == state.specs[place[0]].shard(unit):
                found[file.removeprefix(DATA + "/")] = stated
    return found


def _documents(reader: RunReader) -> dict[str, bytes]:
    """Return key → content of every ``zarr.json``, from the ledger: the files may be those of a later plan by now."""
    found = {}
    for name, data in reader.state.metadata().items():
        if not name.startswith(DATA + "/"):
            continue
        stated = reader.state.documents[name]
        if difference(data, stated):  # another version wrote them otherwise
            data = CheckedFiles(reader.path).read(name, stated)
        found[name.removeprefix(DATA + "/")] = data
    return found


def _bounds(part: ByteRequest | None, size: int) -> slice:
    match part:
        case None:
            return slice(0, size)
        case RangeByteRequest(start, end):
            return slice(start, min(end, size))
        case OffsetByteRequest(offset):
            return slice(offset, size)
        case SuffixByteRequest(suffix):
            return slice(max(0, size - suffix), size)
    raise TypeError(f"Unexpected byte_range, got {part}.")


def _part(path: Path, size: int, bounds: slice) -> bytes | None:
    """Return a part of a file of the right size; None where anything is wrong with it."""
    wanted = max(0, bounds.stop - bounds.start)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return None
            file.seek(bounds.start)
            data = file.read(wanted)
    except OSError:
        return None
    return data if len(data) == wanted else None
