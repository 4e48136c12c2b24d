"""Documents as programs: the code blocks of a Markdown page, run from top to bottom in one directory.

A page is one story. Its blocks share a directory and a Python namespace, and what a block needs an earlier one has made.

- ``bash`` and ``console`` fences, and indented blocks with ``codi-engine`` commands, are run, or, where a word in capitals stands for
  something of the reader's (``codi-engine plan FILE``), read by the command's own parser: command and options must exist.
- ``console`` fences show output too: each line without ``$`` must be in what the command printed, numbers within a tolerance; ``…``
  stands for any lines or for the rest of a line. A fence without ``$`` quotes what the last command printed.
- ``yaml`` is validated as an experiment, completed with a model and data where it is a part of one; a first line ``# name.yaml``, or
  ``title="name"`` on a fence, writes the block to that file.
- ``python`` is run.

``<!-- not run: reason -->`` before a block leaves it out (its commands are still read by the parser, its YAML is validated);
``<!-- before: command -->`` runs a command that the page takes for granted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import click

from codi_engine.cli.main import cli, main
from codi_engine.core.experiment import Experiment
from codi_engine.core.plugins import plugin_manager
from codi_engine.core.yamlfile import parse_yaml

#: commands that pages use before they are merged; a command that exists is never skipped, whatever stands here
COMING: frozenset[str] = frozenset()
#: commands that wait for somebody: a server, an interactive review
INTERACTIVE = frozenset({"view", "completion"})
#: what a part of an experiment is completed with
WHOLE = {"name": "part", "model": {"plugin": "codi", "checkpoint": "demo"}, "data": {"plugin": "demo-pairs"}}
#: how far printed numbers may be off: the demo is deterministic but for rounding in other versions of torch
TOLERANCE = 0.03

_FENCE = re.compile(r"^(`{3,})(\w*)[ \t]*(.*)$")
_NOTE = re.compile(r"<!-- (not run|before): (.+?) -->")
_PLACEHOLDER = re.compile(r"(?<![\w{$-])(?!GSM8K)[A-Z]{2,}(?:_[A-Z]+)*(?:\.\.\.)?(?![\w-])|…|\.\.\.|\[NAME")
_NUMBER = re.compile(r"[-+−]?\d[\d,]*\.?\d*")


@dataclass(frozen=True)
class Block:
    """A code block: ``language`` is empty for indented ones, ``title`` a file's name, ``skipped`` why it is not run."""

    line: int
    language: str
    text: str
    title: str = ""
    skipped: str = ""
    before: str = ""


def blocks(text: str) -> list[Block]:
    """Return the code blocks of a page, in order."""
    return list(_blocks(text.splitlines()))


def _blocks(lines: list[str]) -> Iterator[Block]:
    notes: dict[str, str] = {}
    at = 0
    while at < len(lines):
        line = lines[at]
        if note := _NOTE.fullmatch(line.strip()):
            notes[note[1]] = note[2]
        elif fence := _FENCE.match(line):
            end = next(i for i in range(at + 1, len(lines)) if lines[i].startswith(fence[1]))
            title = re.search(r'title="([^"]+)"', fence[3])
            yield _block(at, fence[2] or "text", lines[at + 1 : end], notes, title[1] if title else "")
            notes, at = {}, end
        elif line.startswith("    ") and (at == 0 or not lines[at - 1].strip()) and not _in_list(lines, at):
            end = at
            while end < len(lines) and (lines[end].startswith("    ") or not lines[end].strip()):
                end += 1
            yield _block(at, "", [text[4:] for text in lines[at:end]], notes)
            notes, at = {}, end - 1
        elif line.strip():
            if "before" in notes:
                yield _block(at, "text", [], notes)
            notes = {}
        at += 1


def _block(at: int, language: str, body: list[str], notes: dict[str, str], title: str = "") -> Block:
    text = "\n".join(body).strip("\n")
    if not title and language in ("yaml", "python") and (named := re.match(r"# ([\w.-]+\.(?:yaml|py))$", text.splitlines()[0] if text else "")):
        title = named[1]
    return Block(at + 1, language, text, title, notes.get("not run", ""), notes.get("before", ""))


def _in_list(lines: list[str], at: int) -> bool:
    """True where an indented line continues a list's item."""
    before = next((lines[i] for i in range(at - 1, -1, -1) if lines[i].strip() and not lines[i].startswith("  ")), "")
    return bool(re.match(r"(?:[-*]|\d+\.) ", before))


@dataclass
class Page:
    """A page being run in ``folder`` (the working directory). ``ran`` are the commands that were run."""

    name: str
    folder: Path
    output: str = ""
    names: dict[str, Any] = field(default_factory=dict)
    ran: list[str] = field(default_factory=list)
    awaited: bool = False

    def run(self, text: str, left_out: Mapping[str, str] | None = None) -> None:
        """Run a page's blocks from top to bottom; an AssertionError names page and line.

        ``left_out``: beginning of a block → why it is not run, for pages without comments of their own.
        """
        for found in blocks(text):
            reason = next((why for start, why in (left_out or {}).items() if found.text.startswith(start)), found.skipped)
            block = replace(found, skipped=reason)
            try:
                self._run(block)
            except Exception as error:
                raise AssertionError(f"{self.name}:{block.line}: {type(error).__name__}: {error}") from error

    def _run(self, block: Block) -> None:
        if block.before:
            self._command(block.before)
        if block.title:
            (self.folder / block.title).write_text(block.text + "\n", encoding="utf-8")
        kind = block.language or _guess(block.text)
        if kind == "yaml":
            validate(block.text)
        elif kind == "python" and not block.skipped:
            exec(compile(block.text, f"{self.name}:{block.line}", "exec"), self.names)
        elif kind == "python":
            compile(block.text, self.name, "exec")
        elif kind in ("bash", "console"):
            self._session(block)

    def _session(self, block: Block) -> None:
        """Run a block's commands, and compare what is shown below each with what it printed."""
        shown: list[str] = []
        commands: list[tuple[str, list[str]]] = [("", shown)]
        for line in _joined(block.text):
            command = _command_of(line, block.language)
            if command is None:
                shown.append(line)
            else:
                shown = []
                commands.append((command, shown))
        for command, below in commands:
            refused = any(line.startswith("error:") for line in below)
            for part in command.split(" && "):
                self._command(part, block.skipped, refused)
            if below and not block.skipped and block.language == "console" and not self.awaited:
                compare(below, self.output)

    def _command(self, line: str, skipped: str = "", refused: bool = False) -> None:
        """Run a command, which must succeed (or, where an error is shown, be refused)."""
        arguments = shlex.split(line, comments=True)
        if not arguments or arguments[0] != "codi-engine":
            return  # a shell's own word: pip, git, export
        arguments, target = _redirected(arguments[1:])
        self.awaited = bool(arguments) and arguments[0] in COMING and arguments[0] not in cli.commands
        if self.awaited:
            return
        if skipped or _PLACEHOLDER.search(" ".join(arguments)) or (arguments and arguments[0] in INTERACTIVE):
            exists([a.strip("[]") for a in arguments])
            return
        out = StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            code = main(arguments)
        self.ran.append(line)
        self.output = out.getvalue()
        if target:
            (self.folder / target).write_text(self.output, encoding="utf-8")
        if (code == 2) != refused or code not in (0, 2, 3):
            raise AssertionError(f"{line}: exit code {code}\n{self.output}")


def _guess(text: str) -> str:
    """Say what an indented block is: commands, a part of an experiment, or something to read."""
    if re.search(r"^codi-engine ", text, re.MULTILINE):
        return "bash"
    try:
        value, _ = parse_yaml(text, "block")
    except Exception:
        return "text"
    return "yaml" if isinstance(value, dict) and value and set(value) <= set(Experiment.model_fields) else "text"


def _joined(text: str) -> list[str]:
    """Return lines, those that end in a backslash joined with the next."""
    return re.sub(r"\s*\\\n\s*", " ", text).splitlines()


def _command_of(line: str, language: str) -> str | None:
    """Return the command in a line, or None where the line is output."""
    if language == "console":
        return line[2:] if line.startswith("$ ") else None
    return line if line.startswith("codi-engine ") else "" if language == "bash" else None


def _redirected(arguments: list[str]) -> tuple[list[str], str]:
    """Split ``command > file`` into the command's arguments and the file."""
    return (arguments[:-2], arguments[-1]) if len(arguments) > 2 and arguments[-2] == ">" else (arguments, "")


def exists(arguments: list[str]) -> None:
    """Let click read a command line without running it; placeholders stand for any value, so that only names are checked."""
    command: click.Command = cli
    rest = list(arguments)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"no command '{rest[0]}'"
        command = command.commands[rest.pop(0)]
    known = {name for p in command.get_params(click.Context(command)) if isinstance(p, click.Option) for name in (*p.opts, *p.secondary_opts)}
    if command is cli.commands["analyze"]:
        _analysis(rest)
    wrong = [a for a in rest if re.match(r"--?[a-z]", a) and a.split("=")[0] not in known | {"-h", "--help"}]
    assert not wrong, f"{' '.join(arguments)}: no option {', '.join(wrong)}"


def _analysis(arguments: list[str]) -> None:
    """Demand that the analyses named have the options given: ``-s q=0.01``, ``-s words.top=20``."""
    known = {r.name: set(r.cls.Options.model_fields) for r in plugin_manager(load=False).registered if r.kind == "analysis"}
    named = [a for a in arguments if a in known]
    given = [b.split("=")[0] for a, b in pairwise(arguments) if a in ("-s", "--set") and named]
    for option in given:
        analysis, _, name = option.rpartition(".")
        assert any(name in known[a] for a in ([analysis] if analysis else named)), f"no analysis of {', '.join(named)} has an option '{option}'"


def validate(text: str) -> None:
    """Read YAML as an experiment, or as a part of one.

    Raises
    ------
    UserError: what `codi-engine run` would say
    """
    value, _ = parse_yaml(text, "block")
    Experiment.from_dict({**WHOLE, **value} if isinstance(value, dict) else value)


def compare(expected: list[str], printed: str) -> None:
    """Demand every expected line, in order, in what was printed; numbers within the tolerance."""
    flat = [_words(line) for line in printed.splitlines()]
    everything = " ".join(w for line in flat for w in line)
    for line in expected:
        begun = line.split("…")[0]
        wanted = _words(begun if begun == line or not begun.strip() or begun.endswith(" ") else begun.rpartition(" ")[0])
        if wanted and not any(_same(wanted, have, whole="…" not in line) for have in flat) and not _holds(wanted, everything.split()):
            raise AssertionError(f"the page shows\n  {line}\nbut what was printed is\n{printed}")


def _words(line: str) -> list[str]:
    return line.replace("│", " ").split()


def _same(wanted: list[str], have: list[str], whole: bool) -> bool:
    return (len(wanted) == len(have) if whole else len(wanted) <= len(have)) and all(map(_close, wanted, have))


def _holds(wanted: list[str], words: list[str]) -> bool:
    """True where the words stand one after the other somewhere: the terminal may have broken the line elsewhere."""
    return len(wanted) > 4 and any(all(map(_close, wanted, words[i : i + len(wanted)])) for i in range(len(words) - len(wanted) + 1))


def _close(one: str, other: str) -> bool:
    """Compare two words; the numbers in them within the tolerance, a star of significance not at all."""
    a, b = _NUMBER.findall(one), _NUMBER.findall(other)
    if _NUMBER.sub("#", one).rstrip("*") != _NUMBER.sub("#", other).rstrip("*"):
        return False
    return all(abs(_value(x) - _value(y)) <= TOLERANCE * max(1.0, abs(_value(x))) for x, y in zip(a, b, strict=True))


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-").rstrip("."))
