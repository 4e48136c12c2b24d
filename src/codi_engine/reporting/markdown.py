"""A run as a page of a research journal: question, method, findings, errors, limitations, notes, provenance; in Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from codi_engine.core.errors import UserError
from codi_engine.core.planning.costs import size_text, time_text
from codi_engine.core.runs.whole import whole_file
from codi_engine.core.watching.status import status_of
from codi_engine.reporting.escape import block, code, md, table
from codi_engine.reporting.method import method
from codi_engine.reporting.mistakes import mistakes
from codi_engine.store.contained import check_contained

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.stored import StoredResult
    from codi_engine.reporting.mistakes import Case, Changes

FILE = "report.md"
#: effects listed of each analysis
_LISTED = 8
#: names of an effect, its interval and its n in the tables of analyses, in the order tried
_EFFECTS = ("difference", "effect", "mean", "estimate", "coefficient", "r", "log_odds", "hedges_g")
_SPANS = (("ci_low", "ci_high"), ("low", "high"), ("g_low", "g_high"))
_SIZES = ("hedges_g", "effect_size", "z")
_NOT_LABELS = (
    *("interval", "note", "test", "size", "change", "kind", "axis", "n", "n_against", "missing", "count", "count_against", "texts", "texts_against"),
    *("target_layer", "feature_layer", "tested", "significant", "df", "size_"),
)
#: columns of places are labels, whatever their type
_PLACES = ("layer", "step", "position", "head")
#: what a line of a summary holds that speaks of a limit
_LIMITS = (
    "power",
    "speaks about",
    "too small",
    "dependent",
    "no test can",
    "cannot be",
    "hardly",
    "constant",
    "fewer than",
    "without any spread",
    "NaN",
    "none of",
)


def write_markdown(run: Run, path: str | Path | None = None) -> Path:
    """Write a run's page; figures are linked relative to it.

    Parameters
    ----------
    path: default: ``report.md`` in the run's directory

    Raises
    ------
    UserError: the file cannot be written
    """
    target = Path(path) if path is not None else run.path / FILE
    if target.is_dir():
        raise UserError(f"{target}: is a directory; give a file, such as -o {target / FILE}")
    if path is None:
        check_contained(run.path, target)
    if not target.absolute().parent.is_dir():
        raise UserError(f"{target}: cannot be written: its folder is not there; make it, or choose another place with -o")
    page = markdown(run, target.absolute().parent).encode("utf-8", "backslashreplace")
    with whole_file(target, force=True) as part:
        part.write_bytes(page)
    return target


def markdown(run: Run, folder: Path) -> str:
    """Return the page as it is to lie in ``folder``."""
    experiment = run.experiment
    parts = [
        f"# {md(experiment.get('name', run.path.name))}",
        _question(experiment),
        "## Method", *method(run),
        "## Findings", *_findings(run, folder),
        "## Errors", *_errors(run),
        "## Limitations", _limitations(run),
        "## Notes", _notes(run),
        "## Provenance", _provenance(run),
    ]  # fmt: skip
    return "\n\n".join(p for p in parts if p) + "\n"


def _question(experiment: dict[str, Any]) -> str:
    hypothesis = experiment.get("hypothesis")
    return f"**Hypothesis.** {md(hypothesis, 3000)}" if hypothesis else "No hypothesis was stated (`hypothesis:` in the experiment file)."


# ------------------------------------------------------------------------------------------------- findings


def _findings(run: Run, folder: Path) -> list[str]:
    made = [r for r in run.results.values() if r.about and r.name != "checks"]
    if not made:
        return [f"Nothing was analysed yet: `codi-engine analyze {run.path}`."]
    return [part for result in made for part in _finding(run, result, folder)]


def _finding(run: Run, result: StoredResult, folder: Path) -> list[str]:
    parts = [f"### {md(result.name)}"]
    if not result.is_of(run.digest):
        parts.append(f"*Made before the run grew: {code(f'codi-engine analyze {run.path} {result.name}')} brings it up to date.*")
    if result.summary:
        parts.append(block(result.summary))
    parts += next((t for name in result.tables if (t := _strongest(result.table(name)))), [])
    parts += [f"![{md(f'{result.name}: {name}')}]({_link(path, folder)})" for name, path in result.figures.items()]
    return parts


def _link(path: Path, folder: Path) -> str:
    try:
        return quote(Path(os.path.relpath(path.absolute(), folder)).as_posix())
    except ValueError:  # on another drive
        return quote(path.absolute().as_posix())


def _strongest(frame: pd.DataFrame) -> list[str]:
    """Return the most certain rows of a table of tests (effect, interval, n, q) under a title; nothing for other tables."""
    effect = next((c for c in _EFFECTS if c in frame), None)
    if effect is None or "q" not in frame or not len(frame) or frame["q"].isna().all():
        return []
    size = next((c for c in _SIZES if c in frame), effect)
    known = frame[frame["q"].notna()].assign(size_=lambda t: -t[size].astype(float).abs())
    rows = known.sort_values(["q", "size_"], kind="stable").head(_LISTED)
    labels = [c for c in frame if (c in _PLACES or frame[c].dtype.kind not in "fb") and c not in _NOT_LABELS and _telling(known[c])]
    span = next((s for s in _SPANS if s[0] in frame), None)
    numbers = [effect, *([size] if size != effect else [])]
    heads = [*map(md, labels), *map(md, numbers), *(["interval"] if span else []), *(["n"] if "n" in frame else []), "q"]
    body = []
    for row in rows.to_dict("records"):
        cells = [_label(row[c]) for c in labels] + [_figure(row[c]) for c in numbers]
        cells += [f"{_figure(row[span[0]])} … {_figure(row[span[1]])}"] if span else []
        body.append([*cells, *([f"{int(row['n']):,}"] if "n" in frame and row["n"] == row["n"] else ["–"] if "n" in frame else []), f"{row['q']:.2g}"])
    title = f"Strongest effects (of {len(known):,} with a q{_significant(known)}):"
    return [title, table(heads, body), *(["The interval is of Hedges' g."] if span is not None and span[0] == "g_low" else [])]


def _significant(known: pd.DataFrame) -> str:
    """Say how many are significant by the analysis' own rule, which may ask for more than a small q; tables of nothing else say nothing."""
    return f", {int(known['significant'].fillna(False).astype(bool).sum()):,} significant" if "significant" in known else ""


def _telling(column: pd.Series[Any]) -> bool:
    """False for a column of labels that is the same, or empty, in every row."""
    import pandas as pd

    values = column.astype(str).where(column.notna(), "")
    return bool(values.nunique() > 1 or (len(column) == 1 and not pd.isna(column.iloc[0])))


def _label(value: Any) -> str:
    import pandas as pd

    if pd.isna(value):
        return "–"
    return md(f"{value:g}" if isinstance(value, float) else value)


def _figure(value: Any) -> str:
    return "–" if value is None or value != value else f"{float(value):.3g}".replace("-", "−")


# --------------------------------------------------------------------------------------------------- errors


def _errors(run: Run) -> list[str]:
    found = mistakes(run)
    if not found.known:
        parts = ["Which answers are right is not known: the run has no metric `accuracy`, and its data cannot be read here or have no answers."]
    else:
        unknown = f", of {found.untold:,} it is not known" if found.untold else ""
        wrong = f"{found.wrong:,} of {found.unedited:,} answers are wrong{_rate(found.wrong, found.unedited - found.untold)}{unknown}"
        parts = [f"Unedited: {wrong}, {found.missing:,} missing; right and wrong are told {found.known}."]
        parts += [_cases("Wrong unedited answers, the first of them:", found.cases, edited=False)] if found.cases else []
    heads = ["condition", "cells", "compared", "right → wrong", "wrong → right", "no answer"]
    rows = [
        [md(c.condition), f"{c.cells:,}", f"{c.compared:,}", _of(c.broken, c.compared), _of(c.mended, c.compared), _of(c.missing, c.cells)]
        for c in found.changes
    ]
    parts += [table(heads, rows)] if rows else []
    parts += [text for change in found.changes for text in _changed(change)]
    if found.undefined:
        lines = [f"- {code(m)}: " + ", ".join(f"{n:,} in {md(c)}" for c, n in by.items()) for m, by in found.undefined.items()]
        parts.append("\n".join(["Undefined values (NaN), left out of every mean:", "", *lines]))
    else:
        parts.append("No metric is undefined (NaN) anywhere." if run.metrics else "")
    return parts


def _of(count: int, total: int) -> str:
    return f"{count:,}{_rate(count, total)}"


def _rate(count: int, total: int) -> str:
    return f" ({count / total:.1%})" if total else ""


def _changed(change: Changes) -> list[str]:
    kinds = (("from right to wrong", change.broke), ("from wrong to right", change.mend))
    return [_cases(f"{md(change.condition)}, {what}:", cases, edited=True) for what, cases in kinds if cases]


def _cases(title: str, cases: Sequence[Case], edited: bool) -> str:
    heads = ["cell", "unedited", *(["edited"] if edited else []), "right answer"]
    rows = [[md(c.where), md(c.baseline, 200) or "–", *([md(c.edited, 200) or "–"] if edited else []), _figure_of(c.gold)] for c in cases]
    return f"{title}\n\n{table(heads, rows)}"


def _figure_of(gold: float) -> str:
    return "–" if gold != gold else f"{gold:.10g}"


# -------------------------------------------------------------------------------------------------- limits


def _limitations(run: Run) -> str:
    """Say what follows from the data and the analyses; nothing is said that does not."""
    status = status_of(run.path)
    lines = [f"The run is not finished: {status.share:.0%} of its cells are there."] if not status.whole else []
    lines += [f"{status.nonfinite}."] if status.nonfinite else []
    lines += _of_n(run)
    for result in run.results.values():
        found = [s.strip() for s in result.summary.split("\n") if any(word in s for word in _LIMITS)]
        lines += [f"{code(result.name)}: {md(s)}" for s in found[:6]]
        lines += _unexceeded(result)
    lines += _unresolved(run)
    return "\n".join(f"- {s}" for s in lines)


def _of_n(run: Run) -> list[str]:
    from codi_engine.core.watching.inventory import inventory

    entry = inventory([status_of(run.path)])[0]
    if entry.examples is None:
        return []
    lines = [f"{entry.size} of {'one data set' if entry.data else 'one source'} and one model: the findings speak about these."]
    few = entry.examples < 30
    return lines + (["Fewer than 30 examples: intervals are wide, and only large effects can be found."] if few else [])


def _unexceeded(result: StoredResult) -> list[str]:
    if "controls" not in result.tables:
        return []
    frame = result.table("controls")
    if "exceeds" not in frame or not len(frame):
        return []
    short, total = int((~frame["exceeds"].astype(bool)).sum()), len(frame)
    return [f"{code(result.name)}: in {short:,} of {total:,} comparisons the effect does not exceed its control."] if short else []


def _unresolved(run: Run) -> list[str]:
    """Say the checks that failed, could not be decided, or were never evaluated."""
    stored, demanded = run.results.get("checks"), run.experiment.get("checks") or {}
    if stored is None or "checks" not in stored.tables:
        return [f"{len(demanded):,} checks were demanded and not evaluated."] if demanded else ["The experiment demands no checks (`checks:`)."]
    rows = stored.table("checks").to_dict("records")
    bad = [r for r in rows if r.get("passed") is None or r["passed"] != r["passed"] or not r["passed"]]
    return [f"Check {code(r['check'])}: wanted {md(r.get('wanted'))}, found {md(r.get('found'))} ({md(r.get('result', 'failed'))})." for r in bad]


# ------------------------------------------------------------------------------------- notes and provenance


def _notes(run: Run) -> str:
    own = run.experiment.get("notes")
    lines = [md(own, 5000)] if own else []
    lines += [f"**{note.time or 'Without a date'}.** {md(note.text, 5000)}" for note in run.notes]
    return "\n\n".join(lines) or f'None; `codi-engine note {run.path} "…"` adds one.'


def _provenance(run: Run) -> str:
    provenance, status = run.store.provenance, status_of(run.path)
    versions = provenance.get("versions") or {}
    rows = [("run", code(run.path)), ("cells", f"{status.cells:,}, {md(status.state)}"), ("digest", code(run.digest)), ("disk", size_text(status.bytes))]
    known = (("model_digest", "model, SHA-256"), ("data_digest", "data, SHA-256"), ("git", "git commit"))
    rows += [(word, code(provenance[k])) for k, word in known if provenance.get(k)]
    rows += [(k, md(provenance[k])) for k in ("device", "seed", "started", "finished") if provenance.get(k) is not None]
    rows += [("computed in", time_text(status.actual.total().seconds))] if status.actual.stages else []
    rows += [("versions", md(", ".join(f"{k} {v}" for k, v in versions.items())))] if versions else []
    listed = table(["what", "value"], [[md(k), v] for k, v in rows])
    if "model" not in run.experiment:
        return listed
    return f"{listed}\n\nTo repeat it: `codi-engine run experiment.yaml --output DIR`, with the `experiment.yaml` of the run's directory."
