"""What a section of the report is, and the templates' environment."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from codi_engine.reporting import words
from codi_engine.reporting.safe import json_text, visible


@dataclass(frozen=True)
class Section:
    """One part of the page. ``id`` is its anchor; ``html`` comes out of a template, so that everything in it is escaped."""

    id: str
    title: str
    html: Markup


@cache
def environment() -> Environment:
    """Return the environment of the package's templates: everything is escaped, an unknown name is an error.

    Filters: ``seen`` shows control characters, ``number`` and ``count`` write numbers, ``data`` writes JSON for a script element.
    """
    made = Environment(
        loader=PackageLoader("codi_engine.reporting", "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "seen": visible,
        "number": words.number,
        "count": words.count,
        "said": words.said,
        "tick": words.tick,
        "data": lambda value: Markup(json_text(value)),
    }
    return made


def render(template: str, **values: object) -> Markup:
    """Return a template filled in."""
    return Markup(environment().get_template(template).render(**values))


@cache
def assets(suffix: str) -> str:
    """Return all of the package's styles (``.css``) or scripts (``.js``) in one text, those of the page first."""
    folder = files("codi_engine.reporting").joinpath("assets")
    found = sorted((f for f in folder.iterdir() if f.name.endswith(suffix)), key=lambda f: (not f.name.startswith("page"), f.name))
    return "\n".join(f.read_text(encoding="utf-8").strip() for f in found)
