"""``train_subspace``: subspaces whose interchange brings the clean answer back, trained through the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult, Options

if TYPE_CHECKING:
    import pandas as pd
    import torch
    from matplotlib.figure import Figure

    from codi_engine import Run
    from codi_engine.core.rollout.gradients import Target, Tracer
    from codi_engine.core.runs.work import Work

_SETTINGS = ("none", "random", "trained", "whole")


class TrainSubspaceOptions(Options):
    """``layers``, ``steps``: the places of ``resid_post``. ``dim``: dimensions of each subspace.

    ``holdout``: so many pairs, the data's first ones, are never trained on. ``epochs``, ``rate``, ``batch``: of Adam.
    ``random``: random subspaces that the held-out pairs are tried with. ``seed``: of starts, order and random ones. ``confidence``: of intervals.
    """

    layers: list[int] = Field(min_length=1)
    steps: list[int] = Field(min_length=1)
    dim: int = Field(default=8, ge=1)
    holdout: int = Field(default=24, ge=2)
    epochs: int = Field(default=4, ge=1)
    rate: float = Field(default=0.05, gt=0.0)
    batch: int = Field(default=6, ge=1)
    random: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)


@dataclass(frozen=True)
class Pair:
    """The corrupted prompt in tokens, what its clean answer costs, and the row of the clean side's captured states."""

    example: str
    prompt: Sequence[int]
    target: Target
    row: int


class TrainSubspace(Analysis[TrainSubspaceOptions]):
    """Distributed alignment search (Geiger et al. 2303.02536): per layer and latent step an orthonormal R of ``dim`` columns.

    R is trained by gradients through the model so that h + R·Rᵀ(clean − h), put into the corrupted run, makes the clean answer likely
    (cross-entropy where the number is predicted). Held-out pairs compare it with random subspaces, nothing, and the whole state.
    Needs pairs and ``capture: ["resid_post@latent"]``; writes ``subspaces.safetensors`` for the intervention ``subspace``.
    """

    name = "train_subspace"
    Options = TrainSubspaceOptions

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.core.rollout.gradients import open_tracer
        from codi_engine_subspace import bases, held_out

        run, options = runs[0], self.options
        clean, where = self._clean(run)
        work.progress.note("loading the model")
        tracer, answers = open_tracer(run)
        pairs = self._pairs(run, tracer, answers, where)
        held, train = pairs[: options.holdout], pairs[options.holdout :]
        if len(train) < options.batch:
            raise UserError(f"{self.name}: {len(pairs)} pairs leave {len(train)} to train on after holdout: {options.holdout}; give more pairs")
        places = [(layer, step) for layer in options.layers for step in options.steps]
        work.progress.start("subspaces", len(places), "places")
        found: dict[str, np.ndarray] = {}
        rows, losses = [], []
        for layer, step in places:
            states = clean[layer, step]
            name = bases.place_name("resid_post", layer, step)
            basis, curve = self._train(tracer, train, states, layer, step, name)
            found[name] = basis
            losses += [{"layer": layer, "step": step, "epoch": e, "cross_entropy": v} for e, v in enumerate(curve)]
            rows += held_out.measure(tracer, held, states, layer, step, basis, name, options)
            work.progress.advance(1)
        work.progress.finish()
        tables = held_out.tables(rows, losses, options)
        files = {"subspaces.safetensors": bases.saved(bases.Bases(found, [p.example for p in train], str(run.provenance["model_digest"])))}
        return AnalysisResult(tables, self.draw(tables, {}), held_out.summary(tables, len(train), len(held), options), files)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> dict[str, Figure]:
        """Return ``held_out``: how often the clean answer comes first, trained and random, per place."""
        from codi_engine_subspace import held_out

        return held_out.draw(tables)

    # ------------------------------------------------------------------------------------------- reading

    def _clean(self, run: Run) -> tuple[dict[tuple[int, int], np.ndarray], dict[str, int]]:
        """Return (layer, step) → clean states of all pairs, and example → row."""
        if "variant" not in run.cells:
            raise UserError(f"{self.name}: needs clean/corrupted pairs; {run.path} has none")
        data = run.activations("resid_post@latent")
        keep = np.flatnonzero(data["variant"].values.astype(str) == "clean")
        for axis, wanted in (("layer", self.options.layers), ("step", self.options.steps)):
            missing = [v for v in wanted if v not in data[axis].values]
            if missing:
                raise UserError(f"{self.name}: {axis}s: {missing[0]} was not captured; there are {', '.join(map(str, data[axis].values))}")
        some = data.isel({data.dims[0]: keep})
        order = (data.dims[0], "width")
        states = {
            (layer, step): np.asarray(some.sel(layer=layer, step=step).transpose(*order).values) for layer in self.options.layers for step in self.options.steps
        }  # fmt: skip
        return states, {str(e): i for i, e in enumerate(some["example"].values)}

    def _pairs(self, run: Run, tracer: Tracer, answers: Any, where: Mapping[str, int]) -> list[Pair]:
        from codi_engine.core.rollout.gradients import Target
        from codi_engine.core.runs.reload import reload_data

        found = []
        for example in reload_data(run).examples:
            if example.id in where:
                clean, corrupted = example.prompts["clean"], example.prompts["corrupted"]
                target = Target("cross_entropy", answers.tokens(clean.answer))
                found.append(Pair(example.id, tracer.net.adapter.encode_prompt(corrupted.text), target, where[example.id]))
        return found

    # ------------------------------------------------------------------------------------------- training

    def _train(
        self, tracer: Tracer, pairs: Sequence[Pair], states: np.ndarray, layer: int, step: int, name: str
    ) -> tuple[np.ndarray, list[float]]:  # fmt: skip
        """Train one basis: Adam on free parameters, made orthonormal by QR at every step; returns it and the mean loss per epoch."""
        import torch

        from codi_engine_subspace.bases import random_basis

        options = self.options
        free = torch.from_numpy(random_basis(states.shape[1], options.dim, options.seed, name)).requires_grad_(True)
        optimiser = torch.optim.Adam([free], lr=options.rate)
        rng, curve = np.random.default_rng([options.seed, layer, step]), []
        for _ in range(options.epochs):
            losses = []
            order = rng.permutation(len(pairs))
            for start in range(0, len(order), options.batch):
                some = order[start : start + options.batch]
                optimiser.zero_grad()
                for i in some:
                    basis = torch.linalg.qr(free)[0]
                    loss = interchange(tracer, pairs[i], states, layer, step, basis)[0]
                    (loss / len(some)).backward()  # type: ignore[no-untyped-call]
                    losses.append(float(loss.detach()))
                optimiser.step()
            curve.append(float(np.mean(losses)))
        return torch.linalg.qr(free.detach())[0].numpy(), curve


def interchange(tracer: Tracer, pair: Pair, states: np.ndarray, layer: int, step: int, basis: torch.Tensor | None) -> tuple[torch.Tensor, bool]:
    """Run a corrupted prompt with the clean state's part in a subspace (None: nothing is edited; width × width: all of it).

    Returns the clean answer's cross-entropy, with a graph to ``basis``, and whether its first token is the most likely one.
    """
    import torch

    from codi_engine.core.rollout.gradients import Edit

    source = torch.from_numpy(states[pair.row]).to(tracer.net.device)
    edits = [] if basis is None else [Edit("resid_post", layer, step, lambda h: h + basis.to(h) @ (basis.to(h).T @ (source.to(h) - h)))]
    loss, logits = tracer.measure(pair.prompt, pair.target, edits)
    return loss, int(logits.argmax()) == pair.target.gold[0]
