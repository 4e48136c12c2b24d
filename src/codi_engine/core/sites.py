"""Sites: the addresses of hidden states, ``component.layer@phase[index]``, and the other names users know them by."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from codi_engine.core.axes import LONGEST_RANGE
from codi_engine.core.errors import UserError, nearest

Phase = Literal["prompt", "latent", "answer"]
PHASES: tuple[Phase, ...] = ("prompt", "latent", "answer")

#: components that exist once per layer
LAYERED = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "attn_z", "q", "k", "v", "mlp_act")
#: components that exist once per token
GLOBAL = ("embed", "final_norm", "latent_out", "latent_in", "logits")
COMPONENTS = LAYERED + GLOBAL
#: components whose last dimension is made of heads
HEADED = ("attn_z", "q", "k", "v")
#: components that exist only where the model thinks in latents
LATENT_ONLY = ("latent_out", "latent_in")

#: characters of a layer's number
LONGEST_NUMBER = 9
_ADDRESS = re.compile(r"(?P<component>[a-z_]+)(?:\.(?P<layer>-?\d+))?(?:@(?P<phase>[a-z]+)(?:\[(?P<index>[^\]]*)\])?)?\Z")
_TRANSFORMERLENS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "hook_in": "resid_pre",
    "hook_out": "resid_post",
    "attn.hook_z": "attn_z",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_out": "attn_out",
    "mlp.hook_post": "mlp_act",
    "mlp.hook_out": "mlp_out",
}
_TRANSFORMERLENS_GLOBAL = {"hook_embed": "embed", "ln_final.hook_normalized": "final_norm", "hook_unembed": "logits"}
_MODULE = re.compile(r"(?:.*\.)?(?:layers|h)[.\[](?P<layer>\d+)\]?(?:\.(?P<part>self_attn|attn|attention|mlp))?\Z")
_MODULE_PART = {None: "resid_post", "self_attn": "attn_out", "attn": "attn_out", "attention": "attn_out", "mlp": "mlp_out"}


@dataclass(frozen=True, order=True)
class Site:
    """One address. ``layer``, ``phase`` and ``index`` are None where the address leaves them open."""

    component: str
    layer: int | None = None
    phase: Phase | None = None
    index: tuple[int, ...] | None = None

    def __str__(self) -> str:
        text = self.component if self.layer is None else f"{self.component}.{self.layer}"
        if self.phase is not None:
            text += f"@{self.phase}"
            if self.index is not None:
                text += "[" + ",".join(map(str, self.index)) + "]"
        return text

    @property
    def layered(self) -> bool:
        return self.component in LAYERED

    @property
    def headed(self) -> bool:
        return self.component in HEADED

    def at(self, layer: int | None) -> Site:
        """Return the same site at another layer."""
        return replace(self, layer=layer)

    def entry(self, layers: int) -> int:
        """Return the boundary where an edit here first matters: −1 input, l before block l, ``layers`` after the last."""
        if self.component in ("embed", "latent_in"):
            return -1
        if self.component in ("final_norm", "latent_out", "logits"):
            return layers
        assert self.layer is not None
        return self.layer + 1 if self.component == "resid_post" else self.layer


def _alias(text: str) -> str:
    """Rewrite a TransformerLens hook name or a module path as an address; other text is returned as it is."""
    address, at, rest = text.partition("@")
    if address in _TRANSFORMERLENS_GLOBAL:
        return _TRANSFORMERLENS_GLOBAL[address] + at + rest
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", address)
    if match and match[2] in _TRANSFORMERLENS:
        return f"{_TRANSFORMERLENS[match[2]]}.{match[1]}{at}{rest}"
    if address.startswith("hook_") or address.startswith("attn.hook_") or address.startswith("mlp.hook_"):
        return _TRANSFORMERLENS.get(address, address) + at + rest
    match = _MODULE.fullmatch(address)
    if match:
        return f"{_MODULE_PART[match['part']]}.{match['layer']}{at}{rest}"
    return text


def parse_site(text: str, where: str = "site", layers: int | None = None) -> Site:
    """Read an address such as ``resid_post.8@latent[3]``, ``blocks.8.hook_resid_post`` or ``model.layers.8``.

    Parameters
    ----------
    text: the address
    where: file and field for the error message
    layers: the model's number of layers, to check the layer against (None: not checked)

    Raises
    ------
    UserError: unknown component or phase (the nearest ones are named), layer out of range, bad index
    """
    match = _ADDRESS.fullmatch(_alias(text.strip()))
    if match is None or match["component"] not in COMPONENTS:
        raise UserError(f"{where}: unknown site '{text}'; {nearest(_bare(text), COMPONENTS)}")
    phase = match["phase"]
    if phase == "bot":
        phase, match_index = "prompt", "-1"
    else:
        match_index = match["index"]
    if phase is not None and phase not in PHASES:
        raise UserError(f"{where}: unknown phase '{phase}' in '{text}'; {nearest(phase, PHASES)}")
    component = match["component"]
    layer = _parse_layer(match["layer"], where)
    if layer is not None and component in GLOBAL:
        raise UserError(f"{where}: '{component}' exists once per token, it has no layer; write '{component}'")
    if layer is not None and layers is not None:
        if not -layers <= layer < layers:
            raise UserError(f"{where}: layer must be in 0..{layers - 1} for a model with {layers} layers; got {layer}")
        layer %= layers
    return Site(component, layer, phase, _parse_index(match_index, text, where))


def _bare(text: str) -> str:
    return re.split(r"[.@\[]", text)[0]


def _parse_layer(layer: str | None, where: str) -> int | None:
    if layer is not None and len(layer) > LONGEST_NUMBER:  # int() itself refuses thousands of digits
        raise UserError(f"{where}: no model has a layer of {len(layer):,} digits; write a smaller number")
    return None if layer is None else int(layer)


def _parse_index(index: str | None, text: str, where: str) -> tuple[int, ...] | None:
    if index is None or index.strip() in ("", "all", ":"):
        return None
    try:
        if ":" in index:
            first, last = index.split(":")
            chosen = range(int(first), int(last))
            if chosen[LONGEST_RANGE:]:  # len() would not take every range
                raise UserError(f"{where}: '[{index}]' is a range of more than {LONGEST_RANGE:,} values; write a shorter one")
            if not chosen:
                raise UserError(f"{where}: '[{index}]' in '{text}' is an empty range; the second number must be larger, as in [0:6]")
            return tuple(chosen)
        return tuple(int(part) for part in index.split(","))
    except ValueError:
        raise UserError(f"{where}: '[{index}]' in '{text}' is not an index; write [3], [0,2], [0:6] or [all]") from None
