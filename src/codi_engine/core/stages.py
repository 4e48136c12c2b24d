"""The two stages of a run, unit by unit: unedited prompts first, then edited cells, each unit a pure function of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from codi_engine.core.captures import Capture, block, captured, merge
from codi_engine.core.codes import CodeCapture, CodeReader
from codi_engine.core.editing import Editor, Placed
from codi_engine.core.generations import Unit
from codi_engine.core.memory import in_batches, rows_at_once
from codi_engine.core.needs import Need
from codi_engine.core.network import Network
from codi_engine.core.plan import BASELINE, Cell, Plan, PromptRef, axis_label, build_intervention, prompt_ref
from codi_engine.core.plugin import Intervention, Metric, Outcome, Readings
from codi_engine.core.reading import ANSWER_TOKENS, Answers, Needs, measure, outcome, take
from codi_engine.core.rollout import Rollout, Task, Want
from codi_engine.core.sampling import Sampler, generator
from codi_engine.core.sources import Sources, Stored
from codi_engine.store.errors import StoreError
from codi_engine.store.sparse import to_codes

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.sae import SaeStore
    from codi_engine.store.writer import RunWriter

OUTCOME = ("gold_logprob", "other_logprob", "gold_logit", "other_logit")


@dataclass
class Job:
    """Everything that units of one run share: model, plan, what is wanted of each row, and how it is named on disk."""

    experiment: Experiment
    plugins: Plugins
    plan: Plan
    net: Network
    rollout: Rollout
    answers: Answers
    metrics: Sequence[Metric[Any]]
    column: Callable[[Metric[Any], str], str]
    needs: Needs
    captures: Sequence[Capture]
    source_arrays: Mapping[str, Need]
    writer: RunWriter
    note: Callable[[str], None]
    prompts: dict[str, PromptRef] = field(default_factory=dict)
    ids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    code_captures: Sequence[CodeCapture] = ()
    saes: SaeStore | None = None
    rows: int | None = None
    forwarded: int = 0

    def __post_init__(self) -> None:
        self.order = list(self.prompts)
        self.index = {key: i for i, key in enumerate(self.order)}
        self.lengths = [len(self.ids[key]) for key in self.order]
        self.examples = {e.id: e for e in [*self.plan.data.pool, *self.plan.data.examples]}
        self.pool_ids = [e.id for e in self.plan.data.pool]
        self.codes: dict[str, dict[Any, int]] = {}

    def code(self, axis: str, label: Any) -> int:
        return self.codes[axis][label]

    @property
    def generate(self) -> Any:
        return self.experiment.generate

    def readers(self) -> list[CodeReader]:
        """Return what collects the codes of a batch's cells."""
        assert self.saes is not None or not self.code_captures
        return [CodeReader(c, self.saes, self.net.device) for c in self.code_captures if self.saes is not None]

    def want(self, sources: Sequence[Need], captures: Sequence[Capture], readers: Sequence[CodeReader] = ()) -> Want:
        """Return what the rollout shall produce for a unit."""
        values = [(c, layer, phase, p) for c, layer, phase, places in sources for p in places]
        sampler = None
        if self.generate.do_sample:
            sampler = Sampler(self.generate.temperature, self.generate.top_k, self.generate.top_p)
        first = self.needs.first or any(c.site.component == "logits" for c in captures)
        generate = self.generate
        return Want(
            merge(captures, values), self.needs.generation, self.needs.number, first, generate.max_new_tokens,
            self.answers.prefix, sampler, generate.slice == "reference", readers,
        )  # fmt: skip

    def batch_rows(self, tokens: int) -> int:
        """Return how many rows a batch holds, remembered after a back-off."""
        suffix = self.net.info.latents + len(self.answers.prefix) + self.generate.max_new_tokens + 2
        if self.rows is None:
            return rows_at_once(self.net, self.experiment.batch_size, self.experiment.memory, suffix, tokens)
        return self.rows

    def trial_key(self, example: str, trial: int) -> int:
        """Return the key of an unedited row's random numbers (shared with edited cells under common random numbers)."""
        name = "" if self.experiment.common_random_numbers else BASELINE
        return int.from_bytes(generator("trial", self.experiment.seed, example, name, {}, trial).bytes(16), "little")


# ------------------------------------------------------------------------------------------------ baseline


def run_unedited(job: Job, unit: Unit) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
    """Run the prompts of a ``baseline`` or ``sources`` unit and return its arrays and texts."""
    sources = {name: job.source_arrays[name] for name in unit.sources}
    is_baseline = unit.stage == "baseline"
    rows = [(key, unit.first_trial + t) for key in unit.keys for t in range(unit.trials)]
    captures = job.captures if is_baseline else ()
    readers = job.readers() if is_baseline else []
    want = job.want(list(sources.values()), captures, readers)
    parts: list[tuple[Outcome, list[str], dict[str, np.ndarray]]] = []

    def run(batch: Sequence[tuple[str, int]]) -> None:
        done, rules, values = _unedited_batch(job, batch, want, sources, captures)
        parts.append((done, rules, {**values, **_codes(readers)}))

    tokens = max((-min(p) for (_, phase), (_, p) in want.captures.items() if phase == "prompt"), default=1)
    size = max(job.batch_rows(tokens) // max(tokens // 4, 1), 1)
    held = in_batches(rows, size, run, job.note)
    if held < size:
        job.rows = held
    whole, rules, values = _join(parts)
    arrays = {**_stored(job, unit, values), **_outcome_arrays(job, whole)}
    texts: dict[str, list[Any]] = {}
    if is_baseline:
        arrays.update(_baseline_cells(job, rows, whole))
        texts = _texts(job, rows, whole, rules)
    return arrays, texts


def _codes(readers: Sequence[CodeReader]) -> dict[str, np.ndarray]:
    """Array → cells × features of what the readers collected in the batch that has just run."""
    return {r.capture.array: r.codes() for r in readers}


def _stored(job: Job, unit: Unit, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays as they are written: codes sparse, everything else as it is."""
    sparse = {c.array for c in job.code_captures}
    out = {name: array for name, array in values.items() if name not in sparse}
    for name in sparse & set(values):
        out.update(to_codes(name, values[name], unit.number, job.writer.unit_cells))
    return out


def _unedited_batch(
    job: Job, batch: Sequence[tuple[str, int]], want: Want, sources: Mapping[str, Need], captures: Sequence[Capture]
) -> tuple[Outcome, list[str], dict[str, np.ndarray]]:
    keys = list(dict.fromkeys(key for key, _ in batch))
    local = {key: i for i, key in enumerate(keys)}
    tasks = []
    for key, trial in batch:
        ref = job.prompts[key]
        gold, other = (job.answers.tokens(ref.gold), job.answers.tokens(ref.other)) if want.read else ((), ())
        tasks.append(Task(local[key], gold=gold, other=other, key=job.trial_key(ref.example, trial)))
    produced = job.rollout.run([job.ids[k] for k in keys], tasks, want)
    job.forwarded += produced.forwarded
    lengths = np.array([len(job.ids[key]) for key, _ in batch])
    values = {name: block(produced, want.captures, c, layer, phase, places, lengths) for name, (c, layer, phase, places) in sources.items()}
    values.update({c.array: captured(c, produced, want.captures, lengths) for c in captures})
    kept = {c.name: values[c.array] for c in captures}
    done, rules = outcome(produced, job.net.adapter, kept)
    return done, rules, values


def _join(parts: Sequence[tuple[Outcome, list[str], dict[str, np.ndarray]]]) -> tuple[Outcome, list[str], dict[str, np.ndarray]]:
    outcomes = [p[0] for p in parts]
    if len(parts) == 1:
        return parts[0]
    joined = Outcome(
        text=[t for o in outcomes for t in o.text],
        answer=np.concatenate([o.answer for o in outcomes]),
        number_logits=torch.cat([o.number_logits for o in outcomes]),
        first_logits=torch.cat([o.first_logits for o in outcomes]),
        **{name: np.concatenate([getattr(o, name) for o in outcomes]) for name in OUTCOME},
        captures={name: np.concatenate([o.captures[name] for o in outcomes]) for name in outcomes[0].captures},
    )
    values = {name: np.concatenate([p[2][name] for p in parts]) for name in parts[0][2]}
    return joined, [r for p in parts for r in p[1]], values


def _outcome_arrays(job: Job, done: Outcome) -> dict[str, np.ndarray]:
    """What later stages read of an unedited row: its answer and the logits that metrics compare with."""
    arrays = {"sources/answer/value": done.answer[:, None]}
    if job.needs.number:
        arrays["sources/number_logits/value"] = done.number_logits.cpu().numpy()
        arrays.update({f"sources/{name}/value": getattr(done, name) for name in OUTCOME})
    if job.needs.first:
        arrays["sources/first_logits/value"] = done.first_logits.cpu().numpy()
    return arrays


def _baseline_cells(job: Job, rows: Sequence[tuple[str, int]], done: Outcome) -> dict[str, np.ndarray]:
    refs = [job.prompts[key] for key, _ in rows]
    read = Readings(
        labels={"example": np.array([r.example for r in refs], object), "condition": np.full(len(refs), BASELINE, object)},
        gold=_numbers(r.gold for r in refs), other=_numbers(r.other for r in refs),
        gold_token=_first(job, [r.gold for r in refs]), other_token=_first(job, [r.other for r in refs]),
        edited=done, baseline=done, **_sides(job, rows, refs, done),
    )  # fmt: skip
    arrays = {f"cells/metrics/{name}": values for name, values in measure(job.metrics, read, job.column).items()}
    count = len(rows)
    arrays["cells/answer"] = done.answer
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


def _numbers(values: Any) -> np.ndarray:
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)


def _first(job: Job, values: Sequence[float | None]) -> np.ndarray:
    if not job.needs.number:
        return np.full(len(values), -1, np.int64)
    ids = [job.answers.tokens(v) for v in values]
    return np.array([i[0] if i else -1 for i in ids], np.int64)


def _texts(job: Job, rows: Sequence[tuple[str, int]], done: Outcome, rules: Sequence[str]) -> dict[str, list[Any]]:
    keys = [key for key, _ in rows]
    examples = [job.examples[job.prompts[k].example] for k in keys]
    return {"key": keys, "text": list(done.text), "answer_rule": list(rules), **field_columns(job, examples)}


def field_columns(job: Job, examples: Sequence[Any]) -> dict[str, list[Any]]:
    """Return the data's own fields as columns, so that results can be split by them."""
    reserved = {"key", "text", "answer_rule", "slot", "answer", "example", "condition", "variant", "trial", *job.plan.axes}
    out: dict[str, list[Any]] = {}
    for name in field_names(job):
        if name in reserved:
            continue
        values = [e.fields.get(name) for e in job.examples.values()]
        kinds = {type(v) for v in values if v is not None}
        same = len(kinds) == 1 and kinds <= {int, float, bool, str}
        out[name] = [e.fields.get(name) if same or e.fields.get(name) is None else str(e.fields[name]) for e in examples]
    return out


def field_names(job: Job) -> list[str]:
    names: dict[str, None] = {}
    for example in job.examples.values():
        names.update(dict.fromkeys(k for k in example.fields if not k.startswith("_")))
    return list(names)


# --------------------------------------------------------------------------------------------------- bank


@dataclass(frozen=True)
class _Home:
    """Where a prompt's unedited rows lie: unit, first row, and which trials and source arrays they are."""

    unit: int
    row: int
    first_trial: int
    trials: int
    sources: frozenset[str]


class Bank:
    """The committed unedited rows: which unit holds a prompt, its source values and its outcome."""

    def __init__(self, job: Job, units: Sequence[Unit]) -> None:
        self.job = job
        self._homes: dict[str, list[_Home]] = {}
        self._outcomes: dict[int, Outcome] = {}
        for unit in units:
            if unit.stage == "sweep" or unit.number not in job.writer.committed:
                continue
            for row, key in enumerate(unit.keys):
                home = _Home(unit.number, row * unit.trials, unit.first_trial, unit.trials, frozenset(unit.sources))
                self._homes.setdefault(key, []).append(home)

    def locate(self, array: str, prompt: int) -> tuple[int, int]:
        """Return (unit, row) of a prompt's value in a source array."""
        key = self.job.order[prompt]
        for home in self._homes.get(key, ()):
            if array in home.sources:
                return home.unit, home.row
        raise StoreError(f"{array}: no committed unit holds prompt {key}")

    def outcome(self, keys: Sequence[str], trials: Sequence[int]) -> Outcome:
        """Return the unedited outcomes of prompts (captures included where the experiment captures)."""
        picks = [self._row(key, trial) for key, trial in zip(keys, trials, strict=True)]
        units = sorted({u for u, _ in picks})
        start: dict[int, int] = {}
        parts: list[tuple[Outcome, list[str], dict[str, np.ndarray]]] = []
        total = 0
        for unit in units:
            part = self._unit(unit)
            start[unit] = total
            total += len(part.answer)
            parts.append((part, [], {}))
        joined = _join(parts)[0]
        return take(joined, [start[u] + row for u, row in picks])

    def _row(self, key: str, trial: int) -> tuple[int, int]:
        for home in self._homes.get(key, ()):
            if home.first_trial <= trial < home.first_trial + home.trials:
                return home.unit, home.row + trial - home.first_trial
        raise StoreError(f"no committed unit holds trial {trial} of prompt {key}")

    def _unit(self, unit: int) -> Outcome:
        if unit not in self._outcomes:
            if len(self._outcomes) >= 8:
                self._outcomes.pop(next(iter(self._outcomes)))
            self._outcomes[unit] = self._read(unit)
        return self._outcomes[unit]

    def _read(self, unit: int) -> Outcome:
        job, read = self.job, self.job.writer.read
        answer = read("sources/answer/value", unit)[:, 0]
        blank = np.full((len(answer), ANSWER_TOKENS), np.nan)
        empty = torch.empty(0, job.net.info.vocab_size)
        reads = {name: read(f"sources/{name}/value", unit) if job.needs.number else blank for name in OUTCOME}
        number = torch.from_numpy(read("sources/number_logits/value", unit)) if job.needs.number else empty
        first = torch.from_numpy(read("sources/first_logits/value", unit)) if job.needs.first else empty
        written = job.writer.committed[unit]["stage"] == "baseline"
        kept = {c.name: read(c.array, unit) for c in job.captures} if written else {}
        device = job.net.device
        return Outcome([""] * len(answer), answer, number.to(device), first.to(device), **reads, captures=kept)

    def sources(self) -> Sources:
        """Return the baseline values that edits take, with the pool described."""
        job = self.job
        pool_ids = set(job.pool_ids)
        pool = []
        for key, ref in job.prompts.items():
            if ref.example in pool_ids and key in self._homes:
                home = self._homes[key][0]
                answer = float(self._unit(home.unit).answer[home.row])
                correct = None if ref.gold is None else bool(abs(answer - ref.gold) < 1e-6)
                pool.append(Stored(job.index[key], ref.variant, job.examples[ref.example].fields, correct))
        order = {e: i for i, e in enumerate(job.pool_ids)}
        pool.sort(key=lambda s: (order[job.prompts[job.order[s.index]].example], s.variant))
        return Sources(self.locate, job.writer.read, pool)


# -------------------------------------------------------------------------------------------------- sweep


def editor_for(job: Job, bank: Bank | None, sources: Sources | None = None, record: bool = False, own_source: bool = False, neutral: bool = False) -> Editor:
    """Return an editor over the committed baseline (``own_source`` and ``neutral`` make identities of it, for the gate)."""
    if sources is None:
        assert bank is not None
        sources = bank.sources()
    values = sources
    values.saes, values.model_digest = job.saes, job.net.adapter.digest

    def build(condition: Any, options: Mapping[str, Any]) -> Intervention[Any]:
        intervention = build_intervention(job.plugins, condition.plugin, options, f"conditions.{condition.name}", job.experiment.source)
        intervention = (intervention.neutral() or intervention) if neutral else intervention
        intervention.prepare(values)
        return intervention

    experiment = job.experiment
    return Editor(job.net, job.plan.conditions, build, values, job.lengths, experiment.seed, experiment.common_random_numbers, record, own_source)


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
        other = job.examples[job.plan.donors.shuffled(cell.example)]
        source = job.index[prompt_ref(other, condition.partner, condition.template).key]
    return Placed(cell, prompt, partner, donor, source)


def run_sweep(job: Job, unit: Unit, bank: Bank, editor: Editor) -> tuple[dict[str, np.ndarray], dict[str, list[Any]]]:
    """Run the edited cells of a unit and return its arrays and texts."""
    placed = [place(job, job.cells[key]) for key in unit.keys]
    readers = job.readers()
    want = job.want((), job.captures, readers)
    parts: list[tuple[Outcome, list[str], dict[str, np.ndarray]]] = []
    columns: list[dict[str, np.ndarray]] = []

    def run(batch: Sequence[Placed]) -> None:
        done, rules, values = edited_batch(job, batch, want, editor)
        columns.append(_metrics(job, batch, bank, done))
        parts.append((done, rules, {**values, **_codes(readers)}))

    size = job.batch_rows(1)
    held = in_batches(placed, size, run, job.note)
    if held < size:
        job.rows = held
    arrays = {f"cells/metrics/{name}": np.concatenate([c[name] for c in columns]) for name in columns[0]}
    arrays["cells/answer"] = np.concatenate([p[0].answer for p in parts])
    arrays.update(_stored(job, unit, {name: np.concatenate([p[2][name] for p in parts]) for name in parts[0][2]}))
    arrays.update(_cell_axes(job, placed))
    keys = [p.cell.key for p in placed]
    examples = [job.examples[p.cell.example] for p in placed]
    texts = {
        "key": keys, "text": [t for p in parts for t in p[0].text], "answer_rule": [r for p in parts for r in p[1]],
        **field_columns(job, examples),
    }  # fmt: skip
    return arrays, texts


def edited_batch(job: Job, placed: Sequence[Placed], want: Want, editor: Editor, own: bool = False) -> tuple[Outcome, list[str], dict[str, np.ndarray]]:
    """Run edited cells together and return their outcome, answer rules and captures."""
    used = sorted({p.prompt for p in placed})
    local = {prompt: i for i, prompt in enumerate(used)}
    tasks = []
    for task, p in zip(editor.tasks(placed, local, own), placed, strict=True):
        gold, other = answers_of(job, p)
        ids = (job.answers.tokens(gold), job.answers.tokens(other)) if want.read else ((), ())
        tasks.append(replace(task, gold=ids[0], other=ids[1]))
    produced = job.rollout.run([job.ids[job.order[p]] for p in used], tasks, want, editor.apply)
    job.forwarded += produced.forwarded
    lengths = np.array([job.lengths[p.prompt] for p in placed])
    values = {c.array: captured(c, produced, want.captures, lengths) for c in job.captures if want.captures or c.site.component == "logits"}
    kept = {c.name: values[c.array] for c in job.captures if c.array in values}
    done, rules = outcome(produced, job.net.adapter, kept)
    return done, rules, values


def answers_of(job: Job, placed: Placed) -> tuple[float | None, float | None]:
    """Return the gold answer of the prompt that runs, and the other one: the partner's, or the donor's."""
    ref = job.prompts[job.order[placed.prompt]]
    if placed.donor is not None:
        return ref.gold, job.prompts[job.order[placed.donor]].gold
    return ref.gold, ref.other


def _metrics(job: Job, placed: Sequence[Placed], bank: Bank, done: Outcome) -> dict[str, np.ndarray]:
    both = [answers_of(job, p) for p in placed]
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
        gold=_numbers(g for g, _ in both), other=_numbers(o for _, o in both),
        gold_token=_first(job, [g for g, _ in both]), other_token=_first(job, [o for _, o in both]),
        edited=done, baseline=bank.outcome(keys, trials), predicted=_predicted(job, placed), **sides,
    )  # fmt: skip
    return measure(job.metrics, read, job.column)


def _predicted(job: Job, placed: Sequence[Placed]) -> np.ndarray:
    """The answer that the algebra predicts of each exchange; NaN where it predicts none."""
    out = []
    for p in placed:
        donor = None if p.donor is None else job.prompts[job.order[p.donor]].example
        condition = job.plan.conditions[p.cell.condition]
        out.append(None if donor is None else job.plan.donors.predicted(p.cell.example, donor, condition))
    return _numbers(out)


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
