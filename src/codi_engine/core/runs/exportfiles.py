"""The formats of exports: frames written one after the other (Parquet, CSV, JSON lines), and arrays with labels (netCDF, npz, pt)."""

from __future__ import annotations

import csv
import importlib
import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codi_engine.core.errors import UserError
from codi_engine.core.text import marked

if TYPE_CHECKING:
    import pandas as pd

    from codi_engine.core.runs.exportrows import Activations

# -------------------------------------------------------------------------------------------------- rows


def write_rows(kind: str, path: Path, frames: Iterable[pd.DataFrame], empty: pd.DataFrame, raw: bool = False) -> int:
    """Write frames of the same columns, one at a time, as ``parquet``, ``csv`` or ``jsonl``; return the rows.

    Parameters
    ----------
    empty: a frame without rows, whose types hold for all
    raw: leave CSV fields that look like formulas as they are
    """
    if kind == "parquet":
        return _parquet(path, frames, empty)
    return _csv(path, frames, list(empty.columns), raw) if kind == "csv" else _jsonl(path, frames)


def _parquet(path: Path, frames: Iterable[pd.DataFrame], empty: pd.DataFrame) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = pa.Schema.from_pandas(empty, preserve_index=False)
    fields = [pa.field(f.name, pa.string()) if pa.types.is_null(f.type) else f for f in found]
    schema, count = pa.schema(fields, metadata=found.metadata), 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for frame in frames:
            writer.write_table(pa.Table.from_pandas(frame, schema=schema, preserve_index=False))
            count += len(frame)
    return count


def _csv(path: Path, frames: Iterable[pd.DataFrame], columns: Sequence[str], raw: bool) -> int:
    """RFC 4180: UTF-8, comma, CR LF, fields with commas, quotes or line ends quoted; empty where there is no value."""
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow([_field(str(c), raw) for c in columns])
        for frame in frames:
            for row in _rows(frame):
                writer.writerow(["" if v is None else _field(v, raw) for v in row])
            count += len(frame)
    return count


def _field(value: Any, raw: bool) -> Any:
    return marked(value) if isinstance(value, str) and not raw else value


def _jsonl(path: Path, frames: Iterable[pd.DataFrame]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for frame in frames:
            names = [str(c) for c in frame.columns]
            for row in _rows(frame):
                file.write(json.dumps(dict(zip(names, map(_finite, row), strict=True)), ensure_ascii=False, allow_nan=False) + "\n")
            count += len(frame)
    return count


def _finite(value: Any) -> Any:
    """Return what JSON can say: infinite numbers as words."""
    if isinstance(value, list):
        return [_finite(_plain(v)) for v in value]
    return str(value) if isinstance(value, float) and math.isinf(value) else value


def _rows(frame: pd.DataFrame) -> Iterator[tuple[Any, ...]]:
    """Yield rows of plain values; None where there is none."""
    columns = [[_plain(v) for v in frame[c].tolist()] for c in frame.columns]
    return zip(*columns, strict=True)


def _plain(value: Any) -> Any:
    import pandas as pd

    if isinstance(value, (list, np.ndarray)):
        return [_plain(v) for v in value]
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return None
    return value.item() if isinstance(value, np.generic) else value


# ------------------------------------------------------------------------------------------------ arrays


def columns_of(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return column → array without objects: words as fixed-width text (empty: none), whole numbers with gaps as floats with NaN."""
    out = {}
    for name in frame.columns:
        column = frame[name]
        if column.dtype == object or str(column.dtype) in ("string", "str", "category"):
            out[str(name)] = np.array(["" if v is None or v != v else str(v) for v in column], dtype=str)
        elif column.isna().any() or column.dtype == float:
            out[str(name)] = column.astype("float64").to_numpy(np.float64, na_value=np.nan)
        else:
            out[str(name)] = column.to_numpy(bool if str(column.dtype) in ("bool", "boolean") else np.int64)
    return out


def write_columns(kind: str, path: Path, frame: pd.DataFrame, about: Mapping[str, str], dim: str = "row") -> int:
    """Write a frame as ``netcdf``, ``npz`` or ``pt``; return the rows."""
    columns = columns_of(frame)
    if kind == "npz":
        _npz(path, columns)
    elif kind == "pt":
        _pt(path, {**{n: _tensor(v) for n, v in columns.items()}, "about": dict(about)})
    else:
        import xarray as xr

        h5netcdf()
        values = {n: _nc_words(v) if v.dtype.kind == "U" else v.astype(np.int8) if v.dtype == bool else v for n, v in columns.items()}
        data = xr.Dataset({_nc_name(n): (dim, v) for n, v in values.items()}, attrs=dict(about))
        data.to_netcdf(path, engine="h5netcdf")
    return len(frame)


def h5netcdf() -> Any:
    """Return the library that writes netCDF.

    Raises
    ------
    UserError: not installed
    """
    try:
        found = importlib.import_module("h5netcdf")
    except ImportError:
        raise UserError("netCDF needs h5netcdf: pip install 'codi-engine[netcdf]'") from None
    return found


def _nc_name(name: str) -> str:
    return name.replace("/", "_")


def _nc_words(words: np.ndarray) -> np.ndarray:
    """Return words as HDF5 can hold them: what would end its strings (NUL) is shown as ␀."""
    return np.array([str(word).replace("\0", "␀") for word in words], object)


def _npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays one after the other, never pickled, in pieces."""
    import zipfile

    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name.replace('/', '_')}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asanyarray(array), allow_pickle=False)


def _tensor(array: np.ndarray) -> Any:
    """Return a tensor of numbers, or a list of words."""
    import torch

    return array.tolist() if array.dtype.kind == "U" else torch.from_numpy(np.array(array))  # a copy: pandas may give arrays that cannot be written


def _pt(path: Path, values: Mapping[str, Any]) -> None:
    import torch

    torch.save(dict(values), path)


# ------------------------------------------------------------------------------------------- activations


def write_activations(kind: str, path: Path, found: Activations, about: Mapping[str, str], raw: bool = False) -> int:
    """Write a captured array, block by block; return its cells."""
    if kind in ("parquet", "csv", "jsonl"):
        frames = _sparse_frames(found) if found.sparse else _long_frames(found) if kind == "csv" else _listed_frames(found)
        first = next(frames, None)
        if first is None:
            raise UserError(f"activations/{found.name}: no finished cell has any")
        write_rows(kind, path, _after(first, frames), first.iloc[: 1 if kind == "parquet" else 0], raw)
        return found.count
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export-") as folder:
        spools = _spooled(found, Path(folder))
        labels = _labels(found)
        if kind == "npz":
            _npz(path, {**{n: s.array() for n, s in spools.items()}, **labels, "shape": np.array([found.count, *found.shape])})
        elif kind == "pt":
            tensors = {n: s.tensor() for n, s in spools.items()}
            words = {n: _tensor(v) for n, v in labels.items()}
            _pt(path, {**tensors, **words, "dims": ["cell", *found.dims], "shape": [found.count, *found.shape], "about": dict(about)})
        else:
            _netcdf(path, found, spools, labels, about)
    return found.count


def _after(first: pd.DataFrame, rest: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    yield first
    yield from rest


def _names(found: Activations, dim: str) -> str:
    """Return what a dimension of the values is called beside the cells' own axes, as ``Run.activations`` does."""
    return dim if dim not in found.cells.axes else f"captured_{dim}"


def _sparse_frames(found: Activations) -> Iterator[pd.DataFrame]:
    """Yield one row per value that is not zero: the cell's labels, the feature's number (and label), the value."""
    import pandas as pd

    dim = found.dims[-1]
    words = np.array(found.coords[dim], object) if dim in found.coords else None
    for block in found.blocks():
        assert block.codes is not None
        row, column, value = block.codes
        frame = block.cells.iloc[row].reset_index(drop=True)
        named = {} if words is None else {_names(found, dim): [str(w) for w in words[column]]}
        yield pd.concat([frame, pd.DataFrame({"column": column, **named, "value": value.astype(float)})], axis=1)


def _long_frames(found: Activations) -> Iterator[pd.DataFrame]:
    """Yield one row per value: the cell's labels, the value's place, the value."""
    import pandas as pd

    places = [found.coords.get(d, list(range(n))) for d, n in zip(found.dims, found.shape, strict=True)]
    grid = np.indices(found.shape).reshape(len(found.shape), -1)
    per = max(grid.shape[1], 1)
    step = max(200_000 // per, 1)
    for block in found.blocks():
        assert block.values is not None
        for first in range(0, len(block.cells), step):
            values = block.values[first : first + step]
            frame = block.cells.iloc[np.repeat(np.arange(first, first + len(values)), per)].reset_index(drop=True)
            where = {_names(found, d): np.tile(np.array(p, object)[g], len(values)) for d, p, g in zip(found.dims, places, grid, strict=True)}
            yield pd.concat([frame, pd.DataFrame({**where, "value": values.reshape(-1).astype(float)})], axis=1)


def _listed_frames(found: Activations) -> Iterator[pd.DataFrame]:
    """Yield one row per cell: its labels, and its values as one list, the last dimension fastest."""
    import pandas as pd

    for block in found.blocks():
        assert block.values is not None
        frame = block.cells.copy()
        frame["value"] = pd.Series(block.values.reshape(len(frame), -1).astype(float).tolist(), index=frame.index, dtype=object)
        yield frame


class _Spool:
    """An array that grows on disk: numbers are appended, then seen as one memory map."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...] = ()) -> None:
        self.path, self.dtype, self._shape, self.count = path, dtype, shape, 0

    def add(self, values: np.ndarray) -> None:
        with self.path.open("ab") as file:
            np.ascontiguousarray(values, self.dtype).tofile(file)
        self.count += len(values)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.count, *self._shape)

    def array(self) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", shape=self.shape) if self.count else np.zeros(self.shape, self.dtype)

    def tensor(self) -> Any:
        import torch

        kind = torch.from_numpy(np.zeros(0, self.dtype)).dtype
        if not self.count:
            return torch.zeros(self.shape, dtype=kind)
        size = int(np.prod(self.shape))
        return torch.from_file(str(self.path), shared=False, size=size, dtype=kind).reshape(self.shape)


def _spooled(found: Activations, folder: Path) -> dict[str, _Spool]:
    """Return the values on disk: ``value``, or ``row``, ``column``, ``value`` of sparse codes."""
    if not found.sparse:
        spool = _Spool(folder / "value", found.dtype, found.shape)
        for block in found.blocks():
            assert block.values is not None
            spool.add(block.values)
        return {"value": spool}
    spools = {n: _Spool(folder / n, np.dtype(t)) for n, t in (("row", np.int64), ("column", np.int64), ("value", found.dtype))}
    first = 0
    for block in found.blocks():
        assert block.codes is not None
        for spool, values in zip(spools.values(), (block.codes[0] + first, block.codes[1], block.codes[2]), strict=True):
            spool.add(values)
        first += len(block.cells)
    return spools


def _labels(found: Activations) -> dict[str, np.ndarray]:
    """Return the labels of the cells and of the values' dimensions as arrays."""
    import pandas as pd

    size = found.run.store.unit_cells
    units = np.unique(found.slots // size).tolist()
    frames = [found.cells.frame(u, found.slots[found.slots // size == u])[found.labels()] for u in units]
    out = columns_of(pd.concat(frames, ignore_index=True))
    for dim, words in found.coords.items():
        out[_names(found, dim)] = np.array(words) if all(isinstance(w, (int, float)) for w in words) else np.array([str(w) for w in words])
    return out


def _netcdf(path: Path, found: Activations, spools: Mapping[str, _Spool], labels: Mapping[str, np.ndarray], about: Mapping[str, str]) -> None:
    """Write variables with named dimensions; values in pieces."""
    library = h5netcdf()
    import h5py

    dims = {"cell": found.count, **{_names(found, d): n for d, n in zip(found.dims, found.shape, strict=True)}}
    if found.sparse:
        dims["entry"] = spools["value"].count
    with library.File(path, "w") as file:
        file.dimensions = dims
        file.attrs.update({**about, "site": found.name})
        for name, values in labels.items():
            kind = h5py.string_dtype() if values.dtype.kind == "U" else values.dtype
            variable = file.create_variable(name, (name if name in dims else "cell",), kind)
            variable[...] = _nc_words(values) if values.dtype.kind == "U" else values
        for name, spool in spools.items():
            wide = np.dtype("float32") if spool.dtype == np.float16 else spool.dtype  # netCDF knows no half precision
            over = ("entry",) if found.sparse else tuple(dims)
            variable = file.create_variable(name, over, wide)
            values, step = spool.array(), max((32 << 20) // max(int(np.prod(spool.shape[1:])) * wide.itemsize, 1), 1)
            for first in range(0, spool.count, step):
                variable[first : first + step] = values[first : first + step]
