"""Tiny Coconut checkpoints as training saves them, and the method itself written down once more, one question at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from codi_engine.plugins.models.hf import quiet
from tests.support import tiny

MARKERS = ("<|start-latent|>", "<|end-latent|>", "<|latent|>")
#: base family → does it tie its output embedding
FAMILIES = {"gpt2": True, "llama": False, "llama-tied": True}


class Wrapper(nn.Module):
    """What training saves: the language model, and its input embedding under a second name."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_causallm = base
        self.embedding = base.get_input_embeddings()  # type: ignore[operator]


def write_tokenizer(folder: Path, bos: bool) -> int:
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
    size = write_tokenizer(base, bos=family != "gpt2")
    config = tiny.config(family.split("-")[0], size + padding, spread=0.2)
    config.tie_word_embeddings = FAMILIES[family]
    with quiet():
        config.save_pretrained(base)
        from transformers import AutoModelForCausalLM

        torch.manual_seed(3)
        network = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    return base, network, size


def write(folder: Path, family: str, padding: int = 0) -> tuple[Path, Path, Any]:
    """Write (checkpoint file, base) as training does after its latent stages; returns the trained network too."""
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


@dataclass
class Answered:
    thoughts: torch.Tensor  # K × width: what the latent positions consume
    last: torch.Tensor  # the state after the last thought
    logits: torch.Tensor  # at <|end-latent|>
    tokens: list[int]


Change = Callable[[torch.Tensor], torch.Tensor]


@torch.inference_mode()
def answer(
    network: Any, blocks: Any, ids: Sequence[int], end: int, latents: int, new: int, allowed: int, eos: int,
    thought: dict[int, Change] | None = None, block: dict[tuple[int, int], Change] | None = None,
) -> Answered:  # fmt: skip
    """Run the method on one prompt, which ends in <|start-latent|>: everything is computed again for every latent and token.

    ``thought`` changes what latent k consumes, ``block`` the output of block l at latent k (key (l, k)).
    """
    embed = network.get_input_embeddings()
    rows = embed(torch.tensor([list(ids)]))
    start = len(ids)
    handles = []
    for (layer, step), change in (block or {}).items():

        def hook(_: Any, __: Any, out: torch.Tensor, place: int = start + step, change: Change = change) -> torch.Tensor:
            if out.shape[1] <= place:
                return out
            out = out.clone()
            out[0, place] = change(out[0, place])
            return out

        handles.append(blocks[layer].register_forward_hook(hook))
    try:
        for step in range(latents):
            z = network(inputs_embeds=rows, output_hidden_states=True, use_cache=False).hidden_states[-1][:, -1:]
            if thought and step in thought:
                z = thought[step](z)
            rows = torch.cat([rows, z], 1)
        last = network(inputs_embeds=rows, output_hidden_states=True, use_cache=False).hidden_states[-1][0, -1]
        thoughts, tokens, feed = rows[0, start:], [], end
        first = torch.empty(0)
        for _ in range(new):
            rows = torch.cat([rows, embed(torch.tensor([[feed]]))], 1)
            logits = network(inputs_embeds=rows, use_cache=False).logits[0, -1]
            first = logits if not len(first) else first
            feed = int(logits[:allowed].argmax())
            tokens.append(feed)
            if feed == eos:
                break
    finally:
        for handle in handles:
            handle.remove()
    return Answered(thoughts, last, first, tokens)
