"""Tiny random models, written to disk the way real ones lie there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from codi_engine.core.libraries import quiet

WORDS = ["<eos>", "The", "answer", "is", ":", "there", "are", "apples", "and", "pears", "how", "many", "?", "."]
FAMILIES = ("gpt2", "llama", "qwen2", "gpt_neox")


def write_tokenizer(folder: Path, pad: bool = False) -> int:
    """Write a word-level tokenizer with the numbers 0 to 99; returns its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [*WORDS, *(["[PAD]"] if pad else []), *map(str, range(100)), "<unk>"]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace()])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(folder)
    return len(words)


def config(family: str, vocabulary: int, layers: int = 3, width: int = 32, heads: int = 4, spread: float = 0.2) -> Any:
    """Return a configuration whose random weights make edits matter."""
    from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, Qwen2Config

    shared = {"vocab_size": vocabulary, "initializer_range": spread, "eos_token_id": 0, "bos_token_id": None, "pad_token_id": None}
    if family == "gpt2":
        return GPT2Config(n_layer=layers, n_embd=width, n_head=heads, n_positions=256, **shared)
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads, "intermediate_size": 2 * width, "max_position_embeddings": 256}
    if family == "gpt_neox":
        return GPTNeoXConfig(**sizes, **shared)
    made = LlamaConfig if family == "llama" else Qwen2Config
    return made(num_key_value_heads=heads // 2, **sizes, **shared)


def network(family: str, vocabulary: int = 120, seed: int = 0, **sizes: Any) -> Any:
    """Return a random causal LM in eval mode."""
    from transformers import AutoModelForCausalLM

    with quiet():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(config(family, vocabulary, **sizes))
    return made.eval().requires_grad_(False)


def tiny_causal_lm(path: str | Path, family: str = "gpt2", seed: int = 0) -> Path:
    """Write a random causal LM (3 layers × 32) with its tokenizer; ``plugin: causal_lm`` loads it by this directory.

    Parameters
    ----------
    family: gpt2, llama, qwen2 or gpt_neox
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    size = write_tokenizer(folder)
    with quiet():
        network(family, size + 5, seed).save_pretrained(folder)  # real models pad their vocabulary too
    return folder


def tiny_codi(
    path: str | Path, family: str = "gpt2", r: int = 4, norm: bool = True, drop: str = "embedding", fmt: str = "safetensors", layers: int = 3
) -> tuple[Path, Path]:
    """Write a random CODI checkpoint as training saves it; returns (checkpoint, base), both below ``path``.

    The base is bf16, LoRA and projection are fp32, and one tied weight is left out, as in the published checkpoints.

    Parameters
    ----------
    family: gpt2, llama, qwen2 or gpt_neox
    r: rank of the adapters
    norm: does the projection end in a layer norm
    drop: which of the tied weights is left out: ``embedding``, ``head`` or nothing (``""``)
    fmt: ``safetensors``, or a ``.bin`` file
    """
    folder = Path(path)
    base, checkpoint = folder / "base", folder / "ckpt"
    base.mkdir(parents=True)
    checkpoint.mkdir()
    size = write_tokenizer(base)
    with quiet():
        config(family, size, layers).save_pretrained(base)
        net = network(family, size + 3, seed=1, spread=0.08, layers=layers)  # larger, and the recurrence amplifies rounding
    targets = ("c_attn", "c_proj", "c_fc") if family == "gpt2" else ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj", "gate_proj")
    state: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(2)
    for name, parameter in net.named_parameters(remove_duplicate=False):
        module, _, kind = name.rpartition(".")
        root = "codi.base_model.model."
        if module.rsplit(".", 1)[-1] not in targets:
            state[root + name] = parameter.detach().bfloat16().clone()
            continue
        state[f"{root}{module}.base_layer.{kind}"] = parameter.detach().bfloat16().clone()
        if kind == "weight":
            conv = type(net.get_submodule(module)).__name__ == "Conv1D"
            inside, outside = parameter.shape if conv else parameter.shape[::-1]
            state[f"{root}{module}.lora_A.default.weight"] = torch.randn(r, inside, generator=generator) * 0.1
            state[f"{root}{module}.lora_B.default.weight"] = torch.randn(outside, r, generator=generator) * 0.1
    state.update(_projection(32, 24, norm, generator))
    embedding = next(k for k in state if k.endswith(("wte.weight", "embed_tokens.weight")))
    state["codi.base_model.model.lm_head.weight"] = state[embedding].clone()
    if drop == "embedding":
        del state[embedding]
    elif drop == "head":
        del state["codi.base_model.model.lm_head.weight"]
    if fmt == "safetensors":
        save_file(state, checkpoint / "model.safetensors")
    else:
        torch.save(state, checkpoint / "pytorch_model.bin")
    return checkpoint, base


def _projection(width: int, inner: int, norm: bool, generator: torch.Generator) -> dict[str, torch.Tensor]:
    up, down = nn.Linear(width, inner), nn.Linear(inner, width)
    state = {"prj.1.weight": torch.randn(up.weight.shape, generator=generator) * 0.3, "prj.1.bias": torch.randn(inner, generator=generator) * 0.1}
    state |= {"prj.3.weight": torch.randn(down.weight.shape, generator=generator) * 0.3, "prj.3.bias": torch.randn(width, generator=generator) * 0.1}
    if norm:
        state |= {"prj.ln.weight": 1 + 0.1 * torch.randn(width, generator=generator), "prj.ln.bias": 0.1 * torch.randn(width, generator=generator)}
    return state
