"""Evaluating ``checks:`` on a run; the unit of inference is the example, whose cells are averaged first."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.planning.checks import RESOURCES, Check
from codi_engine.core.planning.costs import size_text
from codi_engine.core.plugin import AnalysisResult
from codi_engine.core.runs.results import BASELINE, Run
from codi_engine.core.runs.stored import CHECKS
from codi_engine.core.watching.recording import actual_of
from codi_engine.kernels.intervals import mean_interval
from codi_engine.kernels.permutation import range_p
from codi_engine.store.shown import named

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
#: random exchanges of the test for a flat map, and the p below which a map is not flat
PERMUTATIONS, LEVEL = 999, 0.05
#: axes that repeat a place rather than name one
_REPEATS = ("example", "condition", "variant", "trial", "donor")


@dataclass(frozen=True)
class Finding:
    """What one check found. ``passed`` is None where it could not be asked (its example was left out by a limit)."""

    check: str
    wanted: str
    found: str
    n: int | None
    passed: bool | None
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    note: str = ""
    go: bool = False

    @property
    def result(self) -> str:
        """Return the verdict in a word."""
        if self.passed is None:
            return "not run"
        return ("GO" if self.passed else "NO-GO") if self.go else ("pass" if self.passed else "FAIL")


def check_run(run: Run, checks: Sequence[Check]) -> pd.DataFrame:
    """Evaluate checks, write ``results/checks`` and return one row per check.

    Columns: check, wanted, found, n, result, passed, value, ci_low, ci_high, note.
    """
    import pandas as pd

    from codi_engine.core.runs.analyzing import write_result
    from codi_engine.store.contained import check_contained
    from codi_engine.store.layout import RESULTS

    findings = [_KINDS[check.kind](run, check) for check in checks]
    rows: list[dict[str, Any]] = [
        {
            "check": f.check,
            "wanted": f.wanted,
            "found": f.found,
            "n": f.n,
            "result": f.result,
            "passed": f.passed,
            "value": f.value,
            "ci_low": f.low,
            "ci_high": f.high,
            "note": f.note,
        }
        for f in findings
    ]
    frame = pd.DataFrame(rows)
    frame["n"] = frame["n"].astype("Int64")
    text = table_text(rows)
    plain = [{k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()} for row in rows]
    folder = run.path / RESULTS / CHECKS
    check_contained(run.path, folder)
    result = AnalysisResult({CHECKS: frame.astype({"passed": "boolean"})}, {}, text, {"checks.json": json.dumps(plain, indent=2) + "\n"})
    write_result(folder, result, {"runs": [{"path": named(str(run.path)), "digest": run.digest}]})
    return frame


def table_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the pass/fail table, notes below it."""
    heads = ("check", "wanted", "found", "n", "result")
    lines = [heads, *((str(r["check"]), str(r["wanted"]), str(r["found"]), "–" if r["n"] is None else str(r["n"]), str(r["result"])) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    out = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    failed = sum(r["passed"] is False for r in rows)
    asked = sum(r["passed"] is not None for r in rows)
    out += [f"{r['check']}: {r['note']}" for r in rows if r["note"]]
    return "\n".join([*out, f"{failed} of {asked} checks failed" if failed else f"all {asked} checks passed"])


# ------------------------------------------------------------------------------------------------ means


def _edited(run: Run, condition: str) -> pd.DataFrame:
    return run.cells[run.cells["condition"] == condition]


def _by_example(frame: pd.DataFrame, metric: str) -> np.ndarray:
    """Return one mean per example; examples without any value are left out."""
    means = frame.groupby("example", sort=False, observed=True)[metric].mean()
    return means.dropna().to_numpy(np.float64)


def _judged(check: Check, values: np.ndarray, wanted: str, go: bool = False, confidence: float = CONFIDENCE, least: int = 1, note: str = "") -> Finding:
    """Hold the mean of values, one per example, or an end of its interval against the bound."""
    assert check.bound is not None
    mean, low, high = mean_interval(values, confidence)
    n = len(values)
    if n == 0:
        return Finding(check.name, wanted, "–", 0, False, note="the metric is undefined in every cell", go=go)
    asked = {"lower": low, "mean": mean, "upper": high}[check.by]
    found = f"{mean:.4g}" + ("" if math.isnan(low) else f" [{low:.3g}, {high:.3g}]")
    if n < least:
        return Finding(check.name, wanted, found, n, False, mean, low, high, f"{n} examples; {least} are wanted", go)
    if math.isnan(asked):
        return Finding(check.name, wanted, found, n, False, mean, low, high, "one example has no interval", go)
    return Finding(check.name, wanted, found, n, check.bound.holds(asked), mean, low, high, note, go)


def _mean(run: Run, check: Check) -> Finding:
    assert check.bound is not None
    frame = _edited(run, check.condition or BASELINE)
    wanted = check.bound.text + ("" if check.by == "mean" else f" ({check.by} end)")
    return _judged(check, _by_example(frame, check.metric), wanted)


def _go(run: Run, check: Check) -> Finding:
    assert check.bound is not None and check.condition is not None
    options = check.options
    frame = _edited(run, check.condition)
    for axis, value in options.at.items():
        if value != "any":
            frame = frame[frame[axis].astype(str) == str(value)]
    searched = [axis for axis, value in options.at.items() if value == "any"]
    place = ", ".join(f"{a} {v}" for a, v in options.at.items()) or "all places"
    wanted = f"{check.metric} {check.bound.text}" + ("" if check.by == "mean" else f" ({check.by} end)") + f", n ≥ {options.n}, at {place}"
    if not searched:
        return _judged(check, _by_example(frame, check.metric), wanted, True, least=options.n)
    parts = list(frame.groupby(searched, sort=False, observed=True))
    confidence = 1 - (1 - CONFIDENCE) / max(len(parts), 1)
    note = f"the best of {len(parts)} places; intervals are Bonferroni's over them ({confidence:.2%})" if len(parts) > 1 else ""
    found = []
    for key, part in parts:
        named = ", ".join(f"{a} {k}" for a, k in zip(searched, key if isinstance(key, tuple) else (key,), strict=True))
        found.append((named, _judged(check, _by_example(part, check.metric), wanted, True, confidence, options.n, note)))
    if not found:
        return Finding(check.name, wanted, "–", 0, False, note="no cell is at this place", go=True)
    named, best = max(found, key=lambda item: (item[1].passed is True, -_short_of(check, item[1])))
    return Finding(best.check, wanted, f"{best.found} at {named}", best.n, best.passed, best.value, best.low, best.high, best.note, True)


def _short_of(check: Check, finding: Finding) -> float:
    """Return how far a finding is from what is wanted; 0 or less where it passes."""
    assert check.bound is not None
    value = {"lower": finding.low, "mean": finding.value, "upper": finding.high}[check.by]
    if math.isnan(value):
        return math.inf
    signs = {">": 1, ">=": 1, "<": -1, "<=": -1}
    return max(abs(limit - value) if sign == "==" else signs[sign] * (limit - value) for sign, limit in check.bound.parts)


def _sign(run: Run, check: Check) -> Finding:
    options = check.options
    assert check.condition is not None
    place = " ".join([f"example {options.example}", check.condition, *(f"{a} {v}" for a, v in options.at.items())])
    wanted = f"{check.metric} {options.sign} at {place}"
    if not check.known:
        return Finding(check.name, wanted, "–", None, None, note=f"example {options.example} is left out by the limit")
    frame = _edited(run, check.condition)
    frame = frame[frame["example"].astype(str) == options.example]
    for axis, value in options.at.items():
        frame = frame[frame[axis].astype(str) == str(value)]
    value = float(frame[check.metric].mean()) if len(frame) else math.nan
    passed = {"+": value > 0, "-": value < 0, "0": value == 0}[options.sign]
    note = "the metric is undefined there" if math.isnan(value) else ""
    return Finding(check.name, wanted, "–" if note else f"{value:.4g}", 1, passed, value, note=note)


# ------------------------------------------------------------------------------------------------- maps


def _places(run: Run, frame: pd.DataFrame) -> list[str]:
    return [a for a in run.axes if a in frame and a not in _REPEATS and frame[a].notna().any()]


def _matrix(frame: pd.DataFrame, metric: str, axes: Sequence[str]) -> pd.DataFrame:
    """Return examples × places of means; examples that lack a place are left out."""
    return frame.groupby(["example", *axes], sort=False, observed=True)[metric].mean().unstack(list(axes)).dropna()


def _effect_map(run: Run, check: Check) -> Finding:
    options = check.options
    assert check.condition is not None
    frame = _edited(run, check.condition)
    axes = _places(run, frame)
    wanted = f"{check.metric} of {check.condition} differs by > {options.min_range:g} between places"
    matrix = _matrix(frame, check.metric, axes) if axes else frame.iloc[:0]
    if matrix.shape[0] < 2 or matrix.shape[1] < 2:
        return Finding(check.name, wanted, "–", len(matrix), False, note="needs two places and two examples that have a value at every place")
    spread, p = range_p(matrix.to_numpy(np.float64), PERMUTATIONS, 0)
    means = matrix.mean()
    named = [", ".join(f"{a} {v}" for a, v in zip(axes, k if isinstance(k, tuple) else (k,), strict=True)) for k in (means.idxmin(), means.idxmax())]
    note = f"{matrix.shape[1]} places, exchanged within examples {PERMUTATIONS} times; least at {named[0]}, most at {named[1]}"
    return Finding(check.name, wanted, f"range {spread:.3g}, p = {p:.3g}", len(matrix), spread > options.min_range and p < LEVEL, spread, note=note)


def _singles(run: Run, check: Check) -> Finding:
    """Changes against the same prompt unedited: of all steps at once, and of the single steps."""
    options = check.options
    single, whole = (_changes(run, name, check.metric) for name in (options.condition_singles, options.condition_all))
    wanted = f"|change of {check.metric}|: {options.condition_all} ≥ strongest single of {options.condition_singles}"
    shared = [a for a in _places(run, single) if a in _places(run, whole) and a not in ("step", "position")]
    axes = [a for a in _places(run, single) if a not in shared]
    if not axes:
        return Finding(check.name, wanted, "–", 0, False, note=f"{options.condition_singles} sweeps no step or position by itself")
    keys = [k for k, _ in single.groupby(shared, sort=False)] if shared else [()]
    grouped = [_one_group(_at(single, shared, key), _at(whole, shared, key), axes) for key in keys]
    parts = [p for p in grouped if p is not None]
    if not parts:
        return Finding(check.name, wanted, "–", 0, False, note="no example has a value in both conditions")
    n, total, strongest, place, summed = min(parts, key=lambda p: p[1] - p[2])
    ratio = f"{summed / total:.2f} × all" if total else "all change nothing"
    found = f"all {total:.3g}, strongest single {strongest:.3g} ({place})"
    return Finding(check.name, wanted, found, n, total >= strongest, total - strongest, note=f"the singles sum to {summed:.3g} ({ratio})")


def _changes(run: Run, condition: str, metric: str) -> pd.DataFrame:
    """Return a condition's cells, the metric as change against the same prompt (and trial) unedited."""
    cells = run.cells
    keys = [k for k in ("example", "variant", "trial") if k in cells]
    base = cells[cells["condition"] == BASELINE].groupby(keys, observed=True)[metric].mean().rename("unedited").reset_index()
    frame = cells[cells["condition"] == condition].merge(base, on=keys, how="left")
    return frame.assign(change=frame[metric] - frame["unedited"])


def _at(frame: pd.DataFrame, axes: Sequence[str], key: Any) -> pd.DataFrame:
    for axis, value in zip(axes, key, strict=True):
        frame = frame[frame[axis].astype(str) == str(value)]
    return frame


def _one_group(single: pd.DataFrame, whole: pd.DataFrame, axes: Sequence[str]) -> tuple[int, float, float, str, float] | None:
    """Return (n, |all|, |strongest single|, its place, sum of singles in the direction of all) over the examples of both."""
    matrix = _matrix(single, "change", axes)
    both = whole.groupby("example", sort=False, observed=True)["change"].mean().dropna()
    shared = matrix.index.intersection(both.index)
    if not len(shared) or matrix.shape[1] == 0:
        return None
    means, total = matrix.loc[shared].mean(), float(both.loc[shared].mean())
    key: Any = means.abs().idxmax()
    place = ", ".join(f"{a} {v}" for a, v in zip(axes, key if isinstance(key, tuple) else (key,), strict=True))
    return len(shared), abs(total), float(abs(means[key])), place, float(means.sum()) * (1.0 if total >= 0 else -1.0)


# --------------------------------------------------------------------------------------------- resources


def _resource(run: Run, check: Check) -> Finding:
    assert check.bound is not None
    cost = actual_of(run.provenance)
    examples = int(run.cells["example"].nunique())
    if check.name == "peak_memory":
        value, n = float(cost.memory) if cost.memory is not None else math.nan, None
    elif check.name == "seconds_per_example":
        spent = sum(cost[s].seconds or 0.0 for s in ("baseline", "sweep"))
        value, n = (spent / examples, examples) if spent else (math.nan, examples)
    else:
        sweep = cost["sweep"]
        value, n = (sweep.cells / sweep.seconds, sweep.cells) if sweep.cells and sweep.seconds else (math.nan, None)
    if math.isnan(value):
        return Finding(check.name, check.bound.text, "–", n, False, note="nothing was recorded in this run")
    found = size_text(value) if check.name == "peak_memory" else f"{value:.3g}" + (f" {RESOURCES[check.name]}" if RESOURCES[check.name] else "")
    return Finding(check.name, check.bound.text, found, n, check.bound.holds(value), value)


def _no_nan(run: Run, check: Check) -> Finding:
    """No infinity anywhere; no NaN in a metric whose unedited value is a number, nor in captures.

    Positions before a prompt's first token have no value and are stored as NaN throughout: they do not count.
    """
    bad: dict[str, int] = {}
    cells = run.cells
    keys = [k for k in ("example", "variant", "trial") if k in cells]
    for metric in run.metrics:
        values = cells[metric].to_numpy(np.float64)
        base = cells[cells["condition"] == BASELINE].groupby(keys, observed=True)[metric].mean().rename("unedited").reset_index()
        defined = cells[keys].merge(base, on=keys, how="left")["unedited"].notna().to_numpy()
        count = int((np.isinf(values) | (np.isnan(values) & defined)).sum())
        if count:
            bad[metric] = count
    for name in [a for a in run.store.arrays if a.startswith("activations/") and a.endswith("/value")]:
        count = sum(_bad_vectors(run, name, unit) for unit in run.store.committed)
        if count:
            bad[name.split("/")[1]] = count
    found = ", ".join(f"{name} {count:,}" for name, count in bad.items()) or "none"
    return Finding(check.name, "no NaN, no infinity", found, len(cells), not bad, float(sum(bad.values())))


def _bad_vectors(run: Run, name: str, unit: int) -> int:
    store = run.store
    record = store.committed[unit]
    spec = store.spec(name)
    if spec.shard(unit) not in record["files"]:
        return 0
    if spec.entries:
        return int((~np.isfinite(store.codes_of(name.removesuffix("/value"), unit)[2])).sum())
    values = store.read_unit(name, unit)[: record["rows"]]
    wrong = ~np.isfinite(values)
    absent = np.isnan(values).all(-1) if "position" in spec.dims else np.zeros(values.shape[:-1], bool)
    return int((wrong.any(-1) & ~absent).sum())


_KINDS: dict[str, Callable[[Run, Check], Finding]] = {
    "mean": _mean, "go": _go, "sign": _sign, "effect_map": _effect_map, "singles_vs_all": _singles, "resource": _resource, "no_nan": _no_nan,
}  # fmt: skip
