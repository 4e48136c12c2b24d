"""What the planner calls the same computation, or none at all, is just that: checked on the demo model, bit for bit."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.planning.vacuity import effective
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.core.runs.results import Run

Maker = Callable[..., Experiment]
PAIRS = {"plugin": "demo-pairs", "limit": 2}


def patch(**keys: Any) -> dict[str, Any]:
    return {"plugin": "patch", "site": "latent_in", "direction": "denoise", **keys}


def bits(run: Run) -> dict[str, tuple[bytes, bytes, str]]:
    """Key of each edited cell → the bits of its first logits, of what was read at the number, and its text."""
    cells = run.cells[run.cells["condition"] != "baseline"]
    logits = run.activations("logits", edited=True).values
    read = cells[["cross_entropy", "kl"]].to_numpy()
    return {key: (first.tobytes(), number.tobytes(), text) for key, text, first, number in zip(cells["key"], cells["text"], logits, read, strict=True)}


def measured(**keys: Any) -> dict[str, Any]:
    return {"data": PAIRS, "metrics": ["kl", "cross_entropy"], "capture": ["logits"], "generate": {"max_new_tokens": 5}, **keys}


def of_baseline(run: Run) -> dict[tuple[str, str], tuple[bytes, str]]:
    """(example, variant) → first logits and text, unedited."""
    logits = run.activations("logits").values
    cells = run.baseline
    return {(e, v): (first.tobytes(), text) for e, v, text, first in zip(cells["example"], cells["variant"], cells["text"], logits, strict=True)}


SWEEPS: dict[str, dict[str, Any]] = {
    "post": {"site": "resid_post", "sweep": {"layer": "all", "step": [0, 3, 5, [0, 5], [4, 5], [3, 4, 5]]}},
    "post_frozen": {"site": "resid_post", "downstream": "freeze", "sweep": {"layer": [0, 3, [0, 3]], "step": [0, 4, 5, [4, 5]]}},
    "mlp": {"site": "mlp_out", "sweep": {"layer": [2, 3], "step": [2, 5, [2, 5]]}},
    "attn_frozen": {"site": "attn_out", "downstream": "freeze", "sweep": {"layer": [1, 3], "step": [2, 5]}},
    "z": {"site": "attn_z", "sweep": {"layer": [3], "step": [4, 5], "head": [0, [0, 1]]}},
    "keys": {"site": "k", "sweep": {"layer": [3], "step": [4, 5]}},
    "queries": {"site": "q", "sweep": {"layer": [2, 3], "step": [4, 5]}},
    "middle": {"site": "resid_mid", "sweep": {"layer": [3], "step": [4, 5]}},
    "pre": {"site": "resid_pre", "downstream": "freeze", "sweep": {"layer": [0, 3], "step": [4, 5]}},
    "into": {"site": "latent_in", "sweep": {"step": [0, 5, [0, 1], [4, 5]]}},
    "into_chained": {"site": "latent_in", "chain": True, "sweep": {"step": [0, [0, 1], [0, 1, 2, 3], [4, 5]]}},
    "into_frozen": {"site": "latent_in", "downstream": "freeze", "sweep": {"step": [0, 5, [0, 1], [3, 4, 5]]}},
    "into_chained_frozen": {"site": "latent_in", "chain": True, "downstream": "freeze", "sweep": {"step": [0, [0, 1], [0, 1, 2, 3, 4, 5], [4, 5]]}},
    "post_chained_frozen": {"site": "resid_post", "chain": True, "downstream": "freeze", "sweep": {"layer": [1], "step": [0, [0, 1], [4, 5]]}},
    "out": {"site": "latent_out", "sweep": {"step": [0, 5, [0, 5]]}},
    "out_frozen": {"site": "latent_out", "downstream": "freeze", "sweep": {"step": [0, 5]}},
    "final": {"site": "final_norm", "sweep": {"step": [0, 5]}},
    "prompt": {"site": "resid_post@prompt", "sweep": {"layer": [1, 3], "position": [-1, -2, [-2, -1]]}},
    "prompt_frozen": {"site": "resid_post@prompt", "downstream": "freeze", "sweep": {"layer": [1, 3], "position": [-1, -2]}},
    "prompt_mlp": {"site": "mlp_out@prompt", "sweep": {"layer": [3], "position": [-1, -2]}},
}


def test_the_planners_word_is_the_models(demo: Maker, tmp_path: Path) -> None:
    """Cells called dead equal the unedited run; cells of one form are equal; cells of different forms differ, but for a few."""
    conditions = {}
    for name, spec in SWEEPS.items():
        keys = {k: v for k, v in spec.items() if k != "sweep"}
        conditions[name] = {"intervention": patch(**keys), "sweep": spec["sweep"]}
    made = demo(**measured(conditions=conditions, allow_vacuous=True))
    plan = plan_experiment(made).prepared.plan
    run = run_experiment(made, tmp_path / "run").open()
    found, base = bits(run), of_baseline(run)
    forms: dict[tuple[str, str], set[tuple[bytes, bytes, str]]] = defaultdict(set)
    dead = alive = same_as_base = 0
    for cell in plan.cells:
        condition = plan.conditions[cell.condition]
        form = effective(condition, cell.values, plan.info)
        first, number, text = found[cell.key]
        equal = (first, text) == base[cell.example, "corrupted"]
        if form is None:
            dead += 1
            assert equal, (condition.name, cell.values)
            assert np.frombuffer(number)[1] == 0, (condition.name, cell.values)
        else:
            alive += 1
            same_as_base += equal
            forms[cell.example, form].add(found[cell.key])
    several = {k: len(v) for k, v in forms.items() if len(v) > 1}
    assert several == {}
    assert dead >= 20
    assert alive >= 80
    coinciding: dict[Any, list[str]] = defaultdict(list)
    for (example, form), values in forms.items():
        coinciding[example, next(iter(values))].append(json.loads(form)["component"])
    # one place has several names (the last block's output is the next latent), but two forms of one component are two computations
    assert [names for names in coinciding.values() if len(set(names)) < len(names)] == []
    assert len(coinciding) > 0.8 * len(forms)
    assert same_as_base <= 0.05 * alive


def test_chained_cells_are_the_single_patch_at_their_first_step(demo: Maker, tmp_path: Path) -> None:
    conditions = {
        "single": {"intervention": patch(), "sweep": {"step": [1]}},
        "chained": {"intervention": patch(chain=True), "sweep": {"step": [[1, 2], [1, 2, 3, 4, 5]]}},
        "every": {"intervention": patch(), "sweep": {"step": [[1, 2]]}},
    }
    made = demo(**measured(conditions=conditions))
    with pytest.raises(UserError) as caught:
        plan_experiment(made)
    assert str(caught.value) == (
        "experiment: condition 'chained': its 2 points are 1 different computation; conditions 'single' and 'chained' are the same computation: "
        "comparing them says nothing.\nChange one, or set allow_vacuous: true to run them anyway."
    )
    run = run_experiment(demo(**measured(conditions=conditions, allow_vacuous=True)), tmp_path / "run")
    assert "conditions 'single' and 'chained' are the same computation" in run.notes
    cells = run.open().cells
    found = bits(run.open())
    for example, part in cells[cells["condition"] != "baseline"].groupby("example"):
        of = {name: {found[k] for k in rows["key"]} for name, rows in part.groupby("condition")}
        assert of["single"] == of["chained"], example
        assert of["single"].isdisjoint(of["every"]), example


def test_cumulative_is_three_things(demo: Maker, tmp_path: Path) -> None:
    """Values of the partner at every step of a growing set differ from letting the patched run go on by itself."""
    conditions = {
        "each": {"intervention": patch(), "sweep": {"step": "cumulative"}},
        "chained": {"intervention": patch(chain=True), "sweep": {"step": "cumulative"}},
        "frozen": {"intervention": patch(downstream="freeze"), "sweep": {"step": "cumulative"}},
    }
    run = run_experiment(demo(**measured(conditions=conditions, allow_vacuous=True)), tmp_path / "run").open()
    cells = run.cells[run.cells["condition"] != "baseline"]
    table = cells.pivot_table(index=["example", "step"], columns="condition", values="kl").reset_index()
    for _, part in table.groupby("example"):
        assert part["chained"].nunique() == 1
        assert part["each"].nunique() == part["frozen"].nunique() == 6
        first, last = part["step"] == "0", part["step"] == "0+1+2+3+4+5"
        assert (part[first]["chained"] == part[first]["each"]).all()
        assert (part[last]["each"] == part[last]["frozen"]).all()  # nothing is left to be pinned


VACUOUS: list[tuple[dict[str, Any], str]] = [
    (
        {"a": {"intervention": patch()}, "b": {"intervention": patch(step=2), "sweep": {}}, "sweep": {"step": [2]}},
        "conditions 'a' and 'b' are the same computation",
    ),
    (
        {"a": {"intervention": patch(site="resid_post.1")}, "b": {"intervention": patch(site="resid_post.1", downstream="freeze")}, "sweep": {"step": [5]}},
        "conditions 'a' and 'b' are the same computation",
    ),
    (
        {"a": {"intervention": patch(site="resid_post.3")}, "sweep": {"step": [5]}},
        "condition 'a' cannot change anything: no later computation reads resid_post.3 there",
    ),
    (
        {"a": {"intervention": patch(site="latent_out", downstream="freeze")}, "sweep": {"step": "all"}},
        "condition 'a' cannot change anything: no later computation reads latent_out there",
    ),
    (
        {"a": {"intervention": patch(chain=True)}, "sweep": {"step": "cumulative"}},
        "condition 'a': its 6 points are 1 different computation",
    ),
]


@pytest.mark.parametrize(("spec", "said"), VACUOUS)
def test_comparisons_that_say_nothing_are_refused(demo: Maker, spec: dict[str, Any], said: str) -> None:
    conditions = {k: v for k, v in spec.items() if k != "sweep"}
    with pytest.raises(UserError) as caught:
        plan_experiment(demo(conditions=conditions, sweep=spec["sweep"]))
    assert str(caught.value) == (f"experiment: {said}: comparing them says nothing.\nChange one, or set allow_vacuous: true to run them anyway.")
    assert said in plan_experiment(demo(conditions=conditions, sweep=spec["sweep"], allow_vacuous=True)).prepared.plan.notes


def test_places_that_nothing_reads_are_named(demo: Maker) -> None:
    plan = plan_experiment(demo(intervention=patch(site="resid_post"), sweep={"layer": "all", "step": "all"})).prepared.plan
    assert plan.notes == ["condition 'patch': 1 of 24 places change nothing, nothing reads them: layer 3 step 5"]


def test_shared_computations_are_counted(demo: Maker) -> None:
    conditions = {"a": {"intervention": patch(), "sweep": {"step": [0, 1]}}, "b": {"intervention": patch(), "sweep": {"step": [1, 2, 3]}}}
    assert plan_experiment(demo(conditions=conditions)).prepared.plan.notes == ["1 of 3 computations of 'b' are also in 'a'"]
