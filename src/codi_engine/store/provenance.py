"""``provenance.json``: free facts about how a run was made, rewritten as a whole, with its own checksum."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codi_engine.store.errors import StoreError
from codi_engine.store.layout import PROVENANCE

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
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        content = json.loads(raw)
        stated = content.pop(_KEY)
        if encode_provenance(content) != raw or stated != _checksum(content):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise StoreError(f"{path}: is damaged; restore it from a copy, or delete it to go on without it") from None
    return dict(content)
