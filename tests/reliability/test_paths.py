"""What is written stays in the run: names that lead elsewhere are refused, links that lead out of a run are not written through."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from codi_engine.cli.main import main
from codi_engine.core.errors import PluginError, UserError
from codi_engine.core.experiment import Experiment
from codi_engine.core.naming import filled_path, unfit_name
from codi_engine.core.plugin import Analysis, AnalysisResult, NoOptions
from codi_engine.core.progress import Progress
from codi_engine.core.returned import analysed
from codi_engine.core.runs.analyzing import analyze_one
from codi_engine.core.runs.results import open_run
from codi_engine.core.runs.work import Work
from codi_engine.store.contained import check_contained
from codi_engine.store.errors import StoreError

RUN: dict[str, Any] = {
    "name": "small",
    "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"},
    "data": {"plugin": "demo-problems", "limit": 2},
    "metrics": ["accuracy"],
    "generate": {"max_new_tokens": 4},
    "analyses": ["importance"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small run."""
    return Experiment.from_dict(RUN).run(tmp_path_factory.mktemp("paths") / "run").path


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


LINKED = [
    "texts",
    "data.zarr",
    "results",
    "ledger",
    "experiment.yaml",
    "provenance.json",
    "events.jsonl",
    "lock",
    "data.zarr/cells",
    "data.zarr/zarr.json",
    "results/importance",
]


@pytest.mark.parametrize("name", LINKED)
def test_a_writer_goes_through_no_link_out_of_the_run(run: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    if (run / name).exists():
        (run / name).rename(outside)
    else:
        outside.write_text("mine")
    (run / name).symlink_to(outside)
    before = {p: p.read_bytes() for p in [outside, *outside.rglob("*")] if p.is_file()}
    with pytest.raises((StoreError, UserError), match=r"is a link to .*outside, which is outside the run"):
        Experiment.from_dict({**RUN, "data": {"plugin": "demo-problems", "limit": 3}}).run(run)
    assert {p: p.read_bytes() for p in [outside, *outside.rglob("*")] if p.is_file()} == before


def test_links_within_a_run_and_to_a_run_are_followed(run: Path, tmp_path: Path) -> None:
    (run / "texts").rename(run / "moved")
    (run / "texts").symlink_to("moved")
    (tmp_path / "alias").symlink_to(run)
    check_contained(run)
    check_contained(tmp_path / "alias")


def test_an_analysis_and_a_note_go_through_no_link(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (run / "results" / "importance").rename(outside)
    (run / "results" / "importance").symlink_to(outside)
    before = sorted(p.stat().st_mtime_ns for p in outside.iterdir())
    assert main(["analyze", "-q", str(run), "importance"]) == 2
    assert sorted(p.stat().st_mtime_ns for p in outside.iterdir()) == before
    (run / "notes.md").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_text("mine")
    assert main(["note", str(run), "hello"]) == 2
    assert (tmp_path / "victim").read_text() == "mine"


@pytest.mark.parametrize("name", ["report.html", "report.md", "notebook.ipynb"])
def test_a_report_replaces_no_file_outside(run: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("mine")
    (run / name).symlink_to(tmp_path / "victim")
    main(["report", "-q", str(run), *(["--md"] if name.endswith("md") else [])])
    assert (tmp_path / "victim").read_text() == "mine"


# ------------------------------------------------------------------------------------------------------ names

WRONG = [
    "../x",
    "../../x",
    "/etc/passwd",
    "a/b",
    "a\\b",
    "",
    ".",
    "..",
    ".hidden",
    "x.partial",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "\u202ea",
    "n" * 300,
    "é" * 150,
    "CON",
    "nul.txt",
    "com1",
    "a.",
    " a",
    "a:b",
    "a*",
    "a?",
    '"',
    "<b>",
    "a|b",
    "\ud800",
]


class Named(Analysis[NoOptions]):
    """Returns what it is told to."""

    name = "named"
    Options = NoOptions
    result = AnalysisResult({})

    def analyze(self, runs: Any, work: Any) -> AnalysisResult:
        return self.result


def _named(**parts: Any) -> Named:
    made = Named(NoOptions())
    made.result = AnalysisResult(**{"tables": {}, **parts})
    return made


@pytest.mark.parametrize("name", WRONG, ids=lambda n: ascii(n)[:20])
def test_names_that_a_plugin_gives_stay_in_its_folder(name: str) -> None:
    from matplotlib.figure import Figure

    for parts in ({"tables": {name: pd.DataFrame()}}, {"tables": {}, "files": {name: "x"}}, {"tables": {}, "figures": {name: Figure()}}):
        with pytest.raises(PluginError) as refused:
            analysed(_named(**parts), [], Work())
        assert len(str(refused.value)) < 400


@pytest.mark.parametrize(
    "parts",
    [
        {"files": {"a.txt": "", "A.TXT": ""}},
        {"files": {"result.json": ""}},
        {"files": {"Summary.txt": ""}},
        {"tables": {"a": pd.DataFrame()}, "files": {"A.parquet": ""}},
        {"tables": {"a": pd.DataFrame(), "A": pd.DataFrame()}},
        {"files": {"e\u0301": "", "\u00e9": ""}},
    ],
)
def test_names_that_would_be_one_file_are_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match="same file"):
        analysed(_named(**parts), [], Work())


def test_names_that_are_right_are_written(run: Path) -> None:
    done = analyze_one([open_run(run)], _named(tables={"a": pd.DataFrame({"x": [1]})}, files={"a.csv": "x"}), Progress())
    assert sorted(p.name for p in done.folder.iterdir()) == ["a.csv", "a.parquet", "result.json", "summary.txt"]


@pytest.mark.parametrize("name", [*WRONG, "-rf", "~", "$HOME", "{date}"], ids=lambda n: ascii(n)[:20])
def test_a_run_has_a_name_that_is_a_file_name(name: str) -> None:
    assert unfit_name(name) or name == "x.partial"
    if name != "x.partial":
        with pytest.raises(UserError):
            Experiment.from_dict({**RUN, "name": name})
        with pytest.raises(UserError):
            Experiment(**{**RUN, "name": name})


@pytest.mark.parametrize("template", ["{zzz}", "{0}", "{", "}", "{name.__class__}", "{name!r}", "{name:>9999999999}", "{seed[0]}", "{}", "a\0b", "{name"])
def test_templates_of_paths_are_no_format_language(template: str) -> None:
    with pytest.raises(UserError, match="output"):
        filled_path(template, {"date": "d", "name": "n", "seed": 0}, "output")
    assert filled_path("{name}/{{x}}-{seed}", {"date": "d", "name": "n", "seed": 0}, "output") == Path("n/{x}-0")


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "abc/" * 1000])
def test_paths_longer_than_systems_take_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"bad.yaml: output: .*write a shorter one"):
        filled_path(name, {"name": "n"}, "bad.yaml: output")
    assert filled_path("x" * 255, {}, "output") == Path("x" * 255)


# --------------------------------------------------------------------------------------------------- archives


@pytest.mark.parametrize("member", ["../../evil.npy", "/tmp/evil.npy", "a/../../evil.npy", "..\\evil.npy"])
def test_members_of_archives_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with zipfile.ZipFile("states.npz", "w") as archive:
        for name in (member, "states.npy"):
            with archive.open(name, "w") as file:
                np.lib.format.write_array(file, np.zeros((3, 2), np.float32), allow_pickle=False)
    main(["import", "-q", "states.npz", "--map", "activations/latent_out=states[example ; width]"])
    assert list(tmp_path.rglob("*evil*")) == []
    assert not Path("/tmp/evil.npy").exists()
    assert {p.relative_to(tmp_path).parts[:3] for p in tmp_path.rglob("*") if p.is_file()} <= {("a", "b", "states.npz"), ("a", "b", "runs")}
