"""YAML as users write it: strict about duplicate keys, bounded in size, and with line numbers for errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from codi_engine.core.errors import UserError
from codi_engine.core.runs.places import similar
from codi_engine.store.layout import EXPERIMENT

LARGEST = 1_000_000
DEEPEST = 30
#: dotted path → line (from 1)
Lines = dict[str, int]


class _Loader(yaml.SafeLoader):
    """YAML's plain values, with true and false as the only booleans: ``on:`` is a key, ``no`` is a word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def parse_yaml(text: str, source: str) -> tuple[Any, Lines]:
    """Return the plain value of a YAML text and the line of every key.

    Raises
    ------
    UserError: syntax error, duplicate key, alias, nesting deeper than 30, more than 1 MB
    """
    if len(text) > LARGEST:
        raise UserError(f"{source}: {len(text):,} characters; an experiment file has at most {LARGEST:,}")
    try:
        _no_aliases(text, source)
        node = yaml.compose(text, Loader=_Loader)
        lines: Lines = {}
        if node is None:
            return None, lines
        return _build(node, "", lines, source, 0), lines
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark is not None else ""
        raise UserError(f"{source}{line}: not valid YAML: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{source}: not valid YAML: {str(error).splitlines()[0][:150]}") from None


def _no_aliases(text: str, source: str) -> None:
    for number, event in enumerate(yaml.parse(text, Loader=_Loader)):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{source}:{event.start_mark.line + 1 if event.start_mark else '?'}: aliases (*{event.anchor}) are not read; write the value out")
        if number > 200_000:
            raise UserError(f"{source}: too many values")


def _build(node: yaml.Node, path: str, lines: Lines, source: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise UserError(f"{source}:{node.start_mark.line + 1}: nested deeper than {DEEPEST} levels")
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        out: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = _scalar(key_node, source)
            line = key_node.start_mark.line + 1
            if not isinstance(key, (str, int, float, bool)):
                raise UserError(f"{source}:{line}: a key must be a word")
            if key in out:
                raise UserError(f"{source}:{line}: duplicate key '{key}'; it already stands in line {lines[_join(path, key)]}")
            out[key] = _build(value_node, _join(path, key), lines, source, depth + 1)
            lines[_join(path, key)] = line
        return out
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, f"{path}[{i}]", lines, source, depth + 1) for i, item in enumerate(node.value)]
    return _scalar(node, source)


def _scalar(node: yaml.Node, source: str) -> Any:
    try:
        return _Loader("").construct_object(node, deep=True)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{source}:{node.start_mark.line + 1}: {str(error).splitlines()[0][:150]}") from None


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def read_yaml(path: Path) -> tuple[Any, Lines]:
    """Read a YAML file; see :func:`parse_yaml`."""
    if path.is_dir():
        held = f": {path / EXPERIMENT} is the file that it was made with" if (path / EXPERIMENT).is_file() else ""
        raise UserError(f"{path}: is a directory; give an experiment file{held}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = similar(path)
        raise UserError(f"{path}: no such file{'; ' if hint else ''}{hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    return parse_yaml(text, path.name)


def line_of(lines: Mapping[str, int], path: str) -> str:
    """Return ``:12`` for a dotted path, or for its nearest ancestor; empty when unknown."""
    while path:
        if path in lines:
            return f":{lines[path]}"
        cut = max(path.rfind("."), path.rfind("["))
        path = path[:cut] if cut > 0 else ""
    return ""
