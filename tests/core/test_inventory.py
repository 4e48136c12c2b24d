"""``ls --inventory``: what runs were made of."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from codi_engine import Experiment
from codi_engine.cli import inventory as cli_inventory
from codi_engine.cli import show
from codi_engine.cli.main import main
from codi_engine.core.runs.synthetic import Synthetic, write_synthetic
from codi_engine.core.watching.inventory import inventory
from codi_engine.core.watching.notes import add_note
from codi_engine.core.watching.status import runs_in


def test_one_row_per_run(demo: Callable[..., Experiment], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = {"layer": [0], "step": [0]}
    patch = {"plugin": "patch", "site": "resid_post", "direction": "denoise"}
    finished = demo(name="zz", intervention=patch, sweep=sweep, metrics=["kl"], hypothesis="early").run(Path("runs/a"))
    write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), Path("runs/b/synth"))
    shutil.copytree("runs/b/synth", "runs/c")
    ledger = Path("runs/c/ledger")
    ledger.write_bytes(b"x" + ledger.read_bytes())
    add_note("runs/a", "looks right")
    found = inventory(runs_in("runs"))
    assert [e.name for e in found] == ["c", "synth", "zz"]
    damaged, synthetic, own = found
    assert "damaged" in damaged.problem
    assert (synthetic.data, synthetic.origin, synthetic.examples) == ("", "synthetic", 1)
    provenance = finished.open().provenance
    assert (own.data, own.origin, own.filters, own.size) == ("demo-pairs", "packaged", {"limit": 3}, "3 pairs")
    assert (own.data_digest, own.model_digest, own.model) == (provenance["data_digest"], provenance["model_digest"], "codi")
    assert (own.cells, own.notes, own.hypothesis) == (finished.cells, 1, "early")
    assert own.bytes == sum(f.stat().st_size for f in Path("runs/a").rglob("*") if f.is_file())

    assert main(["ls", "runs", "--inventory"]) == 0
    out = capsys.readouterr().out
    assert provenance["data_digest"][:12] in out
    assert provenance["data_digest"][:13] not in out
    assert "cannot be read" in out
    assert "limit 3" in out
    assert main(["ls", "runs", "--inventory", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in rows] == ["c", "synth", "zz"]
    assert rows[2]["filters"] == {"limit": 3}
    assert main(["ls", "runs", "--json"]) == 0
    assert {r["name"]: r["hypothesis"] for r in json.loads(capsys.readouterr().out)}["zz"] == "early"


@pytest.mark.parametrize("width", [60, 80, 300])
def test_in_a_narrow_terminal_nothing_that_tells_runs_apart_is_cut(width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("runs/first-of-them", "runs/second-of-them"):
        write_synthetic(Synthetic(targets=2, trials=2, features=12, words=5), Path(name))
    screen = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(show, "console", lambda: screen)
    monkeypatch.setattr(cli_inventory, "console", lambda: screen)
    monkeypatch.setattr("codi_engine.cli.tables.console", lambda: screen)
    entries = inventory(runs_in("runs"))
    cli_inventory.show(entries, False)
    out = screen.file.getvalue()  # type: ignore[attr-defined]
    for entry in entries:
        assert entry.run in out
        assert entry.data_digest[:12] in out
    assert max(map(len, out.splitlines())) <= width
    assert (out.count("data digest") == 1) is (width == 300)
