"""The head of the report, what was run and on what, its checks and its baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.planning.costs import time_text
from codi_engine.reporting import plain
from codi_engine.reporting.facts import Facts, metric_of
from codi_engine.reporting.section import Section, render
from codi_engine.reporting.words import count, number, plural

if TYPE_CHECKING:
    import pandas as pd

#: wrong answers that are shown
_WRONG = 6


def head(facts: Facts) -> dict[str, Any]:
    """Return what stands above the sections."""
    status = facts.status
    return {
        "name": facts.name,
        "hypothesis": facts.experiment.get("hypothesis"),
        "summary": plain.summary(facts),
        "state": status.state,
        "whole": status.whole,
        "lacking": list(status.lacking),
        "goes_on": status.goes_on,
        "share": status.share,
        "left": time_text(status.seconds_left) if status.seconds_left else "",
        "stages": [(s.stage, s.cells, s.planned_cells) for s in status.stages],
        "finished": (status.finished or "")[:10],
        "figures": _key_figures(facts),
    }


def _key_figures(facts: Facts) -> list[dict[str, str]]:
    """Return the few numbers that say most: label, value, note."""
    cells = facts.cells
    examples = int(cells["example"].nunique()) if "example" in cells else 0
    edited = len(cells) - len(facts.baseline)
    out = [{"label": "cells", "value": count(len(cells)), "note": f"{edited:,} edited, {len(facts.baseline):,} unedited" if len(facts.baseline) else ""}]
    if examples:
        out.append({"label": "examples", "value": count(examples), "note": f"in {plural(len(facts.conditions), 'condition')}" if facts.conditions else ""})
    rows = accuracies(facts)
    if rows:
        n, share = sum(r["n"] for r in rows), sum(r["n"] * r["accuracy"] for r in rows) / sum(r["n"] for r in rows)
        low = f"{rows[0]['ci_low']:.0%} – {rows[0]['ci_high']:.0%}" if len(rows) == 1 else " · ".join(f"{r['variant']} {r['accuracy']:.0%}" for r in rows)
        out.append({"label": "unedited accuracy", "value": f"{share:.0%}", "note": f"{low} · n = {n}" if len(rows) == 1 else low})
    if best := strongest(facts):
        out.append(best)
    return out


def strongest(facts: Facts) -> dict[str, str] | None:
    """Return the largest effect that an analysis of the run's present state found significant."""
    for result in facts.run.results.values():
        if "effects" not in result.tables or not result.is_of(facts.run.digest):
            continue
        table = result.table("effects")
        if not {"mean", "condition", "significant", "n"} <= set(table.columns) or not len(table):
            continue
        found = table[table["significant"].fillna(False).astype(bool)]
        if found.empty:
            continue
        row = found.iloc[int(found["mean"].abs().to_numpy().argmax())]
        where = " ".join(f"{a} {plain.tick(row[a])}" for a in facts.places if a in table and not _missing(row[a]))
        low, high = (float(row.get(k, np.nan)) for k in ("ci_low", "ci_high"))
        bounds = f"[{number(low, 2)}, {number(high, 2)}]" if np.isfinite(low) else ""
        value = ("+" if row["mean"] > 0 else "") + number(float(row["mean"]), 2)
        note = " · ".join(t for t in (f"{row['condition']} {where}".strip(), bounds, f"n = {row['n']}") if t)
        metric = metric_of(facts, result)
        return {"label": f"strongest effect ({(metric or result.name).replace('_', ' ')})", "value": value, "note": note}
    return None


def _missing(value: Any) -> bool:
    return value is None or value != value


# -------------------------------------------------------------------------------------------- what was run


def what(facts: Facts) -> Section | None:
    """What was run, and on what."""
    experiment, provenance = facts.experiment, facts.provenance
    data = facts.data
    report = list(provenance.get("data") or []) or (list(data.report) if data is not None else [])
    values = {
        "model": plain.model_rows(facts),
        "data": plain.data_rows(facts),
        "report": report,
        "problem": facts.problem,
        "conditions": plain.condition_rows(facts),
        "axes": [(a, _span(facts, a)) for a in facts.axes if a not in ("example", "condition")],
        "metrics": plain.metric_names(facts),
        "notes": experiment.get("notes"),
    }
    return Section("what", "What was run, and on what", render("what.html", **values))


def _span(facts: Facts, axis: str) -> str:
    """Return an axis' values in a line: all, or how many and the first and last."""
    found = list(dict.fromkeys(plain.tick(v) for v in facts.cells[axis].dropna()))
    return ", ".join(found) if len(found) <= 14 else f"{found[0]} … {found[-1]} ({len(found)} values)"


# -------------------------------------------------------------------------------------------------- checks


def checks(facts: Facts) -> Section | None:
    """What the experiment demanded, what the gate found."""
    stored = facts.run.results.get("checks")
    rows = stored.table("checks").to_dict("records") if stored is not None and "checks" in stored.tables else []
    demanded = facts.experiment.get("checks") or {}
    gate = facts.provenance.get("gate")
    gate = [g for g in gate if isinstance(g, Mapping)] if isinstance(gate, list) else []
    if not rows and not demanded and not gate:
        return None
    shown = [{**r, "verdict": _verdict(r.get("passed"))} for r in rows]
    if not rows:
        shown = [
            {"check": k, "wanted": v if isinstance(v, str) else "", "found": "–", "n": None, "verdict": "not evaluated", "note": ""}
            for k, v in demanded.items()
        ]
    stale = stored is not None and not stored.is_of(facts.run.digest)
    columns = list(dict.fromkeys(k for g in gate for k in g))
    return Section("checks", "Checks", render("checks.html", rows=shown, stale=stale, gate=gate, columns=columns))


def _verdict(passed: Any) -> str:
    return "not evaluated" if _missing(passed) or str(passed) == "<NA>" else "passed" if passed else "failed"


# ------------------------------------------------------------------------------------------------ baseline


def accuracies(facts: Facts) -> list[dict[str, Any]]:
    """Return variant, n examples, accuracy (trials averaged first), Wilson's 95 % interval, and answers found."""
    from codi_engine.kernels.intervals import wilson

    base = facts.baseline
    if "accuracy" not in base or base["accuracy"].notna().sum() == 0:
        return []
    frame = base.assign(variant=base["variant"] if "variant" in base else "main")
    out = []
    for variant, part in frame.groupby("variant", sort=False, observed=True):
        per = part.groupby("example", sort=False, observed=True)["accuracy"].mean().dropna()
        n, mean = len(per), float(per.mean())
        low, high = wilson(round(mean * n), n)
        out.append(
            {"variant": str(variant), "n": n, "accuracy": mean, "ci_low": low, "ci_high": high, "cells": len(part), "found": int(part["answer"].notna().sum())}
        )
    return out


def baseline(facts: Facts) -> Section | None:
    """How well the unedited model does, and where it fails."""
    base = facts.baseline
    if base.empty:
        return None
    rows = accuracies(facts)
    found = int(base["answer"].notna().sum()) if "answer" in base else 0
    values = {"rows": rows, "cells": len(base), "found": found, "wrong": _wrong(facts, base), "count": int((base["accuracy"] == 0).sum()) if rows else 0}
    return Section("baseline", "Baseline", render("baseline.html", **values))


def _wrong(facts: Facts, base: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a few unedited cells that are wrong, spread over the data."""
    if "accuracy" not in base:
        return []
    wrong = base[base["accuracy"] == 0]
    picked = wrong.iloc[np.unique(np.linspace(0, len(wrong) - 1, _WRONG).astype(int))] if len(wrong) else wrong
    out = []
    for row in picked.to_dict("records"):
        asked = facts.question(row)
        out.append(
            {
                "example": row["example"], "variant": row.get("variant"), "text": row.get("text") or "", "answer": row.get("answer"),
                "question": asked[0] if asked else None, "gold": asked[1] if asked else None,
            }
        )  # fmt: skip
    return out
