"""Tables and words of ``early_late``: the contrast by stratum, curves, increments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses.early_late import WHOLE
from codi_engine.plugins.analyses.effects import are_shares, interval_text, statistics
from codi_engine.plugins.analyses.options import yes_or_no
from codi_engine.plugins.analyses.stepping import n_text, set_name, sets_of

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.early_late import EarlyLateOptions, Losses

_SHOWN = 12


def strata_of(losses: Losses) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield all examples, then every stratum: by number where all are numbers, else in the order of the data."""
    yield WHOLE, losses.table
    if losses.strata is None:
        return
    names = list(dict.fromkeys(losses.strata))
    numbers = pd.to_numeric(pd.Series(names), errors="coerce")
    if numbers.notna().all():
        names = [names[i] for i in numbers.argsort(kind="stable")]
    for name in names:
        yield str(name), losses.table[(losses.strata == name).to_numpy()]


def contrast_tables(losses: Losses, halves: tuple[list[int], list[int]], options: EarlyLateOptions) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return (contrast per stratum with its test, contrast per example); positive: late steps matter more."""
    per = _per_example(losses.table, halves)
    rows = []
    for name, part in strata_of(losses):
        some = per.loc[part.index]
        rows.append(
            {
                "stratum": name,
                "early": some["early"].mean(),
                "late": some["late"].mean(),
                **statistics(some["contrast"].to_numpy(float), options.confidence, False),
            }
        )
    table = pd.DataFrame(rows)
    table["q"] = adjust(table["p"].to_numpy(float))
    table["significant"] = table["q"] < options.q
    per.insert(0, "stratum", WHOLE if losses.strata is None else losses.strata)
    return table, per.reset_index(names="example")


def _per_example(table: pd.DataFrame, halves: tuple[list[int], list[int]]) -> pd.DataFrame:
    """Return early, late, contrast per example; NaN where a step is missing."""
    early, late = (np.mean([table[s,].to_numpy(float) for s in half], axis=0) for half in halves)
    return pd.DataFrame({"early": early, "late": late, "contrast": late - early}, index=table.index)


def curve_table(conditions: Sequence[Losses], options: EarlyLateOptions) -> pd.DataFrame:
    """Return one row per condition, stratum and set of steps: mean loss with interval; for growing sets what each step adds."""
    rows = []
    for losses in conditions:
        shares = yes_or_no(losses.metric) and are_shares(pd.Series(losses.table.to_numpy(float).ravel()))
        for name, part in strata_of(losses):
            before: Any = None
            for steps in sets_of(part):
                values = part[steps].to_numpy(float)
                found = statistics(values, options.confidence, shares)
                row = {"condition": losses.condition, "stratum": name, "steps": set_name(steps), "size": len(steps)}
                row |= {k: found[k] for k in ("n", "missing", "mean", "ci_low", "ci_high", "sd", "hedges_g")}
                if len(sets_of(part)[-1]) > 1:
                    row |= _increment(steps, before, values, options.confidence)
                rows.append(row)
                before = (set(steps), values)
    return pd.DataFrame(rows)


def _increment(steps: Sequence[int], before: tuple[set[int], np.ndarray] | None, values: np.ndarray, confidence: float) -> dict[str, Any]:
    """Return what the newest step adds to the set before it, paired over examples."""
    known, earlier = before if before is not None else (set(), np.zeros(len(values)))
    found = statistics(values - earlier, confidence, False)
    return {"added": next(s for s in steps if s not in known), "increment": found["mean"], "increment_low": found["ci_low"], "increment_high": found["ci_high"]}


# ------------------------------------------------------------------------------------------------- console


def summary(
    tables: Mapping[str, pd.DataFrame],
    single: str | None,
    halves: tuple[list[int], list[int]] | None,
    refused: str | None,
    metric: str,
    options: EarlyLateOptions,
) -> str:
    """Say the contrast, or why there is none, and the curves."""
    lines: list[str] = []
    if single is not None and halves is not None:
        lines += _contrast_lines(tables["contrast"], single, halves, metric, options)
        lines += ["", f"{single}: loss ({metric}) by edited step", *_curve_lines(tables["steps"], "mean", "ci_low", "ci_high", "steps")]
    if refused is not None:
        lines.append(f"condition '{refused}' is cumulative: its later sets hold the early steps, which favours late ones whatever")
        lines.append("the steps do. The contrast is refused; edit one step at a time: sweep: {step: all}")
    if "cumulative" in tables:
        for condition, part in tables["cumulative"].groupby("condition", sort=False):
            lines += ["", f"{condition}: what each further step adds to the loss ({metric})"]
            lines += _curve_lines(part, "increment", "increment_low", "increment_high", "added")
    return "\n".join(lines)


def _contrast_lines(table: pd.DataFrame, single: str, halves: tuple[list[int], list[int]], metric: str, options: EarlyLateOptions) -> list[str]:
    early, late = (", ".join(map(str, half)) for half in halves)
    only = ", answered right unedited" if options.correct else ""
    lines = [f"{single}: loss ({metric}) from a late step ({late}) minus an early one ({early}){only}"]
    width = max(len(_stratum(s, options)) for s in table["stratum"]) + 2
    for _, row in table.iterrows():
        effect = f"g = {row['hedges_g']:+.2f}" if row["hedges_g"] == row["hedges_g"] else row["note"] or "g –"
        mark = "*" if row["significant"] else " "
        lines.append(f"  {_stratum(row['stratum'], options):<{width}}{row['mean']:+.3f}{mark}{interval_text(row):<20}{effect}   n = {row['n']}")
    tests = int(table["p"].notna().sum())
    lines.append(f"* q < {options.q:g}, BH over {tests} test{'s' if tests != 1 else ''}; above 0: late steps matter more")
    if int(table["missing"].iloc[0]):
        lines.append(f"left out: {int(table['missing'].iloc[0])} examples that lack a step or whose {metric} is undefined")
    return lines


def _stratum(name: str, options: EarlyLateOptions) -> str:
    return name if name == WHOLE else f"{options.by} {name}"


def _curve_lines(part: pd.DataFrame, mean: str, low: str, high: str, label: str) -> list[str]:
    whole = part[part["stratum"] == WHOLE]
    lines = []
    for _, row in whole.head(_SHOWN).iterrows():
        span = f" [{row[low]:+.2g}, {row[high]:+.2g}]" if row[low] == row[low] else ""
        lines.append(f"  step {row[label]:<4}{row[mean]:+.3f}{span}")
    return [*lines, f"  ({n_text(whole['n'])})"]
