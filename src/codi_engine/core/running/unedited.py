"""The first stage: prompts unedited, each a cell of its own, or run for the values that edits take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from codi_engine.core.planning.needs import Need
from codi_engine.core.planning.plan import BASELINE, PromptRef
from codi_engine.core.plugin import Outcome, Readings
from codi_engine.core.rollout.memory import in_batches
from codi_engine.core.rollout.rollout import Task, Want
from codi_engine.core.rollout.sampling import redrawn
from codi_engine.core.running.captures import Capture, block, captured
from codi_engine.core.running.finite import undefined
from codi_engine.core.running.generations import Unit
from codi_engine.core.running.job import Job, field_columns, numbers
from codi_engine.core.running.marks import MARKED
from codi_engine.core.running.parts import OUTCOME, Part, drawn_again, first_part, join
from codi_engine.core.running.reading import measure, outcome, take
from codi_engine.store.errors import StoreError


def run_unedited(job: Job, unit: Unit) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
    """Run the prompts of a ``baseline`` or ``sources`` unit and return its arrays and texts."""
    sources = {name: job.source_arrays[name] for name in unit.sources}
    is_baseline = unit.stage == "baseline"
    rows = [(key, unit.first_trial + t) for key in unit.keys for t in range(unit.trials)]
    captures = job.captures if is_baseline else ()
    readers = job.readers() if is_baseline else []
    want = job.want(list(sources.values()), captures, readers)
    parts: list[Part] = []

    def draw(batch: Sequence[tuple[str, int]], attempt: int) -> Part:
        return _unedited_batch(job, batch, want, sources, captures, attempt).with_codes(readers)

    def run(batch: Sequence[tuple[str, int]]) -> None:
        part = drawn_again(batch, draw, job.fits, job.generate.retries if is_baseline else 0)
        job.watch.unedited(job, [key for key, _ in batch], part.broken, lambda key: _task(job, key, 0, 0, want.read))
        parts.append(part)

    places = job.reuse.found(unit) if job.reuse is not None else [None] * len(rows)
    known = [i for i, place in enumerate(places) if place is not None]
    first_of = {ids: i for i, ids in reversed(list(enumerate(job.ids[key] for key, _ in rows)))}
    due = sorted((i for i, place in enumerate(places) if place is None), key=lambda i: first_of[job.ids[rows[i][0]]])  # equal prompts side by side
    if job.reuse is not None and known:
        parts.append(job.reuse.part(unit, [rows[i][0] for i in known], [place for place in places if place is not None]))
    tokens = max((-min(p) for (_, phase), (_, p) in want.captures.items() if phase == "prompt"), default=1)
    size = max(job.batch_rows(tokens) // max(tokens // 4, 1), 1)
    held = in_batches([rows[i] for i in due], size, run, job.note)
    if held < size:
        job.rows = held
    whole = join(parts)
    if (order := np.argsort([*known, *due])).tolist() != list(range(len(rows))):
        whole = whole.take(order)
    arrays = {**job.stored(unit, whole.values), **_outcome_arrays(job, whole.done)}
    texts: dict[str, list[Any]] = {}
    broken = _with_sides(job, rows, whole.broken)
    if broken.any():
        arrays[MARKED] = broken.astype(np.uint8)
    if is_baseline:
        arrays.update(_baseline_cells(job, rows, whole.done, broken))
        arrays.update(job.attempts(whole.attempts))
        texts = _texts(job, rows, whole)
    return arrays, texts


def _unedited_batch(job: Job, batch: Sequence[tuple[str, int]], want: Want, sources: Mapping[str, Need], captures: Sequence[Capture], attempt: int) -> Part:
    ids, local = job.shared(key for key, _ in batch)
    tasks = [replace(_task(job, key, trial, attempt, want.read), prompt=local[key]) for key, trial in batch]
    produced = job.rollout.run(ids, tasks, want)
    job.forwarded += produced.forwarded
    lengths = np.array([len(job.ids[key]) for key, _ in batch])
    values = {name: block(produced, want.captures, c, layer, phase, places, lengths) for name, (c, layer, phase, places) in sources.items()}
    values.update({c.array: captured(c, produced, want.captures, lengths) for c in captures})
    kept = {c.name: values[c.array] for c in captures}
    done, rules = outcome(produced, job.net.adapter, kept)
    return first_part(done, rules, values, produced.broken)


def _task(job: Job, key: str, trial: int, attempt: int, read: bool) -> Task:
    """Return the task of an unedited row, alone in its batch."""
    ref = job.prompts[key]
    gold, other = (job.answers.tokens(ref.gold), job.answers.tokens(ref.other)) if read else ((), ())
    return Task(0, gold=gold, other=other, key=redrawn(job.trial_key(ref.example, trial), attempt))


def _with_sides(job: Job, rows: Sequence[tuple[str, int]], broken: np.ndarray) -> np.ndarray:
    """Mark both sides of a pair where one is not finite: each is compared with the other."""
    if job.plan.data.kind != "pairs" or not broken.any():
        return broken
    names = [(job.prompts[key].example, trial) for key, trial in rows]
    bad = {name for name, b in zip(names, broken, strict=True) if b}
    return np.array([name in bad for name in names])


def _outcome_arrays(job: Job, done: Outcome) -> dict[str, np.ndarray]:
    """What later stages read of an unedited row: its answer and the logits that metrics compare with."""
    arrays = {"sources/answer/value": done.answer[:, None]}
    if job.needs.number:
        arrays["sources/number_logits/value"] = done.number_logits.cpu().numpy()
        arrays.update({f"sources/{name}/value": getattr(done, name) for name in OUTCOME})
    if job.needs.first:
        arrays["sources/first_logits/value"] = done.first_logits.cpu().numpy()
    return arrays


def _baseline_cells(job: Job, rows: Sequence[tuple[str, int]], done: Outcome, broken: np.ndarray) -> dict[str, np.ndarray]:
    refs = [job.prompts[key] for key, _ in rows]
    read = Readings(
        labels={"example": np.array([r.example for r in refs], object), "condition": np.full(len(refs), BASELINE, object)},
        gold=numbers(r.gold for r in refs), other=numbers(r.other for r in refs),
        gold_token=job.first_tokens([r.gold for r in refs]), other_token=job.first_tokens([r.other for r in refs]),
        edited=done, baseline=done, encode=job.net.adapter.encode, **_sides(job, rows, refs, done),
    )  # fmt: skip
    arrays = {f"cells/metrics/{name}": values for name, values in undefined(measure(job.metrics, read, job.column), broken).items()}
    count = len(rows)
    arrays["cells/answer"] = np.where(broken, np.nan, done.answer)
    arrays["cells/status"] = np.ones(count, np.uint8)
    arrays["cells/example"] = np.array([job.code("example", r.example) for r in refs], np.int32)
    arrays["cells/condition"] = np.array([job.code("condition", BASELINE)] * count, np.int32)
    arrays["cells/variant"] = np.array([job.code("variant", r.variant) for r in refs], np.int32)
    if "trial" in job.codes:
        arrays["cells/trial"] = np.array([job.code("trial", t) for _, t in rows], np.int32)
    for axis in job.plan.axes:
        arrays[f"cells/{axis}"] = np.full(count, -1, np.int32)
    return arrays


def _sides(job: Job, rows: Sequence[tuple[str, int]], refs: Sequence[PromptRef], done: Outcome) -> dict[str, Any]:
    """For pairs, the clean and corrupted outcomes of each baseline row, found within the unit."""
    if job.plan.data.kind != "pairs":
        return {}
    place = {(r.example, r.variant, t): i for i, (r, (_, t)) in enumerate(zip(refs, rows, strict=True))}
    found = {}
    for side in ("clean", "corrupted"):
        index = [place.get((r.example, side, t)) for r, (_, t) in zip(refs, rows, strict=True)]
        if any(i is None for i in index):
            raise StoreError("a baseline unit separates the two sides of a pair")
        found[side] = take(done, [i for i in index if i is not None])
    return {**found, "clean_is_gold": np.array([r.variant == "clean" for r in refs])}


def _texts(job: Job, rows: Sequence[tuple[str, int]], whole: Part) -> dict[str, list[Any]]:
    keys = [key for key, _ in rows]
    examples = [job.examples[job.prompts[k].example] for k in keys]
    return {"key": keys, "text": list(whole.done.text), "answer_rule": whole.rules, **field_columns(job, examples)}
