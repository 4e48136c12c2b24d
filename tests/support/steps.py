"""Runs for tests of step analyses: real ones on the demo model, and planted ones that are frames only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest

from codi_engine import Experiment, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.work import Work

ZERO = {"plugin": "zero", "site": "latent_in"}


def demo_run(folder: Path, **keys: Any) -> Run:
    """Run an experiment on the demo model and open it."""
    value = {
        "name": "steps",
        "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
        "data": {"plugin": "demo-problems", "limit": 8},
        "generate": {"max_new_tokens": 5},
        "controls": "none",
    }
    return open_run(Experiment.from_dict({**value, **keys}).run(folder / "run").path)


def analysed(analysis: type[Analysis[Any]], run: Run, **options: Any) -> Any:
    """An AnalysisResult, untyped: tests look into its tables in ways that stubs of pandas do not know."""
    return analysis(analysis.Options(**options)).analyze([run], Work())


def refused(analysis: type[Analysis[Any]], run: Run, **options: Any) -> str:
    """The message of a refusal: one or two lines that begin with the analysis' name."""
    with pytest.raises(UserError) as caught:
        analysed(analysis, run, **options)
    text = str(caught.value)
    assert text.startswith(f"{analysis.name}: ")
    assert text.count("\n") <= 1
    return text


class Planted:
    """A run of planted values: condition → label of edited steps → one value per example (or examples × donors)."""

    def __init__(self, values: Mapping[str, Mapping[Any, np.ndarray]], metric: str = "accuracy", base: Any = 1.0, **more: Any) -> None:
        self.path = Path("planted")
        self.experiment: dict[str, Any] = {"name": "planted", "conditions": more.get("conditions", {c: {"intervention": ZERO} for c in values})}
        self.metrics = [metric, *more.get("also", {})]
        first = next(iter(next(iter(values.values())).values()))
        fields = more.get("fields", {})
        rows = [
            {"example": f"e{i}", "condition": "baseline", metric: np.broadcast_to(base, len(first))[i], **{k: v[i] for k, v in more.get("also", {}).items()}}
            for i in range(len(first))
        ]
        for condition, sets in values.items():
            for label, column in sets.items():
                for (i, *donor), value in np.ndenumerate(column):
                    row = {"example": f"e{i}", "condition": condition, "step": str(label), metric: value}
                    rows.append(row | ({"donor": donor[0]} if donor else {}))
        self.cells = pd.DataFrame(rows)
        for name, column in fields.items():
            self.cells[name] = [column[int(e[1:])] for e in self.cells["example"]]
        self.axes = [a for a in ("example", "condition", "step", "donor") if a in self.cells]

    @property
    def baseline(self) -> pd.DataFrame:
        return self.cells[self.cells["condition"] == "baseline"]


def planted(values: Mapping[str, Mapping[Any, np.ndarray]], **more: Any) -> Run:
    return cast(Run, Planted(values, **more))


def by_steps(run: Run, condition: str, metric: str, steps: Sequence[Any]) -> np.ndarray:
    """The naive reading: examples × steps, edited minus the same prompt unedited, donors averaged, cell by cell."""
    cells = run.cells
    part = cells[cells["condition"] == condition]
    examples = list(dict.fromkeys(part["example"]))
    out = np.zeros((len(examples), len(steps)))
    for i, example in enumerate(examples):
        mine = part[part["example"] == example]
        base = run.baseline[run.baseline["example"] == example]
        if "variant" in mine:
            base = base[base["variant"] == mine["variant"].iloc[0]]
        for j, step in enumerate(steps):
            values = [v for s, v in zip(mine["step"], mine[metric], strict=True) if str(s) == str(step)]
            out[i, j] = sum(values) / len(values) - base[metric].iloc[0]
    return out
