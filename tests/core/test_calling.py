"""A plugin's code that fails or returns what it must not: named with package, plugin and method; the rest goes on, or can."""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codi_engine import Experiment, hookimpl
from codi_engine.core import plugins as manager_module
from codi_engine.core.calling import calling, titled, wrong
from codi_engine.core.errors import AnalysesFailed, PluginError, UserError
from codi_engine.core.plugin import (
    Analysis,
    AnalysisResult,
    Data,
    Dataset,
    Example,
    Intervention,
    Metric,
    NoOptions,
    Prompt,
    Readings,
    Rows,
)
from codi_engine.core.plugins import Plugins, plugin_manager
from codi_engine.core.returned import applied, columns_of, edited_places, loaded, measured, neutral_of
from codi_engine.core.runs.analyzing import analyze_runs
from codi_engine.core.spreading.failures import Failed, raised

Make = Callable[..., Experiment]


class Halve(Intervention[NoOptions]):
    """Halve the values; while ``broken`` stands, fail at the call of that number."""

    name = "halve"
    Options = NoOptions
    broken: int | None = None
    calls = 0

    def apply(self, rows: Rows) -> torch.Tensor:
        Halve.calls += 1
        if Halve.broken is not None and Halve.calls > Halve.broken:
            raise ZeroDivisionError("no way\nto go")
        return rows.values / 2


class Returns(Intervention[NoOptions]):
    """Return whatever ``value`` makes of the values."""

    name = "returns"
    Options = NoOptions
    value: Callable[[torch.Tensor], Any] = staticmethod(lambda values: values / 2)

    def apply(self, rows: Rows) -> torch.Tensor:
        new: torch.Tensor = Returns.value(rows.values)
        return new


class Wide(Metric[NoOptions]):
    """Return whatever ``value`` makes of the rows."""

    name = "wide"
    Options = NoOptions
    value: Callable[[int], Any] = staticmethod(lambda rows: {"wide": np.zeros(rows)})

    def measure(self, read: Readings) -> Mapping[str, np.ndarray]:
        values: Mapping[str, np.ndarray] = Wide.value(len(read.gold))
        return values


class Fails(Analysis[NoOptions]):
    """Raise."""

    name = "fails"
    Options = NoOptions

    def analyze(self, runs: Sequence[Any], work: Any) -> AnalysisResult:
        raise KeyError("colour")


class Counts(Analysis[NoOptions]):
    """Count cells."""

    name = "counts"
    Options = NoOptions

    def analyze(self, runs: Sequence[Any], work: Any) -> AnalysisResult:
        return AnalysisResult({"counts": pd.DataFrame({"cells": [len(runs[0].cells)]})}, {}, "counted")


class Broken(Dataset[NoOptions]):
    """Return whatever ``value`` is."""

    name = "broken"
    Options = NoOptions
    value: Any = None

    def load(self) -> Data:
        value: Data = Broken.value
        return value


class Package:
    @staticmethod
    @hookimpl
    def interventions() -> list[type]:
        return [Halve, Returns]

    @staticmethod
    @hookimpl
    def metrics() -> list[type]:
        return [Wide]

    @staticmethod
    @hookimpl
    def analyses() -> list[type]:
        return [Fails, Counts]

    @staticmethod
    @hookimpl
    def datasets() -> list[type]:
        return [Broken]


@pytest.fixture(autouse=True)
def with_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every manager of the test has the package above, as if it were installed."""

    def manager(load: bool = True) -> Plugins:
        made = plugin_manager(load=False)
        made.register(Package, "codi-halve", "0.3")
        assert made.problems == []
        return made

    monkeypatch.setattr(manager_module, "plugin_manager", manager)
    monkeypatch.setattr(Halve, "broken", None)
    monkeypatch.setattr(Halve, "calls", 0)


# ------------------------------------------------------------------------------------------ the manager of calls


def test_an_exception_names_package_plugin_method_and_line() -> None:
    made = manager_module.plugin_manager().build("intervention", "halve", "x", "y")
    Halve.broken = 0
    with pytest.raises(PluginError) as caught, calling(made, "apply"):
        made.apply(None)
    first, second = str(caught.value).splitlines()
    assert first.startswith("intervention 'halve' (codi-halve 0.3) failed in apply(), test_calling.py:")
    assert first.endswith(": ZeroDivisionError: no way to go.")
    assert second == "What is committed stays; after mending it the same command goes on. --debug shows the traceback."
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_defect_of_ours_is_said_to_be_ours() -> None:
    cls = plugin_manager(load=False).get("intervention", "zero")
    assert "(codi-engine " in str(wrong(cls, "apply", "returned nonsense"))
    assert "This is a defect of codi-engine" in str(wrong(cls, "apply", "returned nonsense"))


@pytest.mark.parametrize("error", [UserError("write a number"), MemoryError(), torch.OutOfMemoryError("out"), KeyboardInterrupt()])
def test_what_is_no_defect_passes_as_it_is(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, calling(Halve, "apply"):
        raise error
    assert caught.value is error


def test_an_exit_is_a_failure() -> None:
    with pytest.raises(PluginError, match=r"failed in apply\(\), test_calling\.py:\d+: SystemExit: 0\."), calling(Halve, "apply"):
        sys.exit(0)


@pytest.mark.parametrize(
    ("method", "value", "said"),
    [
        ("edits", None, "edits() must return phase → places, such as {'latent': [0, 2]}, of the phases prompt, latent, answer; it returned None"),
        ("edits", {"latents": [0]}, "it returned {'latents': [0]}"),
        ("edits", {"latent": 0}, "failed in edits(): TypeError"),
        ("neutral", 3, "neutral() must return a Halve or None; it returned a int"),
    ],
)
def test_where_and_neutral_options_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, method: str, value: Any, said: str) -> None:
    made = manager_module.plugin_manager().build("intervention", "halve", "x", "y")
    monkeypatch.setattr(Halve, method, lambda *_: value)
    with pytest.raises(PluginError, match=r"intervention 'halve' \(codi-halve 0\.3\)") as caught:
        edited_places(made, "latent", [0], 6) if method == "edits" else neutral_of(made)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("condition", "names 'condition', which is a column of every run already"),
        ("a/b", "names 'a/b', which must be letters, digits and . _ - + ="),
        ("", "must return names, each once"),
    ],
)
def test_columns_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch, column: str, said: str) -> None:
    made = manager_module.plugin_manager().build("metric", "wide", "x", "y")
    monkeypatch.setattr(Wide, "columns", lambda self: (column,))
    with pytest.raises(PluginError) as caught:
        columns_of(made)
    assert said in str(caught.value)


def test_a_class_made_by_hand_is_named_too() -> None:
    class Lone(Halve):
        """Nobody registered it."""

    assert titled(Lone) == "intervention 'halve' (codi-halve 0.3)"  # what it inherits from was
    assert titled(types.SimpleNamespace()) == "plugin 'SimpleNamespace' (types)"


def test_an_error_of_a_worker_arrives_as_one() -> None:
    sent = Failed.of(PluginError("intervention 'halve' (codi-halve 0.3) failed"))
    error = raised("cuda:1", sent)
    assert type(error) is PluginError
    assert str(error) == "intervention 'halve' (codi-halve 0.3) failed"


# ------------------------------------------------------------------------------------------ what comes back


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda v: None, "apply() must return a tensor; it returned None at resid_post.1@latent[2]"),
        (lambda v: v.numpy(), "apply() must return a tensor; it returned a ndarray"),
        (lambda v: v[:, :2], "apply() returned [3, 2] torch.float32 for [3, 4] torch.float32"),
        (lambda v: v.double(), "apply() returned [3, 4] torch.float64 for [3, 4] torch.float32"),
        (lambda v: v / torch.tensor([[1.0], [0.0], [0.0]]), "apply() returned NaN or infinite values at resid_post.1@latent[2] for example 'b' (2 of 3 rows)."),
        (lambda v: v.to("meta"), "apply() returned a tensor on meta for one on cpu"),
    ],
)
def test_new_values_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, value: Callable[[torch.Tensor], Any], said: str) -> None:
    monkeypatch.setattr(Returns, "value", staticmethod(value))
    made = manager_module.plugin_manager().build("intervention", "returns", "x", "y")
    rows = Rows(torch.ones(3, 4), {"example": np.array(["a", "b", "c"], object)}, "resid_post", 1, 2)
    with pytest.raises(PluginError, match=r"intervention 'returns' \(codi-halve 0\.3\): ") as caught:
        applied(made, rows)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda n: {"wide": np.zeros(n + 1)}, "measure() returned shape [3] for 2 rows in column 'wide'"),
        (lambda n: {"broad": np.zeros(n)}, "measure() returned the columns broad; columns() names wide"),
        (lambda n: {}, "measure() returned the columns none; columns() names wide"),
        (lambda n: {"wide": ["a"] * n}, "failed in measure(): ValueError: could not convert string to float"),
        (lambda n: None, "measure() must return column → values, such as {'wide': …}; it returned None"),
        (lambda n: [0.0] * n, "measure() must return column → values, such as {'wide': …}; it returned a list"),
    ],
)
def test_columns_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, value: Callable[[int], Any], said: str) -> None:
    monkeypatch.setattr(Wide, "value", staticmethod(value))
    made = manager_module.plugin_manager().build("metric", "wide", "x", "y")
    read = types.SimpleNamespace(gold=np.zeros(2))
    with pytest.raises(PluginError, match=r"metric 'wide' \(codi-halve 0\.3\)") as caught:
        measured(made, read)  # type: ignore[arg-type]
    assert said in str(caught.value)


def data(*ids: str, kind: str = "problems", variant: str = "main", answer: Any = 2.0) -> Data:
    examples = [Example(i, {variant: Prompt("how many?", answer)}) for i in ids]
    return Data(kind, examples, examples)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (None, "load() must return a Data; it returned None"),
        (data(), "load() returned no examples"),
        (data(1), "load() returned an example with the id 1; ids are text"),  # type: ignore[arg-type]
        (data("a", answer="two"), "load() returned example 'a', whose main answer is 'two'; write a finite number, or None"),
        (data("a", answer=float("nan")), "load() returned example 'a', whose main answer is nan; write a finite number, or None"),
        (data("a", kind="poems"), "load() returned data of kind 'poems'; known: problems, prompts, pairs"),
        (data("a", "b", "a"), "load() returned two examples with the id 'a'"),
        (data("a", kind="pairs"), "load() returned example 'a' with the prompts ['main']; pairs have ['clean', 'corrupted']"),
    ],
)
def test_data_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, value: Any, said: str) -> None:
    monkeypatch.setattr(Broken, "value", value)
    with pytest.raises(PluginError, match=r"dataset 'broken' \(codi-halve 0\.3\): ") as caught:
        loaded(manager_module.plugin_manager().build("dataset", "broken", "x", "y"))
    assert said in str(caught.value)


def test_options_that_the_class_itself_refuses_are_named() -> None:
    class Stubborn(Intervention[NoOptions]):
        """Cannot be made."""

        name = "stubborn"
        Options = NoOptions

        def __init__(self, options: NoOptions) -> None:
            raise RuntimeError("not today")

        def apply(self, rows: Rows) -> torch.Tensor:
            return rows.values

    plugins = plugin_manager(load=False)
    plugins.register(type("More", (), {"interventions": staticmethod(hookimpl(lambda: [Stubborn]))}), "codi-more", "1")
    with pytest.raises(PluginError, match=r"intervention 'stubborn' \(codi-more 1\) failed in __init__\(\), .*RuntimeError: not today"):
        plugins.build("intervention", "stubborn", "x", "y")


# ---------------------------------------------------------------------------------------------- in a run


def digests(path: Path) -> dict[str, str]:
    """File → digest, of what a run computed."""
    files = [p for part in ("data.zarr", "texts") for p in sorted((path / part).rglob("*")) if p.is_file()]
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_a_run_stops_where_an_intervention_fails_and_goes_on_when_it_is_mended(demo: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codi_engine.core.running.generations.UNIT_CELLS", 16)
    keys: dict[str, Any] = {"intervention": {"plugin": "halve", "site": "resid_post", "on": "clean"}, "sweep": {"layer": [0, 3], "step": "all"}}
    demo(**keys).run(tmp_path / "whole")
    calls, Halve.calls = Halve.calls, 0
    Halve.broken = calls * 2 // 3
    with pytest.raises(PluginError, match=r"intervention 'halve' \(codi-halve 0\.3\) failed in apply\(\)"):
        demo(**keys).run(tmp_path / "mended")
    committed = len((tmp_path / "mended" / "ledger").read_text(encoding="utf-8").splitlines())
    Halve.broken = None
    finished = demo(**keys).run(tmp_path / "mended")
    assert committed >= 4  # a plan, the unedited unit, and two units of the sweep
    assert 0 < finished.new_cells < finished.cells
    assert digests(tmp_path / "mended") == digests(tmp_path / "whole")


def test_values_that_are_not_finite_stop_a_run_in_any_batch(demo: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate saw nothing of it: only the last call of the sweep spoils its second row."""
    keys: dict[str, Any] = {"intervention": {"plugin": "returns", "site": "resid_post", "layer": 1, "on": "clean"}, "sweep": {"step": [0, 2]}}
    calls: list[int] = []

    def spoils(values: torch.Tensor, last: int) -> torch.Tensor:
        calls.append(len(values))
        new = values / 2
        if len(calls) == last:
            new[1, 3] = torch.nan
        return new

    monkeypatch.setattr(Returns, "value", staticmethod(lambda values: spoils(values, 0)))
    demo(**keys).run(tmp_path / "whole")
    last, calls[:] = len(calls), []
    monkeypatch.setattr(Returns, "value", staticmethod(lambda values: spoils(values, last)))
    with pytest.raises(PluginError, match=r"returned NaN or infinite values at resid_post\.1@latent\[2\] for example '.+' \(1 of \d+ rows\)"):
        demo(**keys).run(tmp_path / "run")


def test_an_analysis_that_fails_leaves_the_others(demo: Make, tmp_path: Path) -> None:
    finished = demo(analyses=["fails", "counts"]).run(tmp_path / "run")
    assert [str(f).splitlines()[0] for f in finished.failures] == [
        f"analysis 'fails' (codi-halve 0.3) failed in analyze(), test_calling.py:{_line()}: KeyError: 'colour'."
    ]
    assert finished.summaries == {"counts": "counted"}
    assert (tmp_path / "run" / "results" / "counts" / "counts.parquet").is_file()
    with pytest.raises(AnalysesFailed, match=r"analysis 'fails' \(codi-halve 0\.3\)") as caught:
        analyze_runs([tmp_path / "run"], ["fails", "counts"])
    assert [one.name for one in caught.value.done] == ["counts"]  # type: ignore[attr-defined]
    with pytest.raises(PluginError, match="KeyError: 'colour'"):
        analyze_runs([tmp_path / "run"], ["fails"])


def _line() -> int:
    return Fails.analyze.__code__.co_firstlineno + 1
