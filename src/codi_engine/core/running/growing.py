"""What a plan adds to a run that may have units already: cells and unedited rows that no earlier plan had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from codi_engine.core.planning.plan import BASELINE
from codi_engine.core.running.generations import Unit, generation, units_of
from codi_engine.core.running.inputs import KEY
from codi_engine.core.running.layout import array_specs
from codi_engine.core.running.marks import MARKED

if TYPE_CHECKING:
    from codi_engine.core.planning.plan import Plan
    from codi_engine.core.running.job import Job


def grow(job: Job, plan: Plan, inputs: Mapping[str, str]) -> None:
    """Add a plan record with units for what is new, if anything is.

    Parameters
    ----------
    inputs: name → digest of what the units will be computed from
    """
    from codi_engine.store.writer import RunWriter

    writer = job.writer
    units = units_of(writer.plans)
    done_cells = {k for u in units if u.stage == "sweep" for k in u.keys}
    cells = [c.key for c in plan.cells if c.key not in done_cells]
    baseline, pool, known = _unedited(plan, units)
    first = max((u.number for u in units), default=-1) + 1
    records = generation(first, baseline, pool, list(job.source_arrays), _lacking(job, units, known), cells, writer.unit_cells)
    due = {u.number for u in units} - set(writer.committed)
    if records or (due and MARKED not in getattr(writer, "specs", {})):  # a run of before knows no marks: its next plan declares them
        assert isinstance(writer, RunWriter)
        record = {"experiment": job.experiment.identity(), "units": records, **({KEY: dict(inputs)} if inputs else {})}
        writer.add_plan(record, len(records), array_specs(job), _labels(job, plan))


def _unedited(plan: Plan, units: Sequence[Unit]) -> tuple[list[tuple[list[str], int, int]], list[str], list[str]]:
    """Return prompts to run as baseline (by trials), prompts to run for their values, and prompts known before."""
    have: dict[str, int] = {}
    pooled: set[str] = set()
    for unit in units:
        for key in unit.keys if unit.stage == "baseline" else ():
            have[key] = max(have.get(key, 0), unit.first_trial + unit.trials)
        pooled |= set(unit.keys) if unit.stage == "sources" else set()
    groups: dict[int, list[str]] = {}
    for prompt in plan.prompts:
        if not prompt.pool and have.get(prompt.key, 0) < plan.trials:
            groups.setdefault(have.get(prompt.key, 0), []).append(prompt.key)
    baseline = [(keys, start, plan.trials - start) for start, keys in sorted(groups.items())]
    seen = set(have) | pooled
    pool = [p.key for p in plan.prompts if p.pool and p.key not in seen]
    known = [p.key for p in plan.prompts if p.key in seen]
    return baseline, pool, known


def _lacking(job: Job, units: Sequence[Unit], known: Sequence[str]) -> list[tuple[list[str], list[str]]]:
    """Return which of the known prompts lack which source arrays: earlier plans may have captured less, or of fewer prompts."""
    have: dict[str, set[str]] = {}
    for unit in units:
        for key in unit.keys if unit.stage != "sweep" else ():
            have.setdefault(key, set()).update(unit.sources)
    lacking: dict[tuple[str, ...], list[str]] = {}
    for key in known:
        names = tuple(name for name in job.source_arrays if name not in have[key])
        if names:
            lacking.setdefault(names, []).append(key)
    return [(keys, list(names)) for names, keys in lacking.items()]


def _labels(job: Job, plan: Plan) -> dict[str, list[Any]]:
    """Return array name → labels of this plan (the writer appends what is new)."""
    labels: dict[str, list[Any]] = {
        "cells/example": [e.id for e in plan.data.examples],
        "cells/condition": [BASELINE, *(c.name for c in plan.conditions)],
        "cells/variant": list(dict.fromkeys(v for e in plan.data.examples for v in e.prompts)),
    }
    if plan.trials > 1 or job.generate.do_sample:
        labels["cells/trial"] = list(range(plan.trials))
    labels.update({f"cells/{axis}": plan.axis_labels(axis) for axis in plan.axes})
    return labels
