"""Records on disk."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any


def write_lines(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def few_problems(folder: Path, pool: int = 60, limit: int = 2) -> dict[str, Any]:
    """Return a data set of some of the demo's problems, of every number of steps: a pool that is quickly gone through twice."""
    text = files("codi_engine.plugins").joinpath("demo", "problems.jsonl").read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[:: len(lines) // pool][:pool]), encoding="utf-8")
    return {"plugin": "problems", "path": str(folder / "few.jsonl"), "limit": limit}
