"""`recorded`: values that another run captured, put in; equal to what the baseline stage would have given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from codi_engine import Experiment, open_run
from codi_engine.core.errors import GateError, UserError
from codi_engine.core.running.run import run_experiment

Maker = Callable[..., Experiment]
PAIRS = {"plugin": "demo-pairs", "limit": 3}
METRICS = ["kl", "cross_entropy"]
SITES = ["resid_post@latent", "resid_mid.2@prompt[-2,-1]", "latent_in"]


@pytest.fixture
def capture(demo: Maker, tmp_path: Path) -> Path:
    """A run of both sides of three pairs, with captures."""
    run_experiment(demo(data=PAIRS, capture=SITES, metrics=[]), tmp_path / "captured")
    return tmp_path / "captured"


def measured(demo: Maker, path: Path, intervention: dict[str, Any], **keys: Any) -> pd.DataFrame:
    run = run_experiment(demo(**{"intervention": intervention, "data": PAIRS, "metrics": METRICS, **keys}), path).open()
    return run.cells[run.cells["condition"] != "baseline"].reset_index(drop=True)


@pytest.mark.parametrize(
    ("site", "sweep"),
    [
        ("resid_post", {"layer": [0, [1, 2], 3], "step": [0, 3, [2, 4]]}),
        ("latent_in", {"step": [0, [1, 2], 5]}),
        ("resid_mid.2@prompt", {"position": [-1, -2]}),
    ],
)
def test_a_recorded_clean_value_is_the_partners(demo: Maker, capture: Path, tmp_path: Path, site: str, sweep: dict[str, Any]) -> None:
    """Bit for bit: patching from the baseline stage, and from a run that recorded the clean side."""
    patch = measured(demo, tmp_path / "patch", {"plugin": "patch", "site": site, "direction": "denoise"}, sweep=sweep)
    recorded = {"plugin": "recorded", "site": site, "on": "corrupted", "run": str(capture), "variant": "clean"}
    put = measured(demo, tmp_path / "put", recorded, sweep=sweep)
    columns = [c for c in ("example", "layer", "step", "position", "variant", *METRICS, "text", "answer") if c in patch]
    pd.testing.assert_frame_equal(patch[columns], put[columns], check_exact=True)
    assert (patch["kl"] > 0).any()


def test_its_own_value_changes_nothing(demo: Maker, capture: Path, tmp_path: Path) -> None:
    recorded = {"plugin": "recorded", "site": "resid_post", "on": "corrupted", "run": str(capture), "variant": "corrupted"}
    with pytest.raises(GateError, match="changed none of them"):  # the gate takes it for an edit that does nothing
        measured(demo, tmp_path / "put", recorded, sweep={"layer": [1], "step": [2]})


def test_one_example_for_all(demo: Maker, capture: Path, tmp_path: Path) -> None:
    first = open_run(capture).cells["example"].iloc[0]
    recorded = {"plugin": "recorded", "site": "latent_in", "on": "corrupted", "run": str(capture), "variant": "clean", "example": first}
    put = measured(demo, tmp_path / "put", recorded, sweep={"step": [0, 1]})
    patch = measured(demo, tmp_path / "patch", {"plugin": "patch", "site": "latent_in", "direction": "denoise"}, sweep={"step": [0, 1]})
    same = put["example"] == first
    assert (put[same]["kl"] == patch[same]["kl"]).all()
    assert (put[~same]["kl"] != patch[~same]["kl"]).all()


def test_values_of_edited_cells(demo: Maker, capture: Path, tmp_path: Path) -> None:
    """What an edited run computed downstream, put into an unedited one at the last step's input: the same answer as the edit."""
    zero = {"plugin": "zero", "site": "resid_post.1", "on": "corrupted"}
    run = run_experiment(demo(intervention=zero, sweep={"step": [1, 2]}, data=PAIRS, metrics=METRICS, capture=["latent_in"]), tmp_path / "edited").open()
    assert len(run.cells) > 0
    where = {"condition": "zero", "where": {"step": 2}}
    recorded = {"plugin": "recorded", "site": "latent_in", "on": "corrupted", "run": str(tmp_path / "edited"), **where}
    put = measured(demo, tmp_path / "put", recorded, sweep={"step": [3]})
    assert (put["kl"] > 0).any()
    with pytest.raises(UserError, match="several cells of one example; choose with variant, condition or where"):
        measured(demo, tmp_path / "other", {**recorded, "where": {}}, sweep={"step": [3]})


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {}, "several cells of one example; choose with variant, condition or where"),
    ({"variant": "dirty"}, {}, "has no cell with condition baseline, variant dirty"),
    ({"variant": "clean", "where": {"sep": 1}}, {}, "has no axis 'sep'"),
    ({"variant": "clean", "example": "nobody"}, {}, "has no example 'nobody'"),
    ({"variant": "clean", "site": "mlp_out"}, {}, "activations of 'mlp_out.1@latent' were not captured"),
    ({"variant": "clean", "site": "resid_mid.2@prompt"}, {"position": [-3]}, "captured resid_mid@prompt at [-2, -1], not at -3"),
    ({"variant": "clean", "run": "nowhere"}, {}, "nowhere"),
]


@pytest.mark.parametrize(("change", "sweep", "said"), BAD)
def test_what_is_not_there_is_said(demo: Maker, capture: Path, tmp_path: Path, change: dict[str, Any], sweep: dict[str, Any], said: str) -> None:
    recorded = {"plugin": "recorded", "site": "resid_post", "on": "corrupted", "run": str(capture), **change}
    with pytest.raises(UserError) as caught:
        measured(demo, tmp_path / "put", recorded, sweep=sweep or {"layer": [1], "step": [2]})
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2
    if "position" not in sweep:  # places are looked up when they are edited, all else before anything is written
        assert not (tmp_path / "put" / "ledger").exists()


def test_an_example_that_was_not_recorded(demo: Maker, capture: Path, tmp_path: Path) -> None:
    recorded = {"plugin": "recorded", "site": "latent_in", "on": "corrupted", "run": str(capture), "variant": "clean"}
    with pytest.raises(UserError, match="has no example"):
        measured(demo, tmp_path / "put", recorded, sweep={"step": [0]}, data={"plugin": "demo-pairs", "limit": 5})


def test_another_models_values_are_refused(demo: Maker, capture: Path, tmp_path: Path) -> None:
    recorded = {"plugin": "recorded", "site": "latent_in", "on": "corrupted", "run": str(capture), "variant": "clean"}
    model = {"plugin": "codi", "checkpoint": "demo", "device": "cpu", "latents": 5}
    with pytest.raises(UserError, match="was computed with another model"):
        measured(demo, tmp_path / "put", recorded, sweep={"step": [0]}, model=model)
