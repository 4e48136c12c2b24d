"""``codi-engine new-plugin``: a package of each kind installs, is found, passes its own tests and runs its experiment."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import codi_engine
from codi_engine.cli.main import main
from codi_engine.cli.new_plugin import Names, _checked, rendered
from codi_engine.cli.plugins import KINDS
from codi_engine.core.errors import UserError
from codi_engine.core.experiment import Experiment
from codi_engine.core.plugins import HOOKS
from codi_engine.core.plugins import KINDS as KNOWN

SOURCE = Path(codi_engine.__file__).parents[1]
PARENT = [p for p in sys.path if p.endswith("site-packages")]

#: run in the fresh environment: every package's tests and experiment, in one process each, so that torch is imported once
RUN_ALL = """
import os, sys, pathlib
from codi_engine.cli.main import main
for folder in sys.argv[1:]:
    os.chdir(folder)
    print(pathlib.Path(folder).name, main(["run", "examples/experiment.yaml", "--limit", "2", "--quiet"]), file=sys.stderr)
"""


@dataclass
class Environment:
    """A fresh environment with one package of each kind installed; ``packages``: kind → its folder."""

    python: Path
    packages: dict[str, Path]

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        hidden = ("PYTHONPATH", "CODI_ENGINE_PLUGINS")
        variables = {k: v for k, v in os.environ.items() if k not in hidden} | {"PYTHONNOUSERSITE": "1", "COLUMNS": "100"}
        return subprocess.run([self.python, *arguments], cwd=cwd, env=variables, capture_output=True, text=True, timeout=230, check=False)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """Packages as `new-plugin` writes them, installed by pip; the engine and its libraries are those of this process."""
    root = tmp_path_factory.mktemp("packages")
    packages = {kind: root / f"codi-engine-try-{kind.replace('_', '-')}" for kind in KINDS}
    for kind, folder in packages.items():
        assert main(["new-plugin", folder.name, "--kind", kind, "--directory", str(root)]) == 0
    home = root / "venv"
    venv.create(home, with_pip=False)
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = next(home.glob("lib/python*/site-packages"))
    lines = [f"import site; site.addsitedir({path!r})" for path in PARENT]
    (site / "parent.pth").write_text("\n".join([str(SOURCE), *lines]) + "\n", encoding="utf-8")
    offline = ("--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "-q")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", *offline, *map(str, packages.values())]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=120, check=False, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"})
    if done.returncode and "hatchling" in done.stderr:
        pytest.skip("hatchling is not installed; it is in the test extra")
    assert done.returncode == 0, done.stderr
    return Environment(python, packages)


def test_every_kind_is_found(environment: Environment) -> None:
    done = environment.run("-m", "codi_engine", "plugins", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    value = json.loads(done.stdout)
    assert value["left_out"] == []
    mine = {p["kind"]: p for p in value["plugins"] if p["package"] != "codi-engine"}
    assert set(mine) == set(KINDS)
    for kind, folder in environment.packages.items():
        assert (mine[kind]["package"], mine[kind]["version"]) == (folder.name, "0.1.0")
        assert all(option["help"] for option in mine[kind]["options"])


#: in every run of the tests: one whose experiment leaves files of its own
RUN = ("analysis",)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("intervention",), tuple(KINDS)])
def test_packages_pass_their_own_tests(environment: Environment, kinds: Sequence[str]) -> None:
    folders = [environment.packages[kind] for kind in kinds]
    done = environment.run("-m", "pytest", "-q", "-p", "no:cacheprovider", "--import-mode=importlib", *map(str, folders), cwd=folders[0].parent)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [RUN, tuple(k for k in KINDS if k not in RUN)])
def test_experiments_run(environment: Environment, kinds: Sequence[str]) -> None:
    packages = {kind: environment.packages[kind] for kind in kinds}
    done = environment.run("-W", "error::UserWarning:codi_engine", "-c", RUN_ALL, *map(str, packages.values()))
    said = [line.rsplit(" ", 1) for line in done.stderr.splitlines() if line.startswith("codi-engine-try-")]
    assert said == [[folder.name, "0"] for folder in packages.values()], done.stderr
    made = {
        "intervention": "results/importance/heatmap.png", "analysis": "results/try_analysis/means.png", "tracker": "unit-times.csv",
    }  # fmt: skip
    for kind in set(made) & set(kinds):
        file = packages[kind] / "runs" / packages[kind].name / made[kind]
        assert file.stat().st_size > (10_000 if file.suffix == ".png" else 20), file


# ------------------------------------------------------------------------------------------ what is written


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_whole(kind: str) -> None:
    texts = rendered(Names(kind, "my_own"))
    assert set(texts) >= {"pyproject.toml", "README.md", ".gitignore", "examples/experiment.yaml", "tests/test_my_own.py"}
    project = tomllib.loads(texts["pyproject.toml"])
    assert project["project"]["name"] == "codi-engine-my-own"
    assert project["project"]["entry-points"]["codi_engine"] == {"my_own": "codi_engine_my_own"}
    for path, text in texts.items():
        assert "$" not in text.replace('*$"', ""), path
        assert all(line == line.rstrip() and len(line) <= 160 for line in text.splitlines()), path
        if path.endswith(".py"):
            ast.parse(text)
    from codi_engine.core.yamlfile import parse_yaml

    Experiment.from_dict(parse_yaml(texts["examples/experiment.yaml"], "example")[0])
    for command in ("pip install", "pytest", "codi-engine run examples/experiment.yaml"):
        assert command in texts["README.md"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_clean(kind: str, tmp_path: Path) -> None:
    ruff = Path(sys.executable).with_name("ruff")
    if not ruff.exists():
        pytest.skip("ruff is not installed")
    for name in ("q", "a-name-as-long-as-may-be"):
        assert main(["new-plugin", name, "--kind", kind, "--directory", str(tmp_path)]) == 0
    done = subprocess.run([ruff, "check", "--no-cache", "."], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
    done = subprocess.run([ruff, "format", "--no-cache", "--check", "."], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


def test_kinds_are_the_engines() -> None:
    assert set(KINDS) == set(KNOWN)
    assert {kind: Names(kind, "x").values()["hook"] for kind in KINDS} == HOOKS
    assert {kind: Names(kind, "x").values()["Base"] for kind in KINDS} == {kind: cls.__name__ for kind, cls in KNOWN.items()}


def test_three_next_commands_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-plugin", "codi-engine-scale", "--kind", "intervention", "--directory", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == f"{tmp_path / 'codi-engine-scale'}: an intervention called scale, in src/codi_engine_scale/scale.py"
    assert [line.split()[0] for line in out.splitlines()[3:]] == ["cd", "python", "python", "codi-engine"]


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Scale It", "--kind", "metric"], "'Scale It': write small letters, digits and single dashes, 24 at most, such as scale-it"),
        (["../x", "--kind", "metric"], "write small letters"),
        (["3d", "--kind", "metric"], "write small letters, digits and single dashes, 24 at most, such as d"),
        (["a" * 25, "--kind", "metric"], "write small letters"),
        (["", "--kind", "metric"], "write small letters"),
        (["lambda", "--kind", "metric"], "stands for something else in Python or in codi-engine; call it my-lambda"),
        (["none", "--kind", "metric"], "call it my-none"),
        (["metrics", "--kind", "metric"], "call it my-metrics"),
        (["there", "--kind", "metric"], "codi-engine-there' is there already; choose another name or --directory"),
        (["scale", "--kind", "metric", "--directory", "nowhere"], "--directory: 'nowhere' is no directory; make it first, or give another"),
        (["zero", "--kind", "intervention"], "'zero' is a built-in intervention, which keeps its short name; call it my-zero"),
        (["logit-lens", "--kind", "analysis"], "'logit-lens' is a built-in analysis, which keeps its short name; call it my-logit-lens"),
        (["scale", "--kind", "figure"], "'figure' is not one of"),
        (["scale"], "Missing option '--kind'"),
    ],
)
def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: Sequence[str], said: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "codi-engine-there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(["new-plugin", *arguments]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) <= 2
    assert sorted(tmp_path.rglob("*")) == before


@given(st.text(st.sampled_from("abz09-_ ./é"), max_size=45))
def test_a_name_that_passes_is_a_name_everywhere(text: str) -> None:
    try:
        snake = _checked(text)
    except UserError:
        return
    names = Names("metric", snake)
    assert snake.isidentifier()
    assert names.cls.isidentifier()
    compile(f"from {names.module}.{snake} import {names.cls}", "x", "exec")
