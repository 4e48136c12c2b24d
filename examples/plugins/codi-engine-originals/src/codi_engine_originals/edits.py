"""Hooks that fire where the studies' hooks fired: in the prefill too, one layer off, one step early.

CE-step 0 consumes bot (here ``prompt[-1]``); CE-step k ≥ 1 consumes z_{k−1} (here ``latent[k−1]``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Intervention, Options, Rows
from codi_engine.core.sites import Phase, Site


def _ce_steps(count: int, prefill: bool, latents: int, name: str) -> dict[Phase, list[int]]:
    """Return the places of CE-steps 0 … count − 1, and of the question's last token where the hook fires in the prefill."""
    if count > latents + 1:
        raise UserError(f"{name}: {count} CE-steps, but the model has {latents + 1} (bot and {latents} latents)")
    return {"prompt": [-2, -1] if prefill else [-1], "latent": list(range(count - 1))}


class CePatchOptions(Options):
    """``steps``: CE-steps 0 to N − 1 are patched. ``prefill``: the hook also fires on the question's last token, with CE-step 0's value.

    ``offset``: the source is hidden_states[L + offset]: 0 is what goes *into* block L, 1 what comes out of it, where the hook writes.
    ``self_patch``: take the prompt's own value, to see what the hook does by itself.
    """

    steps: int = Field(default=1, ge=1)
    prefill: bool = True
    offset: Literal[0, 1] = 0
    self_patch: bool = False


class CePatch(Intervention[CePatchOptions]):
    """Activation patching as it was hooked: hidden_states[L] of the clean run into the *output* of block L, from bot on.

    Use it at ``site: resid_post@bot`` with ``direction: denoise``.
    """

    name = "ce-patch"
    Options = CePatchOptions
    source: Literal["own", "partner", "donor", "mean", "mean_over_steps"] | None = "partner"
    gate_exempt = "hidden_states[L] is patched into the output of block L, and the hook fires in the prefill"

    def __init__(self, options: CePatchOptions) -> None:
        super().__init__(options)
        if options.self_patch:
            self.source = "own"

    def edits(self, phase: Phase, places: Sequence[int], latents: int) -> Mapping[Phase, Sequence[int]]:
        return _ce_steps(self.options.steps, self.options.prefill, latents, self.name)

    def source_at(self, site: Site, place: int) -> tuple[Site, int]:
        if site.component != "resid_post":
            raise UserError(f"{self.name}: its site is resid_post@bot; got {site.component}")
        read = Site("resid_pre" if self.options.offset == 0 else "resid_post", site.layer, site.phase)
        return read, -1 if site.phase == "prompt" else place

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.source is not None
        return rows.source.to(rows.values.dtype)

    def identity(self) -> bool:
        return self.options.self_patch and self.options.offset == 1 and not self.options.prefill


class CeZeroOptions(Options):
    """``ablated``: i sets CE-steps 0 to i − 1 to zero. ``prefill``: the hook also fires on the question's last token."""

    ablated: int = Field(default=1, ge=1)
    prefill: bool = True


class CeZero(Intervention[CeZeroOptions]):
    """Zero ablation of CE-steps 0 to i − 1, called the importance of position i: cumulative by construction.

    Use it at ``site: resid_post.8@bot`` with ``sweep: {ablated: [1, 2, 3, 4, 5]}``. The last latent is never ablated.
    """

    name = "ce-zero"
    Options = CeZeroOptions
    gate_exempt = "the hook fires at CE-steps 0 to i − 1, bot and latents, and in the prefill"

    def edits(self, phase: Phase, places: Sequence[int], latents: int) -> Mapping[Phase, Sequence[int]]:
        return _ce_steps(self.options.ablated, self.options.prefill, latents, self.name)

    def apply(self, rows: Rows) -> torch.Tensor:
        return torch.zeros_like(rows.values)


class EarlySwapOptions(Options):
    """``ct``: the state c_k that is swapped. ``donors``, ``self_donor``: as of ``resample`` (``self_donor``: an identity in the right slot)."""

    ct: int = Field(ge=0)
    donors: Literal["shared", "per_place"] = "shared"
    self_donor: bool = False


class EarlySwap(Intervention[EarlySwapOptions]):
    """Swap one step early: the donor's c_k goes into CE-step k, which produces c_k, in place of the step that consumes it.

    ``ct: 0`` puts prj(c_0) over bot's embedding (``site: latent_in``); ``ct: k`` puts c_k in place of c_{k−1} before the
    projection (``site: latent_out``). The right slot is the built-in ``resample`` at ``latent_in``, step k.
    """

    name = "early-swap"
    Options = EarlySwapOptions
    source = "donor"
    gate_exempt = "the donor's c_k replaces what CE-step k consumes, one step before its own slot"

    def edits(self, phase: Phase, places: Sequence[int], latents: int) -> Mapping[Phase, Sequence[int]]:
        ct = self.options.ct
        if ct > latents:
            raise UserError(f"{self.name}: ct {ct}: the model has c_0 to c_{latents}")
        return {"prompt": [-1]} if ct < 2 else {"latent": [ct - 2]}

    def source_at(self, site: Site, place: int) -> tuple[Site, int]:
        ct = self.options.ct
        wanted = "latent_in" if ct == 0 else "latent_out"
        if site.component != wanted:
            raise UserError(f"{self.name}: ct {ct} is swapped at site {wanted}; got {site.component}")
        return Site(wanted, None, "latent"), max(ct - 1, 0)

    def apply(self, rows: Rows) -> torch.Tensor:
        assert rows.source is not None
        return rows.source.to(rows.values.dtype)
