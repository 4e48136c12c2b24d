"""Tiny random Coconut checkpoints, as training saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from codi_engine.core.libraries import quiet
from codi_engine.testing.tiny import config

MARKERS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")
#: base family → does it tie its output embedding
FAMILIES = {"gpt2": True, "llama": False, "llama-tied": True}


class Wrapper(nn.Module):
    """What training saves: the language model, and its input embedding under a second name."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_causallm = base
        self.embedding = base.get_input_embeddings()  # type: ignore[operator]


def write_bpe_tokenizer(folder: Path, bos: bool) -> int:
    """Write a byte-level tokenizer in which numbers may take several tokens; returns its size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=["<eos>", "<bos>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([f"there are {n} apples and {n % 7} pears\n### {n}" for n in range(60)], trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<bos>" if bos else None)
    fast.save_pretrained(folder)
    return len(fast)


def write_base(folder: Path, family: str, padding: int = 0) -> tuple[Path, Any, int]:
    """Write a base (configuration and tokenizer); returns it, its random network and the tokenizer's size."""
    base = folder / "base"
    base.mkdir(parents=True)
    size = write_bpe_tokenizer(base, bos=family != "gpt2")
    settings = config(family.split("-")[0], size + padding, spread=0.2)
    settings.tie_word_embeddings = FAMILIES[family]
    with quiet():
        settings.save_pretrained(base)
        from transformers import AutoModelForCausalLM

        torch.manual_seed(3)
        network = AutoModelForCausalLM.from_config(settings).eval().requires_grad_(False)
    return base, network, size


def tiny_coconut(path: str | Path, family: str = "gpt2", padding: int = 0) -> tuple[Path, Path, Any]:
    """Write a random Coconut checkpoint as training saves it after its latent stages; returns (checkpoint file, base, network).

    Parameters
    ----------
    family: gpt2, llama, or llama-tied (with a tied output embedding)
    padding: rows of the base's vocabulary beyond its tokenizer
    """
    folder = Path(path)
    base, network, size = write_base(folder, family, padding)
    with quiet():
        network.resize_token_embeddings(size + 3, mean_resizing=False)
    generator = torch.Generator().manual_seed(4)
    for weight in (network.get_input_embeddings().weight, network.get_output_embeddings().weight):
        weight[size:] = 0.1 * torch.randn(3, weight.shape[1], generator=generator)
    for parameter in network.parameters():
        if parameter.ndim == 1:  # norms and biases that are 1 and 0 would hide a norm that is left out
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    saved = folder / "checkpoint_33"
    torch.save(Wrapper(network).state_dict(), saved)
    return saved, base, network
