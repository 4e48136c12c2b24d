"""The page of the Python API: public names, signatures and docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from wording import markdown

import codi_engine

INTRO = """# Python

Generated from the code. A run is made by [`Experiment`](#codi_engine.Experiment),
read by [`open_run`](#codi_engine.open_run) and analysed by [`analyze`](#codi_engine.analyze); [`load`](#codi_engine.load) gives a model
to try things by hand on one question. The [tutorial](../tutorial.md) and the README show them at work.

```python
import codi_engine
```
"""
#: what belongs to the public names although it is reached through them
RETURNED = {
    "codi_engine.core.running.run": ["Finished"],
    "codi_engine.core.runs.stored": ["StoredResult"],
    "codi_engine.core.runs.analyzing": ["Analysed"],
    "codi_engine.core.session": ["Session", "Generated"],
    "codi_engine.core.errors": ["UserError"],
}
CONTRACT = ["Options", "Model", "Data", "Example", "Prompt", "Dataset", "Rows", "Intervention", "Outcome", "Readings", "Metric",
            "AnalysisResult", "Analysis", "Tracker", "SaeFormat"]  # fmt: skip


def page() -> str:
    """Return the page: public names, what they return, and the classes that plugins derive from."""
    parts = [INTRO, "## codi_engine\n"]
    parts += [_entry("codi_engine", name, getattr(codi_engine, name)) for name in sorted(codi_engine.__all__, key=str.lower) if not name.startswith("_")]
    parts.append("## What they return\n")
    for module, names in RETURNED.items():
        parts += [_entry(module, name, getattr(importlib.import_module(module), name)) for name in names]
    parts.append("## For plugins\n\n[Plugins](../plugins.md) shows them at work; all are in `codi_engine.core.plugin`.\n")
    contract = importlib.import_module("codi_engine.core.plugin")
    parts += [_entry("codi_engine.core.plugin", name, getattr(contract, name)) for name in CONTRACT]
    return "\n".join(parts)


def _entry(module: str, name: str, thing: Any) -> str:
    head = f"### `{name}` {{ #{module}.{name} }}\n"
    if name == "hookimpl":
        return f"{head}\nMarks a function of a plugin's module as a hook: see [hooks](../plugins.md#hooks-that-contribute-classes).\n"
    if not callable(thing):
        return f"{head}\n{markdown(inspect.getdoc(type(thing)) or '')}\n"
    body = [head, _signature(name, thing, module), _doc(thing)]
    if inspect.isclass(thing):
        body += _members(thing)
    return "\n".join(p for p in body if p)


def _signature(name: str, thing: Any, module: str = "") -> str:
    """Return a call as code, one argument a line where it is long; options models and exceptions have none."""
    if inspect.isclass(thing) and (issubclass(thing, Exception) or hasattr(thing, "model_fields") or inspect.isabstract(thing)):
        return f"```python\nfrom {module} import {name}\n```\n"
    try:
        signature = inspect.signature(thing)
    except (TypeError, ValueError):
        return ""
    kept = [p for p in signature.parameters.values() if p.name not in ("self", "cls")]
    returned = "" if inspect.isclass(thing) or signature.return_annotation is inspect.Signature.empty else f" -> {_plain(signature.return_annotation)}"
    text = f"{name}({', '.join(_arguments(kept))}){returned}"
    if len(text) > 100:
        text = f"{name}(\n" + "".join(f"    {a},\n" for a in _arguments(kept)) + f"){returned}"
    return f"```python\n{text}\n```\n"


def _arguments(parameters: list[inspect.Parameter]) -> list[str]:
    """Return arguments as code writes them; annotations are texts already."""
    out: list[str] = []
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and "*" not in out and not any(a.startswith("*") for a in out):
            out.append("*")
        stars = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        said = "" if p.annotation is p.empty else f": {_plain(p.annotation)}"
        value = "" if p.default is p.empty else f" = {_plain(repr(p.default)) if 'factory' in repr(p.default) else repr(p.default)}"
        out.append(f"{stars}{p.name}{said}{value}")
    return out


def _plain(annotation: Any) -> str:
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return "…" if "factory" in text else text.strip("'").replace("codi_engine.core.", "")


def _doc(thing: Any) -> str:
    doc = inspect.getdoc(thing) or ""
    if inspect.isclass(thing) and doc.startswith(f"{thing.__name__}("):
        return ""  # made by dataclass
    return _listed(markdown(doc)) + "\n"


def _listed(text: str) -> str:
    """Return ``name: text`` lines under a numpydoc heading as a list."""
    out: list[str] = []
    inside = False
    for line in text.splitlines():
        if re.fullmatch(r"\*\*(Parameters|Raises|Attributes|Returns)\*\*", line):
            inside = True
            out.append(line)
        elif inside and (found := re.match(r"([\w, ]+): (.*)", line)):
            out.append(f"- `{found[1]}`: {found[2]}")
        elif inside and line.startswith("    "):
            out.append(f"  {line.strip()}")
        else:
            inside = inside and not line.strip()
            out.append(line)
    return "\n".join(out)


def _members(cls: type) -> list[str]:
    """Return a class' public methods and properties, where they are written in our own code."""
    out = []
    for name, thing in _own(cls):
        if isinstance(thing, (property, cached_property)):
            getter = thing.fget if isinstance(thing, property) else thing.func
            returned = inspect.signature(getter).return_annotation if getter else ""
            out.append(f"**`.{name}`** → `{_plain(returned)}`" + _indented(inspect.getdoc(thing) or ""))
        elif inspect.isfunction(thing) or isinstance(thing, (classmethod, staticmethod)):
            function = thing if inspect.isfunction(thing) else thing.__func__
            out.append(f"**`.{name}`**\n\n{_signature(name, function)}" + _indented(inspect.getdoc(function) or ""))
    return out


def _own(cls: type) -> Iterator[tuple[str, Any]]:
    skipped = {"model_config", "model_post_init"}
    for name, thing in vars(cls).items():
        wrapped = getattr(thing, "wrapped", None) is not None or "decorator_info" in dir(thing)
        if not name.startswith("_") and name not in skipped and not wrapped:
            yield name, thing


def _indented(doc: str) -> str:
    return f"\n\n{_listed(markdown(doc))}\n" if doc else "\n"
