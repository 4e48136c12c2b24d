"""What rows are between stages and after one: the prompts they refer to, their own keys and values, what was captured."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from codi_engine.core.rollout.attention import BLOCK, ROOM, PromptKV, round_up
from codi_engine.core.rollout.network import Network


@dataclass
class State:
    """Rows between stages: what each one owns.

    ``prompt`` row → prompt; ``keys``/``values`` per layer rows × kv heads × capacity × head_dim, from slot ``start`` on,
    ``used`` slots filled; ``last`` rows × width, the final-norm state at the last token.
    """

    prompt: np.ndarray
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    start: int
    used: int
    last: torch.Tensor

    @property
    def rows(self) -> int:
        return len(self.prompt)

    def select(self, index: np.ndarray) -> State:
        """Return the state with rows taken by ``index`` (repeats allowed); nothing is shared with the old one."""
        if len(index) == self.rows and np.array_equal(index, np.arange(self.rows)):
            return self
        take = torch.from_numpy(index).to(self.last.device)
        room = min(round_up(self.used, BLOCK) if self.used else 0, self.keys[0].shape[2])
        return State(
            self.prompt[index],
            [k[:, :, :room][take] for k in self.keys],
            [v[:, :, :room][take] for v in self.values],
            self.start,
            self.used,
            self.last[take],
        )

    def give_up(self) -> None:
        """Let go of keys and values; another state may have them."""
        self.keys, self.values = [], []

    def fork(self) -> State:
        """Return an independent copy."""
        return State(self.prompt.copy(), [k.clone() for k in self.keys], [v.clone() for v in self.values], self.start, self.used, self.last)


@dataclass
class StageResult:
    """Rows after a stage: their state, final-norm states (rows × S × width; of the last token alone where only that goes on), captures.

    ``cell_row`` maps each cell to its row; ``captured[(component, layer)]`` is rows × S × width, NaN at tokens that are not a row's
    own; ``fed`` counts the tokens that were.
    """

    state: State
    normed: torch.Tensor
    cell_row: np.ndarray
    fed: int
    captured: dict[tuple[str, int | None], torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """The prompts that rows refer to: their keys and values (None: none of them is shared), and their lengths in tokens."""

    kv: PromptKV | None
    lengths: np.ndarray
    slots: int
    most: int = 0  # own slots that a row will need, as far as that is known

    def room(self, needed: int, grain: int) -> int:
        """Return how many own slots rows are given that need so many now: some more, but no more than they ever need.

        Where slots come in grains, sums run over all of them: there it is a matter of ``needed`` alone.
        """
        if grain > 1:
            return round_up(needed, grain)
        return max(round_up(needed, grain), min(round_up(needed, ROOM), self.most))


@dataclass(frozen=True)
class Reach:
    """Of a stage on prompts whose keys and values are known: the first token of each cell that may differ from them.

    ``cells``: cell → offset; ``after``: the first offset that is needed after the last block.
    """

    cells: np.ndarray
    after: int


def empty_state(net: Network, prompt: np.ndarray, start: int) -> State:
    """Rows that own nothing yet."""
    info = net.info
    keys = [torch.zeros(len(prompt), info.kv_heads, 0, info.head_dim, device=net.device, dtype=net.dtype) for _ in net.blocks]
    last = torch.zeros(len(prompt), info.width, device=net.device, dtype=net.dtype)
    return State(prompt, keys, [k.clone() for k in keys], start, 0, last)


__all__ = ["Batch", "Reach", "StageResult", "State", "empty_state"]
