"""Unedited rows from other runs: the same bytes, counted and said; equal token sequences are one row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.progress import Progress
from codi_engine.core.running import reuse, unedited
from codi_engine.core.running.inputs import recorded
from codi_engine.core.running.origins import versions
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.core.watching.eventlog import read_events
from codi_engine.core.watching.status import status_of
from codi_engine.store.errors import StoreError
from codi_engine.store.provenance import read_provenance
from codi_engine.store.reader import RunReader
from tests.support.lines import write_lines

Maker = Callable[..., Experiment]
PATCH = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}


class Heard(Progress):
    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def content(run: str) -> dict[str, bytes]:
    """Return what a run holds but for its provenance and what happened when."""
    files = {p.relative_to(run).as_posix(): p.read_bytes() for p in Path(run).rglob("*") if p.is_file()}
    return {name: data for name, data in files.items() if not name.startswith(("provenance", "copies/provenance", "events", "results/"))}


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that the prompts of every unedited batch are added to."""
    keys: list[str] = []
    real = unedited._unedited_batch

    def counted(job: Any, batch: Any, *rest: Any) -> Any:
        keys.extend(key for key, _ in batch)
        return real(job, batch, *rest)

    monkeypatch.setattr(unedited, "_unedited_batch", counted)
    return keys


def test_the_unedited_rows_of_another_experiment_are_taken_byte_for_byte(demo: Maker, computed: list[str]) -> None:
    sweep = {"layer": [1, 2], "step": [0]}
    run_experiment(demo(name="a", intervention=PATCH, sweep=sweep, metrics=["kl"], capture=["latent_out"]), "runs/a")
    other = {"intervention": {**PATCH, "direction": "noise"}, "sweep": sweep, "metrics": ["accuracy", "logit_diff", "kl"], "capture": ["latent_out"]}
    plain = demo(name="b", **other, data={"plugin": "demo-pairs", "limit": 4})
    run_experiment(plain, "runs/plain")
    assert len(computed) == 6 + 8
    heard = Heard()
    reusing = demo(name="b", **other, data={"plugin": "demo-pairs", "limit": 4}, reuse=["runs/*"])
    assert dict(plan_experiment(demo(name="b", **other, reuse=["runs/a"])).lines())["reuse"].startswith("6 of 6 unedited prompts are in runs/a;")
    computed.clear()
    first = run_experiment(demo(name="b", **other, reuse=["runs/a"]), "runs/grown", progress=heard)
    assert computed == []
    assert first.new_cells > 6
    assert "6 of 6 unedited rows come from runs/a" in heard.said
    run_experiment(reusing.with_overrides(["reuse=[runs/a]"]), "runs/b", progress=heard)
    assert len(computed) == 2
    assert content("runs/b") == content("runs/plain")
    assert "6 of 8 unedited rows come from runs/a" in heard.said
    assert read_provenance(Path("runs/b"))["reused"] == {"runs/a": 6}
    assert "reused" not in read_provenance(Path("runs/plain"))
    found = status_of("runs/b")
    assert dict(found.reused) == {"runs/a": 6}
    assert not [e for e in found.events() if "unedited rows" in e["text"]]  # it is no warning
    assert [e["event"] for e in read_events(Path("runs/b")) if "unedited rows" in e.get("text", "")] == ["note"]


@pytest.mark.slow
def test_sampled_trials_are_taken_and_further_ones_are_drawn(demo: Maker, computed: list[str]) -> None:
    def make(trials: int, **more: Any) -> Experiment:
        generate = {"max_new_tokens": 4, "do_sample": True, "temperature": 1.5}
        kept = {"data": {"plugin": "demo-problems", "limit": 2}, "metrics": ["accuracy"], "generate": generate, "trials": trials}
        return demo(**kept, intervention={"plugin": "resample", "site": "latent_in"}, sweep={"step": [1], "donor": 2}, **more)

    run_experiment(make(2), "two")
    run_experiment(make(3), "plain")
    computed.clear()
    heard = Heard()
    run_experiment(make(3, reuse=["two"]), "three", progress=heard)
    assert len(computed) == 2
    assert content("three") == content("plain")
    heard = Heard()
    run_experiment(make(3, reuse=["two"], seed=1), "other", progress=heard)
    assert heard.said.count("reuse: nothing is taken from two: other generation (seed: 0 → 1)") == 1


def test_what_does_not_fit_is_said_in_one_line_and_what_names_no_run_is_refused(demo: Maker) -> None:
    run_experiment(demo(intervention=None, data={"plugin": "demo-pairs", "limit": 1}, metrics=["accuracy"]), "a")
    reader = RunReader("a")
    inputs, bits = recorded(reader.plans, reader.provenance), reader.provenance["arithmetic"][0]

    def unfit(inputs: dict[str, str] = inputs, bits: dict[str, str] = bits, known: dict[str, str] | None = None, **keys: Any) -> str:
        return reuse._unfit(reader, demo(**keys), reuse.Mine(inputs, bits, known or versions()))

    assert unfit() == ""
    assert unfit(seed=3) == ""  # nothing is drawn
    name = next(n for n in inputs if n.startswith("model file "))
    assert unfit({**inputs, name: "0" * 64}) == f"other model files ({name.removeprefix('model file ')})"
    assert unfit(bits={**bits, "bits": "0", "torch": "1.0"}) == f"other bits (torch {bits['torch']}, here 1.0)"
    assert unfit(generate={"max_new_tokens": 9}) == "other generation (generate.max_new_tokens: 8 → 9)"
    assert unfit(model={"plugin": "codi", "checkpoint": "demo", "latents": 5}).startswith("other settings of the model (model.latents: ")
    assert unfit(known={**versions(), "codi-engine": "0"}).startswith("other versions (codi-engine ")
    with pytest.raises(UserError, match=r"reuse\[1\]: 'b\*' names no run") as caught:
        plan_experiment(demo(reuse=["a", "b*"]))
    assert len(str(caught.value).splitlines()) == 1


def test_a_damaged_row_of_another_run_is_refused(demo: Maker) -> None:
    keys: dict[str, Any] = {"intervention": None, "data": {"plugin": "demo-pairs", "limit": 1}, "metrics": ["kl"], "capture": ["latent_out"]}
    run_experiment(demo(**keys), "a")
    (file,) = [p for p in Path("a/data.zarr/activations").rglob("c.*") if p.is_file()]
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(StoreError, match="latent_out"):
        run_experiment(demo(**keys, reuse=["a"]), "b")


def test_prompts_of_equal_tokens_are_one_row(demo: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[tuple[int, int]] = []
    from codi_engine.core.rollout.rollout import Rollout

    real = Rollout.run

    def counted(self: Rollout, prompts: Any, tasks: Any, *rest: Any) -> Any:
        produced = real(self, prompts, tasks, *rest)
        rows.append((len(tasks), produced.rows))
        return produced

    monkeypatch.setattr(Rollout, "run", counted)
    clean = {"question": "Anna has 5 apples and buys 3 more. How many apples does Anna have?", "answer": 8}
    sides = [{"question": f"Anna has {n} apples and buys 3 more. How many apples does Anna have?", "answer": n + 3} for n in (4, 6, 7)]
    lines = [{"pair_id": i, "clean": clean, "corrupted": side} for i, side in enumerate(sides)]
    edit = {**PATCH, "direction": "noise"}  # the clean prompt runs, with values of its three others

    def make(name: str, lines: list[dict[str, Any]]) -> pd.DataFrame:
        path = write_lines(Path(f"{name}.jsonl"), lines)
        kept = {"data": {"plugin": "pairs", "path": str(path)}, "capture": ["latent_out"], "metrics": ["kl", "logit_diff"]}
        frame = demo(**kept, intervention=edit, sweep={"layer": [1], "step": [2]}).run(name).open().cells
        return frame[["example", "condition", "variant", "text", "kl", "logit_diff", "answer"]].sort_values(["example", "condition", "variant"])

    together = make("all", lines)
    assert (6, 4) in rows  # six unedited rows asked for, four computed
    alone = pd.concat([make(f"one-{i}", [line]) for i, line in enumerate(lines)])
    pd.testing.assert_frame_equal(together.reset_index(drop=True), alone.reset_index(drop=True), check_exact=True)
