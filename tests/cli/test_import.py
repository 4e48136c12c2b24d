"""``codi-engine import`` from the command line, and the converter for pickles."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from codi_engine import open_run
from codi_engine.cli.main import main

UNPICKLE = Path(__file__).parents[2] / "tools" / "unpickle.py"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_import_then_again(cli: Run) -> None:
    np.savez("states.npz", acts=np.arange(24.0).reshape(2, 3, 4))
    command = ["import", "states.npz", "--map", "activations/sae=acts[condition, trial ; feature]", "--map", 'condition=["baseline", "risky"]']
    code, out, err = cli(*command)
    assert (code, err) == (0, "reading 1 file\n")
    assert "condition 2 × trial 3" in out
    assert "6 (all new)" in out
    assert 'open_run("runs/states").cells' in out
    assert open_run("runs/states").activations("sae").values.tolist() == np.arange(12.0).reshape(3, 4).tolist()
    code, out, err = cli(*command, "-q")
    assert (code, err) == (0, "")
    assert "none new" in out


def test_missing_values_are_reported(cli: Run) -> None:
    Path("log.jsonl").write_text('{"c": "a", "x": 1}\n{"c": "b", "x": null}\n{"note": 1}\n', encoding="utf-8")
    code, out, _ = cli("import", "log.jsonl", "--map", "condition=c", "--map", "metrics/x=x", "--name", "mine", "--output", "{name}-run")
    assert code == 0
    assert "1 of 2 cells have no metrics/x" in out
    assert "1 of the records hold none of the mapped values" in out
    assert open_run("mine-run").experiment["name"] == "mine"


def test_bad_input_is_two_lines_and_exit_code_2(cli: Run) -> None:
    np.savez("states.npz", acts=np.zeros((2, 3)))
    code, out, err = cli("import", "states.npz", "--map", "activations/x=act[condition ; feature]", "-q")
    assert (code, out) == (2, "")
    assert err == "error: --map activations/x: no array 'act'; did you mean 'acts'? there are acts float64[2, 3]\n"
    assert not Path("runs").exists()
    code, _, err = cli("import", "states.npz")
    assert code == 2
    assert "--map" in err
    assert cli("import", "--map", "text=x")[0] == 2


def test_another_run_is_refused(cli: Run) -> None:
    Path("log.jsonl").write_text('{"x": 1}\n', encoding="utf-8")
    assert cli("import", "log.jsonl", "--map", "metrics/x=x")[0] == 0
    Path("log.jsonl").write_text('{"x": 2}\n', encoding="utf-8")
    code, _, err = cli("import", "log.jsonl", "--map", "metrics/x=x", "-q")
    assert code == 2
    assert err.startswith("error: runs/log: holds another run (imported.files.log.jsonl: ")
    assert "--output" in err


def test_an_imported_run_is_analysed(cli: Run) -> None:
    rows = [{"c": c, "e": e, "l": layer, "kl": (c != "baseline") * (layer + e / 10)} for c in ("baseline", "patch") for e in range(6) for layer in range(3)]
    Path("log.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    maps = [part for m in ("condition=c", "example=e", "layer=l", "metrics/kl=kl") for part in ("--map", m)]
    assert cli("import", "log.jsonl", *maps)[0] == 0
    code, out, _ = cli("analyze", "runs/log", "importance", "-q")
    assert code == 0
    assert "kl" in out


# ---------------------------------------------------------------------------------------------------- pickles


def unpickle(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(UNPICKLE), *map(str, arguments)], capture_output=True, text=True, check=False)


def test_a_pickled_cache_is_converted_and_imported(cli: Run) -> None:
    """The resampling cache of the original scripts: problem number → states, question, correctness."""
    states = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    cache = {i: {"idx": 50 + i, "question": f"q{i}", "ct_hidden_states": torch.from_numpy(states[i]), "baseline_correct": i == 1} for i in range(3)}
    Path("cache.pkl").write_bytes(pickle.dumps(cache))
    code, _, err = cli("import", "cache.pkl", "--map", "text=question", "-q")
    assert code == 2
    assert "python tools/unpickle.py cache.pkl" in err
    done = unpickle("cache.pkl")
    assert done.returncode == 0, done.stderr
    assert "runs any code" in done.stderr
    maps = ["activations/latent_out=ct_hidden_states[example ; step, width]", "example=#", "fields/question=question", "metrics/ok=baseline_correct"]
    code, _, err = cli("import", "cache.npz", "cache.jsonl", "-q", *[part for m in maps for part in ("--map", m)])
    assert code == 0, err
    run = open_run("runs/cache")
    assert np.array_equal(run.activations("latent_out").values, states)
    assert run.cells["question"].tolist() == ["q0", "q1", "q2"]
    assert run.cells["ok"].tolist() == [0, 1, 0]
    assert unpickle("cache.pkl").returncode == 2  # never overwrites
    assert unpickle("nothing.pkl").returncode == 2


def test_nested_arrays_keep_their_place(cli: Run) -> None:
    """The clean-activations cache of the original scripts: pair → layer → position → array."""
    tree = {"clean_activations": {p: {layer: {0: np.full((1, 4), 10.0 * p + layer)} for layer in (0, 8)} for p in (2, 5)}, "metadata": {"model": "x"}}
    torch.save(tree, "clean.pt")
    assert unpickle("clean.pt", "out").returncode == 0
    target = "activations/resid_post@latent=clean_activations/{example}/{layer}/{step}[token ; width]"
    code, _, err = cli("import", "out.npz", "--map", target, "-q")
    assert code == 0, err
    assert open_run("runs/out").activations("resid_post@latent").values[:, 0].tolist() == [20, 28, 50, 58]
