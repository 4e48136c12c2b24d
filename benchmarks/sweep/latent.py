"""Workload B: at each latent step of a CODI model the donors' latents in place of its own, then greedy decoding.

A cell is (step, donor, problem); what is compared are the logits of the first answer token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from codi_engine.core.rollout.memory import ROWS_ON_GPU
from codi_engine.core.rollout.rollout import Task, Want
from codi_engine.core.rollout.tasks import Edit
from codi_engine.core.sites import Site

from .models import LATENTS, Models
from .padding import grown, padded
from .patching import KEPT, KEPT_BYTES, MIXED, TOKENS
from .timing import Pass

#: rows of one of the engine's batches
ROWS = 160
START = 1  # the token that begins an answer


class Latent:
    """Problems, donors' latents and cells. ``mixed``: prompts of 20 to 100 tokens in place of 60."""

    def __init__(self, models: Models, problems: int = 8, donors: int = 10, new: int = 12, mixed: bool = False) -> None:
        self.models, self.new = models, new
        generator, shape = torch.Generator().manual_seed(3), models.shape
        lengths = [MIXED[0] + (MIXED[1] - MIXED[0]) * i // max(problems - 1, 1) for i in range(problems)] if mixed else [TOKENS] * problems
        self.prompts = [torch.randint(0, shape.vocabulary, (n,), generator=generator).tolist() for n in lengths]
        values = torch.randn(problems, donors, LATENTS, shape.width, generator=generator) * 0.1
        self.donors = values.to(models.device, models.dtype)
        self.cells = [(k, d, i) for k in range(LATENTS) for d in range(donors) for i in range(problems)]
        self.settings = [(k, d) for k in range(LATENTS) for d in range(donors)]


class Plain:
    """transformers' own forward with its cache: prefill, latents one by one, decoding."""

    def __init__(self, work: Latent) -> None:
        self.work, self.model = work, work.models.fresh()

    def run(self, every: int = 1, rows: int = 8, unread: bool = False) -> Pass:
        """Compute each cell anew, some as rows of one batch; ``unread`` computes the logits that nobody reads as well."""
        work = self.work
        groups = [work.cells[first : first + rows] for first in range(0, len(work.cells), rows)]
        chosen = groups[::every]
        done = Pass(factor=len(work.cells) / sum(map(len, chosen)))
        for cells in chosen:
            first, tokens = self._one(cells, unread)
            for row, cell in enumerate(cells):
                done.kept[cell] = first[row, :KEPT].clone()
                done.tokens[cell] = tokens[row].tolist()
        return done

    def _one(self, cells: Sequence[tuple[int, int, int]], unread: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first logits and the tokens of some cells."""
        from transformers import DynamicCache

        model, projection = self.model, self.work.models.projection
        cache = DynamicCache(config=model.config)
        steps, donors, problems = (torch.tensor(part) for part in zip(*cells, strict=True))
        values = self.work.donors[problems, donors]
        more = padded([self.work.prompts[i] for i in problems.tolist()], self.work.models.device)

        def state(**inputs: Any) -> torch.Tensor:
            out: torch.Tensor = model.base_model(past_key_values=cache, use_cache=True, **inputs).last_hidden_state
            if unread:
                model.lm_head(out)
            return out[:, -1]

        last = state(**more)
        for step in range(LATENTS):
            more = grown(more)
            here = (steps == step).to(last.device)[:, None]
            own = values[:, step] if bool(here.all()) else torch.where(here, values[:, step], projection(last))
            last = state(inputs_embeds=own[:, None], **more)
        token = torch.full((len(last), 1), START, device=last.device)
        tokens: list[torch.Tensor] = []
        first = torch.empty(0)
        for _ in range(self.work.new):
            more = grown(more)
            logits = model.lm_head(model.base_model(token, past_key_values=cache, use_cache=True, **more).last_hidden_state[:, -1])
            first = first if tokens else logits
            token = logits.argmax(-1)[:, None]
            tokens.append(token)
        return first, torch.cat(tokens, 1)


class Engine:
    """The engine: cells as rows that leave the unedited run where their step is edited.

    Parameters
    ----------
    rows: most of one batch
    apart: where rows part: ``step`` at the edited one, ``latents`` before the first latent, ``prompt`` at the prompt's first token;
        the last two put an edit there that changes nothing, to see what sharing gives
    """

    def __init__(self, work: Latent, rows: int | None = None, apart: str = "step", **options: Any) -> None:
        self.work, self.apart = work, apart
        self.rows = rows or (ROWS if work.models.device.type == "cpu" else ROWS_ON_GPU)
        self.rollout = work.models.rollout(latent=True, **{"cache_bytes": KEPT_BYTES, **options})

    def run(self, every: int = 1) -> Pass:
        """Edit, decode and read the first logits; prompts' keys and values are those of this pass alone."""
        work, rollout = self.work, self.rollout
        rollout.prefill.forget()
        cells = sorted(work.cells[::every], key=lambda cell: cell[2])  # a batch has few prompts
        done = Pass(factor=len(work.cells) / len(cells))
        for start in range(0, len(cells), self.rows):
            chunk = cells[start : start + self.rows]
            used = sorted({problem for _, _, problem in chunk})

            def apply(group: int, site: Site, place: int, chosen: Sequence[int], old: torch.Tensor, chunk: Any = chunk) -> torch.Tensor:
                return old if group else torch.stack([work.donors[chunk[c][2], chunk[c][1], place] for c in chosen])

            want = Want(generate=True, read=False, max_new_tokens=work.new)
            tasks = [self._task(step, donor, problem, used.index(problem)) for step, donor, problem in chunk]
            made = rollout.run([work.prompts[i] for i in used], tasks, want, apply)
            done.tokens.update(zip(chunk, made.tokens, strict=True))
            done.kept.update((cell, row[:KEPT].clone()) for cell, row in zip(chunk, made.first_logits, strict=True))
            del made
        return done

    def _task(self, step: int, donor: int, problem: int, prompt: int) -> Task:
        edit = Edit(Site("latent_in"), step, 0, donor)
        if self.apart == "latents" and step > 0:
            return Task(prompt, {"latent": [Edit(Site("latent_in"), 0, 1, (step, donor)), edit]})
        if self.apart == "prompt":
            first = Edit(Site("embed"), -len(self.work.prompts[problem]), 1, (step, donor))
            return Task(prompt, {"prompt": [first], "latent": [edit]})
        return Task(prompt, {"latent": [edit]})
