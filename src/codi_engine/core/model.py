"""What the engine knows of a model: the adapter protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelInfo:
    """Shape of a model, known from its configuration alone.

    ``latents`` is K, the number of latent steps (0 for a plain causal LM); ``vocab_size`` is the width of the logits.
    """

    family: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocab_size: int
    latents: int
    max_positions: int | None
    parameters: int
    dtype: str
    device: str


@dataclass
class ModelAdapter:
    """A loaded model: an unmodified transformers causal LM, its tokenizer, and how its phases are made.

    Attributes
    ----------
    network: the ``transformers`` causal LM, in eval mode, on its device (``codi`` passes it with LoRA merged)
    encode_prompt: text → ids of the whole prompt, special tokens and ``bot`` included
    encode: text → ids without special tokens
    decode: ids → text; ids that are not ordinary text are dropped
    projection: c (rows × width) → z (rows × width), the latent loop's map (Coconut: c itself); None for a plain causal LM
    answer_start: ids fed before the first answer token (``[eot]`` or ``[eot, eos]``); empty for a plain causal LM
    answer_prefix: the words that stand before the number (``The answer is:``), empty when the model has none
    stop_ids: ids that end an answer
    banned_ids_from: ids ≥ this are never generated; None bans nothing. ``reference_slice`` uses the reference's own rule
    chat: text → text in the tokenizer's chat template, where it has one
    digest: sha256 over weights and configuration, for provenance and identity
    """

    info: ModelInfo
    network: Any
    encode_prompt: Callable[[str], list[int]]
    encode: Callable[[str], list[int]]
    decode: Callable[[Sequence[int]], str]
    projection: Callable[[torch.Tensor], torch.Tensor] | None = None
    answer_start: Sequence[int] = ()
    answer_prefix: str = ""
    stop_ids: Sequence[int] = ()
    banned_ids_from: int | None = None
    digest: str = ""
    report: Sequence[str] = field(default_factory=tuple)
    chat: Callable[[str], str] | None = None
