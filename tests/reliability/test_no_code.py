"""Nothing that is read can become code: the calls that would allow it do not occur, and a checkpoint's own code is not run unasked."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from codi_engine.cli.main import main
from codi_engine.core.errors import UserError
from codi_engine.plugins.models.hf import read_config, read_tokenizer
from codi_engine.testing import tiny
from tests.support.badfiles import written

ROOT = Path(__file__).parents[2]
SOURCES = sorted(
    [*(ROOT / "src").rglob("*.py"), *(p for p in (ROOT / "examples").rglob("*.py") if "tests" not in p.parts), *(ROOT / "benchmarks").rglob("*.py")]
)

MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "cloudpickle",
    "dill",
    "joblib",
    "marshal",
    "shelve",
    "xml",
    "lxml",
    "defusedxml",
    "code",
    "codeop",
    "imp",
    "runpy",
    "jsonpickle",
}
BUILTINS = {"eval", "exec", "compile", "__import__"}
#: dotted ends of calls that are never made
CALLS = {
    "os.system",
    "os.popen",
    "os.execv",
    "os.execvp",
    "os.spawnl",
    "os.spawnv",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "torch.jit.load",
    "torch.hub.load",
    "pd.read_pickle",
    "pandas.read_pickle",
    "np.fromregex",
    "shutil.unpack_archive",
    "asyncio.create_subprocess_shell",
}
#: (file, what): why it is right there
ALLOWED = {
    ("src/codi_engine/core/imports/foreign.py", "pickle"): "names the error by which torch refuses one",
    ("src/codi_engine/plugins/models/causal_lm.py", "trust_remote_code"): "the option that the user names",
    ("src/codi_engine/plugins/models/hf.py", "trust_remote_code"): "handed on from that option; False everywhere else",
}


def _name(node: ast.AST) -> str:
    """Return a call's dotted name."""
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def _true(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and node.value is True


def dangerous(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield (line, what) of everything that could turn what is read into code."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in MODULES and not node.level:
            yield node.lineno, str(node.module)
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[tuple[int, str]]:
    name, given = _name(node.func), {k.arg: k.value for k in node.keywords}
    last = name.rpartition(".")[2]
    if name in BUILTINS or name in CALLS:
        yield node.lineno, name
    if name == "torch.load" and not _true(given.get("weights_only")):
        yield node.lineno, "torch.load without weights_only=True"
    if name in ("np.load", "numpy.load", "np.fromfile") and last == "load":
        refused = given.get("allow_pickle")
        if not (isinstance(refused, ast.Constant) and refused.value is False):
            yield node.lineno, "np.load without allow_pickle=False"
    if "shell" in given and not (isinstance(given["shell"], ast.Constant) and given["shell"].value is False):
        yield node.lineno, "shell="
    if "allow_pickle" in given and _true(given["allow_pickle"]):
        yield node.lineno, "allow_pickle=True"
    trusted = given.get("trust_remote_code")
    if trusted is not None and not (isinstance(trusted, ast.Constant) and trusted.value is False):
        yield node.lineno, "trust_remote_code"
    if last in ("extractall", "extract") and name.partition(".")[0] in ("archive", "tar", "zip", "zipfile", "tarfile"):
        yield node.lineno, name


def test_nothing_that_runs_what_it_reads() -> None:
    found = []
    for path in SOURCES:
        file = path.relative_to(ROOT).as_posix()
        for line, what in dangerous(ast.parse(path.read_text(encoding="utf-8"))):
            if (file, what) not in ALLOWED:
                found.append(f"{file}:{line}: {what}")
    assert found == []
    assert len(SOURCES) > 200


@pytest.mark.parametrize(
    "text",
    [
        "eval('1')",
        "import pickle",
        "from pickle import loads",
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "np.load(f)",
        "np.load(f, allow_pickle=True)",
        "yaml.load(f, Loader=L)",
        "f(trust_remote_code=True)",
        "f(trust_remote_code=x)",
        "subprocess.run(a, shell=True)",
        "os.system('a')",
        "tempfile.mktemp()",
        "import xml.etree",
        "archive.extractall(p)",
        "__import__('os')",
    ],
)
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert list(dangerous(ast.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "re.compile('a')",
        "torch.load(f, weights_only=True)",
        "np.load(f, allow_pickle=False)",
        "yaml.safe_load(f)",
        "f(trust_remote_code=False)",
        "m.group()",
    ],
)
def test_the_search_finds_nothing_else(text: str) -> None:
    assert not list(dangerous(ast.parse(text)))


# ---------------------------------------------------------------------------------- a checkpoint's own code


def _armed(folder: Path, mark: Path) -> Path:
    """Make a checkpoint whose Python code, once run, leaves a mark."""
    shot = f"open({str(mark)!r}, 'w').close()\n"
    (folder / "configuration_mine.py").write_text(
        f"{shot}from transformers import PretrainedConfig\nclass MineConfig(PretrainedConfig):\n    model_type = 'mine'\n"
    )
    (folder / "modeling_mine.py").write_text(f"{shot}class Mine:\n    pass\n")
    (folder / "tokenization_mine.py").write_text(f"{shot}from transformers import PreTrainedTokenizer\nclass MineTokenizer(PreTrainedTokenizer):\n    pass\n")
    mapped = {
        "AutoConfig": "configuration_mine.MineConfig",
        "AutoModelForCausalLM": "modeling_mine.Mine",
        "AutoTokenizer": ["tokenization_mine.MineTokenizer", None],
    }
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    (folder / "config.json").write_text(json.dumps({"model_type": "mine", "auto_map": mapped, **sizes}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MineTokenizer", "auto_map": mapped}))
    return folder


@pytest.fixture
def armed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "armed").mkdir()
    return _armed(tmp_path / "armed", tmp_path / "mark")


def test_code_of_a_checkpoint_is_not_run(armed: Path) -> None:
    for read in (read_config, read_tokenizer):
        with pytest.raises(UserError, match="trust_remote_code: true"):
            read(str(armed), "model.path")
    for model in (
        {"plugin": "causal_lm", "path": "armed"},
        {"plugin": "codi", "checkpoint": "armed", "base": "armed"},
        {"plugin": "coconut", "checkpoint": "armed", "base": "armed"},
    ):
        Path("mine.yaml").write_bytes(written({"name": "mine", "model": model, "data": "demo-problems"}))
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            assert main(["plan", "-q", "mine.yaml"]) == 2
        assert "mine.yaml" in said.getvalue(), said.getvalue()
        assert said.getvalue().count("\n") <= 2
    assert not (armed.parent / "mark").exists()


def test_code_of_a_tokenizer_is_not_run(armed: Path) -> None:
    whole = tiny.tiny_causal_lm(armed.parent / "gpt2", "gpt2")
    for name in ("tokenizer_config.json", "tokenization_mine.py"):
        shutil.copy(armed / name, whole / name)
    (whole / "tokenizer.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"model\.path \(tokenizer\).*brings Python code|tokenizer"):
        read_tokenizer(str(whole), "model.path")
    assert not (armed.parent / "mark").exists()


def test_it_is_run_where_that_is_asked_for(armed: Path) -> None:
    assert read_config(str(armed), "model.path", trusted=True).model_type == "mine"
    assert (armed.parent / "mark").exists()
