"""The latent film shows the rows of the table, beside the answers of the cells they are of."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from codi_engine import open_run
from codi_engine.core.runs.results import Run
from codi_engine.reporting import film
from codi_engine.reporting.text import visible
from tests.reporting.films import write_film
from tests.support.results import vouch


@pytest.fixture(scope="module")
def filmed(patched: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    copy = shutil.copytree(patched.path, tmp_path_factory.mktemp("filmed") / "run")
    write_film(open_run(copy))
    return open_run(copy)


def test_strips_are_the_table(filmed: Run) -> None:
    table = filmed.results["latent_film"].table("film")
    made = film.film(filmed, filmed.results["latent_film"])
    assert made is not None
    tokens, examples = made.data["tokens"], made.data["examples"]
    assert [e["label"] for e in examples] == [f"{e} · corrupted" for e in dict.fromkeys(table["example"])]
    for one, name in zip(examples, dict.fromkeys(table["example"]), strict=True):
        mine = table[table["example"] == name]
        for strip, part in [(one["strip"], mine[mine["condition"] == "baseline"])] + [
            (e["strip"], mine[(mine["edited_layer"] == layer) & (mine["edited_step"] == step)])
            for e, (layer, step) in zip(one["edits"], ((0, 0), (3, 5)), strict=True)
        ]:
            shown = {(step, rank // 2 + 1): (tokens[flat[rank]], flat[rank + 1]) for step, flat in strip for rank in range(0, len(flat), 2)}
            wanted = {(r["step"], r["rank"]): (visible(r["token"], 40), round(1000 * r["probability"])) for r in part.to_dict("records")}
            assert shown == wanted


def test_questions_and_answers_are_those_of_the_cells(filmed: Run) -> None:
    made = film.film(filmed, filmed.results["latent_film"])
    assert made is not None
    cells = filmed.cells[filmed.cells["variant"] == "corrupted"]
    for one in made.data["examples"]:
        mine = cells[cells["example"] == one["label"].split(" ")[0]]
        assert one["answer"] == mine[mine["condition"] == "baseline"]["text"].iloc[0]
        assert one["question"].endswith("?")
        for edit, (layer, step) in zip(one["edits"], ((0, 0), (3, 5)), strict=True):
            assert edit["label"] == f"patch, layer {layer}, step {step}"
            assert edit["step"] == step
            row = mine[(mine["condition"] == "patch") & (mine["layer"] == layer) & (mine["step"] == step)]
            assert edit["answer"] == row["text"].iloc[0]


def test_the_page_holds_it_as_data_only(filmed: Run) -> None:
    section = film.section(filmed)
    assert section is not None
    data = re.search(r'<script type="application/json" class="film-data">(.*?)</script>', section.html, re.DOTALL)
    assert data is not None
    assert "<b>" not in section.html
    assert "<b>" in json.loads(data[1])["tokens"]
    assert "\u202e" not in section.html
    assert re.search(r"<[^>]*\s(style|on\w+)=", section.html) is None


def test_bounds_are_said(filmed: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "EXAMPLES", 2)
    monkeypatch.setattr(film, "PLACES", 1)
    made = film.film(filmed, filmed.results["latent_film"])
    assert made is not None
    assert len(made.data["examples"]) == 2
    assert [len(e["edits"]) for e in made.data["examples"]] == [1, 1]
    assert {"2 of 3 examples are shown", "1 of 2 edited places of each example are shown"} <= set(made.said)


def test_other_tables(filmed: Run, patched: Run, tmp_path: Path) -> None:
    assert film.section(patched) is None
    copy = shutil.copytree(filmed.path, tmp_path / "run")
    file = copy / "results" / "latent_film" / "film.parquet"
    table = pd.read_parquet(file)
    table[table["condition"] == "baseline"].drop(columns=["edited_layer", "edited_step", "variant"]).to_parquet(file)
    vouch(file.parent)
    made = film.film(open_run(copy), open_run(copy).results["latent_film"])
    assert made is not None
    assert made.data["examples"][0]["edits"] == []
    table.drop(columns="rank").to_parquet(file)
    vouch(file.parent)
    made = film.film(open_run(copy), open_run(copy).results["latent_film"])
    assert made is not None
    assert "lacks rank" in made.said[0]
