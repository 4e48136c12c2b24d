"""How far runs are and what they took, read from their ledgers; runs that are being written are not disturbed."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from codi_engine.core.errors import UserError
from codi_engine.core.planning.costs import Costs, StageCost
from codi_engine.core.running.generations import Unit, units_of
from codi_engine.core.running.marks import in_words
from codi_engine.core.running.reuse import KEY as REUSED
from codi_engine.core.running.shares import shards_alive
from codi_engine.core.runs.places import no_run
from codi_engine.core.runs.stored import CHECKS, lacking
from codi_engine.core.watching.eventlog import read_events
from codi_engine.core.watching.recording import actual_of, estimate_of, invocations_of
from codi_engine.store.connecting import is_url
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import EXPERIMENT, LEDGER
from codi_engine.store.lease import written_by
from codi_engine.store.ledger import read_ledger
from codi_engine.store.mirror import place
from codi_engine.store.provenance import read_provenance
from codi_engine.store.remote import remote_at
from codi_engine.store.state import State

#: events that `status` shows, and how many of them
SHOWN, LATEST = ("warning", "disk", "resumed", "paused", "failed"), 5
#: folders below the given one that `ls` looks into
_DEPTH = 3


@dataclass(frozen=True)
class StageProgress:
    """What is committed of a stage; ``rate`` in cells per second and ``left`` in seconds are None where nothing was recorded."""

    stage: str
    units: int
    planned_units: int
    cells: int
    planned_cells: int
    rate: float | None = None
    left: float | None = None


@dataclass(frozen=True)
class Status:
    """A run as its ledger and its provenance describe it.

    ``state``: ``partial``; ``running``; ``computed``, where all cells are committed and results are lacking; ``finished``; ``damaged``.
    """

    path: Path
    name: str
    state: str
    stages: list[StageProgress]
    cells: int
    last_commit: float | None
    holder: str | None
    estimate: Costs
    actual: Costs
    invocations: int
    finished: str | None
    bytes: int = 0
    problem: str = ""
    seconds_left: float | None = field(default=None)
    hypothesis: str = ""
    nonfinite: str = ""
    goes_on: str = ""  # the command that goes on with it; empty for finished runs, and for those that were imported or made up
    lacking: Mapping[str, str] = field(default_factory=dict)  # analysis (or ``checks``) → why there are no results of what is committed
    reused: Mapping[str, int] = field(default_factory=dict)  # other run → unedited rows that were taken from it

    @property
    def committed(self) -> str:
        """Say what is committed: ``12 of 40 units, 3,072 of 10,240 cells``."""
        units, cells, planned_units, planned = (sum(getattr(s, n) for s in self.stages) for n in ("units", "cells", "planned_units", "planned_cells"))
        return f"{units:,} of {planned_units:,} units, {cells:,} of {planned:,} cells"

    @property
    def whole(self) -> bool:
        """Say whether every planned cell is committed."""
        return self.state in ("computed", "finished")

    @property
    def share(self) -> float:
        """Share of the planned cells that is committed."""
        planned = sum(s.planned_cells for s in self.stages)
        return sum(s.cells for s in self.stages) / planned if planned else 1.0

    def events(self) -> list[dict[str, Any]]:
        """Return the latest warnings, pauses and failures of the run's log, oldest first."""
        return [e for e in read_events(self.path) if e["event"] in SHOWN][-LATEST:]

    def variance(self) -> list[tuple[StageCost, StageCost]]:
        """Return (estimate, actual) per stage, and their totals last."""
        names = list(dict.fromkeys([*(s.stage for s in self.actual.stages), *(s.stage for s in self.estimate.stages)]))
        pairs = [(self.estimate[n], self.actual[n]) for n in names]
        return [*pairs, (self.estimate.total(), self.actual.total())] if pairs else []

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return {
            "run": str(self.path), "name": self.name, "state": self.state, "share": self.share, "cells": self.cells, "bytes": self.bytes,
            "stages": [asdict(s) for s in self.stages], "seconds_left": self.seconds_left,
            "last_commit": None if self.last_commit is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.last_commit)),
            "written_by": self.holder, "finished": self.finished, "invocations": self.invocations,
            "estimate": self.estimate.to_dict(), "actual": self.actual.to_dict(), "problem": self.problem,
            "hypothesis": self.hypothesis, "goes_on": self.goes_on, "nonfinite": self.nonfinite,
            "lacking": dict(self.lacking), "reused": dict(self.reused),
        }  # fmt: skip


def status_of(path: str | Path) -> Status:
    """Read a run's status.

    Raises
    ------
    UserError: no run there, or a damaged ledger
    """
    try:
        root = place(path)
        content = read_ledger(root / LEDGER) if not root.is_file() else None
        if content is None or not content.records:
            raise no_run(root)
        state = State.of(content.records, str(root))
        provenance = read_provenance(root)
    except StoreError as error:
        raise UserError(str(error)) from None
    shards = ", ".join(f"shard {name} ({owner})" for name, owner in shards_alive(root).items())
    owner = shards or written_by(root)
    invocations = invocations_of(provenance)
    units = _units(state)
    stages = [_timed(s, invocations) for s in _stages(state, units)]
    done = bool(state.plans) and all(s.units >= s.planned_units for s in stages)
    known = [s.left for s in stages]
    left = None if any(v is None for v in known) else float(sum(v for v in known if v is not None))
    committed = sum(u["rows"] for u in state.committed.values() if u["stage"] != "sources")
    experiment = _experiment_of(state)
    without = _without_results(root, experiment, content.chain) if done and units is not None else {}
    word = "running" if owner and not done else "computed" if without else "finished" if done else "partial"
    finished = (provenance.get("finished") or _date((root / LEDGER).stat().st_mtime)) if done else None
    return Status(
        root, str(experiment.get("name", root.name)), word, stages, committed, (root / LEDGER).stat().st_mtime if state.committed else None, owner,
        estimate_of(provenance), actual_of(provenance), len(invocations), finished, _size(root) + _elsewhere(root, state), seconds_left=left,
        hypothesis=str(experiment.get("hypothesis") or ""),
        goes_on="" if units is None else _next(root, done, without),
        nonfinite=in_words(state.committed), lacking=without, reused=_reused(provenance),
    )  # fmt: skip


def command(root: Path) -> str:
    """Return the command that goes on with a run, wherever the one that began it is written: its experiment lies in it."""
    output = str(root).replace("{", "{{").replace("}", "}}")
    return shlex.join(["codi-engine", "run", str(root / EXPERIMENT), "--output", output])


def _next(root: Path, done: bool, without: Mapping[str, str]) -> str:
    """Return the command for what is left to do; empty where nothing is."""
    if not done or CHECKS in without:  # the run's own command evaluates checks
        return command(root)
    return shlex.join(["codi-engine", "analyze", str(root)]) if without else ""


def _without_results(root: Path, experiment: Mapping[str, Any], digest: str) -> dict[str, str]:
    """Return which of the experiment's analyses, and whether its checks, have no results of what is committed, and why."""
    analyses = experiment.get("analyses")
    names = [w.get("plugin") if isinstance(w, dict) else w for w in analyses] if isinstance(analyses, list) else []
    return lacking(root, [*(n for n in names if isinstance(n, str)), *([CHECKS] if experiment.get("checks") else [])], digest)


def _reused(provenance: Mapping[str, Any]) -> dict[str, int]:
    rows = provenance.get(REUSED)
    return {str(run): int(count) for run, count in rows.items() if isinstance(count, int)} if isinstance(rows, dict) else {}


def _units(state: State) -> list[Unit] | None:
    """Return the planned units; None for imported and synthetic runs, which have plans of their own."""
    try:
        return units_of(state.plans)
    except (KeyError, TypeError, ValueError):
        return None


def _stages(state: State, units: Sequence[Unit] | None) -> list[StageProgress]:
    """Count units and cells of each stage, planned and committed."""
    if units is None:
        stages = list(dict.fromkeys(u["stage"] for u in state.committed.values())) or ["import"]
        rows = sum(u["rows"] for u in state.committed.values())
        planned = rows if len(state.committed) == state.units else state.units * state.unit_cells
        return [StageProgress(stages[0], len(state.committed), state.units, rows, planned)]
    groups: dict[str, list[Unit]] = {}
    for unit in units:
        groups.setdefault("sweep" if unit.stage == "sweep" else "baseline", []).append(unit)
    out = []
    for stage, found in groups.items():
        done = [u for u in found if u.number in state.committed]
        out.append(StageProgress(stage, len(done), len(found), _cells(done), _cells(found)))
    return out


def _cells(units: Sequence[Unit]) -> int:
    return sum(len(u.keys) * u.trials for u in units)


def _timed(stage: StageProgress, invocations: Sequence[Mapping[str, Any]]) -> StageProgress:
    """Add rate and time left: from the latest invocation that computed cells of the stage, else from the latest estimate."""
    left = stage.planned_cells - stage.cells
    rate = None
    for invocation in reversed(invocations):
        took = invocation["stages"].get(stage.stage, {})
        if took.get("cells") and took.get("seconds"):
            rate = took["cells"] / took["seconds"]
            break
    else:
        for invocation in reversed(invocations):
            expected = Costs.from_dict(invocation.get("estimate") or {})[stage.stage]
            if expected.cells and expected.seconds:
                rate = expected.cells / expected.seconds
                break
    return StageProgress(**{**asdict(stage), "rate": rate, "left": 0.0 if left <= 0 else left / rate if rate else None})


def _experiment_of(state: State) -> Mapping[str, Any]:
    """Return the resolved experiment as plain values; empty where its text is none."""
    from codi_engine.core.yamlfile import parse_yaml

    try:
        value, _ = parse_yaml(state.experiment, "experiment.yaml")
    except UserError:
        return {}
    return value if isinstance(value, dict) else {}


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _size(root: Path) -> int:
    """Return the bytes of all files of a run; what vanishes meanwhile is left out."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except OSError:
                continue
    return total


def _elsewhere(root: Path, state: State) -> int:
    """Return the bytes of shards and texts that lie at an object store."""
    if remote_at(root) is None:
        return 0
    return sum(stated["size"] for record in state.committed.values() for stated in record["files"].values())


def runs_in(directory: str | Path) -> list[Status]:
    """Return the status of every run in a directory and the folders below it; a damaged one says what is wrong.

    Raises
    ------
    UserError: no such directory
    """
    if is_url(str(directory)):
        raise UserError(f"{directory}: the runs at an object store are not listed; `codi-engine status s3://BUCKET/NAME` shows one")
    root = Path(directory)
    if not root.is_dir():
        raise UserError(f"{root}: is no directory; runs lie in runs/ unless --output says otherwise")
    found = []
    for path in _runs(root, _DEPTH):
        try:
            found.append(status_of(path))
        except UserError as error:
            empty = Costs([])
            found.append(Status(path, path.name, "damaged", [], 0, None, None, empty, empty, 0, None, _size(path), str(error)))
    return found


def _runs(root: Path, depth: int) -> Iterator[Path]:
    if (root / LEDGER).is_file():
        yield root
    elif depth:
        for child in sorted(root.iterdir()):
            if child.is_dir() and not child.is_symlink():
                yield from _runs(child, depth - 1)
