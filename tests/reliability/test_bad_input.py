"""Bad input ends in one or two lines, exit code 2, and nothing on disk: experiment files, data records, pairs files, names and paths.

The long forms draw 500 bad experiment files and 500 bad data records; the quick ones a handful of each.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from codi_engine.cli.main import main
from tests.support.badfiles import BOMBS, BadFile, bad_files, valid, written
from tests.support.badrecords import BadRecords, bad_records, experiment_of, good_records

#: longest that an error may take: a machine that does other things too is given twice the promised 5 s
SECONDS = 10
LONGEST_LINE = 700
#: words of which a message that says what to do has one
REMEDY = re.compile(
    r"\b(must|should|write|give|add|remove|"
    r"choose|convert|make|put|did you mean|known|needs?|takes?|mend|is missing|use|set|save|split|at most|unknown|there is no|has no|name|state|"
    r"stands? twice|is no|not valid|is not|are not|deeper|already|must not|holds|range|empty|"
    r"cannot|only|no such|in 0\.\.\d+|same computation)\b",
    re.IGNORECASE,
)


def _calm(examples: int) -> Callable[[Any], Any]:
    """Return the settings of a campaign: the same draws every time, no shrinking, all of them."""
    return settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory; home and the folder for temporary files lie beside it, empty too."""
    for name in ("work", "home", "tmp"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path / "work"


def refused(arguments: list[str], folder: Path, files: dict[str, bytes], broken: str) -> str:
    """Run a command that must refuse these files, and return what it says; nothing else may be there afterwards."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    said, printed = io.StringIO(), io.StringIO()
    begun = time.monotonic()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
        code = main(arguments)
    taken = time.monotonic() - begun
    text = said.getvalue()
    lines = text.rstrip("\n").split("\n")
    assert (code, text[:7]) == (2, "error: "), f"{broken}: exit code {code}: {text}{printed.getvalue()[:200]}"
    assert len(lines) <= 2, text
    assert max(map(len, lines)) <= LONGEST_LINE, text
    assert "Traceback" not in text, text
    assert REMEDY.search(text), text
    assert taken < SECONDS, f"{taken:.1f} s: {text}"
    for name in files:
        (folder / name).unlink()
    there = sorted(p for place in folder.parent.iterdir() for p in place.rglob("*"))
    assert [p for p in there if not p.name.startswith("torchinductor_")] == [], "something was written"  # torch makes that when it is imported
    return text


def refused_file(bad: BadFile, folder: Path) -> None:
    text = refused(["run", "-q", "bad.yaml"], folder, {"bad.yaml": bad.content}, bad.broken)
    assert "bad.yaml" in text, f"{bad.broken}: the file is not named: {text}"
    assert not bad.says or any(word in text for word in bad.says) or re.search(r"bad\.yaml:\d+", text), f"{bad.broken}: neither field nor line: {text}"


def memory() -> int:
    """Return the most bytes that this process has held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# ------------------------------------------------------------------------------------------ experiment files


@pytest.mark.parametrize("name", ["demo", "position-patching", "feature-patching"])
def test_unbroken_files_are_accepted(folder: Path, name: str) -> None:
    (folder / "good.yaml").write_bytes(written(valid()[name]))
    assert main(["plan", "-q", "good.yaml"]) == 0


@pytest.mark.slow
def test_every_unbroken_file_is_accepted(folder: Path) -> None:
    for value in valid().values():
        (folder / "good.yaml").write_bytes(written(value))
        assert main(["plan", "-q", "good.yaml"]) == 0, value["name"]


def _drawn(folder: Path, examples: int) -> int:
    seen: set[bytes] = set()

    @_calm(examples)
    @given(bad_files())
    def draw(bad: BadFile) -> None:
        if bad.content not in seen:
            seen.add(bad.content)
            refused_file(bad, folder)

    draw()
    return len(seen)


def test_bad_experiment_files(folder: Path) -> None:
    assert _drawn(folder, 24) >= 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_500_bad_experiment_files(folder: Path) -> None:
    before = memory()
    count = _drawn(folder, 620)
    grown = (memory() - before) / 1e6
    print(f"\nbad experiment files: {count} refused, {grown:.0f} MB more memory at most")
    assert count >= 500
    assert grown < 1000


@pytest.mark.slow
@pytest.mark.parametrize("what", sorted(BOMBS))
def test_files_that_are_no_yaml_or_too_much_of_it(folder: Path, what: str) -> None:
    base = {key: value for key, value in valid()["demo"].items() if key not in ("notes", "sweep", "generate", "seed")}
    refused_file(BadFile(what, BOMBS[what](written(base).decode())), folder)


@contextlib.contextmanager
def _odd(folder: Path, kind: str) -> Iterator[str]:
    """Make something that is no regular file, and yield its path."""
    path = folder / "odd.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link to a device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("odd.yaml")
    else:
        path = Path(kind)
    yield str(path) if path.is_absolute() and not path.is_relative_to(folder) else path.name
    if path.is_relative_to(folder) and (path.is_symlink() or path.exists()):
        path.rmdir() if stat.S_ISDIR(path.lstat().st_mode) else path.unlink()


ODD = ["pipe", "loop", "directory", "link to a device", "socket", "/dev/zero", "/dev/stdin", "/dev/null", "/proc/self/mem", "x" * 5000, "no/such/file", "a\0b"]


@pytest.mark.parametrize("kind", ODD, ids=lambda k: k[:20].replace("\0", "NUL"))
def test_what_is_no_regular_file_is_refused_at_once(folder: Path, kind: str) -> None:
    with _odd(folder, kind) as name:
        for place, arguments in (("work", ["plan", "-q", name]), ("data", ["plan", "-q", "data.yaml"])):
            if place == "data":
                (folder / "data.yaml").write_bytes(experiment_of("problems", name))
            said = io.StringIO()
            begun = time.monotonic()
            with contextlib.redirect_stderr(said):
                assert main(arguments) == 2, said.getvalue()
            assert time.monotonic() - begun < SECONDS
            assert said.getvalue().count("\n") <= 2
            assert max(map(len, said.getvalue().split("\n"))) < LONGEST_LINE


# ---------------------------------------------------------------------------------------------- data records


def refused_records(bad: BadRecords, folder: Path) -> None:
    files = {bad.name: bad.content, "data.yaml": experiment_of(bad.plugin, bad.name)}
    text = refused(["run", "-q", "data.yaml"], folder, files, bad.broken)
    assert bad.name in text, f"{bad.broken}: the file is not named: {text}"
    assert bad.line is None or re.search(bad.line, text), f"{bad.broken}: the record is not named: {text}"


def _records(folder: Path, examples: int) -> int:
    seen: set[bytes] = set()

    @_calm(examples)
    @given(bad_records())
    def draw(bad: BadRecords) -> None:
        if bad.content not in seen:
            seen.add(bad.content)
            refused_records(bad, folder)

    draw()
    return len(seen)


@pytest.mark.parametrize("plugin", ["problems", "pairs", "prompts"])
def test_unbroken_records_are_accepted(folder: Path, plugin: str) -> None:
    for ending in ("jsonl", "json"):
        (folder / f"good.{ending}").write_bytes(good_records(plugin, ending))
        (folder / "good.yaml").write_bytes(experiment_of(plugin, f"good.{ending}"))
        assert main(["plan", "-q", "good.yaml"]) == 0


def test_bad_data_records(folder: Path) -> None:
    assert _records(folder, 24) >= 20


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_500_bad_data_records(folder: Path) -> None:
    before = memory()
    count = _records(folder, 620)
    grown = (memory() - before) / 1e6
    print(f"\nbad data records: {count} refused, {grown:.0f} MB more memory at most")
    assert count >= 500
    assert grown < 1000
