"""What a metric must be: a number per row that follows from the row's own outcome, whatever rows it is measured with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st

from codi_engine import Experiment
from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Metric, Outcome, Readings
from codi_engine.core.running.reading import take
from codi_engine.core.running.run import plan_experiment, run_experiment
from codi_engine.testing.runs import small_data
from codi_engine.testing.suite import DEMO, TRIES, Suite, demand, offered

#: what ``Metric.needs`` may name → the fields of an Outcome that it allows
_ALLOWED = {
    "generation": {"text", "answer"},
    "number_logits": {"number_logits"},
    "first_logits": {"first_logits"},
    "gold": {"gold_logprob", "gold_logit"},
    "other": {"other_logprob", "other_logit"},
    "captures": {"captures"},
    "natural": set(),
}
#: what an experiment can be on
_DATA = ("problems", "pairs", "prompts")


class MetricSuite(Suite):
    """Conformance of a metric.

    Attributes
    ----------
    plugin, options: see :class:`Suite`
    nan_where: ``unedited`` where it is NaN in unedited rows, ``some`` where it may be NaN in any; empty where it is always a number
    unedited: its value in every unedited row, where that is known (0 for a divergence from the unedited run)
    capture: what the experiment captures, for metrics of captured states
    intervention: of the tiny sweep; a patch for pairs, a resample for problems where empty
    experiment: further keys of the tiny sweep's experiment
    """

    kind = "metric"
    nan_where: ClassVar[str] = ""
    unedited: ClassVar[float | None] = None
    capture: ClassVar[Sequence[str]] = ("resid_post.2@latent",)
    intervention: ClassVar[Mapping[str, Any]] = {}
    experiment: ClassVar[Mapping[str, Any]] = {}
    _swept: ClassVar[dict[Any, tuple[list[Readings], pd.DataFrame | None, Exception | None]]] = {}

    # ------------------------------------------------------------------------------------ where it is tried

    def swept(self, setting: Mapping[str, Any], batch_size: int | str = "auto") -> tuple[list[Readings], pd.DataFrame | None, Exception | None]:
        """Return what a tiny sweep of the demo model gave it to read, the run's cells, and what stopped it; run once per setting."""
        key = (type(self), repr(sorted(setting.items(), key=str)), batch_size)
        if key not in self._swept:
            keys = {**self.keys(setting), "batch_size": batch_size}
            if batch_size == 1 and "limit" in keys["data"]:
                keys["data"] = {**keys["data"], "limit": 2}  # a limit takes the first examples: their cells are among the others'
            self._swept[key] = _sweep(self.plugin, setting, keys)
        return self._swept[key]

    def keys(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        """Return the experiment of the tiny sweep, without the metric."""
        pairs = "pairs" in self.build(setting).applies_to
        edit = {"plugin": "patch", "direction": "denoise"} if pairs else {"plugin": "resample"}
        return {
            "name": "conformance",
            "model": dict(DEMO),
            "data": small_data("pairs" if pairs else "problems"),
            "intervention": {"site": "resid_post.1@latent", "step": [1, 3], **(self.intervention or edit)},
            "capture": list(self.capture),
            "generate": {"max_new_tokens": 8},
            "controls": "none",
            **self.experiment,
        }

    def readings(self, setting: Mapping[str, Any]) -> list[Readings]:
        """Return copies of the readings that the sweep gave: unedited rows first."""
        seen, _, error = self.swept(setting)
        if not seen:
            raise error or AssertionError("the engine never called measure")
        return [rows_of(read, range(len(read.gold))) for read in seen]

    # ------------------------------------------------------------------------------------------- demands

    def test_it_says_what_it_needs_and_where_it_applies(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        unknown = set(metric.needs) - set(_ALLOWED)
        demand(not unknown, f"needs: {sorted(unknown)} is nothing that the engine can produce; it knows {', '.join(_ALLOWED)}")
        applies = set(metric.applies_to)
        demand(applies and applies <= set(_DATA), f"applies_to: {sorted(applies)} must be some of problems, pairs, prompts")

    def test_it_returns_the_columns_that_it_declares(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        declared = list(metric.columns())
        demand(declared and len(set(declared)) == len(declared), f"columns() must name every column once; it says {declared}")
        for read in self.readings(setting):
            found = list(metric.measure(read))
            demand(sorted(found) == sorted(declared), f"measure() must return exactly the declared columns {declared}; it returned {found}")

    def test_every_column_is_one_float64_a_row(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        for read in self.readings(setting):
            for column, values in metric.measure(read).items():
                rows = len(read.gold)
                shape, dtype = getattr(values, "shape", None), getattr(values, "dtype", type(values))
                right = isinstance(values, np.ndarray) and values.shape == (rows,) and values.dtype == np.float64
                demand(right, f"{column}: must be a numpy array of float64, one per row ({rows}); it is {dtype} of shape {shape}")

    def test_a_row_does_not_depend_on_the_rows_beside_it(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        for read in self.readings(setting)[:4]:
            _demand_independent(metric, read)

    def test_it_reads_only_what_it_says_it_needs(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        for read in self.readings(setting):
            metric.measure(guarded(read, metric))

    def test_it_is_deterministic(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        for read in self.readings(setting):
            first, second = metric.measure(read), self.build(setting).measure(read)
            same = all(np.array_equal(first[c], second[c], equal_nan=True) for c in first)
            demand(same, "the same rows measured twice must give the same values")

    def test_it_changes_nothing_that_it_reads(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        for read in self.readings(setting):
            before = rows_of(read, range(len(read.gold)))
            metric.measure(read)
            demand(_equal(before, read), "measure() must not change the readings in place: other metrics read them too")

    def test_it_is_a_number_except_where_stated(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        for read in self.readings(setting):
            unedited = read.edited is read.baseline
            if self.nan_where == "some" or (self.nan_where == "unedited" and unedited):
                continue
            for column, values in metric.measure(read).items():
                demand(np.isfinite(values).all(), f"{column}: holds NaN or infinity; state in the docstring where it is undefined, and in nan_where")

    def test_unedited_rows_have_the_known_value(self, setting: Mapping[str, Any]) -> None:
        metric = self.build(setting)
        reads = [r for r in self.readings(setting) if r.edited is r.baseline]
        demand(reads, "the tiny sweep measured no unedited rows")
        for read in reads:
            for column, values in metric.measure(read).items():
                if self.unedited is not None:
                    demand((values == self.unedited).all(), f"{column}: must be {self.unedited} in unedited rows; it is {values[:4]}")
                if self.nan_where == "unedited":
                    demand(np.isnan(values).all(), f"{column}: nan_where says that it is NaN in unedited rows; it is {values[:4]}")

    def test_a_sweep_stores_what_it_measures(self, setting: Mapping[str, Any]) -> None:
        _, cells, error = self.swept(setting)
        if error is not None:
            raise error
        assert cells is not None
        columns = list(self.build(setting).columns())
        stored = [c for c in map(str, cells) if any(c == name or c.startswith(f"{name}_") for name in columns)]
        demand(len(stored) >= len(columns), f"the run must have the columns {columns}; it has {list(cells)}")

    def test_batches_of_one_give_the_same_cells(self, setting: Mapping[str, Any]) -> None:
        found = [self.swept(setting, size) for size in ("auto", 1)]
        for _, _, error in found:
            if error is not None:
                raise error
        (_, batched, _), (_, single, _) = found
        assert batched is not None
        assert single is not None
        part = batched[batched["example"].isin(single["example"])]
        demand(len(part) == len(single), "a sweep must have the same cells with any batch size")
        columns = [c for c in single if pd.api.types.is_float_dtype(single[c])]
        apart = [c for c in columns if not np.array_equal(part[c], single[c], equal_nan=True)]
        demand(not apart, f"cells measured in batches and one at a time must be the same, bit for bit; {', '.join(map(str, apart))} differ")

    def test_it_is_refused_where_it_does_not_apply(self, setting: Mapping[str, Any]) -> None:
        """Planned for data of every kind; nothing is computed."""
        applies = self.build(setting).applies_to
        with offered("metric", self.plugin) as name:
            for kind in _DATA:
                data = {"plugin": f"demo-{kind}", "limit": 2}
                value = {"name": "conformance", "model": dict(DEMO), "data": data, "capture": list(self.capture), "metrics": [{"plugin": name, **setting}]}
                try:
                    plan_experiment(Experiment.from_dict(value))
                except UserError as error:
                    demand(kind not in applies, f"applies_to names {kind}, but the engine refuses it there: {error}")
                else:
                    demand(kind in applies, f"applies_to is {sorted(applies)}, but an experiment on {kind} is let pass")


# ----------------------------------------------------------------------------------------------- readings


def _sweep(cls: type[Metric[Any]], setting: Mapping[str, Any], keys: Mapping[str, Any]) -> tuple[list[Readings], pd.DataFrame | None, Exception | None]:
    seen: list[Readings] = []
    real = cls.measure

    def recording(self: Metric[Any], read: Readings) -> Mapping[str, np.ndarray]:
        seen.append(rows_of(read, range(len(read.gold))))
        return real(self, read)

    with offered("metric", cls) as name, tempfile.TemporaryDirectory() as folder:
        cls.measure = recording  # type: ignore[method-assign]
        try:
            value = {**keys, "metrics": [{"plugin": name, **setting}]}
            return seen, run_experiment(Experiment.from_dict(value), Path(folder) / "run").open().cells, None
        except Exception as error:  # told by the test that asks for the whole sweep
            return seen, None, error
        finally:
            cls.measure = real  # type: ignore[method-assign]


def _demand_independent(metric: Metric[Any], read: Readings) -> None:
    """Measure some rows, in any order and any number of times, and hold them against all rows measured at once."""
    whole = metric.measure(read)

    @TRIES
    @given(st.lists(st.integers(0, len(read.gold) - 1), min_size=1, max_size=6))
    def check(index: list[int]) -> None:
        part = metric.measure(rows_of(read, index))
        for column, values in whole.items():
            same = np.array_equal(part[column], np.asarray(values)[index], equal_nan=True)
            demand(same, f"{column}: a row's value must not depend on the other rows or their order; rows {index} measured alone differ")

    check()


def rows_of(read: Readings, index: Sequence[int]) -> Readings:
    """Return some rows of readings as copies; unedited rows stay their own baseline."""
    at = np.asarray(list(index), np.int64)
    new: dict[str, Any] = {"labels": {k: np.asarray(v)[at] for k, v in read.labels.items()}}
    for name in ("gold", "other", "gold_token", "other_token", "clean_is_gold", "predicted", "unusual"):
        value = getattr(read, name)
        new[name] = None if value is None else np.asarray(value)[at]
    for name in ("edited", "baseline", "clean", "corrupted"):
        outcome = getattr(read, name)
        new[name] = None if outcome is None else _copied(outcome, at, len(read.gold))
    if read.edited is read.baseline:
        new["baseline"] = new["edited"]
    return replace(read, **new)


def _copied(outcome: Outcome, at: np.ndarray, rows: int) -> Outcome:
    texts = list(outcome.text) or [""] * rows  # stored unedited outcomes have no texts
    copy = take(replace(outcome, text=texts), at)
    return replace(copy, text=copy.text if outcome.text else [])


def _equal(a: Any, b: Any) -> bool:
    if is_dataclass(a):
        return all(_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))
    if isinstance(a, Mapping):
        return all(_equal(a[k], b[k]) for k in a)
    return bool(a is b or a == b or callable(a))


class _Guarded:
    """An outcome of which only some fields may be read."""

    def __init__(self, outcome: Outcome, allowed: set[str], needs: Sequence[str]) -> None:
        self._outcome, self._allowed, self._needs = outcome, allowed, needs

    def __getattr__(self, name: str) -> Any:
        if name not in self._allowed:
            allows = ", ".join(sorted(n for n, f in _ALLOWED.items() if name in f))
            raise AssertionError(f"measure() reads Outcome.{name}, but needs says {sorted(self._needs)}: the engine need not produce it; declare {allows}")
        return getattr(self._outcome, name)


def guarded(read: Readings, metric: Metric[Any]) -> Any:
    """Return readings whose undeclared fields raise."""
    allowed = {f for need in metric.needs for f in _ALLOWED.get(need, ())}
    new: dict[str, Any] = {}
    for name in ("edited", "baseline", "clean", "corrupted"):
        outcome = getattr(read, name)
        new[name] = None if outcome is None else _Guarded(outcome, allowed, sorted(metric.needs))
    if read.edited is read.baseline:
        new["baseline"] = new["edited"]
    if "natural" not in metric.needs:
        new["unusual"] = None
    return replace(read, **new)
