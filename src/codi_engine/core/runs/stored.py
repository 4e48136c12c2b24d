"""What analyses left on disk: ``results/<analysis>/`` with tables, figures, further files, and ``result.json`` about them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.runs.places import no_run
from codi_engine.store.files import write_durably
from codi_engine.store.layout import EXPERIMENT, LEDGER, RESULTS

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.plugin import Analysis
    from codi_engine.core.runs.results import Run

#: what a folder of results says of itself
ABOUT = "result.json"
SUMMARY = "summary.txt"


@dataclass(frozen=True, repr=False)
class StoredResult:
    """The results of one analysis, as they lie in ``folder``.

    Attributes
    ----------
    name: the folder's name, which is the analysis' name
    about: ``analysis``, ``options`` (all of them, defaults too), ``runs`` (path and digest of each), ``made`` (UTC), ``version``,
        ``title`` (the experiment's name), ``facts`` (what drawing needs and no table holds)
    tables, figures, files: name → path, in the order in which the analysis gave them; figures are PNG, an SVG lies beside each
    """

    name: str
    folder: Path
    summary: str
    about: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Path] = field(default_factory=dict)
    figures: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<result '{self.folder}': tables {', '.join(self.tables) or 'none'}; figures {', '.join(self.figures) or 'none'}>"

    def _repr_html_(self) -> str:
        from codi_engine.core.runs.notebook import result_html

        return result_html(self)

    def table(self, name: str) -> pd.DataFrame:
        """Read a table.

        Raises
        ------
        UserError: the analysis left no such table
        """
        import pandas as pd

        if name not in self.tables:
            raise UserError(f"{self.folder}: no table '{name}'; {nearest(name, self.tables)}")
        return pd.read_parquet(self.tables[name])

    def is_of(self, digest: str) -> bool:
        """Return False when the run it was made of is known to have grown since (``digest``: of the run now)."""
        made_of = [run.get("digest") for run in self.about.get("runs", [])]
        return not made_of or digest in made_of


def about(analysis: Analysis[Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Return what is kept of how a result was made."""
    from codi_engine import __version__

    return {
        "analysis": analysis.name, "options": analysis.options.model_dump(mode="json"), "version": __version__,
        "runs": [{"path": str(run.path), "digest": run.digest} for run in runs], "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "title": str(runs[0].experiment.get("name", "")),
    }  # fmt: skip


class Results(dict[str, StoredResult]):
    """Analysis → what it left; a name that is not there is answered with those that are."""

    def __missing__(self, name: object) -> StoredResult:
        raise UserError(f"no results of '{name}'; {nearest(str(name), self) if self else 'no analysis of this run has results yet'}")


def stored_results(path: str | Path) -> dict[str, StoredResult]:
    """Return analysis → what it left in a run's directory (or in that of an experiment with checkpoints)."""
    root = Path(path) / RESULTS
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return Results({folder.name: _stored(folder) for folder in folders})


def results_home(path: str | Path) -> Path:
    """Return a directory that can hold results: a run's, or that of an experiment with checkpoints.

    Raises
    ------
    UserError: neither
    """
    home = Path(path)
    if not (home / LEDGER).exists() and not (home / RESULTS).is_dir() and not (home / EXPERIMENT).is_file():
        raise no_run(home)
    return home


def _stored(folder: Path) -> StoredResult:
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    known = _about_of(folder)
    tables = _ordered([p for p in files if p.suffix == ".parquet"], known.pop("tables", None))
    figures = _ordered([p for p in files if p.suffix == ".png"], known.pop("figures", None))
    known.pop("files", None)
    summary = (folder / SUMMARY).read_text(encoding="utf-8").rstrip("\n") if (folder / SUMMARY).is_file() else ""
    further = {p.name: p for p in files if p.suffix not in (".parquet", ".png", ".svg") and p.name not in (ABOUT, SUMMARY)}
    return StoredResult(folder.name, folder, summary, known, tables, figures, further)


def _about_of(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        known = None
    if not isinstance(known, dict):
        raise UserError(f"{path}: is damaged; run codi-engine analyze {folder.parent.parent} {folder.name}")
    return known


def _ordered(files: Sequence[Path], names: Sequence[str] | None) -> dict[str, Path]:
    """Return name → file in the order of ``names``; what they lack is no part of the result. None: nobody wrote them down."""
    found = {p.stem: p for p in files}
    return found if names is None else {name: found[name] for name in names if name in found}


def write_about(folder: Path, values: Mapping[str, Any]) -> None:
    """Write what a folder of results says of itself: the whole file, or as before."""
    write_durably(folder, ABOUT, (json.dumps(values, indent=1, ensure_ascii=False, default=str) + "\n").encode("utf-8", "backslashreplace"))


def written_files(folder: Path) -> set[Path]:
    """Return the tables, figures and files that the result of a folder names as its own; none where that cannot be read."""
    try:
        known = _about_of(folder)
    except UserError:
        return set()
    endings = (("tables", ".parquet"), ("figures", ".png"), ("figures", ".svg"), ("files", ""))
    return {folder / f"{name}{ending}" for kind, ending in endings for name in known.get(kind, []) if Path(f"{name}{ending}").name == f"{name}{ending}"}
