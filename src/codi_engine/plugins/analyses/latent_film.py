"""``latent_film``: what each latent says through the model's own unembedding, unedited and edited, state by state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.planning.controls import without_controls
from codi_engine.core.plugin import Analysis, AnalysisResult, Options
from codi_engine.core.runs.results import BASELINE
from codi_engine.plugins.analyses.selection import place_axes

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from codi_engine.core.runs.results import Run
    from codi_engine.core.runs.work import Work
    from codi_engine.plugins.analyses.film_tables import Filmed
    from codi_engine.plugins.analyses.readout import Readout
    from codi_engine.plugins.analyses.states import States

_SITE = "latent_out"
#: cells (× states) that are read at once
_ROWS = 1 << 13


class LatentFilmOptions(Options):
    """``examples``: how many are shown. ``top``: tokens per latent. ``conditions``: which ones (default all).

    ``at``: values of the edits' axes: ``{step: 2}``. ``confidence``: of intervals. ``memory``: GB.
    """

    examples: int = Field(default=12, ge=1)
    top: int = Field(default=5, ge=1, le=100)
    conditions: list[str] | None = Field(default=None, min_length=1)
    at: dict[str, int | float | str] = Field(default_factory=dict)
    confidence: float = Field(default=0.95, gt=0.0, lt=1.0)
    memory: float = Field(default=2.0, gt=0.0)


class LatentFilm(Analysis[LatentFilmOptions]):
    """The latent film: each latent's first tokens through the model's own last norm and unembedding, and what edits do to them.

    ``step`` −1 is c_0, the state at ``bot``; step k is c_{k+1}, the state out of step k. Step k consumes z_k = prj(c_k), so what it
    is given is read one row earlier, at step k − 1. An edit of ``latent_in`` at step k therefore shows from row k on, and an
    edit of ``latent_out`` at step k in row k itself. Needs ``capture: [latent_out]`` and loads the run's model again.
    """

    name = "latent_film"
    Options = LatentFilmOptions

    def analyze(self, runs: Sequence[Run], work: Work) -> AnalysisResult:
        from codi_engine.core.rollout.network import Network
        from codi_engine.core.runs.reload import reload_model
        from codi_engine.plugins.analyses import film_tables
        from codi_engine.plugins.analyses.latent_states import refuse_templates
        from codi_engine.plugins.analyses.readout import Readout, Texts
        from codi_engine.plugins.analyses.states import States

        run, options = runs[0], self.options
        if f"activations/{_SITE}/value" not in run.store.arrays:
            raise UserError(f"{self.name}: {run.path} holds no latents; add capture: [latent_out] and run it again")
        refuse_templates(run, self.name)
        wanted = self._conditions(run)
        base, edited = States(run, _SITE, False, self.name), States(run, _SITE, True, self.name) if wanted else None
        axes = [a for a in place_axes(run) if edited is not None and a in edited.frame and edited.frame[a].notna().any()]
        work.progress.note("loading the model")
        adapter = reload_model(run)
        readout = Readout(Network(adapter), True, options.top, int(options.memory * 1e9) // 2)
        films = [self._read(base, np.flatnonzero(~base.frame.duplicated(film_tables.own_keys(base.frame)).to_numpy()), readout, work)]
        if edited is not None:
            films.append(self._read(edited, self._cells(edited, wanted, axes), readout, work))
        shown = sorted(set(base.frame["example"].astype(str)), key=lambda name: (len(name), name))[: options.examples]
        film, notes = film_tables.film(films, shown, run.axes, Texts(adapter))
        tables = {"film": film}
        if edited is not None:
            tables["changes"] = film_tables.changes(films[0], films[1], axes, options.confidence)
        summary = film_tables.summary(tables, base.frame["example"].nunique(), notes)
        return AnalysisResult(tables, self.draw(tables, {}), summary)

    def draw(self, tables: Mapping[str, pd.DataFrame], about: Mapping[str, Any]) -> dict[str, Figure]:
        """Return the figure ``changes``, where there are edited cells."""
        from codi_engine.plugins.analyses import film_figures

        return film_figures.draw(tables)

    def _conditions(self, run: Run) -> list[str]:
        known = without_controls([str(c) for c in run.cells["condition"].unique() if c != BASELINE])
        for name in self.options.conditions or ():
            if name not in known:
                raise UserError(f"{self.name}: conditions: '{name}' is not in the run; {nearest(name, known)}")
        return self.options.conditions or list(known)

    def _cells(self, states: States, conditions: Sequence[str], axes: Sequence[str]) -> np.ndarray:
        """Return the rows of the edited cells asked for."""
        keep = states.frame["condition"].isin(conditions)
        for axis, value in self.options.at.items():
            if axis not in axes:
                raise UserError(f"{self.name}: at: '{axis}' is no axis of the edits; {nearest(axis, axes)}")
            keep &= (states.frame[axis].astype(str) == str(value)) | states.frame[axis].isna()
        if not keep.any():
            raise UserError(f"{self.name}: at: no edited cell has {', '.join(f'{a} {v}' for a, v in self.options.at.items()) or 'these conditions'}")
        return np.flatnonzero(keep.to_numpy())

    def _read(self, states: States, cells: np.ndarray, readout: Readout, work: Work) -> Filmed:
        """Read cells in pieces: ids and probabilities of the first tokens, cells × states × k."""
        from codi_engine.plugins.analyses.film_tables import Filmed

        steps, ids, probabilities = states.places, [], []
        size = max(_ROWS // len(steps), 1)
        work.progress.start(f"latents of {'edited' if states.frame['condition'].iloc[0] != BASELINE else 'unedited'} cells", len(cells), "cells")
        for start in range(0, len(cells), size):
            some = cells[start : start + size]
            found = readout.first(states.read(some).swapaxes(0, 1).reshape(len(some) * len(steps), -1))
            ids.append(found[0].reshape(len(some), len(steps), -1))
            probabilities.append(found[1].reshape(len(some), len(steps), -1))
            work.progress.advance(len(some))
        work.progress.finish()
        return Filmed(states.frame.iloc[cells].reset_index(drop=True), [int(s) for s in steps], np.concatenate(ids), np.concatenate(probabilities))
