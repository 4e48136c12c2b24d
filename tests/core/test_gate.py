"""The gate refuses what edits elsewhere, reads elsewhere, never fires or changes nothing; `gate_exempt` lets it pass with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from codi_engine import Experiment
from codi_engine.core import hookspecs, plugins
from codi_engine.core.errors import GateError, PluginError
from codi_engine.core.plugin import Intervention, NoOptions, Options, Rows
from codi_engine.core.running.run import check_experiment, run_experiment
from codi_engine.core.sites import Phase, Site

Maker = Callable[..., Experiment]


class Swap(Intervention[NoOptions]):
    """The partner's value."""

    Options = NoOptions
    source = "partner"

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.source is not None
        return rows.source.to(rows.values.dtype)


class Late(Swap):
    """The partner's value of the step after."""

    name = "late"

    def source_at(self, site: Site, place: int) -> tuple[Site, int]:
        return site, place + 1


class BlockInput(Swap):
    """What goes into block L is put where its output is: hidden_states[L] taken for the block's own."""

    name = "block_input"

    def source_at(self, site: Site, place: int) -> tuple[Site, int]:
        assert site.layer is not None
        return Site(site.component, site.layer - 1, site.phase), place


class Prefill(Intervention[NoOptions]):
    """Fires in the prefill, as a hook that is not told apart from the latent steps does."""

    name = "prefill"
    Options = NoOptions

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values * 0

    def edits(self, phase: Phase, places: Sequence[int], latents: int) -> Mapping[Phase, Sequence[int]]:
        return {"prompt": [-1], phase: places}


class StepLater(Prefill):
    """Fires one step later."""

    name = "step_later"

    def edits(self, phase: Phase, places: Sequence[int], latents: int) -> Mapping[Phase, Sequence[int]]:
        return {phase: [p + 1 for p in places]}


class Never(Prefill):
    """Fires nowhere."""

    name = "never"

    def edits(self, phase: Phase, places: Sequence[int], latents: int) -> Mapping[Phase, Sequence[int]]:
        return {}


class Same(Intervention[NoOptions]):
    """Returns what it got."""

    name = "same"
    Options = NoOptions

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values


class Narrow(Same):
    """Returns half of the width."""

    name = "narrow"

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values[:, ::2]


class Double(Same):
    """Returns another type."""

    name = "double"

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values.double()


class HalfNeutral(Same):
    """Its neutral options are none."""

    name = "half_neutral"

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values * 0.5

    def neutral(self) -> Intervention[NoOptions]:
        return HalfNeutral(self.options)


class FlagOptions(Options):
    """``rest``: changes nothing, and says so."""

    rest: bool = True


class Resting(Intervention[FlagOptions]):
    """Changes nothing where its options say that it may."""

    name = "resting"
    Options = FlagOptions

    def apply(self, rows: Rows) -> torch.Tensor:
        return rows.values.clone()

    def may_rest(self) -> bool:
        return self.options.rest


WRONG: list[type[Intervention[Any]]] = [Late, BlockInput, Prefill, StepLater, Never, HalfNeutral]


def exempt(cls: type[Intervention[Any]]) -> type[Intervention[Any]]:
    return type(f"Exempt{cls.__name__}", (cls,), {"name": f"exempt_{cls.name}", "gate_exempt": "as in the study", "__doc__": cls.__doc__})


@pytest.fixture
def third(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """The maker of demo experiments, with the classes above registered as an installed package's."""
    made = plugins.plugin_manager(load=False)
    classes = [*WRONG, Early, Same, Narrow, Double, Resting, *map(exempt, WRONG)]
    made.register(SimpleNamespace(interventions=hookspecs.hookimpl(lambda: classes)), "third", "1")
    assert made.problems == []
    monkeypatch.setattr(plugins, "plugin_manager", lambda *_, **__: made)
    return demo


def experiment(third: Maker, plugin: str, step: Any = 1, **keys: Any) -> Experiment:
    intervention = {"plugin": plugin, "site": "resid_post.2", "step": step, "direction": "denoise", **keys}
    return third(intervention=intervention, data={"plugin": "demo-pairs", "limit": 2})


@pytest.mark.parametrize(
    ("plugin", "said"),
    [
        ("late", "condition 'late': self-swap (its own values in place of the source's) is not an identity"),
        ("block_input", "condition 'block_input': self-swap (its own values in place of the source's) is not an identity"),
        ("prefill", "'prefill' edits at prompt[-1], latent[1], but the cell addresses latent[1]"),
        ("step_later", "'step_later' edits at latent[2], but the cell addresses latent[1]"),
        ("never", "'never' edits at no place, but the cell addresses latent[1]"),
        ("same", "condition 'same' edited 2 rows at resid_post.2@latent and changed none of them"),
        ("narrow", "intervention 'narrow' (third 1): apply() returned [2, 64] torch.float32 for [2, 128] torch.float32"),
        ("double", "intervention 'double' (third 1): apply() returned [2, 128] torch.float64 for [2, 128] torch.float32"),
        ("half_neutral", "condition 'half_neutral': the intervention with neutral options is not an identity"),
    ],
)
def test_what_measures_something_else_is_refused_by_name(third: Maker, plugin: str, said: str, tmp_path: Path) -> None:
    with pytest.raises((GateError, PluginError)) as caught:
        run_experiment(experiment(third, plugin), tmp_path / "run")
    assert said in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 2


@pytest.mark.parametrize("plugin", [f"exempt_{c.name}" for c in WRONG if c is not Never])
def test_an_exempt_one_passes_and_the_check_says_why(third: Maker, plugin: str) -> None:
    frame = check_experiment(experiment(third, plugin))
    assert set(frame["self_patch"]) == {"exempt: as in the study"}
    assert (frame["changed"] > 0).all()


def test_one_that_may_rest_is_not_asked_to_change(third: Maker) -> None:
    assert set(check_experiment(experiment(third, "resting"))["changed"]) == {0}
    with pytest.raises(GateError, match="changed none"):
        check_experiment(experiment(third, "resting", rest=False))


class Early(Swap):
    """The partner's value of the step before."""

    name = "early"
    gate_exempt = "as in the study"

    def source_at(self, site: Site, place: int) -> tuple[Site, int]:
        return site, place - 1


@pytest.mark.parametrize(
    ("plugin", "change", "said"),
    [
        ("exempt_late", {"step": 5}, "'exempt_late' at resid_post.2@latent[5] reads resid_post.2@latent[6]: the model has steps 0 to 5"),
        ("early", {"step": 0}, "'early' at resid_post.2@latent[0] reads resid_post.2@latent[-1]: the model has steps 0 to 5"),
        ("exempt_block_input", {"site": "resid_post.0"}, "reads resid_post.-1@latent[1]: the model has layers 0 to 3"),
    ],
)
def test_a_source_that_the_model_does_not_have_is_said(third: Maker, plugin: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(GateError) as caught:
        check_experiment(experiment(third, plugin, **change))
    assert said in str(caught.value)


def test_the_wrong_step_is_what_it_says(third: Maker, tmp_path: Path) -> None:
    """An exempt swap of the step after is `patch` with the partner's later value: it differs from `patch`, and equals it one step on."""
    late = run_experiment(experiment(third, "exempt_late", site="latent_in", step=4), tmp_path / "late").open()
    right = run_experiment(experiment(third, "patch", site="latent_in", step=4), tmp_path / "right").open()
    assert (late.baseline["kl"] == right.baseline["kl"]).all()
    a, b = (r.cells[r.cells["condition"] != "baseline"]["kl"].to_numpy() for r in (late, right))
    assert not np.array_equal(a, b)
