"""The command line starts without anything heavy and without looking at plugins; completion speaks to the shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from codi_engine.cli.completion import SHELLS, builtin_names
from codi_engine.cli.main import cli
from codi_engine.core.plugins import plugin_manager

SOURCE = Path(__file__).parents[2] / "src"
HEAVY = (
    "torch", "transformers", "numpy", "pandas", "zarr", "xarray", "matplotlib", "numba", "pydantic", "pyarrow", "rich", "scipy", "sklearn", "wandb", "jinja2",
    "pluggy", "importlib.metadata",
)  # fmt: skip


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    """Ten installed packages whose import is told in a file."""
    told = tmp_path / "told"
    for number in range(10):
        (tmp_path / f"heavy{number}.py").write_text(f"import pathlib\npathlib.Path({str(told)!r}).write_text('loaded')\n", encoding="utf-8")
        folder = tmp_path / f"codi_heavy{number}-1.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: codi-heavy{number}\nVersion: 1\n", encoding="utf-8")
        (folder / "entry_points.txt").write_text(f"[codi_engine]\nit = heavy{number}\n", encoding="utf-8")
    return tmp_path


def started(plugins: Path, code: str) -> str:
    """Run code where the ten are installed and return what it prints on standard error."""
    variables = {k: v for k, v in os.environ.items() if k != "CODI_ENGINE_PLUGINS"} | {"PYTHONPATH": f"{SOURCE}{os.pathsep}{plugins}"}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr.strip()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["plugins", "--help"], ["new-plugin", "--help"], ["completion", "bash"]])
def test_help_imports_nothing_heavy_and_no_plugin(plugins: Path, arguments: list[str]) -> None:
    code = (
        f"import sys\nfrom codi_engine.cli.main import main\nassert main({arguments!r}) == 0\nprint(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    assert started(plugins, code) == "[]"
    assert not (plugins / "told").exists()


def test_the_ten_are_there_where_they_are_asked_for(plugins: Path) -> None:
    """Else the test above could not fail."""
    started(plugins, "import importlib.metadata\nfor e in importlib.metadata.entry_points(group='codi_engine'): e.load()")
    assert (plugins / "told").read_text(encoding="utf-8") == "loaded"


# ---------------------------------------------------------------------------------------------- completion


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_the_shells(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    from codi_engine.cli.main import main

    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_CODI_ENGINE_COMPLETE={shell}_complete" in script
    if (program := shutil.which(shell)) is not None:
        done = subprocess.run([program, "-n"], input=script, capture_output=True, text=True, timeout=20, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def completed(folder: Path, *words: str) -> list[str]:
    """What Tab offers after these words, the last of them begun."""
    variables = {**os.environ, "PYTHONPATH": str(SOURCE), "_CODI_ENGINE_COMPLETE": "bash_complete"}
    variables |= {"COMP_WORDS": " ".join(("codi-engine", *words)), "COMP_CWORD": str(len(words))}
    done = subprocess.run([sys.executable, "-m", "codi_engine"], cwd=folder, env=variables, capture_output=True, text=True, timeout=30, check=False)
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_tab_offers_what_can_follow(tmp_path: Path) -> None:
    for run in ("runs/demo", "runs/family/a"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "ledger").touch()
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "study.yaml").touch()
    (tmp_path / "notes.txt").touch()
    assert completed(tmp_path, "plu") == ["plugins"]
    assert completed(tmp_path, "plugins", "--kind", "m") == ["model", "metric"]
    assert completed(tmp_path, "plugins", "show", "ste") == ["steer", "step_effects"]
    assert completed(tmp_path, "run", "s") == ["study.yaml"]
    assert completed(tmp_path, "status", "") == ["runs/demo", "runs/family/a"]
    assert completed(tmp_path, "status", "runs/d") == ["runs/demo"]
    assert completed(tmp_path, "analyze", "runs/demo", "pathw") == ["pathways"]


def test_names_are_those_that_are_registered() -> None:
    registered = plugin_manager(load=False).registered
    assert builtin_names("*") == sorted({r.name for r in registered})
    assert builtin_names("analyses") == sorted(r.name for r in registered if r.kind == "analysis")


def test_every_command_has_help() -> None:
    assert [name for name, command in cli.commands.items() if not command.help] == []
