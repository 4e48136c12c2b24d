"""What the rollout is asked for and what it gives: edits, tasks, wants, observers, what was produced."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from codi_engine.core.rollout.sampling import Sampler
from codi_engine.core.sites import Phase, Site

#: (group, site, place, representative cells, values rows × width) → new values
Apply = Callable[[int, Site, int, Sequence[int], torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Edit:
    """One edit of one cell: where, and what makes it equal to another cell's.

    ``group`` names the intervention (edits of one group at one place are applied in one call);
    cells that share a row and have edits of equal ``signature`` go on sharing it. ``place`` None is every token of the phase
    from where it is reached.
    """

    site: Site
    place: int | None
    group: int
    signature: Hashable


@dataclass(frozen=True)
class Task:
    """One cell as the rollout sees it.

    ``prompt`` indexes the batch's prompts; ``edits`` are keyed by phase; ``gold`` and ``other`` are answers in tokens
    (after the forced prefix), empty when there is none; ``key`` seeds the cell's random numbers. ``latents``: how many latents
    are consumed before the answer begins (None: all).
    """

    prompt: int
    edits: Mapping[Phase, Sequence[Edit]] = field(default_factory=dict)
    gold: Sequence[int] = ()
    other: Sequence[int] = ()
    key: int = 0
    latents: int | None = None


@dataclass(frozen=True)
class Want:
    """What a rollout shall produce.

    ``captures`` maps (component, phase) to (layers, places): places are negative prompt positions, latent steps or
    answer indices; ``generate`` asks for text of at most ``max_new_tokens``; ``read`` for the forced reading of
    the answer's number; ``first`` for the logits at the first answer token; ``observers`` read states along the generated text.
    """

    captures: Mapping[tuple[str, Phase], tuple[tuple[int | None, ...], tuple[int, ...]]] = field(default_factory=dict)
    generate: bool = True
    read: bool = True
    first: bool = True
    max_new_tokens: int = 64
    prefix: Sequence[int] = ()
    sampler: Sampler | None = None
    reference_slice: bool = False
    observers: Sequence[Observer] = ()


class Observer(Protocol):
    """Reads states while a text comes into being: of its prompt, its latents and its generated tokens."""

    #: (component, layer) that are read
    sites: frozenset[tuple[str, int | None]]
    #: the prompt's last token only, or all of them
    whole_prompt: bool

    def begin(self, cells: int) -> None:
        """A batch of so many cells begins."""

    def see(self, phase: Phase, cells: np.ndarray, rows: np.ndarray, values: Mapping[tuple[str, int | None], torch.Tensor]) -> None:
        """Cells have passed S tokens: ``values`` are states × S × width, ``rows`` says which state is a cell's."""


@dataclass
class Produced:
    """What the cells of a batch produced, in the order of the tasks (see ``plugin.Outcome`` for the arrays)."""

    tokens: list[list[int]]
    first_logits: torch.Tensor
    number_logits: torch.Tensor
    gold_logprob: np.ndarray
    other_logprob: np.ndarray
    gold_logit: np.ndarray
    other_logit: np.ndarray
    captures: dict[tuple[str, int | None, Phase], torch.Tensor]
    rows: int = 0
    forwarded: int = 0
    #: cells: True where logits or captured values are not finite
    broken: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))
