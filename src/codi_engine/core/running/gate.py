"""The gate: before a sweep, every kind of edit must fire where the plan says, change its site, and be exact where it is an identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.calling import calling
from codi_engine.core.errors import GateError
from codi_engine.core.planning.plan import Cell, Condition
from codi_engine.core.plugin import Intervention, Outcome
from codi_engine.core.returned import neutral_of
from codi_engine.core.rollout.editing import Editor, Placed
from codi_engine.core.rollout.sources import Sources

if TYPE_CHECKING:
    from codi_engine.core.rollout.tasks import Want
    from codi_engine.core.running.bank import Bank
    from codi_engine.core.running.job import Job

#: examples of the gate
EXAMPLES = 3


def run_gate(job: Job, bank: Bank, exact: bool = True) -> list[dict[str, Any]]:
    """Check every condition on a few examples.

    Returns
    -------
    one record per condition and site: rows edited and changed, norms before and after, first values, identity

    Raises
    ------
    GateError: an edit did not fire, fired elsewhere, changed nothing although it should, or an identity was not exact
    """
    from codi_engine.core.running.sweeping import edited_batch, editor_for

    records: list[dict[str, Any]] = []
    for number, condition in enumerate(job.plan.conditions):
        placed = _chosen(job, number)
        if not placed:
            continue
        want = job.want((), ())
        editor = editor_for(job, bank, record=True)
        unedited = _unedited(job, bank, placed, editor, want)
        edited = edited_batch(job, placed, want, editor).done
        exempt = condition.plugin.gate_exempt
        _fired_as_planned(job, placed, editor, condition, exempt)
        # a control edits through the same calls at the same places as its condition, whose identities are checked
        identity = f"exempt: {exempt}" if exempt else "as its condition" if condition.control else _identities(job, bank, placed, unedited, exact)
        interventions = [g.intervention for g in editor.groups[2:] if g.intervention is not None]
        if condition.control is None:
            if interventions and all(_is_identity(i) for i in interventions):
                _exact(job, condition.name, "its options change nothing (identity)", edited, unedited, exact)
            _changed(condition.name, editor)
        records += _records(condition.name, editor, identity)
    return records


def verdicts(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one record per condition: rows edited and changed over its sites, and what putting back the site's own value did."""
    found: dict[str, dict[str, Any]] = {}
    for r in records:
        at = found.setdefault(r["condition"], {"condition": r["condition"], "sites": 0, "rows edited": 0, "rows changed": 0, "put back": r["self_patch"]})
        for key, more in (("sites", 1), ("rows edited", r["rows"]), ("rows changed", r["changed"])):
            at[key] += int(more)
    return list(found.values())


def _is_identity(intervention: Intervention[Any]) -> bool:
    with calling(intervention, "identity"):
        return bool(intervention.identity())


def _chosen(job: Job, condition: int) -> list[Placed]:
    """Return the first examples' cells, spread over the condition's axes."""
    from codi_engine.core.running.sweeping import place

    by_example: dict[str, list[Cell]] = {}
    for cell in job.plan.cells:
        if cell.condition == condition and cell.trial == 0:
            by_example.setdefault(cell.example, []).append(cell)
            if len(by_example) > EXAMPLES:
                break
    chosen = [c for cells in list(by_example.values())[:EXAMPLES] for c in cells[:: max(len(cells) // 24, 1)]]
    return [place(job, c) for c in chosen]


def _unedited(job: Job, bank: Bank, placed: Sequence[Placed], editor: Editor, want: Want) -> Outcome:
    """Return the unedited outcomes; of sampled texts with the cells' own random numbers, because those of the baseline are others."""
    from codi_engine.core.running.sweeping import edited_batch

    if job.generate.do_sample:
        return edited_batch(job, placed, want, editor, bare=True).done
    return bank.outcome([job.order[p.prompt] for p in placed], [p.cell.trial for p in placed])


def _fired_as_planned(job: Job, placed: Sequence[Placed], editor: Editor, condition: Condition, exempt: str) -> None:
    """Every (site, place) that the cells address, and no other, must have been edited."""
    planned: dict[str, set[int]] = {}
    opened: set[str] = set()
    for task in editor.tasks(placed, {p.prompt: 0 for p in placed}):
        for edits in task.edits.values():
            for edit in edits:
                if edit.place is None:
                    opened.add(str(edit.site))
                else:
                    planned.setdefault(str(edit.site), set()).add(edit.place)
    fired: dict[str, set[int]] = {}
    for (_, site), record in editor.fired.items():
        fired.setdefault(site, set()).update(record.places)
    for site in opened:
        planned[site] = fired.get(site, set())  # as many as the text is long
    if planned != fired:
        missing = {s: sorted(p - fired.get(s, set())) for s, p in planned.items() if p - fired.get(s, set())}
        extra = {s: sorted(p - planned.get(s, set())) for s, p in fired.items() if p - planned.get(s, set())}
        raise GateError(f"gate: edits did not fire as planned; missing {missing or 'none'}, unplanned {extra or 'none'}")
    if not exempt and condition.tokens is None and not condition.plugin.ends_latents:
        _as_addressed(placed, editor, condition)
    reached = [editor.reach(condition, editor.group_of(p), p.cell.values, p.prompt) for p in placed]
    if not condition.plugin.ends_latents and not any(places for phases in reached for places in phases.values()):
        raise GateError(f"gate: condition '{condition.name}': '{condition.plugin.name}' edits no place of any cell; a hook that never fires has no effect")


def _as_addressed(placed: Sequence[Placed], editor: Editor, condition: Condition) -> None:
    """An intervention may not edit in another phase or at other places than the cell addresses."""
    for p in placed:
        group = editor.group_of(p)
        reached = {phase: sorted(x for x in places if x is not None) for phase, places in editor.reach(condition, group, p.cell.values, p.prompt).items()}
        addressed = {condition.phase: sorted(editor.addressed(p))}
        if {k: v for k, v in reached.items() if v} != addressed:
            raise GateError(
                f"gate: condition '{condition.name}': '{condition.plugin.name}' edits at {_places(reached)}, but the cell addresses {_places(addressed)}.\n"
                "A hook that fires elsewhere (in the prefill, for instance), or not at all, measures something else."
            )


def _places(by_phase: Mapping[Any, Sequence[int]]) -> str:
    return ", ".join(f"{phase}{list(places)}" for phase, places in by_phase.items() if places) or "no place"


def _changed(condition: str, editor: Editor) -> None:
    """An intervention that is no identity, and whose options let no value rest, must change its site somewhere."""
    for (name, site), record in editor.fired.items():
        if name == condition and record.must_change and record.changed == 0 and record.same < record.rows:
            raise GateError(f"gate: condition '{condition}' edited {record.rows} rows at {site} and changed none of them")


def _identities(job: Job, bank: Bank, placed: Sequence[Placed], unedited: Outcome, exact: bool) -> str:
    """Three identities: the site's own value put back; the intervention fed with the row's own values; its neutral options."""
    from codi_engine.core.running.sweeping import edited_batch, editor_for

    want, condition = job.want((), ()), job.plan.conditions[placed[0].cell.condition]
    values = _own_values(job, placed)
    editor = editor_for(job, bank, sources=values)
    said = _exact(job, condition.name, "self-patch", edited_batch(job, placed, want, editor, own=True).done, unedited, exact)
    probe = editor.groups[editor.group_of(placed[0])].intervention
    if probe is not None and probe.source in ("own", "partner", "donor"):
        swap = editor_for(job, bank, own_source=True)
        _exact(job, condition.name, "self-swap (its own values in place of the source's)", edited_batch(job, placed, want, swap).done, unedited, exact)
    if probe is not None and neutral_of(probe) is not None:
        neutral = editor_for(job, bank, neutral=True)
        _exact(job, condition.name, "the intervention with neutral options", edited_batch(job, placed, want, neutral).done, unedited, exact)
    return said


def _own_values(job: Job, placed: Sequence[Placed]) -> Sources:
    """Capture the unedited values at the planned places (they need not be among the run's sources)."""
    from codi_engine.core.rollout.rollout import Task, Want
    from codi_engine.core.rollout.sources import array_name
    from codi_engine.core.running.sweeping import editor_for

    probe = editor_for(job, None, Sources(_nowhere, _nothing))
    prompts = sorted({p.prompt for p in placed})
    local = {p: i for i, p in enumerate(prompts)}
    sites = {(e.site, phase, e.place) for t in probe.tasks(placed, local, own=True) for phase, edits in t.edits.items() for e in edits if e.place is not None}
    wanted: dict[Any, tuple[set[Any], set[int]]] = {}
    for site, phase, at in sites:
        layers, places = wanted.setdefault((site.component, phase), (set(), set()))
        layers.add(site.layer)
        places.add(at)
    captures = {k: (tuple(sorted(layers, key=lambda x: -1 if x is None else x)), tuple(sorted(places))) for k, (layers, places) in wanted.items()}
    generate = any(phase == "answer" for _, phase in captures)
    want = Want(captures, generate=False, read=generate and job.needs.number, first=generate, prefix=job.answers.prefix)
    produced = job.rollout.run([job.ids[job.order[p]] for p in prompts], [Task(i) for i in range(len(prompts))], want)
    arrays: dict[str, np.ndarray] = {}
    for site, phase, at in sites:
        name, index = array_name(site.component, site.layer, phase, at)
        value = produced.captures[site.component, site.layer, phase][:, captures[site.component, phase][1].index(at)]
        array = arrays.setdefault(name, np.zeros((len(prompts), max(index + 1, 64), value.shape[-1]), np.float32))
        array[:, index] = value.float().cpu().numpy()
    return Sources(lambda _, prompt: (0, local[prompt]), lambda name, _: arrays[name], lengths=job.lengths)


def _nowhere(*_: Any) -> tuple[int, int]:
    raise AssertionError


def _nothing(*_: Any) -> np.ndarray:
    raise AssertionError


def _exact(job: Job, condition: str, what: str, edited: Outcome, unedited: Outcome, exact: bool) -> str:
    """Compare logits with the unedited run's, bit for bit where the device reproduces bits."""
    worst = 0.0
    for name in ("number_logits", "first_logits"):
        a, b = getattr(edited, name), getattr(unedited, name)
        if len(a) and len(b):
            worst = max(worst, float((a - b).abs().max()))
    limit = 0.0 if exact else 1e-3
    if not worst <= limit:
        raise GateError(
            f"gate: condition '{condition}': {what} is not an identity; logits differ by up to {worst:.3g}.\n"
            "What is read at the site is not what is written there."
        )
    drawn = job.generate.do_sample  # edited and unedited texts are drawn with other random numbers
    if not drawn and not np.array_equal(edited.answer, unedited.answer, equal_nan=True):
        raise GateError(f"gate: condition '{condition}': {what} is not an identity; answers differ")
    return "exact" if worst == 0.0 else f"{worst:.1e}"


def _records(condition: str, editor: Editor, identity: str) -> list[dict[str, Any]]:
    out = []
    for (name, site), fired in editor.fired.items():
        out.append(
            {
                "condition": condition if name != "own" else f"{condition} (frozen)",
                "site": site,
                "places": ",".join(map(str, sorted(fired.places))),
                "rows": fired.rows,
                "changed": fired.changed,
                "norm_before": fired.before / max(fired.rows, 1),
                "norm_after": fired.after / max(fired.rows, 1),
                "first_values": fired.first,
                "self_patch": identity,
            }
        )
    return out
