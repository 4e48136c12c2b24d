"""``codi-engine plugins``, and what other commands say of plugins that are left out or fail."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from codi_engine.cli.main import main
from codi_engine.core import hookspecs
from codi_engine.core.plugins import ENVIRONMENT

Run = Callable[..., tuple[int, str, str]]

HALVE = '''
from codi_engine import hookimpl
from codi_engine.core.plugin import Analysis, AnalysisResult, Intervention, NoOptions, Options


class HalveOptions(Options):
    """``factor``: what values are multiplied by. ``steps``: at these."""

    factor: float
    steps: list[int] = [0, 1]


class Halve(Intervention[HalveOptions]):
    """Multiply the values \x1b[31mof a site."""

    name = "halve"
    Options = HalveOptions

    def apply(self, rows):
        {body}


class Fails(Analysis[NoOptions]):
    """Raise."""

    name = "fails"
    Options = NoOptions

    def analyze(self, runs, work):
        raise LookupError("nothing there")


@hookimpl
def interventions():
    return [Halve]


@hookimpl
def analyses():
    return [Fails]
'''

FILE = """
name: small
model: {plugin: codi, checkpoint: demo, device: cpu}
data: {plugin: demo-problems, limit: 2}
intervention: {plugin: halve, site: resid_post, factor: 0.5, layer: 0, step: 0}
metrics: [kl]
generate: {max_new_tokens: 6}
controls: none
analyses: [fails, importance]
"""


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line where codi-halve 0.3 and the broken codi-broken 1.0 are installed: (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    home = tmp_path / "site"
    home.mkdir()
    monkeypatch.syspath_prepend(str(home))
    tag = re.sub(r"\W", "_", tmp_path.name)
    for package, version, body in (
        ("codi-halve", "0.3", HALVE.replace("{body}", "return rows.values * self.options.factor")),
        ("codi-broken", "1.0", "import no_such_module_at_all"),
    ):
        module = f"{package.replace('-', '_')}_{tag}"
        (home / f"{module}.py").write_text(body, encoding="utf-8")
        folder = home / f"{package.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n", encoding="utf-8")
        (folder / "entry_points.txt").write_text(f"[{hookspecs.PROJECT}]\nit = {module}\n", encoding="utf-8")
    (tmp_path / "small.yaml").write_text(FILE, encoding="utf-8")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


LEFT_OUT = "left out: codi-broken 1.0: cannot be imported: ModuleNotFoundError: No module named 'no_such_module_at_all'"


@pytest.mark.parametrize("width", ["80", "160"])
def test_the_list_fits_the_screen(cli: Run, monkeypatch: pytest.MonkeyPatch, width: str) -> None:
    monkeypatch.setenv("COLUMNS", width)
    code, out, err = cli("plugins")
    assert code == 0
    assert err.splitlines() == [LEFT_OUT]
    lines = out.splitlines()
    assert max(map(len, lines)) <= int(width)
    assert [line for line in lines if line and not line.startswith(" ")] == ["models", "datasets", "interventions", "metrics", "analyses", *_more(lines)]
    row = next(line for line in lines if line.startswith("  halve"))
    assert row.split()[:3] == ["halve", "codi-halve", "0.3"]
    assert "\\x1b[31mof a site." in " ".join(out.split()).replace("values \\x1b", "values \\x1b")
    assert "\x1b" not in out


def _more(lines: list[str]) -> list[str]:
    """The headings after the five that are always there."""
    return [line for line in lines if line in ("trackers", "sae formats")]


def test_one_kind_only(cli: Run) -> None:
    _, out, _ = cli("plugins", "--kind", "analysis")
    assert [line for line in out.splitlines() if not line.startswith(" ")] == ["analyses"]
    assert re.search(r"^  fails +codi-halve 0\.3 +Raise\.", out, re.MULTILINE)
    code, _, err = cli("plugins", "--kind", "nothing")
    assert code == 2
    assert "'nothing' is not one of 'model', 'dataset'" in err


def test_everything_as_json(cli: Run) -> None:
    code, out, _ = cli("plugins", "--json")
    value = json.loads(out)
    assert code == 0
    assert value["left_out"] == [
        {"package": "codi-broken", "version": "1.0", "problem": LEFT_OUT.partition("1.0: ")[2]},
    ]
    halve = next(p for p in value["plugins"] if p["name"] == "halve")
    assert (halve["kind"], halve["package"], halve["version"], halve["write"]) == ("intervention", "codi-halve", "0.3", "halve")
    assert halve["options"] == [
        {"name": "factor", "type": "number", "required": True, "help": "what values are multiplied by"},
        {"name": "steps", "type": "list of whole numbers", "required": False, "default": [0, 1], "help": "at these"},
    ]
    assert halve["example"] == "intervention: {plugin: halve, site: resid_post, factor: 1.0}\nsweep: {layer: all, step: all}"


@pytest.mark.parametrize("width", [80, 160])
def test_one_plugin(cli: Run, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, err = cli("plugins", "show", "codi-halve/halve")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= width
    assert out.startswith("intervention halve (codi-halve 0.3)\n")
    assert re.search(r"^factor +number +required +what values are multiplied by", out, re.MULTILINE)
    assert re.search(r"^steps +list of whole +\[0, 1\] +at these" if width == 80 else r"^steps +list of whole numbers +\[0, 1\] +at these", out, re.MULTILINE)
    assert "  intervention: {plugin: halve, site: resid_post, factor: 1.0}\n  sweep: {layer: all, step: all}\n" in out
    assert json.loads(cli("plugins", "show", "halve", "--json")[1])[0]["name"] == "halve"


def test_an_unknown_plugin_may_be_one_that_was_left_out(cli: Run) -> None:
    code, out, err = cli("plugins", "show", "halfe")
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"error: plugins show: unknown plugin 'halfe'; did you mean 'halve'.*\?\n{re.escape(LEFT_OUT)}\n", err)
    code, _, err = cli("plan", "small.yaml", "-s", "intervention.plugin=halfe")
    assert code == 2
    assert re.search(rf"unknown intervention 'halfe'; did you mean 'halve'.*\?\n{re.escape(LEFT_OUT)}\n$", err)


def test_commands_that_use_plugins_say_once_what_is_left_out(cli: Run) -> None:
    code, out, err = cli("plan", "small.yaml")
    assert (code, err.count("left out")) == (0, 1)
    assert LEFT_OUT not in out
    assert "left out" not in cli("plan", "small.yaml", "--quiet")[2]


def test_the_environment_restricts_the_command_too(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "")
    code, out, err = cli("plugins")
    assert (code, err) == (0, "")
    assert "halve" not in out
    monkeypatch.setenv(ENVIRONMENT, "codi-halve,codi-nowhere")
    code, out, err = cli("plugins")
    assert "halve" in out
    assert err == "left out: codi-nowhere: named in CODI_ENGINE_PLUGINS, but no such package with codi-engine plugins is installed\n"


def test_an_analysis_that_fails_is_named_at_the_end(cli: Run, tmp_path: Path) -> None:
    code, out, err = cli("run", "small.yaml", "--quiet")
    assert code == 1
    assert "strongest: halve layer 0 step 0" in out  # what importance says is shown all the same
    lines = err.splitlines()
    assert len(lines) == 2
    assert re.match(r"error: analysis 'fails' \(codi-halve 0\.3\) failed in analyze\(\), codi_halve_.*\.py:\d+: LookupError: nothing there\.$", lines[0])
    assert lines[1] == "What is committed stays; after mending it the same command goes on. --debug shows the traceback."
    assert (tmp_path / "runs/small/results/importance/effects.parquet").is_file()
    code, out, err = cli("analyze", "runs/small", "--quiet")
    assert code == 1
    assert "effects" in out
    assert "LookupError: nothing there" in err
    with pytest.raises(Exception, match="LookupError") as caught:
        main(["analyze", "runs/small", "fails", "--quiet", "--debug"])
    assert isinstance(caught.value.__cause__, LookupError)
