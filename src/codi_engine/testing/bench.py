"""An intervention in the engine: a small run on the packaged demo model that keeps what the intervention was given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codi_engine import Experiment
from codi_engine.core.plugin import Intervention, Rows
from codi_engine.core.running.run import run_experiment
from codi_engine.testing.suite import offered


@dataclass
class Bench:
    """What a tiny sweep gave: the prepared instance with the rows it saw, the cells, or what stopped it."""

    seen: list[tuple[Intervention[Any], Rows]] = field(default_factory=list)
    others: list[tuple[Intervention[Any], Rows]] = field(default_factory=list)
    ends_latents: bool = False
    cells: pd.DataFrame | None = None
    error: Exception | None = None

    @property
    def call(self) -> tuple[Intervention[Any], Rows]:
        """Return the instance and the rows of its fullest call."""
        if not self.seen and self.error is None and self.ends_latents:
            pytest.skip("it ends the latent loop: the engine never calls apply")
        if not self.seen:
            raise self.error or AssertionError("the engine never called apply: no cell is edited at this site")
        return max(self.seen, key=lambda c: len(c[1].values))


def sweep(plugin: type[Intervention[Any]], setting: Mapping[str, Any], keys: Mapping[str, Any], batch_size: int | str = "auto") -> Bench:
    """Run a few cells of an intervention, gate included, and keep its calls.

    Parameters
    ----------
    setting: its options
    keys: of the experiment, over the demo model's; ``intervention`` holds the address
    """
    bench = Bench(ends_latents=plugin.ends_latents)
    real = plugin.apply
    wanted = plugin.Options.model_validate(dict(setting))

    def recording(self: Intervention[Any], rows: Rows) -> torch.Tensor:
        (bench.seen if self.options == wanted else bench.others).append((self, kept(rows)))
        return real(self, rows)

    with offered("intervention", plugin) as name, tempfile.TemporaryDirectory() as folder:
        address = dict(keys.get("intervention", {}))
        value = {**keys, "intervention": {"plugin": name, **address, **setting}, "batch_size": batch_size}
        plugin.apply = recording  # type: ignore[method-assign]
        try:
            bench.cells = run_experiment(Experiment.from_dict(value), Path(folder) / "run").open().cells
        except Exception as error:  # told by the test that asks for the whole sweep
            bench.error = error
        finally:
            plugin.apply = real  # type: ignore[method-assign]
    return bench


def kept(rows: Rows) -> Rows:
    """Return a copy of rows that nothing else holds, draws included."""
    draws = rows.draws().clone() if rows.draws is not None else torch.zeros_like(rows.values)
    source = None if rows.source is None else rows.source.clone()
    scale = None if rows.scale is None else rows.scale.clone()
    return replace(rows, values=rows.values.clone(), draws=Draws(draws), source=source, scale=scale)


@dataclass
class Draws:
    """Standard normal values that belong to rows; counts how often they were asked for."""

    values: torch.Tensor
    asked: int = 0

    def __call__(self) -> torch.Tensor:
        self.asked += 1
        return self.values.clone()


def chosen(rows: Rows, index: Sequence[int], values: torch.Tensor | None = None) -> Rows:
    """Return some rows, in any order and any number of times; ``values`` (of all rows) stand for the recorded ones."""
    at = torch.tensor(list(index), dtype=torch.long, device=rows.values.device)
    take: Callable[[torch.Tensor | None], torch.Tensor | None] = lambda t: None if t is None else t[at].clone()  # noqa: E731
    new = take(rows.values if values is None else values)
    assert new is not None
    labels = {axis: np.asarray(v)[list(index)] for axis, v in rows.labels.items()}
    return replace(rows, values=new, labels=labels, source=take(rows.source), scale=take(rows.scale), draws=Draws(rows.draws.values[at]))
