"""``checks:`` of an experiment file: read and validated against the plan before anything is computed."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from codi_engine.core.axes import label
from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Options

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.planning.plan import Condition, Plan

By = Literal["lower", "mean", "upper"]
#: what a run took, rather than what it found; the last letters of a bound may be a unit
RESOURCES = {"peak_memory": "B", "seconds_per_example": "s", "cells_per_second": ""}
_UNITS = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0, "B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
_OPERATORS: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le, "==": operator.eq, ">": operator.gt, "<": operator.lt}
_NUMBER = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)"
_ONE = re.compile(rf"\s*(>=|<=|==|>|<)\s*{_NUMBER}\s*")
_RANGE = re.compile(rf"\s*{_NUMBER}\s*\.\.\s*{_NUMBER}\s*")


@dataclass(frozen=True)
class Bound:
    """A comparison such as ``>= 0.7``, or a range such as ``0.2 .. 0.4`` (ends included)."""

    text: str
    parts: tuple[tuple[str, float], ...]

    def holds(self, value: float) -> bool:
        """Return whether the value is as wanted; NaN never is."""
        return all(_OPERATORS[sign](value, limit) for sign, limit in self.parts)


class MeanCheck(Options):
    """``value``: the comparison. ``by``: the mean, or the lower or upper end of its 95 % interval over examples."""

    value: str
    by: By = "mean"


class EffectMapCheck(Options):
    """``metric`` and ``condition``: whose map of places. ``min_range``: the largest minus the smallest place mean must exceed it."""

    metric: str
    condition: str
    min_range: float = Field(default=0.0, ge=0.0)


class SinglesCheck(Options):
    """``condition_singles``: one step at a time. ``condition_all``: all at once. ``metric``: whose change is compared."""

    condition_singles: str
    condition_all: str
    metric: str


class GoCheck(Options):
    """``metric`` of ``condition`` at the place ``at``, ``by`` its mean or interval, must be ``value`` with ``n`` examples or more."""

    metric: str
    condition: str
    value: str
    at: dict[str, int | str | float] = Field(default_factory=dict)
    by: By = "lower"
    n: int = Field(default=2, ge=2)


class SignCheck(Options):
    """A named ``example``: the ``sign`` (``+``, ``-``, ``0``) of ``metric`` in ``condition``, ``at`` a place (every other key is an axis)."""

    example: str
    condition: str
    metric: str
    sign: Literal["+", "-", "0"]
    at: dict[str, int | str | float] = Field(default_factory=dict)


_MAPPINGS: dict[str, type[Options]] = {"effect_map": EffectMapCheck, "singles_vs_all": SinglesCheck, "sign": SignCheck, "go": GoCheck}


@dataclass(frozen=True)
class Check:
    """One thing that is demanded.

    ``kind``: ``mean`` (``metric`` of ``condition``; None: the unedited cells), ``resource``, ``no_nan`` or a key of mapping form,
    whose ``options`` say the rest. ``known`` is False where the example of a ``sign`` is left out by a limit.
    """

    name: str
    kind: str
    bound: Bound | None = None
    by: By = "mean"
    metric: str = ""
    condition: str | None = None
    options: Any = None
    known: bool = True


def parse_bound(text: Any, where: str, unit: str = "") -> Bound:
    """Read a comparison.

    Raises
    ------
    UserError: not a comparison, or another unit than ``unit`` allows
    """
    example = '"<= 4 GB"' if unit == "B" else '">= 0.7"'
    if not isinstance(text, str):
        raise UserError(f'{where}: write a comparison in quotes, such as {example} or "0.2 .. 0.4"; got {text!r}')
    if match := _ONE.fullmatch(text):
        return Bound(" ".join(text.split()), ((match[1], _number(match[2], match[3], where, unit)),))
    if match := _RANGE.fullmatch(text):
        low, high = _number(match[1], match[2] or match[4], where, unit), _number(match[3], match[4], where, unit)
        if low > high:
            raise UserError(f"{where}: the range '{text}' is empty; write the smaller number first")
        return Bound(" ".join(text.split()), ((">=", low), ("<=", high)))
    raise UserError(f"{where}: '{text}' is no comparison; write >=, >, <=, < or == and a number, such as {example}, or a range \"0.2 .. 0.4\"")


def _number(text: str, unit: str, where: str, wanted: str) -> float:
    allowed = {"B": ["B", "kB", "MB", "GB", "TB"], "s": ["", "s", "ms", "min"]}.get(wanted, [""])
    if unit not in allowed:
        remedy = f"write {', '.join(a for a in allowed if a)}" if wanted else "write a number without a unit"
        raise UserError(f"{where}: '{text} {unit}': {remedy}" if unit else f"{where}: '{text}' needs a unit; {remedy}")
    return float(text) * _UNITS[unit]


def parse_checks(experiment: Experiment, plan: Plan, metrics: Sequence[str]) -> list[Check]:
    """Read the experiment's checks.

    Raises
    ------
    UserError: an unknown check, metric, condition, axis, place or example, or a comparison that cannot be read
    """
    reader = _Reader(experiment.source, plan, metrics)
    return [check for name, value in experiment.checks.items() for check in reader.read(name, value)]


class _Reader:
    def __init__(self, source: str, plan: Plan, metrics: Sequence[str]) -> None:
        self.source, self.plan, self.metrics = source, plan, list(metrics)
        self.conditions = {c.name: c for c in plan.conditions}

    def read(self, name: str, value: Any) -> list[Check]:
        where = f"{self.source}: checks.{name}"
        if name in RESOURCES:
            return [Check(name, "resource", parse_bound(value, where, RESOURCES[name]))]
        if name == "no_nan":
            if not isinstance(value, bool):
                raise UserError(f"{where}: write true or false; got {value!r}")
            return [Check(name, "no_nan")] if value else []
        if name in _MAPPINGS:
            values = value if isinstance(value, list) else [value]
            return [self._mapping(name, v, f"{where}[{i}]" if isinstance(value, list) else where) for i, v in enumerate(values)]
        return [self._mean(name, value, where)]

    def _mean(self, name: str, value: Any, where: str) -> Check:
        condition, dot, metric = name.rpartition(".")
        if dot and condition not in self.conditions and name not in self.metrics:
            known = [f"{c}.{metric}" for c in self.conditions]
            raise UserError(f"{where}: there is no condition '{condition}'; {nearest(name, known)}")
        if name in self.metrics or not dot:
            condition, metric = "", name
        if metric not in self.metrics:
            known = [*self.metrics, *(() if condition else (*RESOURCES, "no_nan", *_MAPPINGS))]
            raise UserError(f"{where}: '{metric}' is neither a metric of the experiment nor a check; {nearest(metric, known)}")
        options = (
            self._options(MeanCheck, value if isinstance(value, dict) else {"value": value}, where) if not isinstance(value, str) else MeanCheck(value=value)
        )
        return Check(name, "mean", parse_bound(options.value, where), options.by, metric, condition or None)

    def _mapping(self, name: str, value: Any, where: str) -> Check:
        if not isinstance(value, dict):
            raise UserError(f"{where}: write a mapping of {', '.join(_MAPPINGS[name].model_fields)}; got {value!r}")
        if name == "sign":
            value = self._axes_into_at(value)
        options = self._options(_MAPPINGS[name], value, where)
        self._known(options.metric, self.metrics, f"{where}.metric", "metric")
        for key in ("condition", "condition_singles", "condition_all"):
            if hasattr(options, key):
                self._known(getattr(options, key), self.conditions, f"{where}.{key}", "condition")
        if name == "singles_vs_all" and options.condition_singles == options.condition_all:
            raise UserError(f"{where}: condition_singles and condition_all are the same condition")
        known = True
        if hasattr(options, "at"):
            self._place(self.conditions[options.condition], options.at, where, name == "go")
        if name == "sign":
            known = self._example(options.example, f"{where}.example")
        bound = parse_bound(options.value, f"{where}.value") if name == "go" else None
        condition = getattr(options, "condition", None)
        return Check(name, name, bound, getattr(options, "by", "mean"), options.metric, condition, options, known)

    def _axes_into_at(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Every key of a ``sign`` that is an axis is part of the place."""
        places = {k: v for k, v in value.items() if k in self.plan.axes}
        rest = {k: v for k, v in value.items() if k not in places}
        if isinstance(rest.get("example"), int):
            rest["example"] = str(rest["example"])
        at = rest.get("at", {})
        return {**rest, "at": {**at, **places}} if isinstance(at, dict) else rest

    def _options(self, model: type[Options], value: Mapping[str, Any], where: str) -> Any:
        from codi_engine.core.explaining import validated

        return validated(model, value, where.removeprefix(f"{self.source}: "), self.source)

    def _known(self, name: str, known: Iterable[str], where: str, what: str) -> None:
        if name not in known:
            raise UserError(f"{where}: there is no {what} '{name}'; {nearest(name, known)}")

    def _place(self, condition: Condition, at: Mapping[str, Any], where: str, any_allowed: bool) -> None:
        axes = {**{n: (v,) for n, v in condition.fixed.items()}, **condition.axes}
        for axis, value in at.items():
            if axis not in axes:
                raise UserError(f"{where}.at: condition '{condition.name}' has no axis '{axis}'; {nearest(axis, axes)}")
            labels = [str(label(v)) if isinstance(v, tuple) else str(v) for v in axes[axis]]
            if not (value == "any" and any_allowed) and str(value) not in labels:
                raise UserError(f"{where}.at.{axis}: {value} is not swept in condition '{condition.name}'; {nearest(str(value), labels)}")

    def _example(self, example: str, where: str) -> bool:
        """Return whether the example is swept; False when a limit leaves it out."""
        swept = [e.id for e in self.plan.data.examples]
        if example not in swept:
            self._known(example, [e.id for e in self.plan.data.pool], where, "example")
        return example in swept
