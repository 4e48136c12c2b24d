"""What edits take from many prompts, and options that are swept: against the same numbers computed by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from codi_engine import Experiment, load
from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.plugins import plugin_manager
from tests.support import saes
from tests.support.lines import few_problems

Maker = Callable[..., Experiment]
PROBLEMS = {"plugin": "demo-problems", "limit": 2}


def states(texts: list[str], site: str) -> list[np.ndarray]:
    """Of each text the captured states, places × width."""
    session = load("demo")
    name = site.split("@")[0]
    return [session.capture(t, [site])[site if "@" in site else name].values for t in texts]


@pytest.mark.slow
def test_means_scales_and_differences_are_of_the_conditions_own_template(demo: Maker) -> None:
    template = "Please solve this. {question}"
    ways: dict[str, dict[str, Any]] = {
        "mean": {"plugin": "mean"},
        "noise": {"plugin": "noise", "sigma": 0.5},
        "steer": {"plugin": "steer", "difference": "reasoning_steps=1"},
    }
    conditions = {
        f"{name}_{asked}": {"intervention": {"site": "latent_in", **way}, "prompt": template if asked == "asked" else None}
        for name, way in ways.items()
        for asked in ("plain", "asked")
    }
    made = demo(conditions=conditions, sweep={"step": [2]}, data=few_problems(Path()), metrics=["kl"], capture=["latent_in"])
    run = made.run().open()
    edited = run.activations("latent_in", edited=True)
    pool = plugin_manager().build("dataset", made.data, "data", "t").load().pool
    first = np.array([e.fields["reasoning_steps"] == 1 for e in pool])
    got = {c: edited.values[(edited["condition"] == c).values][:, 2] for c in conditions}
    for asked, form in (("plain", "{question}"), ("asked", template)):
        z = np.stack(states([form.replace("{question}", e.prompts["main"].text) for e in pool], "latent_in"))[:, 2].astype(np.float64)
        np.testing.assert_allclose(got[f"mean_{asked}"], np.repeat(z.mean(0)[None], 2, 0), atol=1e-5, err_msg=asked)
        moved = got[f"steer_{asked}"] - z[:2]
        np.testing.assert_allclose(moved, np.repeat((z[first].mean(0) - z[~first].mean(0))[None], 2, 0), atol=1e-5, err_msg=asked)
        spread = (got[f"noise_{asked}"] - z[:2]) / np.sqrt(((z - z.mean(0)) ** 2).mean())
        assert 0.35 < spread.std() < 0.65


@pytest.mark.parametrize("over", ["step", "all"])
def test_means_at_positions_from_the_start_are_of_the_same_positions(demo: Maker, over: str, tmp_path: Path) -> None:
    texts = ["Tom has " + "two dogs and " * (n % 7) + f"{n} cats." for n in range(10)]
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))
    spec = {"plugin": "mean", "site": "resid_post.1@prompt", "over": over}
    source = {"plugin": "prompts", "path": str(data), "limit": 2}
    made = demo(intervention=spec, sweep={"position": [2, 3]}, data=source, metrics=["flip"], capture=["resid_post.1@prompt"])
    session = load("demo")
    captured = [session.capture(t, ["resid_post.1@prompt"])["resid_post.1@prompt"].values for t in texts]
    whole = [c[~np.isnan(c).any(1)].astype(np.float64) for c in captured]
    assert len({len(w) for w in whole}) > 1
    run = made.run().open()
    edited = run.activations("resid_post.1@prompt", edited=True).values
    named = run.cells[run.cells["condition"] != "baseline"]["position"].astype(int).to_list()
    assert sorted(named) == [2, 2, 3, 3]
    for cell, at in enumerate(named):
        mine = edited[cell][~np.isnan(edited[cell]).any(1)]
        want = np.mean([w[at] for w in whole], 0) if over == "step" else np.mean([w[p] for w in whole for p in (2, 3)], 0)
        np.testing.assert_allclose(mine[at], want, rtol=1e-4, atol=1e-4)


def test_options_that_are_swept_say_who_the_donor_is(demo: Maker) -> None:
    spec = {"plugin": "resample", "site": "latent_in"}
    own = demo(intervention=spec, sweep={"step": [1], "self_donor": [True, False]}, data=PROBLEMS).run().open().cells
    edited = own[own["condition"] != "baseline"]
    assert edited.groupby(edited["self_donor"].astype(str))["kl"].agg(lambda kl: bool((kl == 0).all())).to_dict() == {"False": False, "True": True}


def test_donors_that_are_swept_are_drawn_as_each_value_says(demo: Maker) -> None:
    def cells(name: str, **keys: Any) -> Any:
        made = demo(
            name=name,
            intervention={"plugin": "resample", "site": "latent_in", **keys},
            sweep={"step": [1, 2], **({} if keys else {"donors": ["shared", "per_place"]})},
            data=PROBLEMS,
        )
        found = made.run().open().cells
        return found[found["condition"] != "baseline"]

    swept, alone = cells("swept"), cells("alone", donors="per_place")
    np.testing.assert_array_equal(swept[swept["donors"] == "per_place"]["kl"].to_numpy(), alone["kl"].to_numpy())


def test_mappings_are_not_swept(demo: Maker) -> None:
    spec = {"plugin": "resample", "site": "latent_in"}
    with pytest.raises(UserError, match="one condition for each match"):
        demo(intervention=spec, sweep={"step": [1], "match": [{"answer": "same"}]}, data=PROBLEMS).run()


@pytest.mark.slow
def test_a_swept_difference_is_taken_over_the_whole_pool(demo: Maker) -> None:
    spec = {"plugin": "steer", "site": "latent_in", "alpha": 1.0}

    def moved(name: str, **keys: Any) -> Any:
        sweep = {"step": [2], **keys.pop("sweep", {})}
        cells = demo(name=name, intervention={**spec, **keys}, sweep=sweep, data={"plugin": "demo-problems", "limit": 6}).run().open().cells
        return cells[cells["condition"] != "baseline"]

    swept = moved("swept", sweep={"difference": ["reasoning_steps=1", "reasoning_steps=2"]})
    alone = moved("alone", difference="reasoning_steps=1")
    np.testing.assert_array_equal(swept[swept["difference"] == "reasoning_steps=1"]["kl"].to_numpy(), alone["kl"].to_numpy())


@pytest.mark.slow
def test_a_swept_chain_holds_what_each_value_says(demo: Maker) -> None:
    spec = {"plugin": "patch", "site": "latent_in", "direction": "denoise"}

    def cells(name: str, **keys: Any) -> Any:
        sweep = {"step": [[1, 3]], **keys.pop("sweep", {})}
        found = demo(name=name, intervention={**spec, **keys}, sweep=sweep).run().open().cells
        return found[found["condition"] != "baseline"]

    swept = cells("swept", sweep={"chain": [False, True]})
    for chain in (False, True):
        np.testing.assert_array_equal(swept[swept["chain"].astype(str) == str(chain)]["kl"].to_numpy(), cells(f"alone{chain}", chain=chain)["kl"].to_numpy())


def test_codes_of_the_whole_prompt_are_of_its_own_tokens_alone(demo: Maker, tmp_path: Path) -> None:
    """Whatever else is captured, and however long the longest prompt is."""
    saes.write_sae(tmp_path / "sae_2", 128, 24)
    data, texts = tmp_path / "p.jsonl", ["Two and two?", "A man has three dogs and buys " + "one and " * 9 + "more."]
    data.write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))
    codes = {"sae": str(tmp_path / "sae_{layer}"), "layers": [2], "at": "all", "reduce": "mean"}

    def stored(name: str, capture: list[Any]) -> np.ndarray:
        made = demo(name=name, data={"plugin": "prompts", "path": str(data)}, metrics=[], capture=[codes, *capture])
        return made.run().open().activations("sae").values

    np.testing.assert_allclose(stored("beside", ["resid_post.1@prompt"]), stored("alone", []), atol=1e-5)


def test_prompts_shorter_than_what_is_captured_are_as_if_alone(demo: Maker, tmp_path: Path) -> None:
    """Long prompts are in other batches: places that no prompt of a batch reaches leave its states as they are."""
    texts = ["Tom has " + "two dogs and " * n + "a cat." for n in (1, 5, 10, 20)]
    data = tmp_path / "p.jsonl"
    data.write_text("".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts)))
    made = demo(data={"plugin": "prompts", "path": str(data)}, metrics=[], capture=["resid_post.1@prompt"], batch_size=1)
    stored = made.run().open().activations("resid_post.1@prompt").values
    session = load("demo")
    for text, values in zip(texts, stored, strict=True):
        want = session.capture(text, ["resid_post.1@prompt"])["resid_post.1@prompt"].values
        np.testing.assert_allclose(values[-len(want) :], want, rtol=1e-4, atol=1e-4)
        assert np.isnan(values[: -len(want)]).all()


def test_another_data_file_is_not_mixed_into_what_is_drawn_from_all_of_it(demo: Maker, tmp_path: Path) -> None:
    data = tmp_path / "p.jsonl"

    def run(count: int) -> None:
        data.write_text("".join(json.dumps({"id": str(i), "text": f"Tom has {i} dogs."}) + "\n" for i in range(count)))
        demo(
            intervention={"plugin": "mean", "site": "latent_in"},
            sweep={"step": [1]},
            data={"plugin": "prompts", "path": str(data), "limit": 2},
            metrics=["flip"],
        ).run()

    run(5)
    run(5)
    with pytest.raises(DifferentRun, match="other data"):
        run(6)


def test_a_donors_answer_is_no_side_of_a_pair(demo: Maker) -> None:
    with pytest.raises(UserError, match="answer_class"):
        demo(intervention={"plugin": "resample", "site": "latent_in"}, sweep={"step": [1]}, metrics=["answer_class"]).run()
