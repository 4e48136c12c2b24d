"""One stage of the rollout: S tokens of every row through all blocks, rows splitting at the layer where edits differ.

A stage begins with one row per distinct state. At each boundary between blocks the cells whose edits first differ there
get rows of their own; up to there they were one row and were computed once. Boundaries: −1 the input vector, l before
block l (edits inside block l and of ``resid_pre.l``, ``resid_post.l−1``), ``layers`` after the last block.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from codi_engine.core.rollout.accounting import Account
from codi_engine.core.rollout.attention import Context, Layout, Standing, Stored, using
from codi_engine.core.rollout.network import Network, select_tokens
from codi_engine.core.rollout.spans import Spans
from codi_engine.core.rollout.state import Batch, Reach, StageResult, State
from codi_engine.core.rollout.tasks import Apply, Edit
from codi_engine.core.sites import Site


class Stage:
    """One forward of S tokens per row. Use :func:`run_stage`."""

    def __init__(
        self,
        net: Network,
        batch: Batch,
        state: State,
        inputs: torch.Tensor,
        spans: Spans,
        cell_row: np.ndarray,
        edits: Mapping[int, Sequence[tuple[int, Edit]]],
        capture: frozenset[tuple[str, int | None]],
        apply: Apply,
        last_component: str | None,
        keep: bool = True,
        consume: bool = False,
        reach: Reach | None = None,
        capture_from: int = 0,
    ) -> None:
        self.net, self.batch, self.parent = net, batch, state
        self.spans = spans
        self.hidden = inputs  # packed tokens × width
        self.entry = np.arange(len(inputs))  # packed token → packed token when the blocks were entered
        self.cell_row = cell_row.copy()
        self.origin = np.arange(state.rows)  # row → parent row
        self.capture, self.apply, self.last_component = capture, apply, last_component
        self.keep, self.consume, self.reach, self.capture_from = keep, consume, reach, capture_from
        self.captured: dict[tuple[str, int | None], tuple[torch.Tensor, int, Spans]] = {}
        self.splits: list[np.ndarray] = []  # per split, new row → old row
        self.layout: Layout | None = None  # made when it is asked for, and anew after a split
        self.fed = spans.total
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
        net = self.net
        self._split(-1)
        self.hidden = self._touch("embed", None, self._touch("latent_in", None, self.hidden))
        entered, kwargs = net.enter(self._pack(self.hidden), self._positions())
        padded = entered.shape[1]
        self.hidden, self.entry, layer_kwargs = entered[0, : self.spans.total], np.arange(self.spans.total), kwargs
        new_kv: list[tuple[torch.Tensor, torch.Tensor, int]] = []
        for layer in range(self.layers):
            if self._split(layer):
                layer_kwargs = select_tokens(kwargs, self._entry(self.entry), padded)
            self.hidden = self._touch("resid_pre", layer, self._touch("resid_post", layer - 1, self.hidden))
            context = self._context(layer)
            if layer == self.layers - 1 and self._end(context, kwargs, padded):
                layer_kwargs, context.layout = select_tokens(kwargs, self._entry(self.entry), padded), self._laid_out()
            with using(context):
                out = net.block(layer, self._pack(self.hidden), layer_kwargs, self._handlers(layer), self.spans.total)
            self.hidden = out[0, : self.spans.total]
            if self.keep:
                new_kv.append((context.own_keys, context.own_values, len(self.splits)))
        self._split(self.layers)
        self.hidden = self._touch("resid_post", self.layers - 1, self.hidden)
        normed = net.normalise(self._pack(self.hidden))[0, : self.spans.total]
        normed = self._touch("final_norm", None, normed)
        if self.last_component is not None:
            normed = self._touch(self.last_component, None, normed)
        return self._result(self.parent, normed, new_kv)

    def _end(self, context: Context, kwargs: dict[str, Any], padded: int) -> bool:
        """Before the last block: tokens that nothing after it needs give it their keys and values and go no further.

        Returns True where there were such tokens.
        """
        self.fed = self.spans.total
        first = self._ends()
        if first is None or (first == self.spans.first).all():
            return False
        kept = Spans(first, self.spans.size)
        gone = np.flatnonzero(self.spans.offsets < first[self.spans.rows])
        place = self.spans.rows[gone], self.spans.offsets[gone] + self.parent.used
        context.layout, context.only_store = self.net.attention.only_store(*place, self.hidden.device), True
        tokens = self.hidden[torch.from_numpy(gone).to(self.hidden.device)]
        try:
            with using(context):
                self.net.block(self.layers - 1, self._pack(tokens), select_tokens(kwargs, self._entry(self.entry[gone]), padded), {}, len(gone))
        except Stored:
            context.only_store, context.calls = False, 0
        self._take(np.arange(len(self.origin)), kept)
        return True

    def _ends(self) -> np.ndarray | None:
        """Return of each row the first offset that is needed after the last block; None where all are."""
        if self.reach is None or any(name.endswith(f".{self.layers - 1}") for name in self.pending):
            return None
        first = np.full(len(self.origin), self.reach.after)
        for cell, items in self.schedule.get(self.layers, {}).items():
            if (row := self.cell_row[cell]) >= 0:
                first[row] = min(first[row], *(offset for offset, _ in items))
        return np.asarray(np.maximum(first, self.spans.first))

    def _result(self, state: State, normed: torch.Tensor, new_kv: list[tuple[torch.Tensor, torch.Tensor, int]]) -> StageResult:
        keys, values = [], []
        for k, v, stamp in new_kv:
            index = self._since(stamp)
            keys.append(k if index is None else k[index])
            values.append(v if index is None else v[index])
        rows, size = len(self.origin), self.spans.size
        last = normed.view(rows, size, -1)[:, -1] if self.spans.whole else normed[torch.from_numpy(self.spans.last).to(normed.device)]
        after = State(state.prompt[self.origin], keys, values, state.start, state.used + size, last)
        captured = {key: self._spread(*kept) for key, kept in self.captured.items()}
        return StageResult(after, normed.view(rows, size, -1) if self.spans.whole else last[:, None], self.cell_row, self.fed, captured)

    def _spread(self, values: torch.Tensor, stamp: int, spans: Spans) -> torch.Tensor:
        """Return rows × S × width of what was captured when rows and tokens were those of ``stamp`` and ``spans``."""
        index = self._since(stamp)
        if spans.whole:
            square = values.view(len(spans.first), spans.size, -1)
        else:
            square = values.new_full((len(spans.first), spans.size, values.shape[1]), float("nan"))
            square[torch.from_numpy(spans.rows).to(values.device), torch.from_numpy(spans.offsets).to(values.device)] = values
        return square if index is None else square[index]

    def _since(self, stamp: int) -> torch.Tensor | None:
        """Compose the splits made after ``stamp``: final row → row then; None when there were none."""
        if stamp == len(self.splits):
            return None
        index = self.splits[-1]
        for earlier in reversed(self.splits[stamp:-1]):
            index = earlier[index]
        return torch.from_numpy(index).to(self.hidden.device)

    # ------------------------------------------------------------------------------------------- pieces

    def _entry(self, tokens: np.ndarray) -> torch.Tensor:
        """Fill the tokens' places when the blocks were entered up to the quantum."""
        return torch.from_numpy(np.pad(tokens, (0, -len(tokens) % self.net.quantum))).to(self.hidden.device)

    def _pack(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens × width → 1 × N × width, N a multiple of the quantum."""
        extra = -tokens.shape[0] % self.net.quantum
        return (torch.nn.functional.pad(tokens, (0, 0, 0, extra)) if extra else tokens)[None]

    def _positions(self) -> torch.Tensor:
        first = self.batch.lengths[self.parent.prompt[self.origin]] + (self.parent.start + self.parent.used - self.batch.slots)
        positions = np.maximum(first[self.spans.rows] + self.spans.offsets, 0)
        return torch.from_numpy(np.pad(positions, (0, -len(positions) % self.net.quantum)))[None].to(self.hidden.device)

    def _laid_out(self) -> Layout:
        if self.layout is None:
            state, kv, info = self.parent, self.batch.kv, self.net.info
            of_row = state.prompt[self.origin]
            shared = kv.slots if kv is not None else 0
            begin = self.batch.slots - self.batch.lengths[of_row] - (state.start - shared)
            standing = Standing(self.spans, state.used, self._room(), shared, kv.valid.shape[0] if kv is not None else 0, of_row, begin)
            self.layout = self.net.attention.lay_out(standing, info.heads // info.kv_heads, self.hidden.device)
        return self.layout

    def _room(self) -> int:
        return self.batch.room(self.parent.used + self.spans.size, self.net.attention.GRAIN)

    def _context(self, layer: int) -> Context:
        state, rows, room = self.parent, len(self.origin), self._room()
        own_k, own_v = state.keys[layer], state.values[layer]
        if not (rows == state.rows and np.array_equal(self.origin, np.arange(rows))):
            take = torch.from_numpy(self.origin).to(own_k.device)
            own_k, own_v = own_k[:, :, : min(room, own_k.shape[2])][take], own_v[:, :, : min(room, own_v.shape[2])][take]
        if own_k.shape[2] < room:
            grow = (0, 0, 0, room - own_k.shape[2])
            own_k, own_v = torch.nn.functional.pad(own_k, grow), torch.nn.functional.pad(own_v, grow)
        if self.consume:
            state.keys[layer] = state.values[layer] = own_k.new_empty(0)
        return Context(self._laid_out(), own_k[:, :, :room], own_v[:, :, :room], self.batch.kv, layer)

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
        self.cell_row[live] = inverse
        first_token = self.spans.first[parent]
        if self.reach is not None:
            nearest = np.full(len(parent), self.spans.size - 1)
            np.minimum.at(nearest, inverse, self.reach.cells[live])
            first_token = np.maximum(first_token, nearest)
        same = len(parent) == len(self.origin) and np.array_equal(parent, np.arange(len(self.origin)))
        changed = not same or bool((first_token != self.spans.first).any())
        if changed:
            self._take(parent, Spans(first_token, self.spans.size))
            self.origin = self.origin[parent]
            self.splits.append(parent)
        self._queue(due, np.flatnonzero(live)[first])
        return changed

    def _take(self, parent: np.ndarray, spans: Spans) -> None:
        """Go on with rows of ``parent`` and their tokens of ``spans``."""
        index = self.spans.of(parent, spans)
        self.hidden, self.entry = self.hidden[torch.from_numpy(index).to(self.hidden.device)], self.entry[index]
        self.spans, self.layout = spans, None

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
        """Edit and capture tokens × width at a site between blocks."""
        if layer is not None and layer < 0:
            return values
        new = self._edited(component, layer, values)
        values = values if new is None else new
        if (component, layer) in self.capture:
            self.captured[component, layer] = self._kept(values)
        return values

    def _kept(self, values: torch.Tensor) -> tuple[torch.Tensor, int, Spans]:
        """Return a copy of tokens × width from offset ``capture_from`` on, and where they stand."""
        after = self.capture_from
        if not after:
            return values.clone(), len(self.splits), self.spans
        later = torch.from_numpy(np.flatnonzero(self.spans.offsets >= after)).to(values.device)
        return values[later], len(self.splits), Spans(np.maximum(self.spans.first - after, 0), self.spans.size - after)

    def _edited(self, component: str, layer: int | None, flat: torch.Tensor) -> torch.Tensor | None:
        """Apply the pending edits of a site to tokens × width; None when there are none."""
        items = self.pending.pop(component if layer is None else f"{component}.{layer}", None)
        if not items:
            return None
        out = flat.clone()
        for rows, offset, edit, cells in items:
            index = torch.from_numpy(self.spans.at(rows, offset)).to(out.device)
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
                    self.captured[component, layer] = self._kept(flat if new is None else new)
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
    spans: Spans | None = None,
    reach: Reach | None = None,
    capture_from: int = 0,
) -> StageResult:
    """Feed S tokens to every row, or some rows their last ones alone.

    Parameters
    ----------
    inputs: rows × S × width input vectors (token embeddings or latents); with ``spans`` the packed tokens × width
    cell_row: cell → row, −1 for cells that take no part
    edits: cell → (token offset, edit) of this stage
    capture: (component, layer) to keep
    last_component: ``latent_out`` where the last token's final state is one
    keep: False where no stage follows: the rows' keys and values are dropped layer by layer
    consume: True where the state is not used again: its keys and values are freed layer by layer
    spans: which tokens each row feeds; None: all S
    reach: given where the state holds keys and values of all S tokens already, so that rows need feed only what differs
    capture_from: the first offset that is captured; what is captured is rows × (S − that) × width

    The state is consumed: its keys and values may be written in place.
    """
    if spans is None:
        spans = Spans(np.zeros(inputs.shape[0], np.int64), inputs.shape[1])
        inputs = inputs.reshape(-1, inputs.shape[2])
    stage = Stage(net, batch, state, inputs, spans, cell_row, edits or {}, capture, apply, last_component, keep, consume, reach, capture_from)
    result = stage.run()
    stage.account.settle(stage.pending)
    return result


__all__ = ["Stage", "run_stage"]
