from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codi_engine import Experiment, open_run
from codi_engine.core.errors import UserError
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Task, Want
from codi_engine.core.running.run import run_experiment
from codi_engine.plugins.models.causal_lm import CausalLM, CausalLMOptions
from codi_engine.plugins.models.codi import Codi, CodiOptions
from codi_engine.plugins.models.hf import download
from codi_engine.testing import tiny

ORACLE = Path(__file__).parents[1] / "fixtures" / "oracle_gpt2"


def codi(checkpoint: Path, base: Path, **options: Any) -> Codi:
    return Codi(CodiOptions(checkpoint=str(checkpoint), base=str(base), **{"lora_r": 4, **options}))


def logits(model: Codi, text: str = "there are 3 apples") -> torch.Tensor:
    adapter = model.load()
    return Rollout(Network(adapter)).run([adapter.encode_prompt(text)], [Task(0)], Want(read=False, generate=False)).first_logits[0]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_ties_formats_and_merging_give_the_same_model(tmp_path: Path, family: str) -> None:
    variants = [tiny.tiny_codi(tmp_path / drop, family, drop=drop) for drop in ("embedding", "head", "none")]
    variants.append(tiny.tiny_codi(tmp_path / "bin", family, drop="none", fmt="bin"))
    first = logits(codi(*variants[0]))
    for checkpoint, base in variants[1:]:
        assert torch.equal(logits(codi(checkpoint, base)), first)
    apart = logits(codi(*variants[0], merge=False))
    assert torch.allclose(apart, first, atol=2e-4, rtol=1e-3)
    assert not torch.equal(apart, first)


def test_merging_is_base_plus_scaled_product(tmp_path: Path) -> None:
    checkpoint, base = tiny.tiny_codi(tmp_path / "x", "llama")
    state = load_file(checkpoint / "model.safetensors")
    network = codi(checkpoint, base).load().network
    root = "codi.base_model.model.model.layers.1.mlp.up_proj"
    delta = 32.0 / 4 * state[f"{root}.lora_B.default.weight"] @ state[f"{root}.lora_A.default.weight"]
    expected = state[f"{root}.base_layer.weight"].float() + delta
    assert torch.allclose(network.model.layers[1].mlp.up_proj.weight, expected, atol=1e-6)
    assert network.lm_head.weight is network.model.embed_tokens.weight


def test_projection_without_layer_norm(tmp_path: Path) -> None:
    checkpoint, base = tiny.tiny_codi(tmp_path / "x", "gpt2", norm=False)
    adapter = codi(checkpoint, base).load()
    assert adapter.projection is not None
    assert "LayerNorm" not in adapter.report[-1]


def test_describe_reads_no_weights(tmp_path: Path) -> None:
    checkpoint, base = tiny.tiny_codi(tmp_path / "x", "llama")
    (checkpoint / "model.safetensors").write_bytes(b"")
    info = codi(checkpoint, base).describe()
    assert (info.layers, info.heads, info.kv_heads, info.latents) == (3, 4, 2, 6)


def test_prompts_are_encoded_as_the_reference_does() -> None:
    adapter = Codi(CodiOptions(checkpoint=str(ORACLE / "ckpt"), base=str(ORACLE / "tiny-gpt2"))).load()
    assert adapter.encode_prompt(" a  b ")[-1] == 421
    assert adapter.encode_prompt("a  b") == adapter.encode_prompt("a b")
    assert adapter.answer_start == (422,)
    with_eos = Codi(CodiOptions(checkpoint=str(ORACLE / "ckpt"), base=str(ORACLE / "tiny-gpt2"), remove_eos=False)).load()
    assert with_eos.encode_prompt("a")[-2:] == [0, 421]
    assert list(with_eos.answer_start) == [422, 0]
    assert adapter.decode([420, 421, 422, 0]) == ""


def damaged(tmp_path: Path, change: str) -> tuple[Path, Path]:
    checkpoint, base = tiny.tiny_codi(tmp_path / change, "gpt2")
    file = checkpoint / "model.safetensors"
    state = load_file(file)
    name = "codi.base_model.model.transformer.h.1.mlp.c_fc.lora_A.default.weight"
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state["codi.extra.weight"] = torch.zeros(2)
    elif change == "shape":
        state[name] = torch.zeros(5, 32)
    elif change == "nothing":
        file.unlink()
        return checkpoint, base
    save_file(state, file)
    if change == "truncated":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "empty":
        file.write_bytes(b"")
    elif change == "noise":
        file.write_bytes(os.urandom(4000))
    return checkpoint, base


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"1 missing keys: .*h.1.mlp.c_fc.lora_A"),
        ("unexpected", r"1 unexpected keys: codi.extra.weight"),
        ("shape", r"wrong shapes.*\n.*lora_A.default.weight is 5×32, needed 4×32"),
        ("truncated", "truncated"),
        ("empty", "is empty"),
        ("noise", "not a safetensors file"),
        ("nothing", "holds neither"),
    ],
)
def test_bad_checkpoints_are_named(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        codi(*damaged(tmp_path, change)).load()
    assert len(str(caught.value).splitlines()) <= 2


def test_a_wrong_rank_is_a_wrong_shape(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"check model\.base, lora_r"):
        codi(*tiny.tiny_codi(tmp_path / "x", "gpt2"), lora_r=8).load()


def test_a_file_of_a_repository_is_fetched_by_the_hubs_own_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, name: f"/cache/{repository}/{name}")
    assert download("zen-E/CODI-gpt2", "model.safetensors") == "/cache/zen-E/CODI-gpt2/model.safetensors"


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


def test_no_pickle_is_ever_run(tmp_path: Path) -> None:
    checkpoint, base = tiny.tiny_codi(tmp_path / "x", "gpt2")
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"w": Harmful(tmp_path / "made")}))
    with pytest.raises(UserError, match="cannot be read"):
        codi(checkpoint, base).load()
    assert not (tmp_path / "made").exists()


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint, base = tiny.tiny_codi(tmp_path / "x", "gpt2")
    config = (base / "config.json").read_text().replace('"vocab_size": 115', '"vocab_size": 90')
    (base / "config.json").write_text(config)
    with pytest.raises(UserError, match="tokenizer mismatch"):
        codi(checkpoint, base).load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoint": "nowhere/at/all"}, "no such file or directory"),
        ({"base": "./nowhere"}, "no such file or directory"),
        ({"device": "cuda:7"}, r"not available|CUDA devices"),
        ({"device": "tpu9"}, r"no device|not available"),
    ],
)
def test_bad_places_and_devices(options: dict[str, str], message: str) -> None:
    base = {"checkpoint": str(ORACLE / "ckpt"), "base": str(ORACLE / "tiny-gpt2")}
    with pytest.raises(UserError, match=message):
        Codi(CodiOptions.model_validate({**base, **options})).describe()


def test_half_precision_loads() -> None:
    adapter = Codi(CodiOptions(checkpoint=str(ORACLE / "ckpt"), base=str(ORACLE / "tiny-gpt2"), dtype="bfloat16")).load()
    assert {p.dtype for p in adapter.network.parameters()} == {torch.bfloat16}
    out = Rollout(Network(adapter)).run([adapter.encode_prompt("12 apples")], [Task(0)], Want(read=False, max_new_tokens=3))
    assert out.first_logits.dtype == torch.float32


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_causal_lms_load_from_disk(tmp_path: Path, family: str) -> None:
    adapter = CausalLM(CausalLMOptions(path=str(tiny.tiny_causal_lm(tmp_path / family, family)))).load()
    assert adapter.info.latents == 0
    assert adapter.encode_prompt("there are 3 apples")
    assert adapter.stop_ids == (0,)


def test_a_causal_lm_with_missing_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny.tiny_causal_lm(tmp_path / "x", "llama")
    state = load_file(folder / "model.safetensors")
    del state["model.layers.0.mlp.up_proj.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 missing keys: model\.layers\.0\.mlp\.up_proj\.weight"):
        CausalLM(CausalLMOptions(path=str(folder))).load()


def test_the_demo_as_a_plain_language_model_writes_its_steps(demo: Callable[..., Experiment]) -> None:
    model = {"plugin": "causal_lm", "path": "demo", "device": "cpu"}
    data = {"plugin": "demo-problems", "limit": 40}
    done = run_experiment(demo(model=model, data=data, metrics=["accuracy"], generate={"max_new_tokens": 48}))
    run = open_run(done.path)
    cells = run.cells[run.cells.condition == "baseline"]
    assert len(cells) == 40
    assert set(cells.reasoning_steps) == {1, 2, 3, 4}
    assert bool((cells.accuracy == 1).all())
    for steps, answer, text in zip(cells.steps, cells.answer, cells.text, strict=True):
        assert text.strip() == f"{steps} The answer is: {answer:g}"


def test_the_demo_as_a_plain_language_model_has_its_own_identity() -> None:
    plain, thinking = CausalLM(CausalLMOptions(path="demo")), Codi(CodiOptions(checkpoint="demo"))
    assert (plain.describe().latents, thinking.describe().latents) == (0, 6)
    adapter, other = plain.load(), thinking.load()
    assert adapter.digest != other.digest
    assert adapter.projection is None
    ids = adapter.encode_prompt("Anna has 3 pens.")
    assert [*ids, adapter.banned_ids_from + 1] == other.encode_prompt("Anna has 3 pens.")  # type: ignore[operator]
    assert max(ids) < adapter.banned_ids_from  # type: ignore[operator]
    assert CausalLM(CausalLMOptions(path="demo", answer_prefix="The answer is:")).load().digest != adapter.digest
    with pytest.raises(UserError, match=r"model\.tokenizer: does not apply to path: demo"):
        CausalLM(CausalLMOptions(path="demo", tokenizer="gpt2")).describe()


def test_weights_are_located_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    checkpoint, base = tiny.tiny_codi(tmp_path / "x", "gpt2")
    (checkpoint / "model.safetensors").write_bytes(b"never looked at")
    codi(checkpoint, base).locate()
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds neither model"):
        codi(checkpoint, base).locate()
    with pytest.raises(UserError, match="'nobody/nothing' is neither a directory here nor reachable on the Hub"):
        codi(Path("nobody/nothing"), base).locate()
