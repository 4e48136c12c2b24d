"""Files that are either whole and durable or not there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from codi_engine.store.errors import StoreError
from codi_engine.store.ledger import sync_directory

PARTIAL = ".partial"


def write_durably(path: Path, data: bytes) -> None:
    """Write to a temporary name, fsync, rename, fsync the directory."""
    temporary = path.with_name(path.name + PARTIAL)
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_directory(path.parent)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def facts(data: bytes) -> dict[str, object]:
    """Return what the ledger records of a file."""
    return {"size": len(data), "sha256": sha256(data)}


def read_checked(root: Path, name: str, stated: dict[str, object]) -> bytes:
    """Return a file's bytes after comparing them with the ledger.

    Raises
    ------
    StoreError: missing, truncated or damaged, by name
    """
    try:
        data = (root / name).read_bytes()
    except FileNotFoundError:
        raise StoreError(f"{root / name}: is missing, although the ledger says that it was written") from None
    except OSError as error:
        raise StoreError(f"{root / name}: cannot be read: {error.strerror}") from None
    if len(data) != stated["size"]:
        raise StoreError(f"{root / name}: has {len(data):,} bytes; {stated['size']:,} were written")
    if sha256(data) != stated["sha256"]:
        raise StoreError(f"{root / name}: is damaged (its checksum differs from the ledger's)")
    return data


def clean_partials(path: Path) -> None:
    """Remove what an interrupted write left behind."""
    for leftover in path.rglob("*"):
        if leftover.is_file() and (leftover.name.endswith(PARTIAL) or ".partial" in leftover.suffixes):
            leftover.unlink()
