"""Tables as heatmaps."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from codi_engine.reporting.heatmaps import LEVELS, Scale, heatmap_of, level
from codi_engine.reporting.palette import contrast, rules


def table(values: dict[str, float], steps: int = 3, layers: int | None = 2, **more: object) -> pd.DataFrame:
    rows = []
    for condition, size in values.items():
        for layer in range(layers or 1):
            for step in range(steps):
                rows.append(
                    {
                        "condition": condition,
                        "layer": layer if layers else None,
                        "step": step,
                        "n": 9,
                        "mean": size * (1 + layer + step),
                        "ci_low": 0.0,
                        "ci_high": 1.0,
                        "q": 0.01,
                        "significant": step > 0,
                        **more,
                    }
                )
    return pd.DataFrame(rows)


def test_every_value_stands_at_its_place() -> None:
    frame = table({"a": 0.1})
    made = heatmap_of(frame, "effects", {"q": 0.1}, "kl")
    assert made is not None
    (panel,) = made.panels
    assert (panel.down, panel.across, panel.columns) == ("layer", "latent step", ["0", "1", "2"])
    assert [label for label, _ in panel.rows] == ["1", "0"]  # later layers stand above
    for label, cells in panel.rows:
        for step, cell in enumerate(cells):
            assert cell is not None
            row = frame[(frame["layer"] == int(label)) & (frame["step"] == step)].iloc[0]
            assert cell.value == row["mean"]
            assert cell.faint == (not row["significant"])
            assert dict(cell.facts)["n"] == "9"
            assert cell.go == f"condition=a&layer={label}&step={step}"
    assert "q ≥ 0.1" in made.dots
    assert "KL" in made.value


def test_scales_are_common_unless_orders_differ() -> None:
    near, far = (heatmap_of(table(v), "effects", {}) for v in ({"a": 0.1, "b": 0.5}, {"a": 0.001, "b": 0.5}))
    assert near is not None
    assert far is not None
    assert len(near.scales) == 1
    assert "one colour scale" in near.note
    assert [p.scale for p in far.panels] == [0, 1]
    assert "of its own" in far.note


@pytest.mark.parametrize(("scale", "value", "expected"), [
    (Scale("s", 0.0, 2.0, []), 2.0, LEVELS - 1), (Scale("s", 0.0, 2.0, []), 0.0, 0), (Scale("r", -2.0, 0.0, []), -2.0, LEVELS - 1),
    (Scale("d", -2.0, 2.0, []), 0.0, LEVELS // 2), (Scale("d", -2.0, 2.0, []), 9.0, LEVELS - 1), (Scale("s", 1.0, 1.0, []), 1.0, 0),
])  # fmt: skip
def test_colours_go_with_values(scale: Scale, value: float, expected: int) -> None:
    assert level(value, scale) == expected


def test_a_metric_is_named_where_it_is_known_only() -> None:
    frame = table({"a": 0.1})
    of_another = heatmap_of(frame, "effects", {"metric": "kl"})
    beside = heatmap_of(frame.rename(columns={"mean": "difference"}).assign(control="random", effect=2.0, mean=1.0), "controls", {})
    assert of_another is not None
    assert beside is not None
    assert of_another.value == "mean over examples"
    assert beside.value == "difference from the control"
    cell = beside.panels[0].rows[0][1][0]
    assert cell is not None
    assert dict(cell.facts)["edited"] == "2.00"


def test_a_map_says_its_n_and_what_an_analysis_measures() -> None:
    frame = table({"a": 0.1})
    frame.loc[0, "n"] = 4
    drawn = heatmap_of(frame.assign(effect="total"), "effects", {}, None, "step_effects")
    assert drawn is not None
    assert drawn.size == "4–9"
    assert drawn.value == "‖edited − unedited‖ / ‖unedited‖ of a later state: mean over examples"
    assert drawn.panels[0].across == "latent step"


def test_letters_can_be_read_on_every_colour() -> None:
    for rule in rules().split("}"):
        names = dict(re.findall(r"--([sd]\d+t?):(#[0-9a-f]{6});", rule))
        for name in [n for n in names if not n.endswith("t")]:
            assert contrast(names[name], names[f"{name}t"]) >= 4.5, name
    assert contrast("#000000", "#ffffff") == pytest.approx(21.0)


def test_what_is_no_map_is_none() -> None:
    assert heatmap_of(table({"a": 0.1, "b": 0.2}, steps=1, layers=1), "x", {}) is None  # one column each
    assert heatmap_of(pd.DataFrame({"word": ["a"], "n": [3], "mean": [1.0], "q": [0.1]}), "x", {}) is None
    assert heatmap_of(table({"a": 0.1}).drop(columns=["n"]), "x", {}) is None
    twice = pd.concat([table({"a": 0.1})] * 2)
    assert heatmap_of(twice, "x", {}) is None
    assert heatmap_of(table({"a": 0.1}, steps=1, layers=1), "x", {}) is None


def test_missing_values_are_blank_and_strata_share_a_map() -> None:
    frame = table({"a": 0.1}, layers=None)
    strata = pd.concat([frame.assign(by=s) for s in ("1", "2")])[["condition", "by", "step", "n", "mean", "ci_low", "ci_high", "q"]]
    strata["mean"] = [np.nan, *strata["mean"].iloc[1:]]
    made = heatmap_of(strata, "effects", {"by": "difficulty"})
    assert made is not None
    (panel,) = made.panels
    assert panel.down == "difficulty"
    first = panel.rows[0][1][0]
    assert first is not None
    assert (first.text, first.level) == ("", "none")
