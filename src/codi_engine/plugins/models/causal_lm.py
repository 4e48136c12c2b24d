"""Any transformers causal LM: no latents, a prompt and an answer."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from codi_engine.core.errors import UserError
from codi_engine.core.libraries import quiet
from codi_engine.core.model import ModelAdapter, ModelInfo
from codi_engine.core.plugin import Model, Options
from codi_engine.core.tensorfiles import check_torch
from codi_engine.plugins.models.codi import Codi, CodiOptions
from codi_engine.plugins.models.hf import DTYPES, describe, find, read_config, read_tokenizer, resolve_device, stop_ids, texts_of
from codi_engine.plugins.models.weights import check_header, configured, file_digest


class CausalLMOptions(Options):
    """``path``: directory or Hub id; ``demo`` is the packaged CODI model as its own teacher, which writes its steps.

    ``answer_prefix``: words after which the answer's number is read (none: right away).
    ``dtype``: float32, bfloat16 or float16. ``device``: ``auto``, cpu, cuda, cuda:1 … ``tokenizer``: another directory or Hub id.
    ``revision``: of the Hub. ``trust_remote_code``: run the repository's own code.
    """

    path: str
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    answer_prefix: str = ""
    tokenizer: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False


class CausalLM(Model[CausalLMOptions]):
    """A transformers causal language model (GPT-2, LLaMA, Qwen, Mistral, GPT-NeoX and the like)."""

    name = "causal_lm"
    Options = CausalLMOptions

    def _config(self) -> Any:
        options = self.options
        return read_config(options.path, "model.path", revision=options.revision, trusted=options.trust_remote_code)

    def describe(self) -> ModelInfo:
        if _is_demo(self.options.path):
            return replace(_demo(self.options).describe(), latents=0)
        return describe(self._config(), 0, self.options.dtype, resolve_device(self.options.device))

    def files(self) -> dict[str, Path]:
        options = self.options
        if _is_demo(options.path):
            return _demo(options).files()
        found = texts_of(find(options.path, "model.path"), options.revision)
        folder = next((path.parent for path in found.values()), Path(options.path).expanduser())
        found |= {path.name: path for pattern in ("*.safetensors", "*.bin") for path in sorted(folder.glob(pattern))}
        return found if options.tokenizer is None else {**found, **texts_of(find(options.tokenizer, "model.tokenizer"), options.revision, "tokenizer/")}

    def load(self) -> ModelAdapter:
        if _is_demo(self.options.path):
            return _teacher(self.options)
        options, config = self.options, self._config()
        device = resolve_device(options.device)
        tokenizer = read_tokenizer(options.tokenizer or options.path, "model.path", revision=options.revision, trusted=options.trust_remote_code)
        network = self._network(device)
        rows = network.get_input_embeddings().weight.shape[0]
        if max(tokenizer.get_vocab().values()) >= rows:
            raise UserError(f"model.path: tokenizer mismatch: it has {len(tokenizer):,} tokens, the model {rows:,} embeddings")
        generation = getattr(network, "generation_config", None)
        stops = stop_ids(config, tokenizer.eos_token_id, getattr(generation, "eos_token_id", None))
        info = describe(network.config, 0, options.dtype, device)
        return ModelAdapter(
            info=info, network=network, encode_prompt=lambda text: list(tokenizer(text)["input_ids"]),
            encode=lambda text: list(tokenizer(text, add_special_tokens=False)["input_ids"]),
            decode=lambda ids: str(tokenizer.decode([i for i in ids if i < len(tokenizer)], skip_special_tokens=True)),
            answer_prefix=options.answer_prefix, stop_ids=stops, banned_ids_from=None if rows == len(tokenizer) else len(tokenizer),
            digest=self._digest(config), report=(f"{info.parameters:,} parameters, {info.family}",),
            chat=_chat(tokenizer),
        )  # fmt: skip

    def _network(self, device: str) -> Any:
        from transformers import AutoModelForCausalLM

        options = self.options
        place = find(options.path, "model.path")
        for file in sorted(Path(place).iterdir()) if Path(place).is_dir() else ():
            if file.suffix == ".safetensors":
                check_header(file, "model.path")
            elif file.suffix in (".bin", ".pt", ".pth"):
                check_torch(file, "model.path")
        with quiet():
            try:
                network, loaded = AutoModelForCausalLM.from_pretrained(
                    place, dtype=DTYPES[options.dtype], revision=options.revision,
                    trust_remote_code=options.trust_remote_code, output_loading_info=True,
                )  # fmt: skip
            except Exception as error:  # transformers raises many types for damaged or missing weights
                raise UserError(f"model.path: '{options.path}' cannot be loaded: {str(error).strip().splitlines()[0][:160]}") from None
        wrong = [
            f"{len(loaded[k])} {k.replace('_keys', '')} keys: {', '.join(map(str, list(loaded[k])[:8]))}"
            for k in ("missing_keys", "unexpected_keys", "mismatched_keys")
            if loaded.get(k)
        ]
        if wrong:
            raise UserError(f"model.path: '{options.path}' does not fit its config.json.\n{'; '.join(wrong)}")
        network.requires_grad_(False)
        return network.to(torch.device(device)).eval()

    def _digest(self, config: Any) -> str:
        place = Path(find(self.options.path, "model.path"))
        labels = [configured(config), self.options.model_dump(mode="json", exclude={"device", "path"})]
        if not place.is_dir():
            return file_digest(Path("/dev/null"), labels, self.options.path, getattr(config, "_commit_hash", None))
        files = sorted([*place.glob("*.safetensors"), *place.glob("*.bin")])
        return file_digest(Path("/dev/null"), labels, [file_digest(f) for f in files])


def _is_demo(path: str) -> bool:
    return path == "demo" and not Path(path).exists()


def _demo(options: CausalLMOptions) -> Codi:
    for key in ("tokenizer", "revision"):
        if getattr(options, key) is not None:
            raise UserError(f"model.{key}: does not apply to path: demo, which has its own")
    return Codi(CodiOptions(checkpoint="demo", dtype=options.dtype, device=options.device))


def _teacher(options: CausalLMOptions) -> ModelAdapter:
    """Return the packaged CODI model without bot, latents and eot: question in, written steps and answer out."""
    adapter = _demo(options).load()
    return replace(
        adapter, info=replace(adapter.info, latents=0), encode_prompt=lambda text: adapter.encode(text.strip().replace("  ", " ")),
        projection=None, answer_start=(), answer_prefix=options.answer_prefix,
        digest=hashlib.sha256(f"teacher {options.answer_prefix} {adapter.digest}".encode()).hexdigest(),
        report=(*adapter.report, "as a plain language model: no bot, latents or eot"),
    )  # fmt: skip


def _chat(tokenizer: Any) -> Any:
    """Return text → text through the tokenizer's chat template, or None when it has none."""
    if not getattr(tokenizer, "chat_template", None):
        return None

    def chat(text: str) -> str:
        messages = [{"role": "user", "content": text}]
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))

    return chat
