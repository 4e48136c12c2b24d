"""Autoencoders in one form: bits that do not depend on the batch, features one by one, and the store that keeps them."""

from __future__ import annotations

import csv
import json
import types
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from codi_engine.cli.main import main
from codi_engine.core import hookspecs
from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelAdapter
from codi_engine.core.plugin import SaeFormat
from codi_engine.core.plugins import Plugins, plugin_manager
from codi_engine.core.sae import SAE
from codi_engine.core.saestore import SaeStore, filled
from codi_engine.plugins.models.causal_lm import CausalLM, CausalLMOptions

D, F = 20, 50
DEMO = Path(str(files("codi_engine.plugins").joinpath("demo")))
KINDS: dict[str, dict[str, Any]] = {
    "relu": {"activation": "relu"},
    "jumprelu": {"activation": "jumprelu", "threshold": True, "gauge": True},
    "gated": {"activation": "gated", "gate_bias": True, "mag_scale": True, "mag_bias": True},
    "glu": {"activation": "relu", "glu": True, "glu_bias": True, "center": True},
    "topk": {"activation": "topk", "k": 7, "gauge": True},
    "abs_topk": {"activation": "abs_topk", "k": 7},
    "signed": {"activation": "topk", "k": 7, "signed": True},
    "rescale": {"activation": "relu", "norm": "rescale", "center": True},
    "layer_norm": {"activation": "jumprelu", "threshold": True, "norm": "layer_norm"},
}
SEPARABLE = [kind for kind, what in KINDS.items() if "k" not in what]


def made(kind: str = "relu", seed: int = 0, **changed: Any) -> SAE:
    """A random autoencoder; True in KINDS stands for a random tensor."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {"glu": (D, F), "center": (D,)}
    basic: dict[str, Any] = {"w_enc": (D, F), "b_enc": (F,), "w_dec": (F, D), "b_dec": (D,)}
    tensors = {name: torch.randn(shape, generator=draw) for name, shape in basic.items()}
    parts = {k: torch.randn(shapes.get(k, (F,)), generator=draw).abs() if v is True and k != "signed" else v for k, v in KINDS[kind].items()}
    return SAE(**{"format": "made", "path": "here", **tensors, **parts, **changed})


def states(rows: int = 37, seed: int = 9, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(rows, D, generator=torch.Generator().manual_seed(seed)).to(dtype) * 2 + 0.5


# ----------------------------------------------------------------------------------------------- bits


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(list(KINDS)), st.lists(st.integers(0, 36), min_size=1, max_size=40), st.integers(0, 99))
def test_a_rows_bits_do_not_depend_on_its_batch(kind: str, chosen: list[int], seed: int) -> None:
    sae, h = made(kind, seed), states()
    codes, part = sae.encode(h), h[chosen]
    assert torch.equal(sae.encode(part), codes[chosen])
    assert torch.equal(sae.decode(codes[chosen], part), sae.decode(codes, h)[chosen])
    assert torch.equal(sae.reconstruct(part), sae.reconstruct(h)[chosen])
    features, delta = torch.tensor([4, 49, 3]), torch.randn(37, 3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(sae.add(part, features, delta[chosen]), sae.add(h, features, delta)[chosen])


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(list(KINDS)), st.lists(st.integers(0, F - 1), min_size=1, max_size=60), st.integers(0, 99))
def test_features_alone_are_those_among_all(kind: str, features: list[int], seed: int) -> None:
    sae, h = made(kind, seed), states(5)
    assert torch.equal(sae.encode(h, torch.tensor(features)), sae.encode(h)[:, features])


@pytest.mark.parametrize("kind", SEPARABLE)
def test_separable_means_that_other_features_do_not_matter(kind: str) -> None:
    sae = made(kind)
    other = made(kind, b_enc=sae.b_enc + torch.arange(F).eq(3) * 100.0)
    assert sae.separable
    keep = [i for i in range(F) if i != 3]
    assert torch.equal(sae.encode(states())[:, keep], other.encode(states())[:, keep])


@pytest.mark.parametrize("kind", ["topk", "abs_topk", "signed"])
def test_top_k_is_not_separable(kind: str) -> None:
    sae = made(kind)
    other = made(kind, b_enc=sae.b_enc + torch.arange(F).eq(3) * 1000.0)
    assert not sae.separable
    keep = [i for i in range(F) if i != 3]
    assert not torch.equal(sae.encode(states())[:, keep], other.encode(states())[:, keep])


# ------------------------------------------------------------------------------------------------ add


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adding_nothing_returns_the_state_bit_for_bit(kind: str, dtype: torch.dtype) -> None:
    h = states(dtype=dtype)
    h[0, 0] = -0.0
    features, delta = torch.tensor([1, 2]), torch.zeros(37, 2)
    assert made(kind).add(h, features, delta).view(torch.uint8).equal(h.view(torch.uint8))
    delta[5, 1] = 1.0
    changed = made(kind).add(h, features, delta)
    assert changed.dtype == dtype
    assert (changed != h).any(1).nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("kind", list(KINDS))
def test_adding_is_decoding_the_difference(kind: str) -> None:
    sae, h = made(kind), states()
    features, delta = torch.tensor([11, 0]), torch.randn(37, 2, generator=torch.Generator().manual_seed(1))
    before = sae.encode(h)
    after = before.clone()
    after[:, features] += delta
    expected = h + sae.decode(after, h) - sae.decode(before, h)
    torch.testing.assert_close(sae.add(h, features, delta), expected, atol=2e-4, rtol=2e-4)


def test_a_feature_that_a_row_leaves_alone_changes_nothing_of_it() -> None:
    sae, h = made(), states()
    delta = torch.randn(37, 1, generator=torch.Generator().manual_seed(1))
    alone = sae.add(h, torch.tensor([8]), delta)
    others = sae.add(h, torch.tensor([2, 8, 30]), torch.cat([torch.zeros(37, 1), delta, torch.zeros(37, 1)], 1))
    assert torch.equal(alone, others)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_maths_is_in_float32_and_states_keep_their_dtype(dtype: torch.dtype) -> None:
    sae, h = made(), states(dtype=dtype)
    assert sae.encode(h).dtype == torch.float32
    assert torch.equal(sae.encode(h), sae.encode(h.float()))
    assert sae.reconstruct(h).dtype == dtype
    assert sae.decode(sae.encode(h)).dtype == torch.float32


def test_zero_states_stay_finite() -> None:
    for kind in ("rescale", "layer_norm"):
        assert torch.isfinite(made(kind).reconstruct(torch.zeros(2, D))).all()


def test_a_normalising_autoencoder_needs_the_state_to_decode() -> None:
    with pytest.raises(ValueError, match="needs h"):
        made("rescale").decode(torch.zeros(1, F))


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"w_enc": torch.zeros(F, D)}, "W_enc is 50×20; with 50 features and width 20 it must be 20×50"),
        ({"b_dec": torch.full((D,), float("inf"))}, "b_dec holds NaN or infinite"),
        ({"activation": "jumprelu"}, "jumprelu without threshold"),
        ({"activation": "gated"}, "gated without b_gate, r_mag, b_mag"),
        ({"activation": "topk"}, "topk without k"),
        ({"activation": "topk", "k": 0}, "k is 0"),
        ({"w_dec": torch.zeros(F)}, "W_dec must be features × width"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        made(**changed)


# ---------------------------------------------------------------------------------------------- store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for layer in range(4):
        write(tmp_path / f"layer_{layer}", layer)
    return tmp_path


def write(path: Path, seed: int, width: int = D) -> None:
    draw = torch.Generator().manual_seed(seed)
    path.mkdir()
    (path / "cfg.json").write_text(json.dumps({"d_in": width, "d_sae": F, "metadata": {"hook_name": f"blocks.{seed}.hook_resid_post"}}), encoding="utf-8")
    shapes = {"W_enc": (width, F), "b_enc": (F,), "W_dec": (F, width), "b_dec": (width,)}
    save_file({k: torch.randn(s, generator=draw) for k, s in shapes.items()}, path / "sae_weights.safetensors")


@pytest.fixture
def store() -> Callable[..., SaeStore]:
    return lambda **options: SaeStore(plugin_manager(load=False), "cpu", **options)


def test_a_layer_is_filled_in_and_read_once(folder: Path, store: Callable[..., SaeStore]) -> None:
    one = store()
    path = str(folder / "layer_{layer}")
    assert one.layers(path) == [0, 1, 2, 3]
    assert one.layers(str(folder / "layer_2")) == [None]
    assert one.get(path, 2).site == "resid_post.2"
    assert one.get(path, 2) is one.get(path, 2)
    with pytest.raises(UserError, match="say which layer"):
        one.get(path)
    with pytest.raises(UserError, match="say which layer"):
        one.layers(str(folder / "no_{layer}"))
    with pytest.raises(UserError, match="has no autoencoder of layer 7; it has layers 0, 1, 2, 3"):
        one.get(path, 7)
    assert filled("a/{layer}/b_{layer}", 3) == "a/3/b_3"


def test_the_least_recently_used_goes_first(folder: Path, store: Callable[..., SaeStore]) -> None:
    path = str(folder / "layer_{layer}")
    each = store().get(path, 0).bytes
    one = store(budget_bytes=2 * each)
    for layer in (0, 1, 0, 2):
        one.get(path, layer)
    assert one.loaded == ((path, 0), (path, 2))
    small = store(budget_bytes=1)
    for layer in (0, 1):
        small.get(path, layer)
    assert small.loaded == ((path, 1),)


def test_another_width_is_refused_naming_both(folder: Path, store: Callable[..., SaeStore]) -> None:
    assert store().get(str(folder / "layer_0"), width=D).width == D
    with pytest.raises(UserError, match="reads states of width 20; the model's are 128 wide"):
        store().get(str(folder / "layer_0"), width=128)


def test_the_digest_is_that_of_the_files(folder: Path, tmp_path: Path, store: Callable[..., SaeStore]) -> None:
    one = store()
    path = str(folder / "layer_{layer}")
    digests = {one.digest(path, layer) for layer in range(4)}
    assert len(digests) == 4
    (folder / "layer_0" / "README.md").write_text("words", encoding="utf-8")
    assert store().digest(path, 0) == one.digest(path, 0)
    (folder / "layer_0").rename(folder / "moved")
    assert store().digest(str(folder / "moved")) == one.digest(path, 0)
    config = folder / "moved" / "cfg.json"
    config.write_text(config.read_text(encoding="utf-8").replace("20", "20 "), encoding="utf-8")
    assert store().digest(str(folder / "moved")) != one.digest(path, 0)


def test_the_hub_is_asked_for_the_folder_only(folder: Path, monkeypatch: pytest.MonkeyPatch, store: Callable[..., SaeStore]) -> None:
    asked: list[tuple[str, Any]] = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    one = store()
    assert one.get("owner/name/layer_{layer}", 1).site == "resid_post.1"
    one.digest("owner/name/layer_{layer}", 1)
    assert asked == [("owner/name", ["layer_1", "layer_1/*"])]
    with pytest.raises(UserError, match="owner/name has no 'nothing'"):
        one.get("owner/name/nothing")


def test_an_unreachable_hub_is_one_line(monkeypatch: pytest.MonkeyPatch, store: Callable[..., SaeStore]) -> None:
    def download(*_: Any, **__: Any) -> str:
        raise OSError("no network here\nsecond line")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError) as caught:
        store().get("owner/name/folder")
    assert str(caught.value) == "sae: 'owner/name/folder' is neither a path here nor reachable on the Hub: no network here"


def test_somebody_elses_format_is_asked_after_the_built_in_ones(tmp_path: Path) -> None:
    class Numbers(SaeFormat):
        """A text file that says how many features there are."""

        name = "numbers"
        shortcuts = {"theirs": str(tmp_path / "{layer}.txt")}

        def matches(self, path: Path) -> bool:
            return path.suffix == ".txt"

        def read(self, path: Path) -> SAE:
            count = int(path.read_text(encoding="utf-8"))
            return SAE("numbers", str(path), torch.zeros(2, count), torch.zeros(count), torch.zeros(count, 2), torch.zeros(2), "relu")

    module = types.ModuleType("theirs")
    module.sae_formats = hookspecs.hookimpl(lambda: [Numbers])  # type: ignore[attr-defined]
    (tmp_path / "5.txt").write_text("9", encoding="utf-8")
    plugins: Plugins = plugin_manager(load=False)
    plugins.register(module, "their-package", "1")
    assert plugins.problems == []
    one = SaeStore(plugins, "cpu")
    assert one.get("theirs", 5).features == 9
    assert len(one.digest("theirs", 5)) == 64


# ------------------------------------------------------------------------------------------------ demo


@pytest.fixture(scope="module")
def teacher() -> tuple[ModelAdapter, Callable[[str, str], list[torch.Tensor]]]:
    """The demo as a plain language model, and (question, solution) → its states after every block."""
    lm: ModelAdapter = CausalLM(CausalLMOptions(path="demo", device="cpu")).load()

    def blocks(question: str, solution: str) -> list[torch.Tensor]:
        ids = torch.tensor([lm.encode_prompt(question) + lm.encode(solution)])
        found: list[torch.Tensor] = []
        handles = [b.register_forward_hook(lambda _, __, out: found.append(out[0] if out.ndim == 3 else out)) for b in lm.network.transformer.h]
        with torch.no_grad():
            lm.network(ids)
        for handle in handles:
            handle.remove()
        return found

    return lm, blocks


def test_the_packaged_autoencoders_explain_the_demo(store: Callable[..., SaeStore], teacher: Any) -> None:
    card = json.loads((DEMO / "sae" / "card.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (DEMO / "problems.jsonl").read_text(encoding="utf-8").splitlines()[:60]]
    texts = [(r["question"], f"{r['steps']} The answer is: {r['answer']}") for r in records]
    states = [torch.cat(layer) for layer in zip(*(teacher[1](*t) for t in texts), strict=True)]
    one = store()
    assert one.layers("demo") == [0, 1, 2, 3]
    for layer, h in enumerate(states):
        sae = one.get("demo", layer, width=128)
        assert (sae.features, sae.site, sae.separable) == (512, f"resid_post.{layer}", True)
        codes = sae.encode(h)
        explained = float(1 - (sae.decode(codes) - h).square().sum() / (h - h.mean(0)).square().sum())
        assert explained >= 0.95
        assert explained == pytest.approx(card["layers"][str(layer)]["explained_variance"], abs=0.01)
        assert 18 < float((codes != 0).sum(1).float().mean()) < 22
        torch.testing.assert_close(sae.w_dec.norm(dim=1), torch.ones(512), atol=0.01, rtol=0)


def test_the_packaged_features_differ_between_the_groups_of_prompts(store: Callable[..., SaeStore], teacher: Any) -> None:
    """The values in features.csv are of other problems of the two groups; the prompts' own means lie on the same side."""
    with (DEMO / "features.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len({r["feature"] for r in rows}) == 40
    assert all(r["feature"] == f"L{r['layer']}-{r['id']}" for r in rows)
    lm, blocks = teacher
    means: dict[str, list[list[torch.Tensor]]] = {"more": [], "less": []}
    one = store()
    for line in (DEMO / "prompts.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        start = len(lm.encode_prompt(record["text"])) - 1
        states = blocks(record["text"], f"{record['steps']} The answer is:")
        means[record["group"]].append([one.get("demo", layer).encode(h[start:]).mean(0) for layer, h in enumerate(states)])
    agree = 0
    for row in rows:
        layer, index = int(row["layer"]), int(row["id"])
        more, less = (torch.stack([m[layer][index] for m in means[name]]).mean() for name in ("more", "less"))
        assert (float(row["more"]) > float(row["less"])) == (float(row["d"]) > 0)
        agree += bool(more > less) == (float(row["d"]) > 0)
    assert agree >= 38


def test_sae_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sae", "show", str(folder / "layer_{layer}"), "--layer", "1"]) == 0
    out = capsys.readouterr().out
    for words in ("saelens", "50", "20", "relu", "resid_post.1", f"{4 * (2 * D * F + F + 2 * D):,}"):
        assert words in out
    assert main(["sae", "show", str(folder / "layer_{layer}")]) == 0
    assert "resid_post.3" in capsys.readouterr().out
    assert main(["sae", "show", str(folder)]) == 2
    assert "no known format" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
def test_features_given_as_a_tuple_are_picked_once(kind: str) -> None:
    sae, h = made(kind), states()
    chosen = (3, 41, 7)
    for _ in range(2):
        assert torch.equal(sae.encode(h, chosen), sae.encode(h, torch.tensor(chosen)))
    assert set(sae._picks) == ({chosen} if kind in SEPARABLE else set())
    if kind in SEPARABLE:
        for value in sae._picks[chosen].values():
            value.zero_()
        assert not torch.equal(sae.encode(h, chosen), sae.encode(h, torch.tensor(chosen)))  # they are what is multiplied with


def test_few_choices_are_kept_and_none_of_many_features() -> None:
    sae, h = made(), states()
    sae.encode(h, tuple(range(F // 2)))
    assert not sae._picks
    for feature in range(12):
        sae.encode(h, (feature,))
    assert list(sae._picks) == [(f,) for f in range(4, 12)]
