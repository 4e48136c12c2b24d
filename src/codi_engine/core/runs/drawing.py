"""Figures from stored tables alone: when an analysis is made, when one is drawn again, and how they are written."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from codi_engine.core.errors import PluginError, UserError, nearest
from codi_engine.core.returned import figures_of
from codi_engine.core.runs.lettering import as_typed
from codi_engine.core.runs.stored import StoredResult, results_home, stored_results

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.plugin import Analysis, AnalysisResult
    from codi_engine.core.plugins import Plugins
    from codi_engine.core.runs.results import Run

#: dots per inch of the PNG that an analysis writes
DPI = 200
FORMATS = ("pdf", "svg", "png")
#: text stays text (to be searched and edited), and the same figure is the same bytes
#: and shows what was typed: a dollar in a text is a dollar (an analysis that draws mathematics says ``parse_math=True``)
_STYLE = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "codi-engine", "text.parse_math": False}
_DATES = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}


@contextmanager
def style() -> Iterator[None]:
    """Draw and write figures the same way whatever a user's matplotlib settings are."""
    import matplotlib as mpl

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def save(figure: Figure, path: Path | io.BytesIO, kind: str = "", dpi: float = DPI) -> None:
    """Write a figure as PDF, SVG or PNG, without dates.

    Parameters
    ----------
    kind: one of :data:`FORMATS`; default: by the path's ending
    """
    kind = kind or cast(Path, path).suffix[1:]
    with style(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"(?s)Glyph .* missing from font")  # a box is drawn; an SVG has the letter
        warnings.filterwarnings("ignore", message="constrained_layout not applied")  # labels that leave panels no room: drawn all the same
        as_typed(figure)
        figure.savefig(path, format=kind, dpi=dpi, metadata=cast(Any, _DATES.get(kind)))


# ------------------------------------------------------------------------------------------- stored form


def storable(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table as Parquet can hold it: mixed labels (layer 3, layers 0+1) as text, whole numbers with gaps as such."""
    import numpy as np

    changed: dict[str, Any] = {}
    for column in table:
        if table[column].dtype != object:
            continue
        kinds = {type(v) for v in table[column].dropna()}
        if all(issubclass(k, (int, np.integer)) and k is not bool for k in kinds) and kinds:
            changed[str(column)] = table[column].astype("Int64")  # else those with gaps would come back as 3.0
        elif len(kinds) > 1:
            changed[str(column)] = table[column].map(lambda v: v if v is None or v != v else str(v))
    return table.assign(**changed) if changed else table


def as_stored(tables: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return tables as they are after having been written and read, without touching a disk."""
    import pandas as pd

    out = {}
    for name, table in tables.items():
        buffer = io.BytesIO()
        storable(table).to_parquet(buffer)
        out[name] = pd.read_parquet(buffer)
    return out


def json_safe(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they are after having been written and read as JSON."""
    return dict(json.loads(json.dumps(dict(values), default=str, ensure_ascii=False)))


def drawn(analysis: Analysis[Any], result: AnalysisResult, title: str = "") -> dict[str, Figure]:
    """Return the figures of a result that is not stored, exactly those that storing it would give."""
    with style():
        return figures_of(analysis, as_stored(result.tables), json_safe({"title": title, "facts": result.facts}))


# ------------------------------------------------------------------------------------------- drawn again


def redraw(stored: StoredResult, plugins: Plugins | None = None) -> dict[str, Figure]:
    """Return name → figure of a stored result; what its analysis gives no code to draw again is left out.

    Raises
    ------
    UserError: the analysis is not installed, or the result is of another version of it
    """
    from pydantic import ValidationError

    from codi_engine.core.plugins import plugin_manager

    plugins = plugins or plugin_manager()
    name = str(stored.about.get("analysis", stored.name))
    kind = plugins.get("analysis", name, f"{stored.folder}: analysis")
    if "facts" not in stored.about:
        raise UserError(f"{stored.folder}: was made by an earlier version, which left nothing to draw from; run codi-engine analyze {_run_of(stored)} {name}")
    try:
        options = kind.Options.model_validate_json(json.dumps(stored.about.get("options", {})))
        with style():
            tables = {table: stored.table(table) for table in stored.tables}
            return figures_of(kind(options), tables, stored.about)
    except (ValidationError, PluginError) as error:
        if isinstance(error, PluginError) and not isinstance(error.__cause__, KeyError):
            raise
        what = f"no {error.__cause__}" if isinstance(error, PluginError) else "other options"
        raise UserError(f"{stored.folder}: cannot be drawn by this version of '{name}' ({what}); run codi-engine analyze {_run_of(stored)} {name}") from None


def _run_of(stored: StoredResult) -> Path:
    return stored.folder.parent.parent


def figure_names(path: str | Path) -> dict[str, list[str]]:
    """Return analysis → names of the figures that it left below a run's directory."""
    return {name: list(stored.figures) for name, stored in stored_results(path).items() if stored.figures}


def find(path: str | Path, wanted: str) -> tuple[str, str]:
    """Return (analysis, figure) of ``importance/heatmap``, or of ``heatmap`` where one analysis has it.

    Raises
    ------
    UserError: no such figure, or several
    """
    known = figure_names(path)
    every = [f"{analysis}/{figure}" for analysis, figures in known.items() for figure in figures]
    if not every:
        raise UserError(f"{path}: has no figures; run codi-engine analyze {path}")
    if wanted in every:
        analysis, _, figure = wanted.partition("/")
        return analysis, figure
    mine = [f for f in every if f.partition("/")[2] == wanted]
    if len(mine) > 1:
        raise UserError(f"{path}: '{wanted}' is a figure of several analyses: {', '.join(mine)}")
    if mine:
        return mine[0].partition("/")[0], wanted
    names = every if "/" in wanted else list(dict.fromkeys(f.partition("/")[2] for f in every))
    raise UserError(f"{path}: no figure '{wanted}'; {nearest(wanted, names)}")


def plot(run: str | Path | Run, figure: str, *, size: tuple[float, float] | None = None) -> Figure:
    """Draw a figure of a run again, from its stored tables.

    Parameters
    ----------
    run: its directory, or an opened run
    figure: ``importance/heatmap``, or ``heatmap`` where one analysis has a figure of that name
    size: width and height in inches; default: the figure's own

    Raises
    ------
    UserError: no such figure
    """
    path = results_home(run if isinstance(run, (str, Path)) else run.path)
    analysis, name = find(path, figure)
    found = redraw(stored_results(path)[analysis])
    if name not in found:
        raise UserError(f"{path}: '{analysis}' keeps {name}.png but cannot draw it again")
    if size is not None:
        from codi_engine.core.runs.resizing import resize

        resize(found[name], *size)
    return found[name]
