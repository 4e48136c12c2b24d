"""Interventions that choose their own places: what they read is stored, what they edit is checked, what they are let through for is said."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from codi_engine import Experiment
from codi_engine.core.errors import GateError
from codi_engine.core.plugin import Readings
from codi_engine.core.running.run import check_experiment, plan_experiment
from codi_engine.core.sites import Site
from codi_engine.plugins.interventions.ablate import Mean, Noise
from codi_engine.plugins.interventions.replace import Patch, Resample
from codi_engine.plugins.metrics.answer import Flip

Maker = Callable[..., Experiment]
BOT = {"plugin": "patch", "site": "resid_post@bot", "layer": 2, "direction": "denoise"}


def test_values_are_read_in_every_phase_that_is_edited(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Address bot, edit bot and two latents, read one layer below: each place takes the clean run's own value of that place."""
    monkeypatch.setattr(Patch, "edits", lambda self, phase, places, latents: {"prompt": places, "latent": [0, 3]})
    monkeypatch.setattr(Patch, "source_at", lambda self, site, place: (Site("resid_pre", site.layer, site.phase), place))
    monkeypatch.setattr(Patch, "gate_exempt", "a test")
    places = {"prompt": "prompt[-1]", "latent": "latent"}
    capture = [f"{c}.2@{place}" for c in ("resid_pre", "resid_post") for place in places.values()]
    run = demo(intervention=BOT, data={"plugin": "demo-pairs", "limit": 2}, capture=capture).run().open()
    for phase, steps in (("prompt", [0]), ("latent", [0, 3])):
        unedited = run.activations(f"resid_pre.2@{places[phase]}")
        clean = unedited.values[(unedited["variant"] == "clean").values]
        edited = run.activations(f"resid_post.2@{places[phase]}", edited=True).values
        assert np.array_equal(edited[:, steps], clean[:, steps])
        assert phase == "prompt" or not np.array_equal(edited[:, 1], clean[:, 1])


def test_swept_options_that_choose_places_are_all_looked_at(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first point reads bot, the second latents: both are among the run's sources."""

    def edits(self: Any, phase: Any, places: Any, latents: int) -> Mapping[Any, Any]:
        return {"latent": [5]} if self.options.chain else {"prompt": places}

    monkeypatch.setattr(Patch, "edits", edits)
    monkeypatch.setattr(Patch, "gate_exempt", "a test")
    cells = demo(intervention=BOT, sweep={"chain": [False, True]}).run().open().cells
    edited = cells[cells["condition"] == "patch"]
    assert len(edited) == 3 * 2
    assert edited["kl"].gt(0).all()


def test_own_values_are_read_where_the_intervention_says(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Patch, "source", "own")
    keys = {"intervention": {**BOT, "site": "resid_post", "step": [4]}, "capture": ["resid_post.2@latent"], "allow_vacuous": True}
    cells = demo(**keys).run("same").open().cells
    assert (cells["kl"] == 0).all()
    monkeypatch.setattr(Patch, "source_at", lambda self, site, place: (site, place - 1))
    with pytest.raises(GateError, match=r"self-swap .* is not an identity"):
        demo(**keys).run("refused")
    monkeypatch.setattr(Patch, "gate_exempt", "a test")
    run = demo(**keys).run("let").open()
    edited = run.activations("resid_post.2@latent", edited=True).values
    assert np.array_equal(edited[:, 4], edited[:, 3])


def test_means_and_scales_of_chosen_places(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mean is read where the intervention says, a scale where it edits."""
    for plugin in (Mean, Noise):
        monkeypatch.setattr(plugin, "edits", lambda self, phase, places, latents: {"latent": [4]})
        monkeypatch.setattr(plugin, "source_at", lambda self, site, place: (Site("resid_post", 0, "latent"), place - 1))
        monkeypatch.setattr(plugin, "gate_exempt", "a test")
    data = {"plugin": "demo-problems", "limit": 2}
    site = {"site": "resid_post@bot", "layer": 2}
    conditions = {"mean": {"intervention": {"plugin": "mean", **site}}, "noise": {"intervention": {"plugin": "noise", "sigma": 0.5, **site}}}
    run = demo(conditions=conditions, data=data, capture=["resid_post.2@latent", "resid_post.0@latent"]).run().open()
    edited = run.activations("resid_post.2@latent", edited=True)
    unedited, below = (run.activations(f"resid_post.{layer}@latent").values for layer in (2, 0))
    means = edited.values[(edited["condition"] == "mean").values]
    assert np.array_equal(means[0, 4], means[1, 4])
    assert np.linalg.norm(means[0, 4] - below[:, 3].mean(0)) < np.linalg.norm(means[0, 4] - unedited[:, 4].mean(0))
    noisy = edited.values[(edited["condition"] == "noise").values]
    assert [bool((noisy[:, k] != unedited[:, k]).any()) for k in range(5)] == [False, False, False, False, True]


@pytest.mark.parametrize("downstream", ["propagate", "freeze"])
def test_an_intervention_that_edits_nothing_is_caught(demo: Maker, monkeypatch: pytest.MonkeyPatch, downstream: str) -> None:
    monkeypatch.setattr(Patch, "edits", lambda self, phase, places, latents: {})
    for exempt, said in (("", r"'patch' edits at no place, but the cell addresses prompt\[-1\]"), ("a test", "'patch' edits no place of any cell")):
        monkeypatch.setattr(Patch, "gate_exempt", exempt)
        with pytest.raises(GateError, match=said):
            check_experiment(demo(intervention={**BOT, "downstream": downstream}))


def test_what_the_gate_lets_pass_is_a_note_of_the_plan(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = demo(intervention={"plugin": "resample", "site": "latent_in", "step": [2]}, data={"plugin": "demo-problems", "limit": 2})
    assert plan_experiment(experiment).prepared.plan.notes == []
    monkeypatch.setattr(Resample, "gate_exempt", "one step early, on purpose")
    assert plan_experiment(experiment).prepared.plan.notes == ["condition 'resample': the gate lets 'resample' pass: one step early, on purpose"]


def test_metrics_can_encode_texts(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def measure(self: Any, read: Readings) -> Mapping[str, np.ndarray]:
        assert read.encode is not None
        seen.append(len(read.encode("18 pears")))
        return {"flip": np.zeros(len(read.gold))}

    monkeypatch.setattr(Flip, "measure", measure)
    demo(intervention=BOT, metrics=["flip"]).run()
    assert len(seen) >= 2
    assert set(seen) == {2}
