"""Files that come from elsewhere are read or refused: no crash, no hang, no memory beyond a bound, nothing run.

The campaign is in ``tests/support/fuzz.py``; ``python -m tests.support.fuzz LOADER SEED`` repeats one of its inputs.
"""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from codi_engine import open_run
from codi_engine.core.errors import UserError
from codi_engine.core.imports.foreign import headers
from codi_engine.core.runs.parquet import read_table
from codi_engine.plugins.interventions.steer import read_vector
from codi_engine.plugins.models.causal_lm import CausalLM, CausalLMOptions
from codi_engine.plugins.models.weights import read_weights
from codi_engine.store.arrowframes import is_plain
from codi_engine.store.codec import decode
from codi_engine.store.errors import StoreError
from codi_engine.store.layout import ArraySpec
from codi_engine.store.reader import RunReader
from tests.support.fuzz import Workplace, bounded
from tests.support.fuzz_runs import _runs, chained, records_of, restated
from tests.support.mutations import bomb
from tests.support.saes import read as read_sae

ROOT = Path(__file__).parents[2]
QUICK = "weights=200,weights-pt=60,vector=200,import-arrays=180,import-records=120,pairs=60,sae=10,run-ledger=40"
#: inputs of the slow form
LEAST = 100_000


def _campaign(what: str, jobs: int, seconds: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.fuzz", what, "--jobs", str(jobs)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    for name, one in found.items():
        # libhdf5 itself dies of some damaged files; docs/reliability.md does not promise otherwise
        died = [f for f in one["failures"] if name == "import-arrays" and "(signal 11)" in f["said"]]
        assert len(died) <= 3, f"libhdf5 died of {len(died)} inputs"
        one["failures"] = [f for f in one["failures"] if f not in died]
        shown = "".join(f"\npython -m tests.support.fuzz {name} {f['seed']}: {f['said'][-600:]}" for f in one["failures"][:5])
        assert not one["failures"], f"{len(one['failures'])} of {one['inputs']} inputs of {name}:{shown}"
        assert one["valid"] == one["trees"], f"{name}: a file that nobody changed is refused"
        assert one["refused"] > 0, f"{name}: nothing was refused; the mutations do not reach it"
    return found


def test_some_hostile_inputs_of_every_kind() -> None:
    found = _campaign(QUICK, 1, 200)
    assert sum(one["inputs"] for one in found.values()) >= 850


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_hundred_thousand_hostile_inputs() -> None:
    found = _campaign("all", 2, 3500)
    inputs = sum(one["inputs"] for one in found.values())
    summary = ", ".join(f"{name} {one['inputs']:,} ({one['refused']:,} refused, at most {one['slowest']} s)" for name, one in found.items())
    sys.stdout.write(f"{inputs:,} inputs: {summary}\n")
    assert inputs >= LEAST, summary


# ------------------------------------------------------------------------------------------------------------ archives


def _refusal(call: Callable[[], Any]) -> str:
    """Return what is said, in bounded memory, where something must be refused."""
    with bounded(), pytest.raises((UserError, StoreError)) as caught:
        call()
    assert len(str(caught.value).splitlines()) <= 2
    return str(caught.value)


def _npy_header(shape: str) -> bytes:
    text = ("{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }").encode() + b"\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text


@pytest.mark.parametrize(("name", "loader"), [("params.npz", read_sae), ("v.npz", lambda p: read_vector(str(p))), ("a.npz", headers)])
def test_ten_gigabytes_of_zeros_are_refused_by_their_size(tmp_path: Path, name: str, loader: Callable[[Path], Any]) -> None:
    path = tmp_path / name
    path.write_bytes(bomb("W_enc.npy", _npy_header("(2684354560,)"), 10 << 30))
    assert path.stat().st_size < 20 << 20
    assert "exhaust memory" in _refusal(lambda: loader(path))


def _torch_file(path: Path, pickled: bytes, compressed: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/version", b"3\n")
    return path


PICKLES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "system": (lambda canary: f"cposix\nsystem\n(S'touch {canary}'\ntR.".encode(), "more than tensors"),
    "bytearray": (lambda _: b"cbuiltins\nbytearray\n(L1099511627776L\ntR.", "more than tensors"),
    "broken": (lambda _: b"(((((", "damaged"),
}
READERS: dict[str, Callable[[Path], Any]] = {
    "weights": lambda p: read_weights(p, "x"),
    "sae": read_sae,
    "vector": lambda p: read_vector(str(p)),
    "import": headers,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_run_nothing_and_get_no_room(tmp_path: Path, reader: str, kind: str) -> None:
    canary = tmp_path / "canary"
    pickled, said = PICKLES[kind]
    path = _torch_file(tmp_path / "x.pt", pickled(canary))
    assert said in _refusal(lambda: READERS[reader](path))
    assert not canary.exists()


@pytest.mark.parametrize("reader", ["weights", "sae", "vector"])
def test_a_tensor_that_repeats_one_value_is_refused(tmp_path: Path, reader: str) -> None:
    torch.save({"encoder.weight": torch.ones(1).expand(1 << 40)}, tmp_path / "x.pt")
    assert "claims 1,099,511,627,776 values" in _refusal(lambda: READERS[reader](tmp_path / "x.pt"))


def test_compressed_torch_files_are_refused(tmp_path: Path) -> None:
    path = _torch_file(tmp_path / "x.pt", b"}." + bytes(1 << 20), compressed=True)
    assert "compressed, or claims more" in _refusal(lambda: read_weights(path, "x"))


def test_containers_that_hold_themselves_are_refused(tmp_path: Path) -> None:
    loop: list[Any] = [torch.ones(1), {}]
    loop.append(loop)
    wide: list[Any] = [torch.ones(1), {}]
    for _ in range(12):
        wide = [wide, {}] * 10
    for value in (loop, wide):
        torch.save(value, tmp_path / "x.pt")
        assert "nested too deeply" in _refusal(lambda: headers(tmp_path / "x.pt"))


def test_hdf5_chunks_that_are_too_large_and_links_to_other_files(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["secret"] = np.arange(3.0)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("big", (4,), maxshape=(None,), chunks=(1 << 28,), dtype="f4")
        file["out"] = h5py.ExternalLink("other.h5", "/secret")
        file["values"] = np.arange(3.0)
    found = headers(tmp_path / "x.h5")
    assert set(found) == {"big", "values"}
    assert "too large" in found["big"].problem


# -------------------------------------------------------------------------------------------------- pipes and devices


def test_pipes_and_devices_are_no_model_files(tmp_path: Path, tiny_gpt2: Path) -> None:
    for name in ("model.safetensors", "model.bin", "v.npy", "v.safetensors", "v.pt"):
        (tmp_path / name).symlink_to("/dev/zero")
    assert "no regular file" in _refusal(lambda: read_weights(tmp_path / "model.safetensors", "x"))
    assert "no regular file" in _refusal(lambda: read_weights(tmp_path / "model.bin", "x"))
    assert "no file" in _refusal(lambda: read_vector(str(tmp_path / "v.npy")))
    for name in ("tokenizer.json", "model.safetensors", "extra.safetensors"):
        folder = tmp_path / name.replace(".", "_")
        folder.mkdir()
        for file in tiny_gpt2.iterdir():
            if file.name != name:
                (folder / file.name).symlink_to(file)
        os.mkfifo(folder / name)
        assert "no regular file" in _refusal(CausalLM(CausalLMOptions(path=str(folder), device="cpu")).load)


@pytest.mark.parametrize("name", ["ledger", "provenance.json", "texts/unit-000000.arrow", "data.zarr/cells/status/c.0", "data.zarr/zarr.json"])
def test_pipes_in_a_run(tmp_path: Path, name: str) -> None:
    folder = Workplace(tmp_path).put(_runs(tmp_path)[0], {})
    (folder / name).unlink()
    os.mkfifo(folder / name)

    def use() -> None:
        run = open_run(folder)
        _ = run.cells, run.provenance

    assert "no regular file" in _refusal(use)


# ------------------------------------------------------------------------------------------------------ runs of others


def _changed(change: Callable[[list[dict[str, Any]]], None], tmp_path: Path) -> str:
    tree = _runs(tmp_path)[0]
    records = records_of(tree)
    change(records)
    folder = Workplace(tmp_path).put(tree, {"ledger": chained(records)})
    return _refusal(lambda: RunReader(folder))


def _put(records: list[dict[str, Any]], line: int, *keys: Any, value: Any) -> None:
    at: Any = records[line]
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value


FACTS = {"size": 3, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("line", "keys", "value", "said"),
    [
        (0, ("unit_cells",), 2**40, "unit_cells"),
        (0, ("unit_cells",), True, "unit_cells"),
        (1, ("units",), 2**62, "units"),
        (1, ("units",), 1.0, "units"),
        (1, ("arrays", 0, 0), "../../../etc/passwd", "cannot be the name"),
        (1, ("arrays", 6, 1, "shape"), [2, 2**40], "more than"),
        (1, ("arrays", 6, 1, "shape"), [-1, 3], "a dimension"),
        (1, ("arrays", 6, 1, "dtype"), "|O", "dtype"),
        (1, ("arrays", 6, 1, "dtype"), "bfloat17", "dtype"),
        (1, ("arrays", 8, 1, "attrs", "width"), 2**40, "activations/sae/ptr: width"),
        (1, ("arrays", 9, 1, "entries"), 2**25, "activations/sae/index: entries"),
        (1, ("labels", "cells/example"), [{"a": 1}], "labels must be"),
        (1, ("files", "../../etc/passwd"), FACTS, "not the metadata"),
        (2, ("files", "../../etc/passwd"), FACTS, "is no file of unit 0"),
        (2, ("files", "data.zarr/cells/status/c.1"), FACTS, "is no file of unit 0"),
        (2, ("unit",), 7, "unit must be"),
        (4, ("unit",), 0, "committed already"),
        (2, ("files", "data.zarr/cells/status/c.0", "size"), 2**62, "size"),
        (2, ("files", "data.zarr/cells/status/c.0", "size"), -1, "size"),
    ],
)
def test_ledger_lines_that_no_writer_writes(tmp_path: Path, line: int, keys: tuple[Any, ...], value: Any, said: str) -> None:
    text = _changed(lambda records: _put(records, line, *keys, value=value), tmp_path)
    assert f"line {line + 1} of the ledger" in text
    assert said in text


def test_a_format_of_any_length_is_named_in_one_line(tmp_path: Path) -> None:
    text = _changed(lambda records: _put(records, 0, "format", value=[2**63 - 1] * 20_000), tmp_path)
    assert "was written in format [9223372036854775807, " in text
    assert len(text) < 300 + len(str(tmp_path))


def test_compressed_chunks_that_claim_more_than_belongs_there(tmp_path: Path) -> None:
    zstd = pytest.importorskip("numcodecs").Zstd
    spec = ArraySpec("x", ("cell",), (), "float32", 0.0, sparse=True)
    good = bytes(zstd(level=1, checksum=True).encode(np.zeros(8, np.float32).tobytes()))
    assert (decode(spec, 8, good) == 0).all()
    large = bytes(zstd(level=1).encode(bytes(64 << 20)))
    claims = b"\x28\xb5\x2f\xfd" + b"\xe0" + struct.pack("<Q", 1 << 60) + b"\x01\x00\x00"
    unstated = b"\x28\xb5\x2f\xfd" + b"\x00\x58" + good[6:]
    for data in (large, claims, unstated, good + good[:3], b""):
        assert "x" in _refusal(lambda data=data: decode(spec, 8, data))  # type: ignore[misc]
    wide = ArraySpec("x", ("cell", "width"), (1 << 27,), "float32", 0.0, sparse=True)
    assert "exhaust memory" in _refusal(lambda: decode(wide, 1, bytes(5000)))


def test_compressed_texts_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    def written(**options: Any) -> bytes:
        out = io.BytesIO()
        table = pa.table({"slot": pa.array(range(4), pa.int64()), "key": ["a"] * 4, "text": ["x" * (1 << 20)] * 4})
        with pa.ipc.new_file(out, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as file:
            file.write_table(table)
        return out.getvalue()

    assert is_plain(written())
    assert not is_plain(written(compression="zstd"))
    tree = _runs(tmp_path)[0]
    folder = Workplace(tmp_path).put(tree, restated(tree, {"texts/unit-000000.arrow": written(compression="zstd")}))
    assert "no file of texts" in _refusal(RunReader(folder).texts)


def test_tables_in_which_one_text_stands_everywhere_are_refused(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1 << 20, np.int32)), pa.array(["x" * (1 << 16)]))
    pq.write_table(pa.table({"a": many.slice(0, 4)}), tmp_path / "few.parquet", store_schema=False)
    assert read_table(tmp_path / "few.parquet").column("a").to_pylist() == ["x" * (1 << 16)] * 4
    pq.write_table(pa.table({"a": many}), tmp_path / "many.parquet", store_schema=False)
    assert (tmp_path / "many.parquet").stat().st_size < 1 << 20
    with bounded(), pytest.raises(ValueError, match="exhaust memory"):
        read_table(tmp_path / "many.parquet")


def test_results_show_no_file_outside_the_run(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key", encoding="utf-8")
    folder = Workplace(tmp_path).put(_runs(tmp_path)[0], {})
    summary = folder / "results" / "effects" / "summary.txt"
    assert open_run(folder).results["effects"].summary == "kl 1.0"
    summary.unlink()
    summary.symlink_to(secret)
    assert open_run(folder).results["effects"].summary == ""
