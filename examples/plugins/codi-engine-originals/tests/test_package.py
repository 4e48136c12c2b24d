"""The package as users meet it: discovered, documented, its experiments plannable, installable."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import codi_engine
from codi_engine import Experiment
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import plan_experiment

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MINE = "codi-engine-originals"


def test_it_is_discovered_again_and_again() -> None:
    for _ in range(2):
        plugins = plugin_manager()
        assert plugins.problems == []
        names = {f"{r.kind}:{r.name}" for r in plugins.registered if r.package == MINE}
        assert names == {
            "model:ce-codi", "model:flat-pad", "intervention:ce-patch", "intervention:ce-zero", "intervention:early-swap",
            "metric:original-answer", "metric:answer-logit-diff", "analysis:original-recovery", "analysis:original-importance",
        }  # fmt: skip


def test_without_it_none_of_its_names_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODI_ENGINE_PLUGINS", "")
    assert {r.package for r in plugin_manager().registered} == {"codi-engine"}


def test_the_readme_names_every_plugin_and_option() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for item in plugin_manager().registered:
        if item.package == MINE:
            assert f"`{item.name}`" in text, item.name
            own = set(item.cls.Options.model_fields) - set(plugin_manager().get("model", "codi").Options.model_fields)
            assert [o for o in own if not re.search(rf"`{o}\b", text)] == [], item.name
    assert [p.name for p in EXAMPLES if p.name not in text] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_its_experiments_plan(path: Path) -> None:
    experiment = Experiment.from_file(path)
    assert experiment.name == path.stem
    assert plan_experiment(experiment, limit=3).cells > 0


def test_check_says_what_the_gate_lets_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from click.testing import CliRunner

    from codi_engine.cli.main import cli

    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["check", str(ROOT / "examples" / "004-step-importance.yaml"), "-q", "--device", "cpu"])
    assert done.exit_code == 0
    said = " ".join(done.output.split())
    assert "self-patch is an identity" not in said
    assert "let pass unproved: ce-zero: the hook fires at CE-steps 0 to i − 1, bot and latents, and in the prefill" in said


@pytest.mark.slow
def test_pip_installs_it_and_the_engine_finds_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist"))
    venv.create(tmp_path / "venv", with_pip=True, system_site_packages=False)
    python = tmp_path / "venv" / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", source], check=True, timeout=300)
    engine = [str(Path(codi_engine.__file__).parents[1]), *[p for p in sys.path if p.endswith("site-packages")]]
    code = (
        f"import sys; sys.path += {engine!r}\n"
        "from codi_engine.core.plugins import plugin_manager\n"
        "found = plugin_manager()\n"
        f"print(sorted(r.name for r in found.registered if r.package == {MINE!r}), found.problems)\n"
    )
    said = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True, timeout=300).stdout
    assert "'ce-codi'" in said
    assert "'original-recovery'" in said
    assert said.strip().endswith("[]")
