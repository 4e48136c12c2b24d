"""``importance`` with controls: the table against a naive computation, the lines, the figure, the families of tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.plugins.analyses import control_figures, controls, effects
from codi_engine.plugins.analyses.options import ImportanceOptions
from codi_engine.plugins.analyses.selection import edited_conditions

AXES = ["layer", "step"]


def cells(strength: float = 1.0, control: float = 0.2, seed: int = 0) -> pd.DataFrame:
    """Two layers × three steps: an effect at (1, 0) on 20 examples, two controls on the first 8, two donors a cell."""
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for e in range(20):
        rows.append({"example": str(e), "condition": "baseline", "layer": pd.NA, "step": pd.NA, "logit_diff": 1.0, "unusual": np.nan})
        for name, there, few in (("patch", strength, False), ("patch~random", 0.0, True), ("patch~wrong_step", control, True), ("zero", -1.0, False)):
            for layer in range(2) if e < 8 or not few else ():
                for step in range(3):
                    for donor in range(2):
                        value = 1.0 + (there if (layer, step) == (1, 0) else 0.0) + 0.1 * generator.normal()
                        row = {"example": str(e), "condition": name, "layer": layer, "step": step, "donor": donor}
                        rows.append({**row, "logit_diff": value, "unusual": 0.9 if "random" in name else 0.5})
    frame = pd.DataFrame(rows)
    return frame.astype({"layer": "Int64", "step": "Int64"})


def test_the_table_is_the_naive_one() -> None:
    frame, options = cells(), ImportanceOptions()
    frame.loc[(frame["condition"] == "patch~random") & (frame["example"] == "3"), "logit_diff"] = np.nan
    table = controls.control_table(frame, "logit_diff", AXES, options)
    assert len(table) == 2 * 6
    ps = []
    for _, row in table.iterrows():
        here = frame[(frame["layer"] == row["layer"]) & (frame["step"] == row["step"])]
        mean = here.groupby(["condition", "example"])["logit_diff"].mean() - 1.0
        both = pd.concat([mean["patch"], mean[f"patch~{row['control']}"]], axis=1, keys=["a", "b"]).dropna()
        test = stats.ttest_rel(both["a"], both["b"])
        interval = test.confidence_interval(0.95)
        assert row["n"] == len(both) == (7 if row["control"] == "random" else 8)
        expected = (both["a"].mean(), both["b"].mean(), (both["a"] - both["b"]).mean(), interval.low, interval.high, test.pvalue)
        assert tuple(row[["effect", "mean", "difference", "ci_low", "ci_high", "p"]]) == pytest.approx(expected)
        ps.append(test.pvalue)
    np.testing.assert_allclose(table["q"], stats.false_discovery_control(ps))
    at = table[(table["layer"] == 1) & (table["step"] == 0)]
    assert at["exceeds"].all()
    assert at["control_unusual"].tolist() == pytest.approx([0.9, 0.5])
    assert at["unusual"].tolist() == pytest.approx([0.5, 0.5])


def test_a_place_without_axes_has_one_row_a_control() -> None:
    frame = cells()
    frame = frame[(frame["condition"] == "baseline") | ((frame["layer"] == 1) & (frame["step"] == 0))].drop(columns=["layer", "step"])
    table = controls.control_table(frame, "logit_diff", [], ImportanceOptions())
    assert table["control"].tolist() == ["random", "wrong_step"]
    main = effects.effect_table(effects.per_example(controls.split(frame)[0], "logit_diff", [], None), [], ImportanceOptions())
    assert "1 of 1 places exceed" in controls.lines(table, main, [], ImportanceOptions())[0]


def said(frame: pd.DataFrame) -> tuple[list[str], pd.DataFrame]:
    options = ImportanceOptions()
    table = controls.control_table(frame, "logit_diff", AXES, options)
    main = effects.effect_table(effects.per_example(controls.split(frame)[0], "logit_diff", AXES, None), AXES, options)
    assert set(main["condition"]) == {"patch", "zero"}
    assert main["n"].tolist() == [20] * 12
    np.testing.assert_allclose(main["q"], stats.false_discovery_control(main["p"]))
    return controls.lines(table, main, AXES, options), table


def test_one_line_a_condition_and_a_warning_for_a_control_as_strong() -> None:
    lines, table = said(cells())
    exceed = table.groupby(["layer", "step"])["exceeds"].all().sum()
    assert len(lines) == 1
    assert lines[0].startswith("patch controls (n = 8): random ")
    assert f"(layer 1 step 0); {exceed} of 6 places exceed all of them" in lines[0]
    assert exceed < 6
    strong, _ = said(cells(strength=0.5, control=0.8))
    assert strong[1].startswith("warning: patch does not exceed there: wrong step (as strong, difference -0.")
    assert "random" not in strong[1]
    opposite, _ = said(cells(strength=0.2, control=-0.8))  # significant, in the effect's direction, but the control is stronger
    assert "wrong step (as strong, difference +" in opposite[1]


def test_unusualness_is_said_per_condition() -> None:
    line = controls.unusual_line(cells())
    assert line.endswith("patch 0.50 (random 0.90, wrong step 0.50); zero 0.50")
    assert "not defined" in controls.unusual_line(cells().assign(unusual=np.nan))
    assert controls.unusual_line(cells().drop(columns="unusual")) == ""


def test_the_figure_shares_one_scale_and_marks_what_is_not_exceeded() -> None:
    table = controls.control_table(cells(), "logit_diff", AXES, ImportanceOptions())
    figure = control_figures.draw(table, AXES, "logit_diff", ImportanceOptions(), "study")
    maps = [ax for ax in figure.axes if ax.collections and ax.get_title(loc="left")]
    assert [ax.get_title(loc="left") for ax in maps] == ["patch", "random", "wrong step"]
    assert len({(ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) for ax in maps}) == 1
    dots = [len(ax.lines) for ax in maps]
    assert dots == [0, *(~table["exceeds"]).groupby(table["control"], sort=False).sum()]
    one = table[table["layer"] == 1]
    assert len(control_figures.draw(one, AXES, "logit_diff", ImportanceOptions(), "").axes) == 1
    assert len(control_figures.draw(one[one["step"] == 0], AXES, "logit_diff", ImportanceOptions(), "").axes) == 1


def test_a_run_shows_its_controls_apart(demo: Callable[..., Experiment]) -> None:
    intervention = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
    keys: dict[str, Any] = {"metrics": ["normalized_effect", "unusual"], "data": {"plugin": "demo-pairs", "limit": 6}}
    finished = demo(intervention=intervention, sweep={"layer": [0, 1], "step": [0, 1]}, controls="auto", analyses=["importance"], **keys).run()
    text = finished.summaries["importance"]
    assert "controls (n = 6): random " in text
    assert "unusualness of the edited states" in text
    assert "patch~" not in text
    tables = {k: pd.read_parquet(v) for k, v in finished.tables.items()}
    assert set(tables["effects"]["condition"]) == {"patch"}
    assert len(tables["controls"]) == 3 * 4
    assert set(tables["examples"]["condition"]) == {"patch"}
    assert finished.figures["beside_controls"].stat().st_size > 10_000
    run = finished.open()
    assert edited_conditions(run) == ["patch"]
    assert len(edited_conditions(run, controls=True)) == 4
    with pytest.raises(UserError, match="it has patch"):
        analyze_runs([run.path], ["compare_runs"], [])
    asked = analyze_runs([run.path], ["compare_runs"], ["conditions=[patch, patch~random]", "metric=normalized_effect"])
    assert "patch~random" in asked[0].summary
