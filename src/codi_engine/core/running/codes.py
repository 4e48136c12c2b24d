"""Capturing the codes of sparse autoencoders while a text comes into being, reduced over its tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from codi_engine.core.axes import resolve_axis
from codi_engine.core.errors import UserError, nearest
from codi_engine.core.planning.features import resolve_features
from codi_engine.core.rollout.finite import all_finite
from codi_engine.core.sae import SAE
from codi_engine.core.saestore import SaeStore
from codi_engine.core.sites import COMPONENTS, LAYERED, Phase, parse_site

if TYPE_CHECKING:
    from codi_engine.core.experiment import CodeSpec
    from codi_engine.core.model import ModelInfo


@dataclass(frozen=True)
class CodeCapture:
    """What one such entry keeps: per layer its autoencoder's path and features; ``labels`` names them in stored order."""

    spec: CodeSpec
    component: str
    features: Mapping[int, tuple[int, ...]]

    @property
    def array(self) -> str:
        return f"activations/{self.spec.name}"

    @property
    def labels(self) -> list[str]:
        return [f"L{layer}-{i}" for layer, indices in self.features.items() for i in indices]


def resolve_codes(specs: Sequence[CodeSpec], info: ModelInfo, saes: SaeStore, source: str) -> list[CodeCapture]:
    """Resolve the entries against the model and the autoencoders' files.

    Raises
    ------
    UserError: unknown site or layer, a feature that an autoencoder does not have, one of another width or site
    """
    out = []
    for number, spec in enumerate(specs):
        where = f"{source}: capture[{number}]"
        site = parse_site(spec.site, f"{where}.site", info.layers)
        if site.component not in LAYERED or site.phase is not None or site.layer is not None:
            raise UserError(f"{where}.site: name a component that every layer has, such as resid_post; got '{spec.site}'")
        if spec.name in COMPONENTS:
            raise UserError(f"{where}.name: '{spec.name}' is a site's name; choose another")
        with _told(where):
            chosen = _features(spec, info, saes, where, source)
            for layer, indices in chosen.items():
                sae = checked(saes, spec.sae, site.component, layer, info.width, where)
                if max(indices) >= sae.features:
                    known = f"'{spec.sae}' has features 0 to {sae.features - 1} at layer {layer}; choose among them"
                    raise UserError(f"{where}.features: L{layer}-{max(indices)}: {known}")
        out.append(CodeCapture(spec, site.component, chosen))
    names = [c.spec.name for c in out]
    twice = next((n for n in names if names.count(n) > 1), None)
    if twice is not None:
        raise UserError(f"{source}: capture: two entries are called '{twice}'; give them a name: each")
    return out


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Name file and entry in errors that do not, which are those of an autoencoder's own file."""
    try:
        yield
    except UserError as error:
        raise error if where in str(error) else UserError(f"{where}: {error}") from None


def _features(spec: CodeSpec, info: ModelInfo, saes: SaeStore, where: str, source: str) -> dict[int, tuple[int, ...]]:
    """Layer → feature indices, both ascending."""
    if spec.features == "all":
        layers = [i for v in resolve_axis("layer", spec.layers, info.layers, f"{where}.layers".removeprefix(f"{source}: "), source) for i in v]
        return {layer: tuple(range(saes.get(spec.sae, layer, info.width).features)) for layer in sorted(set(layers))}
    if isinstance(spec.features, str) and not spec.features.startswith("L"):
        raise UserError(f"{where}.features: '{spec.features}': write all, a list of labels (L2-17) or {{from: features.csv}}")
    found: dict[int, set[int]] = {}
    for feature in resolve_features(spec.features, f"{where}.features"):
        if feature.layer >= info.layers:
            raise UserError(f"{where}.features: {feature.label}: the model has layers 0 to {info.layers - 1}")
        found.setdefault(feature.layer, set()).add(feature.index)
    if not found:
        raise UserError(f"{where}.features: names none; write all, or leave the entry out")
    return {layer: tuple(sorted(found[layer])) for layer in sorted(found)}


def checked(saes: SaeStore, path: str, component: str, layer: int | None, width: int, where: str) -> SAE:
    """Return an autoencoder after checking that it was trained on the states of this site, where its file says so."""
    sae = saes.get(path, layer, width)
    if sae.site is not None and (stated := parse_site(sae.site)).layered:
        here = stated.component if layer is None else f"{stated.component}.{stated.layer}"
        if here != (component if layer is None else f"{component}.{layer}"):
            raise UserError(f"{where}: '{path}' reads {sae.site}, not {component}.{layer}; {nearest(component, [stated.component])}")
    return sae


class CodeReader:
    """Collects the codes of a batch's cells (an observer of the rollout)."""

    def __init__(self, capture: CodeCapture, saes: SaeStore, device: torch.device) -> None:
        self.capture, self.saes, self.device = capture, saes, device
        self.sites: frozenset[tuple[str, int | None]] = frozenset((capture.component, layer) for layer in capture.features)
        self.whole_prompt = capture.spec.at == "all"
        self.kept: dict[int, torch.Tensor] = {}
        self.count = np.zeros(0)
        #: cells whose codes are not finite; known after :meth:`codes`
        self.broken = np.zeros(0, bool)

    def begin(self, cells: int) -> None:
        self.kept, self.count, self.broken = {}, np.zeros(cells), np.zeros(cells, bool)

    def see(self, phase: Phase, cells: np.ndarray, rows: np.ndarray, values: Mapping[tuple[str, int | None], torch.Tensor]) -> None:
        """Take in the tokens that cells have just passed."""
        reduce = self.capture.spec.reduce
        index, row = torch.from_numpy(cells).to(self.device), torch.from_numpy(rows).to(self.device)
        tokens = 1
        for layer in self.capture.features:
            states = values[self.capture.component, layer]
            if reduce == "last" or (phase == "prompt" and not self.whole_prompt):
                states = states[:, -1:]
            tokens = states.shape[1]
            if reduce == "last":
                self._at(layer, states.shape[-1])[index] = states[row, 0].float()
                continue
            codes = self._encode(layer, states.reshape(-1, states.shape[-1])).view(len(states), tokens, -1)
            kept = self._at(layer, codes.shape[-1])
            if reduce == "mean":
                kept[index] += codes.sum(1)[row]
            else:
                kept[index] = torch.maximum(kept[index], codes.amax(1)[row])
        self.count[cells] += tokens

    def _at(self, layer: int, width: int) -> torch.Tensor:
        if layer not in self.kept:
            start = -torch.inf if self.capture.spec.reduce == "max" else 0.0
            self.kept[layer] = torch.full((len(self.count), width), start, device=self.device)
        return self.kept[layer]

    def _encode(self, layer: int, states: torch.Tensor) -> torch.Tensor:
        sae, indices = self.saes.get(self.capture.spec.sae, layer), self.capture.features[layer]
        return sae.encode(states, None if len(indices) == sae.features else indices)

    def codes(self) -> np.ndarray:
        """Return cells × features (float32).

        Raises
        ------
        RuntimeError: a cell of which no token was seen
        """
        if not (self.count > 0).all():
            raise RuntimeError(f"{self.capture.spec.name}: {int((self.count == 0).sum())} cells passed no token")
        parts = []
        for layer in self.capture.features:
            kept = self.kept[layer]
            if self.capture.spec.reduce == "last":
                kept = self._encode(layer, kept)
            elif self.capture.spec.reduce == "mean":
                kept = kept / torch.from_numpy(self.count).to(kept)[:, None]
            self.broken |= ~all_finite(kept).cpu().numpy()
            parts.append(kept.cpu().numpy())
        return np.concatenate(parts, 1)
