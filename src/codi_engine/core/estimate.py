"""What a plan will cost, estimated from the model's shape and a short measurement of this machine's matrix rate."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from codi_engine.core.captures import parse_captures
from codi_engine.core.needs import source_arrays
from codi_engine.core.sites import COMPONENTS

if TYPE_CHECKING:
    from codi_engine.core.runner import Prepared

#: tokens per word of English, for prompts that are not tokenised yet
TOKENS_PER_WORD = 1.4
#: share of the matrix rate that a sweep reaches on a CPU (benchmarks/sweep.py)
EFFICIENCY = 0.5


def estimate(prepared: Prepared) -> tuple[int, int, float]:
    """Return (token rows through the model, bytes on disk, seconds at this machine's CPU rate)."""
    plan, experiment = prepared.plan, prepared.experiment
    info = plan.info
    lengths = [max(int(len(p.text.split()) * TOKENS_PER_WORD), 1) + 1 for p in plan.prompts]
    answer = min(experiment.generate.max_new_tokens, 12) + 2
    per_prompt = info.latents + answer
    tokens = float(sum(lengths)) + len(plan.prompts) * plan.trials * per_prompt
    for condition in plan.conditions:
        share = 0.0
        for point in condition.points():
            share += info.latents + answer + 1.0 if condition.tokens is not None else _tokens_of(point, condition.phase, info.layers, info.latents, answer)
        tokens += share * min(len(plan.data.examples), condition.examples or len(plan.data.examples)) * plan.trials
    flops = 2.0 * info.parameters * tokens
    return int(tokens), _disk(prepared, lengths), flops / (_matrix_rate() * EFFICIENCY) + 2.0


def _tokens_of(point: dict[str, object], phase: str, layers: int, latents: int, answer: int) -> float:
    """Tokens that one cell computes: from its branch point on, nothing before it."""
    if phase == "latent":
        steps = point["step"]
        assert isinstance(steps, tuple)
        depth = point.get("layer")
        first = min(depth) / layers if isinstance(depth, tuple) and depth else 0.0
        return float((1.0 - first) + (latents - 1 - min(steps)) + answer)
    if phase == "prompt":
        places = point["position"]
        assert isinstance(places, tuple)
        return float(max(-min(places), 1) + latents + answer)
    return float(answer)


def _disk(prepared: Prepared, lengths: list[int]) -> int:
    plan, experiment, info = prepared.plan, prepared.experiment, prepared.plan.info
    rows = len(plan.prompts) * plan.trials
    scalars = 8 * (len(prepared.metrics) + 1) + 4 * (len(plan.axes) + 3) + 160
    total = (len(plan.cells) + rows) * scalars + rows * info.vocab_size * 4
    for capture in parse_captures(experiment.site_captures, info, frozenset(COMPONENTS), max(lengths), experiment.source):
        width = info.vocab_size if capture.site.component == "logits" else info.width
        total += (len(plan.cells) + rows) * len(capture.layers) * len(capture.places) * width * 4
    for _, _, _, places in source_arrays(plan, prepared.plugins, lengths, 6).values():
        total += len(plan.prompts) * len(places) * info.width * 4
    return total


def _matrix_rate() -> float:
    """FLOP/s of a matrix product of a sweep's size, measured for a moment."""
    a, b = np.ones((256, 768), np.float32), np.ones((768, 768), np.float32)
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - begun)
    return 2 * 256 * 768 * 768 / best
