"""The film against the model's own modules, its shares of change against loops, and what cannot change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import codi_engine
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.runs.reload import reload_model
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.work import Work
from codi_engine.plugins.analyses import film_tables
from codi_engine.plugins.analyses.latent_film import LatentFilm, LatentFilmOptions
from tests.support.captured import captured_run

CONDITIONS = {
    "zero": {"intervention": {"plugin": "zero", "site": "latent_in"}, "sweep": {"step": [1, 4]}},
    "resample": {"intervention": {"plugin": "resample", "site": "latent_in"}, "sweep": {"step": [2], "donor": 2}},
    "early": {"intervention": {"plugin": "early_decode", "site": "latent_in"}, "sweep": {"step": [3]}},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return captured_run(tmp_path_factory.mktemp("film"), ["latent_out"], 8, conditions=CONDITIONS, controls="none")


def filmed(run: Run, **options: object) -> AnalysisResult:
    return LatentFilm(LatentFilmOptions(**options)).analyze([run], Work())  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def result(run: Run) -> AnalysisResult:
    return filmed(run, top=3, examples=8)


def probabilities(run: Run, edited: bool) -> tuple[pd.DataFrame, np.ndarray]:
    """Cells and cells × states × vocabulary, through the model's own head."""
    data = run.activations("latent_out", edited=edited)
    head = reload_model(run).network.lm_head
    with torch.inference_mode():
        read = torch.softmax(head(torch.from_numpy(data.values)), -1).numpy()
    return run.cells[(run.cells["condition"] != "baseline") == edited].reset_index(drop=True), read


def test_rows_are_what_the_models_own_head_says(run: Run, result: AnalysisResult) -> None:
    decode = reload_model(run).decode
    film = result.tables["film"]
    assert film["example"].nunique() == 8
    assert set(film["step"]) == {-1, 0, 1, 2, 3, 4, 5}
    for edited in (False, True):
        cells, read = probabilities(run, edited)
        for i in (0, len(cells) // 3, len(cells) // 2):
            cell = cells.iloc[i]
            mine = film[(film["example"] == cell["example"]) & (film["condition"] == cell["condition"])]
            if edited:
                mine = mine[mine["edited_step"] == cell["step"]]
                mine = mine[mine["edited_donor"].isna() if pd.isna(cell["donor"]) else mine["edited_donor"] == cell["donor"]]
            for step in (-1, 0, 2):
                rows = mine[mine["step"] == step].sort_values("rank")
                p = read[i, step + 1]
                best = np.argsort(-p)[:3]
                assert rows["rank"].tolist() == [1, 2, 3]
                np.testing.assert_allclose(rows["probability"], p[best], rtol=1e-4, atol=1e-7)
                assert rows["token"].iloc[0] == decode([int(best[0])])


def test_changes_are_those_of_loops(run: Run, result: AnalysisResult) -> None:
    base_cells, base = probabilities(run, False)
    cells, edited = probabilities(run, True)
    table = result.tables["changes"]

    def first(p: np.ndarray) -> list[int]:
        return [int(i) for i in np.argsort(-p)[:3]]

    for condition, step, state in (("zero", 1, 1), ("zero", 4, 5), ("resample", 2, 3)):
        changed: dict[str, list[float]] = {}
        overlap: dict[str, list[float]] = {}
        for i in np.flatnonzero((cells["condition"] == condition) & (cells["step"] == step)).tolist():
            cell = cells.iloc[i]
            own = int(np.flatnonzero(base_cells["example"] == cell["example"])[0])
            before, after = first(base[own, state + 1]), first(edited[i, state + 1])
            changed.setdefault(cell["example"], []).append(float(before[0] != after[0]))
            overlap.setdefault(cell["example"], []).append(len(set(before) & set(after)) / 3)
        row = table[(table["condition"] == condition) & (table["edited_step"] == step) & (table["step"] == state)].iloc[0]
        assert row["n"] == 8 == len(changed)
        assert row["changed"] == pytest.approx(np.mean([np.mean(v) for v in changed.values()]))
        assert row["overlap"] == pytest.approx(np.mean([np.mean(v) for v in overlap.values()]))
        assert row["changed_low"] <= row["changed"] <= row["changed_high"]


def test_nothing_changes_before_the_edit_and_something_does_after_it(result: AnalysisResult) -> None:
    table = result.tables["changes"]
    before = table[table["step"] < table["edited_step"]]
    assert (before["changed"].dropna() == 0).all()
    assert (before["overlap"].dropna() == 1).all()
    assert table[(table["condition"] == "zero") & (table["step"] == table["edited_step"])]["changed"].gt(0.3).all()


def test_states_that_an_early_answer_leaves_out_have_no_row(result: AnalysisResult) -> None:
    film, changes = result.tables["film"], result.tables["changes"]
    early = film[film["condition"] == "early"]
    assert early["step"].max() < 5
    left = changes[(changes["condition"] == "early") & (changes["step"] == 5)].iloc[0]
    assert (left["n"], left["note"]) == (0, "no value")
    assert film["probability"].notna().all()


def test_the_figure_comes_from_stored_tables_alone(run: Run) -> None:
    codi_engine.analyze(run, "latent_film", top=2)
    stored = codi_engine.open_run(run.path).results["latent_film"]
    assert set(stored.figures) == {"changes"}
    tables = {name: stored.table(name) for name in stored.tables}
    assert set(LatentFilm(LatentFilmOptions()).draw(tables, stored.about)) == {"changes"}
    assert LatentFilm(LatentFilmOptions()).draw({"film": tables["film"]}, {}) == {}
    assert "share of examples whose first token changed" in stored.summary


def test_a_run_without_edits_has_a_film_of_its_own(tmp_path: Path) -> None:
    found = filmed(captured_run(tmp_path, ["latent_out"], 4), examples=2, top=1)
    assert set(found.tables) == {"film"}
    assert len(found.tables["film"]) == 2 * 7
    assert not found.figures


def test_the_film_is_bounded(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film_tables, "_FILM_ROWS", 2 * 6 * 7)  # an example has six cells of seven states
    found = filmed(run, top=1, examples=8)
    assert found.tables["film"]["example"].nunique() == 2
    assert "the film has 2 of 8 examples" in found.summary
    assert found.tables["changes"]["n"].max() == 8


def test_pieces_change_nothing(run: Run, result: AnalysisResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codi_engine.plugins.analyses.latent_film._ROWS", 21)
    again = filmed(run, top=3, examples=8, memory=0.001)
    for name, table in result.tables.items():
        pd.testing.assert_frame_equal(again.tables[name], table, rtol=1e-5)


def test_both_sides_of_pairs_are_shown(tmp_path: Path) -> None:
    keys = {"data": {"plugin": "demo-pairs", "limit": 3}, "sweep": {"step": [2]}}
    patch = {"plugin": "patch", "site": "latent_in", "direction": "denoise"}
    film = filmed(captured_run(tmp_path, ["latent_out"], 4, intervention=patch, **keys), top=1).tables["film"]
    assert set(film[film["condition"] == "baseline"]["variant"]) == {"clean", "corrupted"}
    assert set(film[film["condition"] == "patch"]["variant"]) == {"corrupted"}


def test_refusals_are_one_line(run: Run, tmp_path: Path) -> None:
    for options, said in (
        ({"conditions": ["zeros"]}, "conditions: 'zeros'"),
        ({"at": {"layer": 1}}, "'layer' is no axis"),
        ({"at": {"step": 0}}, "no edited cell"),
    ):
        with pytest.raises(UserError, match=said) as raised:
            filmed(run, **options)
        assert "\n" not in str(raised.value)
    with pytest.raises(UserError, match=r"add capture: \[latent_out\]"):
        filmed(captured_run(tmp_path, ["resid_post@latent"], 4))
