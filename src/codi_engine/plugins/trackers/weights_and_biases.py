"""Weights & Biases through its own SDK, which nothing but this tracker imports."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from codi_engine.core.errors import UserError
from codi_engine.core.plugin import Event, Options, Tracker
from codi_engine.plugins.trackers.places import effects_of, pictures, scalar_names
from codi_engine.plugins.trackers.wandb_contents import effects_rows, provenance_facts, result_files
from codi_engine.plugins.trackers.wandb_session import FOLDER, close_session, identity, open_session

#: scalar keys of a run at most; a sweep with more places has them in the table only
KEYS = 1_000
#: rows of the one table at most, which is what W&B shows
ROWS = 10_000
#: events that raise an alert, and its level
_ALERTS = {"warning": "WARN", "disk": "WARN", "paused": "INFO", "failed": "ERROR"}


class WandbOptions(Options):
    """``project`` and ``entity``: where it is shown; ``name``: of the run (default: the experiment's).

    ``group`` (default: the directory of an experiment with checkpoints), ``job_type``, ``tags``: how runs are found again.
    ``mode``: online, offline (files that ``wandb sync`` sends later) or disabled; default: what WANDB_MODE says, else online.
    ``log_every``: units between two points of a curve. ``artifact``: keep tables and figures as an artifact.
    """

    project: str = "codi-engine"
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: list[str] = Field(default_factory=list)
    name: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None
    log_every: int = Field(default=1, ge=1)
    artifact: bool = True


class Wandb(Tracker[WandbOptions]):
    """Log to Weights & Biases: the experiment as config, means by condition as curves, effects and pairs as one table, figures, results.

    A run that goes on continues the same W&B run, over the count of committed cells. Where W&B cannot be reached, its files stay in
    ``wandb/`` of the run, and ``wandb sync`` sends them later.
    """

    name = "wandb"
    Options = WandbOptions

    def __init__(self, options: WandbOptions) -> None:
        super().__init__(options)
        self._session: Any = None
        self._run = Path()
        self._title = ""
        self._latest: tuple[int, dict[str, float]] | None = None
        self._step, self._since = 0, 0
        self._keys: set[str] = set()
        self._folders: dict[str, Path] = {}
        self._disabled = False
        self._exit = 1  # until the run has finished

    def check(self) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise UserError("wandb is not installed: pip install wandb")

    # ---------------------------------------------------------------------------------------------- moments

    def started(self, run: Path, experiment: Mapping[str, Any]) -> None:
        from codi_engine.core.planning.checkpoints import is_family

        self._run, self._title = run, self.options.name or str(experiment.get("name", run.name))
        group = self.options.group or (run.absolute().parent.name if is_family(run.parent) else None)
        texts = [f"hypothesis: {experiment['hypothesis']}" if experiment.get("hypothesis") else "", str(experiment.get("notes") or "")]
        about = {
            "project": self.options.project, "entity": self.options.entity, "run_name": self._title, "run_group": group,
            "run_job_type": self.options.job_type, "run_tags": tuple(self.options.tags) or None,
            "run_notes": "\n\n".join(t for t in texts if t) or None, "run_id": identity(run),
        }  # fmt: skip
        config = {**experiment, "provenance": provenance_facts(run)}
        mode = self.options.mode or os.environ.get("WANDB_MODE") or "online"
        self._session = open_session(run, about, config, mode, self.note)
        self._session.define_metric("cells")
        self._session.define_metric("*", step_metric="cells")
        self._disabled = mode == "disabled"
        if not self._disabled:
            self.later = f"`{sync_command(self._session)}` sends it"

    def committed(self, unit: int, units: int, aggregates: Mapping[str, float]) -> None:
        values = {f"mean/{name}" if "/" in name else name: float(value) for name, value in aggregates.items() if name not in ("cells", "seconds")}
        self._latest = int(aggregates.get("cells", unit + 1)), values
        self._since += 1
        if self._since >= self.options.log_every:
            with self._connected():
                self._log()

    def event(self, event: Event) -> None:
        if self._session is None:
            return
        with self._connected():
            if event.kind == "paused":
                self._session.mark_preempting()
            if event.kind in _ALERTS:
                self._session.alert(title=f"{self._title}: {event.kind}", text=event.text, level=_ALERTS[event.kind], wait_duration=0)

    def analysed(self, name: str, folder: Path) -> None:
        self._folders[name] = folder

    def finished(self, run: Path, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        if self._session is None:
            return
        self._exit = 0
        with self._connected():
            self._log()
            self._log_results(run, pictures(self._folders, figures))
            if self.options.artifact:
                self._log_artifact(run, tables, figures)

    def close(self) -> None:
        if self._session is None:
            return
        with self._connected():
            self._log()
        if self._session is None:
            return
        offline = bool(getattr(self._session, "offline", False)) and not self._disabled
        command = sync_command(self._session)
        try:
            close_session(self._session, self._exit)
        except TimeoutError:
            self.note(f"tracker wandb: not everything was sent in time; `{command}` sends it")
            return
        if offline:
            self.note(f"tracker wandb: offline; `{command}` sends the run")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """Give up where W&B's own process is gone; what it had written is whole up to then."""
        try:
            yield
        except OSError as error:
            session, self._session = self._session, None
            self.note(f"tracker wandb: its process is gone ({error}); `{sync_command(session)}` sends what it had")
            with contextlib.suppress(Exception):
                close_session(session, 1)

    # ---------------------------------------------------------------------------------------------- logging

    def _log(self) -> None:
        """Log the newest aggregates, over the run's own count of cells, which never goes back."""
        if self._session is None or self._latest is None:
            return
        (cells, values), self._latest, self._since = self._latest, None, 0
        if cells < self._step:
            return
        self._step = cells
        new = [k for k in values if k not in self._keys]
        self._keys |= set(new[: KEYS // 2 - len(self._keys)] if len(self._keys) < KEYS // 2 else [])
        self._session.log({"cells": cells, **{k: v for k, v in values.items() if k in self._keys}}, step=cells)

    def _log_results(self, run: Path, figures: Mapping[str, Path]) -> None:
        """Log effects of places as scalars where they are few, effects and pairs as one table, and figures as images."""
        import wandb

        from codi_engine.core.runs.results import open_run

        opened = open_run(run)
        logged: dict[str, Any] = {f"figures/{name}": wandb.Image(str(path)) for name, path in figures.items()}
        if opened.metrics:
            effects = effects_of(opened)
            scalars = scalar_names(effects)
            fits = len(self._keys) + len(scalars) <= KEYS
            if fits:
                self._session.summary.update(scalars)
            else:
                self.note(f"tracker wandb: {len(scalars):,} effects of places are in the table only (more than {KEYS:,} keys)")
            columns, rows, left = effects_rows(effects, ROWS)
            if left:
                self.note(f"tracker wandb: the table holds {len(rows):,} rows; {left:,} rows of single examples are left out (they are in the run)")
            logged["effects"] = wandb.Table(columns=list(columns), data=list(rows), allow_mixed_types=True)
            self._session.summary.update({"table_rows_left_out": left, "effects_as_scalars": fits})
        if logged:
            self._session.log({"cells": self._step, **logged})

    def _log_artifact(self, run: Path, tables: Mapping[str, Path], figures: Mapping[str, Path]) -> None:
        import wandb

        files = result_files(run, self._folders, tables, figures)
        artifact = wandb.Artifact(f"{self._session.id}-results", type="results", metadata={"run": str(run)})
        for name, path in files.items():
            artifact.add_file(str(path.absolute()), name=name, policy="immutable", skip_cache=True)  # no second copy of the files
        if files:
            self._session.log_artifact(artifact)


def sync_command(session: Any) -> str:
    """Return what sends a session's files."""
    folder = Path(str(getattr(session.settings, "sync_dir", None) or FOLDER))
    with contextlib.suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    return f"wandb sync {shlex.quote(str(folder))}"
