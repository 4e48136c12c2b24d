"""Wrong numbers are detected and said: overflow, edits that do not fire, kernels that differ, changed files, clock and locale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from codi_engine import Experiment
from codi_engine.core.errors import DifferentRun, GateError, PluginError, UserError
from codi_engine.core.progress import Progress
from codi_engine.core.rollout import selftest
from codi_engine.core.rollout.batchrun import BatchRun
from codi_engine.core.rollout.selftest import other_bits
from codi_engine.core.rollout.wavefront import Stage
from codi_engine.core.running import sweeping
from codi_engine.core.running.inputs import changed_inputs, compare, digest_of, model_digests, recorded
from codi_engine.core.running.run import run_experiment
from codi_engine.core.runs.verifying import verify_run
from codi_engine.core.watching.recording import gone_back
from codi_engine.store.layout import LEDGER, PROVENANCE
from codi_engine.testing import tiny

PROBLEMS = [
    ("there are 12 apples and 7 apples how many ?", 19), ("there are 3 apples and 4 pears how many ?", 7), ("there are 2 apples and 2 apples how many ?", 4),
]  # fmt: skip


class Said(Progress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Experiment]:
    """Return a maker of experiments on a tiny causal LM and three problems, below the working directory."""
    monkeypatch.chdir(tmp_path)
    tiny.tiny_causal_lm("model", "llama")
    Path("data.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in PROBLEMS), encoding="utf-8")

    def make(dtype: str = "float32", **keys: Any) -> Experiment:
        value: dict[str, Any] = {
            "name": "numbers", "model": {"plugin": "causal_lm", "path": "model", "device": "cpu", "dtype": dtype},
            "data": {"plugin": "problems", "path": "data.jsonl"}, "intervention": {"plugin": "zero", "site": "resid_post", "layer": 1},
            "sweep": {"position": [-1]}, "metrics": ["accuracy", "kl"], "generate": {"max_new_tokens": 3}, "controls": "none",
        }  # fmt: skip
        return Experiment.from_dict({k: v for k, v in {**value, **keys}.items() if v is not None})

    return make


def scale_embedding(word: int, factor: float) -> None:
    weights = load_file("model/model.safetensors")
    weights["model.embed_tokens.weight"][word] *= factor
    save_file(weights, "model/model.safetensors", metadata={"format": "pt"})


# ---------------------------------------------------------------------------------------------------- overflow


def test_a_model_that_overflows_in_float16_stops_and_says_where(study: Callable[..., Experiment]) -> None:
    scale_embedding(9, 1e7)  # "pears", of the second problem alone; float16 ends at 65,504
    with pytest.raises(UserError) as caught:
        run_experiment(study("float16"), "half")
    said, remedy = str(caught.value).split("\n")
    assert said == "experiment: data: example '1': unedited, the model's values are not finite, first in resid_post.0@prompt (float16)."
    assert "model.dtype: float32 or bfloat16" in remedy
    assert run_experiment(study("bfloat16"), "brain").open().cells["kl"].notna().all()


def test_marked_unedited_rows_mark_what_is_compared_with_them(study: Callable[..., Experiment]) -> None:
    scale_embedding(9, 1e7)
    said = Said()
    keys: dict[str, Any] = {"intervention": {"plugin": "mean", "site": "resid_post", "layer": 1}, "capture": ["resid_post@prompt[-1]"]}
    cells = run_experiment(study("float16", nonfinite="mark", **keys), "half", progress=said).open().cells
    assert cells.groupby("condition")["nonfinite"].sum().tolist() == [1, 1]  # the mean is that of the other rows
    assert set(cells[cells["nonfinite"]]["example"]) == {"1"}
    assert cells[cells["nonfinite"]][["accuracy", "kl", "answer"]].isna().all().all()
    assert cells[~cells["nonfinite"]]["kl"].notna().all()
    assert said.notes[-1].startswith("1 of 3 edited cells and 1 unedited rows are not finite")
    with pytest.raises(DifferentRun, match="holds 1 unedited rows that are not finite"):
        run_experiment(study("float16", **keys), "half")


def test_weights_that_are_no_numbers_stop_at_the_self_test(study: Callable[..., Experiment]) -> None:
    scale_embedding(7, float("nan"))  # a word of the self-test's prompts
    with pytest.raises(GateError, match=r"logits of an ordinary prompt are not finite in float32\.\nSet model\.dtype"):
        run_experiment(study(), "run")


def test_a_steering_vector_that_float16_cannot_hold(study: Callable[..., Experiment]) -> None:
    np.save("direction.npy", np.full(32, 1e5, np.float32))
    steer = study("float16", intervention={"plugin": "steer", "site": "resid_post", "layer": 1, "vector": "direction.npy"})
    with pytest.raises(PluginError, match=r"NaN or infinite values at resid_post\.1@prompt\[-1\] for example '0'"):
        run_experiment(steer, "run")


# ------------------------------------------------------------------------------------------- edits that do not fire


def _no_split(self: Stage, boundary: int) -> bool:
    return False if boundary == 1 else _split(self, boundary)


def _swallow(self: Stage, component: str, layer: int | None, flat: torch.Tensor) -> torch.Tensor | None:
    self.pending.pop(component if layer is None else f"{component}.{layer}", None)
    return None


def _half(self: Stage, component: str, layer: int | None, flat: torch.Tensor) -> torch.Tensor | None:
    key = component if layer is None else f"{component}.{layer}"
    self.pending[key] = [(rows[:1], offset, edit, cells[:1]) for rows, offset, edit, cells in self.pending.get(key, [])]
    return _edited(self, component, layer, flat)


def _late(self: BatchRun, edits: Any, place: int, tokens: int) -> Any:
    return _due(self, edits, place + 1, tokens - 1) if tokens > 1 else _due(self, edits, place, tokens)


def _swapped(self: Stage, component: str, layer: int | None, flat: torch.Tensor) -> torch.Tensor | None:
    """Edit as many rows as planned at each site, but others: no total is another."""
    key = component if layer is None else f"{component}.{layer}"
    waiting, rows = self.pending.get(key, []), len(self.origin)
    self.pending[key] = [(np.flatnonzero(~np.isin(np.arange(rows), those))[: len(those)], *rest) for those, *rest in waiting]  # type: ignore[misc]
    return _edited(self, component, layer, flat)


def _kept(self: Stage, component: str, layer: int | None, flat: torch.Tensor) -> torch.Tensor | None:
    """Make the edits and go on waiting for them at the last boundary."""
    waiting = self.pending.get(f"{component}.{layer}", [])
    made = _edited(self, component, layer, flat)
    if waiting:
        self.pending["nowhere"] = waiting
    return made


_split, _edited, _due = Stage._split, Stage._edited, BatchRun._due


@pytest.mark.parametrize(
    ("owner", "name", "broken"),
    [
        (Stage, "_split", _no_split), (Stage, "_edited", _swallow), (Stage, "_edited", _half), (BatchRun, "_due", _late), (Stage, "_edited", _swapped),
        (Stage, "_edited", _kept),
    ],
    ids=["a boundary is dropped", "edits are lost", "rows are lost", "a place is passed", "other cells", "a site is left waiting"],
)  # fmt: skip
def test_edits_that_do_not_fire_in_the_sweep(owner: Any, name: str, broken: Any, study: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = sweeping.run_sweep, []

    def after_the_gate(*arguments: Any) -> Any:
        calls.append(1)
        monkeypatch.setattr(owner, name, broken)
        return real(*arguments)

    monkeypatch.setattr("codi_engine.core.running.computing.run_sweep", after_the_gate)
    position, layers = -4 if broken is _late else -1, [1, 0] if broken is _swapped else [1]
    with pytest.raises(GateError) as caught:
        run_experiment(study(intervention={"plugin": "zero", "site": "resid_pre"}, sweep={"position": [position], "layer": layers}), "run")
    assert calls == [1]
    assert str(caught.value).startswith(f"condition 'zero': the edit at resid_pre.{layers[-1]}@prompt[{position}] did not fire as planned (")
    assert "cell: example '" in str(caught.value)


# ------------------------------------------------------------------------------------------------------ kernels


def test_kernels_that_differ_are_said_and_recorded(study: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def differ(*both: torch.Tensor) -> bool:
        asked.append(both)
        return False

    monkeypatch.setattr(selftest, "same_bits", differ)
    said = Said()
    run = run_experiment(study(), "run", progress=said).open()
    assert asked
    assert any(n.startswith("the same batch gives other bits each time on this device") and "CUBLAS_WORKSPACE_CONFIG" in n for n in said.notes)
    assert run.provenance["reproducible_bits"] is False


def test_other_bits_than_the_committed_units_are_said(study: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    first = run_experiment(study(data={"plugin": "problems", "path": "data.jsonl", "limit": 1}), "run").open()
    (then,) = first.provenance["arithmetic"]
    real = selftest.arithmetic
    monkeypatch.setattr(selftest, "arithmetic", lambda net, bits: {**real(net, bits), "bits": "other", "torch": "9.9", "threads": "96"})
    said = Said()
    grown = run_experiment(study(), "run", progress=said).open()
    wanted = f"units of this run were computed with other bits (torch {then['torch']} then, 9.9 now; threads {then['threads']} then, 96 now): "
    assert wanted + "results agree to rounding, not bit for bit" in said.notes
    assert [one["bits"] for one in grown.provenance["arithmetic"]] == [then["bits"], "other"]
    assert grown.provenance["reproducible_bits"] is False
    same = {"bits": "x", "torch": "1", "threads": "1", "device": "cpu"}
    assert other_bits([same], same) == ""
    assert "other settings or another library" in other_bits([{**same, "bits": "y"}], same)


# ------------------------------------------------------------------------------------------------------- inputs


def test_every_input_is_in_the_ledger_and_a_changed_one_is_refused(study: Callable[..., Experiment]) -> None:
    np.save("direction.npy", np.ones(32, np.float32))
    steer = study(intervention={"plugin": "steer", "site": "resid_post", "layer": 1, "vector": "direction.npy"}, data=_first())
    run = run_experiment(steer, "run").open()
    stated = run.store.plans[0]["inputs"]
    assert {"model", "data", "file direction.npy", "model file model.safetensors", "model file config.json", "model file tokenizer.json"} <= set(stated)
    assert changed_inputs("run") == []
    (Path("run") / PROVENANCE).unlink()  # the ledger knows by itself
    for name, said in (("direction.npy", "another file 'direction.npy'"), ("model/tokenizer.json", "another tokenizer.json of the model")):
        before = Path(name).read_bytes()
        Path(name).write_bytes(_changed(before))
        with pytest.raises(DifferentRun, match=said):
            run_experiment(steer, "run")
        Path(name).write_bytes(before)
    run_experiment(steer.with_overrides(["data.limit=3"]), "run")


def _first() -> dict[str, Any]:
    return {"plugin": "problems", "path": "data.jsonl", "limit": 1}


def _changed(raw: bytes) -> bytes:
    """Return another file of the same kind: a JSON text with one more blank, an array whose last byte is another."""
    return raw + b" " if raw[:1] == b"{" else raw[:-1] + bytes([raw[-1] ^ 1])


@pytest.mark.parametrize("place", [0.3, 0.999])
def test_a_flipped_byte_in_the_weights_is_named_without_loading_them(place: float, study: Callable[..., Experiment]) -> None:
    experiment = study(data=_first())
    run_experiment(experiment, "run")
    raw = bytearray(Path("model/model.safetensors").read_bytes())
    raw[int(len(raw) * place)] ^= 4
    Path("model/model.safetensors").write_bytes(raw)
    ((what, problem),) = changed_inputs("run")
    assert what == "model.safetensors"
    assert problem.startswith("is no longer what the run was computed with (sha256 ")
    with pytest.raises(DifferentRun, match=r"was computed with other model files \(sha256 .* then, .* now; changed: model\.safetensors\)"):
        run_experiment(experiment, "run")
    Path("model/model.safetensors").unlink()
    Path("data.jsonl").unlink()
    problems = dict(changed_inputs("run"))
    assert problems["model.safetensors"] == "is not here"
    assert problems["data"].startswith("is not here or cannot be read: ")


def test_a_plugin_that_fails_hides_no_damage(study: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    from codi_engine.plugins.datasets.problems import Problems
    from codi_engine.plugins.models.causal_lm import CausalLM

    def broken(self: Any) -> Any:
        raise RuntimeError("not today")

    path = run_experiment(study(data=_first()), "run").path
    shard = next((path / "data.zarr/cells/answer").glob("c.*"))
    shard.write_bytes(_changed(shard.read_bytes()))
    monkeypatch.setattr(CausalLM, "files", broken)
    monkeypatch.setattr(Problems, "load", broken)
    found = {f.file: (f.kind, f.problem) for f in verify_run(path)}
    assert {file: kind for file, (kind, _) in found.items()} == {"data": "absent", shard.relative_to(path).as_posix(): "damaged", "model": "absent"}
    assert all("is not here or cannot be read: " in found[name][1] and "not today" in found[name][1] for name in ("data", "model"))
    monkeypatch.setattr(Experiment, "from_dict", classmethod(lambda *_, **__: _refuse()))
    assert {(f.file, f.kind) for f in verify_run(path)} == {("experiment.yaml", "absent"), (shard.relative_to(path).as_posix(), "damaged")}


def _refuse() -> None:
    raise UserError("data.plugin: no such plugin")


def test_a_run_that_values_are_taken_from_may_grow_and_not_change(study: Callable[..., Experiment], tmp_path: Path) -> None:
    source = study(capture=["resid_post@prompt[-1]"], data={**_first(), "limit": 2})
    run_experiment(source, "source")
    taking = study(intervention={"plugin": "recorded", "site": "resid_post", "layer": 1, "run": "source", "example": "1"}, data=_first())
    run_experiment(taking, "run")
    run_experiment(source.with_overrides(["data.limit=3"]), "source")
    assert changed_inputs("run") == []
    run_experiment(taking.with_overrides(["data.limit=2"]), "run")
    run_experiment(source.with_overrides(["seed=1"]), "another")
    Path("source").rename("old")
    Path("another").rename("source")
    with pytest.raises(DifferentRun, match="another run 'source'"):
        run_experiment(taking.with_overrides(["data.limit=2"]), "run")
    ((what, problem),) = changed_inputs("run")
    assert what == "run source"
    assert "no longer" in problem


def test_runs_of_before_are_compared_by_their_provenance() -> None:
    before = {"model_digest": "m" * 64, "data_digest": "d" * 64, "saes": {"demo": "s" * 64}}
    then = recorded([{"units": []}], before)
    assert then == {"model": "m" * 64, "data": "d" * 64, "autoencoder demo": "s" * 64}
    assert recorded([{"inputs": {"data": "n" * 64}}], before)["data"] == "n" * 64
    now = {"model": "m" * 64, "data": "e" * 64, "model file config.json": "c" * 64, "autoencoder demo": "s" * 64}
    compare(then, now, Path("run"), None)  # more data, and files that were not recorded then
    with pytest.raises(DifferentRun, match=r"other data .*; 'mean' draws from all of them"):
        compare(then, now, Path("run"), "mean")
    with pytest.raises(DifferentRun, match=r"another autoencoder 'demo' \(sha256 ssssssssssss then, tttttttttttt now\)"):
        compare(then, {**now, "autoencoder demo": "t" * 64}, Path("run"), None)


def test_digests_cover_all_bytes_and_names(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "x").write_bytes(b"1")
    first = digest_of(folder)
    (folder / "x").rename(folder / "y")
    assert digest_of(folder) != first
    assert digest_of(folder / "y") == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"


def test_each_model_names_its_files(demo: Callable[..., Experiment], tmp_path: Path) -> None:
    from codi_engine.core.plugins import plugin_manager

    codi = plugin_manager().build("model", demo().model, where="model", source="test")
    names = set(model_digests(codi))
    assert {"model file model.safetensors", "model file base/config.json", "model file base/tokenizer.json"} <= names
    assert "model file base/config.json" in model_digests(codi, most=1 << 14)


# ---------------------------------------------------------------------------------------------- clock and locale


def test_a_clock_that_went_back_is_said(study: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codi_engine.core.running.runner.now", lambda: "2199-01-01T00:00:00Z")
    run_experiment(study(data=_first()), "run")
    said = Said()
    run_experiment(study(), "run", progress=said)
    assert any(n.startswith("the clock went back: this run has records of 2199-01-01T00:00:00Z, and it is 2") for n in said.notes)
    assert gone_back({"started": "2001-01-01T00:00:00Z"}) == gone_back({}) == ""


ENVIRONMENTS = [{"LC_ALL": "C", "PYTHONUTF8": "0", "TZ": "Pacific/Apia"}, {"LC_ALL": "C.UTF-8", "TZ": "UTC"}]


@pytest.mark.slow  # two processes that load torch
def test_locale_and_time_zone_leave_no_trace(study: Callable[..., Experiment], tmp_path: Path) -> None:
    Path("data.jsonl").write_text(json.dumps({"question": "there are 3 äpples how many ?", "answer": 3}, ensure_ascii=False) + "\n", encoding="utf-8")
    Path("file.yaml").write_text(study(notes="Größe, 日本").to_yaml(), encoding="utf-8")
    for number, more in enumerate(ENVIRONMENTS):
        command = [sys.executable, "-X", "warn_default_encoding", "-W", "error::EncodingWarning:codi_engine", "-m", "codi_engine", "run", "file.yaml"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("LC_") and k != "LANG"} | more
        done = subprocess.run([*command, "--output", f"run{number}"], env=environment, capture_output=True, encoding="utf-8", errors="replace", check=False)
        assert done.returncode == 0, done.stderr
    first, second = ({p.relative_to(r): p.read_bytes() for p in Path(r).rglob("*") if p.is_file() and _lasting(p)} for r in ("run0", "run1"))
    assert first == second
    assert Path(LEDGER) in first
    assert len(first) > 20


def _lasting(path: Path) -> bool:
    return path.name not in (PROVENANCE, "provenance.copy", "events.jsonl", "lock", "result.json")
