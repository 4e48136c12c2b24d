"""What the experiment asks to capture, as the rollout and the store need it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.model import ModelInfo
from codi_engine.core.rollout.rollout import Produced
from codi_engine.core.rollout.sources import POSITIONS
from codi_engine.core.sites import LATENT_ONLY, Phase, Site, parse_site

Wanted = Mapping[tuple[str, Phase], tuple[tuple[int | None, ...], tuple[int, ...]]]


@dataclass(frozen=True)
class Capture:
    """One captured site: its layers and its places per phase, in the order in which they are stored.

    Arrays have dimensions cell × [layer] × step|position × width; ``latent_out`` counts the state at ``bot`` as step −1.
    """

    site: Site
    layers: tuple[int | None, ...]
    places: tuple[tuple[Phase, int], ...]

    @property
    def name(self) -> str:
        return str(self.site)

    @property
    def array(self) -> str:
        return f"activations/{self.name}/value"

    @property
    def dims(self) -> tuple[str, ...]:
        place = "step" if any(phase == "latent" for phase, _ in self.places) else "position"
        return ("cell", *(("layer",) if self.layered else ()), place, "width")

    @property
    def layered(self) -> bool:
        return self.site.layered and self.site.layer is None

    def coords(self) -> dict[str, list[int]]:
        place = self.dims[-2]
        steps = [-1 if place == "step" and phase == "prompt" else p for phase, p in self.places]
        layers = {"layer": [layer for layer in self.layers if layer is not None]} if self.layered else {}
        return {**layers, place: steps}


def parse_captures(texts: Sequence[str], info: ModelInfo, available: frozenset[str], longest: int, source: str, names: Sequence[str] = ()) -> list[Capture]:
    """Resolve the experiment's ``capture`` list against the model (``longest``: tokens of the longest prompt; ``names``: what errors call them)."""
    out = []
    for number, text in enumerate(texts):
        where = names[number] if names else f"{source}: capture[{number}]"
        site = parse_site(text, where, info.layers)
        if (site.component in LATENT_ONLY and not info.latents) or (site.phase == "latent" and not info.latents):
            raise UserError(f"{where}: '{text}' needs a model with latent steps; this one has none")
        if site.component not in available:
            raise UserError(f"{where}: this model has no '{site.component}'; {nearest(site.component, available)}")
        layers: tuple[int | None, ...] = (None,)
        if site.layered:
            layers = tuple(range(info.layers)) if site.layer is None else (site.layer,)
        out.append(Capture(site, layers, _places(site, info, longest, where)))
    names = [c.name for c in out]
    if len(set(names)) != len(names):
        raise UserError(f"{source}: capture: the same site is named twice")
    return out


def _places(site: Site, info: ModelInfo, longest: int, where: str) -> tuple[tuple[Phase, int], ...]:
    steps: tuple[tuple[Phase, int], ...] = tuple(("latent", k) for k in range(info.latents))
    if site.component == "logits":
        if site.phase not in (None, "answer") or site.index not in (None, (0,)):
            raise UserError(f"{where}: logits are kept at the first answer token; write logits@answer[0]")
        return (("answer", 0),)
    if site.phase is None:
        if site.component == "latent_out":
            return (("prompt", -1), *steps)
        return steps or (("prompt", -1),)
    if site.phase == "latent":
        chosen = site.index if site.index is not None else range(info.latents)
        if any(not 0 <= k < info.latents for k in chosen):
            raise UserError(f"{where}: step must be in 0..{info.latents - 1} for a model with {info.latents} latents; got {list(chosen)}")
        return tuple(("latent", k) for k in chosen)
    if site.phase == "prompt":
        chosen = site.index if site.index is not None else range(-longest, 0)
        if any(p >= 0 for p in chosen):
            raise UserError(f"{where}: prompt positions to capture count from the end: −1 is the last token")
        return tuple(("prompt", p) for p in sorted(chosen))
    return tuple(("answer", t) for t in (site.index or (0,)))


def merge(captures: Sequence[Capture], sources: Sequence[tuple[str, int | None, Phase, int]]) -> Wanted:
    """Return what the rollout shall keep for captures and for source values (component, layer, phase, place)."""
    layers: dict[tuple[str, Phase], dict[int | None, None]] = {}
    places: dict[tuple[str, Phase], set[int]] = {}
    items = [(c.site.component, layer, phase, place) for c in captures for layer in c.layers for phase, place in c.places]
    for component, layer, phase, place in [*items, *sources]:
        if component != "logits":
            layers.setdefault((component, phase), {})[layer] = None
            places.setdefault((component, phase), set()).add(place)
    return {key: (tuple(layers[key]), tuple(sorted(places[key]))) for key in layers}


def captured(capture: Capture, produced: Produced, wanted: Wanted, lengths: np.ndarray) -> np.ndarray:
    """Return cells × [layer] × place × width of one capture; positions before a prompt's first token are NaN."""
    if capture.site.component == "logits":
        return produced.first_logits[:, None].cpu().numpy()
    layers = []
    for layer in capture.layers:
        parts = [_value(produced, wanted, capture.site.component, layer, phase, p, lengths) for phase, p in capture.places]
        layers.append(np.stack(parts, 1))
    return np.stack(layers, 1) if capture.layered else layers[0]


def block(produced: Produced, wanted: Wanted, component: str, layer: int | None, phase: Phase, places: Sequence[int], lengths: np.ndarray) -> np.ndarray:
    """Return cells × places × width of source values."""
    return np.stack([_value(produced, wanted, component, layer, phase, p, lengths) for p in places], 1)


def _value(produced: Produced, wanted: Wanted, component: str, layer: int | None, phase: Phase, place: int, lengths: np.ndarray) -> np.ndarray:
    values: torch.Tensor = produced.captures[component, layer, phase]
    out = values[:, wanted[component, phase][1].index(place)].float().cpu().numpy()
    if phase == "prompt":
        out[lengths < -place] = np.nan
    return out


def position_block(place: int) -> range:
    """Return the block of prompt positions that is stored together with a place."""
    first = -((-place - 1) // POSITIONS + 1) * POSITIONS
    return range(first, first + POSITIONS)
