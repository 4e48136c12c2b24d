"""``proportions``: how often each outcome occurs, and by how much edits change that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.plugin import Analysis, AnalysisResult, Options
from codi_engine.plugins.metrics.outcome import ANSWER_CLASSES, OutcomeOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.foreseen import Foreseen
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.contrasts import Grids

_SHOWN = 5  # differences that the console lists


class ProportionsOptions(Options):
    """``metrics``: columns to compare (default: all of yes and no, and the numbers of ``outcome``); ``answer_class`` or a group
    of ``outcome`` stands for its columns. ``outcome``: ``{pattern: …, categories: …, numbers: …}``, read now from the stored
    texts (for imported logs).

    ``pairs``: conditions to compare, ``[[a, b]]`` for a − b (default: each against ``baseline``, else all pairs).
    ``unit``: ``example``, ``trial``, or ``auto``: examples where there are six or more, else the trials within each prompt.
    ``keep``: ``all`` examples, or those whose unedited answers are ``correct`` (both sides' for pairs).
    ``classes``: ``{name: [columns]}`` that belong together in a figure (default: ``answer_class`` and each group of ``outcome``).
    ``top``: rows of the forest plot.
    ``q``: level of the family of tests, after ``correction``. ``confidence``: of intervals.
    """

    metrics: list[str] | None = Field(default=None, min_length=1)
    outcome: OutcomeOptions | None = None
    pairs: list[list[str]] | None = None
    unit: Literal["auto", "example", "trial"] = "auto"
    keep: Literal["all", "correct"] = "all"
    classes: dict[str, list[str]] | None = None
    q: float = Field(default=0.05, gt=0.0, lt=1.0)
    correction: Literal["bh", "by", "bonferroni"] = "bh"
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    top: int = Field(default=20, ge=1)


class Proportions(Analysis[ProportionsOptions]):
    """Counts and shares of outcomes per place and condition, their differences with intervals and exact tests, one correction.

    With six examples or more these are the unit of inference (trials averaged) and tests are paired: McNemar's, or Student's t
    where answers are averaged. With fewer the trials are draws of their prompt: Fisher's test, or the exact
    Cochran–Mantel–Haenszel test over prompts, and the result speaks of these prompts only.
    """

    name = "proportions"
    Options = ProportionsOptions

    def check(self, facts: Foreseen) -> None:
        options = self.options
        facts.need_pairs(options.pairs)
        for name in options.metrics or () if options.outcome is None else ():
            if name != "answer_class" and not any(m.startswith(f"{name}=") for m in facts.metrics):
                facts.need_metric(name)
        if options.outcome is None and not facts.metrics:
            facts.need_metric(None)
        if options.keep == "correct" and "accuracy" not in facts.metrics and not set(ANSWER_CLASSES) <= set(facts.metrics):
            raise UserError("keep: which answers are right is not known; add metrics: [accuracy] or [answer_class]")

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.plugins.analyses import contrasts
        from codi_engine.plugins.analyses.contrast_tables import recovery_table, share_table, test_table

        run, options = runs[0], self.options
        more = contrasts.stored_outcomes(run, options.outcome, self.name) if options.outcome else None
        found = contrasts.grids(run, options.metrics, options.keep == "correct", self.name, more)
        pairs = found.arrangement.pairs(options.pairs, self.name)
        unit = contrasts.unit_of(found, options.unit)
        contrasts.check_unit(found, unit, self.name)
        tests, least = test_table(found, pairs, unit, options.confidence, options.correction, options.q)
        shares = share_table(found, options.confidence, unit)
        tables = {"proportions": tests, "shares": shares}
        recovery = recovery_table(found, options.confidence, self.name)
        if recovery is not None:
            tables["recovery"] = recovery
        classes = _classes(list(found.values), options.classes, self.name)
        a = found.arrangement
        own, shared = ([a.conditions[c] for c in some] for some in (a.own, a.shared))
        facts = {"own": own, "shared": shared, "axes": list(a.axes), "targets": len(a.targets), "classes": classes}
        return AnalysisResult(tables, summary=_summary(found, tables, classes, unit, least, options), facts=facts)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> Mapping[str, Figure]:
        from codi_engine.plugins.analyses import share_figures

        facts = dict(about["facts"])
        classes = facts.pop("classes")
        return share_figures.draw(share_figures.Layout(**facts), tables, classes, self.options)


def _classes(columns: Sequence[str], wanted: dict[str, list[str]] | None, where: str) -> dict[str, list[str]]:
    """Return name → columns of which exactly one is 1."""
    if wanted is not None:
        for name in (n for names in wanted.values() for n in names):
            if name not in columns:
                raise UserError(f"{where}: classes: '{name}' is not among the columns compared; {nearest(name, columns)}")
        return wanted
    found = {"answer_class": list(ANSWER_CLASSES)} if set(ANSWER_CLASSES) <= set(columns) else {}
    for column in columns:
        group, equals, _ = column.partition("=")
        if equals:
            found.setdefault(group, []).append(column)
    return {name: names for name, names in found.items() if len(names) > 1}


# ---------------------------------------------------------------------------------------------- summary


def _summary(
    found: Grids, tables: dict[str, pd.DataFrame], classes: dict[str, list[str]], unit: str, least: float, options: ProportionsOptions
) -> str:  # fmt: skip
    tests, a = tables["proportions"], found.arrangement
    family = int(tests["tested"].sum())
    names = list(dict.fromkeys(f"{c} − {g}" for c, g in zip(tests["condition"], tests["against"], strict=True)))
    rule = f"q < {options.q:g}, {options.correction.upper()} over the whole family"
    lines = [f"{int(tests['significant'].sum()):,} of {family:,} differences are significant ({rule})"]
    kinds = ", ".join(dict.fromkeys(f"{t} tests" for t in tests["test"]))
    lines.append(
        f"{_count(len(a.targets), 'target')} × {_count(len(names), 'pair')} × {_count(len(found.distinct), 'metric')}; {kinds} on {units(found, unit)}"
    )
    lines += [f"{name} is the same as {other} in every cell and is tested once" for name, other in found.doubles.items()]
    lines += [*statement(found, unit), *_overall(tables["shares"], classes), "", *_strongest(tests)]
    if "recovery" in tables:
        lines += _recovery(tables["recovery"])
    constant = int((tests["note"] == "constant: no test").sum())
    if constant:
        lines.append(f"{constant:,} without any spread in either condition (p = 1, not in the family)")
    return "\n".join([*lines, *power_lines(tests, family, least, options.q, options.confidence)])


def _count(count: int, word: str) -> str:
    return f"{count:,} {word}{'s' if count != 1 else ''}"


def units(found: Grids, unit: str) -> str:
    """Say what counts as one observation."""
    examples, draws = found.examples(), found.draws
    if unit == "example":
        return f"{examples:,} examples" + (f", their {draws:,} trials averaged" if draws > 1 else "")
    return f"{_count(draws, 'trial')} of {_count(examples, 'prompt')}"


def statement(found: Grids, unit: str) -> list[str]:
    """Say of what the result speaks, where that is not of examples in general."""
    from codi_engine.plugins.analyses.contrasts import ENOUGH

    if unit == "example":
        return []
    few = f"fewer than {ENOUGH} prompts" if found.examples() < ENOUGH else "trials as the unit"
    return [f"{few}: trials are independent draws within their prompt, so this speaks about these prompts only"]


def _overall(shares: pd.DataFrame, classes: dict[str, list[str]]) -> list[str]:
    """Say the shares of each set of classes by condition, averaged over targets."""
    lines = []
    for columns in classes.values():
        part = shares[shares["metric"].isin(columns)]
        mean = part.groupby(["condition", "metric"], sort=False)["mean"].mean()
        for condition in dict.fromkeys(part["condition"]):
            lines.append(f"  {condition}: " + ", ".join(f"{c} {mean[condition, c]:.0%}" for c in columns))
    return ["shares, mean over targets:", *lines] if lines else []


def _strongest(tests: pd.DataFrame) -> list[str]:
    known = tests[tests["tested"]]
    order = known.assign(size_=-known["difference"].abs()).sort_values(["p", "size_"], kind="stable").index[:_SHOWN]
    rows = [tests.loc[i] for i in order]
    text = [
        f"  {row['target']}, {row['metric']}: {row['mean']:.3g} against {row['mean_against']:.3g} ({row['condition']} − {row['against']}), "
        f"{row['difference']:+.2f} [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}], q = {row['q']:.2g}"
        for row in rows
    ]
    return ["strongest:", *text] if text else ["nothing differs anywhere"]


def _recovery(table: pd.DataFrame) -> list[str]:
    lines = []
    for (condition, toward), part in table.groupby(["condition", "toward"], sort=False):
        best = part.sort_values("share", ascending=False, kind="stable").iloc[0] if part["share"].notna().any() else None
        if best is None:
            lines.append(f"{condition}: no pair has two right unedited answers, so there is nothing to recover")
            continue
        span = f"[{best['ci_low']:.0%}, {best['ci_high']:.0%}]"
        lines.append(f"{condition}: {toward} in up to {best['share']:.0%} {span} of {_count(int(best['valid']), 'valid pair')} ({best['target']})")
    return lines


def power_lines(tests: pd.DataFrame, family: int, least: float, q: float, confidence: float) -> list[str]:
    """Say what could not have been found."""
    from scipy import special

    lines = []
    if family and least * family > q:
        lines.append(
            f"no test can have p below {least:.2g}: a single effect could not be significant among {family:,} tests; more examples or trials are needed"
        )
    part = tests[(tests["size"] == "cohens_h") & tests["tested"]]
    if len(part):
        half = float(((part["ci_high"] - part["ci_low"]) / 2).median())
        z = float(special.ndtri(0.5 + confidence / 2))
        lines.append(f"differences of shares below about {half * (1 + 0.8416 / z):.2g} cannot be told from none (80 % power, one test alone)")
    return lines
