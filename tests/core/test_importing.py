"""Imports read as a naive reader would: every format, joins by labels, bad input, resuming, bounded memory."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from codi_engine import open_run
from codi_engine.core.errors import DifferentRun, UserError
from codi_engine.core.imports import foreign_records, importing
from codi_engine.core.imports.foreign_records import Record, RecordFile, RecordPath
from codi_engine.core.imports.importing import import_files
from codi_engine.store.writer import RunWriter
from tests.support.imports import STATES, VALUES, imported, lines, peak, refused

DATA = Path(__file__).parents[2].parent / "shared" / "data"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ------------------------------------------------------------------------------------------------ array formats


def _npz(path: Path, value: np.ndarray) -> None:
    np.savez(path, states=value)


def _packed(path: Path, value: np.ndarray) -> None:
    np.savez_compressed(path, states=value)


def _fortran(path: Path, value: np.ndarray) -> None:
    np.savez_compressed(path, states=np.asfortranarray(value))


def _h5(path: Path, value: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("states", data=value, chunks=True, compression="gzip")


def _pt(path: Path, value: np.ndarray) -> None:
    torch.save({"states": torch.from_numpy(value), "n": 3}, path)


FORMATS: dict[str, tuple[str, Callable[[Path, np.ndarray], None]]] = {
    "npz": ("a.npz", _npz),
    "npz-deflated": ("a.npz", _packed),
    "npz-fortran": ("a.npz", _fortran),
    "h5": ("a.h5", _h5),
    "hdf5": ("a.hdf5", _h5),
    "safetensors": ("a.safetensors", lambda path, value: save_file({"states": value}, path)),
    "pt": ("a.pt", _pt),
    "pth": ("a.pth", _pt),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_array_format(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "SHARD", 2 * VALUES[0].nbytes)
    file, write = FORMATS[name]
    write(here / file, VALUES)
    run, done = imported([file], STATES)
    found = run.activations("latent_out")
    assert found.dims == ("example", "step", "width")
    assert found.values.tobytes() == VALUES.tobytes()
    assert found["example"].values.tolist() == list(range(7))
    assert done.cells == done.new_cells == 7
    assert run.store.units == 4
    assert run.provenance["imported"] is True
    assert run.provenance["files"][0]["size"] == (here / file).stat().st_size
    assert run.experiment["imported"]["map"] == {"activations/latent_out": "states[example ; step, width]"}


@pytest.mark.parametrize("name", FORMATS)
def test_rows_in_another_order_than_on_disk(here: Path, name: str) -> None:
    """Cells are ordered by condition, the file by example: every format is read out of order."""
    file, write = FORMATS[name]
    write(here / file, VALUES)
    run, _ = imported([file], "activations/x=states[example, condition ; width]")
    slots, values = run.store.read("activations/x/value")
    assert np.array_equal(values, VALUES.transpose(1, 0, 2).reshape(21, 4))
    assert run.store.codes("condition").tolist() == np.repeat([0, 1, 2], 7).tolist()
    assert slots.tolist() == list(range(21))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float16", ">f4", "float64", "int8", "uint16", "int64", "bool"])
def test_npy_of_any_type(here: Path, dtype: str, order: Any) -> None:
    value = (VALUES * 3).astype(dtype, order=order)
    np.save("a.npy", value)
    run, _ = imported(["a.npy"], "activations/x=.[example, step ; width]")
    found = run.activations("x")
    assert found.dtype.kind == "f"
    assert np.array_equal(found.values.reshape(7, 3, 4), value.astype(np.float64))


def test_the_last_dimension_is_the_value_without_a_semicolon(here: Path) -> None:
    np.save("a.npy", VALUES)
    run, _ = imported(["a.npy"], "activations/x=.[example, layer, width]")
    assert run.store.spec("activations/x/value").dims == ("cell", "width")
    assert run.axes == ["example", "condition", "layer"]


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_bfloat16_becomes_float32(here: Path, suffix: str) -> None:
    value = torch.from_numpy(VALUES).to(torch.bfloat16)
    if suffix == "pt":
        torch.save(value, "a.pt")
    else:
        save_torch({"states": value}, "a.safetensors")
    run, _ = imported([f"a.{suffix}"], "activations/x=.[example ; step, width]")
    assert np.array_equal(run.activations("x").values, value.float().numpy())
    assert run.activations("x").dtype == np.float32


def test_nested_tensors_with_placeholders(here: Path) -> None:
    tree = {"clean": {i: {layer: torch.full((2,), 10.0 * i + layer) for layer in (0, 8)} for i in (3, 11)}}
    torch.save(tree, "a.pt")
    run, _ = imported(["a.pt"], "activations/resid_post@latent[0]=clean/{example}/{layer}[; width]")
    cells = run.cells
    assert list(zip(cells["example"], cells["layer"], strict=True)) == [(3, 0), (3, 8), (11, 0), (11, 8)]
    assert run.activations("resid_post@latent[0]").values[:, 0].tolist() == [30, 38, 110, 118]


# ------------------------------------------------------------------------------------------- labels and joining


def test_labels_metrics_and_records_are_joined(here: Path) -> None:
    np.savez("a.npz", states=VALUES, ids=np.array([40, 3, 7, 9, 100, 2, 5]), names=np.array(["w", "x", "y", "z"]), kl=np.arange(7.0))
    lines("meta.jsonl", [{"idx": i, "question": f"q{i}", "n": i} for i in (3, 40, 7, 8)])
    run, done = imported(
        ["a.npz", "meta.jsonl"], STATES, "example=ids", "example=idx", "width=names", "metrics/kl=kl[example]", "fields/question=question", "fields/n=n"
    )  # fmt: skip
    cells = run.cells.set_index("example")
    assert cells.index.tolist() == [2, 3, 5, 7, 8, 9, 40, 100]
    assert cells["kl"].to_dict() == pytest.approx({2: 5, 3: 1, 5: 6, 7: 2, 8: np.nan, 9: 3, 40: 0, 100: 4}, nan_ok=True)
    assert cells["question"].dropna().to_dict() == {3: "q3", 40: "q40", 7: "q7", 8: "q8"}
    found = run.activations("latent_out")
    assert found["width"].values.tolist() == ["w", "x", "y", "z"]
    assert np.array_equal(found.sel(example=40).values, VALUES[0])
    assert np.isnan(found.sel(example=8).values).all()
    assert done.notes == ["1 of 8 cells have no activations/latent_out", "4 of 8 cells have no fields/n", "4 of 8 cells have no fields/question",
                          "1 of 8 cells have no metrics/kl"]  # fmt: skip


def test_file_names_bind_axes(here: Path) -> None:
    Path("cache").mkdir()
    targets = ["L10-3", "L2-7"]
    for number, target in enumerate(targets):
        np.savez_compressed(f"cache/{target}.npz", acts=VALUES + number, conditions=np.array(["safe", "baseline", "risky"]))
    Path("cache/readme.txt").write_text("not read", encoding="utf-8")
    run, done = imported(["cache/{target}.npz"], "activations/sae=acts[trial, condition ; feature]", "condition=conditions")
    assert done.name == "cache"
    assert done.axes == {"target": 2, "condition": 3, "trial": 7}
    assert list(run.store.labels("target")) == targets
    assert list(run.store.labels("condition")) == ["baseline", "safe", "risky"]
    _, values = run.store.read("activations/sae/value")
    expected = np.concatenate([(VALUES + n)[:, [1, 0, 2]].transpose(1, 0, 2).reshape(21, 4) for n in range(2)])
    assert np.array_equal(values, expected.astype(np.float32))
    assert run.activations("sae").sizes == {"cell": 14, "feature": 4}  # the baseline
    assert run.activations("sae", edited=True).sizes == {"cell": 28, "feature": 4}


def test_columns_of_fewer_axes_hold_for_every_cell(here: Path) -> None:
    np.savez("a.npz", acc=np.arange(6.0).reshape(2, 3), gold=np.array([5, 6, 7]))
    run, _ = imported(["a.npz"], "metrics/acc=acc[condition, example]", "fields/gold=gold[example]", 'condition=["safe", "risky"]')
    assert run.cells["gold"].tolist() == [5, 6, 7] * 2
    assert run.to_xarray()["acc"].sel(condition="risky").values.tolist() == [3, 4, 5]


def test_text_arrays(here: Path) -> None:
    texts = np.array([["a", "bb"], ["", "Größe"]])
    with h5py.File("a.h5", "w") as file:
        file["out/text"] = texts.astype(object)
    run, _ = imported(["a.h5"], "text=out/text[example, trial]")
    assert run.store.texts()["text"].to_pylist() == ["a", "bb", "", "Größe"]
    np.savez("b.npz", text=texts, raw=np.char.encode(texts, "utf-8"))
    run, _ = imported(["b.npz"], "text=text[example, trial]", "fields/raw=raw[example, trial]", output="b")
    assert run.cells["raw"].tolist() == run.cells["text"].tolist() == ["a", "bb", "", "Größe"]


def test_a_source_of_labels_in_arrays_may_be_another_thing_in_records(here: Path) -> None:
    np.savez("a.npz", a=np.arange(6.0).reshape(2, 3), names=np.array(["u", "v"]))
    lines("a.jsonl", [{"names": ["q"], "cond": c, "gold": g} for g, c in enumerate("vu")])
    mapping = {"activations/x": "a[condition ; width]", "metrics/gold": "gold"}
    done = import_files(["a.npz", "a.jsonl"], ["condition=names", "condition=cond", *(f"{k}={v}" for k, v in mapping.items())], output="run")
    assert open_run(done.path).cells["gold"].tolist() == [1, 0]
    assert import_files(["a.npz"], {"activations/x": "a[condition ; width]", "condition": ["b", "c"]}, output="mapping").axes == {"condition": 2}


def test_labels_and_fields_of_any_size_and_text(here: Path) -> None:
    lines("a.jsonl", [{"x": 2**80, "e": 2**80}, {"x": 1, "e": "\ud800"}, {"x": True, "e": 1.5}])
    run, _ = imported(["a.jsonl"], "fields/x=x", "example=e")
    assert run.cells["example"].tolist() == [str(2**80), "?", "1.5"]
    assert run.cells["x"].tolist() == [str(2**80), "1", "True"]


def test_no_axis_at_all(here: Path) -> None:
    np.savez("a.npz", v=np.arange(4.0))
    run, done = imported(["a.npz"], "activations/x=v[; width]")
    assert done.cells == 1
    assert run.activations("x").values.tolist() == [[0, 1, 2, 3]]


def test_xarray_opens_the_run(here: Path) -> None:
    np.savez("a.npz", states=VALUES)
    run, _ = imported(["a.npz"], STATES)
    data = xr.open_zarr(run.path / "data.zarr", group="activations/latent_out", consolidated=False)
    assert np.array_equal(data["value"].values, VALUES)


# --------------------------------------------------------------------------------------------- record formats

LOG = [
    {"id": "e1", "cond": "safe", "trial": t, "response": f"Bet {t}\n\"ok\", é", "bet": None if t == 1 else t * 1.5, "deep": {"n": t}}
    for t in range(4)
]  # fmt: skip
LOG_MAP = ["text=response", "condition=cond", "example=id", "trial=trial", "metrics/bet=bet", "fields/n=deep.n"]


def _jsonl(path: Path) -> None:
    path.write_text("\ufeff" + "\n\n".join(json.dumps(r, ensure_ascii=False) for r in LOG), encoding="utf-8")


def _json(path: Path) -> None:
    path.write_text(json.dumps(LOG, ensure_ascii=False, indent=1), encoding="utf-8")


def _csv(path: Path) -> None:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(["id", "cond", "trial", "response", "bet", "deep.n"])
    writer.writerows([r["id"], r["cond"], r["trial"], r["response"], r["bet"], r["deep"]["n"]] for r in LOG)  # type: ignore[index]
    path.write_bytes(b"\xef\xbb\xbf" + out.getvalue().encode())


@pytest.mark.parametrize(("name", "write"), [("a.jsonl", _jsonl), ("a.ndjson", _jsonl), ("a.json", _json), ("a.csv", _csv)])
def test_every_record_format(here: Path, name: str, write: Callable[[Path], None]) -> None:
    write(here / name)
    run, done = imported([name], *LOG_MAP)
    cells = run.cells
    assert cells["text"].tolist() == [r["response"] for r in LOG]
    assert cells["bet"].tolist() == pytest.approx([0, np.nan, 3, 4.5], nan_ok=True)
    assert cells["n"].tolist() == cells["trial"].tolist() == [0, 1, 2, 3]
    assert cells["n"].dtype == np.int64
    assert set(cells["example"]) == {"e1"}
    assert done.notes == ["1 of 4 cells have no metrics/bet"]
    assert len(run.baseline) == 0


def test_a_table_of_json_objects_and_lists(here: Path) -> None:
    results = {f"CT{k}": {"problems": [{"acc": 0.1 * k + i} for i in range(3)]} for k in range(2)}
    Path("a.json").write_text(json.dumps({"meta": 1, "results": results}), encoding="utf-8")
    run, done = imported(["a.json"], "metrics/acc=results.{step}.problems.{example}.acc")
    assert done.axes == {"example": 3, "step": 2}
    assert run.to_xarray()["acc"].values == pytest.approx(np.array([[0, 0.1], [1, 1.1], [2, 2.1]]))


def test_vectors_of_records(here: Path) -> None:
    lines("a.jsonl", [{"t": 0, "f": {"L1-12": 0.5, "L2-3": 1}, "v": [1, 2]}, {"t": 1, "f": {"L9-9": 2.0}, "v": [3, 4]}])
    run, _ = imported(["a.jsonl"], "trial=t", "activations/sae=f.{feature}", "activations/v=v", "activations/w=v[; step]")
    sae = run.activations("sae")
    assert sae["feature"].values.tolist() == ["L1-12", "L2-3", "L9-9"]
    assert np.array_equal(sae.values, [[0.5, 1, np.nan], [np.nan, np.nan, 2]], equal_nan=True)
    assert run.activations("v").values.tolist() == [[1, 2], [3, 4]]
    assert run.activations("w").dims == ("cell", "step")
    assert "example" not in run.activations("v").coords


def test_several_logs_are_numbered_through(here: Path) -> None:
    lines("a.jsonl", [{"x": 1}, {"x": 2}])
    lines("b.jsonl", [{"x": 3}])
    run, _ = imported(["*.jsonl"], "metrics/x=x")
    assert run.cells[["example", "x"]].to_numpy().tolist() == [[0, 1], [1, 2], [2, 3]]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)


@given(records=st.lists(JSON, max_size=6), block=st.integers(1, 40), indent=st.sampled_from([None, 1]), plain=st.booleans())
@settings(deadline=None, max_examples=150)
def test_a_list_is_read_alike_whatever_the_block(
    tmp_path_factory: pytest.TempPathFactory, records: list[Any], block: int, indent: int | None, plain: bool
) -> None:
    """Elements and their places in the file do not depend on where blocks end."""
    path = tmp_path_factory.mktemp("json") / "a.json"
    path.write_text(json.dumps(records, indent=indent, ensure_ascii=not plain), encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreign_records, "BLOCK", block)
        reader = RecordFile(path)
        found: list[Record] = list(reader.scan())
    assert [r.value for r in found] == records
    with path.open("rb") as stream:
        assert [reader.read(stream, r.offset, r.length) for r in reversed(found)] == records[::-1]


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_records_in_any_order_give_the_same_cells(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """What a cell says depends on its labels alone, not on the order of the log or on the size of units."""
    points = data.draw(st.sets(st.tuples(st.integers(0, 5), st.sampled_from(["baseline", "a", "b"]), st.integers(-2, 12)), min_size=1, max_size=20))
    order = data.draw(st.permutations(sorted(points)))
    size = data.draw(st.integers(1, 7))
    folder = tmp_path_factory.mktemp("log")
    path = lines(folder / "a.jsonl", [{"e": e, "c": c, "t": t, "x": hash((e, t)) % 97, "r": f"{e}{c}{t}"} for e, c, t in order])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "MOST_CELLS", size)
        done = import_files([path], ["example=e", "condition=c", "trial=t", "metrics/x=x", "text=r"], output=folder / "run")
    cells = open_run(done.path).cells
    assert sorted(zip(cells["example"], cells["condition"], cells["trial"], strict=True)) == sorted(points)
    assert (cells["text"] == cells["example"].astype(str) + cells["condition"] + cells["trial"].astype(str)).all()
    assert cells["x"].tolist() == [hash((e, t)) % 97 for e, t in zip(cells["example"], cells["trial"], strict=True)]
    store = open_run(done.path).store
    numbers = [np.array([store.labels(a)[c] for c in store.codes(a)]) for a in ("example", "trial")]
    assert np.array_equal(np.lexsort((numbers[1], numbers[0], store.codes("condition"))), np.arange(len(points)))


@given(text=st.lists(st.text("ab{}.", max_size=6), min_size=1, max_size=4))
def test_paths_without_placeholders_find_what_indexing_finds(text: list[str]) -> None:
    keys = [t.replace("{", "").replace("}", "").replace(".", "") or "k" for t in text]
    record: Any = 7
    for key in reversed(keys):
        record = {key: record}
    assert RecordPath(".".join(keys)).find(record) == [((), 7)]


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_arrays_are_joined_as_dictionaries_would_be(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever the order of an array's axes and the labels it has, a cell's value is the one with its labels."""
    folder = tmp_path_factory.mktemp("arrays")
    axes, expected, mapping = ["condition", "example", "trial"], [], []
    for number in range(2):
        order = data.draw(st.permutations(axes))
        labels = {a: data.draw(st.lists(st.integers(-3, 6), min_size=1, max_size=4, unique=True)) for a in axes}
        values = np.arange(np.prod([len(labels[a]) for a in order]), dtype=np.float64).reshape([len(labels[a]) for a in order]) + 100 * number
        arrays: dict[str, Any] = {f"m{number}": values, **{f"l_{a}": np.array(v) for a, v in labels.items()}}
        np.savez(folder / f"{number}.npz", **arrays)
        mapping.append(f"metrics/m{number}=m{number}[{', '.join(order)}]")
        found = {}
        for at in np.ndindex(*values.shape):
            point = dict(zip(order, (labels[a][i] for a, i in zip(order, at, strict=True)), strict=True))
            found[str(point["condition"]), point["example"], point["trial"]] = values[at]
        expected.append(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importing, "MOST_CELLS", data.draw(st.integers(1, 9)))
        done = import_files(sorted(folder.glob("*.npz")), [*mapping, *(f"{a}=l_{a}" for a in axes)], output=folder / "run")
    cells = open_run(done.path).cells
    points = list(zip(cells["condition"].astype(str), cells["example"], cells["trial"], strict=True))
    assert set(points) == set(expected[0]) | set(expected[1])
    assert len(points) == len(set(points))
    for number in range(2):
        wanted = np.array([expected[number].get(point, np.nan) for point in points])
        assert np.array_equal(cells[f"m{number}"], wanted, equal_nan=True)


# -------------------------------------------------------------------------------------------- going on, and again


def test_again_does_nothing_and_other_files_are_refused(here: Path) -> None:
    np.savez("a.npz", states=VALUES)
    _, first = imported(["a.npz"], STATES)
    before = {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()}
    _, again = imported(["a.npz"], STATES)
    assert (first.new_cells, again.new_cells) == (7, 0)
    assert {p: p.read_bytes() for p in Path("run").rglob("*") if p.is_file()} == before
    np.savez("a.npz", states=VALUES + 1)
    with pytest.raises(DifferentRun, match=r"a\.npz"):
        imported(["a.npz"], STATES)
    with pytest.raises(DifferentRun, match="map"):
        imported(["a.npz"], STATES.replace("latent_out", "latent_in"))


def test_an_interrupted_import_goes_on(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez_compressed("a.npz", states=np.where(VALUES > 1.5, np.nan, VALUES), kl=[np.nan, *range(6)])
    mapping = [STATES, "metrics/kl=kl[example]"]
    monkeypatch.setattr(importing, "SHARD", 2 * VALUES[0].nbytes)
    whole, _ = imported(["a.npz"], *mapping, output="whole")
    written = RunWriter.commit

    def stop(writer: Any, unit: int, *rest: Any) -> None:
        if unit == 2:
            raise KeyboardInterrupt
        written(writer, unit, *rest)

    monkeypatch.setattr(RunWriter, "commit", stop)
    with pytest.raises(KeyboardInterrupt):
        import_files(["a.npz"], mapping, output="run")
    monkeypatch.setattr(RunWriter, "commit", written)
    assert len(open_run("run").cells) == 4
    run, done = imported(["a.npz"], *mapping)
    assert done.new_cells == 3
    assert done.notes == whole.provenance["notes"] == run.provenance["notes"]
    assert "1 of 7 cells hold NaN in metrics/kl" in done.notes
    for name in ("ledger", "experiment.yaml", "data.zarr/activations/latent_out/value/c.3.0.0"):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes()


def test_a_baseline_of_another_name(here: Path) -> None:
    lines("a.jsonl", [{"c": c, "x": x, "v": [x]} for x, c in enumerate(["risky", "control", "safe"])])
    mapping = ["condition=c", "metrics/x=x", "activations/v=v"]
    run, _ = imported(["a.jsonl"], *mapping, baseline="control")
    assert run.baseline["x"].tolist() == [1]
    assert run.activations("v").values.tolist() == [[1]]
    assert "did you mean 'control'" in refused(["a.jsonl"], *mapping, baseline="contrl")


def test_without_a_baseline_everything_is_given(here: Path) -> None:
    np.savez("a.npz", states=VALUES)
    run, _ = imported(["a.npz"], "activations/resid_post@latent=states[example ; layer, width]")
    assert run.activations("resid_post.2@latent").values.tolist() == VALUES[:, 2].tolist()
    assert set(run.cells["condition"]) == {"imported"}
    with pytest.raises(UserError, match="not captured"):
        run.activations("latent_in")


# ---------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("name", ["npz", "npz-deflated", "h5", "safetensors", "pt"])
def test_a_large_array_is_streamed(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "SHARD", 1 << 20)
    value = np.zeros((600, 8, 4096), np.float32)  # 79 MB
    value[:, 0, 0] = np.arange(600)
    file, write = FORMATS[name]
    write(here / file, value)
    assert peak(lambda: import_files([file], [STATES], output="run")) < 16 << 20
    run = open_run("run")
    assert [run.store.read_unit("activations/latent_out/value", u)[0, 0, 0] for u in (0, 7, run.store.units - 1)] == [0, 56, 592]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_long_log_is_streamed(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_CELLS", 64)
    with open(name, "w", encoding="utf-8") as file:
        for number in range(3000):
            file.write(("[" if number == 0 else ",") if name == "a.json" else "")
            file.write(json.dumps({"response": f"{number} " * 4000}) + "\n")
        file.write("]" if name == "a.json" else "")
    assert Path(name).stat().st_size > 50e6
    assert peak(lambda: import_files([name], ["text=response"], output="run")) < 20 << 20


# -------------------------------------------------------------------------------------------- what users have


def test_a_log_of_seed_001(here: Path) -> None:
    """Six conditions as in the original: prompt type × patch, 2 targets, 5 trials."""
    records = [
        {"target_feature": f"L26-{t}", "target_layer": 26, "patch_condition": p, "patch_value": 1.23, "prompt_type": q, "trial": n,
         "response": f"{t} {p} {q} {n}", "generated_token_ids": [1, 2], "all_features": {"L1-12": 0.0, f"L3-{t}": n / 7}}
        for t in (1069, 7) for p in ("baseline", "safe_patch", "risky_patch") for q in ("safe", "risky") for n in range(5)
    ]  # fmt: skip
    lines("log.jsonl", records)
    run, done = imported(
        ["log.jsonl"], "target=target_feature", "condition=patch_condition", "prompt=prompt_type", "trial=trial", "text=response",
        "fields/layer=target_layer", "activations/sae=all_features.{feature}"
    )  # fmt: skip
    assert done.axes == {"target": 2, "condition": 3, "trial": 5, "prompt": 2}
    assert len(run.cells) == 60
    assert len(run.baseline) == 20
    sae = run.activations("sae", edited=True)
    for row, (target, trial) in enumerate(zip(sae["target"].values, sae["trial"].values, strict=True)):
        assert sae.sel(feature=target.replace("L26", "L3")).values[row] == trial / 7
    assert all(f"prompt={text.split()[2]}" in key for text, key in zip(run.cells["text"], run.cells["key"], strict=True))


@pytest.mark.skipif(not (DATA / "real_codi_llama_ct_states_20x6x2048.npz").exists(), reason="no shared data")
def test_real_latents(here: Path) -> None:
    path = DATA / "real_codi_llama_ct_states_20x6x2048.npz"
    meta = DATA / "real_codi_llama_ct_states_20_meta.json"
    run, done = imported(
        [path, meta], "activations/latent_out=ct_hidden_states[example ; step, width]", "example=gsm8k_test_idx", "example=idx",
        "metrics/accuracy=baseline_correct[example]", "fields/question=question", "text=baseline_prediction", "answer=gold[example]"
    )  # fmt: skip
    with np.load(path) as naive:
        found = run.activations("latent_out").sel(example=naive["gsm8k_test_idx"])
        assert np.array_equal(found.values, naive["ct_hidden_states"])
    records = {r["idx"]: r for r in json.loads(meta.read_text())}
    cells = run.cells.set_index("example")
    assert cells["question"].to_dict() == {i: r["question"] for i, r in records.items()}
    assert cells["accuracy"].to_dict() == {i: float(r["baseline_correct"]) for i, r in records.items()}
    assert done.notes == []
    assert run.activations("latent_out@latent[2,3]").sizes["step"] == 2


@pytest.mark.skipif(not (DATA / "gsm8k_example_model_solutions.jsonl").exists(), reason="no shared data")
def test_real_solutions_of_four_models(here: Path) -> None:
    path = DATA / "gsm8k_example_model_solutions.jsonl"
    run, done = imported([path], "text={condition}.solution", "metrics/accuracy={condition}.is_correct", "fields/question=question")
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert done.axes == {"condition": 4, "example": 1319}
    cells = run.cells.set_index(["example", "condition"])
    for number, record in enumerate(records):
        for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            row: Any = cells.loc[(number, name)]
            assert row["text"] == record[name]["solution"]
            assert row["accuracy"] == record[name]["is_correct"]
    assert run.to_xarray()["accuracy"].sizes == {"example": 1319, "condition": 4}
