"""What a plan will cost, estimated from its shape and a short measurement of this machine.

Time of a stage = calls of blocks × (the device's and the engine's overhead) + token rows × the block's time per row + a
constant per cell. The block is timed on the model's device, with the model's width and type; the engine's own overheads
were measured on the demo and are scaled with Python's speed here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.costs import Costs, StageCost
from codi_engine.core.planning.machine import BlockTime, block_parameters, block_time, python_speed, resident_bytes
from codi_engine.core.planning.needs import source_arrays
from codi_engine.core.rollout.devices import held
from codi_engine.core.rollout.memory import ROWS_ON_CPU, ROWS_ON_GPU, free_bytes, prefill_bytes, row_bytes
from codi_engine.core.running.captures import parse_captures
from codi_engine.core.running.generations import UNIT_CELLS, slots_of
from codi_engine.core.running.reading import ANSWER_TOKENS, Needs
from codi_engine.core.sites import COMPONENTS

if TYPE_CHECKING:
    from codi_engine.core.planning.plan import Condition
    from codi_engine.core.planning.preparing import Prepared

#: tokens per word of English, for prompts that are not tokenised yet
TOKENS_PER_WORD = 1.4
#: tokens to which prompts are padded
_PADDED = 16
#: a packed block with its shared-prefix attention against the plain block that is timed (demo, one core: 9.8 µs to 6.2 µs a row)
_PACKED = 1.6
#: seconds of Python: per block call, per stage of a batch, per cell; and of float64 passes over logits, per cell, metric and entry
_CALL, _STAGE, _CELL, _LOGIT = 4.5e-4, 1.5e-3, 2.5e-4, 4e-9
#: seconds: to set up a model, to load a gigabyte of weights (digest included), and before the first commit
_SETUP, _GIGABYTE = 0.2, 2.0
FIRST_COMMIT = 0.4
#: cells per condition that the gate runs, three times over
_GATE = 72
#: bytes of a cell's text, key and fields
_TEXT = 80
#: bytes of a cell's sparse codes for an eighth of what is captured of all features, or a list of them
_CODES = 64
_BYTES = {"float32": 4, "float64": 8, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class _Speed:
    """What one call, one row and one stage take."""

    block: BlockTime
    layers: int
    python: float
    head: float

    def stages(self, count: float) -> float:
        return count * (_STAGE * self.python + self.layers * (self.block.call + _CALL * self.python))

    def rows(self, tokens: float) -> float:
        return tokens * self.layers * self.block.row * _PACKED


def estimate(prepared: Prepared, prepared_in: float = 0.0, slowed: float = 1.0, price: float | None = None) -> Costs:
    """Estimate every stage of a prepared experiment; no weight is read.

    Parameters
    ----------
    prepared_in: seconds that preparing took (imports, data, plan): a run pays them again, as part of ``load``
    slowed: by this factor other processes slow this one (:class:`~codi_engine.core.planning.machine.Preparing`)
    price: per GPU-hour, or per hour of this machine on a CPU; default: the experiment's
    """
    shape = _Shape(prepared)
    info, python, block = shape.info, python_speed() * slowed, block_time(shape.info)
    block = BlockTime(block.call * slowed, block.row * slowed)
    head = 2 * info.width * info.vocab_size / (2 * block_parameters(info) / block.row)
    speed = _Speed(block, info.layers, python, head)
    weights = info.parameters * _BYTES.get(info.dtype, 4)
    fixed = (resident_bytes() or 0) if not info.device.startswith("cuda") else 0
    stages = [StageCost("load", prepared_in + _SETUP * python + weights / 1e9 * _GIGABYTE, 0, fixed + weights + weights // 4, 0)]
    memory = fixed + weights + shape.cache
    first, second = shape.disk()
    peak = memory + shape.batch_bytes(shape.prompt_tokens)
    stages.append(StageCost("baseline", _baseline_seconds(shape, speed), shape.baseline_rows, peak, first, shape.baseline_cells))
    if shape.plan.conditions:
        stages.append(StageCost("sweep", _sweep_seconds(shape, speed), shape.sweep_rows, memory + shape.batch_bytes(1), second, len(shape.plan.cells)))
    cells = shape.baseline_cells + len(shape.plan.cells)
    stages = spread(stages, prepared.devices, shape.slots)
    stages += [StageCost(f"analysis {name}", seconds) for name, seconds in _analyses(prepared, cells, python)]
    return Costs(stages, info.device, prepared.experiment.price if price is None else price, "the plan's shape and a block timed on this machine")


def spread(stages: Sequence[StageCost], devices: Sequence[str], slots: int = UNIT_CELLS) -> list[StageCost]:
    """Return the stages of a run on one device as they are on several: whole units run side by side, and the model is loaded twice.

    Workers on one CPU share its cores, and are taken to gain nothing. ``slots``: cells of a unit.
    """
    out, count = [], len(devices)
    for stage in stages:
        units = math.ceil((stage.cells or 0) / slots)
        share = 1.0
        if stage.stage == "load":
            share = 2.0 if count > 1 else 1.0
        elif units and held(devices) > 1:
            share = math.ceil(units / held(devices)) / units
        out.append(replace(stage, seconds=None if stage.seconds is None else stage.seconds * share).on(held(devices)))
    return out


def _baseline_seconds(shape: _Shape, speed: _Speed) -> float:
    batches = math.ceil(shape.unedited / shape.batch)
    rows = shape.padded + shape.unedited * shape.per_prompt
    seconds = speed.stages(batches * shape.stages) + speed.rows(rows) + shape.unedited * shape.cell_seconds(speed)
    return seconds + (FIRST_COMMIT * speed.python if shape.unedited else 0.0)


def _sweep_seconds(shape: _Shape, speed: _Speed) -> float:
    cells = len(shape.plan.cells)
    if not cells:
        return 0.0
    batches = math.ceil(cells / shape.slots) * math.ceil(shape.slots / shape.batch)
    seconds = speed.stages(batches * shape.stages) + speed.rows(shape.sweep_rows) + cells * shape.cell_seconds(speed)
    gate = len(shape.plan.conditions) * 3
    share = min(_GATE, cells / len(shape.plan.conditions)) / cells
    return seconds + speed.stages(gate * shape.stages) + gate * share * (speed.rows(shape.sweep_rows) + cells * shape.cell_seconds(speed))


def _analyses(prepared: Prepared, cells: int, python: float) -> list[tuple[str, float | None]]:
    """Return (analysis, seconds or None where its cost is not known)."""
    out: list[tuple[str, float | None]] = []
    for mapping in prepared.experiment.analyses:
        usual = prepared.plugins.get("analysis", mapping.plugin, "analyses").usual_seconds
        out.append((mapping.plugin, None if usual is None else (usual[0] + usual[1] * cells) * python))
    return out


class _Shape:
    """The plan in numbers: prompts, tokens, rows, bytes."""

    def __init__(self, prepared: Prepared) -> None:
        self.prepared, self.plan, self.info = prepared, prepared.plan, prepared.plan.info
        generate = prepared.experiment.generate
        self.needs = Needs.of(prepared.metrics, self.plan.data.kind != "prompts")
        self.lengths = [max(int(len(p.text.split()) * TOKENS_PER_WORD), 1) + 1 for p in self.plan.prompts]
        self.prompt_tokens = max(self.lengths, default=1)
        self.padded = sum(-(-n // _PADDED) * _PADDED for n in self.lengths)
        # a CODI answer ends after its number; a causal LM may use all tokens that it is given
        self.forced = (6 if self.info.latents else 0) if self.needs.number else (1 if self.info.latents else 0)
        self.decoded = min(generate.max_new_tokens, 2 if self.forced > 1 else 8 if self.info.latents else generate.max_new_tokens)
        self.answer = self.forced + max(self.decoded - 1, 0)
        self.per_prompt = self.info.latents + self.answer
        self.stages = self.info.latents + (1 if self.forced else 0) + self.decoded + (0 if self.info.latents else 1)
        trials = self.plan.trials
        self.unedited = sum(1 if p.pool else trials for p in self.plan.prompts)
        self.baseline_cells = sum(not p.pool for p in self.plan.prompts) * trials
        self.baseline_rows = sum(self.lengths) + self.unedited * self.per_prompt
        examples = len(self.plan.data.examples)
        swept = sum(self._tokens(point, c) * min(examples, c.examples or examples) for c in self.plan.conditions for point in c.points())
        self.sweep_rows = int(swept * trials)
        size = prepared.experiment.batch_size
        self.slots = slots_of(prepared.experiment.unit_cells, trials)
        most = ROWS_ON_GPU if self.info.device.startswith("cuda") else ROWS_ON_CPU
        self.batch = min(self.slots, size if isinstance(size, int) else most)
        kv = 2 * self.info.layers * self.info.kv_heads * self.info.head_dim * _BYTES.get(self.info.dtype, 4)
        free = free_bytes() if self.info.device == "cpu" else 0  # of a GPU nothing is asked before a model is loaded
        self.cache = int(min(prefill_bytes(free, prepared.experiment.memory), 2 * self.padded * kv))

    def _tokens(self, point: dict[str, Any], condition: Condition) -> float:
        """Tokens that one cell computes: from its branch point on, nothing before it."""
        if condition.tokens is not None:
            return float((self.prompt_tokens if condition.tokens == "all" else 1) + self.per_prompt)
        if condition.phase == "latent":
            depth = point.get("layer")
            first = min(depth) / self.info.layers if isinstance(depth, tuple) and depth else 0.0
            return float((1.0 - first) + (self.info.latents - 1 - min(point["step"])) + self.answer)
        if condition.phase == "prompt":
            places = point["position"]
            deepest = max(-p if p < 0 else self.prompt_tokens - p for p in places)
            return float(max(deepest, 1) + self.per_prompt)
        return float(self.answer)

    def cell_seconds(self, speed: _Speed) -> float:
        """What a cell costs beside its blocks: Python, the head, and float64 passes of its metrics."""
        logits = self.forced + self.decoded
        return (_CELL + _LOGIT * self.info.vocab_size * (2 + len(self.prepared.metrics))) * speed.python + logits * speed.head

    def batch_bytes(self, tokens: int) -> int:
        suffix = self.info.latents + self.answer + self.prepared.experiment.generate.max_new_tokens
        return self.batch * row_bytes(self.info, _BYTES.get(self.info.dtype, 4), suffix, tokens if tokens == 1 else -(-tokens // 8))

    def disk(self) -> tuple[int, int]:
        """Return bytes of baseline and sweep: every unit writes whole shards."""
        plan, experiment, info = self.plan, self.prepared.experiment, self.info
        columns = sum(len(m.columns()) for m in self.prepared.metrics)
        scalars = 8 * (columns + 1) + 4 * (len(plan.axes) + 3 + (plan.trials > 1)) + 1
        kept = 0
        for capture in parse_captures(experiment.site_captures, info, frozenset(COMPONENTS), self.prompt_tokens, experiment.source):
            width = self._width(capture.site.component)
            kept += len(capture.layers) * len(capture.places) * width * 4
        kept += sum(_CODES * (16 if spec.features == "all" else 8) for spec in experiment.code_captures)
        taken = 8 + (info.vocab_size * 4 + 4 * 8 * ANSWER_TOKENS if self.needs.number else 0) + (info.vocab_size * 4 if self.needs.first else 0)
        for component, _, _, places in source_arrays(plan, self.prepared.plugins, self.lengths, 6).values():
            taken += len(places) * self._width(component) * 4
        cells, pool = self.baseline_cells, self.unedited - self.baseline_cells
        first, values, second = (units_in([count], self.slots) * self.slots for count in (cells, pool, len(plan.cells)))  # whole shards
        baseline = first * (scalars + kept) + (first + values) * taken + cells * _TEXT
        return baseline, second * (scalars + kept) + len(plan.cells) * _TEXT

    def _width(self, component: str) -> int:
        heads = {"attn_z": self.info.heads, "q": self.info.heads, "k": self.info.kv_heads, "v": self.info.kv_heads}
        if component in heads:
            return heads[component] * self.info.head_dim
        return {"logits": self.info.vocab_size, "mlp_act": self.info.mlp_width}.get(component, self.info.width)


def units_in(counts: Sequence[int], slots: int) -> int:
    """Units of stages with so many cells, of so many slots each."""
    return sum(math.ceil(n / slots) for n in counts)
