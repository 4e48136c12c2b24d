"""What a run is called in messages: a run at an object store by its URL, not by the folder of this machine that holds its small files."""

from __future__ import annotations

from pathlib import Path

#: folder of this machine → URL
_NAMES: dict[str, str] = {}


def call(root: Path, url: str) -> None:
    """Let messages call a folder, and what is below it, by a URL."""
    _NAMES[str(root)] = url


def elsewhere() -> bool:
    """Say whether this process has to do with any run at an object store."""
    return bool(_NAMES)


def named(text: str) -> str:
    """Return a text with folders that hold the small files of runs elsewhere called by these runs' URLs."""
    for folder, url in _NAMES.items():
        if folder in text:
            text = text.replace(folder, url)
    return text
