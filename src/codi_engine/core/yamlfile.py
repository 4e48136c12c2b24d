"""YAML as users write it: strict about duplicate keys, bounded in size, and with line numbers for errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from codi_engine.core.errors import UserError
from codi_engine.core.plainvalues import DEEPEST, unfit, unfit_key
from codi_engine.core.runs.places import similar
from codi_engine.core.text import neutral
from codi_engine.core.textfile import read_whole
from codi_engine.store.layout import EXPERIMENT

LARGEST = 1_000_000
#: values and keys, the mappings and lists around them included
MOST = 20_000
#: dotted path → line (from 1)
Lines = dict[str, int]

_TAG = "tag:yaml.org,2002:"
#: the values of YAML 1.2: ``1:30`` and ``0:6`` are words (a range), ``017`` is one (no octal number), and so is a date
_PLAIN = {
    "bool": (re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), "tTfF"),
    "int": (re.compile(r"^(?:[-+]?(?:0|[1-9][0-9_]*)|0b[01_]+|0x[0-9a-fA-F_]+)$"), "-+0123456789"),
    "float": (
        re.compile(r"^(?:[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.[0-9][0-9_]*(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
        "-+0123456789.",
    ),
}


class _Loader(yaml.SafeLoader):
    """Plain values only: true and false are the only booleans (``on:`` is a key, ``no`` a word); no aliases, no tags, no depths."""

    source = ""
    _depth = _count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        at = f"{self.source}:{event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{at}: aliases (*{event.anchor}) are not read; write the value out")
        if getattr(event, "tag", None) not in (None, "!", *(_TAG + name for name in ("str", "int", "float", "bool", "null", "map", "seq"))):
            raise UserError(f"{at}: tags ({event.tag}) are not read; write a plain value")
        if self._depth > DEEPEST:
            raise UserError(f"{at}: nested deeper than {DEEPEST} levels")
        self._count += 1
        if self._count > MOST:
            raise UserError(f"{at}: more than {MOST:,} values; put long tables into a file of their own")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.removeprefix(_TAG) not in (*_PLAIN, "timestamp", "merge", "value")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(_TAG + _name, _pattern, list(_first))


def parse_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """Return the plain value of a YAML text and the line of every key.

    Raises
    ------
    UserError: syntax error, duplicate key, alias, tag, nesting deeper than 30, more than 1 MB or 20,000 values, a number that is none
    """
    if len(text) > LARGEST:
        raise UserError(f"{source}: {len(text):,} characters; an experiment file has at most {LARGEST:,}")
    try:
        loader = _Loader(text)
        loader.source = source
        node = loader.get_single_node()
        lines: Lines = {}
        if node is None:
            return None, lines
        return _build(node, "", lines, source), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise UserError(f"{source}{line}: not valid YAML: {error.problem or error.context}{_remedy(error)}") from None
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        shown = neutral(text[error.position : error.position + 1])
        raise UserError(f"{source}:{number}: not valid YAML: holds the character {shown}, which no text has; remove it") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {str(error).splitlines()[0][:150]}") from None


def _remedy(error: yaml.MarkedYAMLError) -> str:
    """Return what to do about the mistakes that are made most."""
    said = error.problem or ""
    if "'\\t'" in said:
        return "; indent with spaces, not tabs"
    if said.startswith("mapping values are not allowed"):
        return "; put texts that hold a colon into quotes"
    return "; write one document" if "another document" in said else ""


def _build(node: yaml.Node, path: str, lines: Lines, source: str) -> Any:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _key(key_node, source)
            line = key_node.start_mark.line + 1
            if key in out:
                raise UserError(f"{source}:{line}: duplicate key '{key}'; it already stands in line {lines[_join(path, key)]}")
            out[key] = _build(value_node, _join(path, key), lines, source)
            lines[_join(path, key)] = line
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, f"{path}[{i}]", lines, source) for i, item in enumerate(node.value)]
    return _scalar(node, source)


def _key(node: yaml.Node, source: str) -> Any:
    at = f"{source}:{node.start_mark.line + 1}"
    key = _scalar(node, source) if isinstance(node, yaml.ScalarNode) else None
    if not isinstance(key, (str, int, float, bool)):
        raise UserError(f"{at}: a key must be a word")
    problem = unfit_key(str(key))
    if problem:
        raise UserError(f"{at}: {problem}")
    return key


def _scalar(node: yaml.Node, source: str) -> Any:
    try:
        value = _Loader("").construct_object(node, deep=True)
        problem = unfit(value)
    except (yaml.YAMLError, ValueError, OverflowError):  # what the tag says and what stands there differ, or it is too long
        problem = f"'{str(getattr(node, 'value', ''))[:40]}' is no {node.tag.removeprefix(_TAG)} that can be read; write a plain value"
    if problem:
        raise UserError(f"{source}:{node.start_mark.line + 1}: {problem}")
    return value


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """Read a YAML file; see :func:`parse_yaml`."""
    if os.path.isdir(path):
        held = f": {path / EXPERIMENT} is the file that it was made with" if (path / EXPERIMENT).is_file() else ""
        raise UserError(f"{path}: is a directory; give an experiment file{held}")
    try:
        text = read_whole(path, 4 * LARGEST, "put long tables into a file of their own").decode("utf-8-sig")
    except FileNotFoundError:
        hint = similar(path)
        raise UserError(f"{path}: no such file{'; ' if hint else ''}{hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(text.replace("\r\n", "\n").replace("\r", "\n"), path.name)


def line_of(lines: Mapping[str, int], path: str) -> str:
    """Return ``:12`` for a dotted path, or for its nearest ancestor; empty when unknown."""
    while path:
        if path in lines:
            return f":{lines[path]}"
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else ""
    return ""
