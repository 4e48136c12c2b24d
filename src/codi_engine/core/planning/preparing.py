"""Everything of an experiment that is known and can be checked before any weight is loaded."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from codi_engine.core.calling import calling
from codi_engine.core.errors import UserError, said_of
from codi_engine.core.planning.checks import Check, parse_checks
from codi_engine.core.planning.plan import Plan, build_plan
from codi_engine.core.plugin import Analysis, Metric, Model, Tracker
from codi_engine.core.returned import columns_of, described, loaded
from codi_engine.core.rollout.devices import on_first
from codi_engine.core.running.reuse import named_runs
from codi_engine.core.runs.foreseen import foreseen

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment
    from codi_engine.core.plugins import Plugins

#: option values that can stand in a column's name
_NAMING = re.compile(r"[A-Za-z0-9_.+-]{1,40}\Z")


@dataclass
class Prepared:
    """An experiment with its plugins built and its plan made; no weight is loaded yet.

    ``devices``: where its units are computed. Of a list, ``experiment`` and ``model`` name the first, so that a run on several
    devices is the run on one of them.
    """

    experiment: Experiment
    plugins: Plugins
    model: Model[Any]
    plan: Plan
    metrics: list[Metric[Any]]
    metric_names: dict[tuple[int, str], str] = field(default_factory=dict)
    trackers: list[Tracker[Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)

    def column(self, metric: Metric[Any], column: str) -> str:
        """Return the column's name: the metric's, made unique where one metric is used twice with other options."""
        return self.metric_names[id(metric), column]


def prepare(experiment: Experiment, plugins: Plugins) -> Prepared:
    """Validate everything that can be validated without weights, and plan."""
    experiment, devices = on_first(experiment)
    source = experiment.source
    with said_of(source):
        model = plugins.build("model", experiment.model, where="model", source=source)
    dataset = plugins.build("dataset", experiment.data, where="data", source=source)
    metrics = [plugins.build("metric", m, where=f"metrics[{i}]", source=source) for i, m in enumerate(experiment.metrics)]
    analyses = [plugins.build("analysis", a, where=f"analyses[{i}]", source=source) for i, a in enumerate(experiment.analyses)]
    trackers = [plugins.build("tracker", t, where=f"trackers[{i}]", source=source) for i, t in enumerate(experiment.trackers)]
    for number, tracker in enumerate(trackers):
        with said_of(f"{source}: trackers[{number}]"), calling(tracker, "check"):
            tracker.check()
    with said_of(source):
        info = described(model)
    data = loaded(dataset)
    for number, metric in enumerate(metrics):
        if data.kind not in metric.applies_to:
            raise UserError(f"{source}: metrics[{number}]: '{metric.name}' does not apply to {data.kind}; it needs {' or '.join(sorted(metric.applies_to))}")
        if "captures" in metric.needs and not experiment.site_captures:
            raise UserError(f"{source}: metrics[{number}]: '{metric.name}' compares captures; add capture: [site]")
    natural = any("natural" in m.needs for m in metrics)
    named_runs(experiment)  # refuses what names none
    prepared = Prepared(experiment, plugins, model, build_plan(experiment, plugins, data, info, natural=natural), metrics)
    prepared.metric_names = metric_names(metrics)
    prepared.trackers = trackers
    prepared.devices = devices or [info.device]
    _check_others(prepared.plan, metrics, source)
    _check_analyses(prepared, analyses)
    prepared.checks = parse_checks(experiment, prepared.plan, list(prepared.metric_names.values()))
    return prepared


def _check_analyses(prepared: Prepared, analyses: Sequence[Analysis[Any]]) -> None:
    """Refuse analyses whose options cannot work on what the run will have."""
    facts = foreseen(prepared)
    for number, analysis in enumerate(analyses):
        try:
            with calling(analysis, "check"):
                analysis.check(facts)
        except UserError as error:
            raise UserError(f"{prepared.experiment.source}: analyses[{number}] ({analysis.name}): {error}") from None


def _check_others(plan: Plan, metrics: Sequence[Metric[Any]], source: str) -> None:
    """Refuse metrics that sort answers by the pair's sides where the other answer is a donor's."""
    donors = next((c.name for c in plan.conditions if c.plugin.source == "donor"), None)
    for number, metric in enumerate(metrics):
        if donors is not None and plan.data.kind == "pairs" and metric.compares_sides:
            raise UserError(
                f"{source}: metrics[{number}]: '{metric.name}' compares with the pair's other answer, but '{donors}' takes values of a donor.\n"
                "Use equals_other, or problems instead of pairs."
            )


def metric_names(metrics: Sequence[Metric[Any]]) -> dict[tuple[int, str], str]:
    """Name columns; a second use of a metric takes its options that differ from the defaults into the name."""
    names: dict[tuple[int, str], str] = {}
    taken: set[str] = set()
    for metric in metrics:
        for column in columns_of(metric):
            name = column
            if name in taken:
                set_values = metric.options.model_dump(exclude_defaults=True)
                name = "_".join([column, *(str(v) for v in set_values.values() if _NAMING.match(str(v)))])
            number = 2
            while name in taken:
                name, number = f"{column}_{number}", number + 1
            taken.add(name)
            names[id(metric), column] = name
    return names
