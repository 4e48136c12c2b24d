"""The page of the experiment file: every key, and every built-in plugin with its options."""

from __future__ import annotations

import functools
import inspect
import itertools
import re
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from wording import TITLES, bounds, clauses, default, kind, markdown, sentence, table

from codi_engine.core.experiment import CodeSpec, Condition, Experiment, Generate, InterventionSpec
from codi_engine.core.plugins import plugin_manager

DOCS = Path(__file__).resolve().parents[2] / "docs"
KINDS = {
    "model": "Models", "dataset": "Data sets", "intervention": "Interventions", "metric": "Metrics", "analysis": "Analyses", "tracker": "Trackers",
}  # fmt: skip
#: kind → headings under which options are described that its plugins share
USUAL = {"model": ["model", "codi"], "dataset": ["data"], "intervention": ["intervention"], "metric": ["metrics"], "analysis": ["Large runs", "analyses"]}
#: what a docstring says instead of saying it
UNSAID = "as everywhere"
COMMON = {
    "q": "what counts as significant, after the correction", "confidence": "of intervals", "metric": "which column is analysed",
    "condition": "which condition, where there are several", "at": "values of the axes, such as `{layer: 2}`",
    "question_field": "the record's key that holds the question", "answer_field": "the record's key that holds the answer",
    "text_field": "the record's key that holds the text",
}  # fmt: skip
INTRO = """# The experiment file, key by key

Generated from the code: what a key may be, what it is when left out, and the options of every built-in plugin. How the keys
work together is told, with examples, in [the experiment file](../experiment-file.md), [sites](../sites.md) and
[analyses](../analyses.md). `codi-engine plugins show NAME` prints the same of any installed plugin.
"""


def page() -> str:
    """Return the page."""
    keys: list[type[BaseModel]] = [InterventionSpec, Condition, Generate, CodeSpec]
    parts = [INTRO, _model(Experiment, "Top level"), *(_model(model, TITLES[model.__name__]) for model in keys)]
    manager = plugin_manager(load=False)
    shown: dict[str, type[BaseModel]] = {}
    for name, title in KINDS.items():
        items = sorted((r for r in manager.registered if r.kind == name), key=lambda r: r.name)
        parts.append(f"## {title}\n")
        parts += [_plugin(item, shown) for item in items] or ["None is built in.\n"]
    if shown:
        parts.append("## Options with options of their own\n")
        parts += [_model(model, title, "###") for title, model in shown.items()]
    return "\n".join(parts)


def _model(model: type[BaseModel], title: str, level: str = "##") -> str:
    doc = markdown(model.__doc__ or "")
    intro = doc.split(". `")[0].split("\n\n")[0].split(": the address keys")[0]
    return f"{level} {title if title == 'Top level' or level != '##' else f'`{title}`'}\n\n{intro.rstrip('.')}.\n\n{_fields(model, [title])}"


def _fields(model: type[BaseModel], sections: list[str]) -> str:
    """Return the table of a model's keys; what is not said in its own docstring comes from the hand-written ``sections``."""
    own = _said(model)
    rows = []
    for name, field in model.model_fields.items():
        limits = bounds(field)
        what = kind(field.annotation) + (f", {limits}" if limits else "")
        written = next((t for s in sections if (t := _written().get(s, {}).get(name))), "")
        rows.append(
            [f"`{name}`", what, default(field), field.description or own.get(name) or written or sentence(model.__doc__ or "", name) or COMMON.get(name, "")]
        )
    return table(["key", "what it may be", "default", "meaning"], rows)


def _said(model: type[BaseModel]) -> dict[str, str]:
    """Return option → what the docstrings of the options' class, and of those that it inherits from, say of it."""
    found: dict[str, str] = {}
    for cls in model.__mro__:
        if issubclass(cls, BaseModel) and cls is not BaseModel:
            said = clauses(cls.__doc__ or "", list(model.model_fields))
            found |= {name: text for name, text in said.items() if text and name not in found and not text.endswith(UNSAID)}
    return found


@functools.cache
def _written() -> dict[str, dict[str, str]]:
    """Return heading, or the plugin that a paragraph begins with → key → meaning, from the tables that are written by hand."""
    found: dict[str, dict[str, str]] = {}
    for name in ("experiment-file.md", "analyses.md"):
        places: list[str] = []
        for line in (DOCS / name).read_text(encoding="utf-8").splitlines():
            if line.startswith("#"):
                places = [line.strip("# `")]
            elif begins := re.match(r"`(\w+)` — ", line):
                places = [*places[:1], begins[1]]
            cells = [c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if line.startswith("| `") and len(cells) >= 2 and not re.fullmatch(r"[\d.]*", cells[-1]):
                for key, place in itertools.product(re.findall(r"`(\w+)`", cells[0]), places):
                    found.setdefault(place, {}).setdefault(key, _linked(cells[-1].replace("\\|", "|"), name))
    return found


def _linked(text: str, page: str) -> str:
    """Make the links of that page right for one that lies a folder deeper, and their words for a table."""
    text = re.sub(r"\[([\w-]+)\.md\]", r"[\1]", text.replace("[below]", "[more]"))
    return re.sub(r"\]\(#", f"](../{page}#", re.sub(r"\]\((?!https?:|#)", "](../", text))


def _plugin(item: Any, shown: dict[str, type[BaseModel]]) -> str:
    options: type[BaseModel] = item.cls.Options
    for field in options.model_fields.values():
        for model in _models(field.annotation):
            shown.setdefault(model.__name__, model)
    text = f"### `{item.name}` {{ #{item.kind}-{item.name} }}\n\n{markdown(inspect.getdoc(item.cls) or '')}\n\n"
    return text + (_fields(options, [item.name, *USUAL.get(item.kind, [])]) if options.model_fields else "No options.\n")


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for a in get_args(annotation) for m in _models(a)]
