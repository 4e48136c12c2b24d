"""Plans of large runs: cells' keys, and how large units are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from codi_engine import Experiment, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.planning.plan import Digests, digest
from codi_engine.core.running.run import plan_experiment, run_experiment

Maker = Callable[..., Experiment]
#: labels as examples, options and places have them, and stranger ones
LABELS: list[Any] = [
    None,
    True,
    -1,
    1.5e300,
    0.1,
    "",
    "a,b]",
    'é"\\\n',
    [],
    [1, (2, 3)],
    {"b": 1, "a": {"c": [None]}},
    Path("a/b"),
    {"step": (0, 3), "layer": (2,)},
]


@pytest.mark.parametrize("first", LABELS, ids=repr)
def test_labels_that_begin_alike_have_the_digests_they_had(first: Any) -> None:
    for second in LABELS:
        begun = Digests(first, second)
        assert begun.of(7) == digest(first, second, 7)
        for point in LABELS:
            assert begun.then(point).of(0) == digest(first, second, point, 0)
            assert begun.then(point).then(1).of(30) == digest(first, second, point, 1, 30)


def test_cells_have_the_keys_of_earlier_versions(demo: Maker) -> None:
    """A run that was begun with an earlier version goes on."""
    from codi_engine.core.planning.preparing import prepare
    from codi_engine.core.plugins import plugin_manager

    experiment = demo(intervention={"plugin": "zero", "site": "resid_post"}, sweep={"layer": [0, 3], "step": [1]}, data={"plugin": "demo-problems", "limit": 2})
    plan = prepare(experiment, plugin_manager()).plan
    for cell in plan.cells:
        example = next(e for e in plan.data.examples if e.id == cell.example)
        texts = {variant: (p.text, p.answer) for variant, p in example.prompts.items()}
        condition = plan.conditions[cell.condition]
        assert cell.key == digest(cell.example, texts, condition.name, condition.content(), cell.values, cell.trial)
    assert len({c.key for c in plan.cells}) == len(plan.cells) == 4


def test_the_size_of_units_changes_files_and_no_result(demo: Maker) -> None:
    def make(**more: Any) -> Experiment:
        return demo(intervention={"plugin": "zero", "site": "resid_post"}, sweep={"layer": [0, 1], "step": "all"}, **more)

    assert plan_experiment(make()).units == 2
    small = plan_experiment(make(unit_cells=16))
    run_experiment(make(), "usual")
    run_experiment(make(unit_cells=16), "small")
    usual, found = open_run("usual"), open_run("small")
    assert (found.store.unit_cells, found.store.units) == (16, small.units)
    assert small.units == 1 + 3  # 6 prompts; 36 cells
    pd.testing.assert_frame_equal(usual.cells, found.cells, check_exact=True)
    assert usual.store.state.identity == found.store.state.identity
    run_experiment(make(unit_cells=64, data={"plugin": "demo-pairs", "limit": 5}), "small")
    assert open_run("small").store.unit_cells == 16, "a run keeps the number it was begun with"


def test_units_of_no_size_are_refused(demo: Maker) -> None:
    with pytest.raises(UserError, match="unit_cells"):
        demo(unit_cells=8)
