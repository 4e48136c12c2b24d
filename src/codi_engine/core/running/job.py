"""What the units of one run share: model, plan, what is wanted of each row, and how it is named on disk."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.planning.needs import Need
from codi_engine.core.planning.plan import BASELINE, Cell, Plan, PromptRef
from codi_engine.core.plugin import Metric
from codi_engine.core.rollout.memory import rows_at_once
from codi_engine.core.rollout.network import Network
from codi_engine.core.rollout.rollout import Rollout, Want
from codi_engine.core.rollout.sampling import Sampler, generator
from codi_engine.core.running.captures import Capture, merge
from codi_engine.core.running.codes import CodeCapture, CodeReader
from codi_engine.core.running.finite import Watch
from codi_engine.core.running.reading import Answers, Needs
from codi_engine.store.sparse import to_codes

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.running.generations import Unit
    from codi_engine.core.running.reuse import Reuse
    from codi_engine.core.saestore import SaeStore
    from codi_engine.store.view import RunView
    from codi_engine.store.writer import RunWriter


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
    writer: RunWriter | RunView
    note: Callable[[str], None]
    prompts: dict[str, PromptRef] = field(default_factory=dict)
    ids: dict[str, tuple[int, ...]] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    code_captures: Sequence[CodeCapture] = ()
    saes: SaeStore | None = None
    rows: int | None = None
    forwarded: int = 0
    sharing: int = 1  # processes on the model's device
    reuse: Reuse | None = None

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
            return rows_at_once(self.net, self.experiment.batch_size, self.experiment.memory, suffix, tokens, self.sharing)
        return self.rows

    @cached_property
    def watch(self) -> Watch:
        """Says what becomes of rows that are not finite."""
        return Watch(self.experiment.nonfinite, self.note)

    @cached_property
    def _wanted(self) -> re.Pattern[str] | None:
        return None if self.generate.until is None else re.compile(self.generate.until)

    def fits(self, text: str) -> bool:
        """Say whether a generated text is as ``generate.until`` wants it."""
        return self._wanted is None or self._wanted.search(text) is not None

    def attempts(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Return the column that records how many draws each text took, where texts may be drawn again."""
        return {"cells/metrics/attempts": values} if self.generate.retries else {}

    def shared(self, keys: Iterable[str]) -> tuple[list[tuple[int, ...]], dict[str, int]]:
        """Return the token sequences of prompts, equal ones once, and which one each prompt is."""
        numbers: dict[tuple[int, ...], int] = {}
        local = {key: numbers.setdefault(self.ids[key], len(numbers)) for key in dict.fromkeys(keys)}
        return list(numbers), local

    def trial_key(self, example: str, trial: int) -> int:
        """Return the key of an unedited row's random numbers (shared with edited cells under common random numbers)."""
        name = "" if self.experiment.common_random_numbers else BASELINE
        return int.from_bytes(generator("trial", self.experiment.seed, example, name, {}, trial).bytes(16), "little")

    def stored(self, unit: Unit, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return a unit's arrays as they are written: codes sparse, everything else as it is."""
        sparse = {c.array for c in self.code_captures}
        out = {name: array for name, array in values.items() if name not in sparse}
        for name in sparse & set(values):
            out.update(to_codes(name, values[name], unit.number, self.writer.unit_cells))
        return out

    def first_tokens(self, values: Sequence[float | None]) -> np.ndarray:
        """Return the id of each answer's first token; −1 where there is none."""
        if not self.needs.number:
            return np.full(len(values), -1, np.int64)
        ids = [self.answers.tokens(v) for v in values]
        return np.array([i[0] if i else -1 for i in ids], np.int64)


def numbers(values: Iterable[float | None]) -> np.ndarray:
    """Return values as float64, NaN for None."""
    return np.array([np.nan if v is None else float(v) for v in values], np.float64)


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
