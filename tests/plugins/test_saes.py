"""Every format of autoencoders: files written as their library lays them out, against the table computed by hand in numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codi_engine.core.errors import UserError
from codi_engine.core.sae import SAE
from tests.support.saes import BASIC, HOOK, LINEAR, PLAIN, STATES, Array, D, F, K, directory, drawn, read, tensors

# ------------------------------------------------------------------------------------------- by hand


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def largest(values: Array, k: int, by: Array) -> Array:
    """Values at the k largest of ``by`` in every row, zero elsewhere."""
    out = np.zeros_like(values)
    for row, order in enumerate(np.argsort(-by, axis=1)[:, :k]):
        out[row, order] = values[row, order]
    return out


def agrees(sae: SAE, encode: Callable[[Array], Array], decode: Callable[[Array, Array], Array], tolerance: float = 2e-4) -> None:
    """Compare codes, decoded states, reconstruction and added features with the ones by hand, in double precision."""
    x = STATES.astype(np.float64)
    states, codes = torch.from_numpy(STATES), encode(x)
    assert 0 < (codes != 0).mean() < 1
    np.testing.assert_allclose(sae.encode(states).numpy(), codes, atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(sae.decode(torch.from_numpy(codes), states).numpy(), decode(codes, x), atol=tolerance, rtol=tolerance)
    np.testing.assert_allclose(sae.reconstruct(states).numpy(), decode(codes, x), atol=10 * tolerance, rtol=10 * tolerance)
    features, delta = torch.tensor([7, 0, 31]), np.random.default_rng(3).normal(size=(len(x), 3))
    changed = codes.copy()
    changed[:, features.numpy()] += delta
    expected = x + decode(changed, x) - decode(codes, x)
    np.testing.assert_allclose(sae.add(states, features, torch.from_numpy(delta)).numpy(), expected, atol=tolerance, rtol=tolerance)


# -------------------------------------------------------------------------------------------- SAELens


def saelens(path: Path, shapes: Mapping[str, tuple[int, ...]] = BASIC, **config: Any) -> tuple[SAE, dict[str, Array]]:
    arrays = drawn(**shapes)
    if "threshold" in arrays:
        arrays["threshold"] = np.abs(arrays["threshold"])
    new = {"d_in": D, "d_sae": F, "architecture": "standard", "apply_b_dec_to_input": True, "normalize_activations": "none", "metadata": {}}
    return read(directory(path, {**new, **config}, arrays)), arrays


def by_saelens(w: Mapping[str, Array], kind: str, norm: str = "none", subtract: bool = True, scale: float = 1.0, rescale: bool = False) -> Any:
    """Encode and decode as the table says, normalisation and all."""
    lengths = np.linalg.norm(w["W_dec"].astype(np.float64), axis=1) if rescale else np.ones(F)

    def normal(x: Array) -> tuple[Array, Array | float, Array | float]:
        if norm == "constant_norm_rescale":
            factor = math.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
            return x * factor, 0.0, 1 / factor
        if norm == "layer_norm":
            mean = x.mean(1, keepdims=True)
            std = (x - mean).std(1, keepdims=True, ddof=1)
            return (x - mean) / (std + 1e-5), mean, std
        return x * scale, 0.0, 1 / scale

    def encode(x: Array) -> Array:
        seen = normal(x)[0] - (w["b_dec"] if subtract else 0)
        if kind == "gated":
            linear = seen @ w["W_enc"]
            return relu(linear * np.exp(w["r_mag"]) + w["b_mag"]) * (linear + w["b_gate"] > 0)
        pre = (seen @ w["W_enc"] + w["b_enc"]) * lengths
        if kind == "jumprelu":
            return relu(pre) * (pre > w["threshold"])
        return relu(pre) if kind == "standard" else relu(largest(pre, K, pre))

    def decode(codes: Array, x: Array) -> Array:
        _, shift, back = normal(x)
        return (codes / lengths @ w["W_dec"] + w["b_dec"]) * back + shift

    return encode, decode


SHAPES = {
    "standard": BASIC,
    "topk": BASIC,
    "jumprelu": {**BASIC, "threshold": (F,)},
    "gated": {**{k: v for k, v in BASIC.items() if k != "b_enc"}, "b_gate": (F,), "b_mag": (F,), "r_mag": (F,)},
}


@pytest.mark.parametrize("kind", list(SHAPES))
@pytest.mark.parametrize("norm", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("subtract", [True, False])
def test_saelens(tmp_path: Path, kind: str, norm: str, subtract: bool) -> None:
    config = {"architecture": kind, "normalize_activations": norm, "apply_b_dec_to_input": subtract, **({"k": K} if kind == "topk" else {})}
    sae, arrays = saelens(tmp_path / "x", SHAPES[kind], **config, metadata={"hook_name": "blocks.3.hook_resid_post"})
    assert (sae.format, sae.width, sae.features, sae.site, sae.separable) == ("saelens", D, F, "resid_post.3", kind != "topk")
    agrees(sae, *by_saelens(arrays, kind, norm, subtract))


@pytest.mark.parametrize("kind", list(SHAPES))
def test_saelens_average_norm_is_folded(tmp_path: Path, kind: str) -> None:
    config = {"architecture": kind, "normalize_activations": "expected_average_only_in", **({"k": K} if kind == "topk" else {})}
    with pytest.raises(UserError, match=r"neither activation_scaler\.json nor cfg\.json states its scaling_factor"):
        saelens(tmp_path / "x", SHAPES[kind], **config)
    (tmp_path / "x" / "activation_scaler.json").write_text('{"scaling_factor": 0.4}', encoding="utf-8")
    sae, arrays = saelens(tmp_path / "x", SHAPES[kind], **config)
    agrees(sae, *by_saelens(arrays, kind, scale=0.4))
    inside, _ = saelens(tmp_path / "y", SHAPES[kind], scaling_factor=0.4, **config)
    assert torch.equal(inside.w_enc, sae.w_enc)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_saelens_top_k_of_rescaled_codes(tmp_path: Path, scale: float | None) -> None:
    norm: dict[str, Any] = {} if scale is None else {"normalize_activations": "expected_average_only_in", "scaling_factor": scale}
    sae, arrays = saelens(tmp_path / "x", architecture="topk", k=K, rescale_acts_by_decoder_norm=True, **norm)
    agrees(sae, *by_saelens(arrays, "topk", rescale=True, scale=scale or 1.0))


def test_saelens_before_version_6(tmp_path: Path) -> None:
    arrays = drawn(**BASIC)
    old = {"d_in": D, "d_sae": F, "hook_point": "blocks.8.hook_resid_pre", "hook_point_layer": 8, "normalize_activations": False}
    sae = read(directory(tmp_path / "relu", {**old, "activation_fn_str": "relu"}, arrays))
    agrees(sae, *by_saelens(arrays, "standard"))
    assert sae.site == "resid_pre.8"
    top = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "apply_b_dec_to_input": False}
    agrees(read(directory(tmp_path / "topk", {**old, **top}, arrays)), *by_saelens(arrays, "topk", subtract=False))


def test_saelens_finetuned_scale_per_feature(tmp_path: Path) -> None:
    arrays = drawn(**BASIC, scaling_factor=(F,))
    sae = read(directory(tmp_path / "x", {"d_in": D, "d_sae": F, "finetuning_scaling_factor": True}, arrays))
    encode, decode = by_saelens(arrays, "standard")
    agrees(sae, encode, lambda codes, x: decode(codes * arrays["scaling_factor"], x))
    with pytest.raises(UserError, match="does not say finetuning_scaling_factor: true"):
        read(directory(tmp_path / "y", {"d_in": D, "d_sae": F}, arrays))
    ones = {**arrays, "scaling_factor": np.ones(F, np.float32)}
    agrees(read(directory(tmp_path / "z", {"d_in": D, "d_sae": F}, ones)), encode, decode)


# ---------------------------------------------------------------------------------------- Gemma Scope


@pytest.mark.parametrize("prefix", ["W_", "w_"])
@pytest.mark.parametrize("embedding", [False, True])
def test_gemma_scope(tmp_path: Path, prefix: str, embedding: bool) -> None:
    place = tmp_path / "gemma-scope-2b-pt-res" / ("embedding" if embedding else "layer_12") / "width_16k" / "average_l0_50"
    place.mkdir(parents=True)
    w = drawn(**BASIC, threshold=(F,))
    w["threshold"] = np.abs(w["threshold"])
    blob = tmp_path / "blob.npz"  # the Hub's cache holds links to files whose names say nothing
    np.savez(blob, allow_pickle=False, **{prefix + k[2:] if k.startswith("W_") else k: v for k, v in w.items()})
    (place / "params.npz").symlink_to(blob)
    scale = math.sqrt(D) if embedding else 1.0

    def encode(x: Array) -> Array:
        pre = x @ w["W_enc"] / scale + w["b_enc"]
        return relu(pre) * (pre > w["threshold"])

    sae = read(place)
    agrees(sae, encode, lambda codes, x: codes @ w["W_dec"] * scale + w["b_dec"])
    assert sae.site == ("embed" if embedding else "resid_post.12")
    assert torch.equal(read(place / "params.npz").w_dec, sae.w_dec)


# ---------------------------------------------------------------------------------- OpenMOSS' layouts


def by_openmoss(w: Mapping[str, Array], config: Mapping[str, Any], threshold: Array | float) -> Any:
    """Encode and decode in the normalised space, from matrices E (d × F) and D (F × d)."""
    norms, kind = config["dataset_average_activation_norm"], config["norm_activation"]
    lengths = np.linalg.norm(w["D"], axis=1) if config["sparsity_include_decoder_norm"] else 1.0

    def scales(x: Array) -> tuple[Any, Any]:
        if kind == "dataset-wise":
            return math.sqrt(D) / norms["in"], math.sqrt(D) / norms["out"]
        if kind == "token-wise":
            factor = math.sqrt(D) / np.linalg.norm(x, axis=1, keepdims=True)
            return factor, factor
        return 1.0, 1.0

    def encode(x: Array) -> Array:
        seen = x * scales(x)[0] - (w["bD"] if config["apply_decoder_bias_to_pre_encoder"] else 0)
        pre = seen @ w["E"] + w["bE"]
        if "G" in w:
            pre = pre / (1 + np.exp(-(seen @ w["G"] + w["bG"])))
        scaled = pre * lengths
        if config["act_fn"] == "jumprelu":
            return relu(pre) * (scaled > threshold)
        return relu(pre) if config["act_fn"] == "relu" else relu(largest(pre, K, scaled))

    return encode, lambda codes, x: (codes @ w["D"] + w["bD"]) / scales(x)[1]


def matrices(arrays: Mapping[str, Array]) -> dict[str, Array]:
    out = {"E": arrays["encoder.weight"].T, "bE": arrays["encoder.bias"], "D": arrays["decoder.weight"].T, "bD": arrays["decoder.bias"]}
    if "encoder_glu.weight" in arrays:
        out |= {"G": arrays["encoder_glu.weight"].T, "bG": arrays["encoder_glu.bias"]}
    return {k: v.astype(np.float64) for k, v in out.items()}


@pytest.mark.parametrize("kind", ["jumprelu", "relu", "topk"])
@pytest.mark.parametrize("norm", ["dataset-wise", "token-wise", "none"])
@pytest.mark.parametrize("gauge", [True, False])
@pytest.mark.parametrize("subtract", [True, False])
def test_llama_scope(tmp_path: Path, kind: str, norm: str, gauge: bool, subtract: bool) -> None:
    config = {**PLAIN, "act_fn": kind, "norm_activation": norm, "sparsity_include_decoder_norm": gauge, "apply_decoder_bias_to_pre_encoder": subtract}
    arrays = drawn(**LINEAR)
    sae = read(directory(tmp_path / "L5R-8x", config, arrays, ("hyperparams.json", "checkpoints/final.safetensors")))
    assert (sae.format, sae.site) == ("llama_scope", "resid_post.5")
    agrees(sae, *by_openmoss(matrices(arrays), config, 0.6))


def test_a_missing_flag_whose_default_changed_is_refused_only_where_it_matters(tmp_path: Path) -> None:
    config = {k: v for k, v in PLAIN.items() if k != "apply_decoder_bias_to_pre_encoder"}
    names = ("hyperparams.json", "checkpoints/final.safetensors")
    with pytest.raises(UserError, match="apply_decoder_bias_to_pre_encoder is missing"):
        read(directory(tmp_path / "x", config, drawn(**LINEAR), names))
    arrays = {**drawn(**LINEAR), "decoder.bias": np.zeros(D, np.float32)}
    agrees(read(directory(tmp_path / "y", config, arrays, names)), *by_openmoss(matrices(arrays), PLAIN, 0.6))


def test_llama_scope_pth_and_gated_linear_units(tmp_path: Path) -> None:
    arrays = drawn(**LINEAR, encoder_glu__weight=(F, D), encoder_glu__bias=(F,))
    config = {**PLAIN, "use_glu_encoder": True, "expansion_factor": 2}
    path = directory(tmp_path / "x", config, arrays, ("hyperparams.json", "checkpoints/final.safetensors"))
    sae = read(path)
    agrees(sae, *by_openmoss(matrices(arrays), config, 0.6))
    (path / "checkpoints" / "final.safetensors").unlink()
    torch.save({"sae": tensors(arrays)}, path / "checkpoints" / "final.pth")
    assert torch.equal(read(path).glu, sae.glu)  # type: ignore[arg-type]


@pytest.mark.parametrize("gauge", [True, False])
def test_llama_scope_r1(tmp_path: Path, gauge: bool) -> None:
    arrays = drawn(**LINEAR, log_jumprelu_threshold=(F,))
    config = {**PLAIN, "sparsity_include_decoder_norm": gauge}
    norms = config.pop("dataset_average_activation_norm")
    written = {**arrays, f"dataset_average_activation_norm.{HOOK}": np.array(8.0, np.float32)}
    sae = read(directory(tmp_path / "x", config, written, ("config.json", "sae_weights.safetensors")))
    assert sae.format == "llama_scope_r1"
    both = {**config, "dataset_average_activation_norm": {"in": norms["in"], "out": norms["in"]}}
    agrees(sae, *by_openmoss(matrices(arrays), both, np.exp(arrays["log_jumprelu_threshold"])))


@pytest.mark.parametrize("kind", ["jumprelu", "topk"])
@pytest.mark.parametrize("fmt", ["safetensors", "pt"])
def test_llamascopium(tmp_path: Path, kind: str, fmt: str) -> None:
    arrays = drawn(W_E=(D, F), b_E=(F,), W_D=(F, D), b_D=(D,), W_E_glu=(D, F), b_E_glu=(F,), activation_function__log_jumprelu_threshold=(F,))
    if kind == "topk":
        del arrays["activation_function.log_jumprelu_threshold"]
    config = {**PLAIN, "sae_type": "sae", "act_fn": kind, "sparsity_include_decoder_norm": True, "use_glu_encoder": True}
    del config["dataset_average_activation_norm"], config["jump_relu_threshold"]
    written = {**arrays, f"dataset_average_activation_norm.{HOOK}": np.array(8.0, np.float32)}
    path = directory(tmp_path / "x", config, written, ("config.json", "sae_weights.safetensors"))
    if fmt == "pt":
        (path / "sae_weights.safetensors").unlink()
        torch.save({"sae": tensors(written), "version": "2.0"}, path / "sae_weights.pt")
    sae = read(path)
    assert sae.format == "llamascopium"
    w = {{"W_E": "E", "b_E": "bE", "W_D": "D", "b_D": "bD", "W_E_glu": "G", "b_E_glu": "bG"}.get(k, k): v.astype(np.float64) for k, v in arrays.items()}
    threshold = np.exp(w.get("activation_function.log_jumprelu_threshold", np.zeros(F)))
    agrees(sae, *by_openmoss(w, {**config, "dataset_average_activation_norm": {"in": 8.0, "out": 8.0}}, threshold))


# -------------------------------------------------------------------------------------------- Sparsify


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("layout", ["library", "transposed", "linear"])
def test_sparsify(tmp_path: Path, signed: bool, layout: str) -> None:
    w = drawn(**BASIC)
    names = {
        "library": {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "W_dec": w["W_dec"], "b_dec": w["b_dec"]},
        "transposed": {"encoder.weight": w["W_enc"], "b_enc": w["b_enc"], "W_dec": w["W_dec"].T, "b_dec": w["b_dec"]},
        "linear": {"encoder.weight": w["W_enc"].T, "encoder.bias": w["b_enc"], "decoder.weight": w["W_dec"].T, "b_dec": w["b_dec"]},
    }[layout]
    config = {"d_in": D, "expansion_factor": 3, "num_latents": F, "k": K, "normalize_decoder": True, "signed": signed}
    sae = read(directory(tmp_path / "layers.7", config, names, ("cfg.json", "sae.safetensors")))

    def encode(x: Array) -> Array:
        pre = (x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]
        return largest(pre, K, np.abs(pre)) if signed else relu(largest(pre, K, pre))

    agrees(sae, encode, lambda codes, x: codes @ w["W_dec"] + w["b_dec"])
    assert (sae.site, sae.separable) == ("resid_post.7", False)
    assert bool((sae.encode(torch.from_numpy(STATES)) < 0).any()) is signed


def test_a_square_sparsify_encoder_is_as_the_library_writes_it(tmp_path: Path) -> None:
    w = drawn(W=(D, D), b=(D,), V=(D, D), c=(D,))
    path = directory(
        tmp_path / "x", {"k": 3}, {"encoder.weight": w["W"], "encoder.bias": w["b"], "W_dec": w["V"], "b_dec": w["c"]}, ("cfg.json", "sae.safetensors")
    )
    sae = read(path)
    np.testing.assert_array_equal(sae.w_enc.numpy(), w["W"].T)
    np.testing.assert_array_equal(sae.w_dec.numpy(), w["V"])


# ------------------------------------------------------------------------------------------- .pt files


@pytest.mark.parametrize("layout", ["config", "bare", "epoch"])
def test_relu_pt(tmp_path: Path, layout: str) -> None:
    w = drawn(**LINEAR)
    state = tensors(w)
    layouts: dict[str, dict[str, Any]] = {
        "config": {"model_state_dict": state, "config": {"input_dim": D, "n_features": F, "l1_coefficient": 0.1}, "training_info": {"loss": np.float64(0.5)}},
        "bare": state,
        "epoch": {"epoch": 3, "model_state_dict": state, "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}},
    }
    torch.save(layouts[layout], tmp_path / "pos_0_final.pt")
    sae = read(tmp_path / "pos_0_final.pt")
    m = matrices(w)
    agrees(sae, lambda x: relu(x @ m["E"] + m["bE"]), lambda codes, x: codes @ m["D"] + m["bD"])
    assert sae.separable


@pytest.mark.parametrize("stated", [True, False])
def test_top_k_pt_keeps_signs(tmp_path: Path, stated: bool) -> None:
    w = drawn(**LINEAR)
    config = {"input_dim": D, "latent_dim": F, "k": K, "position": 0, "layer": 4}
    whole = {"model_state_dict": tensors(w), "config": config, "metrics": {"mse": np.float32(0.1)}, "training_history": [{"loss": 1.0}]}
    path = tmp_path / f"pos0_layer4_d{F}_k{K}.pt"
    torch.save(whole if stated else tensors(w), path)
    sae, m = read(path), matrices(w)
    pre = STATES.astype(np.float64) @ m["E"] + m["bE"]
    agrees(sae, lambda x: largest(pre, K, np.abs(pre)), lambda codes, x: codes @ m["D"] + m["bD"])
    codes = sae.encode(torch.from_numpy(STATES))
    assert bool(((codes != 0).sum(1) == K).all())
    assert bool((codes < 0).any())
    assert sae.site == ("resid_post.3" if stated else None)


@pytest.mark.parametrize("nested", [True, False])
def test_matryoshka_pt(tmp_path: Path, nested: bool) -> None:
    sizes = [10, 20, 40] if nested else [10, 10, 20]
    w = drawn(**{f"encoder_{i}__{kind}": (n, D)[: 2 if kind == "weight" else 1] for i, n in enumerate(sizes, 1) for kind in ("weight", "bias")})
    w |= drawn(decoder__weight=(D, F), decoder__bias=(D,))
    torch.save({"model_state_dict": tensors(w), "config": {"levels": np.cumsum(sizes).tolist(), "k": [2, 3, K]}}, tmp_path / "m.pt")
    used = [3] if nested else [1, 2, 3]
    encoder, bias = np.concatenate([w[f"encoder_{i}.weight"] for i in used]), np.concatenate([w[f"encoder_{i}.bias"] for i in used])

    def encode(x: Array) -> Array:
        pre = x @ encoder.T + bias
        return largest(pre, K, pre)

    agrees(read(tmp_path / "m.pt"), encode, lambda codes, x: codes @ w["decoder.weight"].T + w["decoder.bias"])


def test_the_published_matryoshka_keeps_40_of_512(tmp_path: Path) -> None:
    w = drawn(**{f"encoder_{i}__{k}": (n, 4)[: 2 if k == "weight" else 1] for i, n in enumerate((128, 256, 512), 1) for k in ("weight", "bias")})
    torch.save(tensors(w | drawn(decoder__weight=(4, 512), decoder__bias=(4,))), tmp_path / "m.pt")
    assert read(tmp_path / "m.pt").k == 40
    torch.save(
        tensors({k: v[:24] if k.startswith("encoder_3") else v for k, v in w.items()} | drawn(decoder__weight=(4, 24), decoder__bias=(4,))), tmp_path / "n.pt"
    )
    with pytest.raises(UserError, match="Matryoshka autoencoder of 24 features without k"):
        read(tmp_path / "n.pt")
