"""Figures are drawn from stored tables alone: again they are the same, in any size they stay readable."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

import codi_engine
from codi_engine import Experiment, open_run
from codi_engine.cli.main import main
from codi_engine.core.errors import PluginError, UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, NoOptions
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.progress import Progress
from codi_engine.core.runs import drawing, resizing
from codi_engine.core.runs.analyzing import analyze_one, analyze_runs, write_result
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.stored import stored_results
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.core.runs.work import Work

EVERY = {r.name for r in plugin_manager(load=False).registered if r.kind == "analysis"}
OPTIONS = {"attribution": ["condition=one"], "probes": ["target=reasoning_steps", "task=regression", "folds=3", "repeats=3", "site=resid_post@latent"]}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of the demo model that most analyses take, one whose donors differ, one with features and texts."""
    home = tmp_path_factory.mktemp("drawing")
    base: dict[str, Any] = {
        "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}, "data": {"plugin": "demo-pairs", "limit": 5}, "controls": "none",
        "metrics": ["kl", "accuracy", "answer_class"], "generate": {"max_new_tokens": 6}, "capture": ["latent_out", "resid_post@latent"],
    }  # fmt: skip
    patch = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
    both = {
        "one": {"sweep": {"step": [0, 1], "layer": [1, 2]}},
        "sets": {"intervention": {"plugin": "zero", "site": "latent_in"}, "sweep": {"step": [0, 1, [0, 1]]}},
    }
    made = Experiment.from_dict({**base, "name": "both", "intervention": patch, "conditions": both})
    problems = {"plugin": "demo-problems", "limit": 4}
    donors = Experiment.from_dict(
        {**base, "name": "donors", "data": problems, "metrics": ["accuracy", "kl"], "intervention": {"plugin": "resample", "site": "latent_in"},
         "sweep": {"step": [0, 1], "donor": 2}}
    )  # fmt: skip
    found = {"both": made.run(home / "both").open(), "donors": donors.run(home / "donors").open()}
    synth = Synthetic(targets=12, conditions=2, examples=1, trials=30, features=60, effect=6.0, words=20, seed=1)
    found["synth"] = open_run(write_synthetic(synth, home / "synth"))
    return found


@pytest.fixture(scope="module")
def drawn(runs: dict[str, Run]) -> Run:
    """The run with ``importance`` by strata."""
    analyze_runs([runs["both"].path], ["importance"], ["by=reasoning_steps"])
    return runs["both"]


WHERE = {
    "importance": ("both", ["by=reasoning_steps"]), "attribution": ("both", ["condition=one"]), "trajectories": ("both", ["conditions=[one]"]),
    "proportions": ("both", []), "shapley": ("both", []), "logit_lens": ("both", ["site=resid_post@latent"]), "early_late": ("donors", []),
    "step_effects": ("donors", ["site=latent_out"]), "resampling": ("donors", []), "compare_runs": ("both", ["conditions=[one, sets]", "metric=kl"]),
    "probes": ("both", OPTIONS["probes"]), "correlation": ("synth", []), "pathways": ("synth", []), "words": ("synth", []),
    "select_features": ("both", ["axis=step"]), "latent_film": ("both", []),
}  # fmt: skip


def pixels(figure: Any) -> np.ndarray:
    """The figure's pixels, as an analysis writes them."""
    buffer = io.BytesIO()
    drawing.save(figure, buffer, "png", 200)
    buffer.seek(0)
    return np.asarray(imread(buffer))


def test_every_built_in_analysis_is_drawn_here() -> None:
    assert {*WHERE, "across", "tuned_lens"} == EVERY  # the last one needs more examples: tests/plugins/test_tuned_lens.py


#: as users meet it, files and all; every analysis goes through `AnalysisSuite`, which holds redrawn pixels against the first ones
QUICK = {"importance", "attribution", "probes", "shapley"}


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in sorted(WHERE)])
def test_a_figure_drawn_again_is_the_same(name: str, runs: dict[str, Run]) -> None:
    which, options = WHERE[name]
    done = analyze_runs([runs[which].path], [name], options)[0]
    stored = stored_results(runs[which].path)[name]
    again = drawing.redraw(stored)
    assert list(again) == list(stored.figures) == list(done.figures)
    assert again
    first = next(iter(again))
    np.testing.assert_array_equal(pixels(again[first]), imread(stored.figures[first]))


def test_lines_over_checkpoints_are_drawn_again(runs: dict[str, Run], tmp_path: Path) -> None:
    import shutil

    for label in ("1", "2"):
        shutil.copytree(runs["donors"].path, tmp_path / label, ignore=shutil.ignore_patterns("results"))
    done = analyze_runs([tmp_path / "1", tmp_path / "2"], ["across"], [])[0]
    again = drawing.redraw(stored_results(tmp_path / "1")["across"])
    assert list(again) == list(done.figures) == ["lines", "heatmap", "accuracy"]
    np.testing.assert_array_equal(pixels(again["heatmap"]), imread(done.figures["heatmap"]))
    with pytest.raises(UserError, match="across: needs the runs of two or more"):
        analyze_runs([tmp_path / "1"], ["across"], [])


def test_files_are_the_same_bytes_and_text_stays_text(drawn: Run, tmp_path: Path) -> None:
    for kind in drawing.FORMATS:
        for number in range(2):
            drawing.save(codi_engine.plot(drawn, "importance/heatmap", size=(5, 4)), tmp_path / f"{number}.{kind}")
        assert (tmp_path / f"0.{kind}").read_bytes() == (tmp_path / f"1.{kind}").read_bytes()
    assert b"latent step</text>" in (tmp_path / "0.svg").read_bytes()
    assert b"/FontFile2" in (tmp_path / "0.pdf").read_bytes()  # TrueType, not Type 3
    assert b"/Type3" not in (tmp_path / "0.pdf").read_bytes()


def test_labels_that_were_mixed_or_have_gaps_come_back_readable() -> None:
    table = pd.DataFrame({"step": [0, "0+1", None], "layer": pd.Series([3, None, 4], dtype=object), "np": pd.Series([np.int64(1), None, 2], dtype=object)})
    back = drawing.as_stored({"t": table})["t"]
    assert back["step"].tolist()[:2] == ["0", "0+1"]
    assert [str(v) for v in back["layer"]] == ["3", "<NA>", "4"]
    assert str(back["np"].dtype) == "Int64"


def test_figures_that_a_result_brings_along_are_written_too(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    done = write_result(tmp_path / "results" / "own", AnalysisResult({}, {"mine": Figure(figsize=(2, 1))}, "said", facts={"a": 1}))
    assert done.figures["mine"].exists()
    stored = stored_results(tmp_path)["own"]
    assert (stored.about["facts"], list(stored.figures)) == ({"a": 1}, ["mine"])


@pytest.mark.parametrize(("text", "size"), [("7x4", (7, 4)), ("3.5in x 2in", (3.5, 2)), ("50.8mmx5.08cm", (2, 2)), ("12.7x7.62cm", (5, 3))])
def test_sizes_are_read(text: str, size: tuple[float, float]) -> None:
    assert resizing.parse_size(text) == pytest.approx(size)


@pytest.mark.parametrize("text", ["7", "7x", "axb", "0.1x3", "100x3", "-7x4"])
def test_bad_sizes_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--size"):
        resizing.parse_size(text)


@pytest.mark.parametrize("size", [(3.5, 2.8), (7.0, 4.0)])
def test_nothing_leaves_a_resized_figure(size: tuple[float, float], drawn: Run) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = codi_engine.plot(drawn, "importance/heatmap", size=size)
    assert tuple(figure.get_size_inches()) == size
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    width, height = figure.bbox.width, figure.bbox.height
    texts = [*figure.texts, *(t for ax in figure.axes for t in (ax.xaxis.label, ax.yaxis.label, *ax.texts) if t.get_visible() and t.get_text())]
    boxes = [t.get_window_extent(canvas.get_renderer()) for t in texts]
    assert all(b.x0 >= -1 and b.y0 >= -1 and b.x1 <= width + 1 and b.y1 <= height + 1 for b in boxes)
    panels = [ax.get_position() for ax in figure.axes]
    assert all(a.y1 <= b.y0 or b.y1 <= a.y0 or a.x1 <= b.x0 or b.x1 <= a.x0 for i, a in enumerate(panels) for b in panels[:i])


def _boxes(figure: Figure) -> list[tuple[str, Any]]:
    """All text that is seen, with where it stands."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [*figure.texts]
    for ax in figure.axes:
        low, high = sorted(ax.get_xlim())
        ticks = [t for t, at in zip(ax.get_xticklabels(), ax.get_xticks(), strict=False) if low <= at <= high]
        texts += [ax.title, ax._left_title, ax.xaxis.label, *ax.texts, *ticks]  # type: ignore[attr-defined]
    return [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts if t.get_text() and t.get_visible()]


@pytest.mark.parametrize("name", ["heatmap", "scatter", "strongest"])
def test_in_one_column_no_text_stands_on_another(name: str) -> None:
    from codi_engine.plugins.analyses import attribution_figures, share_figures
    from codi_engine.plugins.analyses.proportions import ProportionsOptions

    places = pd.DataFrame([(layer, step) for layer in range(4) for step in range(6)], columns=["layer", "step"])
    size = np.random.default_rng(1).normal(size=len(places)) * np.where(places["step"] == 0, 20.0, 0.3)
    if name == "strongest":
        fields: dict[str, Any] = {
            "condition": "patch",
            "against": "baseline",
            "metric": "accuracy",
            "n": 12,
            "n_against": 11,
            "size": "cohens_h",
            "test": "McNemar",
        }
        bars: dict[str, Any] = {"difference": size / 60, "ci_low": size / 60 - 0.2, "ci_high": size / 60 + 0.2, "p": 0.01, "significant": True}
        target = "layer " + places["layer"].astype(str) + " step " + places["step"].astype(str)
        figure = share_figures.forest(places.assign(target=target, **fields, **bars), ProportionsOptions(), 24)
        assert any("n = 11–12" in text.get_text() for text in figure.texts)
    else:
        exact = {"exact": size, "exact_ci_low": size - 2, "exact_ci_high": size + 2}
        table = places.assign(estimate=0.9 * size, ci_low=0.9 * size - 1, ci_high=0.9 * size + 1, gradient=0.5 * size, **exact)
        shown = attribution_figures.Shown("patch", "logit_diff", "integrated", ["layer", "step"], ["layer", "step"], 12)
        agreement = pd.DataFrame(columns=["condition", "method", "measure", "value"])
        figure = attribution_figures.heatmap(shown, table, "run") if name == "heatmap" else attribution_figures.scatter(shown, table, agreement, "run")
    resizing.resize(figure, 3.5, 2.8)
    found = _boxes(figure)
    on = [(a, b) for i, (a, box) in enumerate(found) for b, other in found[:i] if box.shrunk(0.98, 0.9).overlaps(other.shrunk(0.98, 0.9))]
    assert not on
    assert len(found) > 6


def test_the_command_lists_draws_and_refuses(
    drawn: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    run = str(drawn.path)
    monkeypatch.chdir(tmp_path)
    assert main(["plot", run]) == 0
    assert "importance/heatmap" in capsys.readouterr().out
    assert main(["plot", run, "importance/heatmap"]) == 0
    assert Path("heatmap.pdf").read_bytes()[:4] == b"%PDF"
    assert main(["plot", run, "importance/heatmap", "-o", "a.svg", "--size", "9cmx7cm"]) == 0
    assert "<svg" in Path("a.svg").read_text(encoding="utf-8")
    capsys.readouterr()
    refusals = (
        (["importance/heatmap"], "overwrite it with --force"),
        (["importance/heatmpa"], "did you mean 'importance/heatmap'"),
        (["importance/bars", "-o", "a.gif"], ".pdf, .svg or .png"),
        (["importance/bars", "--size", "big"], "WIDTHxHEIGHT"),
    )
    for arguments, said in refusals:
        assert main(["plot", run, *arguments]) == 2
        assert said in capsys.readouterr().err
    assert main(["plot", str(tmp_path / "nothing")]) == 2
    assert "holds no run" in capsys.readouterr().err
    assert not list(tmp_path.glob(".*partial*"))


def test_an_older_result_says_what_to_do(runs: dict[str, Run], tmp_path: Path) -> None:
    write_result(tmp_path / "results" / "importance", AnalysisResult({"effects": pd.DataFrame({"x": [1]})}, {}, ""), {"analysis": "importance"})
    stored = stored_results(tmp_path)["importance"]
    assert isinstance(stored.about, dict)
    stored.about.pop("facts")
    with pytest.raises(UserError, match="run codi-engine analyze"):
        drawing.redraw(stored)


def test_a_panel_without_effect_says_so_and_strata_share_a_scale(demo: Callable[..., Experiment]) -> None:
    from codi_engine.plugins.analyses import figures
    from codi_engine.plugins.analyses.options import ImportanceOptions

    rows = [
        (c, by, layer, step, 0.0 if c == "none" else 0.1 * layer + (by == "b")) for c in ("none", "some") for by in "ab" for layer in (0, 1) for step in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=["condition", "by", "layer", "step", "mean"]).assign(significant=True, n=5, p=0.01)
    figure = figures.heatmap(table, ["layer", "step"], "kl", ImportanceOptions(by="level"), "study")
    maps = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.get_title(loc="left")}
    assert list(maps) == ["none · a · no effect anywhere", "none · b · no effect anywhere", "some · a", "some · b"]
    scales = {(ax.collections[0].norm.vmin, ax.collections[0].norm.vmax) for title, ax in maps.items() if title.startswith("some")}
    assert scales == {(0.0, 1.1)}
    flat = figures.heatmap(table.drop(columns="layer"), ["step"], "kl", ImportanceOptions(by="level"), "study")
    assert [t.get_text() for t in next(ax for ax in flat.axes if ax.get_title(loc="left") == "some").get_yticklabels()] == ["a", "b"]


def test_an_analysis_that_cannot_draw_leaves_its_tables(runs: dict[str, Run], tmp_path: Path) -> None:
    class Blind(Analysis[NoOptions]):
        """Counts, and cannot draw."""

        name, Options = "blind", NoOptions

        def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
            return AnalysisResult({"counts": pd.DataFrame({"n": [len(runs[0].cells)]})}, {}, "counted")

        def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Any]:
            raise ZeroDivisionError(str(len(tables["counts"])))

    home = tmp_path / "home"
    home.mkdir()
    write_result(home / "results" / "blind", AnalysisResult({"older": pd.DataFrame({"x": [1]})}, {"older": Figure()}, "older"))
    with pytest.raises(PluginError, match=r"'blind' .* failed in draw\(\), test_drawing\.py:\d+: ZeroDivisionError: 1"):
        analyze_one([runs["both"]], Blind(NoOptions()), Progress(), home)
    result = stored_results(home)["blind"]
    assert (list(result.tables), list(result.figures), result.summary) == (["counts"], [], "counted")
    assert result.is_of(runs["both"].digest)
    Blind.draw = lambda self, tables, about: {"../map": Figure()}  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"draw\(\) returned '../map' as a name"):
        analyze_one([runs["both"]], Blind(NoOptions()), Progress(), home)
