"""The answer of a batch: the number's place is read after the forced prefix, texts are generated token by token."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from codi_engine.core.rollout.sampling import sample
from codi_engine.core.rollout.state import State

if TYPE_CHECKING:
    from codi_engine.core.rollout.batchrun import BatchRun

#: rows whose logits are computed, or copied, at once where they are not needed together
_AT_ONCE = 64


class Answering:
    """Reads and generates the answers of a batch's cells, from their states after the last latent."""

    def __init__(self, run: BatchRun) -> None:
        self.run = run

    def answer(self, state: State, cell_row: np.ndarray) -> None:
        """Read the number's place after the forced prefix, and generate; tokens that agree are computed once."""
        want, start = self.run.want, list(self.run.net.adapter.answer_start)
        forced = start + list(want.prefix) if want.read else start
        if want.first and len(self.run.first) and not (forced or want.read or want.generate):
            self._first_alone(state, cell_row)
            return
        before, before_row = state, cell_row
        rows_before = state.rows
        predictions = []
        if not start:
            predictions.append(self.run.net.logits(state.last))
        normed = None
        if forced:
            inputs = self._embedded([forced] * state.rows)
            state, cell_row, result = self.run.stage(state, cell_row, inputs, "answer", 0, observed=self._continues())
            normed = result.normed
            origin = np.arange(state.rows) if state.rows == rows_before else None
            if predictions and origin is None:
                first_cells = _first_cell(cell_row)
                predictions[0] = predictions[0][torch.from_numpy(before_row[first_cells]).to(normed.device)]
            predictions += [self.run.net.logits(normed[:, i]) for i in self._read_at(len(start), len(forced))]
        if len(self.run.first):
            self._scatter(self.run.first, cell_row, predictions[0])
        if want.read:
            self._scatter(self.run.number, cell_row, predictions[-1])
            self._read_answers(state, cell_row, predictions[-1], len(forced))
        if want.generate:
            self._generate_from(state, cell_row, predictions, before, before_row)

    def _first_alone(self, state: State, cell_row: np.ndarray) -> None:
        """Read the first logits and nothing else: some rows at a time, so that they are there once."""
        cells = np.flatnonzero(cell_row >= 0)
        if len(cells) == len(cell_row) == len(np.unique(cell_row)):  # what the head gives is what is asked for
            self.run.first = self.run.net.logits(state.last[torch.from_numpy(cell_row).to(state.last.device)])
            return
        rows, of_cell = np.unique(cell_row[cells], return_inverse=True)
        for begin in range(0, len(rows), _AT_ONCE):
            some = rows[begin : begin + _AT_ONCE]
            logits = self.run.net.logits(state.last[torch.from_numpy(some).to(state.last.device)])
            mine = (of_cell >= begin) & (of_cell < begin + _AT_ONCE)
            self._put(self.run.first, cells[mine], of_cell[mine] - begin, logits)

    def _continues(self) -> bool:
        """True when every generation goes on from the forced stage, because nothing is forced but what begins an answer."""
        return not (self.run.want.read and self.run.want.prefix)

    def _read_at(self, start: int, forced: int) -> list[int]:
        """Return the forced tokens whose next-token logits are needed: all to follow a generation, else first and last."""
        first = max(start - 1, 0)
        following = self.run.want.generate and self.run.want.sampler is None
        return [i for i in range(first, forced) if following or i in (first, forced - 1)]

    def _generate_from(self, state: State, cell_row: np.ndarray, predictions: list[torch.Tensor], before: State, before_row: np.ndarray) -> None:
        """Continue rows whose own tokens are the forced prefix; start the others again right after the latents."""
        prefix = list(self.run.want.prefix) if self.run.want.read else []
        agrees = np.full(state.rows, not prefix)
        if prefix and self.run.want.sampler is None and not self.run.want.observers and len(prefix) < self.run.want.max_new_tokens:
            chosen = np.stack([self._greedy(p).cpu().numpy() for p in predictions[:-1]])
            agrees = (chosen == np.array(prefix)[:, None]).all(0)
        live = np.flatnonzero(cell_row >= 0)
        going = np.full_like(cell_row, -1)
        going[live] = np.where(agrees[cell_row[live]], cell_row[live], -1)
        again = np.full_like(cell_row, -1)
        again[live] = np.where(agrees[cell_row[live]], -1, before_row[live])
        if (going >= 0).any():
            for cell in np.flatnonzero(going >= 0):
                self.run.tokens[cell] = list(prefix)
            if before is not state and not (again >= 0).any():
                before.give_up()  # or what rows had here would stay while they go on
            logits = predictions.pop()
            predictions.clear()
            self._decode(state, going, logits, len(self.run.net.adapter.answer_start) + len(prefix))
        if (again >= 0).any():
            self._restart(before, again)

    def _restart(self, state: State, cell_row: np.ndarray) -> None:
        start = list(self.run.net.adapter.answer_start)
        state, cell_row = compact(state, cell_row)
        if not start:
            self._decode(state, cell_row, self.run.net.logits(state.last), 0)
            return
        state, cell_row, result = self.run.stage(
            state, cell_row, self._embedded([start] * state.rows), "answer", 0, captured=False
        )  # fmt: skip
        self._decode(state, cell_row, self.run.net.logits(result.normed[:, -1]), len(start))

    def _decode(self, state: State, cell_row: np.ndarray, logits: torch.Tensor, place: int) -> None:
        """Generate token by token; a row splits when its cells' tokens differ and ends when all have stopped."""
        stop = set(self.run.net.adapter.stop_ids)
        while True:
            cells = np.flatnonzero(cell_row >= 0)
            tokens = self._choose(cells, cell_row[cells], logits)
            for cell, token in zip(cells.tolist(), tokens.tolist(), strict=True):
                if token >= 0:
                    self.run.tokens[cell].append(token)
            self.run.spoilt[cells[tokens < 0]] = True
            going = np.array([t >= 0 and t not in stop for t in tokens.tolist()])
            full = np.array([len(self.run.tokens[c]) >= self.run.want.max_new_tokens for c in cells.tolist()])
            if not self.run.want.observers:  # the last token of a text is read by nothing else
                going &= ~full
            if not going.any():
                return
            cell_row = cell_row.copy()
            key = cell_row[cells[going]] * (self.run.net.info.vocab_size + 1) + tokens[going]
            unique, inverse = np.unique(key, return_inverse=True)
            cell_row[cells] = -1
            cell_row[cells[going]] = inverse
            state = state.select(unique // (self.run.net.info.vocab_size + 1))
            inputs = self._embedded([[int(t)] for t in unique % (self.run.net.info.vocab_size + 1)])
            state, cell_row, result = self.run.stage(state, cell_row, inputs, "answer", place, captured=False, consume=True)
            if self.run.want.observers:
                cell_row = _without(cell_row, cells[full])
                if not (cell_row >= 0).any():
                    return
            del logits  # before there are new ones
            logits = self.run.net.logits(result.normed[:, -1])
            place += 1

    def _choose(self, cells: np.ndarray, rows: np.ndarray, logits: torch.Tensor) -> np.ndarray:
        """Return the next token of each cell; −1 where the logits are no numbers, of which none can be chosen."""
        if self.run.want.sampler is None:
            return self._greedy(logits).cpu().numpy()[rows]  # type: ignore[no-any-return]
        keys = [self.run.tasks[c].key for c in cells.tolist()]
        at = [len(self.run.tokens[c]) for c in cells.tolist()]
        return sample(self._allowed(logits), rows, keys, at, self.run.want.sampler)

    def _allowed(self, logits: torch.Tensor) -> torch.Tensor:
        """Mask ids that are never generated; the reference's own slice bans the last id only."""
        first = logits.shape[1] - 1 if self.run.want.reference_slice else self.run.net.adapter.banned_ids_from
        if first is None or first >= logits.shape[1]:
            return logits
        logits = logits.clone()
        logits[:, first:] = float("-inf")
        return logits

    def _greedy(self, logits: torch.Tensor) -> torch.Tensor:
        allowed = self._allowed(logits)
        best = allowed.argmax(-1, keepdim=True)  # of NaN, where there is one
        return torch.where(torch.isfinite(allowed.gather(-1, best)), best, -1)[:, 0]

    def _read_answers(self, state: State, cell_row: np.ndarray, logits: torch.Tensor, place: int) -> None:
        """Teacher-force the gold and the other answer; several tokens need one further stage per answer length."""
        norms = _log_norms(logits)
        for name in ("gold", "other"):
            groups: dict[int, list[int]] = defaultdict(list)
            for cell in np.flatnonzero(cell_row >= 0).tolist():
                if getattr(self.run.tasks[cell], name):
                    groups[len(getattr(self.run.tasks[cell], name))].append(cell)
            self._keep_token(name, [c for cells in groups.values() for c in cells], cell_row, 0, logits, norms)
            for length, cells in groups.items():
                if length > 1:
                    self._read_longer(name, state, cell_row, cells, length, place)

    def _read_longer(self, name: str, state: State, cell_row: np.ndarray, cells: list[int], length: int, place: int) -> None:
        keys = {(int(cell_row[c]), tuple(getattr(self.run.tasks[c], name))): 0 for c in cells}
        nodes = {key: i for i, key in enumerate(sorted(keys))}
        forked = state.select(np.array([row for row, _ in nodes]))
        if forked is state:
            forked = state.fork()
        inputs = self._embedded([ids[:-1] for _, ids in nodes])
        rows = np.full_like(cell_row, -1)
        for c in cells:
            rows[c] = nodes[int(cell_row[c]), tuple(getattr(self.run.tasks[c], name))]
        _, rows, result = self.run.stage(forked, rows, inputs, "answer", place, captured=False, observed=False)
        for i in range(length - 1):
            logits = self.run.net.logits(result.normed[:, i])
            self._keep_token(name, cells, rows, i + 1, logits, _log_norms(logits))

    def _keep_token(self, name: str, cells: list[int], rows: np.ndarray, place: int, logits: torch.Tensor, norms: torch.Tensor) -> None:
        """Keep logit and log-probability of the ``place``-th answer token of each cell."""
        if not cells:
            return
        index = torch.from_numpy(rows[cells]).to(logits.device)
        token = torch.tensor([getattr(self.run.tasks[c], name)[place] for c in cells], device=logits.device)
        logit = logits[index, token].double()
        self.run.answer_reads[f"{name}_logit"][cells, place] = logit.cpu().numpy()
        read = (logit - norms[index]).cpu().numpy()
        self.run.answer_reads[f"{name}_logprob"][cells, place] = read
        self.run.spoilt[cells] |= ~np.isfinite(read)

    def _embedded(self, ids: Sequence[Sequence[int]]) -> torch.Tensor:
        return self.run.net.embed(torch.tensor([list(i) for i in ids], device=self.run.net.device))

    def _scatter(self, out: torch.Tensor, cell_row: np.ndarray, values: torch.Tensor) -> None:
        cells = np.flatnonzero(cell_row >= 0)
        self._put(out, cells, cell_row[cells], values)

    def _put(self, out: torch.Tensor, cells: np.ndarray, rows: np.ndarray, values: torch.Tensor) -> None:
        """Give each cell its row's values, without a copy of all of them on the way."""
        for begin in range(0, len(cells), _AT_ONCE):
            some = slice(begin, begin + _AT_ONCE)
            out[torch.from_numpy(cells[some]).to(out.device)] = values[torch.from_numpy(rows[some]).to(values.device)]


def _log_norms(logits: torch.Tensor) -> torch.Tensor:
    """Return log Σ exp of each row in float64, a few rows at a time."""
    return torch.cat([torch.logsumexp(logits[i : i + 64].double(), -1) for i in range(0, len(logits), 64)])


def _first_cell(cell_row: np.ndarray) -> np.ndarray:
    """Return one cell of every row."""
    cells = np.flatnonzero(cell_row >= 0)
    _, first = np.unique(cell_row[cells], return_index=True)
    return cells[first]


def _without(cell_row: np.ndarray, cells: np.ndarray) -> np.ndarray:
    out = cell_row.copy()
    out[cells] = -1
    return out


def compact(state: State, cell_row: np.ndarray) -> tuple[State, np.ndarray]:
    """Drop rows without cells."""
    cells = np.flatnonzero(cell_row >= 0)
    rows, inverse = np.unique(cell_row[cells], return_inverse=True)
    out = np.full_like(cell_row, -1)
    out[cells] = inverse
    return state.select(rows), out
