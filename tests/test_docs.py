"""Documents and examples say what is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from codi_engine.cli.main import cli
from codi_engine.core.experiment import Condition, Experiment, Generate, InterventionSpec
from codi_engine.core.planning.checkpoints import plan_checkpoints
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.running.run import plan_experiment
from codi_engine.core.sites import _TRANSFORMERLENS, COMPONENTS, parse_site

ROOT = Path(__file__).parents[1]
KEYS = "\n".join((ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("experiment-file.md", "analyses.md"))
SITES = (ROOT / "docs" / "sites.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))


@pytest.mark.parametrize("model", [Experiment, Condition, Generate, InterventionSpec])
def test_every_key_is_documented(model: type[Experiment | Condition | Generate | InterventionSpec]) -> None:
    missing = [key for key in model.model_fields if f"`{key}`" not in KEYS]
    assert missing == []


def test_every_builtin_plugin_and_its_options_are_documented() -> None:
    for item in plugin_manager(load=False).registered:
        assert f"`{item.name}`" in KEYS, item.name
        missing = [key for key in item.cls.Options.model_fields if not re.search(rf"`{key}\b", KEYS)]
        assert missing == [], item.name


def test_every_component_is_documented() -> None:
    assert [c for c in COMPONENTS if f"`{c}`" not in SITES] == []


def test_the_addresses_of_the_docs_are_read() -> None:
    block = re.search(r"\n\n((?:    .+\n)+)", SITES)
    assert block is not None
    for line in block[1].splitlines():
        parse_site(line.split()[0])
    named = re.findall(r"`(blocks\.\d+\.[\w.]+|(?:model\.layers|transformer\.h)\.\d+[\w.]*)`", SITES)
    assert len(named) > 8
    for name in named:
        assert parse_site(name).layer == 8
    assert "hook_resid_post" in _TRANSFORMERLENS


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_plan(path: Path) -> None:
    experiment = Experiment.from_file(path)
    assert experiment.name == path.stem
    summaries = [plan_experiment(experiment, limit=3)] if experiment.checkpoints is None else list(plan_checkpoints(experiment, limit=3).values())
    for summary in summaries:
        assert summary.cells > 0 or experiment.intervention is None
        assert 0 < summary.seconds < 90


def test_the_readme_names_commands_that_exist() -> None:
    used = set(re.findall(r"codi-engine (\w[\w-]*)", "\n".join(re.findall(r"^    .*$", README, re.MULTILINE))))
    assert used <= set(cli.commands)
    assert set(cli.commands) <= used
    targets = set(re.findall(r"^    make (\w+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets == {"demo", "test"}
    assert all(re.search(rf"^{t}:", makefile, re.MULTILINE) for t in targets)


def test_the_readmes_experiment_is_valid() -> None:
    text = re.search(r"```yaml\n(.+?)```", README, re.DOTALL)
    assert text is not None
    from codi_engine.core.yamlfile import parse_yaml

    assert Experiment.from_dict(parse_yaml(text[1], "README")[0]).name == "position-patching"


@pytest.mark.parametrize("document", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / target).exists(), target


def test_paths_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:core|plugins|store|cli|reporting|testing)(?:/\w+)+\.py)`", text)
    assert len(named) > 20
    assert [n for n in named if not (ROOT / "src/codi_engine" / n).is_file()] == []
