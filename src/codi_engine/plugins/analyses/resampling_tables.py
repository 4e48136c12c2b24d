"""Tables and words of ``resampling``: steps, problems, the decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.core.errors import UserError
from codi_engine.core.rollout.sampling import generator
from codi_engine.kernels.intervals import wilson
from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses import stepping
from codi_engine.plugins.analyses.effects import interval_text, statistics
from codi_engine.plugins.analyses.resampling import ALL, RIGHT, WRONG, variance_parts

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.resampling import Impacts, ResamplingOptions, Rule

_BLOCK = 200  # resamples that are drawn at once


def problem_table(impacts: Impacts, threshold: float) -> pd.DataFrame:
    """Return one row per problem and set of steps: mean impact over donors, their spread, whether it is affected."""
    known = impacts.cells.dropna(subset=["impact"])
    table = known.groupby(["example", "steps"], sort=False)["impact"].agg(impact="mean", donors="size", sd="std").reset_index()
    table["affected"] = table["impact"].abs() > threshold + 1e-12
    table.insert(1, "step", [stepping.set_name(s) for s in table["steps"]])
    if impacts.right is not None:
        table["baseline_correct"] = impacts.right.reindex(table["example"]).to_numpy(bool)
    return table


def subsets(problems: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the problems to report: all, and where there are both, those answered right and wrong unedited."""
    found = {ALL: problems}
    if "baseline_correct" in problems:
        right = problems["baseline_correct"]
        found |= {RIGHT: problems[right], WRONG: problems[~right]}
    return {name: part for name, part in found.items() if len(part)}


def step_table(impacts: Impacts, problems: pd.DataFrame, options: ResamplingOptions) -> pd.DataFrame:
    """Return one row per subset and set of steps: impact with both intervals, variance, ICC, share affected; one correction."""
    rows = []
    order = list(dict.fromkeys(problems["steps"]))
    groups = {key: g["impact"].to_numpy(float) for key, g in impacts.cells.dropna(subset=["impact"]).groupby(["example", "steps"], sort=False)}
    for name, part in subsets(problems).items():
        wide = part.set_index(["example", "steps"])["impact"].unstack("steps")[order]
        low, high = bootstrap(wide.to_numpy(float), name, options)
        for number, steps in enumerate(order):
            there = part[part["steps"] == steps]
            n, hit = len(there), int(there["affected"].sum())
            share = wilson(hit, n, options.confidence) if n else (np.nan, np.nan)
            rows.append(
                {
                    "subset": name, "step": stepping.set_name(steps), **statistics(wide[steps].to_numpy(float), options.confidence, False),
                    "bootstrap_low": low[number], "bootstrap_high": high[number], "donors": int(there["donors"].max()) if n else 0,
                    **variance_parts([groups[e, steps] for e in there["example"]]),
                    "affected": hit / n if n else np.nan, "affected_low": share[0], "affected_high": share[1],
                }
            )  # fmt: skip
    table = pd.DataFrame(rows)
    table["q"] = adjust(table["p"].to_numpy(float))
    table["significant"] = table["q"] < options.q
    return table


def bootstrap(values: np.ndarray, name: str, options: ResamplingOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return percentile bounds of each column's mean, rows (problems) drawn with replacement, the same ones for all columns."""
    none = np.full(values.shape[1], np.nan)
    if not options.bootstrap or len(values) < 2:
        return none, none
    draw = generator("resampling", options.seed, name)
    there = ~np.isnan(values)
    filled = np.where(there, values, 0.0)
    means = []
    for start in range(0, options.bootstrap, _BLOCK):
        picks = draw.integers(0, len(values), (min(_BLOCK, options.bootstrap - start), len(values)))
        with np.errstate(invalid="ignore"):
            means.append(filled[picks].sum(1) / there[picks].sum(1))
    tail = (1 - options.confidence) / 2
    low, high = np.nanquantile(np.concatenate(means), [tail, 1 - tail], axis=0)
    return low, high


# ------------------------------------------------------------------------------------------------ decision


def decide(steps: pd.DataFrame, problems: pd.DataFrame, rule: Rule, confidence: float) -> pd.DataFrame:
    """Return one row: GO or NO-GO, and why. With ``any`` the bounds are Bonferroni's over the steps.

    Raises
    ------
    UserError: the rule's step was not swept, or correctness is unknown
    """
    part = steps[steps["subset"] == rule.of].reset_index(drop=True)
    if part.empty:
        raise UserError(f"resampling: go.of: there are no {rule.of} problems, or the run has no accuracy; write of: all")
    if rule.step != "any":
        part = part[part["step"] == str(rule.step)].reset_index(drop=True)
        if part.empty:
            raise UserError(f"resampling: go.step: step {rule.step} was not swept; there are {', '.join(dict.fromkeys(steps['step']))}")
    held = 1 - (1 - confidence) / len(part)
    if rule.by == "mean":
        bounds = part["mean"].to_numpy(float)
    else:
        bounds = np.array([_lower(row, problems, rule, held) for _, row in part.iterrows()])
    passes = (bounds >= rule.impact) & (part["n"] >= rule.n).to_numpy()
    # of those that pass (of all, where none does) the strongest gives the reason
    best = int(np.where(passes if passes.any() else True, np.nan_to_num(bounds, nan=-np.inf), -np.inf).argmax())
    row, bound = part.iloc[best], float(bounds[best])
    verdict = "GO" if passes.any() else "NO-GO"
    return pd.DataFrame(
        [
            {
                "decision": verdict, "reason": _reason(row, bound, rule, held), "step": row["step"], "impact": row["mean"], "bound": bound,
                "threshold": rule.impact, "by": rule.by, "n": row["n"], "least_n": rule.n, "of": rule.of, "steps_considered": len(part),
                "confidence": held if rule.by == "lower" else np.nan,
            }
        ]
    )  # fmt: skip


def _lower(row: pd.Series, problems: pd.DataFrame, rule: Rule, confidence: float) -> float:
    part = subsets(problems)[rule.of]
    values = part.loc[part["step"] == row["step"], "impact"].to_numpy(float)
    return float(statistics(values, confidence, False)["ci_low"])


def _reason(row: pd.Series, bound: float, rule: Rule, confidence: float) -> str:
    what = f"mean impact {row['mean']:+.3f}" if rule.by == "mean" else f"lower bound {bound:+.3f} of the {confidence * 100:.4g} % interval"
    text = f"step {row['step']}: {what} {'≥' if bound >= rule.impact else '<'} {rule.impact:g}"
    if bound != bound:
        text = f"step {row['step']}: no interval"
    return f"{text}, n = {row['n']} {'≥' if row['n'] >= rule.n else '<'} {rule.n} ({rule.of} problems)"


# ------------------------------------------------------------------------------------------------- console


def summary(tables: Mapping[str, pd.DataFrame], impacts: Impacts, options: ResamplingOptions) -> str:
    """Say the impacts of all problems and of those answered right, what varies, and the decision."""
    steps = tables["steps"]
    lines = [f"{impacts.condition}: {impacts.metric} lost to other problems' latents, up to {impacts.donors} donors each"]
    for name, part in steps.groupby("subset", sort=False):
        if name == WRONG:
            lines += ["", f"{_word(WRONG)} ({stepping.n_text(part['n'])}): impact {part['mean'].mean():+.3f}, mean over steps; see the table"]
            continue
        lines += ["", f"{_word(str(name))} ({stepping.n_text(part['n'])})", *[_step_line(row) for _, row in part.iterrows()]]
    lines.append(f"* q < {options.q:g}, BH over {int(steps['p'].notna().sum())} tests; intervals over problems")
    notes = sorted({str(n) for n in steps["icc_note"] if n})
    lines += [f"ICC undefined where: {'; '.join(notes)}"] if notes else []
    if impacts.right is None:
        lines.append("the run has no accuracy: problems answered right cannot be told apart")
    if "decision" in tables:
        row = tables["decision"].iloc[0]
        lines += ["", f"{row['decision']}: {row['reason']}"]
    return "\n".join(lines)


def _word(subset: str) -> str:
    return {ALL: "all problems", RIGHT: "answered right unedited", WRONG: "answered wrong unedited"}[subset]


def _step_line(row: Any) -> str:
    icc = f"ICC {row['icc']:.2f}" if row["icc"] == row["icc"] else "ICC –"
    mark = "*" if row["significant"] else " "
    return f"  step {row['step']:<12}{row['mean']:+.3f}{mark}{interval_text(row):<20}affected {row['affected']:>4.0%}   {icc}"
