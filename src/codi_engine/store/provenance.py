"""``provenance.json``: free facts about how a run was made, rewritten as a whole, with its own checksum."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codi_engine.store.errors import StoreError, repairing
from codi_engine.store.files import write_durably
from codi_engine.store.layout import PARTIAL, PROVENANCE, PROVENANCE_COPY
from codi_engine.store.remote import remote_at

_KEY = "checksum"


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def encode_provenance(provenance: Mapping[str, Any]) -> bytes:
    """Return the file's bytes; values without a JSON form are written as text."""
    plain = json.loads(json.dumps({k: v for k, v in provenance.items() if k != _KEY}, default=str))
    return (json.dumps({**plain, _KEY: _checksum(plain)}, indent=2) + "\n").encode()


def read_provenance(root: Path) -> dict[str, Any]:
    """Return what the file says; a missing file says nothing.

    Raises
    ------
    StoreError: the file was damaged or changed by hand
    """
    path = root / PROVENANCE
    if path.exists() and not path.is_file():  # a pipe would never end
        raise StoreError(f"{path}: is no regular file; delete it to go on without it")
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return decode_provenance(raw)
    except ValueError:
        raise StoreError(f"{path}: is damaged; {repairing(root)} restores it, or delete it to go on without it") from None


def decode_provenance(raw: bytes) -> dict[str, Any]:
    """Return what the file's bytes say.

    Raises
    ------
    ValueError: they are not what was written
    """
    try:
        content = json.loads(raw)
        stated = content.pop(_KEY)
        if encode_provenance(content) != raw or stated != _checksum(content):
            raise ValueError("the checksum differs")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    return dict(content)


def provenance_problem(path: Path) -> str:
    """Say what is wrong with the file or its copy; empty where nothing is."""
    try:
        if path.exists() and not path.is_file():
            return "is no regular file"
        decode_provenance(path.read_bytes())
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError:
        return "is damaged: its checksum differs"
    return ""


def write_provenance(root: Path, provenance: Mapping[str, Any]) -> None:
    """Replace the file durably, then its copy.

    Raises
    ------
    OSError: it cannot be written; the file is as before
    """
    data = encode_provenance(provenance)
    write_durably(root, PROVENANCE, data)
    _write_copy(root, data)


def mend_provenance(root: Path, provenance: Mapping[str, Any]) -> None:
    """Write the file where it is missing, and its copy where a writer died between the two."""
    if not (root / PROVENANCE).exists():
        write_provenance(root, provenance)
        return
    data, copy = (root / PROVENANCE).read_bytes(), root / PROVENANCE_COPY
    if not copy.is_file() or copy.read_bytes() != data:
        _write_copy(root, data)


def _write_copy(root: Path, data: bytes) -> None:
    copy = root / PROVENANCE_COPY
    if (remote := remote_at(root)) is not None:
        with contextlib.suppress(StoreError):  # the next writer completes it
            remote.put(PROVENANCE_COPY, data)
    try:
        copy.parent.mkdir(exist_ok=True)
        part = copy.with_name(copy.name + PARTIAL)
        part.write_bytes(data)
        os.replace(part, copy)
    except OSError:
        return  # a full disk will be told where it loses something; the next writer completes the copy
