"""A small run that every test of the store can write: all kinds of arrays, texts, and units that do not write everything."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from codi_engine.store.layout import ArraySpec
from codi_engine.store.unitfiles import Content
from codi_engine.store.writer import RunWriter

CELLS = 8
NAN = float("nan")
IDENTITY = {"model": {"checkpoint": "demo"}, "seed": 0}
CAPTURE = "activations/resid_post.8@latent[3]/value"
CODES = "activations/sae/value"
SOURCE = "sources/answer/value"


def specs(columns: int = 2) -> list[ArraySpec]:
    """Return codes, status, metrics, a capture cut into several chunks, sparse codes and a source array."""
    axes = [ArraySpec(f"cells/{a}", ("cell",), (), "int32", -1, attrs={"labels": []}) for a in ("example", "condition", "layer")]
    metrics = [ArraySpec(f"cells/metrics/m{i}", ("cell",), (), "float64", NAN) for i in range(columns)]
    return [
        *axes, *metrics, ArraySpec("cells/status", ("cell",), (), "uint8", 0),
        ArraySpec(CAPTURE, ("cell", "step", "width"), (2, 3), "float32", NAN, attrs={"coords": {"step": [0, 1]}}),
        ArraySpec(CODES, ("cell", "width"), (40,), "float32", 0.0, sparse=True),
        ArraySpec(SOURCE, ("cell", "answer"), (1,), "float64", NAN),
    ]  # fmt: skip


def labels(examples: int) -> dict[str, list[Any]]:
    return {
        "cells/example": [f"e{i}" for i in range(examples)],
        "cells/condition": ["baseline", "patch"],
        "cells/layer": [0, 1, "0+1"],
    }


def unit_arrays(unit: int, rows: int = CELLS) -> dict[str, np.ndarray]:
    """Return what a unit writes; a function of its number alone."""
    rng = np.random.default_rng(unit)
    arrays: dict[str, np.ndarray] = {
        "cells/example": np.full(rows, unit % 3, np.int32),
        "cells/condition": np.full(rows, int(unit > 0), np.int32),
        "cells/layer": np.full(rows, -1 if unit == 0 else unit % 3, np.int32),
        "cells/status": np.ones(rows, np.uint8),
        "cells/metrics/m0": rng.normal(size=rows),
        "cells/metrics/m1": rng.normal(size=rows),
        CAPTURE: rng.normal(size=(rows, 2, 3)).astype(np.float32),
        CODES: np.where(rng.random((rows, 40)) < 0.05, 1.5, 0.0).astype(np.float32),
    }
    if unit == 0:
        arrays[SOURCE] = rng.normal(size=(rows, 1))
    return arrays


def unit_texts(unit: int, rows: int = CELLS) -> dict[str, list[Any]]:
    return {"key": [f"{unit:04x}{r:04x}" for r in range(rows)], "text": [f"antwoord {unit} é {r}" for r in range(rows)], "steps": [unit] * rows}


def rows_of(unit: int) -> int:
    return CELLS - unit % 3


def write(path: Path, units: int, plans: int = 1, say: bool = False) -> None:
    """Write a run of ``plans`` × ``units`` units, or go on with it."""
    with RunWriter.open(path, identity=IDENTITY, unit_cells=CELLS, experiment="", provenance={"by": "test"}) as writer:
        for plan in range(plans):
            if len(writer.plans) <= plan:
                writer.experiment = f"name: plan {plan}\n"
                writer.add_plan({"plan": plan}, units, specs(), labels(3 * (plan + 1)))
            for unit in range(plan * units, (plan + 1) * units):
                if unit not in writer.committed:
                    rows = rows_of(unit)
                    stage = "sweep" if unit else "baseline"
                    writer.commit(unit, stage, Content(unit_arrays(unit, rows), unit_texts(unit, rows), {"plan": plan}))
                    if say:
                        sys.stdout.write(f"{unit}\n")
                        sys.stdout.flush()


def content(path: Path) -> dict[str, bytes]:
    """Return every file of a run but its provenance (which holds times in real runs)."""
    files = {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    for name in ("provenance.json", "copies/provenance.copy"):
        files.pop(name, None)
    return files


def kill_at(call: int) -> None:
    """Let this process die by SIGKILL at its n-th fsync or rename."""
    count = 0

    def counted(real: Any) -> Any:
        def run(*args: Any) -> Any:
            nonlocal count
            count += 1
            if count == call:
                os.kill(os.getpid(), 9)
            return real(*args)

        return run

    os.fsync, os.replace = counted(os.fsync), counted(os.replace)


if __name__ == "__main__":
    if len(sys.argv) > 4:
        kill_at(int(sys.argv[4]))
    write(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), say=True)
