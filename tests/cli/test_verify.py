"""``verify`` and ``repair`` at the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from codi_engine.cli.main import main
from codi_engine.core.imports.importing import import_files
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.store.reader import RunReader


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))


def synthetic(name: str) -> Path:
    return write_synthetic(Synthetic(targets=2, conditions=2, trials=4, features=20, words=5), name)


def test_what_is_damaged_is_named_and_repaired(capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic("runs/one")
    whole = files(path)
    assert main(["verify", "runs/one"]) == 0
    assert "every file is what was written" in capsys.readouterr().out
    shard = RunReader(path).specs["cells/answer"].shard(0)
    flip(path / shard)
    (path / "data.zarr/cells/zarr.json").unlink()
    (path / "ledger").write_bytes(whole["ledger"][:-40])
    (path / "texts/stranger").write_text("x", encoding="utf-8")
    assert main(["verify", "runs/*"]) == 2
    said = " ".join(capsys.readouterr().out.split())
    for words in (f"damaged {shard}", "(unit 0)", "missing data.zarr/cells/zarr.json", "truncated ledger", "foreign texts/stranger"):
        assert words in said
    assert "3 files are not as written; `codi-engine repair runs/one` restores them and computes 1 unit again" in said
    assert main(["verify", "runs/one", "--json"]) == 2
    assert {f["kind"] for f in json.loads(capsys.readouterr().out)["runs/one"]} == {"damaged", "missing", "truncated", "foreign"}
    assert main(["repair", "runs/one"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "restored ledger" in said
    assert "computed unit 0" in said
    assert "left texts/stranger" in said
    (path / "texts/stranger").unlink()
    assert files(path) == whole
    assert main(["repair", "runs/one"]) == 0
    assert "nothing was damaged" in capsys.readouterr().out


def test_a_run_without_its_ledger_is_restored(capsys: pytest.CaptureFixture[str]) -> None:
    path = synthetic("runs/one")
    whole = files(path)
    (path / "ledger").unlink()
    assert main(["status", "runs/one"]) == 2
    assert "codi-engine repair runs/one" in capsys.readouterr().err
    assert main(["verify", "runs/one"]) == 2
    assert main(["repair", "runs/one"]) == 0
    assert files(path) == whole


def test_an_imported_run_is_repaired_from_its_files(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("states.npz", states=np.arange(24.0).reshape(4, 2, 3))
    import_files(["states.npz"], ["activations/latent_out=states[example ; step, width]"], output="runs/in")
    whole = files(here / "runs/in")
    shard = next(n for n in whole if "latent_out/value/c." in n)
    flip(here / "runs/in" / shard)
    assert main(["repair", "runs/in"]) == 0
    assert files(here / "runs/in") == whole
    flip(here / "runs/in" / shard)
    np.savez("states.npz", states=np.zeros((4, 2, 3)))
    capsys.readouterr()
    assert main(["repair", "runs/in"]) == 2
    assert "is not the file that was imported" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "repair"])
def test_what_is_no_run_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    for where in ("nowhere", "empty"):
        assert main([command, where]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) <= 2
    assert not list(Path("empty").iterdir())
    assert not Path("nowhere").exists()
