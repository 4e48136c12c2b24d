"""What an import refuses: one or two lines that say what and where, nothing written, nothing run."""

from __future__ import annotations

import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from codi_engine.core.errors import UserError
from codi_engine.core.imports.importing import import_files
from codi_engine.core.imports.importmap import read_map
from tests.support.imports import STATES, VALUES, imported, lines, peak, refused


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_unknown_arrays_are_listed_with_shapes(here: Path) -> None:
    np.savez("a.npz", states=VALUES, kl=np.arange(7.0))
    text = refused(["a.npz"], STATES.replace("states", "state"))
    assert "'states'" in text
    assert "states float32[7, 3, 4], kl float64[7]" in text
    assert "names 2 dimensions" in refused(["a.npz"], "activations/x=states[example ; width]")
    assert "kl[example]" in refused(["a.npz"], "metrics/kl=kl")
    assert "no array is called 'labels'" in refused(["a.npz"], STATES, "example=labels")
    assert "no array has an axis 'trial'" in refused(["a.npz"], STATES, 'trial=["a"]')
    assert "metrics/x" in refused(["a.npz"], "activations/x=kl[example ;]")


def test_axes_of_different_lengths(here: Path) -> None:
    np.savez("a.npz", states=VALUES, kl=np.arange(6.0), ids=np.arange(5), double=np.array([1, 2, 1, 3, 4, 5, 6]))
    assert "axis 'example' has 6 places, in a.npz: states 7" in refused(["a.npz"], STATES, "metrics/kl=kl[example]")
    assert "gives 5 labels" in refused(["a.npz"], STATES, "example=ids")
    assert "stands twice, at 0 and 2" in refused(["a.npz"], STATES, "example=double")
    np.savez("b.npz", states=VALUES[:, :2])
    assert "b.npz: states has values of shape [2, 4], a.npz: states [3, 4]" in refused(["a.npz", "b.npz"], STATES)
    np.savez("b.npz", states=VALUES)
    text = refused(["a.npz", "b.npz"], STATES)
    assert "example=0 stands in a.npz: states and in b.npz: states" in text


def test_axes_that_do_not_nest(here: Path) -> None:
    np.savez("a.npz", x=np.zeros((2, 3)), y=np.zeros((2, 4)))
    assert "none has all of them" in refused(["a.npz"], "metrics/x=x[example, layer]", "metrics/y=y[example, step]")


def test_duplicate_records(here: Path) -> None:
    lines("a.jsonl", [{"c": "a", "r": "x"}, {"c": "b", "r": "y"}, {"c": "a", "r": "z"}, {"c": "a", "r": "z"}])
    text = refused(["a.jsonl"], "text=r", "condition=c")
    assert text.startswith("a.jsonl:1 and a.jsonl:3 are the same cell (condition=a)")
    lines("b.jsonl", [{"c": "a", "r": "x"}, {"r": "y"}])
    assert "b.jsonl:2: has no 'condition'" in refused(["b.jsonl"], "text=r", "condition=c")


@pytest.mark.parametrize(
    ("record", "mapping", "part"),
    [
        ({"x": "many"}, "metrics/x=x", "a.jsonl:1: x must be a number"),
        ({"x": [1]}, "text=x", "must be text"),
        ({"x": {"y": 1}}, "fields/x=x", "must be one value"),
        ({"x": ["a"]}, "activations/x=x", "must be a list of numbers"),
        ({"x": []}, "activations/x=x", "an empty list"),
        ({"x": {"y": "a"}}, "activations/x=x.{feature}", "got 'a'"),
        ({"x": {"y": 1}}, "activations/x=x", "end the path with"),
        ({"x": [[1, 2], [3, 4]]}, "activations/x=x", "x[; step, width]"),
        ({"x": 1}, "metrics/y=y", "the first has x"),
        ({"x": 10**400}, "metrics/x=x", "must be a number"),
        ({"x": 1}, "metrics/x={a}.{a}", "twice"),
        (3, "metrics/x=x", "no keys"),
    ],
)
def test_values_that_do_not_fit(here: Path, record: Any, mapping: str, part: str) -> None:
    lines("a.jsonl", [record])
    assert part in refused(["a.jsonl"], mapping)


@pytest.mark.parametrize(
    ("entry", "part"),
    [
        ("text", "write TARGET=SOURCE"),
        ("example=idx", "says no values"),
        ("metric/x=x", "did you mean 'metrics'"),
        ("activations/resid_pst@latent=a[b ; c]", "did you mean 'resid_post'"),
        ("activations/a b=a[b ; c]", "a site is"),
        ("activations/resid_post.x=a[b ; c]", "resid_post"),
        ("activations/x=a[b ; b]", "twice"),
        ("activations/x=a[b ; 3]", "'3'"),
        ("metrics/x=a[b ; c]", "before the semicolon"),
        ("status=x", "cannot be an axis"),
        ("fields/key=x", "cannot be the name"),
        ('example=[1, {"a": 2}]', "JSON list"),
        ("example=a[b]", "whole array"),
        ("@nowhere.yaml", "no such file"),
    ],
)
def test_maps_that_say_nothing(here: Path, entry: str, part: str) -> None:
    with pytest.raises(UserError, match=r".+") as caught:
        read_map([entry])
    assert part in str(caught.value)


def test_a_map_in_a_file(here: Path) -> None:
    Path("map.yaml").write_text('activations/x: "a[condition ; width]"\ncondition: [safe, risky]\n', encoding="utf-8")
    Path("list.yaml").write_text('- activations/x=a[condition ; width]\n- \'condition=["safe", "risky"]\'\n', encoding="utf-8")
    np.savez("a.npz", a=np.zeros((2, 3)))
    run, _ = imported(["a.npz"], "@map.yaml")
    assert run.cells["condition"].tolist() == ["safe", "risky"]
    assert imported(["a.npz"], "@list.yaml")[1].new_cells == 0  # the same map


def test_pickles_are_refused_and_never_run(here: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("exploded"),)

    bomb = np.array([Bomb()], dtype=object)
    np.save("a.npy", bomb)
    np.savez("a.npz", states=bomb, fine=VALUES)
    torch.save({"states": Bomb()}, "a.pt")
    Path("a.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("a.npy", "a.npz", "a.pt", "a.pkl"):
        text = refused([name], "activations/x=.[example ; width]" if name == "a.npy" else "activations/x=states[example ; width]")
        assert f"tools/unpickle.py {name}" in text
    assert not Path("exploded").exists()
    run, _ = imported(["a.npz"], "activations/x=fine[example ; step, width]")
    assert np.array_equal(run.activations("x").values, VALUES)


def _header(shape: str, descr: str = "<f4") -> bytes:
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


@pytest.mark.parametrize("shape", ["(1000000000000, 4)", "(-3, 4)", "(99999999999999999999, 4)", "(3, 4)"])
def test_absurd_headers_are_refused_without_allocating(here: Path, shape: str) -> None:
    Path("a.npy").write_bytes(_header(shape))
    with zipfile.ZipFile("a.npz", "w") as file:
        file.writestr("states.npy", _header(shape))
    length = json.dumps({"states": {"dtype": "F32", "shape": [10**12, 4], "data_offsets": [0, 16]}}).encode()
    Path("a.safetensors").write_bytes(struct.pack("<Q", len(length)) + length + b"\0" * 16)

    def all_refused() -> None:
        for name in ("a.npy", "a.npz", "a.safetensors"):
            assert "damaged" in refused([name], "activations/x=.[example ; width]")

    assert peak(all_refused) < 4 << 20


@pytest.mark.parametrize("suffix", ["npz", "npy", "h5", "safetensors", "pt", "json", "jsonl", "csv"])
@pytest.mark.parametrize("content", [b"", b"\x00", b"\xff\xfe rubbish \n[", b"{" * 100_000, b"\x93NUMPY\x02\x00\xff\xff\xff\xff"])
def test_rubbish_is_refused(here: Path, suffix: str, content: bytes) -> None:
    path = Path(f"a.{suffix}")
    path.write_bytes(content)
    assert path.name in refused([path], "activations/x=.[example ; width]" if suffix not in ("json", "jsonl", "csv") else "text=x")


def test_cut_off_members(here: Path) -> None:
    np.savez_compressed("a.npz", states=VALUES)
    data = bytearray(Path("a.npz").read_bytes())
    data[200:260] = bytes(60)
    Path("a.npz").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.npz.*(damaged|read)"):
        import_files(["a.npz"], [STATES], output="run")


def test_files_that_are_not_there(here: Path) -> None:
    np.savez("a.npz", states=VALUES)
    assert "no such file" in refused(["b.npz"], STATES)
    assert "no such file" in refused(["{target}.npy"], STATES)
    assert "are not read" in refused([__file__], STATES)
    assert "is a directory" in refused([str(here)], STATES)
    assert "named twice" in refused(["a.npz", "a.npz"], STATES)
    assert "--name" in refused(["a.npz"], STATES, name="../x")


def test_names_that_are_no_text_are_shown_and_refused(here: Path) -> None:
    with h5py.File("a.h5", "w") as file:
        file[b"\xfftates"] = np.zeros((2, 3))
        file["kl"] = np.zeros(2)
    with pytest.raises(UserError, match=r"no array 'states'; did you mean '\\xfftates'"):
        import_files(["a.h5"], ["activations/s=states[example ; width]"])
    with pytest.raises(UserError, match=r"its name is no text in UTF-8; rename it"):
        import_files(["a.h5"], [r"activations/s=\xfftates[example ; width]"])
    assert import_files(["a.h5"], ["metrics/kl=kl[example]"]).path.is_dir()


def test_without_h5py_the_extra_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with h5py.File("a.h5", "w") as file:
        file["states"] = VALUES
    monkeypatch.setitem(__import__("sys").modules, "h5py", None)
    assert "pip install 'codi-engine[h5]'" in refused(["a.h5"], STATES)


def test_values_in_other_files_are_refused(here: Path) -> None:
    Path("raw").write_bytes(bytes(100))
    with h5py.File("a.h5", "w") as file:
        file.create_dataset("states", (5, 5), "f4", external=[("raw", 0, 100)])
        file.create_dataset("huge", (10**6, 10**5), "f4", chunks=(1, 1000))
    assert "damaged or made to exhaust memory" in refused(["a.h5"], "activations/x=states[example ; width]")
    with h5py.File("a.h5", "a") as file:
        del file["huge"]
    assert "lie in other files" in refused(["a.h5"], "activations/x=states[example ; width]")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"s": torch.zeros(1).expand(1_000_000, 4)}, "claims 4,000,000 values"),
        ({"s": torch.eye(3).to_sparse()}, "sparse or quantized"),
        ({"s": torch.zeros(3, 2, dtype=torch.complex64)}, "complex64 cannot be imported"),
        ({"s": torch.zeros(0, 2)}, "is empty"),
    ],
)
def test_tensors_that_cannot_be_imported(here: Path, content: Any, part: str) -> None:
    torch.save(content, "a.pt")
    assert part in refused(["a.pt"], "activations/x=s[example ; width]")


def test_the_old_format_of_torch(here: Path) -> None:
    torch.save({"s": torch.zeros(3, 2)}, "a.pt", _use_new_zipfile_serialization=False)
    assert "save it again with torch.save" in refused(["a.pt"], "activations/x=s[example ; width]")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.csv", "x,x\n1,2\n", "two columns have the same name"),
        ("a.csv", "x,y\n1\n", "a.csv:2: has 1 values, the heading 2"),
        ("a.csv", 'x,y\n"1,2\n', "not CSV"),
        ("a.csv", "x\n", "no records"),
        ("a.json", '[{"x": 1} {"x": 2}]', "a.json[0]: not JSON: a comma is missing"),
        ("a.json", '[{"x": 1}, {"x": 2}', "a.json[1]: not JSON: the list is not closed"),
        ("a.json", "[]", "no records"),
        ("a.jsonl", '{"x": 1}\n{"x": \n', "a.jsonl:2: not JSON"),
        ("a.jsonl", "", "no records"),
    ],
)
def test_records_that_cannot_be_read(here: Path, name: str, content: str, part: str) -> None:
    Path(name).write_text(content, encoding="utf-8")
    assert part in refused([name], "metrics/x=x")
