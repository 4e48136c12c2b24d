"""The second stage: edited cells, unit by unit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from codi_engine.core.calling import calling
from codi_engine.core.errors import GateError
from codi_engine.core.planning.plan import Cell, axis_label, build_intervention, prompt_ref
from codi_engine.core.plugin import Intervention, Outcome, Readings
from codi_engine.core.returned import neutral_of
from codi_engine.core.rollout.accounting import Missed
from codi_engine.core.rollout.editing import Editor, Placed
from codi_engine.core.rollout.memory import in_batches
from codi_engine.core.rollout.rollout import Want
from codi_engine.core.rollout.sampling import redrawn
from codi_engine.core.rollout.sources import Sources
from codi_engine.core.running.bank import Bank
from codi_engine.core.running.captures import captured
from codi_engine.core.running.finite import undefined
from codi_engine.core.running.generations import Unit
from codi_engine.core.running.job import Job, field_columns, numbers
from codi_engine.core.running.marks import MARKED
from codi_engine.core.running.natural import Naturals, natural_examples
from codi_engine.core.running.parts import Part, drawn_again, first_part, join
from codi_engine.core.running.reading import measure, outcome


def editor_for(
    job: Job, bank: Bank | None, sources: Sources | None = None, record: bool = False, own_source: bool = False, neutral: bool = False, natural: bool = False
) -> Editor:
    """Return an editor over the committed baseline.

    ``own_source`` and ``neutral`` make identities of it, for the gate; ``natural`` keeps how far new values lie among natural ones.
    """
    if sources is None:
        assert bank is not None
        sources = bank.sources()
    values = sources
    values.saes, values.model_digest = job.saes, job.net.adapter.digest
    values.broken_too = not job.watch.stops_unedited

    def build(condition: Any, options: Mapping[str, Any]) -> Intervention[Any]:
        intervention = build_intervention(job.plugins, condition.plugin, options, f"conditions.{condition.name}", job.experiment.source)
        intervention = (neutral_of(intervention) or intervention) if neutral else intervention
        with calling(intervention, "prepare"):
            intervention.prepare(values)
        return intervention

    experiment = job.experiment
    naturals = Naturals(values, _natural_prompts(job), job.lengths) if natural else None
    return Editor(job.net, job.plan.conditions, build, values, job.lengths, experiment.seed, experiment.common_random_numbers, record, own_source, naturals)


def _natural_prompts(job: Job) -> dict[str, list[int]]:
    """Condition → its natural prompts, as indices of the job's prompts."""
    examples = natural_examples(job.plan.data)
    return {c.name: [job.index[prompt_ref(e, c.variant, c.template).key] for e in examples] for c in job.plan.conditions if not c.plugin.ends_latents}


def place(job: Job, cell: Cell) -> Placed:
    """Find the prompts of a cell: the one it runs, its partner and its donor."""
    condition = job.plan.conditions[cell.condition]
    example = job.examples[cell.example]
    prompt = job.index[prompt_ref(example, condition.variant, condition.template).key]
    partner = prompt if condition.partner == condition.variant else job.index[prompt_ref(example, condition.partner, condition.template).key]
    donor = None
    source = partner
    if condition.plugin.source == "donor":
        name = job.plan.donors.of(cell.example, condition, cell.values)
        source = donor = job.index[prompt_ref(job.examples[name], condition.variant, condition.template).key]
    elif condition.control == "shuffled":
        stranger = job.plan.donors.shuffled(cell.example, condition)
        assert stranger is not None  # without one the plan has no cell
        source = job.index[prompt_ref(job.examples[stranger], condition.partner, condition.template).key]
    return Placed(cell, prompt, partner, donor, source)


def run_sweep(job: Job, unit: Unit, bank: Bank, editor: Editor) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
    """Run the edited cells of a unit and return its arrays and texts."""
    placed = [place(job, job.cells[key]) for key in unit.keys]
    readers = job.readers()
    want = job.want((), job.captures, readers)
    parts: list[Part] = []
    columns: list[dict[str, np.ndarray]] = []

    def draw(batch: Sequence[Placed], attempt: int) -> Part:
        return edited_batch(job, batch, want, editor, attempt=attempt).with_codes(readers)

    def run(batch: Sequence[Placed]) -> None:
        if editor.naturals is not None:
            editor.naturals.begin()
        part = drawn_again(batch, draw, job.fits, job.generate.retries)
        unusual = None if editor.naturals is None else editor.naturals.of(batch)
        if part.broken.any():
            job.watch.edited(job, batch, part.broken, lambda p: (editor.tasks([p], {p.prompt: 0})[0], editor.apply))
        part = replace(part, broken=part.broken | bank.marked_references(batch))
        columns.append(undefined(_metrics(job, batch, bank, part.done, unusual), part.broken))
        job.watch.metrics([job.plan.conditions[p.cell.condition].name for p in batch], batch, columns[-1])
        parts.append(part)

    size = job.batch_rows(1)
    held = in_batches(placed, size, run, job.note)
    if held < size:
        job.rows = held
    whole = join(parts)
    arrays = {f"cells/metrics/{name}": np.concatenate([c[name] for c in columns]) for name in columns[0]}
    arrays["cells/answer"] = np.where(whole.broken, np.nan, whole.done.answer)
    if whole.broken.any():
        arrays[MARKED] = whole.broken.astype(np.uint8)
    arrays.update(job.attempts(whole.attempts))
    arrays.update(job.stored(unit, whole.values))
    arrays.update(_cell_axes(job, placed))
    keys = [p.cell.key for p in placed]
    examples = [job.examples[p.cell.example] for p in placed]
    return arrays, {"key": keys, "text": list(whole.done.text), "answer_rule": whole.rules, **field_columns(job, examples)}


def edited_batch(job: Job, placed: Sequence[Placed], want: Want, editor: Editor, own: bool = False, attempt: int = 0, bare: bool = False) -> Part:
    """Run edited cells together and return their outcome, answer rules and captures.

    ``attempt``: of drawing the text. ``bare``: leave the edits out and keep the cells' random numbers.
    """
    prompts = sorted({p.prompt for p in placed})
    ids, numbers = job.shared(job.order[p] for p in prompts)
    local = {p: numbers[job.order[p]] for p in prompts}
    tasks = []
    for task, p in zip(editor.tasks(placed, local, own), placed, strict=True):
        gold, other = forced_answers(job, p)
        forced = (job.answers.tokens(gold), job.answers.tokens(other)) if want.read else ((), ())
        task = replace(task, edits={}, latents=None) if bare else task
        tasks.append(replace(task, gold=forced[0], other=forced[1], key=redrawn(task.key, attempt)))
    try:
        produced = job.rollout.run(ids, tasks, want, editor.apply)
    except Missed as missed:
        raise _unfired(job, placed[missed.cell], missed) from None
    editor.unsettled.settle()
    job.forwarded += produced.forwarded
    lengths = np.array([job.lengths[p.prompt] for p in placed])
    values = {c.array: captured(c, produced, want.captures, lengths) for c in job.captures if want.captures or c.site.component == "logits"}
    kept = {c.name: values[c.array] for c in job.captures if c.array in values}
    done, rules = outcome(produced, job.net.adapter, kept)
    return first_part(done, rules, values, produced.broken)


def _unfired(job: Job, placed: Placed, missed: Missed) -> GateError:
    """Name the condition, the site and the cell of an edit that was planned and not made."""
    cell, at = placed.cell, missed.site if missed.place is None else f"{missed.site}[{missed.place}]"
    where = ", ".join([f"example '{cell.example}'", *(f"{axis} {value}" for axis, value in cell.values.items())])
    return GateError(
        f"condition '{job.plan.conditions[cell.condition].name}': the edit at {at} did not fire as planned ({missed.why}); cell: {where}.\n"
        "Nothing of its unit is stored. This is a defect of codi-engine or of the intervention: please report it with the experiment file."
    )


def answers_of(job: Job, placed: Placed) -> tuple[float | None, float | None]:
    """Return the gold answer of the prompt that runs, and the other one: the partner's, or the donor's."""
    ref = job.prompts[job.order[placed.prompt]]
    if placed.donor is not None:
        return ref.gold, job.prompts[job.order[placed.donor]].gold
    return ref.gold, ref.other


def forced_answers(job: Job, placed: Placed) -> tuple[float | None, float | None]:
    """Return the answers whose logits are read: for pairs always the two sides', as in the unedited cells they are compared with."""
    ref = job.prompts[job.order[placed.prompt]]
    return (ref.gold, ref.other) if job.plan.data.kind == "pairs" else answers_of(job, placed)


def _metrics(job: Job, placed: Sequence[Placed], bank: Bank, done: Outcome, unusual: np.ndarray | None) -> dict[str, np.ndarray]:
    both, read_of = [answers_of(job, p) for p in placed], [forced_answers(job, p) for p in placed]
    trials = [p.cell.trial for p in placed]
    keys = [job.order[p.prompt] for p in placed]
    sides: dict[str, Any] = {}
    if job.plan.data.kind == "pairs":
        variants = [job.plan.conditions[p.cell.condition].variant for p in placed]
        partners = [job.order[p.partner] for p in placed]
        clean = [k if v == "clean" else q for k, q, v in zip(keys, partners, variants, strict=True)]
        corrupted = [q if v == "clean" else k for k, q, v in zip(keys, partners, variants, strict=True)]
        sides = {
            "clean": bank.outcome(clean, trials), "corrupted": bank.outcome(corrupted, trials),
            "clean_is_gold": np.array([v == "clean" for v in variants]),
        }  # fmt: skip
    read = Readings(
        labels={
            "example": np.array([p.cell.example for p in placed], object),
            "condition": np.array([job.plan.conditions[p.cell.condition].name for p in placed], object),
        },
        gold=numbers(g for g, _ in both), other=numbers(o for _, o in both),
        gold_token=job.first_tokens([g for g, _ in read_of]), other_token=job.first_tokens([o for _, o in read_of]),
        edited=done, baseline=bank.outcome(keys, trials), predicted=_predicted(job, placed), unusual=unusual,
        encode=job.net.adapter.encode, **sides,
    )  # fmt: skip
    return measure(job.metrics, read, job.column)


def _predicted(job: Job, placed: Sequence[Placed]) -> np.ndarray:
    """The answer that the algebra predicts of each exchange; NaN where it predicts none."""
    out = []
    for p in placed:
        donor = None if p.donor is None else job.prompts[job.order[p.donor]].example
        condition = job.plan.conditions[p.cell.condition]
        out.append(None if donor is None else job.plan.donors.predicted(p.cell.example, donor, condition, p.cell.values))
    return numbers(out)


def _cell_axes(job: Job, placed: Sequence[Placed]) -> dict[str, np.ndarray]:
    conditions = [job.plan.conditions[p.cell.condition] for p in placed]
    arrays: dict[str, np.ndarray] = {
        "cells/status": np.ones(len(placed), np.uint8),
        "cells/example": np.array([job.code("example", p.cell.example) for p in placed], np.int32),
        "cells/condition": np.array([job.code("condition", c.name) for c in conditions], np.int32),
        "cells/variant": np.array([job.code("variant", c.variant) for c in conditions], np.int32),
    }
    if "trial" in job.codes:
        arrays["cells/trial"] = np.array([job.code("trial", p.cell.trial) for p in placed], np.int32)
    for axis in job.plan.axes:
        arrays[f"cells/{axis}"] = np.array([job.code(axis, axis_label(axis, p.cell.values[axis])) if axis in p.cell.values else -1 for p in placed], np.int32)
    return arrays
