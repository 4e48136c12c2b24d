"""The command line: what it prints, what it returns, how fast it starts, and what it says to bad input."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

import pytest

from codi_engine import __version__
from codi_engine.cli.main import main

DEMO = files("codi_engine.plugins").joinpath("demo")
HEAVY = ("torch", "transformers", "numpy", "pandas", "zarr", "xarray", "matplotlib", "numba", "pydantic", "pyarrow", "rich", "scipy")
SOURCE = Path(__file__).parents[2] / "src"
#: of processes started here: this checkout, whatever is installed
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE), "CODI_ENGINE_PLUGINS": ""}
COMMANDS = ("run", "plan", "status", "ls", "check", "analyze", "plugins", "import")
#: DESIGN.md, People
HELP_SECONDS = 0.3

SMALL = """
name: small
model: {plugin: codi, checkpoint: demo, device: cpu}
data: {plugin: demo-pairs, both_correct: true, limit: 3}
intervention: {plugin: patch, site: resid_post, direction: denoise}
sweep: {layer: [0, 3], step: [0, 5]}
metrics: [normalized_effect, flip]
generate: {max_new_tokens: 8}
controls: none
analyses: [importance]
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory holding ``small.yaml``, and nothing of the user's environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CODI_ENGINE_PLUGINS", "")
    monkeypatch.setenv("COLUMNS", "100")
    (tmp_path / "small.yaml").write_text(SMALL, encoding="utf-8")
    return tmp_path


@pytest.fixture
def cli(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process: (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return call


def refused(result: tuple[int, str, str], *parts: str) -> None:
    """The user's mistake: exit code 2, nothing on standard output, one or two lines that say what and what to do."""
    code, out, err = result
    assert code == 2, (code, out, err)
    lines = [line for line in err.splitlines() if line not in ("loading the model", "analysis importance")]
    assert lines[0].startswith("error: ")
    assert len(lines) <= 2, err
    assert out == ""
    for part in parts:
        assert part in err


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, env=ENVIRONMENT)


# ----------------------------------------------------------------------------------------------- starting


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([c, "--help"] for c in COMMANDS)])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = f"""
import sys
from codi_engine.cli.main import main
main({arguments!r})
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = python("-c", code)
    assert done.returncode == 0
    assert done.stderr.strip() == "[]"


def test_help_is_fast() -> None:
    def seconds() -> float:
        begun = time.perf_counter()
        assert python("-m", "codi_engine", "--help").returncode == 0
        return time.perf_counter() - begun

    assert min(seconds() for _ in range(5)) < HELP_SECONDS


def test_importing_the_package_imports_nothing_heavy() -> None:
    done = python("-c", f"import sys, codi_engine; print(sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert done.stdout.strip() == "[]"


def test_public_names_resolve_and_others_do_not() -> None:
    import codi_engine

    assert all(getattr(codi_engine, name) is not None for name in codi_engine.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = codi_engine.nothing


def test_help_names_every_command(cli: Run) -> None:
    code, out, err = cli("--help")
    assert (code, err) == (0, "")
    assert all(re.search(rf"^  {c}\b", out, re.MULTILINE) for c in COMMANDS)
    assert cli() == (0, out, "")


def test_version(cli: Run) -> None:
    assert cli("--version") == (0, f"codi-engine, version {__version__}\n", "")


# -------------------------------------------------------------------------------------------- good input


def test_run_then_again_then_larger(cli: Run, here: Path) -> None:
    code, out, _ = cli("run", "small.yaml")
    assert code == 0
    assert "18 (all new)" in out  # 3 pairs × (2 layers × 2 steps + 2 unedited)
    assert "layer × step" in out
    assert "runs/small/results/importance/heatmap.png" in out
    assert 'codi_engine.open_run("runs/small").cells' in out
    assert (here / "runs/small/results/importance/heatmap.png").stat().st_size > 1000
    assert all(len(line) <= 100 for line in out.splitlines())
    code, out, err = cli("run", "small.yaml", "--quiet")
    assert (code, err) == (0, "")
    assert "18 (none new" in out
    code, out, _ = cli("run", "small.yaml", "--limit", "4")
    assert code == 0
    assert "24 (6 new)" in out
    refused(cli("run", "small.yaml", "-s", "seed=1"), "holds another experiment", "seed: 0 → 1", '--output "runs/{date}_{name}_s{seed}"')
    code, out, _ = cli("run", "small.yaml", "-s", "seed=1", "--output", "elsewhere/{name}_s{seed}")
    assert code == 0
    assert (here / "elsewhere/small_s1/ledger").is_file()
    refused(cli("analyze", "runs/small", "importanc"), "'importanc' is neither a run directory nor an analysis; did you mean 'importance'")
    refused(cli("analyze", "runs/small", "importance", "-s", "by=step_count"), "no field 'step_count'")
    refused(cli("analyze", "runs/small", "importance", "-s", "metric"), "write option=value")
    code, out, _ = cli("analyze", "runs/small", "importance", "-s", "metric=flip")
    assert code == 0
    assert "mean flip by layer × step" in out


def test_dry_run_computes_and_writes_nothing(cli: Run, here: Path) -> None:
    code, out, err = cli("run", "small.yaml", "--dry-run")
    assert (code, err) == (0, "")
    rows = dict(line.split(None, 1) for line in out.splitlines() if line.strip())
    assert {"experiment", "model", "data", "cells", "units", "forwards", "disk", "time", "output"} <= set(rows)
    assert rows["cells"].startswith("12 edited + 6 unedited")
    assert [p.name for p in here.iterdir()] == ["small.yaml"]


def test_dry_run_without_a_file_is_the_demo(cli: Run) -> None:
    code, out, _ = cli("run", "--dry-run", "--limit", "2")
    assert code == 0
    assert re.search(r"^experiment\s+demo\b", out, re.MULTILINE)
    assert re.search(r"patch at resid_post, latent: layer \d+ × step \d+", out)
    assert re.search(r"zero at latent_in, latent: step \d+", out)


def test_check_shows_where_edits_fire(cli: Run, here: Path) -> None:
    code, out, _ = cli("check", "small.yaml", "--limit", "1")
    assert code == 0
    assert re.search(r"patch\s+resid_post\.0@latent\s+0, 5\s+2 of 2\s+[\d.]+ → [\d.]+\s+exact", out)
    assert "self-patch is an identity" in out
    assert not (here / "runs").exists()


def test_plugins_lists_and_shows(cli: Run) -> None:
    code, out, err = cli("plugins")
    assert (code, err) == (0, "")
    assert all(re.search(rf"^{heading}$", out, re.MULTILINE) for heading in ("models", "datasets", "interventions", "metrics", "analyses"))
    assert re.search(r"^  normalized_effect\s+codi-engine [\d.]+\s+\(edited", out, re.MULTILINE)
    code, out, _ = cli("plugins", "show", "steer")
    assert code == 0
    assert re.search(r"^intervention steer \(codi-engine [\d.]+\)$", out, re.MULTILINE)
    assert re.search(r"^alpha\s+number\s+1\.0\s+alpha scales it", out, re.MULTILINE)


@pytest.mark.slow
def test_an_interrupted_run_says_so_and_keeps_its_units(here: Path) -> None:
    command = [sys.executable, "-m", "codi_engine", "run", "small.yaml", "--limit", "200", "-s", "sweep={layer: all, step: all}", "--quiet"]
    process = subprocess.Popen(command, cwd=here, env=ENVIRONMENT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ledger = here / "runs/small/ledger"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and not (ledger.exists() and b'"kind":"unit"' in ledger.read_bytes()):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert out == ""
    first, second = err.strip().splitlines()
    assert re.fullmatch(r"stopped; \d+ of \d+ units \([\d,]+ of [\d,]+ cells\) are committed in runs/small", first), first
    assert second == f"{shlex.join(['codi-engine', *command[3:]])} goes on"
    there = ledger.read_bytes().count(b'"kind":"unit"')
    assert f"stopped; {there} of" in first


# --------------------------------------------------------------------------------------- bad command lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "No such command 'rnu'"),
        (["run", "--limt", "3"], "No such option"),
        (["run", "--limit", "0"], "'--limit'"),
        (["run", "--limit", "many"], "'--limit'"),
        (["run", "a.yaml", "b.yaml"], "unexpected extra argument"),
        (["plugins", "show"], "Missing argument 'NAME'"),
        (["plugins", "show", "patsh"], "did you mean 'patch'"),
        (["analyze"], "Missing argument"),
        (["analyze", "runs/nothing"], "runs/nothing: holds no run"),
        (["run", "small.yaml", "-s", "seed"], "write a.b=value"),
        (["run", "small.yaml", "-s", "sede=1"], "unknown key 'sede'; did you mean 'seed'"),
        (["run", "small.yaml", "-s", "metrics[9]=kl"], "the list has 2 entries"),
        (["run", "small.yaml", "--output", "runs/{nmae}"], "may use {date}, {name} and {seed} only"),
        (["run", "small.yaml", "--output", "small.yaml/run"], "small.yaml/run: "),
        (["run", "small.yaml", "--device", "tpu9"], "device"),
    ],
)
def test_a_bad_command_line_is_refused(cli: Run, arguments: Sequence[str], message: str) -> None:
    refused(cli(*arguments), message)


def test_debug_shows_the_traceback(here: Path) -> None:
    from codi_engine.core.errors import UserError

    with pytest.raises(UserError):
        main(["run", "nothing.yaml", "--debug"])


def test_control_characters_of_a_file_do_not_reach_the_terminal(cli: Run, here: Path) -> None:
    (here / "evil.yaml").write_text(SMALL.replace("name: small", 'name: "\\e[31mred"'), encoding="utf-8")
    result = cli("run", "evil.yaml")
    refused(result)
    assert "\x1b" not in result[2]


# ---------------------------------------------------------------------------------------- bad experiments


@pytest.mark.parametrize("name", ["nothing.yaml", "folder", "latin.yaml", "empty.yaml"])
def test_a_file_that_cannot_be_read(cli: Run, here: Path, name: str) -> None:
    (here / "folder").mkdir()
    (here / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    (here / "empty.yaml").write_text("", encoding="utf-8")
    refused(cli("run", name), name)


def edited(old: str, new: str) -> str:
    assert old in SMALL
    return SMALL.replace(old, new)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (edited("sweep: {", "sweep: {{"), ("bad.yaml:", "not valid YAML")),
        (SMALL + "name: again\n", ("bad.yaml:11", "duplicate key 'name'", "line 2")),
        (SMALL + "metircs: [kl]\n", ("bad.yaml", "unknown key 'metircs'", "did you mean 'metrics'")),
        (edited("limit: 3", "limit: 3, limti: 4"), ("bad.yaml", "unknown key 'limti'", "'limit'")),
        (edited("limit: 3", "limit: three"), ("bad.yaml", "data.limit", "'three'")),
        (edited("limit: 3", "limit: true"), ("bad.yaml", "data.limit")),
        (edited("max_new_tokens: 8", "max_new_tokens: 1e3"), ("generate.max_new_tokens", "YAML reads 1e3 as text; write 1000")),
        (edited("name: small\n", ""), ("bad.yaml", "name: is missing")),
        (edited("name: small", "name: ../small"), ("bad.yaml", "name", "plain file name")),
        (edited("plugin: codi", "plugin: cody"), ("unknown model 'cody'", "did you mean 'codi'")),
        (edited("plugin: demo-pairs", "plugin: demo-pears"), ("unknown dataset 'demo-pears'", "'demo-pairs'")),
        (edited("plugin: patch", "plugin: pach"), ("unknown intervention 'pach'", "'patch'")),
        (edited("flip]", "flop]"), ("unknown metric 'flop'", "'flip'")),
        (edited("[importance]", "[importanc]"), ("unknown analysis 'importanc'", "'importance'")),
        (edited("resid_post", "resid_pots"), ("unknown site 'resid_pots'", "'resid_post'")),
        (edited("layer: [0, 3]", "layer: [0, 4]"), ("`layer` must be in 0..3", "got 4", "sweep.layer[1]")),
        (edited("step: [0, 5]", "step: [0, 6]"), ("`step` must be in 0..5 for a model with 6 latents", "got 6", "sweep.step[1]")),
        (edited("step: [0, 5]", "steps: [0, 5]"), ("unknown axis for 'patch'", "'step'")),
        (edited("step: [0, 5]", "step: evry"), ("'evry' is no value of `step`",)),
        (edited(", direction: denoise", ""), ("direction", "state denoise", "noise")),
        (edited("denoise", "denoize"), ("direction", "denoise")),
        (edited("metrics: [", "metrics: [norm, "), ("'norm' compares captures",)),
        (edited("demo-pairs, both_correct: true", "demo-problems"), ("'normalized_effect' does not apply to problems", "pairs")),
        (edited("demo-pairs, both_correct: true", "demo-problems").replace("normalized_effect, ", ""), ("needs clean/corrupted pairs",)),
    ],
)
def test_a_bad_experiment_is_refused(cli: Run, here: Path, text: str, parts: Sequence[str]) -> None:
    (here / "bad.yaml").write_text(text, encoding="utf-8")
    refused(cli("run", "bad.yaml"), *parts)
    assert not (here / "runs").exists()


PAIR = {"clean": {"question": "Tom has 2 pens and buys 3. How many pens?", "answer": 5}}


@pytest.mark.parametrize(
    ("records", "parts"),
    [
        (None, ("data.path", "no such file", "pairs.jsonl")),
        ("", ("pairs.jsonl", "no records")),
        ("{", ("pairs.jsonl:1", "not valid JSON")),
        (json.dumps({**PAIR, "corrupted": {"question": "Tom has 1 pen and buys 4. How many pens?", "answer": 5}}), ("pairs.jsonl", "equal answers")),
        (json.dumps({**PAIR, "corrupted": {"question": "Tom has 9 pens. How many pens?", "answer": "some"}}), ("pairs.jsonl", "unparsable")),
        (json.dumps({**PAIR, "corrupted": {"answer": 4}}), ("pairs.jsonl:1", "no field 'question'")),
    ],
)
def test_bad_data_is_refused(cli: Run, here: Path, records: str | None, parts: Sequence[str]) -> None:
    if records is not None:
        (here / "pairs.jsonl").write_text(records, encoding="utf-8")
    (here / "bad.yaml").write_text(edited("plugin: demo-pairs, both_correct: true", "plugin: pairs, path: pairs.jsonl"), encoding="utf-8")
    refused(cli("run", "bad.yaml"), *parts)


def weights(change: str, place: Path) -> None:
    """Write the demo's checkpoint, spoilt."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(DEMO / "checkpoint" / "model.safetensors"))
    name = "codi.base_model.model.transformer.h.0.ln_1.weight"
    if change == "missing":
        del tensors[name]
    elif change == "unexpected":
        tensors["extra.weight"] = tensors[name].clone()
    elif change == "shape":
        tensors[name] = tensors[name][:-1].clone()
    save_file(tensors, str(place / "model.safetensors"))
    if change == "truncated":
        file = place / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
    if change == "text":
        (place / "model.safetensors").write_text("not weights at all", encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("missing", ("1 missing key", "transformer.h.0.ln_1.weight")),
        ("unexpected", ("1 unexpected key", "extra.weight")),
        ("shape", ("ln_1.weight is 127, needed 128",)),
        ("truncated", ("model.checkpoint",)),
        ("text", ("model.checkpoint",)),
    ],
)
def test_a_bad_checkpoint_is_refused(cli: Run, here: Path, change: str, parts: Sequence[str]) -> None:
    (here / "spoilt").mkdir()
    weights(change, here / "spoilt")
    (here / "bad.yaml").write_text(edited("checkpoint: demo", f"checkpoint: spoilt, base: {DEMO / 'base'}"), encoding="utf-8")
    refused(cli("run", "bad.yaml"), *parts)


def test_a_checkpoint_that_is_not_there(cli: Run, here: Path) -> None:
    (here / "bad.yaml").write_text(edited("checkpoint: demo", f"checkpoint: ./nowhere, base: {DEMO / 'base'}"), encoding="utf-8")
    refused(cli("run", "bad.yaml"), "model.checkpoint", "nowhere")
