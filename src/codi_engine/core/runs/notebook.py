"""How runs and results look in a notebook: small HTML with its own quiet style, readable on light and dark pages."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codi_engine.core.running.run import Finished
    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.stored import StoredResult

#: colours are the page's own, so that both themes of JupyterLab fit
_BOX = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.5;max-width:60em;color:inherit"
_HEAD = "font-size:15px;font-weight:600;margin:0 0 4px"
_CELL = "padding:1px 14px 1px 0;text-align:left;vertical-align:top;background:transparent;border:none"
_QUIET = "opacity:.65"
#: bytes of a picture that is shown, metrics that are listed, rows of the table of means
_PICTURE, _METRICS, _ROWS = 4 << 20, 6, 12


def run_html(run: Run) -> str:
    """Return a run: its state, model, data, axes, means of metrics by condition, results, and what to call next."""
    facts = _facts(run)
    rows = "".join(f'<tr><td style="{_CELL};{_QUIET}">{escape(k)}</td><td style="{_CELL}">{escape(v)}</td></tr>' for k, v in facts)
    parts = [_head(str(run.experiment.get("name", "")) or run.path.name), _table(rows), _means(run)]
    path = str(run.path)
    names = list(run.results)
    more = [f'run.results["{names[0]}"]'] if names else [f'codi_engine.analyze("{path}")']
    parts.append(_code(["run.cells", *more, f'run.export("csv")  # or: codi-engine export {path} --to csv']))
    return _box("".join(parts))


def _facts(run: Run) -> list[tuple[str, str]]:
    cells, provenance = run.cells, run.provenance
    planned = run.store.units
    done = len(run.store.committed)
    state = f"{len(cells):,} cells" + ("" if done >= planned else f", {done:,} of {planned:,} units done")
    axes = [f"{a} {cells[a].nunique()}" for a in run.axes if a in cells and cells[a].notna().any()]
    facts = [("run", str(run.path)), ("state", state), ("model", _reference(run.experiment.get("model"))), ("data", _reference(run.experiment.get("data")))]
    facts.append(("axes", " × ".join(axes)))
    layers = provenance.get("layers")
    if isinstance(layers, int):
        facts[2] = ("model", f"{facts[2][1]}; {layers} layers")
    captured = list(dict.fromkeys(a.split("/")[1] for a in run.store.arrays if a.startswith("activations/")))
    if captured:
        facts.append(("activations", ", ".join(captured)))
    if run.results:
        facts.append(("results", ", ".join(run.results)))
    return [(k, v) for k, v in facts if v]


def _reference(spec: Any) -> str:
    if not isinstance(spec, Mapping):
        return str(spec or "")
    options = ", ".join(f"{k} {v}" for k, v in spec.items() if k != "plugin" and not isinstance(v, (dict, list)))
    return f"{spec.get('plugin', '')}" + (f": {options}" if options else "")


def _means(run: Run) -> str:
    """Return the table of means: a row per condition, a column per metric."""
    cells, metrics = run.cells, run.metrics[:_METRICS]
    if not metrics or not len(cells):
        return ""
    grouped = cells.groupby("condition", sort=False)
    heads = "".join(f'<th style="{_CELL};text-align:right">{escape(m)}</th>' for m in ["cells", *metrics])
    rows = []
    for condition, part in list(grouped)[:_ROWS]:
        values = [f"{len(part):,}", *(_number(part[m].mean()) for m in metrics)]
        rows.append(
            f'<tr><td style="{_CELL}">{escape(str(condition))}</td>' + "".join(f'<td style="{_CELL};text-align:right">{v}</td>' for v in values) + "</tr>"
        )
    note = "means over cells" + (f"; {len(run.metrics) - _METRICS} more metrics" if len(run.metrics) > _METRICS else "")
    return _table(f'<tr><th style="{_CELL}"></th>{heads}</tr>{"".join(rows)}') + f'<div style="{_QUIET}">{note}</div>'


def _number(value: float) -> str:
    return "–" if value != value else f"{value:.3g}".replace("-", "−")


def result_html(stored: StoredResult) -> str:
    """Return a result: its summary, its first figure, its tables by name."""
    made = stored.about.get("made")
    parts = [_head(stored.name), f'<div style="{_QUIET}">{escape(str(stored.folder))}{escape(f" · {made}" if made else "")}</div>']
    parts += [_text(stored.summary), _picture(next(iter(stored.figures.values()), None))]
    lists = (("tables", stored.tables), ("figures", stored.figures), ("files", stored.files))
    rows = [(k, ", ".join(v)) for k, v in lists if v]
    parts.append(_table("".join(f'<tr><td style="{_CELL};{_QUIET}">{k}</td><td style="{_CELL}">{escape(v)}</td></tr>' for k, v in rows)))
    calls = [f'result.table("{name}")' for name in list(stored.tables)[:1]]
    run = stored.folder.parent.parent
    calls += [f'codi_engine.plot("{run}", "{stored.name}/{name}", size=(7, 4))' for name in list(stored.figures)[:1]]
    return _box("".join([*parts, _code(calls)]))


def finished_html(done: Finished) -> str:
    """Return a finished run: what was computed, what the analyses say, the first figure."""
    state = f"{done.cells:,} cells" + ("" if done.new_cells == done.cells else f", {done.new_cells:,} of them new") + f"; {done.took}"
    parts = [_head(done.path.name), f'<div style="{_QUIET}">{escape(str(done.path))}</div><div>{escape(state)}</div>']
    parts += [f"<div>{escape(note)}</div>" for note in done.notes]
    if not done.passed:
        parts.append("<div><b>a check failed</b></div>")
    parts += [_text(summary) for summary in done.summaries.values()]
    parts += [_picture(next(iter(done.figures.values()), None)), _code(["run = finished.open()", "run.cells", "run.results"])]
    return _box("".join(parts))


# --------------------------------------------------------------------------------------------- pieces


def _box(inside: str) -> str:
    return f'<div style="{_BOX}">{inside}</div>'


def _head(text: str) -> str:
    return f'<div style="{_HEAD}">{escape(text)}</div>'


def _table(rows: str) -> str:
    return f'<table style="border-collapse:collapse;margin:4px 0;background:transparent">{rows}</table>' if rows else ""


def _text(text: str) -> str:
    return (
        f'<pre style="font-size:12px;line-height:1.35;margin:8px 0;background:transparent;color:inherit;overflow-x:auto">{escape(text)}</pre>' if text else ""
    )


def _code(calls: Sequence[str]) -> str:
    return _text("\n".join(calls))


def _picture(path: Path | None) -> str:
    """Return a figure inline, on the white paper that it was drawn for; nothing where it is gone or very large."""
    if path is None or not path.is_file() or path.stat().st_size > _PICTURE:
        return ""
    data = b64encode(path.read_bytes()).decode("ascii")
    return f'<img alt="{escape(path.stem)}" style="max-width:100%;width:44em;background:#fff;border-radius:4px" src="data:image/png;base64,{data}">'
