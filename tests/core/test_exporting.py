"""Exports are what ``run.cells``, the results and ``run.activations`` say, in every format, in bounded memory."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from codi_engine import Experiment, open_run
from codi_engine.cli.main import main
from codi_engine.core.errors import UserError
from codi_engine.core.runs import exportfiles
from codi_engine.core.runs.exporting import FORMATS, export
from codi_engine.core.runs.results import Run
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    value: dict[str, Any] = {
        "name": "exported", "model": {"plugin": "codi", "checkpoint": "demo", "device": "cpu"}, "data": {"plugin": "demo-pairs", "limit": 4},
        "intervention": {"plugin": "patch", "site": "resid_post", "direction": "denoise"}, "sweep": {"step": [0, [0, 1]], "layer": [1, 2]},
        "metrics": ["kl", "normalized_effect"], "generate": {"max_new_tokens": 4}, "controls": "none", "capture": ["resid_post@latent"],
        "analyses": ["importance"],
    }  # fmt: skip
    return Experiment.from_dict(value).run(tmp_path_factory.mktemp("export") / "run").open()


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return open_run(
        write_synthetic(Synthetic(targets=3, conditions=2, trials=4, features=30, words=5, density=0.2, seed=2), tmp_path_factory.mktemp("s") / "run")
    )


def ordered(run: Run) -> pd.DataFrame:
    """The cells in the order of their slots, with slots."""
    return run.cells.assign(slot=run.slots).sort_values("slot").reset_index(drop=True)


def same(got: pd.DataFrame, want: pd.DataFrame) -> None:
    """Columns by name: numbers to the last bit, words as they are, none where there is none."""
    assert set(want) <= set(got)
    for name in want:
        if want[name].dtype == object or str(want[name].dtype) == "str":
            assert ["" if pd.isna(v) else str(v) for v in got[name]] == ["" if pd.isna(v) else str(v) for v in want[name]], name
        else:
            np.testing.assert_array_equal(
                got[name].astype(float).to_numpy(float, na_value=np.nan), want[name].astype(float).to_numpy(float, na_value=np.nan), name
            )


def read(path: Path) -> pd.DataFrame:
    """Read cells back with the reader that a user of the format would take."""
    kind = path.suffix[1:]
    if kind == "parquet":
        return pd.read_parquet(path)
    if kind == "csv":
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    if kind == "jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
    if kind == "npz":
        with np.load(path) as data:  # without pickle
            return pd.DataFrame({k: data[k] for k in data.files})
    if kind == "pt":
        values = torch.load(path, weights_only=True)
        return pd.DataFrame({k: v if isinstance(v, list) else v.numpy() for k, v in values.items() if k != "about"})
    import xarray as xr

    with xr.open_dataset(path, engine="h5netcdf") as found:
        return found.to_dataframe().reset_index(drop=True)


@pytest.mark.parametrize("kind", FORMATS)
def test_cells_come_back(kind: str, run: Run, tmp_path: Path) -> None:
    ending = "nc" if kind == "netcdf" else kind
    done = export(run, kind, tmp_path / f"cells.{ending}")
    assert [(d.what, d.rows) for d in done] == [("cells", len(run.cells))]
    same(read(done[0].path), ordered(run))


@pytest.mark.parametrize("kind", FORMATS)
def test_results_come_back(kind: str, run: Run, tmp_path: Path) -> None:
    if kind == "netcdf":
        pytest.importorskip("h5netcdf")
    done = export(run, kind, tmp_path / "out", "results/importance")
    assert len(done) == len(run.results["importance"].tables)
    effects = next(d for d in done if d.what == "results/importance/effects")
    assert effects.path.parent == tmp_path / "out" / "results" / "importance"
    same(read(effects.path), run.results["importance"].table("effects"))


def dense(run: Run) -> tuple[np.ndarray, np.ndarray]:
    slots, values = run.store.read("activations/resid_post@latent/value")
    return slots, values


@pytest.mark.parametrize("kind", ["npz", "pt", "netcdf", "parquet", "jsonl", "csv"])
@pytest.mark.parametrize("block", [1, 1 << 25])
def test_activations_come_back(kind: str, block: int, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from codi_engine.core.runs import exportrows

    monkeypatch.setattr(exportrows, "BLOCK", block)
    if kind == "csv" and block == 1:
        pytest.skip("the same code, slowly")
    slots, values = dense(run)
    path = export(run, kind, tmp_path / f"a.{kind}", "activations/resid_post@latent")[0].path
    labels = ordered(run).set_index("slot").loc[slots]
    if kind == "npz":
        with np.load(path) as data:
            got, layer, example = data["value"], data["captured_layer"], data["example"]
            assert data["slot"].tolist() == slots.tolist()
    elif kind == "pt":
        data = torch.load(path, weights_only=True)
        got, layer, example = data["value"].numpy(), data["captured_layer"].numpy(), np.array(data["example"])
        assert data["dims"] == ["cell", "layer", "step", "width"]
    elif kind == "netcdf":
        import xarray as xr

        with xr.open_dataset(path, engine="h5netcdf") as found:
            got, layer, example = found["value"].to_numpy(), found["captured_layer"].to_numpy(), found["example"].to_numpy()
            assert found["value"].dims == ("cell", "captured_layer", "captured_step", "width")
            assert found.attrs["site"] == "resid_post@latent"
    elif kind == "csv":
        frame = pd.read_csv(path, low_memory=False)
        got, layer = frame["value"].to_numpy(np.float32).reshape(values.shape), frame["captured_layer"].unique()
        example = frame["example"].to_numpy().reshape(len(slots), -1)[:, 0]
    else:
        frame = pd.read_parquet(path) if kind == "parquet" else pd.DataFrame([json.loads(v) for v in path.read_text().splitlines()])
        got, example, layer = (
            np.stack(frame["value"].to_list()).astype(np.float32).reshape(values.shape),
            frame["example"].to_numpy(),
            np.arange(values.shape[1]),
        )
    np.testing.assert_array_equal(got, values)
    assert list(layer) == list(range(values.shape[1]))
    assert [str(e) for e in example] == labels["example"].tolist()


@pytest.mark.parametrize("kind", ["npz", "pt", "netcdf", "parquet", "csv", "jsonl"])
def test_codes_come_back_as_their_parts(kind: str, sparse: Run, tmp_path: Path) -> None:
    name = next(a.split("/")[1] for a in sparse.store.arrays if a.startswith("activations/"))
    slots, values = sparse.store.read_codes(f"activations/{name}")
    path = export(sparse, kind, tmp_path / f"a.{kind}", f"activations/{name}")[0].path
    if kind in ("parquet", "csv", "jsonl"):
        frame = read(path)
        row = np.searchsorted(slots, frame["slot"].to_numpy(np.int64))
        column, value = frame["column"].to_numpy(np.int64), frame["value"].to_numpy(float)
    else:
        source: Any = torch.load(path, weights_only=True) if kind == "pt" else np.load(path) if kind == "npz" else None
        if source is None:
            import xarray as xr

            source = xr.open_dataset(path, engine="h5netcdf")
        row, column, value = (np.asarray(source[k]) for k in ("row", "column", "value"))
    got = np.zeros(values.shape, values.dtype)
    got[row, column] = value
    np.testing.assert_array_equal(got, values)


def test_csv_fields_that_look_like_formulas_are_made_harmless(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": ["=1+1", "+x", "-2+1", "@a", "\tb", "\rc", "plain", 'quo"te, and\nline', None], "n": [-1.5, 2, np.nan, 4, 5, 6, 7, 8, 9]})
    exportfiles.write_rows("csv", tmp_path / "a.csv", [frame], frame.iloc[:0])
    data = (tmp_path / "a.csv").read_bytes()
    assert data.startswith(b"text,n\r\n'=1+1,-1.5\r\n'+x,2.0\r\n'-2+1,\r\n'@a,4.0\r\n")
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        back = [row[0] for row in csv.reader(file)][1:]
    assert back == ["'=1+1", "'+x", "'-2+1", "'@a", "'\tb", "'\rc", "plain", 'quo"te, and\nline', ""]
    exportfiles.write_rows("csv", tmp_path / "b.csv", [frame], frame.iloc[:0], raw=True)
    assert (tmp_path / "b.csv").read_bytes().startswith(b"text,n\r\n=1+1,-1.5\r\n")


def test_nothing_is_overwritten_and_nothing_half_written_stays(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "cells.csv"
    target.write_text("mine")
    with pytest.raises(UserError, match="--force"):
        export(run, "csv", target)
    assert target.read_text() == "mine"

    def broken(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exportfiles, "write_rows", broken)
    with pytest.raises(UserError, match="the disk is full; free space"):
        export(run, "csv", target, force=True)
    assert target.read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["cells.csv"]
    monkeypatch.undo()
    assert export(run, "csv", target, force=True)[0].rows == len(run.cells)


@pytest.mark.parametrize(
    ("to", "what", "said"),
    [("cvs", "cells", "did you mean 'csv'"), ("csv", "cell", "did you mean 'cells'"), ("csv", "results/impotance", "did you mean 'importance'"),
     ("npz", "activations/resid_post.1@latent", "part of 'resid_post@latent'"), ("npz", "activations/mlp_out", "were not captured")],
)  # fmt: skip
def test_what_is_not_there_is_refused(to: str, what: str, said: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        export(run, to, tmp_path / "x", what)
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "h5netcdf", None)
    with pytest.raises(UserError, match=r"pip install 'codi-engine\[netcdf\]'"):
        export(run, "netcdf", tmp_path / "x.nc")


def test_the_command(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(run.path), "--to", "jsonl", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == [{"what": "cells", "path": "run-cells.jsonl", "rows": len(run.cells)}]
    assert main(["export", str(run.path), "--to", "npz", "--what", "all", "-o", "out"]) == 0
    assert {"cells.npz", "results", "activations"} == {p.name for p in Path("out").iterdir()}
    assert run.export("csv", "b.csv") == [Path("b.csv")]


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_cells_are_written_in_bounded_memory(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the cells, the same peak (one unit at a time)."""
    monkeypatch.setattr(Synthetic, "unit_cells", property(lambda _: 600))
    peaks = []
    for targets in (40, 160):
        path = write_synthetic(Synthetic(targets=targets, conditions=2, trials=30, features=200, words=40, seed=3), tmp_path / f"run{targets}")
        run = open_run(path)
        len(run.store.slots)
        tracemalloc.start()
        export(run, kind, tmp_path / f"{targets}.{kind}")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.6 * peaks[0], peaks
