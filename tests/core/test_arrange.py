"""Where the cells of real runs lie: targets, shared baselines, variants, trials."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine import open_run
from codi_engine.core.errors import UserError
from codi_engine.core.runs.arrange import arrange, layer_of
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic


def test_a_sweep_over_pairs(demo: Any, tmp_path: Path) -> None:
    run = demo(
        intervention={"plugin": "patch", "site": "resid_post", "direction": "denoise"}, sweep={"layer": [0, 2], "step": [1, 3]}, metrics=["kl"]
    ).run(output=tmp_path / "r").path  # fmt: skip
    opened = open_run(run)
    a = arrange(opened, "test")
    assert a.axes == ("layer", "step")
    assert a.targets == [(0, 1), (0, 3), (2, 1), (2, 3)]
    assert [a.conditions[c] for c in a.shared] == ["baseline"]
    assert (a.slots >= 0).all()
    assert (a.common >= 0).all()
    cells = opened.store
    variant = dict(zip(cells.slots.tolist(), [cells.labels("variant")[c] for c in cells.codes("variant")], strict=True))
    assert {variant[s] for s in a.slots.ravel().tolist()} == {variant[s] for s in a.common.ravel().tolist()} == {"corrupted"}
    example = dict(zip(cells.slots.tolist(), cells.codes("example").tolist(), strict=True))
    for e in range(len(a.examples)):
        assert len({example[s] for s in [*a.slots[:, :, e].ravel().tolist(), *a.common[:, e].ravel().tolist()]}) == 1
    assert (a.name(2), a.layer(2)) == ("layer 2 step 1", 2)
    assert a.pairs(None, "test") == [(a.conditions.index("patch"), a.conditions.index("baseline"))]


def test_both_variants_are_examples_of_their_own(demo: Any, tmp_path: Path) -> None:
    conditions = {d: {"intervention": {"plugin": "patch", "site": "resid_post", "direction": d}} for d in ("denoise", "noise")}
    run = demo(conditions=conditions, sweep={"layer": [1], "step": [0]}, metrics=["kl"]).run(output=tmp_path / "r").path
    a = arrange(open_run(run), "test")
    assert len(a.examples) == 6
    assert sum(str(e).endswith("(clean)") for e in a.examples) == 3
    there = np.asarray((a.slots >= 0).any(-1))[0]
    assert there.sum(1).tolist() == [3, 3]
    assert not (there[0] & there[1]).any()


def test_a_synthetic_run_in_any_order(tmp_path: Path) -> None:
    what = Synthetic(targets=3, features=9, conditions=2, examples=4, trials=5, words=0)
    a = arrange(open_run(write_synthetic(what, tmp_path / "r")), "test")
    assert a.slots.shape == (3, 2, 4, 5)
    np.testing.assert_array_equal(a.slots.ravel(), np.arange(what.cells))
    assert [a.layer(t) for t in range(3)] == [layer_of(what.feature_names[f]) for f in what.target_features]


def test_pairs_of_conditions(tmp_path: Path) -> None:
    a = arrange(open_run(write_synthetic(Synthetic(targets=1, features=9, conditions=3, trials=2, words=0), tmp_path / "r")), "test")
    assert a.pairs(None, "x") == [(1, 0), (2, 0)]
    assert a.pairs([["patch_2", "patch_1"]], "x") == [(2, 1)]
    with pytest.raises(UserError, match=r"x: pairs: condition 'patch_7': did you mean"):
        a.pairs([["patch_7", "patch_1"]], "x")


@pytest.mark.parametrize(("label", "layer"), [("L26-1069", 26), ("layer 3 step 2", 3), ("layer=11", 11), ("XL9", None), ("head 3", None)])
def test_layers_in_labels(label: str, layer: int | None) -> None:
    assert layer_of(label) == layer


def test_a_synthetic_run_reads_alike_sparse_and_dense(tmp_path: Path) -> None:
    values = []
    for sparse in (True, False):
        what = Synthetic(targets=3, features=20, conditions=2, trials=4, density=0.3, words=0, sparse=sparse)
        run = open_run(write_synthetic(what, tmp_path / str(sparse)))
        for edited in (True, False):
            values.append(run.activations("sae", edited=edited))
    for one, other in zip(values[:2], values[2:], strict=True):
        assert one.dims == other.dims == ("cell", "feature")
        assert one.identical(other)
        assert (one.values == 0).any()
