"""One experiment over several models: runs beside each other, growth, resuming, and what is refused before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from codi_engine import Experiment, all_cells, open_run, open_runs
from codi_engine.cli.main import main
from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.planning.checkpoints import family_of, plan_checkpoints, runs_below
from codi_engine.core.planning.labels import check_labels, in_order, label_of, numbers_of
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.progress import Progress
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.core.runs.analyzing import analyze, expand
from codi_engine.store.errors import StoreError

Maker = Callable[..., Experiment]
DEMO = files("codi_engine.plugins").joinpath("demo")
PATCH = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with step-900 and step-1000: the demo's checkpoint, and one with weaker latents."""
    folder = tmp_path_factory.mktemp("ckpts")
    state = load_file(str(DEMO / "checkpoint" / "model.safetensors"))
    for name, scale in (("step-900", 0.5), ("step-1000", 1.0)):
        (folder / name).mkdir()
        save_file({k: v * scale if k.startswith("prj.ln") else v for k, v in state.items()}, folder / name / "model.safetensors")
    return folder


@pytest.fixture
def make(demo: Maker) -> Maker:
    """Return a maker of a small experiment on the demo's base; checkpoints are given."""

    def made(checkpoints: Any, **keys: Any) -> Experiment:
        model = {"plugin": "codi", "base": str(DEMO / "base"), "device": "cpu"}
        small = {"intervention": PATCH, "sweep": {"layer": [1], "step": [0, 3]}, "data": {"plugin": "demo-pairs", "limit": 2}}
        return demo(**{"model": model, **small, "checkpoints": checkpoints, **keys})

    return made


class Heard(Progress):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


# ------------------------------------------------------------------------------------------------ labels


@pytest.mark.parametrize(
    ("labels", "numbers"),
    [
        (["step-100", "step-20"], [100.0, 20.0]),
        (["1000", "2000", "0.5"], [1000.0, 2000.0, 0.5]),
        (["run2-step-1", "run2-step-3"], [1.0, 3.0]),
        (["7"], [7.0]),
        (["small", "large"], None),
        (["1k", "500"], None),
        (["a1-b2", "a2-b1"], None),
        (["01", "1"], None),
    ],
)
def test_labels_that_differ_in_one_number_have_it(labels: list[str], numbers: list[float] | None) -> None:
    assert numbers_of(labels) == numbers


@given(st.sets(st.integers(0, 10**9), min_size=2, max_size=9), st.sampled_from(["", "step-", "ckpt_"]))
def test_numbers_order_labels(values: set[int], word: str) -> None:
    labels = [f"{word}{v}" for v in values]
    assert numbers_of(labels) == [float(v) for v in values]
    assert in_order(labels) == [f"{word}{v}" for v in sorted(values)]


@pytest.mark.parametrize("label", ["a/b", "..", ".hidden", "", "a b", "x" * 62, "results", "Results"])
def test_labels_that_name_no_directory_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match="label"):
        check_labels([label])


def test_paths_are_called_by_their_last_name() -> None:
    assert [label_of(p) for p in ("ckpts/step-10", "ckpts/step-10/", "a/w.safetensors", "owner/name")] == ["step-10", "step-10", "w", "name"]


# ----------------------------------------------------------------------------------------------- running


def test_each_checkpoint_is_a_complete_run_of_its_own(make: Maker, trained: Path) -> None:
    heard = Heard()
    finished = run_experiment(make({"from": f"{trained}/step-*"}, analyses=["importance", "across"]), "runs/x", progress=heard)
    assert next(n for n in heard.notes if n.startswith("checkpoint")) == "checkpoint step-900 (1 of 2)"
    assert any(n.startswith("checkpoint step-1000: 8 cells, 8 new, ") for n in heard.notes)
    assert (finished.cells, finished.new_cells, list(finished.parts), list(finished.summaries)) == (16, 16, ["step-900", "step-1000"], ["across"])
    assert finished.figures["lines"] == Path("runs/x/results/across/lines.png")
    assert (Path("runs/x/step-900/results/importance/effects.parquet")).exists()
    runs = open_runs("runs/x")
    assert list(runs) == ["step-900", "step-1000"]
    assert [r.provenance["layers"] for r in runs.values()] == [4, 4]
    frame = all_cells("runs/x")
    assert list(frame.columns[:2]) == ["checkpoint", "example"]
    pd.testing.assert_frame_equal(frame[frame["checkpoint"] == "step-1000"].drop(columns="checkpoint").reset_index(drop=True), runs["step-1000"].cells)

    alone = make(None, model={"plugin": "codi", "base": str(DEMO / "base"), "checkpoint": str(trained / "step-1000"), "device": "cpu"})
    pd.testing.assert_frame_equal(run_experiment(alone, "alone").open().cells, runs["step-1000"].cells, check_exact=True)
    assert run_experiment(alone, "runs/x/step-1000").new_cells == 0  # the same identity: the part goes on by itself too
    with pytest.raises(UserError, match="holds the runs step-900, step-1000; open_runs"):
        open_run("runs/x")


@pytest.mark.slow
def test_the_same_command_goes_on_and_a_larger_one_grows(make: Maker, trained: Path) -> None:
    first = {"step-900": str(trained / "step-900")}
    begun = run_experiment(make(first, analyses=["across"]), "runs/x", limit=1)
    assert (begun.new_cells, begun.summaries) == (4, {})
    assert "across needs two checkpoints and is left out" in begun.notes
    both = {**first, "step-1000": {"checkpoint": str(trained / "step-1000")}}
    grown = run_experiment(make(both), "runs/x")
    assert [p.new_cells for p in grown.parts.values()] == [4, 8]
    assert run_experiment(make(both), "runs/x").new_cells == 0
    assert all_cells("runs/x").groupby("checkpoint", sort=False).size().to_dict() == {"step-900": 8, "step-1000": 8}


def test_a_changed_checkpoint_is_refused_and_nothing_is_touched(make: Maker, trained: Path) -> None:
    both = {"a": str(trained / "step-900"), "b": str(trained / "step-1000")}
    run_experiment(make(both), "runs/x", limit=1)
    before = Path("runs/x/experiment.yaml").read_text(encoding="utf-8")
    with pytest.raises(DifferentRun, match=r"^checkpoint b: runs/x/b: holds another experiment"):
        run_experiment(make({"c": str(trained / "step-1000"), "b": str(trained / "step-900")}), "runs/x", limit=1)
    assert Path("runs/x/experiment.yaml").read_text(encoding="utf-8") == before
    assert not Path("runs/x/c").exists()
    with pytest.raises(UserError, match="holds a run without checkpoints"):
        run_experiment(make(both), "runs/x/a")
    with pytest.raises(StoreError, match="is not empty and holds no run"):
        run_experiment(make(None, model={"plugin": "codi", "checkpoint": "demo"}), "runs/x")


@pytest.mark.slow
def test_an_error_halfway_keeps_what_is_done(make: Maker, trained: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "model.safetensors").write_bytes(b"no weights")
    experiment = make({"good": str(trained / "step-900"), "bad": str(broken)})
    with pytest.raises(UserError, match=r"^checkpoint bad: model.checkpoint: "):
        run_experiment(experiment, "runs/x", limit=1)
    assert list(open_runs("runs/x")) == ["good"]
    (broken / "model.safetensors").write_bytes((trained / "step-1000" / "model.safetensors").read_bytes())
    assert [p.new_cells for p in run_experiment(experiment, "runs/x", limit=1).parts.values()] == [0, 4]


def test_layers_are_resolved_per_model_and_other_plugins_take_what_they_know(make: Maker, tiny_gpt2: Path) -> None:
    experiment = make(
        {"codi": {"checkpoint": "demo"}, "teacher": {"plugin": "causal_lm", "path": str(tiny_gpt2)}}, sweep={"layer": ["early", "late"]},
        intervention={"plugin": "zero", "site": "resid_post@prompt", "position": -1},
    )  # fmt: skip
    family = family_of(experiment, plugin_manager())
    assert family.members["teacher"].model.options == {"path": str(tiny_gpt2), "device": "cpu"}  # base is CODI's alone
    layers = [p.prepared.plan.conditions[0].axes["layer"] for p in plan_checkpoints(experiment, limit=1).values()]
    assert [list(v) for v in layers] == [[(1,), (3,)], [(0,), (2,)]]
    assert family.members["codi"].name == "test-codi"
    with pytest.raises(UserError, match="plan_checkpoints"):
        plan_experiment(experiment)


# ----------------------------------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        ({"from": "nothing/*"}, "checkpoints.from: 'nothing/*' matches nothing"),
        ({"from": "{trained}/*/model.safetensors"}, "the label 'model' stands twice"),
        (["{trained}/step-900", "{trained}/step-7"], "checkpoints.step-7.checkpoint: no such file or directory"),
        (["{trained}/step-900", "elsewhere/step-900"], "the label 'step-900' stands twice"),
        ({"A": "{trained}/step-900", "a": "{trained}/step-1000"}, "the label 'a' stands twice (upper and lower case alike)"),
        ({"a": "{trained}/step-900", "b": {"checkpoint": "{trained}/none"}}, "checkpoints.b.checkpoint: no such file or directory"),
        (["demo", "nowhere/to/be"], "checkpoint be: experiment: model.checkpoint: no such file or directory: 'nowhere/to/be'"),
        ({"a/b": "{trained}/step-900"}, "the label 'a/b' must be a plain file name"),
        ({"a": {"chekpoint": "x"}}, "checkpoints.a: 'chekpoint' is no option of the model 'codi'; did you mean 'checkpoint'"),
        ({"a": {"checkpoint": "demo", "sweep": {}}}, "checkpoints.a: 'sweep' is no option of the model"),
        ({"a": "{trained}/step-900", "b": {"latents": 4}}, "checkpoints.b.checkpoint: is missing"),
        ({"a": "{trained}/step-900", "b": {"checkpoint": "{trained}/step-900"}}, "'a' and 'b' are the same model"),
        ({"a": {"checkpoint": "demo", "latents": "six"}}, "checkpoints.a.latents: should be a valid integer"),
        ({}, "is empty"),
        ([], "is empty"),
        (3, "write label: {checkpoint: path}"),
        ({"a": {"plugin": 5}}, "checkpoints.a.plugin: write the name of a model plugin; got 5"),
        ({"a": 3}, "'a' is what differs in model:"),
        ([3], "a list is one of paths"),
        ({"true": {}, True: {}}, "labels are words or numbers"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(make: Maker, trained: Path, checkpoints: Any, words: str) -> None:
    def put(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace("{trained}", str(trained))
        if isinstance(value, dict):
            return {k: put(v) for k, v in value.items()}
        return [put(v) for v in value] if isinstance(value, list) else value

    with pytest.raises(UserError) as caught:
        run_experiment(make(put(checkpoints)), "runs/x")
    assert words in str(caught.value)
    assert str(caught.value).count("\n") <= 1
    assert not Path("runs").exists()


def test_a_layer_that_one_model_lacks_is_refused_with_its_name(make: Maker, tiny_gpt2: Path) -> None:
    two = {"codi": {"checkpoint": "demo"}, "teacher": {"plugin": "causal_lm", "path": str(tiny_gpt2)}}
    intervention = {"plugin": "zero", "site": "resid_post@prompt", "position": -1}
    with pytest.raises(UserError, match=r"checkpoint teacher: .*layer.*0\.\.2"):
        run_experiment(make(two, sweep={"layer": [3]}, intervention=intervention), "runs/x")
    assert not Path("runs").exists()


# ----------------------------------------------------------------------------- analysing, command line


@pytest.mark.slow
def test_a_directory_of_runs_stands_for_its_runs(make: Maker, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **__: Path(path).touch())  # takes longest, and is seen elsewhere
    two = {"small": str(trained / "step-1000"), "other": str(trained / "step-900")}
    run_experiment(make(two, analyses=["across"], metrics=["kl"]), "runs/x")
    assert [p.name for p in expand(["runs/x"])] == ["small", "other"]  # as the file names them
    assert [p.name for p in expand(["runs/x/*"])] == ["other", "small"]
    assert expand(["runs/*"]) == expand(["runs/x"]) == runs_below(Path("runs/x"))
    [done] = analyze("runs/x", "across")
    assert done.folder == Path("runs/x/results/across")
    [one, two_, both] = analyze("runs/x")  # the runs' own, then those over all
    assert [one.name, two_.name, both.name] == ["importance", "importance", "across"]
    assert analyze("runs/x/small", "importance")[0].folder == Path("runs/x/small/results/importance")
    with pytest.raises(UserError, match="holds no run"):
        open_runs(".")


@pytest.mark.slow
def test_the_command_line_lists_and_runs_them(make: Maker, trained: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    experiment = make({"from": f"{trained}/step-*"}, name="series")
    Path("series.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    assert main(["run", "series.yaml", "--dry-run", "--limit", "1"]) == 0
    out = capsys.readouterr().out
    assert out.index("checkpoint step-900") < out.index("checkpoint step-1000")
    assert "runs/series/step-1000" in out
    assert "4 edited + 4 unedited" in out
    assert not Path("runs").exists()
    assert main(["run", "series.yaml", "--limit", "1"]) == 0
    out, err = capsys.readouterr()
    assert "step-900   4 cells (all new)" in out
    assert "codi-engine analyze runs/series across" in out
    assert "checkpoint step-1000: 4 cells, 4 new" in err
    assert main(["check", "series.yaml", "-q", "--limit", "1"]) == 0
    assert "step-1000   patch" in capsys.readouterr().out
    assert main(["analyze", "runs/series", "across", "-q", "-s", "metric=nothing"]) == 2
    assert capsys.readouterr().err.startswith("error: across: metric 'nothing' is not in the run; known: flip, kl")


@pytest.mark.parametrize("there", [False, True])
def test_a_family_of_which_no_run_came_leaves_nothing(make: Maker, trained: Path, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match="capture"):
        run_experiment(make([str(trained / "step-900")], capture=["resid_post.0@latent[99]"]), tmp_path / "a" / "runs")
    assert [p.name for p in tmp_path.rglob("*")] == ["a"] * there
