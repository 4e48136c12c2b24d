"""Captured hidden states of edited cells beside their unedited ones, and distances between them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from codi_engine.core.errors import UserError, nearest

if TYPE_CHECKING:
    import xarray as xr

    from codi_engine.core.runs.results import Run

#: cells whose states are held in double precision at once
_CHUNK = 128


@dataclass(frozen=True)
class States:
    """States of edited cells.

    Attributes
    ----------
    site: what was captured
    cells: one row per edited cell: example, condition, variant, the edit's axes
    edited: cells × layers × steps × width; one layer named None where the site has none
    unedited: (example, variant) → layers × steps × width; variant is ``main`` where there are no pairs
    steps: labels of the captured steps; −1 is the state at ``bot``
    """

    site: str
    cells: pd.DataFrame
    edited: np.ndarray
    unedited: dict[tuple[str, str], np.ndarray]
    layers: list[int | None]
    steps: list[int]

    def base(self, rows: Sequence[int], variant: str | None = None) -> np.ndarray:
        """Return the unedited states of rows' own prompts, or of a variant of their examples."""
        examples, own = self.cells["example"].to_numpy(), self.cells["variant"].to_numpy()
        return np.stack([self.unedited[str(examples[i]), variant or str(own[i])] for i in rows])


def read_states(run: Run, site: str | None, who: str) -> States:
    """Read the captured states of edited and unedited cells.

    Raises
    ------
    UserError: nothing (or not this) was captured at latent steps, or edited cells lack it
    """
    name = site or _default_site(run, who)
    edited, base = run.activations(name, edited=True), run.activations(name)
    if "step" not in edited.dims:
        raise UserError(f"{who}: site: '{name}' was not captured at latent steps; choose one such as latent_out or resid_post@latent")
    if not edited.sizes["cell"]:
        raise UserError(f"{who}: the run has no edited cells with captured '{name}'")
    cells = _axes(edited, run)
    values, others = _ordered(edited), _ordered(base.rename(example="cell") if "example" in base.dims else base)
    refuse_templates(run, who)
    unedited: dict[tuple[str, str], np.ndarray] = {}
    for row, (example, variant) in enumerate(zip(*_own(base, len(others)), strict=True)):
        unedited.setdefault((str(example), str(variant)), others[row])
    lacking = [e for e, v in zip(cells["example"], cells["variant"], strict=True) if (str(e), str(v)) not in unedited]
    if lacking:
        raise UserError(f"{who}: example '{lacking[0]}' has no unedited states of '{name}'; repeat the run to complete it")
    layers: list[int | None] = [int(v) for v in edited["layer"].values] if "layer" in edited.dims else [None]
    return States(name, cells, values, unedited, layers, [int(v) for v in edited["step"].values])


def refuse_templates(run: Run, who: str) -> None:
    """Refuse runs in which an example has several unedited prompts: which one a state belongs to is not known."""
    base = run.baseline
    if base.duplicated([k for k in ("example", "variant", "trial") if k in base]).any():
        raise UserError(f"{who}: the run has several unedited prompts per example (prompt templates); analyse a run without them")


def _default_site(run: Run, who: str) -> str:
    known = [a.split("/")[1] for a in run.store.arrays if a.startswith("activations/")]
    if "latent_out" in known:
        return "latent_out"
    dense = [n for n in known if not run.store.is_sparse(f"activations/{n}")]
    at_steps = [n for n in dense if "step" in run.store.spec(f"activations/{n}/value").dims]
    if not at_steps:
        raise UserError(f"{who}: no states of latent steps were captured; add capture: [latent_out] to the experiment")
    if len(at_steps) > 1:
        raise UserError(f"{who}: several sites were captured: {', '.join(at_steps)}; choose one with site ({nearest('latent_out', at_steps)})")
    return at_steps[0]


def _axes(data: xr.DataArray, run: Run) -> pd.DataFrame:
    """Return the cells' axes under their own names, whatever the capture's dimensions are called."""
    frame = pd.DataFrame(index=range(data.sizes["cell"]))
    for axis in run.axes:
        name = f"edited_{axis}" if f"edited_{axis}" in data.coords else axis
        if name in data.coords and data.coords[name].dims == ("cell",):
            frame[axis] = data.coords[name].values
    return frame if "variant" in frame else frame.assign(variant="main")


def _own(base: xr.DataArray, count: int) -> tuple[Any, Any]:
    variants = base["variant"].values if "variant" in base.coords else ["main"] * count
    return base["example"].values, variants


def _ordered(data: xr.DataArray) -> np.ndarray:
    """Return cells × layers × steps × width."""
    if "layer" not in data.dims:
        return np.asarray(data.transpose("cell", "step", "width").values)[:, None]
    return np.asarray(data.transpose("cell", "layer", "step", "width").values)


def chunks(rows: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield rows in pieces that fit."""
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return ‖a − b‖ / ‖b‖ along the last axis in float64; exactly 0 for equal states, NaN where only b is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    gap, size = np.linalg.norm(a - b, axis=-1), np.linalg.norm(b, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = gap / size
    return np.where(gap == 0, 0.0, np.where(size == 0, np.nan, out))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the cosine along the last axis in float64; 1 for equal states, NaN where just one is zero."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    size = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        out = np.clip((a * b).sum(-1) / size, -1.0, 1.0)
    return np.where((a == b).all(-1), 1.0, np.where(size == 0, np.nan, out))
