"""Reading a run in Python: cells as a pandas frame, metrics and activations with labels."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.planning.controls import control_rows
from codi_engine.core.running.marks import marked_slots
from codi_engine.core.runs.places import no_run
from codi_engine.core.runs.stored import StoredResult, stored_results
from codi_engine.core.sites import parse_site
from codi_engine.core.watching.notes import Note, notes_of
from codi_engine.store.connecting import is_url
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import EXPERIMENT, LEDGER
from codi_engine.store.mirror import place
from codi_engine.store.reader import RunReader
from codi_engine.store.shown import named

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr
    import zarr

    from codi_engine.store.zarrs import RunStore

BASELINE = "baseline"
_FIRST = ("example", "condition", "variant")


def open_run(path: str | Path) -> Run:
    """Open a run: its directory, or its URL at an object store (``s3://bucket/name``).

    Raises
    ------
    UserError: no run there
    """
    try:
        path = place(path)
        return Run(path)
    except StoreError as error:
        from codi_engine.core.planning.checkpoints import runs_below

        if isinstance(path, str) and is_url(path):  # no such address, or nobody answers
            raise UserError(str(error)) from None
        found = [p.name for p in runs_below(Path(path))]
        if found:
            raise UserError(f"{path}: holds the runs {', '.join(found[:6])}{', …' if len(found) > 6 else ''}; open_runs opens all of them") from None
        if not (Path(path) / LEDGER).exists():
            raise no_run(path) from None
        raise UserError(str(error)) from None


class Run:
    """A run on disk. ``cells`` is one row per cell, baselines too; what is read is checked against the ledger."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.store = RunReader(path)

    def __repr__(self) -> str:
        return f"<run '{named(str(self.path))}': {len(self.cells):,} cells, {', '.join(self.metrics) or 'no metrics'}>"

    def _repr_html_(self) -> str:
        from codi_engine.core.runs.notebook import run_html

        return run_html(self)

    @property
    def experiment(self) -> dict[str, Any]:
        """The resolved experiment."""
        from codi_engine.core.yamlfile import parse_yaml

        return dict(parse_yaml(self.store.experiment, str(self.path / EXPERIMENT))[0] or {})  # of this state, not of a later plan

    @property
    def provenance(self) -> dict[str, Any]:
        return self.store.provenance

    @property
    def digest(self) -> str:
        """Identifies what is committed: the hash at the end of the ledger."""
        return self.store.digest

    @property
    def results(self) -> dict[str, StoredResult]:
        """Analysis → what it left: ``run.results["importance"].table("effects")``."""
        return stored_results(self.path)

    @property
    def notes(self) -> list[Note]:
        """Notes made with ``codi-engine note``, oldest first: (time, text)."""
        return notes_of(self.path)

    @cached_property
    def zarr_store(self) -> RunStore:
        """``data.zarr`` as a checked, read-only zarr store: ``xarray.open_zarr(run.zarr_store, group="cells")``."""
        from codi_engine.store.zarrs import RunStore

        return RunStore(self.store)

    @property
    def zarr(self) -> zarr.Group:
        """``data.zarr`` as a zarr group: ``run.zarr["cells/metrics/kl"][:]``; damage raises, slots that no unit wrote hold the fill value."""
        import zarr

        return zarr.open_group(self.zarr_store, mode="r")

    @property
    def axes(self) -> list[str]:
        """Names of the axes, in table order."""
        names = [a.removeprefix("cells/") for a in self.store.arrays if a.startswith("cells/") and a.count("/") == 1]
        found = [n for n in names if n not in ("status", "answer", "nonfinite")]
        order = [*_FIRST, "layer", "step", "position", "head", "donor"]
        return sorted(found, key=lambda n: (order.index(n) if n in order else len(order), n))

    @property
    def metrics(self) -> list[str]:
        return [a.removeprefix("cells/metrics/") for a in self.store.arrays if a.startswith("cells/metrics/")]

    def export(self, to: str, path: str | Path | None = None, what: str = "cells", *, force: bool = False, raw: bool = False) -> list[Path]:
        """Write cells, results or activations for other tools and return the files; see :func:`codi_engine.core.runs.exporting.export`."""
        from codi_engine.core.runs.exporting import export

        return [one.path for one in export(self, to, path, what, force=force, raw=raw)]

    # -------------------------------------------------------------------------------------------- cells

    @cached_property
    def _coded(self) -> pd.DataFrame:
        """Axis codes by slot, in canonical order: baselines first, then by label, whatever order units were made in."""
        import pandas as pd

        frame = pd.DataFrame({name: self._column(f"cells/{name}") for name in self.axes})
        if frame.empty:
            return frame
        ranks = {n: _ranks(self.store.labels(n)) for n in self.axes}
        order = pd.DataFrame({n: [ranks[n].get(c, -1) for c in frame[n]] for n in ("condition", *[a for a in self.axes if a != "condition"])})
        order.insert(0, "edited", frame["condition"].to_numpy() != self._baseline_code)
        return frame.iloc[order.reset_index(drop=True).sort_values(list(order.columns), kind="stable").index]

    @property
    def _baseline_code(self) -> int:
        """The baseline's code; −1 in an imported run that has none."""
        labels = self.store.labels("condition")
        return labels.index(BASELINE) if BASELINE in labels else -1

    def _column(self, name: str) -> pd.Series:
        import pandas as pd

        slots, values = self.store.read(name)
        return pd.Series(values, index=slots)

    @cached_property
    def cells(self) -> pd.DataFrame:
        """One row per cell: axes, metrics, answer, text and the data's own fields; NA where an axis does not apply."""
        import pandas as pd

        coded = self._coded
        out = pd.DataFrame(index=coded.index)
        for name in self.axes:
            column = _decoded(coded[name], self.store.labels(name))
            if name in _FIRST or column.notna().any():
                out[name] = column
        if "variant" in out and set(out["variant"].dropna()) <= {"main"}:
            out = out.drop(columns="variant")
        for metric in self.metrics:
            out[metric] = self._column(f"cells/metrics/{metric}").reindex(coded.index)
        if len(coded):
            out["answer"] = self._column("cells/answer").reindex(coded.index)
            out["nonfinite"] = np.isin(coded.index, self.marked)
            texts = self.store.texts().to_pandas().set_index("slot").reindex(coded.index)
            out[list(texts.columns)] = texts
        return out.reset_index(drop=True)

    @property
    def slots(self) -> np.ndarray:
        """The slot in the store of each row of ``cells``."""
        return self._coded.index.to_numpy(np.int64)

    @cached_property
    def marked(self) -> np.ndarray:
        """The slots of cells that are not finite; their metrics and answers are NaN and their captures are left out."""
        return marked_slots(self.store.committed, self.store.unit_cells)

    @property
    def baseline(self) -> pd.DataFrame:
        """The unedited cells."""
        return self.cells[self.cells["condition"] == BASELINE]

    def to_xarray(self, condition: str | None = None) -> xr.Dataset:
        """Return the edited cells as a dense dataset over the axes that vary, metrics as variables.

        Parameters
        ----------
        condition: which one, where conditions have different axes, or a control (left out otherwise)

        Raises
        ------
        UserError: unknown condition, or conditions of different axes without a choice
        """
        if "condition" not in self.cells:
            raise UserError(f"{self.path}: has no finished cells")
        cells = self.cells[self.cells["condition"] != BASELINE]
        if condition is not None:
            known = list(cells["condition"].unique())
            if condition not in known:
                raise UserError(f"condition '{condition}': {nearest(condition, known)}")
            cells = cells[cells["condition"] == condition]
        else:
            cells = cells[~control_rows(cells["condition"])]
        axes = [a for a in self.axes if a in cells and cells[a].notna().any() and (a == "example" or cells[a].nunique(dropna=False) > 1)]
        if cells[axes].isna().any().any():
            raise UserError(f"conditions have different axes; name one of {', '.join(map(str, cells['condition'].unique()))}")
        if cells.duplicated(axes).any():
            raise UserError("two cells stand at the same point of the axes; name a condition")
        indexed = cells.set_index(axes)[[*self.metrics, "answer"]]
        return indexed.to_xarray()

    def patch_tensor(self, metric: str, dims: Sequence[str] = ("layer", "position"), condition: str | None = None) -> np.ndarray:
        """Return a metric's mean as a plain array ``[layer, position]`` (or other dims), the other axes averaged."""
        data = self.to_xarray(condition)
        if metric not in data:
            raise UserError(f"metric '{metric}': {nearest(metric, [str(v) for v in data])}")
        chosen = ["step" if d == "position" and "position" not in data.dims else d for d in dims]
        missing = [d for d in chosen if d not in data.dims]
        if missing:
            raise UserError(f"the run has no axis '{missing[0]}'; it has {', '.join(map(str, data.dims))}")
        mean = data[metric].mean([d for d in data.dims if d not in chosen])
        return np.asarray(mean.transpose(*chosen))

    # -------------------------------------------------------------------------------------- activations

    def activations(self, site: str, edited: bool = False) -> xr.DataArray:
        """Return captured values of the unedited cells (or of the edited ones): dims cell/example … step, width.

        ``site`` is what the experiment captured, or a part of it: ``resid_post.8@latent[3]`` out of ``resid_post@latent``.
        With ``edited`` the cells' axes are coordinates; those that the capture itself has are called ``edited_layer`` etc.

        Raises
        ------
        UserError: the site was not captured
        """
        import xarray as xr

        name = self.captured(site)
        array = f"activations/{name}/ptr" if self.store.is_sparse(f"activations/{name}") else f"activations/{name}/value"
        slots, values = self.store.read_codes(f"activations/{name}") if array.endswith("/ptr") else self.store.read(array)
        coded = self._coded
        # in an imported run without a baseline nothing tells edited cells apart: all are given
        keep = coded.index[((coded["condition"] != self._baseline_code).to_numpy() == edited) | (self._baseline_code < 0)]
        keep = keep[~np.isin(keep, self.marked)]
        where = {s: i for i, s in enumerate(slots)}
        rows = [where[s] for s in keep if s in where]
        spec = self.store.spec(array)
        frame = self.cells.set_index(coded.index).loc[[s for s in keep if s in where]]
        coords = dict(spec.attrs.get("coords", {}))
        dims = ("cell", *(coords or ("width",))) if array.endswith("/ptr") else spec.dims
        try:
            data = xr.DataArray(values[rows], dims=dims, coords=coords, name=name)
        except ValueError as error:
            raise UserError(
                f"{self.path}: the coordinates of '{name}' do not fit its values ({str(error)[:120]}); get the run again from where it came from"
            ) from None
        named = {a: f"edited_{a}" if a in data.dims else a for a in self.axes}  # where a cell was edited, not what was captured
        axes = {named[a]: ("cell", frame[a].to_numpy()) for a in self.axes if a in frame and frame[a].notna().any()}
        data = data.assign_coords(axes)
        if not edited and frame["example"].is_unique and frame["example"].notna().all():
            data = data.swap_dims(cell="example")
        return self._selected(data, site, name)

    def captured(self, site: str) -> str:
        """Return the name of the captured array that a site is, or is a part of.

        Raises
        ------
        UserError: the site was not captured
        """
        return captured_name(site, list(dict.fromkeys(a.split("/")[1] for a in self.store.arrays if a.startswith("activations/"))))

    def _selected(self, data: xr.DataArray, site: str, name: str) -> xr.DataArray:
        if site == name:
            return data
        wanted, have = parse_site(site), parse_site(name)
        if wanted.layer is not None and have.layer is None and "layer" in data.dims:
            data = data.sel(layer=wanted.layer)
        if wanted.index is not None and have.index != wanted.index:
            place = "step" if "step" in data.dims else "position"
            try:
                data = data.sel({place: list(wanted.index)})
            except KeyError:
                raise UserError(f"activations: {place} {list(wanted.index)} was not captured; there are {data[place].values.tolist()}") from None
        return data


def _remedy(site: str, known: Sequence[str]) -> str:
    return nearest(site, known) if known else f"add capture: [{site}] to the experiment"


def captured_name(site: str, known: Sequence[str]) -> str:
    """Return which of the ``known`` captured arrays a site is, or is a part of.

    Raises
    ------
    UserError: none of them
    """
    if site in known:
        return site
    if not any(_is_site(name) for name in known):
        raise UserError(f"activations of '{site}' were not captured; {_remedy(site, known)}")
    wanted = parse_site(site)
    if str(wanted) in known:
        return str(wanted)
    for name in filter(_is_site, known):
        have = parse_site(name)
        same_phase = wanted.phase is None or have.phase in (None, wanted.phase)
        same_places = have.index is None or set(wanted.index or have.index) <= set(have.index)
        if have.component == wanted.component and have.layer in (None, wanted.layer) and same_places and same_phase:
            return name
    raise UserError(f"activations of '{site}' were not captured; {_remedy(site, known)}")


def _is_site(name: str) -> bool:
    """False for what an import named otherwise."""
    try:
        parse_site(name)
    except UserError:
        return False
    return True


def _ranks(labels: Sequence[Any]) -> dict[int, int]:
    """Code → rank of its label: numbers by value, words in the order in which they were first planned."""
    numeric = all(isinstance(v, (int, float)) for v in labels)
    order = sorted(range(len(labels)), key=lambda i: labels[i]) if numeric else range(len(labels))
    return {code: rank for rank, code in enumerate(order)}


def _decoded(codes: pd.Series, labels: Sequence[Any]) -> pd.Series:
    import pandas as pd

    if len(codes) and codes.max() >= len(labels):
        raise UserError(f"{codes.name}: a cell has the code {codes.max():.0f}, but there are {len(labels)} labels; get the run again from where it came from")
    values = [labels[int(c)] if c >= 0 else None for c in codes]  # NaN where a unit did not write the axis
    if all(isinstance(v, int) and not isinstance(v, bool) for v in labels):
        return pd.Series(pd.array([pd.NA if v is None else v for v in values], dtype="Int64"), index=codes.index)
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in labels):
        return pd.Series(pd.array([np.nan if v is None else float(v) for v in values], dtype="float64"), index=codes.index)
    return pd.Series([None if v is None else str(v) for v in values], index=codes.index, dtype="object")
