"""What a run will have, or has: against this, analyses check their options before anything is computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.planning.controls import is_control

if TYPE_CHECKING:
    from codi_engine.core.planning.preparing import Prepared
    from codi_engine.core.runs.results import Run

#: text files that are looked into for the data's fields
_MOST = 256
#: columns of the cells that are neither axes, metrics nor fields of the data
_OWN = ("key", "text", "answer", "answer_rule")


@dataclass(frozen=True)
class Foreseen:
    """Facts of a run, planned or there.

    Attributes
    ----------
    conditions: edited ones, without controls; ``controls``: theirs; ``baseline``: whether there are unedited cells
    axes: condition → the axes that its cells have
    metrics: the columns; captures: names below ``activations/``; fields: of the data (None: not known)
    texts: whether answers are generated and kept
    examples, trials: how many
    kind: problems, pairs or prompts; empty where it is not known (imported runs)
    runs: how many runs are analysed together
    """

    conditions: Sequence[str]
    controls: Sequence[str] = ()
    baseline: bool = True
    axes: Mapping[str, Collection[str]] = field(default_factory=dict)
    metrics: Sequence[str] = ()
    captures: Sequence[str] = ()
    fields: Collection[str] | None = None
    texts: bool = True
    examples: int = 1
    trials: int = 1
    kind: str = ""
    runs: int = 1

    @property
    def all_axes(self) -> list[str]:
        """Return the axes of any condition."""
        return list(dict.fromkeys(a for axes in self.axes.values() for a in axes))

    # ------------------------------------------------------------------------------------- what is needed

    def need_metric(self, wanted: str | None) -> None:
        """Refuse a metric that is not there, and, without a wish, a run that has none."""
        if wanted is not None and wanted not in self.metrics:
            raise UserError(f"metric '{wanted}' is not in the run; {nearest(wanted, self.metrics)}")
        if not self.metrics:
            raise UserError("the run has no metric; add metrics: [kl] to the experiment")

    def need_condition(self, wanted: str | None, option: str = "condition", unedited: bool = False) -> None:
        """Refuse a condition that is not there; ``unedited``: the baseline is one too."""
        known = [*self.conditions, *(["baseline"] if unedited and self.baseline else [])]
        if wanted is not None and wanted not in known and wanted not in self.controls:
            raise UserError(f"{option}: the run has no condition '{wanted}'; {nearest(wanted, known)}")

    def need_pairs(self, pairs: Sequence[Sequence[str]] | None) -> None:
        """Refuse pairs of conditions that cannot be compared, and a run with nothing to compare."""
        for pair in pairs or ():
            if len(pair) != 2:
                raise UserError(f"pairs: a pair is two conditions, [[a, b]]; got [{', '.join(pair)}]")
            for name in pair:
                self.need_condition(name, "pairs", unedited=True)
        if pairs is None and len(self.conditions) + self.baseline < 2:
            raise UserError("needs two conditions to compare; add an intervention or a second condition")

    def need_field(self, wanted: str | None, option: str, more: Collection[str] = ()) -> None:
        """Refuse a field that the data do not have (axes and columns of the cells are fields too)."""
        known = [*(self.fields or ()), *self.all_axes, *self.metrics, *_OWN, "example", "condition", "variant", *more]
        if wanted is not None and self.fields is not None and wanted not in known:
            raise UserError(f"{option}: the data has no field '{wanted}'; {nearest(wanted, [*self.fields, *more] or known)}")

    def need_capture(self, site: str | None, example: str, only: bool = False, exact: bool = False) -> None:
        """Refuse a site that is not captured, and, without a wish, a run without captures.

        Parameters
        ----------
        example: what could be captured, for the remedy
        only: without a wish there must be one alone
        exact: a part of a captured site will not do
        """
        from codi_engine.core.runs.results import captured_name

        if not self.captures:
            raise UserError(f"needs captured activations; add capture: [{example}] to the experiment")
        if site is None:
            if only and len(self.captures) > 1:
                raise UserError(f"say which activations with `site`: {', '.join(sorted(self.captures))}")
        elif exact:
            if site not in self.captures:
                raise UserError(f"site '{site}' was not captured; {nearest(site, self.captures)}")
        else:
            captured_name(site, self.captures)

    def need_steps(self, at: Mapping[str, object] | None = None) -> None:
        """Refuse a run in which no condition edits latent steps one by one, and ``at`` with an axis that there is not."""
        if not any("step" in axes for axes in self.axes.values()):
            raise UserError("no condition edits latent steps; sweep step in the experiment, such as sweep: {step: all}")
        others = [a for a in self.all_axes if a != "step"]
        for axis in at or ():
            if axis not in others:
                raise UserError(f"at: '{axis}' is no other axis of the run; {nearest(axis, others)}")


# ------------------------------------------------------------------------------------------------- facts


def foreseen(prepared: Prepared) -> Foreseen:
    """Return what a prepared experiment's run will have."""
    from codi_engine.core.sites import parse_site

    plan, experiment = prepared.plan, prepared.experiment
    sites = [str(parse_site(c, f"{experiment.source}: capture[{n}]", plan.info.layers)) for n, c in enumerate(experiment.capture) if isinstance(c, str)]
    captures = [*sites, *(c.name for c in experiment.code_captures)]
    twice = next((c for c in captures if captures.count(c) > 1), None)
    if twice is not None:
        raise UserError(f"{experiment.source}: capture: '{twice}' stands twice; name each site once, and give codes names of their own")
    return Foreseen(
        conditions=[c.name for c in plan.conditions if c.control is None], controls=[c.name for c in plan.conditions if c.control is not None],
        axes={c.name: {*c.axes, *c.fixed, *(a for row in c.table.values() for a in row)} for c in plan.conditions},
        metrics=list(prepared.metric_names.values()), captures=captures, fields={f for e in plan.data.examples for f in e.fields},
        examples=len(plan.data.examples), trials=plan.trials,
        kind=plan.data.kind,
    )  # fmt: skip


def facts_of(run: Run, runs: int = 1) -> Foreseen:
    """Return what a run on disk has."""
    store = run.store
    labels = [str(c) for c in store.labels("condition")]
    edited = [c for c in labels if c != "baseline"]
    codes = store.codes("condition")
    swept = [a for a in run.axes if a not in ("example", "condition", "variant", "trial")]
    there = {a: store.codes(a) >= 0 for a in swept}
    axes = {c: {a for a in swept if there[a][codes == number].any()} for number, c in enumerate(labels) if c != "baseline"}
    texts = list(store.text_units())
    return Foreseen(
        conditions=[c for c in edited if not is_control(c)], controls=[c for c in edited if is_control(c)], baseline="baseline" in labels, axes=axes,
        metrics=run.metrics, captures=list(dict.fromkeys(a.split("/")[1] for a in store.arrays if a.startswith("activations/"))), fields=_fields(run, texts),
        texts=bool(texts), examples=len(store.labels("example")), trials=max(len(store.labels("trial")) if "trial" in run.axes else 1, 1), runs=runs,
    )  # fmt: skip


def _fields(run: Run, units: Sequence[int]) -> set[str] | None:
    """Return the data's fields, from the texts' files; None where there are too many to look into."""
    if len(units) > _MOST:
        return None
    from codi_engine.core.runs.exportrows import Cells

    return set(Cells(run).text_columns) - {*run.axes, *run.metrics, *_OWN}
