"""The two models that the studies really ran: a loop that feeds five latents, and a flat prompt with pad tokens for latents."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from pydantic import Field

from codi_engine.core.model import ModelAdapter, ModelInfo
from codi_engine.core.plugin import Model, Options
from codi_engine.plugins.models.codi import Codi, CodiOptions, LowRank

#: names of attention modules
_ATTENTION = {"attn", "self_attn", "attention"}


class CeCodiOptions(CodiOptions):
    """As ``codi``, with ``latents``: 5 by default. ``eot_times``: how often eot is fed before the answer (2 in the ablated runs of one study)."""

    latents: int = Field(default=5, ge=1, le=1000)
    eot_times: Literal[1, 2] = 1


class CeCodi(Model[CeCodiOptions]):
    """A CODI model in the loop of the studies: six forwards of which the first consumes bot, so that five latents are fed.

    The last state, c_5, is computed and fed to nothing. The question is tokenised as it is written: spaces are neither stripped nor joined.
    """

    name = "ce-codi"
    Options = CeCodiOptions

    def __init__(self, options: CeCodiOptions) -> None:
        super().__init__(options)
        self._codi = Codi(CodiOptions(**options.model_dump(exclude={"eot_times"})))

    def describe(self) -> ModelInfo:
        return self._codi.describe()

    def load(self) -> ModelAdapter:
        adapter, times = self._codi.load(), self.options.eot_times
        return replace(
            adapter, encode_prompt=_unstripped(adapter, 1 if self.options.remove_eos else 2), answer_start=tuple(adapter.answer_start) * times,
            digest=_digest("ce-codi", times, adapter.digest), report=(*adapter.report, f"eot is fed {'once' if times == 1 else 'twice'}"),
        )  # fmt: skip


def _unstripped(adapter: ModelAdapter, after: int) -> Callable[[str], list[int]]:
    """Return text → ids of a prompt whose text is taken as it is (``after``: special tokens at its end)."""
    empty = adapter.encode_prompt("")
    before, end = empty[:-after], empty[-after:]
    return lambda text: [*before, *adapter.encode(text), *end]


class FlatPadOptions(Options):
    """``checkpoint``, ``base``, ``dtype``, ``device``, ``lora_r``, ``answer_prefix``: as of ``codi``. ``pads``: pad tokens in the place of latents.

    ``lora_alpha``: 16, half of what checkpoints were trained with. ``mlp_lora``: false leaves the LoRA of MLP layers out.
    """

    checkpoint: str
    base: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    lora_r: int = Field(default=128, ge=1)
    lora_alpha: float = Field(default=16.0, gt=0.0)
    mlp_lora: bool = False
    pads: int = Field(default=5, ge=0)
    answer_prefix: str = "The answer is:"


class FlatPad(Model[FlatPadOptions]):
    """A CODI checkpoint run as one flat forward: question (no BOS), bot, pad tokens, eot. No latent is made, nothing is recurrent.

    "Latent i" of five is prompt position i − 6, eot is position −1; the first answer token is predicted there.
    """

    name = "flat-pad"
    Options = FlatPadOptions

    def __init__(self, options: FlatPadOptions) -> None:
        super().__init__(options)
        shared = options.model_dump(exclude={"mlp_lora", "pads"})
        self._codi = Codi(CodiOptions(**shared, merge=False))

    def describe(self) -> ModelInfo:
        return replace(self._codi.describe(), latents=0)

    def load(self) -> ModelAdapter:
        adapter, options = self._codi.load(), self.options
        dropped = 0 if options.mlp_lora else _drop_mlp_lora(adapter)
        bot, eot = adapter.encode_prompt("")[-1], adapter.answer_start[0]
        pad = bot - 1
        return replace(
            adapter, info=replace(adapter.info, latents=0), projection=None, answer_start=(),
            encode_prompt=lambda text: [*adapter.encode(text), bot, *[pad] * options.pads, eot],
            digest=_digest("flat-pad", options.pads, options.mlp_lora, adapter.digest),
            report=(*adapter.report, f"{dropped} MLP layers without their LoRA; {options.pads} pad tokens, no projection"),
        )  # fmt: skip


def _drop_mlp_lora(adapter: ModelAdapter) -> int:
    """Take the LoRA branch off every layer that is not in an attention module; return how many."""
    branched = [(name, module) for name, module in adapter.network.named_modules() if isinstance(module, LowRank)]
    found = [(name, module) for name, module in branched if not _ATTENTION & set(name.split("."))]
    for name, module in found:
        parent, _, leaf = name.rpartition(".")
        setattr(adapter.network.get_submodule(parent), leaf, module.base)
    return len(found)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()
