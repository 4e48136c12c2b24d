"""Runs at an object store (``s3://bucket/name``): a folder of this machine holds the small files, the store everything.

The folder is a run directory without shards and texts; whatever reads or writes these asks :func:`remote_at` of the folder and
finds the :class:`Remote` behind it. Local runs have none.
"""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from codi_engine.store.connecting import Address, Unreachable, connect, is_url, parse, refusal
from codi_engine.store.errors import StoreError
from codi_engine.store.shown import call

if TYPE_CHECKING:
    from obstore.store import ObjectStore

T = TypeVar("T")
Part = bytes | memoryview
#: bytes of one request for a part of an object, and from which an object is sent in parts; parts that travel at a time
CHUNK, _SENT_AT_A_TIME = 8 << 20, 4
#: seconds for which a store that has answered before is tried again
PATIENCE = 40.0
#: seconds for which nothing is asked of a store that was given up
SILENCE = 10.0
#: file beside the folder that says which run it is of
URL_FILE = "url"

_OPEN: dict[str, Remote] = {}
_OPENING = threading.Lock()


class Conflict(Exception):
    """An object is there already, or is another one than was expected."""


class Found(NamedTuple):
    """An object in a listing: its key below the run, size and tag, and when it was written by the store's clock."""

    key: str
    size: int
    tag: str
    when: datetime


# -------------------------------------------------------------------------------------------------- places


def home() -> str:
    """Return the folder that holds the small files of runs elsewhere."""
    chosen = os.environ.get("CODI_ENGINE_CACHE")
    base = chosen or os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "codi-engine")
    return os.path.join(os.path.abspath(base), "remote")


def folder_of(url: str) -> Path:
    """Return the folder of this machine that stands for the run at a URL; nothing is made or asked.

    Raises
    ------
    StoreError: no such URL can be
    """
    address = parse(url)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL", "")
    digest = hashlib.sha256(f"{endpoint}\n{address}".encode()).hexdigest()[:24]
    root = Path(home(), digest, address.key.rpartition("/")[2])
    call(root, str(address))
    with _OPENING:
        known = _OPEN.get(str(root))
        if known is None or known.address != address:
            _OPEN[str(root)] = Remote(address, root)
    return root


def remote_at(root: Path) -> Remote | None:
    """Return the object store behind a run directory; None for local runs, which are most. No file of a local run is looked at."""
    text = str(root)
    found = _OPEN.get(text)
    if found is not None or not text.startswith(home() + os.sep):
        return found
    try:
        url = (root.parent / URL_FILE).read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _OPEN[text] if is_url(url) and folder_of(url) == root else None


def opened() -> list[Remote]:
    """Return the remotes that this process has something of."""
    return [remote for remote in _OPEN.values() if remote.root.is_dir()]


# ------------------------------------------------------------------------------------------------- requests


class Remote:
    """The objects below an address. Requests are repeated for a while, and what is refused becomes a :class:`StoreError`.

    Attributes
    ----------
    root: the folder of this machine
    grew: whether this process has written a line of the ledger
    """

    def __init__(self, address: Address, root: Path) -> None:
        self.address, self.root = address, root
        self.grew = False
        self._heard = False
        self._given_up: tuple[float, StoreError] | None = None

    def __str__(self) -> str:
        return str(self.address)

    @cached_property
    def _quick(self) -> ObjectStore:
        return connect(self.address, quick=True)

    @cached_property
    def _patient(self) -> ObjectStore:
        return connect(self.address)

    def _ask(self, request: Callable[[Any, ObjectStore], T]) -> T:
        """Send a request; the first one of a process gives up soon, later ones wait for a store that was there before.

        Raises
        ------
        FileNotFoundError: no such object
        Conflict: it is there, or another one
        StoreError: refused, or nobody answers
        """
        if self._given_up is not None and time.monotonic() < self._given_up[0]:
            raise self._given_up[1]  # what a command does at its end does not wait once more
        store = self._patient if self._heard else self._quick
        import obstore
        from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

        until, pause = time.monotonic() + (PATIENCE if self._heard else 0.0), 0.5
        while True:
            try:
                made = request(obstore, store)
            except (AlreadyExistsError, PreconditionError) as error:
                self._heard = True
                raise Conflict(str(self)) from error
            except FileNotFoundError as error:
                if "NoSuchBucket" not in str(error):
                    self._heard = True
                    raise
                raise refusal(self.address, error) from None
            except BaseError as error:
                problem = refusal(self.address, error)
                if not isinstance(problem, Unreachable):
                    raise problem from None
                if time.monotonic() + pause > until:
                    self._heard, self._given_up = False, (time.monotonic() + SILENCE, problem)
                    raise problem from None
                time.sleep(pause)
                pause = min(2 * pause, 8.0)
            else:
                self._heard = True
                return made

    def listed(self, below: str = "", after: str = "") -> Iterator[Found]:
        """Yield the objects below a folder of the run (``texts``), in order of their keys; with ``after`` those behind a key."""
        for part in self._ask(lambda api, store: list(api.list(store, below or None, offset=after or None))):
            yield from (Found(o["path"], o["size"], o["e_tag"] or "", o["last_modified"]) for o in part)

    def top(self) -> list[Found]:
        """Return the objects that lie directly below the address."""
        found = self._ask(lambda api, store: api.list_with_delimiter(store))["objects"]
        return [Found(o["path"], o["size"], o["e_tag"] or "", o["last_modified"]) for o in found]

    def occupied(self, counts: Callable[[str], bool]) -> list[str]:
        """Return one key below the address for which ``counts`` is true, if there is one among the first thousand."""
        first: list[Any] = self._ask(lambda api, store: next(iter(api.list(store, chunk_size=1000)), []))
        return [o["path"] for o in first if counts(o["path"])][:1]

    def get(self, key: str) -> tuple[bytes, Found]:
        """Return an object and what the store says of it.

        Raises
        ------
        FileNotFoundError: there is none
        """

        def whole(api: Any, store: ObjectStore) -> tuple[bytes, Found]:
            got = api.get(store, key)
            return bytes(got.bytes()), Found(key, got.meta["size"], got.meta["e_tag"] or "", got.meta["last_modified"])

        return self._ask(whole)

    def head(self, key: str) -> Found:
        """Return what the store says of an object.

        Raises
        ------
        FileNotFoundError: there is none
        """
        found = self._ask(lambda api, store: api.head(store, key))
        return Found(key, found["size"], found["e_tag"] or "", found["last_modified"])

    def part(self, key: str, start: int, length: int) -> tuple[memoryview, int]:
        """Return bytes of an object from ``start``, and the size of all of it.

        Raises
        ------
        FileNotFoundError: there is none
        """

        def some(api: Any, store: ObjectStore) -> tuple[memoryview, int]:
            got = api.get(store, key, options={"range": (start, start + length)})
            return memoryview(got.bytes()), int(got.meta["size"])

        return self._ask(some)

    def put(self, key: str, data: bytes) -> str:
        """Write an object and return its tag; on return the store has it."""
        return str(self._ask(lambda api, store: api.put(store, key, data, use_multipart=len(data) > CHUNK, max_concurrency=_SENT_AT_A_TIME))["e_tag"] or "")

    def create(self, key: str, data: bytes) -> str:
        """Write an object that is not there yet.

        Raises
        ------
        Conflict: there is one of other bytes
        """
        try:
            return str(self._ask(lambda api, store: api.put(store, key, data, mode="create", use_multipart=False))["e_tag"] or "")
        except Conflict:
            there, found = self.get(key)  # an answer that was lost on its way lets the request be repeated
            if there != data:
                raise
            return found.tag

    def replace(self, key: str, data: bytes, tag: str) -> str:
        """Write an object in place of the one that has this tag.

        Raises
        ------
        Conflict: it is another one by now
        """
        return str(self._ask(lambda api, store: api.put(store, key, data, mode={"e_tag": tag}, use_multipart=False))["e_tag"] or "")

    def send(self, key: str, parts: Iterable[Part]) -> dict[str, Any]:
        """Write an object piece by piece and return its size and sha256; large ones travel in parts and are there when all have arrived."""
        held: list[Part] = []
        coming, size = iter(parts), 0
        for piece in coming:
            held.append(piece)
            size += len(piece)
            if size > CHUNK:
                break
        if size <= CHUNK:
            data = b"".join(held)
            self.put(key, data)
            return {"size": size, "sha256": hashlib.sha256(data).hexdigest()}
        held += coming  # an upload that is repeated begins again
        digest = hashlib.sha256()
        for piece in held:
            digest.update(piece)
        self._ask(lambda api, store: api.put(store, key, iter(held), use_multipart=True, max_concurrency=_SENT_AT_A_TIME))
        return {"size": sum(map(len, held)), "sha256": digest.hexdigest()}

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects; those that are not there are no error."""
        if keys:
            self._ask(lambda api, store: api.delete(store, list(keys)))
