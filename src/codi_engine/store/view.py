"""A run as a process sees it that computes units of it and commits none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.store.reader import RunReader


class RunView:
    """What is committed, read as a :class:`~codi_engine.store.writer.RunWriter` reads it; :meth:`refresh` sees what was added since."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader = RunReader(path)

    def refresh(self) -> None:
        """Read the ledger again."""
        self._reader = RunReader(self._path)

    @property
    def unit_cells(self) -> int:
        """Return the slots per unit."""
        return self._reader.unit_cells

    @property
    def plans(self) -> list[dict[str, Any]]:
        """Return the plan records, oldest first."""
        return self._reader.plans

    @property
    def labels(self) -> dict[str, list[Any]]:
        """Return array name → the labels that its codes stand for."""
        return {name: list(spec.attrs["labels"]) for name, spec in self._reader.specs.items() if "labels" in spec.attrs}

    @property
    def committed(self) -> dict[int, dict[str, Any]]:
        """Return unit → its ledger record."""
        return self._reader.committed

    def read(self, name: str, unit: int) -> np.ndarray:
        """Return the ``unit_cells`` rows that a committed unit wrote, checked against the ledger."""
        return self._reader.read_unit(name, unit)
