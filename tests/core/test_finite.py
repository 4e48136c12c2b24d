"""Rows that are no numbers: unedited ones stop the run, edited ones are marked and counted, and it is said where it began."""

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
from codi_engine.core.errors import DifferentRun, PluginError, UserError
from codi_engine.core.plugin import Intervention, NoOptions, Rows
from codi_engine.core.plugins import Plugins, plugin_manager
from codi_engine.core.progress import Progress
from codi_engine.core.returned import Unsettled, applied
from codi_engine.core.rollout.finite import all_finite, broken_cells
from codi_engine.core.rollout.sampling import Sampler, sample
from codi_engine.core.running.finite import Watch, check_policy, undefined
from codi_engine.core.running.marks import in_words, marked_slots
from codi_engine.core.running.run import run_experiment
from codi_engine.core.watching.status import status_of


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_not_finite_is_seen(bad: float, dtype: torch.dtype) -> None:
    values = torch.full((3, 2, 70), 60000.0).to(dtype)
    assert all_finite(values).all()  # whose sum is none of float16
    for place in (0, 31, 69):
        spoilt = values.clone()
        spoilt[1, 0, place] = bad
        assert (~all_finite(spoilt)).nonzero().tolist() == [[1, 0]]


def test_places_that_a_cell_does_not_reach_are_no_fault() -> None:
    logits, none = torch.zeros(3, 5), torch.empty(0, 5)
    captured = torch.zeros(3, 2, 4)
    captured[0, 0] = captured[2, 1] = torch.nan
    wanted: Any = {("resid_post", "prompt"): ((1,), (-7, -1)), ("resid_post", "latent"): ((1,), (0, 1))}
    lengths, latents = np.array([3, 9, 9]), np.array([2, 2, 1])
    for phase, bad in (("prompt", [2]), ("latent", [0])):
        found = broken_cells((logits, none), {("resid_post", 1, phase): captured}, wanted, lengths, latents)  # type: ignore[dict-item]
        assert np.flatnonzero(found).tolist() == bad
    logits[1, 4] = -torch.inf
    assert np.flatnonzero(broken_cells((none, logits), {}, {}, lengths, latents)).tolist() == [1]


@pytest.mark.parametrize("sampler", [Sampler(), Sampler(0.7, top_k=3), Sampler(1.0, top_p=0.5)])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_nothing_is_drawn_from_logits_that_are_no_numbers(bad: float, sampler: Sampler) -> None:
    logits = torch.zeros(2, 8)
    logits[1, 3] = bad
    drawn = sample(logits, np.array([0, 1, 0]), [1, 2, 3], [0, 0, 0], sampler)
    assert drawn[1] == -1
    assert (drawn[[0, 2]] >= 0).all()


def test_an_infinite_metric_is_said_once() -> None:
    said: list[str] = []
    placed: Any = [SimpleNamespace(cell=SimpleNamespace(example=f"e{i}", values={"layer": (i,), "factor": 2.0})) for i in range(4)]
    watch = Watch(None, said.append)
    for _ in range(2):
        watch.metrics(["a", "a", "b", "b"], placed, {"m": np.array([0.0, np.inf, 1.0, np.nan])})
    assert said == [
        "condition 'a': metric 'm' is infinite, first at example 'e1', layer 1, factor 2.0 (1 of 2 cells of its batch); means over these cells are no numbers"
    ]


def test_marks_are_read_from_the_ledger() -> None:
    committed: Any = {
        0: {"stage": "baseline", "rows": 4, "note": {"nonfinite": [1]}}, 1: {"stage": "sources", "rows": 0, "note": {"nonfinite": [0, 2]}},
        2: {"stage": "sweep", "rows": 8, "note": {"nonfinite": [3, 5]}}, 3: {"stage": "sweep", "rows": 8},
    }  # fmt: skip
    assert marked_slots(committed, 16).tolist() == [1, 35, 37]
    assert in_words(committed).startswith("2 of 16 edited cells and 3 unedited rows are not finite")
    assert in_words({}) == ""
    assert undefined({"m": np.ones(2)}, np.array([False, True]))["m"].tolist()[0] == 1.0
    check_policy(committed, "mark", "run")
    for policy, said in ((None, "3 unedited rows"), ("stop", "3 unedited rows")):
        with pytest.raises(DifferentRun, match=rf"run: holds {said} that are not finite, which .* does not allow.\nSet nonfinite: mark again"):
            check_policy(committed, policy, "run")
    check_policy({2: committed[2]}, None, "run")
    with pytest.raises(DifferentRun, match="2 edited cells"):
        check_policy({2: committed[2]}, "stop", "run")


class Huge(Intervention[NoOptions]):
    """Values that are finite, and whose squares are not: what a norm makes of them is no number."""

    name = "huge"
    Options = NoOptions

    def apply(self, rows: Rows) -> torch.Tensor:
        chosen = torch.tensor([str(e).endswith(("1", "3", "5", "7", "9")) for e in rows.labels["example"]])[:, None]
        return torch.where(chosen, torch.where(rows.values > 0, 3e38, -3e38), rows.values)


@pytest.fixture
def huge(monkeypatch: pytest.MonkeyPatch) -> None:
    def manager(load: bool = True) -> Plugins:
        made = plugin_manager(load=False)
        made.register(SimpleNamespace(interventions=hookimpl(lambda: [Huge])), "codi-huge", "1")
        return made

    monkeypatch.setattr(manager_module, "plugin_manager", manager)


SETTING: dict[str, Any] = {
    "intervention": {"plugin": "huge", "site": "attn_out", "layer": 1, "on": "clean"}, "sweep": {"step": [0, 2]}, "metrics": ["kl", "accuracy"],
    "capture": ["resid_post.2@latent"], "analyses": ["importance"], "controls": "none",
}  # fmt: skip


def test_edited_cells_are_marked_counted_and_left_out(huge: None, demo: Callable[..., Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    progress = Progress()
    monkeypatch.setattr(progress, "note", said.append)
    finished = run_experiment(demo(**SETTING), tmp_path / "run", progress=progress)
    run = finished.open()
    edited = run.cells[run.cells["condition"] != "baseline"]
    bad = edited["example"].astype(str).str.endswith(("1", "3", "5", "7", "9"))
    assert 0 < bad.sum() < len(edited)
    assert edited["nonfinite"].tolist() == bad.tolist()
    assert edited.loc[bad, ["kl", "accuracy", "answer"]].isna().all().all()  # not "a wrong answer"
    assert edited.loc[~bad, ["kl", "accuracy"]].notna().all().all()
    assert not run.cells.loc[run.cells["condition"] == "baseline", "nonfinite"].any()
    total = f"{bad.sum()} of {len(edited)} edited cells are not finite (NaN or infinity): marked in the column nonfinite, left out of every mean and test"
    told = [text for text in said if "not finite" in text]
    assert len(told) == 2
    assert told[1] == total
    assert told[0].startswith("condition 'huge': after the edit the model's values are not finite, first at example '")
    assert " in resid_post.1@latent[" in told[0]
    assert status_of(run.path).nonfinite == total
    assert finished.summaries["importance"].endswith(f"{total}.")
    kept = run.activations("resid_post.2@latent", edited=True)
    assert kept.sizes["cell"] == int((~bad).sum())
    assert bool(np.isfinite(kept.values).all())
    assert run.store.verify() == []
    with pytest.raises(DifferentRun, match="edited cells that are not finite, which nonfinite: stop does not allow"):
        run_experiment(demo(**SETTING, nonfinite="stop"), tmp_path / "run")
    run_experiment(demo(**SETTING, nonfinite="mark"), tmp_path / "run")  # nothing of it would have stopped


def test_stop_stops_at_an_edited_cell(huge: None, demo: Callable[..., Experiment], tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        run_experiment(demo(**SETTING, nonfinite="stop"), tmp_path / "run")
    said, remedy = str(caught.value).split("\n")
    assert said == (
        "experiment: condition 'huge': after the edit the model's values are not finite at example '1', layer 1, step 0, "
        "first in resid_post.1@latent[0] (float32; 2 of 6 cells of its batch)."
    )
    assert remedy.startswith("Make the edit smaller")


class Inf(Huge):
    """Values that are not finite."""

    def apply(self, rows: Rows) -> torch.Tensor:
        return torch.where(torch.arange(len(rows.values))[:, None] == 1, torch.inf, rows.values)


def test_values_on_a_gpu_are_looked_at_once_a_batch() -> None:
    rows = Rows(torch.ones(3, 4, device="meta"), {"example": np.array(["a", "b", "c"])}, "resid_post", 1, 0)
    unsettled = Unsettled()

    class Meta(Huge):
        def apply(self, rows: Rows) -> torch.Tensor:
            return rows.values * 2

    applied(Meta(NoOptions()), rows, unsettled)  # a tensor without values: any look at one of them would raise
    unsettled = Unsettled()
    here = Rows(torch.ones(3, 4), rows.labels, "resid_post", 1, 0)
    with pytest.raises(PluginError, match=r"NaN or infinite values at resid_post\.1@latent\[0\] for example 'b' \(1 of 3 rows\)"):
        applied(Inf(NoOptions()), here)
    unsettled.add(torch.zeros(3, dtype=torch.bool), Huge(NoOptions()), here, "at x")
    unsettled.settle()
    unsettled.add(torch.tensor([False, False, True]), Huge(NoOptions()), here, "at x")
    with pytest.raises(PluginError, match=r"NaN or infinite values at x for example 'c' \(1 of 3 rows\)"):
        unsettled.settle()
    unsettled.settle()  # each is said once
