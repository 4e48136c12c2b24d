"""Importing in tests: good imports are verified, refusals leave nothing behind."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine import open_run
from codi_engine.core.errors import UserError
from codi_engine.core.imports.importing import Imported, import_files
from codi_engine.core.runs.results import Run

STATES = "activations/latent_out=states[example ; step, width]"
VALUES = np.random.default_rng(0).normal(size=(7, 3, 4)).astype(np.float32)


def imported(files: Sequence[str | Path], *mapping: str, **options: Any) -> tuple[Run, Imported]:
    done = import_files(files, mapping, output=options.pop("output", "run"), **options)
    run = open_run(done.path)
    assert run.store.verify() == []
    return run, done


def refused(files: Sequence[str | Path], *mapping: str, **options: Any) -> str:
    """The message of a refusal: one or two lines, and nothing on disk."""
    with pytest.raises(UserError) as caught:
        import_files(files, mapping, output="refused", **options)
    assert not Path("refused").exists()
    text = str(caught.value)
    assert 1 <= len(text.splitlines()) <= 2
    return text


def lines(path: Path | str, records: Sequence[Any]) -> Path:
    Path(path).write_text("\n".join(json.dumps(r) for r in records) + "\n", encoding="utf-8")
    return Path(path)


def peak(call: Callable[[], Any]) -> int:
    """Bytes that a call holds at most; what is imported by the first import of all is not counted."""
    np.save("warm.npy", VALUES)
    lines("warm.jsonl", [{"example": 0, "x": 1}])
    import_files(["warm.npy", "warm.jsonl"], ["activations/x=.[example ; step, width]", "example=example", "text=x"], output="warm")
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
