"""Unedited rows taken from other runs (``reuse:``): what was computed of the same prompt by the same model with the same bits.

Runs are compared by digests: of the model's files, of the self-test's bits, and of each prompt (its text and answer). What
fits is read through the other run's checksums; the new run's units hold the same bytes as if they had been computed.
"""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.running.generations import Unit, units_of
from codi_engine.core.running.inputs import MODEL, MODEL_FILE, recorded
from codi_engine.core.running.marks import noted
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import LEDGER, TEXTS, text_file
from codi_engine.store.ledger import canonical, read_ledger
from codi_engine.store.state import State, differences

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.planning.plan import Plan
    from codi_engine.core.plugin import Outcome
    from codi_engine.core.running.job import Job
    from codi_engine.core.running.parts import Part
    from codi_engine.store.layout import ArraySpec
    from codi_engine.store.reader import RunReader
    from codi_engine.store.writer import RunWriter

#: under this name the provenance says how many rows came from which run
KEY = "reused"
#: options of a model that name its files, which are compared by digest
_FILES = ("checkpoint", "base")
#: libraries whose version must be the same
_VERSIONS = ("codi-engine", "transformers")
_ATTEMPTS = "cells/metrics/attempts"


def named_runs(experiment: Experiment) -> list[Path]:
    """Return the runs that ``reuse`` names, each once.

    Raises
    ------
    UserError: an entry names none
    """
    found: dict[Path, None] = {}
    for number, text in enumerate(experiment.reuse):
        pattern = str(Path(text).expanduser())
        paths = [Path(p) for p in sorted(glob.glob(pattern))] if glob.has_magic(pattern) else [Path(pattern)]
        runs = [p for p in paths if (p / LEDGER).is_file()]
        if not runs:
            raise UserError(f"{experiment.source}: reuse[{number}]: '{text}' names no run; write run directories, or patterns such as runs/*")
        found.update(dict.fromkeys(runs))
    return list(found)


@dataclass(frozen=True)
class Mine:
    """What a run must have in common with this one: digests of the model's files, what bits depend on, versions."""

    inputs: Mapping[str, str]
    arithmetic: Mapping[str, str]
    versions: Mapping[str, str]


class _Home(NamedTuple):
    """Where a prompt's rows lie in another run: its unit and its place among the unit's prompts."""

    unit: Unit
    place: int

    def row(self, trial: int) -> int | None:
        at = trial - self.unit.first_trial
        return self.place * self.unit.trials + at if 0 <= at < self.unit.trials else None


class Former:
    """Another run that fits, and where in it the prompts of this one lie."""

    def __init__(self, path: Path, reader: RunReader, wanted: Mapping[str, Any]) -> None:
        self.path, self.reader = path, reader
        self.homes: dict[str, list[_Home]] = {}
        self.keys: dict[int, frozenset[str]] = {}
        self.marked: dict[int, set[int]] = {}
        self._alike: dict[str, bool] = {}
        for unit in units_of(reader.plans):
            if unit.stage == "sweep" or unit.number not in reader.committed:
                continue
            mine = frozenset(unit.keys) & wanted.keys()
            if not mine:
                continue
            self.keys[unit.number] = mine
            self.marked[unit.number] = set(noted(reader.committed[unit.number]))
            for place, key in enumerate(unit.keys):
                if key in mine:
                    self.homes.setdefault(key, []).append(_Home(unit, place))

    def wrote(self, unit: int, name: str, wanted: Mapping[str, ArraySpec]) -> bool:
        """Say whether a unit wrote an array that is laid out as the wanted one (or its texts)."""
        if name == TEXTS:
            return text_file(unit) in self.reader.committed[unit]["files"]
        mine, other = wanted.get(name), self.reader.specs.get(name)
        if mine is None or other is None or other.shard(unit) not in self.reader.committed[unit]["files"]:
            return False
        if name not in self._alike:
            layout = [(s.dims, s.shape, str(s.numpy), canonical({k: v for k, v in s.attrs.items() if k != "labels"})) for s in (mine, other)]
            self._alike[name] = layout[0] == layout[1]
        return self._alike[name]


#: a run that has a row, and for each array the (unit, row) it lies in there
Found = tuple[Former, dict[str, tuple[int, int]]]


class Reuse:
    """Finds rows of this run's unedited units in other runs, and reads them."""

    def __init__(self, job: Job, formers: Sequence[Former]) -> None:
        from codi_engine.core.running.layout import array_specs

        self.job, self.formers = job, formers
        self._specs = {spec.name: spec for spec in array_specs(job)}
        self._sides: dict[str, dict[str, set[str]]] = {}  # example → variant → prompts
        for key, ref in job.prompts.items():
            self._sides.setdefault(ref.example, {}).setdefault(ref.variant, set()).add(key)

    def found(self, unit: Unit) -> list[Found | None]:
        """Return for each row of an unedited unit where it is; None where no run has it."""
        if unit.stage == "baseline" and self.job.code_captures:  # an autoencoder's bits are its own affair: codes are computed
            return [None] * (len(unit.keys) * unit.trials)
        names = self._names(unit)
        return [self._row(key, unit.first_trial + t, names, unit.stage) for key in unit.keys for t in range(unit.trials)]

    def counted(self, unit: Unit) -> dict[str, int]:
        """Return run → how many rows of a unit come from it."""
        return dict(Counter(str(place[0].path) for place in self.found(unit) if place is not None)) if unit.stage != "sweep" else {}

    def part(self, unit: Unit, keys: Sequence[str], places: Sequence[Found]) -> Part:
        """Read rows (of the prompts ``keys``) that were found, as the rollout would have given them.

        Raises
        ------
        StoreError: the other run is damaged there
        """
        from codi_engine.core.running.parts import Part

        is_baseline = unit.stage == "baseline"
        read = {name: self._read(name, places) for name in self._names(unit) if name != TEXTS}
        texts, rules = self._texts(places) if is_baseline else ([""] * len(places), [""] * len(places))
        captures = self.job.captures if is_baseline else ()
        values = {name: read[name] for name in [*unit.sources, *(c.array for c in captures)]}
        done = self._outcome(read, texts, {c.name: values[c.array] for c in captures}, keys)
        return Part(done, rules, values, read.get(_ATTEMPTS, np.ones(len(places))), np.zeros(len(places), bool))

    # ------------------------------------------------------------------------------------------- finding

    def _names(self, unit: Unit) -> list[str]:
        """Return what is read of a unit's rows."""
        from codi_engine.core.running.parts import OUTCOME

        needs, names = self.job.needs, [*unit.sources, "sources/answer/value"]
        names += [f"sources/{name}/value" for name in (*OUTCOME, "number_logits")] if needs.number else []
        names += ["sources/first_logits/value"] if needs.first else []
        if unit.stage == "baseline":
            names += [*(c.array for c in self.job.captures), *([_ATTEMPTS] if self.job.generate.retries else []), TEXTS]
        return names

    def _row(self, key: str, trial: int, names: Sequence[str], stage: str) -> Found | None:
        for former in self.formers:
            homes = [(home, row) for home in former.homes.get(key, ()) if (row := home.row(trial)) is not None and self._same(key, row, home, former, stage)]
            where = {name: next(((h.unit.number, row) for h, row in homes if former.wrote(h.unit.number, name, self._specs)), None) for name in names}
            known = {name: place for name, place in where.items() if place is not None}
            if homes and len(known) == len(names):
                return former, known
        return None

    def _same(self, key: str, row: int, home: _Home, former: Former, stage: str) -> bool:
        """Say whether what lies there was computed as it would be here."""
        if row in former.marked[home.unit.number]:
            return False  # what is no number is computed again, and judged by this run's rule
        if self.job.generate.retries and stage != home.unit.stage:
            return False  # texts of the pool are drawn once
        ref = self.job.prompts[key]
        others = [keys for variant, keys in self._sides[ref.example].items() if variant != ref.variant] if ref.other is not None else []
        return all(keys & former.keys[home.unit.number] for keys in others)  # its other answer is that of the sides beside it

    # ------------------------------------------------------------------------------------------- reading

    def _read(self, name: str, places: Sequence[Found]) -> np.ndarray:
        """Return rows × row shape of an array."""
        spec = self._specs[name]
        out = np.empty((len(places), *spec.shape), spec.numpy)
        for (former, unit), (into, rows) in _by_unit(name, places).items():
            out[into] = former.reader.read_unit(name, unit)[rows]
        return out

    def _texts(self, places: Sequence[Found]) -> tuple[list[str], list[str]]:
        """Return the texts and the rules by which their answers were found."""
        texts, rules = [""] * len(places), [""] * len(places)
        for (former, unit), (into, rows) in _by_unit(TEXTS, places).items():
            table = former.reader.texts_of(unit).take(rows)
            for at, text, rule in zip(into, table["text"].to_pylist(), table["answer_rule"].to_pylist(), strict=True):
                texts[at], rules[at] = text, rule
        return texts, rules

    def _outcome(self, read: Mapping[str, np.ndarray], texts: list[str], kept: Mapping[str, np.ndarray], keys: Sequence[str]) -> Outcome:
        import torch

        from codi_engine.core.plugin import Outcome
        from codi_engine.core.running.parts import OUTCOME
        from codi_engine.core.running.reading import ANSWER_TOKENS

        net, needs = self.job.net, self.job.needs
        blank = np.full((len(keys), ANSWER_TOKENS), np.nan)
        reads = {name: read.get(f"sources/{name}/value", blank) for name in OUTCOME}
        alone = np.array([self.job.prompts[key].other is None for key in keys])[:, None]
        for name in ("other_logprob", "other_logit"):  # the other run may have had another answer to compare with
            reads[name] = np.where(alone, np.nan, reads[name])
        logits = next((kept[c.name][:, 0] for c in self.job.captures if c.site.component == "logits" and c.name in kept), None)
        empty = np.empty((0, net.info.vocab_size), np.float32)
        first = read["sources/first_logits/value"] if needs.first else logits if logits is not None else empty
        number = read["sources/number_logits/value"] if needs.number else empty
        answer = read["sources/answer/value"][:, 0]
        return Outcome(texts, answer, torch.from_numpy(number).to(net.device), torch.from_numpy(first).to(net.device), **reads, captures=kept)


class Borrowed:
    """Counts the rows of a run that came from others: run → rows."""

    def __init__(self, reuse: Reuse | None, before: Mapping[str, int]) -> None:
        self.reuse, self.rows = reuse, Counter({str(run): int(rows) for run, rows in before.items()})

    def in_words(self, units: Sequence[Unit]) -> str:
        """Say how many of the rows that units need come from which run; empty where none does."""
        counts = Counter[str]()
        if self.reuse is not None:
            for unit in units:
                counts.update(self.reuse.counted(unit))
        if not counts:
            return ""
        rows = sum(len(u.keys) * u.trials for u in units if u.stage != "sweep")
        return f"{sum(counts.values()):,} of {rows:,} unedited rows come from {', '.join(counts)}"

    def committed(self, unit: Unit, writer: RunWriter) -> None:
        """Count a unit that was committed; the provenance says so when it is written next."""
        if self.reuse is not None:
            self.rows.update(self.reuse.counted(unit))
            if self.rows:
                writer.provenance[KEY] = dict(self.rows)


def _by_unit(name: str, places: Sequence[Found]) -> dict[tuple[Former, int], tuple[list[int], list[int]]]:
    """Group rows by the unit that an array of theirs lies in: (run, unit) → (places in the result, rows of the unit)."""
    groups: dict[tuple[Former, int], tuple[list[int], list[int]]] = {}
    for at, (former, where) in enumerate(places):
        unit, row = where[name]
        into, rows = groups.setdefault((former, unit), ([], []))
        into.append(at)
        rows.append(row)
    return groups


# ----------------------------------------------------------------------------------------------- which runs fit


def opened(job: Job, path: Path, mine: Mine) -> tuple[Reuse | None, list[str]]:
    """Open the runs that the experiment names and that fit this one.

    Returns
    -------
    what finds rows in them (None without any), and a line for each reason why runs do not fit
    """
    from codi_engine.store.reader import RunReader

    formers, refused = [], dict[str, list[str]]()
    for run in named_runs(job.experiment):
        if run.resolve() == path.resolve():
            continue
        try:
            reader = RunReader(run)
            problem = _unfit(reader, job.experiment, mine)
        except StoreError as error:
            problem = " ".join(str(error).splitlines())
        if problem:
            refused.setdefault(problem, []).append(str(run))
        else:
            formers.append(Former(run, reader, job.prompts))
    said = [
        f"reuse: nothing is taken from {', '.join(runs[:3])}{f' and {len(runs) - 3:,} more' if len(runs) > 3 else ''}: {why}" for why, runs in refused.items()
    ]
    return Reuse(job, formers) if formers else None, said


def _unfit(reader: RunReader, experiment: Experiment, mine: Mine) -> str:
    """Say in what a run differs that unedited rows depend on; empty where it fits."""
    from codi_engine.core.running.runner import ARITHMETIC

    provenance, theirs = reader.provenance, dict(reader.state.identity or {})
    then = recorded(reader.plans, provenance)
    files = {digest for name, digest in then.items() if name.startswith(MODEL_FILE)}
    own = experiment.identity()
    if not {"model", "data", "generate"} <= theirs.keys() or MODEL not in then:
        return "it was imported or made up, not computed here"
    own_files = {name.removeprefix(MODEL_FILE): digest for name, digest in mine.inputs.items() if name.startswith(MODEL_FILE)}
    if changed := [name for name, digest in own_files.items() if digest not in files]:
        return f"other model files ({_few(changed)})"
    if not own_files and then[MODEL] != mine.inputs[MODEL]:  # with files, it also says where these lie
        return f"other model files (sha256 {then[MODEL][:12]}, here {mine.inputs[MODEL][:12]})"
    if changed := differences(_settings(theirs["model"]), _settings(own["model"]), "model"):
        return f"other settings of the model ({_few(changed)})"
    if bool(theirs["data"].get("chat_template")) != bool(own["data"].get("chat_template")):
        return "data.chat_template differs"
    drawn = ("generate", "seed", "common_random_numbers") if experiment.generate.do_sample else ("generate",)
    if changed := [d for key in drawn for d in differences(theirs.get(key), own[key], key)]:
        return f"other generation ({_few(changed)})"
    if problem := _bits(list(provenance.get(ARITHMETIC) or []), mine.arithmetic):
        return problem
    versions = dict(provenance.get("versions") or {})
    if changed := [f"{name} {versions.get(name)}, here {mine.versions[name]}" for name in _VERSIONS if versions.get(name) != mine.versions[name]]:
        return f"other versions ({'; '.join(changed)})"
    return ""


def _bits(then: Sequence[Mapping[str, str]], now: Mapping[str, str]) -> str:
    """Say in what the bits of a run differ; empty where they do not."""
    if len(then) != 1:
        return "its rows are of several kinds of bits" if then else "it does not say what its bits depend on"
    if then[0].get("bits") == now["bits"]:
        return ""
    changed = [f"{key} {then[0].get(key)}, here {value}" for key, value in now.items() if key != "bits" and then[0].get(key) != value]
    return f"other bits ({'; '.join(changed) or 'the same torch, threads and kind of device: other settings or another library'})"


def _settings(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a model without the places of its files."""
    return {k: v for k, v in model.items() if k not in _FILES and not (isinstance(v, str) and v and Path(v).expanduser().exists())}


def _few(changed: Sequence[str]) -> str:
    return "; ".join(changed[:2]) + ("; …" if len(changed) > 2 else "")


def expected(experiment: Experiment, plan: Plan) -> str:
    """Say how many unedited prompts of a plan lie in the runs that ``reuse`` names, before any model is loaded."""
    known: set[str] = set()
    runs = named_runs(experiment)
    for run in runs:
        try:
            content = read_ledger(run / LEDGER)
            state = State.of(content.records, str(run))
        except StoreError:
            continue  # the run says why
        known |= {key for unit in units_of(state.plans) if unit.stage != "sweep" and unit.number in state.committed for key in unit.keys}
    there, names = sum(p.key in known for p in plan.prompts), ", ".join(map(str, runs[:3])) + (" …" if len(runs) > 3 else "")
    return f"{there:,} of {len(plan.prompts):,} unedited prompts are in {names}; they are taken from there where model, bits and generation agree"
