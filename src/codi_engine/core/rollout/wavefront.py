"""One stage of the rollout: S tokens of every row through all blocks, rows splitting at the layer where edits differ.

A stage begins with one row per distinct state. At each boundary between blocks the cells whose edits first differ there
get rows of their own; up to there they were one row and were computed once. Boundaries: −1 the input vector, l before
block l (edits inside block l and of ``resid_pre.l``, ``resid_post.l−1``), ``layers`` after the last block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from codi_engine.core.rollout.accounting import Account, Missed
from codi_engine.core.rollout.attention import BLOCK, MIN_ROWS, Context, PromptKV, Rectangle, round_up, using
from codi_engine.core.rollout.network import Network, select_tokens
from codi_engine.core.sites import Site

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

    def fork(self) -> State:
        """Return an independent copy."""
        return State(self.prompt.copy(), [k.clone() for k in self.keys], [v.clone() for v in self.values], self.start, self.used, self.last)


@dataclass
class StageResult:
    """Rows after a stage: their state, final-norm states of all S tokens (rows × S × width), and captured values.

    ``cell_row`` maps each cell to its row; ``captured[(component, layer)]`` is rows × S × width.
    """

    state: State
    normed: torch.Tensor
    cell_row: np.ndarray
    captured: dict[tuple[str, int | None], torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """The prompts that rows refer to: their keys and values, and their lengths in tokens."""

    kv: PromptKV | None
    lengths: np.ndarray
    slots: int


class Stage:
    """One forward of S tokens per row. Use :func:`run_stage`."""

    def __init__(
        self,
        net: Network,
        batch: Batch,
        state: State,
        inputs: torch.Tensor,
        cell_row: np.ndarray,
        edits: Mapping[int, Sequence[tuple[int, Edit]]],
        capture: frozenset[tuple[str, int | None]],
        apply: Apply,
        last_component: str | None,
        keep: bool = True,
        consume: bool = False,
    ) -> None:
        self.net, self.batch, self.parent = net, batch, state
        self.tokens = inputs.shape[1]
        self.hidden = inputs  # rows × S × width
        self.cell_row = cell_row.copy()
        self.origin = np.arange(state.rows)  # row → parent row
        self.capture, self.apply, self.last_component = capture, apply, last_component
        self.keep, self.consume = keep, consume
        self.captured: dict[tuple[str, int | None], tuple[torch.Tensor, int]] = {}
        self.splits: list[np.ndarray] = []  # per split, new row → old row
        self.layers = len(net.blocks)
        self.account = Account(edits, cell_row)
        self.schedule = self._schedule(edits)
        self.pending: dict[str, list[tuple[np.ndarray, int, Edit, list[int]]]] = {}

    def _schedule(self, edits: Mapping[int, Sequence[tuple[int, Edit]]]) -> dict[int, dict[int, list[tuple[int, Edit]]]]:
        """cell → [(token offset, edit)] becomes boundary → cell → [(token offset, edit)]."""
        schedule: dict[int, dict[int, list[tuple[int, Edit]]]] = defaultdict(dict)
        for cell, items in edits.items():
            for offset, edit in items:
                schedule[edit.site.entry(self.layers)].setdefault(cell, []).append((offset, edit))
        return schedule

    # ------------------------------------------------------------------------------------------ running

    def run(self) -> StageResult:
        net, state = self.net, self.parent
        self._split(-1)
        self.hidden = self._touch("embed", None, self._touch("latent_in", None, self.hidden))
        rows = len(self.origin)
        count = rows * self.tokens
        entered, kwargs = net.enter(self._pack(self.hidden), self._positions())
        self.hidden = entered[0, :count].view(rows, self.tokens, -1)
        padded = entered.shape[1]
        layer_kwargs = kwargs
        new_kv: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        rectangle = self._rectangle()
        base_rows, base_splits = rows, len(self.splits)
        for layer in range(self.layers):
            if self._split(layer):
                index = self._token_index(base_splits, base_rows)
                layer_kwargs = select_tokens(kwargs, index, padded)
                rectangle = self._rectangle()
            self.hidden = self._touch("resid_pre", layer, self._touch("resid_post", layer - 1, self.hidden))
            context = self._context(layer, rectangle)
            with using(context):
                out = net.block(layer, self._pack(self.hidden), layer_kwargs, self._handlers(layer), self.hidden.shape[0] * self.tokens)
            self.hidden = out[0, : len(self.origin) * self.tokens].view(len(self.origin), self.tokens, -1)
            if self.keep:
                new_kv.append((context.own_keys, context.own_values, len(self.splits)))
        self._split(self.layers)
        self.hidden = self._touch("resid_post", self.layers - 1, self.hidden)
        normed = net.normalise(self._pack(self.hidden))[0, : len(self.origin) * self.tokens].view(self.hidden.shape)
        normed = self._touch("final_norm", None, normed)
        if self.last_component is not None:
            normed = self._touch(self.last_component, None, normed)
        return self._result(state, normed, new_kv)

    def _result(self, state: State, normed: torch.Tensor, new_kv: list[tuple[torch.Tensor, torch.Tensor, int]]) -> StageResult:
        keys, values = [], []
        for k, v, stamp in new_kv:
            index = self._since(stamp)
            keys.append(k if index is None else k[index])
            values.append(v if index is None else v[index])
        captured = {}
        for key, (tensor, stamp) in self.captured.items():
            index = self._since(stamp)
            captured[key] = tensor if index is None else tensor[index]
        after = State(state.prompt[self.origin], keys, values, state.start, state.used + self.tokens, normed[:, -1])
        return StageResult(after, normed, self.cell_row, captured)

    def _since(self, stamp: int) -> torch.Tensor | None:
        """Compose the splits made after ``stamp``: final row → row then; None when there were none."""
        if stamp == len(self.splits):
            return None
        index = self.splits[-1]
        for earlier in reversed(self.splits[stamp:-1]):
            index = earlier[index]
        return torch.from_numpy(index).to(self.hidden.device)

    def _token_index(self, stamp: int, base_rows: int) -> torch.Tensor:
        """Packed token (padding included) → packed token when the blocks were entered."""
        rows = self._since(stamp)
        assert rows is not None
        tokens = (rows[:, None] * self.tokens + torch.arange(self.tokens, device=rows.device)).reshape(-1)
        extra = -len(tokens) % self.net.quantum
        return torch.cat([tokens, tokens.new_zeros(extra)]) if extra else tokens

    # ------------------------------------------------------------------------------------------- pieces

    def _pack(self, hidden: torch.Tensor) -> torch.Tensor:
        """Rows × S × width → 1 × N × width, N a multiple of the quantum."""
        flat = hidden.reshape(-1, hidden.shape[-1])
        extra = -flat.shape[0] % self.net.quantum
        return (torch.cat([flat, flat.new_zeros(extra, flat.shape[1])]) if extra else flat)[None]

    def _positions(self) -> torch.Tensor:
        prompt = self.parent.prompt[self.origin]
        first = self.batch.lengths[prompt] + (self.parent.start + self.parent.used - self.batch.slots)
        positions = np.maximum(first[:, None] + np.arange(self.tokens), 0).reshape(-1)
        extra = -len(positions) % self.net.quantum
        return torch.from_numpy(np.pad(positions, (0, extra)))[None].to(self.hidden.device)

    def _rectangle(self) -> Rectangle | None:
        kv = self.batch.kv
        if kv is None or kv.slots == 0:
            return None
        group = self.net.info.heads // self.net.info.kv_heads
        multiple = 1 if (self.tokens * group) % MIN_ROWS == 0 else MIN_ROWS
        return Rectangle.of(self.parent.prompt[self.origin], kv.valid.shape[0], multiple, self.hidden.device)

    def _context(self, layer: int, rectangle: Rectangle | None) -> Context:
        state, rows = self.parent, len(self.origin)
        room = round_up(state.used + self.tokens, BLOCK)
        own_k, own_v = state.keys[layer], state.values[layer]
        same = rows == state.rows and np.array_equal(self.origin, np.arange(rows))
        if not same:
            take = torch.from_numpy(self.origin).to(own_k.device)
            own_k, own_v = own_k[:, :, : min(room, own_k.shape[2])][take], own_v[:, :, : min(room, own_v.shape[2])][take]
        if own_k.shape[2] < room:
            grow = (0, 0, 0, room - own_k.shape[2])
            own_k, own_v = torch.nn.functional.pad(own_k, grow), torch.nn.functional.pad(own_v, grow)
        if self.consume:
            state.keys[layer] = state.values[layer] = own_k.new_empty(0)
        kv = self.batch.kv if rectangle is not None else None
        return Context(
            rows, self.tokens, own_k[:, :, :room], own_v[:, :, :room], state.used, self._own_mask(room),
            kv.keys[layer] if kv else None, kv.values[layer] if kv else None, kv.valid if kv else None, rectangle,
        )  # fmt: skip

    def _own_mask(self, room: int) -> torch.Tensor:
        """(rows | 1) × S × room: causal, and no padding of the prompt; a padding token sees itself alone."""
        state, device = self.parent, self.hidden.device
        query = torch.arange(self.tokens, device=device)[:, None] + state.used
        slot = torch.arange(room, device=device)[None]
        causal = slot <= query
        if state.start >= self.batch.slots:
            return causal[None]
        first = torch.from_numpy(self.batch.slots - state.start - self.batch.lengths[state.prompt[self.origin]]).to(device)
        return (causal[None] & (slot[None] >= first[:, None, None])) | (slot == query)[None]

    # -------------------------------------------------------------------------------- splits and edits

    def _split(self, boundary: int) -> bool:
        """Give cells with edits at this boundary rows of their own; return True when rows changed."""
        due = self.schedule.get(boundary)
        if self.pending:
            self.account.miss("the model passed its site", self.pending)
        if not due:
            return False
        names: dict[Hashable, int] = {None: 0}
        code = np.zeros(len(self.cell_row), np.int64)
        for cell, items in due.items():
            signature = tuple((offset, edit.site, edit.signature) for offset, edit in items)
            code[cell] = names.setdefault(signature, len(names))
        live = self.cell_row >= 0
        key = self.cell_row[live].astype(np.int64) * len(names) + code[live]
        unique, first, inverse = np.unique(key, return_index=True, return_inverse=True)
        parent = unique // len(names)
        changed = len(parent) != len(self.origin) or not np.array_equal(parent, np.arange(len(self.origin)))
        self.cell_row[live] = inverse
        if changed:
            self.hidden = self.hidden[torch.from_numpy(parent).to(self.hidden.device)]
            self.origin = self.origin[parent]
            self.splits.append(parent)
        self._queue(due, np.flatnonzero(live)[first])
        return changed

    def _queue(self, due: Mapping[int, list[tuple[int, Edit]]], representative: np.ndarray) -> None:
        """Group the edits of this boundary by component, place and intervention, for one call each."""
        groups: dict[tuple[Site, int, int | None, int, int], tuple[list[int], list[int], Edit]] = {}
        for row, cell in enumerate(representative.tolist()):
            for order, (offset, edit) in enumerate(due.get(cell, ())):
                rows, cells, _ = groups.setdefault((edit.site, offset, edit.place, edit.group, order), ([], [], edit))
                rows.append(row)
                cells.append(cell)
        for (site, offset, _, _, _), (rows, cells, edit) in groups.items():
            name = site.component if not site.layered else f"{site.component}.{site.layer}"
            self.pending.setdefault(name, []).append((np.array(rows), offset, edit, cells))

    def _touch(self, component: str, layer: int | None, values: torch.Tensor) -> torch.Tensor:
        """Edit and capture rows × S × width at a site between blocks."""
        if layer is not None and layer < 0:
            return values
        new = self._edited(component, layer, values.reshape(-1, values.shape[-1]))
        values = values if new is None else new.view(values.shape)
        if (component, layer) in self.capture:
            self.captured[component, layer] = (values.clone(), len(self.splits))
        return values

    def _edited(self, component: str, layer: int | None, flat: torch.Tensor) -> torch.Tensor | None:
        """Apply the pending edits of a site to tokens × width; None when there are none."""
        items = self.pending.pop(component if layer is None else f"{component}.{layer}", None)
        if not items:
            return None
        out = flat.clone()
        for rows, offset, edit, cells in items:
            index = torch.from_numpy(rows * self.tokens + offset).to(out.device)
            assert edit.place is not None  # open edits are placed before a stage begins
            out[index] = self.apply(edit.group, edit.site, edit.place, cells, out[index])
            self.account.add(edit, rows, len(self.origin), self.cell_row)
        return out

    def _handlers(self, layer: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor | None]]:
        """Handlers for the sites inside a block that have edits or captures."""
        names = {name.split(".")[0] for name in self.pending if name.endswith(f".{layer}")}
        names |= {component for component, at in self.capture if at == layer}
        names -= {"resid_pre", "resid_post"}

        def handler(component: str) -> Callable[[torch.Tensor], torch.Tensor | None]:
            def handle(flat: torch.Tensor) -> torch.Tensor | None:
                new = self._edited(component, layer, flat)
                if (component, layer) in self.capture:
                    kept = (flat if new is None else new).clone().view(-1, self.tokens, flat.shape[-1])
                    self.captured[component, layer] = (kept, len(self.splits))
                return new

            return handle

        return {name: handler(name) for name in sorted(names)}


def run_stage(
    net: Network,
    batch: Batch,
    state: State,
    inputs: torch.Tensor,
    cell_row: np.ndarray,
    apply: Apply,
    edits: Mapping[int, Sequence[tuple[int, Edit]]] | None = None,
    capture: frozenset[tuple[str, int | None]] = frozenset(),
    last_component: str | None = None,
    keep: bool = True,
    consume: bool = False,
) -> StageResult:
    """Feed S tokens to every row.

    Parameters
    ----------
    inputs: rows × S × width input vectors (token embeddings or latents)
    cell_row: cell → row, −1 for cells that take no part
    edits: cell → (token offset, edit) of this stage
    capture: (component, layer) to keep
    last_component: ``latent_out`` where the last token's final state is one
    keep: False where no stage follows: the rows' keys and values are dropped layer by layer
    consume: True where the state is not used again: its keys and values are freed layer by layer

    The state is consumed: its keys and values may be written in place.
    """
    stage = Stage(net, batch, state, inputs, cell_row, edits or {}, capture, apply, last_component, keep, consume)
    result = stage.run()
    stage.account.settle(stage.pending)
    return result


def empty_state(net: Network, prompt: np.ndarray, start: int) -> State:
    """Rows that own nothing yet."""
    info = net.info
    keys = [torch.zeros(len(prompt), info.kv_heads, 0, info.head_dim, device=net.device, dtype=net.dtype) for _ in net.blocks]
    last = torch.zeros(len(prompt), info.width, device=net.device, dtype=net.dtype)
    return State(prompt, keys, [k.clone() for k in keys], start, 0, last)


__all__ = ["Batch", "Edit", "Missed", "Stage", "StageResult", "State", "empty_state", "run_stage"]
