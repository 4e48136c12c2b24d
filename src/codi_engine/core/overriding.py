"""Changes of single values of an experiment, as ``--set a.b[1]=c`` gives them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection
from typing import Any

from codi_engine.core.errors import UserError, nearest
from codi_engine.core.yamlfile import parse_yaml

_PART = re.compile(r"([^.\[\]]+)|\[(\d{1,9})\]")


def override(value: dict[str, Any], text: str, known: Collection[str]) -> dict[str, Any]:
    """Return a copy of an experiment's plain values with one ``a.b[1]=c`` change.

    Parameters
    ----------
    known: the keys that an experiment has

    Raises
    ------
    UserError: no such key or entry, or a value that is no YAML
    """
    path, equals, new_text = text.partition("=")
    if not equals or not path.strip():
        raise UserError(f"--set {text}: write a.b=value")
    new, _ = parse_yaml(new_text, f"--set {path}") if new_text.strip() else ("", {})
    parts: list[str | int] = [int(m[2]) if m[2] else m[1] for m in _PART.finditer(path.strip())]
    if parts[0] not in known:
        raise UserError(f"--set {path}: unknown key '{parts[0]}'; {nearest(str(parts[0]), known)}")
    copy: dict[str, Any] = _deep(value)
    target: Any = copy
    for here, following in itertools.pairwise(parts):
        if isinstance(target, list):
            target = _entry(target, here, path)
        elif isinstance(target, dict):
            if isinstance(target.get(here), str) and not isinstance(following, int):
                target[here] = {"plugin": target[here]}
            target = target.setdefault(here, [] if isinstance(following, int) else {})
        else:
            raise UserError(f"--set {path}: '{here}' is not a mapping")
    if isinstance(target, list):
        _entry(target, parts[-1], path)
        target[int(parts[-1])] = new
    elif isinstance(target, dict):
        target[parts[-1]] = new
    else:
        raise UserError(f"--set {path}: '{parts[-2]}' is not a mapping")
    return copy


def _entry(target: list[Any], index: str | int, path: str) -> Any:
    if not isinstance(index, int) or index >= len(target):
        raise UserError(f"--set {path}: the list has {len(target)} entries; write [0] to [{max(len(target) - 1, 0)}]")
    return target[index]


def _deep(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _deep(v) for k, v in value.items()}
    return [_deep(v) for v in value] if isinstance(value, list) else value
