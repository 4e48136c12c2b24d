"""Workload C as it is done without the engine: transformers' ``generate`` with forward hooks, per trial or batched."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from codi_engine.core.rollout.sampling import uniform

from .models import blocks_of
from .sampled import SAMPLER, Sampled
from .timing import Pass

#: logits that rounding may exchange
NEIGHBOURS = 1e-4


class Generating:
    """Forward hooks that edit and capture, and the three ways in which studies call ``generate``."""

    def __init__(self, work: Sampled) -> None:
        self.work, self.model = work, work.models.fresh()

    @contextmanager
    def hooked(self, values: torch.Tensor, keep: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
        """Edit rows to ``values`` and hand each layer's codes (rows × features, all of them) to ``keep``, at the last token of every forward."""
        work = self.work

        def hook(layer: int) -> Callable[..., torch.Tensor]:
            sae = work.saes[layer]

            def change(_: Any, __: Any, out: torch.Tensor) -> torch.Tensor:
                h = out[:, -1].float()
                codes = torch.relu(h @ sae.w_enc + sae.b_enc)
                if layer == work.layer:
                    edited = codes.clone()
                    edited[:, work.feature] = values
                    h = edited @ sae.w_dec + sae.b_dec + (h - (codes @ sae.w_dec + sae.b_dec))  # the error is kept
                    out = out.clone()
                    out[:, -1] = h.to(out.dtype)
                    codes = torch.relu(h @ sae.w_enc + sae.b_enc)
                keep(layer, codes)
                return out

            return change

        handles = [blocks_of(self.model)[layer].register_forward_hook(hook(layer)) for layer in work.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def generate(self, prompts: torch.Tensor, new: int, greedy: bool) -> torch.Tensor:
        """Return rows × new tokens."""
        how: dict[str, Any] = {"do_sample": False} if greedy else {"do_sample": True, "temperature": SAMPLER.temperature, "top_k": 0}
        out = self.model.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=new, min_new_tokens=new, pad_token_id=0, **how
        )  # fmt: skip
        return out[:, prompts.shape[1] :]  # type: ignore[no-any-return]

    def prompts(self, rows: int) -> torch.Tensor:
        return torch.tensor([self.work.prompt] * rows, device=self.work.models.device)

    def one_at_a_time(self, every: int = 1, items: bool = False, greedy: bool = False) -> Pass:
        """Call ``generate`` once per trial. ``items``: every captured code becomes a Python number of its own, as in the original scripts."""
        work = self.work
        cells = work.cells[::every]
        done = Pass(factor=len(work.cells) / len(cells))
        for condition, trial in cells:
            torch.manual_seed(1000 * condition + trial)
            kept: list[torch.Tensor] = []

            def keep(layer: int, codes: torch.Tensor, kept: list[torch.Tensor] = kept) -> None:
                chosen = work.chosen[layer]
                kept.append(torch.tensor([codes[0, i].item() for i in chosen.tolist()]) if items else codes[0, chosen])

            with self.hooked(work.values[condition : condition + 1], keep):
                tokens = self.generate(self.prompts(1), work.new + greedy, greedy)[0, : work.new]
            done.tokens[condition, trial] = tokens.tolist()
            done.kept[condition, trial] = torch.stack(kept).view(-1, len(work.layers), kept[0].shape[-1]).mean(0).flatten()
        return done

    def batched(self, every: int = 1, bare: bool = False, greedy: bool = False) -> Pass:
        """Call ``generate`` once with all cells as rows: one seed for all, so a row's text depends on its neighbours. ``bare``: no edit, no capture."""
        work = self.work
        cells = work.cells[::every]
        done = Pass(factor=len(work.cells) / len(cells))
        torch.manual_seed(0)
        kept: list[torch.Tensor] = []
        if bare:
            tokens = self.generate(self.prompts(len(cells)), work.new, greedy)
        else:
            with self.hooked(work.values[[c for c, _ in cells]], lambda layer, codes: kept.append(codes[:, work.chosen[layer]])):
                tokens = self.generate(self.prompts(len(cells)), work.new + greedy, greedy)[:, : work.new]
            codes = torch.stack(kept).view(-1, len(work.layers), len(cells), kept[0].shape[-1]).mean(0).transpose(0, 1).flatten(1)
            done.kept.update(zip(cells, codes, strict=True))
        done.tokens.update(zip(cells, tokens.tolist(), strict=True))
        return done

    def with_uniforms(self, cell: tuple[int, int], key: int, drawn: list[int]) -> Pass:
        """Draw one cell token by token with the uniforms that belong to it, as the engine must.

        A token of ``drawn``, which is the engine's, is taken where its logit is within 1e-4 of the one drawn here: tokens are drawn in the
        order of their probabilities, and rounding exchanges neighbours.
        """
        from transformers import DynamicCache

        work, cache, kept = self.work, DynamicCache(config=self.model.config), []
        tokens: list[int] = []
        ids = self.prompts(1)
        with self.hooked(work.values[cell[0] : cell[0] + 1], lambda layer, codes: kept.append(codes[0, work.chosen[layer]])):
            while True:
                logits = self.model(ids, past_key_values=cache, use_cache=True).logits[0, -1]
                if len(tokens) == work.new:
                    break
                probability, order = torch.sort(torch.softmax(logits.double() / SAMPLER.temperature, -1), descending=True, stable=True)
                reached = probability.cumsum(-1)
                place = torch.searchsorted(reached, uniform(key, len(tokens)) * reached[-1], right=True)
                mine, theirs = int(order[place]), drawn[len(tokens)]
                tokens.append(theirs if abs(float(logits[mine] - logits[theirs])) < NEIGHBOURS else mine)
                ids = torch.tensor([[tokens[-1]]], device=work.models.device)
        codes = torch.stack(kept).view(-1, len(work.layers), kept[0].shape[-1]).mean(0).flatten()
        return Pass({cell: codes}, {cell: tokens})
