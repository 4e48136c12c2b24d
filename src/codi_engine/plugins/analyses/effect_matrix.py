"""Tables and words of ``step_effects``: effects, what later latents mediate, and the check of what cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.kernels.multiple import adjust
from codi_engine.plugins.analyses import stepping
from codi_engine.plugins.analyses.effects import are_shares, interval_text, statistics
from codi_engine.plugins.analyses.options import yes_or_no

if TYPE_CHECKING:
    from codi_engine.plugins.analyses.step_effects import Moves, StepEffectsOptions

_KEPT = ("n", "missing", "mean", "ci_low", "ci_high", "sd", "note")
BEFORE, SAME = "before the edit: exactly 0", "out of the edited step: total = direct"


def effect_table(moves: Mapping[Any, Moves], edited: Sequence[int], states: Sequence[int], confidence: float) -> pd.DataFrame:
    """Return one row per kind of effect, edited step and state: mean relative distance and cosine with intervals, n."""
    rows = []
    for kind, move in moves.items():
        for i, step in enumerate(edited):
            for j, state in enumerate(states):
                far = statistics(move.distance[:, i, j], confidence, False)
                near = statistics(move.cosine[:, i, j], confidence, False)
                rows.append(
                    {
                        "effect": kind, "condition": move.condition, "edited": step, "state": state, **{k: far[k] for k in _KEPT},
                        "cosine": near["mean"], "cosine_ci_low": near["ci_low"], "cosine_ci_high": near["ci_high"],
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def mediated_table(total: Moves, direct: Moves, edited: Sequence[int], states: Sequence[int], options: StepEffectsOptions) -> pd.DataFrame:
    """Return one row per edited step and later state: total, direct, their paired difference, mediated share 1 − direct / total.

    The share is one of mean distances, with an interval over examples; distances do not add up, so it may be negative.
    """
    rows = []
    for i, step in enumerate(edited):
        for j, state in enumerate(states):
            if state <= step:
                continue
            whole, part = total.distance[:, i, j], direct.distance[:, i, j]
            found = stepping.ratio(part, whole, options.confidence)
            tested = statistics(whole - part, options.confidence, False)
            rows.append(
                {
                    "edited": step, "state": state, "n": tested["n"], "total": np.nanmean(whole), "direct": np.nanmean(part),
                    "share": 1.0 - found["ratio"], "share_ci_low": 1.0 - found["ci_high"], "share_ci_high": 1.0 - found["ci_low"],
                    "difference": tested["mean"], **{k: tested[k] for k in ("ci_low", "ci_high", "hedges_g", "t", "df", "p")},
                    "note": "; ".join(t for t in (found["note"], tested["note"]) if t),
                }
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(rows[0]) if rows else ["edited", "state", "share", "p"])
    table["q"] = adjust(table["p"].to_numpy(float))
    table["significant"] = table["q"] < options.q
    return table


def metric_table(moves: Mapping[Any, Moves], edited: Sequence[int], metric: str, options: StepEffectsOptions) -> pd.DataFrame:
    """Return the effect on the metric per kind and edited step, tests corrected over all of them."""
    shares = yes_or_no(metric) and are_shares(pd.Series(np.concatenate([move.metric.ravel() for move in moves.values() if move.metric is not None])))
    rows = []
    for kind, move in moves.items():
        assert move.metric is not None
        for i, step in enumerate(edited):
            rows.append({"effect": kind, "condition": move.condition, "edited": step, **statistics(move.metric[:, i], options.confidence, shares)})
    table = pd.DataFrame(rows)
    table["q"] = adjust(table["p"].to_numpy(float))
    table["significant"] = table["q"] < options.q
    return table


def causality_table(moves: Mapping[Any, Moves], edited: Sequence[int], states: Sequence[int]) -> pd.DataFrame:
    """Return what was found where nothing can flow: largest distance, and whether it is exactly what it must be."""
    rows: list[dict[str, Any]] = []

    def add(rule: str, kind: str, step: int, state: int, values: np.ndarray) -> None:
        known = values[~np.isnan(values)]
        worst = float(np.abs(known).max(initial=0.0))
        rows.append(
            {
                "rule": rule, "effect": kind, "edited": step, "state": state, "n": len(known), "largest": worst,
                "violating": int((known != 0).sum()), "exact": worst == 0.0,
            }
        )  # fmt: skip

    for i, step in enumerate(edited):
        for j, state in enumerate(states):
            if state < step:
                for kind, move in moves.items():
                    add(BEFORE, kind, step, state, move.distance[:, i, j])
            elif state == step and len(moves) == 2:
                add(SAME, "total, direct", step, state, moves["total"].distance[:, i, j] - moves["direct"].distance[:, i, j])
    return pd.DataFrame(rows, columns=["rule", "effect", "edited", "state", "n", "largest", "violating", "exact"])


# ------------------------------------------------------------------------------------------------- console


def summary(tables: Mapping[str, pd.DataFrame], site: str, metric: str | None, options: StepEffectsOptions) -> str:
    """Say the matrices, what is mediated, and whether causality holds."""
    effects = tables["effects"]
    lines = [f"{site}: relative distance to the unedited run, {stepping.n_text(effects['n'])} examples"]
    for kind, part in effects.groupby("effect", sort=False):
        lines += ["", *_matrix(str(kind), part, tables.get("metric"), metric)]
    if "mediated" in tables:
        lines += ["", *_mediated_lines(tables["mediated"], options)]
    if metric is not None:
        tested = tables["metric"]["p"].notna().sum()
        lines.append(f"* effect on {metric} differs from none (q < {options.q:g}, BH over {tested})")
    return "\n".join([*lines, *_causality_lines(tables["causality"])])


def _matrix(kind: str, part: pd.DataFrame, metrics: pd.DataFrame | None, metric: str | None) -> list[str]:
    states = list(dict.fromkeys(part["state"]))
    head = "".join(f"{'bot' if s < 0 else s:>7}" for s in states)
    lines = [f"{kind} effect ({part['condition'].iloc[0]}): edited step down, state out of each step across"]
    lines.append(f"{'':>8}{head}" + (f"   {metric}" if metric else ""))
    for step, row in part.groupby("edited", sort=False):
        cells = "".join(f"{'·' if s < step and m == 0 else f'{m:.3f}' if m == m else '–':>7}" for s, m in zip(row["state"], row["mean"], strict=True))
        end = ""
        if metrics is not None:
            found = metrics[(metrics["effect"] == kind) & (metrics["edited"] == step)].iloc[0]
            end = f"   {found['mean']:+.3g}{'*' if found['significant'] else ''}{interval_text(found)}"
        lines.append(f"{f'step {step}':>8}{cells}{end}")
    return lines


def _mediated_lines(table: pd.DataFrame, options: StepEffectsOptions) -> list[str]:
    known = table[table["share"].notna()]
    if known.empty:
        return ["mediated share: undefined, no later state is moved"]
    best = known.iloc[int(known["share"].argmax())]
    span = f" [{best['share_ci_low']:.0%}, {best['share_ci_high']:.0%}]" if best["share_ci_low"] == best["share_ci_low"] else ""
    return [
        f"mediated (1 − direct / total): median {known['share'].median():.0%} of {len(known)} pairs; "
        f"most {best['edited']} → {best['state']} {best['share']:.0%}{span}",
        f"total and direct differ in {int(table['significant'].sum())} of {int(table['p'].notna().sum())} pairs (q < {options.q:g}, BH)",
    ]


def _causality_lines(table: pd.DataFrame) -> list[str]:
    lines = []
    for rule, part in table.groupby("rule", sort=False):
        wrong = part[~part["exact"]]
        if wrong.empty:
            lines.append(f"{rule}: holds at all {len(part)} places")
        else:
            worst = wrong.iloc[int(wrong["largest"].argmax())]
            lines.append(
                f"WARNING {rule}: violated at {len(wrong)} of {len(part)} places, at most {worst['largest']:.2g} "
                f"(edited step {worst['edited']}, state {worst['state']}): rounding differs between edited and unedited runs, or the edit leaks"
            )
    return lines
