"""Finding the experiment that a command is about."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from codi_engine.core.experiment import Experiment


def read_experiment(file: str | None, overrides: Sequence[str]) -> Experiment:
    """Read FILE, or the packaged demo experiment when there is none."""
    from codi_engine.core.experiment import Experiment
    from codi_engine.store.connecting import is_url

    if file is not None and is_url(file):  # the one that lies in a run
        from codi_engine.store.mirror import place

        run, _, name = file.rpartition("/")
        file = str(place(run) / name)
    path = file if file is not None else str(files("codi_engine.plugins").joinpath("demo") / "experiment.yaml")
    return Experiment.from_file(path, overrides)
