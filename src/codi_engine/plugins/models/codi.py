"""CODI checkpoints (arXiv 2502.21074): base weights, LoRA and projection in one state dict, loaded with every key accounted for."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from codi_engine.core.errors import UserError
from codi_engine.core.libraries import quiet
from codi_engine.core.model import ModelAdapter, ModelInfo
from codi_engine.core.plugin import Model, Options
from codi_engine.plugins.models.hf import (
    DTYPES,
    cached,
    describe,
    download,
    empty_network,
    find,
    read_config,
    read_tokenizer,
    resolve_device,
    stop_ids,
    texts_of,
)
from codi_engine.plugins.models.weights import configured, file_digest, listed, read_weights, weight_file

#: added after the base vocabulary: pad, bot, eot
SPECIAL = 3
ROOT = "codi.base_model.model."
_TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "phi": ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"),
}
_LLAMA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")


class CodiOptions(Options):
    """A checkpoint holds neither configuration nor tokenizer; what is not in the file is stated here.

    ``checkpoint``: directory, file or Hub id; ``demo`` is the packaged one. ``base``: directory or Hub id of the base
    model (configuration and tokenizer only). ``lora_alpha`` cannot be read off the file: 32 is the reference's value.
    ``dtype``: float32, bfloat16 or float16. ``device``: ``auto``, cpu, cuda, cuda:1 … ``lora_r``, ``latents``,
    ``projection_width`` and ``layer_norm`` are checked against the file. ``remove_eos``: the prompt has no eos before ``bot``.
    ``merge``: adapters are merged into the base. ``answer_prefix``: words before the number.
    """

    checkpoint: str
    base: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    lora_r: int = Field(default=128, ge=1)
    lora_alpha: float = Field(default=32.0, gt=0.0)
    latents: int = Field(default=6, ge=1, le=1000)
    projection_width: int | None = Field(default=None, ge=1)
    layer_norm: bool | None = None
    remove_eos: bool = True
    merge: bool = True
    answer_prefix: str = "The answer is:"


class Projection(nn.Module):
    """z = prj(c): linear, exact GELU, linear, LayerNorm (if the checkpoint has one)."""

    def __init__(self, weights: dict[str, torch.Tensor], norm: bool) -> None:
        super().__init__()
        width, inner = weights["prj.1.weight"].shape[1], weights["prj.1.weight"].shape[0]
        self.up, self.down = nn.Linear(width, inner, device="meta"), nn.Linear(inner, width, device="meta")
        self.norm = nn.LayerNorm(width, eps=1e-5, device="meta") if norm else None
        parts: list[tuple[str, nn.Module | None]] = [("prj.1", self.up), ("prj.3", self.down), ("prj.ln", self.norm)]
        for name, module in parts:
            if module is not None:
                state = {k: weights[f"{name}.{k}"] for k in ("weight", "bias")}
                module.load_state_dict(state, assign=True)
        self.requires_grad_(False)

    def forward(self, c: torch.Tensor) -> torch.Tensor:
        z = self.down(nn.functional.gelu(self.up(c)))
        return self.norm(z) if self.norm is not None else z  # type: ignore[no-any-return]


class LowRank(nn.Module):
    """A base layer with its LoRA branch beside it (``merge: false``): base(x) + scale · B(A(x))."""

    def __init__(self, base: nn.Module, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.a, self.b = nn.Parameter(a, requires_grad=False), nn.Parameter(b, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * ((x @ self.a.T) @ self.b.T)  # type: ignore[no-any-return]


class Codi(Model[CodiOptions]):
    """A CODI model: GPT-2 or LLaMA base with LoRA, continuous latents between question and answer."""

    name = "codi"
    Options = CodiOptions

    def __init__(self, options: CodiOptions) -> None:
        super().__init__(options)
        self._checkpoint, self._base = self._places()
        self._config: Any = None

    def _places(self) -> tuple[str, str]:
        options = self.options
        if options.checkpoint == "demo" and not Path("demo").exists():
            packaged = files("codi_engine.plugins").joinpath("demo")
            return str(packaged / "checkpoint"), options.base or str(packaged / "base")
        if options.base is None:
            find(options.checkpoint, "model.checkpoint")
            raise UserError("model.base: is missing; a CODI checkpoint has no configuration or tokenizer of its own, name its base model")
        return options.checkpoint, options.base

    def describe(self) -> ModelInfo:
        find(self._checkpoint, "model.checkpoint")
        return describe(self.config(), self.options.latents, self.options.dtype, resolve_device(self.options.device), SPECIAL)

    def locate(self) -> None:
        weight_file(self._checkpoint, "model.checkpoint", download)

    def files(self) -> dict[str, Path]:
        weights = weight_file(self._checkpoint, "model.checkpoint", cached)
        return {weights.name: weights, **texts_of(find(self._base, "model.base"), prefix="base/")}

    def config(self) -> Any:
        """Return the base model's configuration."""
        if self._config is None:
            self._config = read_config(self._base, "model.base")
        return self._config

    def load(self) -> ModelAdapter:
        options, config = self.options, self.config()
        device = resolve_device(options.device)
        vocabulary = int(config.vocab_size)
        tokenizer = self._tokenizer(vocabulary)
        path = weight_file(self._checkpoint, "model.checkpoint", download)
        weights = read_weights(path, "model.checkpoint")
        config.vocab_size = vocabulary + SPECIAL
        with quiet():
            network = empty_network(config)
        norm = "prj.ln.weight" in weights if options.layer_norm is None else options.layer_norm
        report = _audit(weights, self._expected(network, config, norm), path)
        projection = Projection({k: v.to(DTYPES[options.dtype]) for k, v in weights.items() if k.startswith("prj.")}, norm)
        self._fill(network, weights)
        network.to(device).eval()
        network.requires_grad_(False)
        projection.to(device).eval()
        info = describe(config, options.latents, options.dtype, device)
        config.vocab_size = vocabulary + SPECIAL
        self._config = None
        width = projection.up.out_features
        report.append(
            f"{len(weights)} tensors, {sum(v.numel() for v in weights.values()):,} values; LoRA r={options.lora_r} alpha={options.lora_alpha:g} "
            f"{'merged' if options.merge else 'beside the base'}; projection {info.width}→{width}→{info.width}{' with LayerNorm' if norm else ''}"
        )
        return self._adapter(info, network, projection, tokenizer, vocabulary, config, path, report)

    # ------------------------------------------------------------------------------------------ pieces

    def _tokenizer(self, vocabulary: int) -> Any:
        tokenizer = read_tokenizer(self._base, "model.base")
        size = len(tokenizer)
        if size > vocabulary + 1 or max(tokenizer.get_vocab().values()) > vocabulary:
            raise UserError(
                f"model.base: tokenizer mismatch: it has {size:,} tokens, the base model {vocabulary:,}; give the base the checkpoint was trained from"
            )
        return tokenizer

    def _targets(self, config: Any) -> tuple[str, ...]:
        return _TARGETS.get(str(config.model_type), _LLAMA_TARGETS)

    def _expected(self, network: nn.Module, config: Any, norm: bool) -> dict[str, tuple[int, ...]]:
        """Return every key the checkpoint must hold, with its shape."""
        r, expected = self.options.lora_r, {}
        targets = self._targets(config)
        for name, parameter in network.named_parameters(remove_duplicate=False):
            module, _, kind = name.rpartition(".")
            shape = tuple(parameter.shape)
            if module.rsplit(".", 1)[-1] not in targets:
                expected[ROOT + name] = shape
                continue
            expected[f"{ROOT}{module}.base_layer.{kind}"] = shape
            if kind == "weight":
                inside, outside = shape if _is_conv1d(network.get_submodule(module)) else shape[::-1]
                expected[f"{ROOT}{module}.lora_A.default.weight"] = (r, inside)
                expected[f"{ROOT}{module}.lora_B.default.weight"] = (outside, r)
        width = int(config.hidden_size)
        p = self.options.projection_width or -1
        expected.update({"prj.1.weight": (p, width), "prj.1.bias": (p,), "prj.3.weight": (width, p), "prj.3.bias": (width,)})
        if norm:
            expected.update({"prj.ln.weight": (width,), "prj.ln.bias": (width,)})
        return expected

    def _fill(self, network: nn.Module, weights: dict[str, torch.Tensor]) -> None:
        """Assign every parameter, LoRA merged in fp32 (or kept beside its layer), then cast and tie."""
        dtype, scale = DTYPES[self.options.dtype], self.options.lora_alpha / self.options.lora_r
        branches: list[tuple[str, torch.Tensor, torch.Tensor]] = []
        for name, _ in list(network.named_parameters(remove_duplicate=False)):
            module, _, kind = name.rpartition(".")
            a = weights.get(f"{ROOT}{module}.lora_A.default.weight")
            key = ROOT + name if a is None else f"{ROOT}{module}.base_layer.{kind}"
            value = weights.get(key)
            if value is None:
                value = weights[_tied_partner(key, network)]
            if a is not None and kind == "weight":
                b = weights[f"{ROOT}{module}.lora_B.default.weight"]
                if self.options.merge:
                    delta = scale * (b.float() @ a.float())
                    value = value.float() + (delta.T if _is_conv1d(network.get_submodule(module)) else delta)
                else:
                    branches.append((module, a.to(dtype), b.to(dtype)))
            owner = network.get_submodule(module)
            setattr(owner, kind, nn.Parameter(value.to(dtype).contiguous(), requires_grad=False))
        output, inputs = network.get_output_embeddings(), network.get_input_embeddings()  # type: ignore[operator]
        output.weight = inputs.weight
        for module, a, b in branches:
            parent, _, leaf = module.rpartition(".")
            setattr(network.get_submodule(parent), leaf, LowRank(network.get_submodule(module), a, b, scale))

    def _adapter(
        self, info: ModelInfo, network: Any, projection: Projection, tokenizer: Any, vocabulary: int, config: Any, path: Path, report: list[str]
    ) -> ModelAdapter:
        bot, eot = vocabulary + 1, vocabulary + 2
        eos = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else config.eos_token_id
        if eos is None and not self.options.remove_eos:
            raise UserError("model.remove_eos: false needs an end-of-text token; the tokenizer has none")
        special = set(tokenizer.all_special_ids)

        def encode_prompt(text: str) -> list[int]:
            ids = list(tokenizer(text.strip().replace("  ", " "))["input_ids"])
            return ids + ([bot] if self.options.remove_eos else [eos, bot])

        def decode(ids: Any) -> str:
            return str(tokenizer.decode([i for i in ids if i < vocabulary and i not in special], skip_special_tokens=True))

        options = self.options.model_dump(mode="json", exclude={"device", "checkpoint", "base"})
        return ModelAdapter(
            info=info, network=network, encode_prompt=encode_prompt,
            encode=lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]), decode=decode,
            projection=projection, answer_start=(eot,) if self.options.remove_eos else (eot, eos),
            answer_prefix=self.options.answer_prefix, stop_ids=stop_ids(config, eos), banned_ids_from=vocabulary,
            digest=file_digest(path, options, configured(config)), report=tuple(report),
        )  # fmt: skip


def _is_conv1d(module: nn.Module) -> bool:
    """GPT-2's Conv1D keeps its weight in × out; everything else out × in."""
    return type(module).__name__ == "Conv1D"


def _tied_partner(key: str, network: nn.Module) -> str:
    """Return the other name of the tied embedding."""
    embedding = next(n for n, m in network.named_modules() if m is network.get_input_embeddings())  # type: ignore[operator]
    head = next(n for n, m in network.named_modules() if m is network.get_output_embeddings())  # type: ignore[operator]
    names = {f"{ROOT}{embedding}.weight": f"{ROOT}{head}.weight", f"{ROOT}{head}.weight": f"{ROOT}{embedding}.weight"}
    return names[key]


def _audit(weights: dict[str, torch.Tensor], expected: dict[str, tuple[int, ...]], path: Path) -> list[str]:
    """Demand exactly the expected keys and shapes; one of the two tied embeddings may be missing.

    Raises
    ------
    UserError: the list of missing and unexpected keys, or of wrong shapes
    """
    tied = [k for k in expected if k.endswith(("wte.weight", "embed_tokens.weight", "embed_in.weight", "lm_head.weight", "embed_out.weight"))]
    absent = [k for k in expected if k not in weights]
    missing = [k for k in absent if k not in tied] if len([k for k in absent if k in tied]) < len(tied) else absent
    unexpected = [k for k in weights if k not in expected]
    if missing or unexpected:
        parts = [f"{len(keys)} {what} keys: {listed(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise UserError(f"model.checkpoint: '{path}' does not fit model.base.\n{'; '.join(parts)}")
    wrong = []
    for key, tensor in weights.items():
        want = expected[key]
        if len(want) != tensor.ndim or any(w not in (-1, s) for w, s in zip(want, tensor.shape, strict=True)):
            wrong.append(f"{key} is {'×'.join(map(str, tensor.shape))}, needed {'×'.join('p' if w == -1 else str(w) for w in want)}")
    if weights["prj.1.weight"].shape[0] != weights["prj.3.weight"].shape[-1]:
        wrong.append("prj.1 and prj.3 disagree on the projection's inner width")
    if wrong:
        raise UserError(f"model.checkpoint: '{path}': wrong shapes; check model.base, lora_r and projection_width.\n{listed(wrong)}")
    if len([k for k in tied if k in weights]) == 2 and not torch.equal(weights[tied[0]], weights[tied[1]]):
        return ["the two tied embeddings differ; the input embedding is used"]
    return []
