"""Workload A: the residual stream of the clean prompt put into the corrupted one, at every layer and each of the last positions.

Inputs, plain forward hooks (one cell at a time, or all pairs in one batch), and the engine's way. A cell is (layer, position from the
end, pair); what is compared are the logits after the last token.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from codi_engine.core.rollout.memory import ROWS_ON_GPU
from codi_engine.core.rollout.rollout import Task, Want
from codi_engine.core.rollout.tasks import Edit
from codi_engine.core.sites import Site

from .models import Models, blocks_of
from .padding import padded
from .timing import Pass, Spent, measured

POSITIONS, TOKENS, COMMON, KEPT = 5, 60, 20, 64
#: rows of one of the engine's batches, and bytes of prompts' keys and values that it keeps between batches
ROWS, KEPT_BYTES = 120, 40_000_000
#: pairs whose unedited runs are made together
TOGETHER = 4
#: tokens of the shortest and the longest prompt of mixed lengths
MIXED = (20, 100)


class Patching:
    """Pairs of prompts and the cells over them.

    Parameters
    ----------
    pairs: how many
    mixed: prompts of 20 to 100 tokens in place of 60; a third of each is common to both sides
    """

    def __init__(self, models: Models, pairs: int = 8, mixed: bool = False) -> None:
        self.models = models
        generator, vocabulary = torch.Generator().manual_seed(1), models.shape.vocabulary
        lengths = [MIXED[0] + (MIXED[1] - MIXED[0]) * i // max(pairs - 1, 1) for i in range(pairs)] if mixed else [TOKENS] * pairs
        self.clean = [torch.randint(0, vocabulary, (n,), generator=generator).tolist() for n in lengths]
        self.common = [n * COMMON // TOKENS for n in lengths]
        self.corrupted = []
        for ids, common in zip(self.clean, self.common, strict=True):
            other = torch.randint(0, vocabulary, (4,), generator=generator).tolist()
            other[0] = (ids[common] + 1) % vocabulary
            self.corrupted.append(ids[:common] + other + ids[common + 4 :])
        self.layers, self.pairs = models.shape.layers, pairs
        self.cells = [(layer, p, i) for layer in range(self.layers) for p in range(-POSITIONS, 0) for i in range(pairs)]

    @property
    def lengths(self) -> list[tuple[int, int]]:
        """Return each pair's tokens, and how many both sides begin with."""
        return [(len(ids), common) for ids, common in zip(self.clean, self.common, strict=True)]

    @property
    def places(self) -> list[tuple[int, int]]:
        return [(layer, p) for layer in range(self.layers) for p in range(-POSITIONS, 0)]

    def alike(self) -> list[list[int]]:
        """Return the pairs in groups of one length, for libraries that take no padding."""
        groups: dict[int, list[int]] = defaultdict(list)
        for pair, ids in enumerate(self.clean):
            groups[len(ids)].append(pair)
        return list(groups.values())

    def ids(self, texts: Sequence[Sequence[int]], pairs: Sequence[int]) -> torch.Tensor:
        """Return prompts of one length as one tensor."""
        return torch.tensor([list(texts[i]) for i in pairs], device=self.models.device)


def keep(done: Pass, layer: int, place: int, pairs: Sequence[int], logits: torch.Tensor) -> None:
    """Keep the first logits of each row for the comparison."""
    for pair, row in zip(pairs, logits, strict=True):
        done.kept[layer, place, pair] = row[:KEPT].clone()


class Hooks:
    """Plain forward hooks on transformers' own model."""

    def __init__(self, work: Patching) -> None:
        self.work, self.model = work, work.models.fresh()

    @contextmanager
    def _hooked(self, hooks: dict[int, Callable[..., Any]]) -> Iterator[None]:
        handles = [blocks_of(self.model)[layer].register_forward_hook(hook) for layer, hook in hooks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _clean(self, pairs: Sequence[int], last_logits: int) -> dict[int, torch.Tensor]:
        """Return layer → pairs × positions × width of the clean run, and run the corrupted prompts unpatched."""
        work, seen = self.work, {}

        def hook(layer: int) -> Callable[..., None]:
            return lambda _, __, out: seen.update({layer: out[:, -POSITIONS:].clone()})

        with self._hooked({layer: hook(layer) for layer in range(work.layers)}):
            self.model(**padded([work.clean[i] for i in pairs], work.models.device), use_cache=False, logits_to_keep=last_logits)
        self.model(**padded([work.corrupted[i] for i in pairs], work.models.device), use_cache=False, logits_to_keep=last_logits)
        return seen

    def run(self, every: int = 1, rows: int = 8, last_logits: int = 1) -> Pass:
        """Patch some cells as rows of one forward; ``last_logits`` 0 computes the logits of every token."""
        work = self.work
        values, base = measured(work.models.device, lambda: self._clean(list(range(work.pairs)), last_logits))
        groups = [work.cells[first : first + rows] for first in range(0, len(work.cells), rows)]
        chosen = groups[::every]
        done = Pass(factor=len(work.cells) / sum(map(len, chosen)), base=base)
        for cells in chosen:
            layers = sorted({layer for layer, _, _ in cells})
            with self._hooked({layer: self._patch(values[layer], cells, layer) for layer in layers}):
                inputs = padded([work.corrupted[i] for _, _, i in cells], work.models.device)
                logits = self.model(**inputs, use_cache=False, logits_to_keep=last_logits).logits[:, -1]
            for (layer, place, pair), row in zip(cells, logits, strict=True):
                keep(done, layer, place, [pair], row[None])
            del logits
        return done

    def _patch(self, values: torch.Tensor, cells: Sequence[tuple[int, int, int]], layer: int) -> Callable[..., torch.Tensor]:
        """Return a hook that puts the clean values into the rows of a layer's cells."""
        rows = torch.tensor([row for row, cell in enumerate(cells) if cell[0] == layer])
        places, pairs = (torch.tensor([cells[row][i] for row in rows.tolist()]) for i in (1, 2))

        def hook(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
            out = out.clone()
            out[rows, places] = values[pairs, places]
            return out

        return hook


class Engine:
    """The engine, some pairs after the other: clean values captured once, then the pairs' cells as rows of few batches.

    Parameters
    ----------
    rows: most of one batch
    together: pairs whose unedited runs are made together
    apart: where rows part: ``layer`` at the edited one, ``token`` before the edited token's first layer, ``prompt`` at the prompt's
        first token; the last two put an edit there that changes nothing, to see what sharing gives
    sort: cells of one position go into the same batches
    """

    def __init__(
        self, work: Patching, rows: int | None = None, together: int = TOGETHER, apart: str = "layer", sort: bool = False, **options: Any
    ) -> None:  # fmt: skip
        self.work, self.together, self.apart, self.sort = work, together, apart, sort
        self.rows = rows or (ROWS if work.models.device.type == "cpu" else ROWS_ON_GPU)
        self.rollout = work.models.rollout(**{"cache_bytes": KEPT_BYTES, **options})

    def run(self, every: int = 1) -> Pass:
        """Capture, patch and read the logits; prompts' keys and values are those of this pass alone."""
        work, done = self.work, Pass()
        chosen = work.cells[::every]
        base = Spent()
        for first in range(0, work.pairs, self.together):
            pairs = list(range(first, min(first + self.together, work.pairs)))
            self.rollout.prefill.forget()
            values, spent = measured(work.models.device, lambda pairs=pairs: self._unedited(pairs)) if every > 1 else (self._unedited(pairs), Spent())  # type: ignore[misc]
            base = base.plus(spent)
            cells = [cell for cell in chosen if cell[2] in pairs]
            self._patch(pairs, sorted(cells, key=lambda cell: (cell[1], cell[2]) if self.sort else (cell[2],)), values, done)
        done.factor, done.base = len(work.cells) / len(chosen), base
        return done

    def _patch(self, pairs: list[int], cells: Sequence[tuple[int, int, int]], values: Any, done: Pass) -> None:
        """Compute the cells of some pairs in batches."""
        for start in range(0, len(cells), self.rows):
            chunk = cells[start : start + self.rows]
            used = sorted({pair for _, _, pair in chunk})

            def apply(group: int, site: Site, place: int, chosen: Sequence[int], old: torch.Tensor, chunk: Any = chunk) -> torch.Tensor:
                return old if group else values["resid_post", site.layer, "prompt"][[pairs.index(chunk[c][2]) for c in chosen], place + POSITIONS]

            tasks = [self._task(layer, place, used.index(pair)) for layer, place, pair in chunk]
            logits = self.rollout.run([self.work.corrupted[i] for i in used], tasks, Want(generate=False, read=False), apply).first_logits
            for (layer, place, pair), row in zip(chunk, logits, strict=True):
                keep(done, layer, place, [pair], row[None])
            del logits  # before there are those of the next batch

    def _unedited(self, pairs: Sequence[int]) -> Any:
        """Return what clean prompts hold at every layer and position, and run the corrupted ones."""
        work, each = self.work, [Task(i) for i in range(len(pairs))]
        want = Want({("resid_post", "prompt"): (tuple(range(work.layers)), tuple(range(-POSITIONS, 0)))}, generate=False, read=False, first=False)
        values = self.rollout.run([work.clean[i] for i in pairs], each, want).captures
        self.rollout.run([work.corrupted[i] for i in pairs], each, Want(generate=False, read=False))
        return values

    def _task(self, layer: int, place: int, prompt: int) -> Task:
        edits = [Edit(Site("resid_post", layer), place, 0, layer)]
        if self.apart != "layer":
            at = place if self.apart == "token" else -min(map(len, self.work.corrupted))
            edits.insert(0, Edit(Site("embed"), at, 1, (layer, place)))
        return Task(prompt, {"prompt": edits})
