"""The folder of this machine that stands for a run at an object store: what it takes from there, and what it gives back.

It holds all of a run but shards and texts: metadata, provenance, notes, events, results, reports. What the store writes reaches the
bucket at once (``store/files.py``); the rest at the end of the command that made it. Trackers' folders and unfinished analyses stay here.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from codi_engine.store.connecting import is_url
from codi_engine.store.errors import StoreError
from codi_engine.store.files import Facts, difference
from codi_engine.store.layout import COPIES, DATA, EXPERIMENT, LEDGER, LOCK, METADATA, OUTBOX, PARTIAL, PROVENANCE, PROVENANCE_COPY, RESULTS, TEXTS
from codi_engine.store.lease import hold
from codi_engine.store.lines import LINES, pull_ledger, put_whole
from codi_engine.store.lock import RunLock, holder
from codi_engine.store.remote import URL_FILE, Remote, folder_of, opened, remote_at

#: file beside the folder: key → tag, size and time of what both have
_INDEX, _SYNC = "index.json", "sync.lock"
#: what an analysis leaves that is being replaced: its folder is not given away
_WRITING = ".writing"
#: what says of a folder of results what belongs to it: sent last
_ABOUT = "result.json"
#: small files that are asked for at a time, and seconds for which another process of this machine may do so
_THREADS, _PATIENCE = 16, 300.0
#: bytes of a file beside a run's data, above which it is taken for something else
_MOST = 1 << 32

Index = dict[str, dict[str, Any]]


def place(text: str | Path, fresh: bool = False) -> Path:
    """Return the directory of a run: the path itself, or, for a URL, the folder of this machine after it was brought up to date.

    Parameters
    ----------
    fresh: read everything again, whatever the folder has

    Raises
    ------
    StoreError: no such address, no access, nobody answers, or a damaged ledger
    """
    if not isinstance(text, str) or not is_url(text):
        return Path(text)
    root = folder_of(text)
    remote = remote_at(root)
    assert remote is not None
    pull(remote, fresh)
    return root


def pull(remote: Remote, fresh: bool = False, writing: bool = False) -> None:
    """Bring the folder up to date; where a process of this machine writes the run, it is that already.

    Parameters
    ----------
    writing: this process holds the run's lock
    """
    _prepare(remote)
    lock = _turn(remote)
    try:
        if writing or holder(remote.root / LOCK) is None:
            pull_ledger(remote, fresh)
            _pull_files(remote, fresh)
            _pull_metadata(remote, fresh)
    finally:
        lock.release()


def _check_writable(root: Path) -> None:
    """Make sure that a run can be written where it is to be, before anything is computed for it. Local folders are looked at when they are opened.

    Raises
    ------
    StoreError: nobody answers, access is denied, or another process writes it
    """
    remote = remote_at(root)
    if remote is not None:
        _prepare(remote)
        hold(root).release()


def _turn(remote: Remote) -> RunLock:
    """Wait until no other process of this machine brings the folder up to date."""
    until = time.monotonic() + _PATIENCE
    while True:
        try:
            return RunLock(remote.root.parent / _SYNC)
        except StoreError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _prepare(remote: Remote) -> None:
    """Make the folder; others of this machine need not see what is in it."""
    try:
        remote.root.parent.parent.mkdir(parents=True, exist_ok=True)
        remote.root.parent.mkdir(mode=0o700, exist_ok=True)
        remote.root.mkdir(exist_ok=True)
        url = remote.root.parent / URL_FILE
        if not url.is_file():
            url.write_text(str(remote), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{remote.root.parent}: cannot be made ({error.strerror}); CODI_ENGINE_CACHE names another folder for small files") from None


def _pull_files(remote: Remote, fresh: bool) -> None:
    """Take what is another there; what was changed here since and not there is kept, and sent at the end of the next command."""
    index = _read_index(remote)
    there = {o.key: o for o in (*remote.top(), *remote.listed(RESULTS), *remote.listed(COPIES)) if mirrored(o.key) and o.size <= _MOST}
    mine = {key for key, known in index.items() if "tag" in known and (remote.root / key).is_file() and _changed(remote.root / key, known)}
    ours = {*mine, *(group for key in mine if (group := _group(key)))}
    stale = set()
    for key, found in there.items():
        same = index.get(key, {}).get("tag") == found.tag and (remote.root / key).is_file()
        if not same or (fresh and key not in ours and _group(key) not in ours):
            stale.add(key)
    groups = {group for key in stale if (group := _group(key))}
    wanted = [key for key in there if key in stale or _group(key) in groups]
    for key, data in zip(wanted, _fetched(remote, wanted), strict=True):
        if data is not None:
            _take(remote.root / key, data)
            index[key] = _entry(remote.root / key, there[key].tag)
    for key in [k for k in _files(remote) if k not in there and not _metadata(k)]:
        if key in index or _group(key) in groups:
            (remote.root / key).unlink(missing_ok=True)
    _write_index(remote, {key: value for key, value in index.items() if key in there})


def _pull_metadata(remote: Remote, fresh: bool) -> None:
    """Take the ``zarr.json`` that the last plan names and this folder has not, or has otherwise; they are written here after the store has them."""
    stated = {key: facts for key, facts in _last_documents(remote).items() if mirrored(key) and _metadata(key)}
    wanted = [key for key, facts in stated.items() if fresh or not (remote.root / key).is_file() or difference((remote.root / key).read_bytes(), facts)]
    for key, data in zip(wanted, _fetched(remote, wanted), strict=True):
        if data is None:
            (remote.root / key).unlink(missing_ok=True)
        else:
            _take(remote.root / key, data)
    for key in [k for k in _files(remote) if _metadata(k) and k not in stated]:
        (remote.root / key).unlink(missing_ok=True)


def _last_documents(remote: Remote) -> dict[str, Facts]:
    """Return the metadata files of the last plan; nothing where there is none."""
    path = remote.root / LEDGER
    for line in reversed(path.read_bytes().splitlines() if path.is_file() else []):
        if b'"kind":"plan"' in line:
            record = json.loads(line)
            if record.get("kind") == "plan" and isinstance(record.get("files"), dict):
                return dict(record["files"])
    return {}


def _fetched(remote: Remote, keys: Sequence[str]) -> Iterator[bytes | None]:
    """Yield objects in order, several asked for at a time; None for those that are gone."""

    def one(key: str) -> bytes | None:
        try:
            return remote.get(key)[0]
        except FileNotFoundError:
            return None

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="mirror") as pool:
        for start in range(0, len(keys), _THREADS):
            yield from pool.map(one, keys[start : start + _THREADS])


def _take(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PARTIAL)
    part.write_bytes(data)
    os.replace(part, path)


def publish(remote: Remote) -> None:
    """Send what was made in the folder and is not at the store yet, and remove there what was removed here.

    Raises
    ------
    StoreError: the store refuses, or nobody answers
    """
    if not (remote.root.parent / _INDEX).is_file():
        return  # nothing was read or written by way of this folder
    index = before = _read_index(remote)
    index = dict(index)
    if remote.grew and (remote.root / LEDGER).is_file():
        put_whole(remote)
    here = [key for key in _files(remote) if not (_metadata(key) or key in (EXPERIMENT, PROVENANCE, PROVENANCE_COPY))]  # the store sends these itself
    try:
        for key in sorted(here, key=lambda k: (k.rpartition("/")[0], k.endswith(_ABOUT), k)):
            known, path = index.get(key), remote.root / key
            if known is None or _changed(path, known):
                index[key] = _entry(path, remote.put(key, path.read_bytes()))
        gone = [key for key in index if key.startswith(f"{RESULTS}/") and key not in here and not (remote.root / key).exists()]
        remote.delete(gone)
        index = {key: value for key, value in index.items() if key not in gone}
    finally:
        if index != before:
            _write_index(remote, index)


@contextlib.contextmanager
def published(writing: Path | None = None) -> Iterator[None]:
    """Send, at the end of what is done within, what it made of runs at object stores; after a failure as far as that goes.

    Parameters
    ----------
    writing: the run that is to be written; whether it can be is asked first

    Raises
    ------
    StoreError: the store refuses; the folder keeps what was made, and the next command sends it
    """
    if writing is not None:
        _check_writable(writing)
    try:
        yield
    except BaseException:  # whatever it was, it is what the user has to read
        with contextlib.suppress(StoreError):
            publish_all()
        raise
    publish_all()


def publish_all() -> None:
    """Send what this process made of all runs that it has opened by their URLs."""
    for remote in opened():
        publish(remote)


def occupants(root: Path) -> list[str]:
    """Return what lies where a run is to be, but for lock and outbox: names in a local folder; elsewhere ``ledger``, or an object without one."""
    remote = remote_at(root)
    if remote is None:
        return [p.name for p in root.iterdir() if p.name not in (LOCK, OUTBOX)]
    if (root / LEDGER).exists():
        return [LEDGER]
    return remote.occupied(lambda key: key != LOCK and not key.startswith(f"{LOCK}."))


# --------------------------------------------------------------------------------------------------- keys


def mirrored(key: str) -> bool:
    """Say whether an object is one of the small files; a key that could lead elsewhere when it becomes a path is none."""
    parts = key.split("/")
    if any(p in ("", ".", "..") or "\\" in p or "\0" in p for p in parts) or (sys.platform == "win32" and ":" in key):
        return False
    if key.endswith(PARTIAL) or any(p.startswith(".") for p in parts):
        return False
    if len(parts) == 1:
        return key not in (LEDGER, LOCK, LINES, DATA, TEXTS, COPIES, RESULTS) and not key.startswith(f"{LOCK}.")
    return parts[0] == RESULTS or key == PROVENANCE_COPY or _metadata(key)


def _metadata(key: str) -> bool:
    return key.startswith(f"{DATA}/") and key.endswith(f"/{METADATA}")


def _group(key: str) -> str:
    """Return the folder of results that a file belongs to: it is taken as a whole."""
    parts = key.split("/")
    return "/".join(parts[:2]) if parts[0] == RESULTS and len(parts) > 2 else ""


def _files(remote: Remote) -> Iterator[str]:
    """Yield the small files of the folder."""
    for folder, folders, names in os.walk(remote.root):
        below = os.path.relpath(folder, remote.root).replace(os.sep, "/")
        top = below.split("/")[0]
        folders[:] = [f for f in folders if (below == "." and f in (DATA, COPIES, RESULTS)) or top in (DATA, RESULTS)]
        if _WRITING in names:
            continue
        for name in sorted(names):
            key = name if below == "." else f"{below}/{name}"
            if mirrored(key):
                yield key


# -------------------------------------------------------------------------------------------------- index


def _entry(path: Path, tag: str) -> dict[str, Any]:
    found = path.stat()
    return {"tag": tag, "size": found.st_size, "time": found.st_mtime_ns}


def _changed(path: Path, known: dict[str, Any]) -> bool:
    found = path.stat()
    return (known.get("size"), known.get("time")) != (found.st_size, found.st_mtime_ns)


def _read_index(remote: Remote) -> Index:
    try:
        value = json.loads((remote.root.parent / _INDEX).read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_index(remote: Remote, index: Index) -> None:
    _take(remote.root.parent / _INDEX, json.dumps(index).encode())
