"""Taking a run elsewhere: cells, results and captured activations in the formats of other tools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.runs.whole import whole_file

if TYPE_CHECKING:
    from codi_engine.core.runs.results import Run

Format = Literal["parquet", "csv", "netcdf", "pt", "npz", "jsonl"]
FORMATS: tuple[str, ...] = get_args(Format)
_ENDINGS = {"netcdf": "nc"}
_ROWS = ("parquet", "csv", "jsonl")
#: characters that file names are spared
_ODD = str.maketrans(dict.fromkeys('/\\:*?"<>|@[], ', "_"))


@dataclass(frozen=True)
class Exported:
    """One file of an export: ``what`` it holds, and how many rows (cells, of activations)."""

    what: str
    path: Path
    rows: int


@dataclass(frozen=True)
class _Job:
    what: str
    name: str
    write: Callable[[Path], int]


def export(
    run: Run, to: str, path: str | Path | None = None, what: str = "cells", *, force: bool = False, raw: bool = False
) -> list[Exported]:  # fmt: skip
    """Write a run's cells, results or activations to files that other tools read.

    Parameters
    ----------
    to: parquet, csv, jsonl (written unit by unit), netcdf, npz or pt
    path: a file, or a folder where there are several; default: named after the run, in the working directory
    what: ``cells`` (one row each, with its text), ``results`` (every table of every analysis), ``results/ANALYSIS``,
        ``activations/SITE``, or ``all``
    force: overwrite existing files
    raw: leave CSV fields that begin like a formula as they are (else an apostrophe goes before them)

    Raises
    ------
    UserError: an unknown format or thing, a file that exists, or a missing library
    """
    if to not in FORMATS:
        raise UserError(f"--to {to}: {nearest(to, FORMATS)}")
    if to == "netcdf":
        from codi_engine.core.runs.exportfiles import h5netcdf

        h5netcdf()
    jobs = _jobs(run, to, what, raw)
    single = len(jobs) == 1 and (what == "cells" or what.startswith("activations/"))
    ending = _ENDINGS.get(to, to)
    stem = run.path.resolve().name
    if single:
        targets = [Path(path) if path is not None else Path(f"{stem}-{jobs[0].name}.{ending}")]
    else:
        home = Path(path) if path is not None else Path(f"{stem}-export")
        if home.is_file():
            raise UserError(f"{home}: is a file; '{what}' is several files: name a folder with -o")
        targets = [home / f"{job.name}.{ending}" for job in jobs]
    for target in targets:
        if target.exists() and (not force or target.is_dir()):  # before anything is written
            raise UserError(f"{target}: {'is a folder; name a file' if target.is_dir() else 'exists; name another one with -o, or overwrite it with --force'}")
    done = []
    for job, target in zip(jobs, targets, strict=True):
        with whole_file(target, force) as part:
            rows = job.write(part)
        done.append(Exported(job.what, target, rows))
    return done


def _jobs(run: Run, to: str, what: str, raw: bool) -> list[_Job]:
    """Return what is to be written, in order."""
    about = {"run": run.path.resolve().name, "digest": run.digest, "experiment": str(run.experiment.get("name", ""))}
    sites = list(dict.fromkeys(a.split("/")[1] for a in run.store.arrays if a.startswith("activations/")))
    kind, _, name = what.partition("/")
    if what == "all":
        tables = _results(run, to, "", raw, about) if any(r.tables for r in run.results.values()) else []
        return [_cells(run, to, raw, about), *tables, *[_activations(run, to, site, raw, about, "activations/") for site in sites]]
    if what == "cells":
        return [_cells(run, to, raw, about)]
    if kind == "results":
        return _results(run, to, name, raw, about)
    if kind == "activations" and name:
        return [_activations(run, to, name, raw, about, "")]
    known = ["cells", "results", "all", *(f"results/{r}" for r in run.results), *(f"activations/{s}" for s in sites)]
    raise UserError(f"--what {what}: {nearest(what, known)}")


def _cells(run: Run, to: str, raw: bool, about: Mapping[str, str]) -> _Job:
    from codi_engine.core.runs.exportfiles import write_columns, write_rows
    from codi_engine.core.runs.exportrows import Cells

    def write(path: Path) -> int:
        import pandas as pd

        cells = Cells(run)
        if to in _ROWS:
            return write_rows(to, path, cells.frames(), cells.empty(), raw)
        return write_columns(to, path, pd.concat([cells.empty(), *cells.frames()], ignore_index=True) if cells.units else cells.empty(), about, "cell")

    return _Job("cells", "cells", write)


def _results(run: Run, to: str, wanted: str, raw: bool, about: Mapping[str, str]) -> list[_Job]:
    found = run.results
    if wanted and wanted not in found:
        raise UserError(f"--what results/{wanted}: {nearest(wanted, found)}")
    jobs = [
        _table(to, stored.tables[table], f"results/{analysis}/{table}", raw, {**about, "analysis": analysis})
        for analysis, stored in found.items() if wanted in ("", analysis) for table in stored.tables
    ]  # fmt: skip
    if not jobs:
        raise UserError(f"{run.path}: has no results yet; run codi-engine analyze {run.path}")
    return jobs


def _table(to: str, source: Path, name: str, raw: bool, about: Mapping[str, str]) -> _Job:
    from codi_engine.core.runs.exportfiles import write_columns, write_rows

    def write(path: Path) -> int:
        import pandas as pd

        frame = pd.read_parquet(source)
        if to in _ROWS:
            return write_rows(to, path, [frame], frame.iloc[:0] if to != "parquet" else frame.iloc[:1], raw)
        return write_columns(to, path, frame, about)

    return _Job(name, name, write)


def _activations(run: Run, to: str, site: str, raw: bool, about: Mapping[str, str], folder: str) -> _Job:
    from codi_engine.core.runs.exportfiles import write_activations
    from codi_engine.core.runs.exportrows import Activations

    found = Activations(run, site)
    return _Job(f"activations/{site}", f"{folder}{site.translate(_ODD).strip('_')}", lambda path: write_activations(to, path, found, about, raw))


def files_of(done: Sequence[Exported]) -> list[dict[str, Any]]:
    """Return plain values."""
    return [{"what": one.what, "path": str(one.path), "rows": one.rows} for one in done]
