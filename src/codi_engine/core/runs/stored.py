"""What analyses left on disk: ``results/<analysis>/`` with tables, figures, further files, and ``result.json`` about them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.runs.parquet import read_table
from codi_engine.core.runs.places import no_run
from codi_engine.store.errors import StoreError
from codi_engine.store.files import Facts, difference, facts, read_file, write_durably
from codi_engine.store.layout import EXPERIMENT, LEDGER, RESULTS
from codi_engine.store.shown import named
from codi_engine.store.verifying import Finding

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.plugin import Analysis
    from codi_engine.core.runs.results import Run

#: what a folder of results says of itself
ABOUT = "result.json"
#: keys of it: checksums of the files, and of itself
_SUMS, _SUM = "checksums", "checksum"
SUMMARY = "summary.txt"
#: the folder of an experiment's checks, which the run's own command evaluates
CHECKS = "checks"
#: stands in a folder while its tables are replaced; a process that is killed leaves it there
WRITING = ".writing"
#: bytes of a result.json, far above any
_MOST = 1 << 28
#: how often results that are being replaced are looked at again
_LOOKS = 50
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_INTERRUPTED = "its analysis is writing it, or was interrupted while it did"


@dataclass(frozen=True, repr=False)
class StoredResult:
    """The results of one analysis, as they lie in ``folder``.

    Attributes
    ----------
    name: the folder's name, which is the analysis' name
    about: ``analysis``, ``options`` (all of them, defaults too), ``runs`` (path and digest of each), ``made`` (UTC), ``version``,
        ``title`` (the experiment's name), ``facts`` (what drawing needs and no table holds)
    tables, figures, files: name → path, in the order in which the analysis gave them; figures are PNG, an SVG lies beside each
    checksums: file name → size and sha256; empty for results of versions that kept none
    """

    name: str
    folder: Path
    summary: str
    about: Mapping[str, Any] = field(default_factory=dict)
    tables: Mapping[str, Path] = field(default_factory=dict)
    figures: Mapping[str, Path] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    checksums: Mapping[str, Facts] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<result '{self.folder}': tables {', '.join(self.tables) or 'none'}; figures {', '.join(self.figures) or 'none'}>"

    def _repr_html_(self) -> str:
        from codi_engine.core.runs.notebook import result_html

        return result_html(self)

    def table(self, name: str) -> pd.DataFrame:
        """Read a table.

        Raises
        ------
        UserError: the analysis left no such table, it is damaged, or a table of an analysis that was interrupted
        """
        if name not in self.tables:
            raise UserError(f"{self.folder}: no table '{name}'; {nearest(name, self.tables)}")
        path = self.tables[name]
        stated = self.checksums.get(path.name)
        problem = _problem(path, stated)
        if (problem or stated is None) and (self.folder / WRITING).exists():
            raise UserError(f"{self.folder}: {_INTERRUPTED}; {_again(self.folder)}")
        if problem:
            raise UserError(f"{path}: {problem}; {_again(self.folder)}")
        try:
            frame: pd.DataFrame = read_table(path).to_pandas()
        except ValueError as error:
            raise UserError(f"{path}: cannot be read as a table: {str(error)[:120]}; {_again(self.folder)}") from None
        return frame

    def is_of(self, digest: str) -> bool:
        """Return False when the run it was made of is known to have grown since (``digest``: of the run now)."""
        made_of = [run.get("digest") for run in self.about.get("runs", [])]
        return not made_of or digest in made_of


def about(analysis: Analysis[Any], runs: Sequence[Run]) -> dict[str, Any]:
    """Return what is kept of how a result was made."""
    from codi_engine import __version__

    return {
        "analysis": analysis.name, "options": analysis.options.model_dump(mode="json"), "version": __version__,
        "runs": [{"path": named(str(run.path)), "digest": run.digest} for run in runs], "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
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


def lacking(path: str | Path, names: Sequence[str], digest: str) -> dict[str, str]:
    """Return analysis → why a run has no results of it, for those of ``names`` that have none of its present state.

    Parameters
    ----------
    names: as experiments call them, ``package/name`` too
    digest: of the run now
    """
    out = {}
    for name in dict.fromkeys(name.rpartition("/")[2] for name in names):
        folder = Path(path) / RESULTS / name
        if not (folder / ABOUT).is_file():
            out[name] = "no results"
        elif (folder / WRITING).exists():
            out[name] = "interrupted"
        else:
            try:
                if not _stored(folder).is_of(digest):
                    out[name] = "made before the run grew"
            except UserError:
                out[name] = "damaged"
    return out


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
    home = folder.parent.resolve()  # a link that leaves the results could show any file of this machine in a report
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and p.resolve().is_relative_to(home))
    known = _about_of(folder)
    tables = _ordered([p for p in files if p.suffix == ".parquet"], known.pop("tables", None))
    figures = _ordered([p for p in files if p.suffix == ".png"], known.pop("figures", None))
    known.pop("files", None)
    known.pop(_SUM, None)
    sums = known.pop(_SUMS, {})
    summary = (folder / SUMMARY).read_text(encoding="utf-8", errors="replace").rstrip("\n") if folder / SUMMARY in files else ""
    further = {p.name: p for p in files if p.suffix not in (".parquet", ".png", ".svg") and p.name not in (ABOUT, SUMMARY)}
    return StoredResult(folder.name, folder, summary, known, tables, figures, further, sums)


def _about_of(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    try:
        known = json.loads(_bytes_of(folder)) if path.exists() else {}
    except (ValueError, RecursionError, StoreError):
        known = None
    if not isinstance(known, dict) or not _has_its_types(known):
        raise UserError(f"{path}: is damaged; {_again(folder)}")
    return known


def _bytes_of(folder: Path) -> bytes:
    """Return what a folder says of itself as it lies there, or raise a StoreError: a pipe would never end, a device neither."""
    path = folder / ABOUT
    if path.is_file() and path.stat().st_size > _MOST:
        raise StoreError(f"{path}: is no {ABOUT}: it has more than {_MOST:,} bytes")
    return read_file(folder, ABOUT)


def _has_its_types(known: Mapping[str, Any]) -> bool:
    """Say whether lists are lists of names and the rest is what :func:`about` wrote."""
    lists = all(isinstance(names := known.get(key, []), list) and all(isinstance(n, str) for n in names) for key in ("tables", "figures", "files"))
    runs = known.get("runs", [])
    mappings = all(isinstance(known.get(key, {}), dict) for key in ("options", "facts"))
    return lists and mappings and isinstance(runs, list) and all(isinstance(run, dict) for run in runs) and _are_checksums(known.get(_SUMS, {}))


def _are_checksums(sums: Any) -> bool:
    return isinstance(sums, dict) and all(_is_plain(name) and isinstance(stated, dict) and _are_facts(**stated) for name, stated in sums.items())


def _are_facts(size: Any = None, sha256: Any = None, **_: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 0 and isinstance(sha256, str) and bool(_SHA256.match(sha256))


def _is_plain(name: str) -> bool:
    """Say whether a name is that of a file in the folder itself."""
    return name not in ("", ".", "..") and "\0" not in name and Path(name).name == name


def _ordered(files: Sequence[Path], names: Sequence[str] | None) -> dict[str, Path]:
    """Return name → file in the order of ``names``; what they lack is no part of the result. None: nobody wrote them down."""
    found = {p.stem: p for p in files}
    return found if names is None else {name: found[name] for name in names if name in found}


def write_about(folder: Path, values: Mapping[str, Any]) -> None:
    """Write what a folder of results says of itself, with the checksums of its files: the whole file, or as before."""
    files = sorted(p for p in _named(folder, values) | {folder / SUMMARY} if p.is_file())
    write_durably(folder, ABOUT, _encoded({**values, _SUMS: {p.name: facts(p.read_bytes()) for p in files}}))


def _encoded(values: Mapping[str, Any]) -> bytes:
    """Return the bytes of what a folder says of itself; its own checksum stands last."""
    text = json.dumps({k: v for k, v in values.items() if k != _SUM}, indent=1, ensure_ascii=False, default=str)
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return (text.removesuffix("\n}") + f',\n "{_SUM}": "{digest}"\n}}\n').encode("utf-8", "backslashreplace")


def written_files(folder: Path) -> set[Path]:
    """Return the tables, figures and files that the result of a folder names as its own; none where that cannot be read."""
    try:
        return _named(folder, _about_of(folder))
    except UserError:
        return set()


def _named(folder: Path, known: Mapping[str, Any]) -> set[Path]:
    endings = (("tables", ".parquet"), ("figures", ".png"), ("figures", ".svg"), ("files", ""))
    return {folder / f"{name}{ending}" for kind, ending in endings for name in known.get(kind, []) if _is_plain(f"{name}{ending}")}


def damaged_results(path: str | Path) -> list[Finding]:
    """Compare the results of a run with their checksums; results of versions that wrote none pass."""
    root = Path(path) / RESULTS
    folders = sorted(p for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
    return [finding for folder in folders for finding in _settled(folder)]


def _settled(folder: Path) -> list[Finding]:
    """Return what is wrong with a folder; where an analysis replaces the result meanwhile, it is looked at again."""
    found: list[Finding] = []
    for _ in range(_LOOKS):
        before = _signature(folder)
        found = list(_damaged(folder))
        if (folder / WRITING).exists():
            return [Finding(f"{RESULTS}/{folder.name}/{WRITING}", "interrupted", f"{_INTERRUPTED}; {_again(folder)}")]
        if not found or _signature(folder) == before:
            break
    return found


def _signature(folder: Path) -> tuple[int, int] | None:
    """Return what is another whenever a result was written."""
    try:
        found = (folder / ABOUT).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _damaged(folder: Path) -> Iterator[Finding]:
    here, again = f"{RESULTS}/{folder.name}", _again(folder)
    if not (folder / ABOUT).exists():
        if (folder / SUMMARY).exists():  # an analysis was here
            yield Finding(f"{here}/{ABOUT}", "missing", f"is missing; {again}")
        return
    try:
        raw, known = _bytes_of(folder), _about_of(folder)
    except (UserError, StoreError):
        raw, known = b"", {_SUM: ""}
    if _SUM not in known and f'"{_SUM}"'.encode() not in raw:
        return
    if _encoded(known) != raw:
        yield Finding(f"{here}/{ABOUT}", "damaged", f"is damaged: its checksum differs; {again}")
        return
    for name, sums in known.get(_SUMS, {}).items():
        if problem := _problem(folder / name, sums):
            yield Finding(f"{here}/{name}", "missing" if problem == "is missing" else "damaged", f"{problem}; {again}")


def _problem(path: Path, stated: Facts | None) -> str:
    """Say how a file of results differs from what was written; empty where it does not, or nothing is known of it."""
    if stated is None:
        return ""
    if not path.exists():
        return "is missing"
    try:
        return difference(read_file(path.parent, path.name, stated["size"]), stated)
    except StoreError as error:
        return str(error).removeprefix(f"{path}: ")


def _again(folder: Path) -> str:
    run = folder.parent.parent
    command = f"run {run / EXPERIMENT} --output {run}" if folder.name == CHECKS else f"analyze {run} {folder.name}"
    return f"`codi-engine {command}` makes it again"
