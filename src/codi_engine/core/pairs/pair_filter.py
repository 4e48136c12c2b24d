"""Choosing pairs: by review, by answers, and by what a model does with them, with and without its latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.pairs.pairfile import SIDES, Pair, Record, as_text, check_new, read_pairs, write_text
from codi_engine.core.progress import Progress
from codi_engine.core.returned import described, loaded_model
from codi_engine.core.rollout.devices import on_first

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.experiment import Experiment

#: conditions in which every latent of one side's question is set to zero
ZEROED = {"clean": "zero_clean", "corrupted": "zero_corrupted"}
#: keys of an experiment file that say how a model answers
_TAKEN = ("model", "generate", "batch_size", "memory")
_DEMO = {"model": {"plugin": "codi", "checkpoint": "demo"}, "generate": {"max_new_tokens": 12}}


@dataclass(frozen=True)
class Filters:
    """Which pairs are kept; those after ``distinct_answers`` ask the model."""

    approved: bool = False
    distinct_answers: bool = False
    both_correct: bool = False
    needs_latents: bool = False
    equal_length: bool = False

    @property
    def ask_model(self) -> bool:
        return self.both_correct or self.needs_latents or self.equal_length


@dataclass
class Filtered:
    """What was kept, what each filter dropped, and the run that holds the model's answers."""

    path: Path
    read: int
    kept: int = 0
    dropped: list[tuple[str, int]] = field(default_factory=list)
    run: Path | None = None
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[tuple[str, str]]:
        """Return (label, value) pairs for a table."""
        drops = [(f"  {what}", f"{count:,} dropped") for what, count in self.dropped]
        return [("pairs", f"{self.read:,}"), *drops, ("kept", f"{self.kept:,}"), *(("note", n) for n in self.notes)]


def filter_pairs(
    path: str | Path,
    out: str | Path,
    filters: Filters,
    *,
    model: str | None = None,
    overrides: Sequence[str] = (),
    device: str | None = None,
    run: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Filtered:
    """Write the pairs that pass, with what was found out about them as fields.

    Parameters
    ----------
    model: ``demo``, or an experiment file whose ``model`` and ``generate`` are used; needed where the model is asked
    overrides: ``model.base=…`` changes of it
    run: directory of the model's run, default ``OUT.run``; what it holds is not computed again

    Fields: ``clean_correct``, ``corrupted_correct``, ``both_correct``; of a model with latents ``clean_correct_without_latents``,
    ``corrupted_correct_without_latents`` and ``needs_latents`` (both sides right, and both wrong with every latent set to zero);
    with ``equal_length`` also ``clean_tokens``, ``corrupted_tokens``, ``equal_length``.
    """
    target = Path(out).expanduser()
    check_new(target, force)
    file = read_pairs(path)
    if file.problems:
        raise UserError(f"{file.problems[0].place}: {file.problems[0].message}; 'codi-engine pairs validate {path}' lists everything")
    if filters.ask_model and model is None:
        raise UserError("--both-correct, --needs-latents and --equal-length ask a model: give --model demo or --model FILE.yaml")
    done = Filtered(target, len(file.pairs))
    pairs = [(p.id or str(i), p) for i, p in enumerate(file.pairs)]
    pairs = _keep(pairs, done, "not approved", filters.approved, lambda p: p.status == "approved")
    pairs = _keep(pairs, done, "equal or missing answers", filters.distinct_answers, _distinct)
    if model is not None and pairs:
        experiment = model_experiment(model, overrides, file.path, filters.approved)
        done.run = Path(run) if run is not None else target.with_name(target.name + ".run")
        _ask(experiment, pairs, filters, done, device, progress)
        asked = filters.both_correct or filters.needs_latents
        pairs = _keep(pairs, done, "could not be run", asked and any(map(_not_run, pairs)), lambda p: "both_correct" in p.record)
        pairs = _keep(pairs, done, "not both correct", filters.both_correct, lambda p: p.record.get("both_correct") is True)
        pairs = _keep(pairs, done, "latents not needed", filters.needs_latents, lambda p: p.record.get("needs_latents") is True)
        pairs = _keep(pairs, done, "of unequal length", filters.equal_length, lambda p: p.record.get("equal_length") is True)
    done.kept = len(pairs)
    if not pairs:
        raise UserError(f"{file.path.name}: no pair is left ({'; '.join(f'{what}: {count}' for what, count in done.dropped)}); nothing was written")
    write_text(target, as_text([p.record for _, p in pairs], target))
    return done


def _keep(pairs: list[tuple[str, Pair]], done: Filtered, what: str, wanted: bool, passes: Callable[[Pair], bool]) -> list[tuple[str, Pair]]:
    if not wanted:
        return pairs
    kept = [(i, p) for i, p in pairs if passes(p)]
    done.dropped.append((what, len(pairs) - len(kept)))
    return kept


def _not_run(named: tuple[str, Pair]) -> bool:
    """True for a pair that the data set dropped: a duplicate, or without two different answers."""
    return "both_correct" not in named[1].record


def _distinct(pair: Pair) -> bool:
    clean, corrupted = pair.answer("clean"), pair.answer("corrupted")
    return clean is not None and corrupted is not None and clean != corrupted


# ---------------------------------------------------------------------------------------------- the model


def model_experiment(model: str, overrides: Sequence[str], pairs: Path, approved: bool) -> Experiment:
    """Return the experiment that asks a model about pairs: unedited, and with every latent of either side set to zero.

    Raises
    ------
    UserError: no such file, no ``model`` in it, or a change of something else
    """
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import plugin_manager
    from codi_engine.core.yamlfile import read_yaml

    for text in overrides:
        if text.split("=")[0].split(".")[0].strip() not in _TAKEN:
            raise UserError(f"--set {text}: only {', '.join(_TAKEN)} can be changed here")
    value, lines = (_DEMO, {}) if model == "demo" else read_yaml(Path(model))
    if not isinstance(value, dict) or "model" not in value:
        raise UserError(f"{model}: has no 'model:'; write it as in an experiment file")
    data: dict[str, Any] = {"plugin": "pairs", "path": str(pairs), "on_invalid": "drop"}
    if approved:
        data["review_status"] = "approved"
    asked = {"name": "pairs", "data": data, "metrics": ["accuracy"], **{k: value[k] for k in _TAKEN if k in value}}
    source = "demo" if model == "demo" else Path(model).name
    experiment = Experiment.from_dict(asked, overrides, source=source, lines=lines)
    if described(plugin_manager().build("model", on_first(experiment)[0].model, "model", source)).latents == 0:
        return experiment
    zero = {"plugin": "zero", "site": "latent_in"}
    conditions = {name: {"intervention": {**zero, "on": side}, "sweep": {"step": "all_at_once"}} for side, name in ZEROED.items()}
    return Experiment.from_dict({**experiment.to_dict(), "conditions": conditions}, source=source)


def _ask(experiment: Experiment, pairs: list[tuple[str, Pair]], filters: Filters, done: Filtered, device: str | None, progress: Progress | None) -> None:
    """Run the model over the pairs and write what it gave into their records."""
    from codi_engine.core.running.run import run_experiment

    if filters.needs_latents and not experiment.conditions:
        raise UserError("--needs-latents: this model has no latents")
    assert done.run is not None
    try:
        finished = run_experiment(experiment, done.run, device=device, progress=progress)
    except DifferentRun as error:
        raise UserError(f"{str(error).splitlines()[0]}\nGive another --run directory, or remove this one.") from None
    done.notes += finished.notes
    cells = finished.open().cells
    answers = _correct(cells, done.run)
    for name, pair in pairs:
        facts = _facts(name, answers, bool(experiment.conditions))
        _state(pair.record, facts, ("both_correct", "needs_latents", *(f"{s}_correct{e}" for s in SIDES for e in ("", "_without_latents"))))
    if filters.equal_length:
        _count_tokens(experiment, [p for _, p in pairs], device)


def _state(record: Record, facts: Record, names: Sequence[str]) -> None:
    """Put facts into a record in the place of what an earlier filter said."""
    for name in names:
        record.pop(name, None)
    record.update(facts)


def _correct(cells: pd.DataFrame, run: Path) -> dict[tuple[str, str, str], bool]:
    """Return (condition, variant, example) → correct."""
    found: dict[tuple[str, str, str], bool] = {}
    for condition, variant, example, value in zip(cells["condition"], cells["variant"], cells["example"], cells["accuracy"], strict=True):
        key = (str(condition), str(variant), str(example))
        if key in found:
            raise UserError(f"{run}: holds two texts of pair {example}, which was changed since\nGive another --run directory, or remove this one.")
        found[key] = bool(value == 1)
    return found


def _facts(name: str, answers: dict[tuple[str, str, str], bool], latents: bool) -> Record:
    """Return the fields of one pair; empty where it was not run."""
    right = {side: answers.get(("baseline", side, name)) for side in SIDES}
    if None in right.values():
        return {}
    facts: Record = {f"{side}_correct": right[side] for side in SIDES}
    facts["both_correct"] = all(right.values())
    if latents:
        without = {side: answers[ZEROED[side], side, name] for side in SIDES}
        facts.update({f"{side}_correct_without_latents": without[side] for side in SIDES})
        facts["needs_latents"] = facts["both_correct"] and not any(without.values())
    return facts


def _count_tokens(experiment: Experiment, pairs: Sequence[Pair], device: str | None) -> None:
    """Write each prompt's length in tokens, as the model itself reads it."""
    from codi_engine.core.plugins import plugin_manager

    adjusted = experiment if device is None else experiment.with_overrides([f"model.device={device}"])
    encode = loaded_model(plugin_manager().build("model", on_first(adjusted)[0].model, "model", experiment.source)).encode_prompt
    for pair in pairs:
        lengths = {f"{side}_tokens": len(encode(pair.question(side))) for side in SIDES if pair.question(side)}
        same = len(lengths) == 2 and len(set(lengths.values())) == 1
        _state(pair.record, {**lengths, "equal_length": same}, ())
