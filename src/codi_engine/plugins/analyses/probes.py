"""``probes``: what can be read linearly from captured states, per layer and step, on groups that were held out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Analysis, AnalysisResult
from codi_engine.core.runs.work import StreamOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.states import States
    from codi_engine.plugins.analyses.targets import Labels

#: label sets shuffled where it is not said how many: ridge solves them together, logistic fits are made one by one
REPEATS = {"regression": 499, "classification": 5}
#: seeds of shuffled labels begin here
_SHUFFLES = 1000


class ProbesOptions(StreamOptions):
    """``site``: which states (default: the only ones). ``target``: what is read: a field of the data, ``answer`` (gold), ``given``
    (the model's answer), ``correct``, or ``value:J``, the J-th intermediate result (−1: the last) of the field ``steps``.

    ``task``: numbers are regressed on (R²), other things classified (accuracy); a number may be taken for a class. ``log``:
    of numbers, sign(y)·log(1 + \\|y\\|). ``groups``: a field whose values are never split between training and test (default:
    the example). ``folds``: held out in turn. ``repeats``: controls, whose labels are shuffled between groups (default: 499
    for regression, 5 for classification). ``q``, ``correction``, ``confidence``, ``seed``: of tests, intervals, folds and shuffles.
    """

    site: str | None = None
    target: str = "answer"
    steps: str = "steps"
    task: Literal["auto", "regression", "classification"] = "auto"
    log: bool = False
    groups: str | None = None
    folds: int = Field(default=5, ge=3, le=50)
    repeats: int | None = Field(default=None, ge=1, le=100_000)
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni"] = "bh"
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class _Place:
    """One layer and step."""

    number: int
    bytes: int

    @property
    def key(self) -> str:
        return str(self.number)


class _Reader:
    """Reads places in passes over the run, as many places a pass as the memory holds."""

    def __init__(self, states: States, cells: np.ndarray, numbers: Sequence[int], room: int) -> None:
        self._states, self._cells = states, cells
        at_once = max(room // (4 * states.width * len(cells)), 1)
        self._passes = [list(numbers[i : i + at_once]) for i in range(0, len(numbers), at_once)]
        self._held: tuple[list[int], np.ndarray] = ([], np.empty(0))

    def read(self, place: _Place) -> np.ndarray:
        """Return cells × width of one place."""
        if place.number not in self._held[0]:
            wanted = next(p for p in self._passes if place.number in p)
            self._held = ([], np.empty(0))  # given away before more is read
            self._held = (wanted, self._states.read(self._cells, wanted))
        values: np.ndarray = self._held[1][self._held[0].index(place.number)]
        return values


class Probes(Analysis[ProbesOptions]):
    """Linear probes per layer and step: score on held-out groups, control with shuffled labels, and their difference.

    Ridge regression or multinomial logistic regression on standardised features; the penalty is chosen inside the training
    groups (Alain & Bengio 2016). Selectivity is score − control (Hewitt & Liang 2019). What a probe reads need not be used
    by the model: that takes an intervention.
    """

    name = "probes"
    Options = ProbesOptions

    def check(self, facts: Foreseen) -> None:
        options = self.options
        facts.need_capture(options.site, "resid_post@latent", only=True)
        if options.target.startswith("value:"):
            facts.need_field(options.steps, "steps")
        else:
            facts.need_field(options.target, "target", ("given", "correct"))
        facts.need_field(options.groups, "groups")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.core.runs.vectors import captured
        from codi_engine.plugins.analyses import probe_report
        from codi_engine.plugins.analyses.states import States
        from codi_engine.plugins.analyses.targets import groups_of, labels, values_of

        run, options = runs[0], self.options
        states = States(run, options.site or captured(run, None, self.name), False, self.name)
        values, words = values_of(run, states.frame, options.target, options.steps, self.name)
        known = labels(values, words, options.task, options.log, f"{self.name}: target: {options.target}")
        groups = groups_of(states.frame, options.groups, f"{self.name}: groups")[known.cells]
        self._check(groups, known)
        found = self._probed(states, known, groups, work)
        table = self._table(states, found, work)
        repeats = self._repeats(known)
        facts = {"places": states.facts(), "classified": known.classes is not None}
        return AnalysisResult({"probes": table}, summary=probe_report.summary(table, states, options, known, groups, repeats), facts=facts)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import probe_report
        from codi_engine.plugins.analyses.place_figures import Places

        places = Places(**about["facts"]["places"])
        return probe_report.draw(tables["probes"], places, self.options, about["facts"]["classified"], about["title"])

    def _check(self, groups: np.ndarray, known: Labels) -> None:
        count, options = len(np.unique(groups)), self.options
        if count < options.folds:
            raise UserError(
                f"{self.name}: {count} groups ({options.groups or 'example'}) cannot be held out in {options.folds} folds; give fewer folds, or more data"
            )
        if known.classes is not None and options.log:
            raise UserError(f"{self.name}: log is for numbers; {options.target} is classified")

    def _repeats(self, known: Labels) -> int:
        return self.options.repeats or REPEATS["regression" if known.classes is None else "classification"]

    def _probed(self, states: States, known: Labels, groups: np.ndarray, work: Work) -> list[dict[str, np.ndarray]]:
        """Probe every place; what is done is kept."""
        from sklearn.exceptions import ConvergenceWarning
        from threadpoolctl import threadpool_limits

        pairs = states.shape[0] * states.shape[1]
        places = [_Place(i, 4 * states.width * len(known.cells)) for i in range(pairs)]
        settings = {"analysis": self.name, "run": states.run.digest, "site": states.name, "options": self.options.model_dump(exclude={"memory", "threads"})}
        work.begin(settings)
        reader = _Reader(states, known.cells, range(pairs), work.memory // 3)
        with threadpool_limits(limits=1, user_api="blas"), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # counted instead
            return [dict(p) for p in work.stream("probes", places, lambda p, _: reader.read(p), lambda _, x: self._one(x, known, groups))]

    def _one(self, x: np.ndarray, known: Labels, groups: np.ndarray) -> dict[str, np.ndarray]:
        """Probe one place: the real labels and the shuffled ones."""
        from codi_engine.plugins.analyses import linear

        there = np.isfinite(x).all(1)
        x, mine = x[there], np.unique(groups[there], return_inverse=True)[1]
        labels = (known.numbers if known.classes is None else known.classes)[there]  # type: ignore[index]
        out = {"n": np.array(len(x)), "groups": np.array(mine.max(initial=-1) + 1)}
        if out["groups"] < self.options.folds or len(np.unique(labels)) < 2:
            return out
        options, repeats = self.options, self._repeats(known)
        sets = [labels, *(linear.shuffled(labels, mine, options.seed + _SHUFFLES + r) for r in range(repeats))]
        if known.classes is None:
            made = linear.probe_numbers(x, np.stack(sets, 1), mine, options.folds, options.seed)
            baseline = 0.0
        else:
            made = [linear.probe_classes(x, y, mine, options.folds, options.seed) for y in sets]
            baseline = linear.majority(labels, mine, options.folds, options.seed)
        real = made[0]
        out |= {"scores": np.array([m.score for m in made]), "interval": np.array(linear.interval(real, options.confidence))}
        out |= {"folds": real.folds, "strengths": real.strengths, "unfinished": np.array(sum(m.unfinished for m in made))}
        squares = np.array([real.scale.sum() - real.gain.sum(), real.scale.sum()])
        return out | {"baseline": np.array(baseline), "rmse": np.sqrt(squares / len(x)) if known.classes is None else np.full(2, np.nan)}

    def _table(self, states: States, found: Sequence[dict[str, np.ndarray]], work: Work) -> pd.DataFrame:
        import pandas as pd

        from codi_engine.kernels.multiple import adjust

        rows = []
        for number, place in enumerate(found):
            layer, step = divmod(number, states.shape[1])
            rows.append({"layer": states.layers[layer], states.axis: states.places[step], **_row(place)})
        table = pd.DataFrame(rows).astype({"layer": "Int64", states.axis: "Int64"})
        table["q"] = adjust(table["p"].to_numpy(float), self.options.correction)
        table["significant"] = table["q"] < self.options.q
        return table


def _row(place: dict[str, np.ndarray]) -> dict[str, object]:
    """Return one place's numbers; NaN with a note where too few cells have a state there."""
    row: dict[str, object] = {"n": int(place["n"]), "groups": int(place["groups"])}
    names = ("score", "low", "high", "fold_mean", "fold_sd", "baseline", "control", "control_sd", "selectivity", "p", "rmse", "rmse_baseline", "strength")
    if "scores" not in place:
        return row | dict.fromkeys(names, np.nan) | {"unfinished": 0, "note": "too few groups or labels here"}
    score, control, folds = place["scores"][0], place["scores"][1:], place["folds"][~np.isnan(place["folds"])]
    low, high = place["interval"]
    spread = float(control.std(ddof=1)) if len(control) > 1 else np.nan
    numbers = (
        score, low, high, folds.mean() if len(folds) else np.nan, folds.std(ddof=1) if len(folds) > 1 else np.nan, place["baseline"],
        control.mean(), spread, score - control.mean(), (1 + int((control >= score).sum())) / (1 + len(control)), *place["rmse"],
        np.median(place["strengths"]),
    )  # fmt: skip
    row |= {n: float(v) for n, v in zip(names, numbers, strict=True)}
    unfinished = int(place["unfinished"])
    return row | {"unfinished": unfinished, "note": f"{unfinished} fits stopped before they had converged" if unfinished else ""}
