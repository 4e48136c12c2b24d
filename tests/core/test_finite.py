"""Edits that are too large for the model, and metrics without a finite value, are said with their first cell, once per condition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from codi_engine import Experiment, hookimpl
from codi_engine.core import plugins as manager_module
from codi_engine.core.plugin import Intervention, NoOptions, Outcome, Rows
from codi_engine.core.plugins import Plugins, plugin_manager
from codi_engine.core.progress import Progress
from codi_engine.core.running.finite import Overflow, overflowed
from codi_engine.core.running.run import run_experiment


def outcome(number: torch.Tensor, first: torch.Tensor, rows: int) -> Outcome:
    unread = np.full((rows, 8), np.nan)
    return Outcome([""] * rows, np.full(rows, np.nan), number, first, unread, unread, unread, unread)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_rows_whose_logits_are_not_finite(bad: float) -> None:
    whole, none = torch.zeros(3, 5), torch.zeros(0)
    spoilt = whole.clone()
    spoilt[1] = bad
    assert overflowed(outcome(whole, whole, 3)) == []
    assert overflowed(outcome(none, none, 3)) == []
    assert overflowed(outcome(spoilt, whole, 3)) == [1]
    assert overflowed(outcome(none, spoilt, 3)) == [1]


def test_each_condition_is_told_once_with_its_first_cell() -> None:
    said: list[str] = []
    placed: Any = [SimpleNamespace(cell=SimpleNamespace(example=f"e{i}", values={"layer": (i,), "factor": 2.0})) for i in range(4)]
    logits = torch.zeros(4, 5)
    logits[2:] = torch.nan
    watch = Overflow(said.append)
    for _ in range(2):
        watch.look(["a", "a", "b", "b"], placed, outcome(logits, logits, 4), {"m": np.array([0.0, np.inf, 1.0, np.nan])})
    assert said == [
        "condition 'b': after the edit the model's logits are not finite, first at example 'e2', layer 2, factor 2.0 (2 of 2 cells of its batch); "
        "metrics are undefined there: is the edit too large for the model's dtype?",
        "condition 'a': metric 'm' is infinite, first at example 'e1', layer 1, factor 2.0 (1 of 2 cells of its batch); means over these cells are no numbers",
    ]


class Huge(Intervention[NoOptions]):
    """Values that are finite, and whose squares are not: what a norm makes of them is no number."""

    name = "huge"
    Options = NoOptions

    def apply(self, rows: Rows) -> torch.Tensor:
        return torch.where(rows.values > 0, 3e38, -3e38)


def test_a_run_says_it(demo: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def manager(load: bool = True) -> Plugins:
        made = plugin_manager(load=False)
        made.register(SimpleNamespace(interventions=hookimpl(lambda: [Huge])), "codi-huge", "1")
        return made

    monkeypatch.setattr(manager_module, "plugin_manager", manager)
    said: list[str] = []
    progress = Progress()
    monkeypatch.setattr(progress, "note", said.append)
    experiment = demo(intervention={"plugin": "huge", "site": "attn_out", "layer": 1, "on": "clean"}, sweep={"step": [0, 2]}, metrics=["kl"])
    run = run_experiment(experiment, tmp_path / "run", progress=progress).open()
    edited = run.cells[run.cells["condition"] != "baseline"]
    told = [text for text in said if "logits are not finite" in text]
    assert bool(told) == bool(edited["kl"].isna().any()), (said, edited["kl"].tolist())
    assert len(told) == 1
    assert told[0].startswith("condition 'huge': after the edit the model's logits are not finite, first at example '")
