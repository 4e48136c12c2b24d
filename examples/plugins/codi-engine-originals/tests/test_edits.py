"""Hooks that fire in the prefill, one layer off or one step early: each reappears as it was, and the gate catches it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codi_engine_originals.edits import CePatch, CeZero, EarlySwap

from codi_engine import Experiment
from codi_engine.core.errors import GateError, UserError
from codi_engine.core.running.run import check_experiment
from codi_engine.core.runs.results import Run
from codi_engine.plugins.interventions.replace import Patch, Resample

Make, Ran, Changes = Callable[..., Experiment], Callable[..., Run], Callable[..., np.ndarray]
DEMO = {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}
PAIRS = {"plugin": "demo-pairs", "limit": 2}
BOT = "resid_post@bot"
ORACLES = [p / "tests/fixtures/oracle_gpt2" for p in Path(__file__).parents if (p / "tests/fixtures/oracle_gpt2").is_dir()]


def logits(run: Run) -> dict[tuple[str, str], np.ndarray]:
    """(condition, example) → first logits."""
    edited = run.activations("logits@answer[0]", edited=True)
    return {(str(c), str(e)): v for c, e, v in zip(edited["condition"].values, edited["example"].values, edited.values, strict=True)}


# ---------------------------------------------------------------------------------------------- one step early


def test_a_self_swap_one_step_early_is_no_identity_and_the_right_slot_is(run: Ran, changes: Changes) -> None:
    conditions = {
        "early_bot": {"intervention": {"plugin": "early-swap", "site": "latent_in", "ct": 0, "self_donor": True}, "sweep": {}},
        "early": {"intervention": {"plugin": "early-swap", "site": "latent_out", "self_donor": True}, "sweep": {"ct": [1, 2, 3, 4, 5]}},
        "right": {"intervention": {"plugin": "resample", "site": "latent_in", "self_donor": True}, "sweep": {"step": "all"}},
    }
    swapped = run(conditions=conditions, data={"plugin": "demo-problems", "limit": 8})
    for where in ({"condition": "early_bot"}, *({"condition": "early", "ct": ct} for ct in range(1, 6))):
        moved = changes(swapped, **where)
        assert moved.max() > 0.05, where
        assert (moved > 0).all(), where
    assert changes(swapped, condition="right").tolist() == [0.0] * 40


@pytest.mark.skipif(not ORACLES, reason="the oracle lies in codi-engine's own repository")
def test_on_a_random_checkpoint_too(run: Ran, changes: Changes, tmp_path: Path) -> None:
    """In the slot of the "buggy" version 0.0 at every position, in that of the "fixed" one it moves the logits."""
    questions = json.loads((ORACLES[0] / "oracle.json").read_text(encoding="utf-8"))["questions"]
    (tmp_path / "problems.jsonl").write_text("".join(json.dumps({"question": q, "answer": 7}) + "\n" for q in questions), encoding="utf-8")
    where = {"checkpoint": str(ORACLES[0] / "ckpt"), "base": str(ORACLES[0] / "tiny-gpt2")}
    conditions = {
        "early_bot": {"intervention": {"plugin": "early-swap", "site": "latent_in", "ct": 0, "self_donor": True}, "sweep": {}},
        "early": {"intervention": {"plugin": "early-swap", "site": "latent_out", "self_donor": True}, "sweep": {"ct": [1, 2, 3, 4, 5]}},
        "right": {"intervention": {"plugin": "resample", "site": "latent_in", "self_donor": True}, "sweep": {"step": "all"}},
    }
    data = {"plugin": "problems", "path": str(tmp_path / "problems.jsonl")}
    swapped = run(model={"plugin": "ce-codi", "device": "cpu", **where}, data=data, conditions=conditions)
    for where in ({"condition": "early_bot"}, *({"condition": "early", "ct": ct} for ct in range(1, 6))):
        moved = changes(swapped, **where)
        assert moved.max() > 0.05, where
        assert (moved > 0).all(), where
    assert changes(swapped, condition="right").tolist() == [0.0] * 40


def test_the_early_slot_is_the_donors_state_before_the_projection(run: Ran, changes: Changes) -> None:
    """Putting z_k where z_{k−1} is consumed and c_k where c_{k−1} is projected are the same edit."""
    early = run(intervention={"plugin": "early-swap", "site": "latent_out", "ct": 3})
    assert (changes(early) > 0.05).all()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Resample, "source_at", lambda self, site, place: (site, place + 1))
        patch.setattr(Resample, "gate_exempt", "one step early, on purpose")
        shifted = run(intervention={"plugin": "resample", "site": "latent_in", "step": [2]})
    a, b = logits(early), logits(shifted)
    assert len(a) == 2
    assert all(np.array_equal(value, b["resample", example]) for (_, example), value in a.items())


def test_the_gate_refuses_the_early_swap_unless_it_says_why(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment = make(intervention={"plugin": "early-swap", "site": "latent_out", "ct": 3})
    assert (check_experiment(experiment)["self_patch"] == f"exempt: {EarlySwap.gate_exempt}").all()
    monkeypatch.setattr(EarlySwap, "gate_exempt", "")
    with pytest.raises(GateError, match=r"condition 'early-swap': 'early-swap' edits at latent\[1\], but the cell addresses latent\[0, 1, 2, 3, 4\]"):
        check_experiment(experiment)


def test_the_gate_finds_a_shifted_source_at_the_right_place(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Resample, "source_at", lambda self, site, place: (site, place + 1))
    with pytest.raises(GateError, match=r"condition 'resample': self-swap .* is not an identity"):
        check_experiment(make(intervention={"plugin": "resample", "site": "latent_in", "step": [2]}))


@pytest.mark.parametrize(
    ("intervention", "message"),
    [
        ({"plugin": "early-swap", "site": "latent_in", "ct": 2}, "ct 2 is swapped at site latent_out"),
        ({"plugin": "early-swap", "site": "latent_out", "ct": 6}, "ct 6: the model has c_0 to c_5"),
        ({"plugin": "ce-patch", "site": "mlp_out@bot", "layer": 1, "self_patch": True}, "its site is resid_post@bot"),
        ({"plugin": "ce-zero", "site": BOT, "layer": 1, "ablated": 7}, "7 CE-steps, but the model has 6"),
    ],
)
def test_what_does_not_fit_is_named(make: Make, intervention: Mapping[str, Any], message: str) -> None:
    keys = {"intervention": {**intervention, **({"direction": "denoise"} if intervention["plugin"] == "ce-patch" else {})}}
    with pytest.raises(UserError, match=message):
        check_experiment(make(**keys, data=PAIRS if intervention["plugin"] == "ce-patch" else {"plugin": "demo-problems", "limit": 2}))


# ------------------------------------------------------------------------------------------------- in the prefill


def test_a_hook_that_also_fires_in_the_prefill_does_more_than_intended(run: Ran) -> None:
    conditions = {
        "meant": {"intervention": {"plugin": "zero", "site": BOT, "layer": 1}},
        "bot": {"intervention": {"plugin": "ce-zero", "site": BOT, "layer": 1, "ablated": 1, "prefill": False}},
        "prefill": {"intervention": {"plugin": "ce-zero", "site": BOT, "layer": 1, "ablated": 1}},
    }
    found = logits(run(conditions=conditions))
    assert len(found) == 6
    for example in {e for _, e in found}:
        assert np.array_equal(found["meant", example], found["bot", example])
        assert np.abs(found["prefill", example] - found["meant", example]).max() > 0.05


def test_the_gate_catches_the_prefill(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CeZero, "gate_exempt", "")
    with pytest.raises(GateError, match=r"'ce-zero' edits at prompt\[-2, -1\], but the cell addresses prompt\[-1\]"):
        check_experiment(make(intervention={"plugin": "ce-zero", "site": BOT, "layer": 1, "ablated": 1}))
    check_experiment(make(intervention={"plugin": "ce-zero", "site": BOT, "layer": 1, "ablated": 1, "prefill": False}))


def test_a_hook_that_never_fires_is_caught_exempt_or_not(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere(self: Any, phase: Any, places: Sequence[int], latents: int) -> Mapping[Any, Sequence[int]]:
        return {}

    monkeypatch.setattr(CeZero, "edits", nowhere)
    with pytest.raises(GateError, match=r"'ce-zero' edits no place of any cell"):
        check_experiment(make(intervention={"plugin": "ce-zero", "site": BOT, "layer": 1}))


def test_cumulative_ablation_is_zero_at_bot_and_the_first_latents(run: Ran) -> None:
    ablated = run(
        intervention={"plugin": "ce-zero", "site": BOT, "layer": 1, "ablated": 3, "prefill": False},
        capture=["resid_post.1@latent", "resid_post.1@prompt[-2,-1]"], metrics=[],
    )  # fmt: skip
    latents, prompt = (ablated.activations(site, edited=True).values for site in ("resid_post.1@latent", "resid_post.1@prompt[-2,-1]"))
    assert [(np.abs(latents[:, k]).max() == 0) for k in range(5)] == [True, True, False, False, False]
    assert [(np.abs(prompt[:, i]).max() == 0) for i in range(2)] == [False, True]


# -------------------------------------------------------------------------------------------------- one layer off


def patched(**options: Any) -> dict[str, Any]:
    return {"intervention": {"plugin": "ce-patch", "site": BOT, "layer": 1, "direction": "denoise", "prefill": False, **options}}


def test_hidden_states_of_l_is_not_what_block_l_gives_out(run: Ran) -> None:
    one_off = run(conditions={"off": patched(self_patch=True), "next": patched(self_patch=True, offset=1)}, data=PAIRS)
    base = one_off.activations("logits@answer[0]")
    before = {str(e): v for v, e, s in zip(base.values, base["example"].values, base["variant"].values, strict=True) if s == "corrupted"}
    found = logits(one_off)
    assert len(before) == 2
    for example, unedited in before.items():
        assert np.abs(found["off", example] - unedited).max() > 0.01
        assert np.array_equal(found["next", example], unedited)


def test_the_gate_catches_the_layer_below_and_lets_the_right_one_pass(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CePatch, "gate_exempt", "")
    with pytest.raises(GateError, match=r"self-swap .* is not an identity"):
        check_experiment(make(**patched(), data=PAIRS))
    assert (check_experiment(make(**patched(offset=1), data=PAIRS))["self_patch"] == "exact").all()


def test_n_token_patching_takes_the_clean_runs_own_states(run: Ran) -> None:
    """With the right layer and without the prefill it is the built-in patch at bot and the first latents."""
    capture = ["resid_post.1@latent", "resid_post.1@prompt[-2,-1]", "resid_pre.1@latent", "resid_pre.1@prompt[-2,-1]"]
    three = run(conditions={"off": patched(steps=3), "next": patched(steps=3, offset=1, prefill=True)}, data=PAIRS, capture=capture, metrics=[])

    def value(name: str, example: str, place: int, **where: str) -> np.ndarray:
        phase, which = ("prompt[-2,-1]", "position") if place < 0 else ("latent", "step")
        data = three.activations(f"{name}.1@{phase}", edited="condition" in where)
        rows = [i for i in range(data.shape[0]) if str(data["example"].values[i]) == example and all(str(data[a].values[i]) == v for a, v in where.items())]
        at = [int(p) for p in data[which].values].index(place)
        return np.asarray(data.values[rows[0]][at])

    for example in ("0", "1"):
        for place in (-1, 0, 1):
            clean_in, clean_out = (value(n, example, place, variant="clean") for n in ("resid_pre", "resid_post"))
            assert np.array_equal(value("resid_post", example, place, condition="off"), clean_in)
            assert np.array_equal(value("resid_post", example, place, condition="next"), clean_out)
        assert not np.array_equal(value("resid_post", example, 2, condition="next"), value("resid_post", example, 2, variant="clean"))
        assert np.array_equal(value("resid_post", example, -2, condition="next"), value("resid_post", example, -1, variant="clean"))
        assert np.array_equal(value("resid_post", example, -2, condition="off"), value("resid_post", example, -2, variant="corrupted"))


# -------------------------------------------------------------------------------------------------- the built-ins


def test_the_built_ins_have_none_of_it(make: Make) -> None:
    """At every step and layer: what is read is what is written, edits are where they are addressed, and the gate says so."""
    conditions = {
        "swap": {"intervention": {"plugin": "resample", "site": "latent_in", "self_donor": True}, "sweep": {"step": "all"}},
        "patch": {"intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"layer": "all", "step": [0, 4]}},
        "zero": {"intervention": {"plugin": "zero", "site": BOT}, "sweep": {"layer": [0, 1]}},
    }
    checked = check_experiment(make(model=DEMO, conditions=conditions, data=PAIRS))
    assert (checked["self_patch"] == "exact").all()
    places = checked.groupby("condition")["places"].agg(lambda p: ",".join(sorted(set(p))))
    assert places.to_dict() == {"swap": "0,1,2,3,4,5", "patch": "0,4", "zero": "-1"}
    assert checked.loc[checked["condition"] == "swap", "changed"].eq(0).all()
    assert not functools.reduce(bool.__or__, [bool(p.gate_exempt) for p in (Patch, Resample)])
