"""The rollout with gradients: one forward and one backward give ∂metric/∂activation at every place of a site.

The model's own transformers forward with its eager attention, one prompt at a time, in fp32: prompt, latent loop, forced
answer prefix, as ``core.rollout`` runs them, with a graph through the latents (``propagate``) or with every latent cut off
from what made it (``freeze``). Parameters stay frozen; only activations need gradients.

What is put in place at latent steps (:class:`Edit`) may depend on parameters of one's own: :meth:`Tracer.measure` returns the
metric with a graph to them, so that an edit can be trained through the model. :func:`open_tracer` does this for a run's model.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from codi_engine.core.errors import UserError
from codi_engine.core.rollout import attention
from codi_engine.core.rollout.network import Network
from codi_engine.core.sites import LAYERED, Phase

if TYPE_CHECKING:
    from codi_engine.core.running.reading import Answers
    from codi_engine.core.runs.results import Run

Downstream = Literal["propagate", "freeze"]


@dataclass(frozen=True)
class Target:
    """The metric: ``logit_diff`` (gold minus other) or ``cross_entropy`` of gold, where the answer's number is predicted.

    ``gold`` and ``other`` are answers in tokens; those of several tokens are read each after its own predecessors and put
    together by ``reduce``, as the metrics of these names do.
    """

    metric: Literal["logit_diff", "cross_entropy"]
    gold: Sequence[int]
    other: Sequence[int] = ()
    reduce: Literal["first", "sum", "mean"] = "sum"


@dataclass(frozen=True)
class Trace:
    """What one prompt gave.

    ``logits`` (vocabulary, fp32) and ``metric`` where the number is predicted; ``values`` and ``gradients`` map a layer (None
    for sites without layers) to places × width. Prompt places are the prompt's positions in order, and a site that exists
    at the prompt's end only has one place: address them from the end. ``embeds`` is prompt × width, the input vectors.
    """

    logits: torch.Tensor
    metric: float
    values: dict[int | None, torch.Tensor]
    gradients: dict[int | None, torch.Tensor]
    embeds: torch.Tensor


@dataclass(frozen=True)
class Edit:
    """A differentiable edit of one latent step: ``change`` maps the site's value (width) to its new one.

    ``component`` is resid_post, attn_out or mlp_out at a ``layer``, or latent_in or latent_out without one.
    """

    component: str
    layer: int | None
    step: int
    change: Callable[[torch.Tensor], torch.Tensor]


@dataclass
class _Seen:
    """Tensors of the traced site in the order in which the phase made them, and the edits at the latent step that runs."""

    tensors: dict[int | None, list[torch.Tensor]] = field(default_factory=lambda: defaultdict(list))
    recording: bool = False
    edits: Sequence[Edit] = ()
    step: int | None = None

    def see(self, layer: int | None, tensor: torch.Tensor) -> None:
        if self.recording:
            self.tensors[layer].append(tensor)

    def edited(self, component: str, layer: int | None, tensor: torch.Tensor) -> torch.Tensor:
        """Return 1 × 1 × width after the edits of this site at the step that runs; outside the latent loop it stays as it is."""
        for edit in self.edits:
            if (edit.component, edit.layer, edit.step) == (component, layer, self.step):
                tensor = edit.change(tensor[0, 0])[None, None]
        return tensor


class Tracer:
    """Runs prompts one at a time through the model's own forward, with or without gradients.

    Parameters
    ----------
    net: the model taken apart; reduced precision is refused by the caller or lifted by :func:`in_single_precision`
    prefix: forced answer prefix in tokens

    ``forwards`` and ``backwards`` count whole prompts.
    """

    def __init__(self, net: Network, prefix: Sequence[int]) -> None:
        self.net, self.prefix = net, list(prefix)
        self.forwards = self.backwards = 0

    def trace(
        self, prompt: Sequence[int], target: Target, component: str, layers: Sequence[int | None], phase: Phase,
        downstream: Downstream = "propagate", gradient: bool = True, embeds: torch.Tensor | None = None,
    ) -> Trace:  # fmt: skip
        """Run one prompt and return the site's values at all places of a phase, with the metric's gradient there.

        Parameters
        ----------
        layers: of the site; (None,) where it has none
        downstream: ``freeze`` cuts later latents off from what is upstream of them; where there are no later ones it changes nothing
        embeds: prompt × width input vectors in place of the tokens' own
        """
        seen = _Seen()
        with torch.set_grad_enabled(gradient), own_attention(self.net), self._watched(component, layers, seen):
            ids = torch.tensor([list(prompt)], device=self.net.device)
            given = self.net.embed(ids)[0] if embeds is None else embeds
            start = given.detach().clone().requires_grad_(gradient)
            logits, metric = self._rollout(start[None], target, component, phase, downstream, seen)
            self.forwards += 1
            flat = [(layer, t) for layer in layers for t in seen.tensors[layer]]
            found = torch.autograd.grad(metric, [t for _, t in flat], allow_unused=True) if gradient else ()
            self.backwards += int(gradient)
        gradients = [torch.zeros_like(t) if g is None else g for (_, t), g in zip(flat, found, strict=True)] if gradient else []
        values = self._collected(component, layers, [(layer, t.detach()) for layer, t in flat])
        slopes = self._collected(component, layers, [(layer, g) for (layer, _), g in zip(flat, gradients, strict=True)]) if gradient else {}
        return Trace(logits.detach(), float(metric.detach()), values, slopes, start.detach())

    def measure(self, prompt: Sequence[int], target: Target, edits: Sequence[Edit] = ()) -> tuple[torch.Tensor, torch.Tensor]:
        """Run one prompt with edits and return (metric, logits where the number is predicted), with a graph to what the edits depend on.

        Raises
        ------
        UserError: an edit of a component, layer or step that cannot be edited
        """
        for edit in edits:
            self._check(edit)
        seen = _Seen(edits=edits)
        with own_attention(self.net), ExitStack() as stack:
            for component, layer in dict.fromkeys((e.component, e.layer) for e in edits if e.layer is not None):
                change = lambda t, c=component, at=layer: seen.edited(c, at, t)  # noqa: E731
                stack.callback(self.net.replace(component, layer, change).remove)
            embeds = self.net.embed(torch.tensor([list(prompt)], device=self.net.device)).detach()
            logits, metric = self._rollout(embeds, target, "", "latent", "propagate", seen)
        self.forwards += 1
        return metric, logits

    def _check(self, edit: Edit) -> None:
        info, name = self.net.info, f"edit of {edit.component}"
        if not 0 <= edit.step < info.latents:
            raise UserError(
                f"{name}: the model has latent steps 0 to {info.latents - 1}; got {edit.step}" if info.latents else f"{name}: the model has no latents"
            )
        layered = edit.component in LAYERED
        if layered != (edit.layer is not None) or (not layered and edit.component not in ("latent_in", "latent_out")):
            raise UserError(f"{name}: name resid_post, attn_out or mlp_out with a layer, or latent_in or latent_out without one")
        if edit.layer is not None and not 0 <= edit.layer < info.layers:
            raise UserError(f"{name}: the model has layers 0 to {info.layers - 1}; got {edit.layer}")

    # ------------------------------------------------------------------------------------------- phases

    def _rollout(self, embeds: torch.Tensor, target: Target, component: str, phase: Phase, downstream: Downstream, seen: _Seen) -> tuple[Any, Any]:
        net = self.net
        seen.recording = phase == "prompt"
        self._see(seen, component, ("embed",), embeds)
        cache, normed = self._feed(embeds, None, 0)
        used = embeds.shape[1]
        state = self._ended(seen, component, normed, bool(net.info.latents))
        seen.recording = phase == "latent"
        for seen.step in range(net.info.latents):
            z = seen.edited("latent_in", None, net.project(state[0])[None])
            if downstream == "freeze":
                z = z.detach().requires_grad_(z.requires_grad)
            self._see(seen, component, ("latent_in", "embed"), z)
            cache, normed = self._feed(z, cache, used)
            used += 1
            state = seen.edited("latent_out", None, self._ended(seen, component, normed, True))
        seen.step = None
        seen.recording = phase == "answer"
        forced = [*net.adapter.answer_start, *self.prefix]
        if forced:
            inputs = self._embedded(forced)
            self._see(seen, component, ("embed",), inputs)
            cache, normed = self._feed(inputs, cache, used)
            used += len(forced)
            state = self._ended(seen, component, normed, False)
        seen.recording = False
        logits = net.logits(state[0])[0]
        return logits, self._metric(logits, cache, used, target)

    def _ended(self, seen: _Seen, component: str, normed: torch.Tensor, latent: bool) -> torch.Tensor:
        """Show the final states of a stage and return the last one, 1 × 1 × width."""
        self._see(seen, component, ("final_norm",), normed)
        state = normed[:, -1:]
        if latent:
            self._see(seen, component, ("latent_out",), state)
        return state

    def _see(self, seen: _Seen, component: str, names: Sequence[str], tensor: torch.Tensor) -> None:
        if component in names:
            seen.see(None, tensor)

    def _feed(self, inputs: torch.Tensor, cache: Any, used: int) -> tuple[Any, torch.Tensor]:
        """Feed 1 × N × width input vectors after ``used`` tokens; return the cache and 1 × N × width final-norm states."""
        positions = torch.arange(used, used + inputs.shape[1], device=inputs.device)[None]
        out = self.net.decoder(inputs_embeds=inputs, position_ids=positions, past_key_values=cache, use_cache=True)
        return out.past_key_values, out.last_hidden_state

    def _embedded(self, ids: Sequence[int]) -> torch.Tensor:
        embedded = self.net.embed(torch.tensor([list(ids)], device=self.net.device))
        return embedded.detach().requires_grad_(torch.is_grad_enabled())

    # ------------------------------------------------------------------------------------------- metric

    def _metric(self, logits: torch.Tensor, cache: Any, used: int, target: Target) -> torch.Tensor:
        gold = self._reads(target.gold, logits, cache, used)
        if target.metric == "cross_entropy":
            reads = [torch.log_softmax(row, -1)[token] for row, token in zip(gold, target.gold, strict=True)]
            return -_reduced(reads, target.reduce)
        other = self._reads(target.other, logits, cache, used)
        first = _reduced([row[token] for row, token in zip(gold, target.gold, strict=True)], target.reduce)
        return first - _reduced([row[token] for row, token in zip(other, target.other, strict=True)], target.reduce)

    def _reads(self, tokens: Sequence[int], logits: torch.Tensor, cache: Any, used: int) -> list[torch.Tensor]:
        """Return the logits that predict each of an answer's tokens after the ones before it."""
        if len(tokens) < 2:
            return [logits]
        _, normed = self._feed(self._embedded(tokens[:-1]), _forked(cache), used)
        return [logits, *self.net.logits(normed[0])]

    # -------------------------------------------------------------------------------------------- sites

    @contextmanager
    def _watched(self, component: str, layers: Sequence[int | None], seen: _Seen) -> Iterator[None]:
        with ExitStack() as stack:
            for layer in layers if component in LAYERED else ():
                assert layer is not None
                handle = self.net.watch(component, layer, lambda tensor, layer=layer: seen.see(layer, tensor))  # type: ignore[misc]
                stack.callback(handle.remove)
            yield

    def _collected(self, component: str, layers: Sequence[int | None], parts: Sequence[tuple[int | None, torch.Tensor]]) -> dict[int | None, torch.Tensor]:
        """Join a layer's tensors (1 × tokens × …) along the tokens and pick the site's own columns: places × width, fp32."""
        joined = {layer: torch.cat([t[0] for at, t in parts if at == layer]) for layer in layers}
        return {layer: self.net.site_columns(component, layer, t).float() for layer, t in joined.items()}


def open_tracer(run: Run) -> tuple[Tracer, Answers]:
    """Load a finished run's model again, frozen and in fp32, and its way of writing answers.

    Raises
    ------
    UserError: the model cannot be loaded or is not the one of the run
    """
    from codi_engine.core.running.reading import Answers
    from codi_engine.core.runs.reload import reload_model

    net = Network(reload_model(run))
    if net.dtype != torch.float32:
        in_single_precision(net)
    net.model.requires_grad_(False)
    if isinstance(net.adapter.projection, nn.Module):
        net.adapter.projection.requires_grad_(False)
    answers = Answers(net.adapter, (run.experiment.get("generate") or {}).get("answer_prefix"))
    return Tracer(net, answers.prefix), answers


@contextmanager
def own_attention(net: Network) -> Iterator[None]:
    """Run the model's blocks with transformers' eager attention and plain weights; the packed ones come back afterwards."""
    net.model.set_attn_implementation("eager")
    try:
        with net.plain():
            yield
    finally:
        net.model.set_attn_implementation(attention.NAME)


def in_single_precision(net: Network) -> None:
    """Lift a model of reduced precision to fp32, so that gradients do not drown in rounding."""
    net.model.float()
    projection = net.adapter.projection
    if isinstance(projection, nn.Module):
        projection.float()
    net.dtype = torch.float32


def relative_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference relative to the largest |value| of the second."""
    scale = float(second.abs().max())
    return float((first - second.to(first)).abs().max()) / (scale or 1.0)


def _forked(cache: Any) -> Any:
    """Return a cache that can be continued by itself; tensors are shared, and none is written in place."""
    fork = copy.copy(cache)
    fork.layers = [copy.copy(layer) for layer in cache.layers]
    return fork


def _reduced(reads: Sequence[torch.Tensor], how: str) -> torch.Tensor:
    if how == "first":
        return reads[0]
    total = torch.stack(list(reads)).sum()
    return total / len(reads) if how == "mean" else total


__all__ = ["Edit", "Target", "Trace", "Tracer", "in_single_precision", "open_tracer", "own_attention", "relative_difference"]
