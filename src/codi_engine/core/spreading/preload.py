"""Loaded by every worker process of a local cluster before it begins: what it says goes to a file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


def dask_setup(worker: Any) -> None:
    """Let whatever this process writes go to a file: the terminal is the command's."""
    from codi_engine.core.spreading.cluster import WORDS

    folder = os.environ.get(WORDS)
    if folder:
        write_to(Path(folder) / f"{worker.name}.txt")


def write_to(path: Path) -> None:
    """Append this process' output to a file from now on."""
    with path.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
