"""Types and docstrings in plain words."""

from __future__ import annotations

import inspect
import re
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

_PLAIN = {
    int: "whole number", float: "number", str: "text", bool: "`true` or `false`", Path: "path", Any: "any value", type(None): "none",
    dict: "mapping", list: "list",
}  # fmt: skip
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "{} or more", "max_length": "{} or fewer"}
#: class → heading of its table on the page
TITLES = {"InterventionSpec": "intervention", "Condition": "conditions", "Generate": "generate", "CodeSpec": "capture"}
_HELPERS = {"PluginRef": "a plugin's name, or `{plugin: name, options}`", "Axis": "axis values"}


def kind(annotation: Any) -> str:
    """Return a type as a reader of YAML would say it; None is left to the default."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return alternatives([f"`{'true' if v is True else 'false' if v is False else v}`" for v in inner])
    if origin in (Union, types.UnionType):
        return _either([a for a in inner if a is not type(None)])
    if origin in (list, tuple, set, frozenset):
        return f"list of {'any of ' if get_origin(inner[0]) is Literal else ''}{_several(kind(inner[0]))}" if inner else "list"
    if origin is dict:
        return "mapping" if inner[1] is Any else f"mapping of name to {kind(inner[1])}"
    if hasattr(annotation, "__metadata__"):
        return kind(inner[0])
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        title = TITLES.get(annotation.__name__, annotation.__name__)
        return _HELPERS.get(annotation.__name__) or f"[mapping](#{anchor(title)})"
    return _PLAIN.get(annotation) or getattr(annotation, "__name__", str(annotation))


def alternatives(texts: list[str]) -> str:
    """Return ``a, b or c``."""
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"


def _either(annotations: list[Any]) -> str:
    """Say a union; the six forms of an axis are one thing."""
    if {int, str, float} <= set(annotations) and len(annotations) > 4:
        return _HELPERS["Axis"]
    return alternatives(list(dict.fromkeys(kind(a) for a in annotations)))


def _several(one: str) -> str:
    return {
        "whole number": "whole numbers",
        "number": "numbers",
        "text": "texts",
        _HELPERS["PluginRef"]: "plugins, each a name or `{plugin: name, options}`",
    }.get(one, one)


def anchor(heading: str) -> str:
    """Return the id that a heading gets on the site."""
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def default(field: FieldInfo) -> str:
    """Return a default as the file would write it."""
    if field.is_required():
        return "required"
    value = field.default_factory() if field.default_factory is not None else field.default  # type: ignore[call-arg]
    if value is None or value is PydanticUndefined:
        return "none"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, BaseModel):
        return "its defaults"
    if isinstance(value, str) and (not value or value != value.strip()):
        return f'`"{value}"`'
    return f"`{list(value) if isinstance(value, tuple) else value}`".replace("'", "")


def bounds(field: FieldInfo) -> str:
    """Return the limits of a number: ``at least 1, at most 10``."""
    said = [text.format(f"{getattr(m, name):,g}") for m in field.metadata for name, text in _BOUNDS.items() if getattr(m, name, None) is not None]
    return ", ".join(said)


def markdown(text: str) -> str:
    """Turn a docstring into Markdown: double ticks, roles and numpydoc sections."""
    text = re.sub(r":\w+:`~?([^`]+)`", lambda m: f"`{m[1].rsplit('.', 1)[-1]}`", inspect.cleandoc(text))
    text = text.replace("``", "`")
    text = re.sub(r"^(\w[\w ]*)\n-{3,}$", r"\n**\1**\n", text, flags=re.MULTILINE)
    return re.sub(r"(?m)^>>> .*\n?", "", text)


def clauses(doc: str, names: list[str]) -> dict[str, str]:
    """Return option → the piece of the options' docstring that begins with its name (or with several names, its own among them)."""
    flat = re.sub(r"\s+", " ", inspect.cleandoc(doc or ""))
    pieces = re.split(rf"(?:(?<=[.;])|^)\s*(?:(?:and|or) )?(?=``(?:{'|'.join(map(re.escape, names))})``)", flat) if names else []
    found: dict[str, str] = {}
    for name in names:
        starting = [p for p in pieces if p.startswith(f"``{name}``")]
        together = [p for p in pieces if f"``{name}``" in re.match(r"(?:``\w+``(?:, | and | or )?)*", p)[0]]  # type: ignore[index]
        found[name] = _said((starting or together or [""])[0], name)
    return found


def sentence(doc: str, name: str) -> str:
    """Return the first sentence of a docstring that names an option, for what is said in passing."""
    flat = re.sub(r"\s+", " ", inspect.cleandoc(doc or ""))
    holding = [p for p in re.split(r"(?<=[.;]) ", flat) if f"``{name}``" in p]
    return _said(holding[0], name) if holding else ""


def _said(piece: str, name: str) -> str:
    """Drop the name itself where a colon follows: ``name: text`` says text."""
    piece = piece.removeprefix(f"``{name}``: ").strip().rstrip(".;")
    return markdown(piece) if piece else ""


def cell(text: str) -> str:
    """Return a text that stands in one cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").strip() or " "


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell(c) if c != "---" else c for c in line) + " |" for line in lines) + "\n"
