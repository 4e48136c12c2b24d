"""Coconut checkpoints (arXiv 2412.06769): the last hidden state is fed back as the next input, without any projection."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from codi_engine.core.errors import UserError
from codi_engine.core.model import ModelAdapter, ModelInfo
from codi_engine.core.plugin import Model, Options
from codi_engine.plugins.models.hf import DTYPES, cached, describe, download, empty_network, find, read_config, read_tokenizer, resolve_device, texts_of
from codi_engine.plugins.models.weights import NAMES, configured, file_digest, listed, read_weights, weight_file

#: added to the base tokenizer in this order
TOKENS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")
#: the training wrapper holds the base model under ``ROOT`` and its input embedding once more as ``COPY``
ROOT = "base_causallm."
COPY = "embedding.weight"
#: put before every key by data-parallel wrappers
_WRAPPERS = ("module.", "_fsdp_wrapped_module.")
_SAVED = re.compile(r"checkpoint_(\d+)")


class CoconutOptions(Options):
    """A checkpoint holds neither configuration nor tokenizer; what is not in the file is stated here.

    ``checkpoint``: file (``checkpoint_33``, .pt, .safetensors), directory or Hub id. ``base``: directory or Hub id of the base
    model (configuration and tokenizer only). ``latents``: thoughts per stage × stages; 2 × 3 for GSM8k, 1 × 6 for ProsQA.
    0: no latents; a checkpoint of the language-only stage then runs without markers. ``answer_prefix``: words before the number.
    ``dtype``: float32, bfloat16 or float16. ``device``: ``auto``, cpu, cuda, cuda:1 …
    """

    checkpoint: str
    base: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    latents: int = Field(default=6, ge=0, le=1000)
    answer_prefix: str = "###"


class Coconut(Model[CoconutOptions]):
    """A Coconut model: any causal LM whose latent steps consume the final-norm state of the position before.

    The prompt is the question, a newline and ``<|start-latent|>``: the state there is c_0. K latents follow, then
    ``<|end-latent|>`` and the answer, ``### 18``.
    """

    name = "coconut"
    Options = CoconutOptions

    def __init__(self, options: CoconutOptions) -> None:
        super().__init__(options)
        self._read: tuple[Any, Any] | None = None

    def describe(self) -> ModelInfo:
        find(self.options.checkpoint, "model.checkpoint")
        config, tokenizer = self._base()
        base, config.vocab_size = config.vocab_size, len(tokenizer)  # as training resizes it, whatever padding the base has
        try:
            return describe(config, self.options.latents, self.options.dtype, resolve_device(self.options.device))
        finally:
            config.vocab_size = base

    def locate(self) -> None:
        _weight_file(self.options.checkpoint)

    def files(self) -> dict[str, Path]:
        weights = _weight_file(self.options.checkpoint, cached)
        return {weights.name: weights, **texts_of(find(self.options.base, "model.base"), prefix="base/")}

    def load(self) -> ModelAdapter:
        options = self.options
        config, tokenizer = self._base()
        self._read = None  # loading changes the configuration
        path = _weight_file(options.checkpoint)
        weights = _unwrapped(read_weights(path, "model.checkpoint"))
        tied = bool(getattr(config, "tie_word_embeddings", False))
        network = self._sized(weights, config, len(tokenizer), tied, path)
        report = [f"{len(weights)} tensors, {sum(v.numel() for v in weights.values()):,} values, {options.latents} latents"]
        if config.vocab_size != len(tokenizer):
            report.append("a checkpoint of the language-only stage: no latents, no markers")
        _audit(weights, network, tied, path)
        _fill(network, weights, DTYPES[options.dtype], tied)
        info = describe(config, options.latents, options.dtype, resolve_device(options.device))
        network.to(info.device).eval().requires_grad_(False)
        return self._adapter(info, network, tokenizer, path, report)

    # ------------------------------------------------------------------------------------------ pieces

    def _base(self) -> tuple[Any, Any]:
        """Return the base's configuration, and its tokenizer with the three tokens added."""
        if self._read is None:
            config, tokenizer = read_config(self.options.base, "model.base"), read_tokenizer(self.options.base, "model.base")
            if tokenizer.eos_token_id is None:
                raise UserError("model.base: the tokenizer has no end-of-text token, with which every answer ends")
            tokenizer.add_tokens(list(TOKENS))
            self._read = config, tokenizer
        return self._read

    def _sized(self, weights: dict[str, torch.Tensor], config: Any, size: int, tied: bool, path: Path) -> nn.Module:
        """Return the empty network with the checkpoint's vocabulary: ``size`` tokens, or the base's own before the latent stages."""
        base, config.vocab_size = int(config.vocab_size), size
        network = empty_network(config)
        rows = _rows(weights, _Names.of(network, tied))
        if rows in (size, None):  # None: the audit names the embedding as missing
            return network
        if rows != base:
            raise UserError(
                f"model.base: tokenizer mismatch: it has {size:,} tokens with Coconut's three, '{path}' {rows:,} embeddings; "
                "give the base the checkpoint was trained from"
            )
        if self.options.latents:
            raise UserError(
                f"model.checkpoint: '{path}' has no embeddings of {', '.join(TOKENS)}: it is from the language-only stage.\n"
                "Set model.latents: 0 to run it without latents, or name a checkpoint of the latent stages"
            )
        config.vocab_size = base
        return empty_network(config)

    def _adapter(self, info: ModelInfo, network: Any, tokenizer: Any, path: Path, report: list[str]) -> ModelAdapter:
        start, end, latent = tokenizer.convert_tokens_to_ids(list(TOKENS))
        marked = info.vocab_size == len(tokenizer)
        special = {*tokenizer.all_special_ids, start, end, latent}
        last = (start, end, latent) == tuple(range(len(tokenizer) - len(TOKENS), len(tokenizer)))  # else the base had them already
        eos = int(tokenizer.eos_token_id)

        def encode_prompt(text: str) -> list[int]:
            ids = list(tokenizer(text + "\n")["input_ids"])
            return [*ids, start] if marked else ids

        options = self.options.model_dump(mode="json", exclude={"device", "checkpoint", "base"})
        return ModelAdapter(
            info=info, network=network, encode_prompt=encode_prompt,
            encode=lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
            decode=lambda ids: str(tokenizer.decode([i for i in ids if i not in special], skip_special_tokens=True)),
            projection=_same if info.latents else None, answer_start=(end,) if marked else (), answer_prefix=self.options.answer_prefix,
            stop_ids=(eos,), banned_ids_from=start if last else None, digest=file_digest(path, options, configured(network.config)),
            report=tuple(report),
        )  # fmt: skip


def _same(c: torch.Tensor) -> torch.Tensor:
    """z = c: the next input is the last final-norm state itself."""
    return c


@dataclass(frozen=True)
class _Names:
    """The parameters that hold the input embedding (``COPY`` among them) and, where it is its own, the output embedding."""

    inputs: tuple[str, ...]
    head: str | None

    @staticmethod
    def of(network: nn.Module, tied: bool) -> _Names:
        modules = list(network.named_modules())
        embedding = next(n for n, m in modules if m is network.get_input_embeddings())  # type: ignore[operator]
        head = next(n for n, m in modules if m is network.get_output_embeddings())  # type: ignore[operator]
        names = (f"{embedding}.weight", COPY)
        return _Names((*names, f"{head}.weight"), None) if tied else _Names(names, f"{head}.weight")


def _weight_file(checkpoint: str, fetch: Callable[[str, str], str | None] = download) -> Path:
    """Return the file of a checkpoint; a directory of ``checkpoint_N`` files must hold one only."""
    path = Path(checkpoint).expanduser()
    if not path.is_dir() or any((path / name).is_file() for name in NAMES):
        return weight_file(checkpoint, "model.checkpoint", fetch)
    saved = sorted((int(m[1]), p) for p in path.iterdir() if (m := _SAVED.fullmatch(p.name)) and p.is_file())
    if not saved:
        raise UserError(f"model.checkpoint: '{checkpoint}' holds none of {', '.join(NAMES)}, checkpoint_N")
    if len(saved) > 1:
        raise UserError(f"model.checkpoint: '{checkpoint}' holds {len(saved)} checkpoints; name one of them, such as '{saved[-1][1]}'")
    return saved[0][1]


def _unwrapped(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors under the base model's own names; a key outside the wrapper keeps a name that no model has."""
    for prefix in _WRAPPERS:
        if weights and all(k.startswith(prefix) for k in weights):
            weights = {k.removeprefix(prefix): v for k, v in weights.items()}
    if not any(k.startswith(ROOT) for k in weights):
        return weights
    return {k if k == COPY else k.removeprefix(ROOT) if k.startswith(ROOT) else f"{k} (outside {ROOT})": v for k, v in weights.items()}


def _rows(weights: dict[str, torch.Tensor], names: _Names) -> int | None:
    """Return how many tokens the checkpoint's embedding has, None where it has no embedding."""
    return next((int(weights[n].shape[0]) for n in names.inputs if n in weights and weights[n].ndim), None)


def _audit(weights: dict[str, torch.Tensor], network: nn.Module, tied: bool, path: Path) -> None:
    """Demand exactly the model's parameters and shapes; of an embedding's several names one is enough, and all must agree.

    Raises
    ------
    UserError: the list of missing and unexpected keys, of wrong shapes, or of embeddings that differ
    """
    names = _Names.of(network, tied)
    expected = {n: tuple(p.shape) for n, p in network.named_parameters(remove_duplicate=False)}
    expected[COPY] = expected[names.inputs[0]]
    there = [n for n in names.inputs if n in weights]
    missing = [n for n in expected if n not in weights and not (n in names.inputs and (there or n != names.inputs[0]))]
    unexpected = [n for n in weights if n not in expected]
    if missing or unexpected:
        parts = [f"{len(keys)} {what} keys: {listed(keys)}" for what, keys in (("missing", missing), ("unexpected", unexpected)) if keys]
        raise UserError(f"model.checkpoint: '{path}' does not fit model.base.\n{'; '.join(parts)}")
    wrong = [f"{n} is {_times(w.shape)}, needed {_times(expected[n])}" for n, w in weights.items() if tuple(w.shape) != expected[n]]
    if wrong:
        raise UserError(f"model.checkpoint: '{path}': wrong shapes; check model.base.\n{listed(wrong)}")
    differing = [n for n in there[1:] if not torch.equal(weights[n], weights[there[0]])]
    if differing:
        raise UserError(f"model.checkpoint: '{path}': {listed(differing)} must equal {there[0]} and does not; check model.base")


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _fill(network: nn.Module, weights: dict[str, torch.Tensor], dtype: torch.dtype, tied: bool) -> None:
    """Assign every parameter in ``dtype``; an embedding comes from whichever of its names is there."""
    inputs = _Names.of(network, tied).inputs
    embedding = next(weights[n] for n in inputs if n in weights)
    for name, _ in list(network.named_parameters(remove_duplicate=False)):
        module, _, kind = name.rpartition(".")
        value = embedding if name in inputs else weights[name]
        setattr(network.get_submodule(module), kind, nn.Parameter(value.to(dtype).contiguous(), requires_grad=False))
    if tied:
        network.get_output_embeddings().weight = network.get_input_embeddings().weight  # type: ignore[operator]
